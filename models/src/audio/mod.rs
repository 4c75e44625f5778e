//! Audio front end: a file to mono samples ([`decode_file`]), to the model's rate ([`resample()`]), to features
//! ([`MelSpectrogram`]). Long clips are cut by [`split`]; [`activity()`] says where sound is.

mod aac;
pub mod activity;
mod aiff;
mod au;
mod avi;
mod caf;
mod caught;
mod clip;
pub mod decode;
mod demux;
mod elementary;
pub mod error;
mod fields;
mod filterbank;
mod frame;
pub mod limits;
mod loss;
pub mod mel;
mod mkv;
mod mp4;
mod mpeg;
mod names;
mod ogg;
mod patched;
mod pcm;
pub mod probe;
mod recording;
pub mod resample;
pub mod segment;
mod sum;
mod ts;
mod unread;
mod wav;
mod window;

pub use activity::activity;
pub use clip::Audio;
pub use decode::{decode_bytes, decode_bytes_within, decode_file, decode_reader};
pub use error::{AudioError, AudioErrorKind};
pub use limits::{MAX_MAGNITUDE, MAX_RATE_HZ, MIN_RATE_HZ};
pub use loss::{Loss, TrackChoice};
pub use mel::{Features, MelParams, MelRecipe, MelSpectrogram};
pub use probe::{PROBE_BYTES, media_container};
pub use recording::Decoded;
pub use resample::resample;
pub use segment::split;

/// Brings samples into [-1, 1]: if the peak is above 1, divides by it. Quieter clips stay as they are.
///
/// The official loader does this after resampling, which can raise the peak. Source: qwen-asr, `inference/utils.py`.
pub fn normalize(samples: &mut [f32]) {
    let peak = samples.iter().fold(0f32, |peak, x| peak.max(x.abs()));
    if peak > 1.0 {
        for x in samples {
            *x = (*x / peak).clamp(-1.0, 1.0);
        }
    }
}
