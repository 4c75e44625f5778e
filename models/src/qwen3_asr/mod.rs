//! Qwen3-ASR: an audio tower whose vectors stand in the prompt of a Qwen3 decoder.
//! Source: qwen-asr 0.0.6, `core/transformers_backend/modeling_qwen3_asr.py`; arXiv:2601.21337.

mod encoder;
pub mod parse;
pub mod prompt;

use engine::gguf::Gguf;
use engine::model::Model;
use engine::weights::WeightStore;

pub use encoder::{Encoder, audio_tokens};

use crate::audio::{MelParams, MelRecipe};
use crate::decoder::Decoder;
use crate::encoder_decoder::EncoderDecoder;
use crate::error::Result;
use crate::qwen3;

/// Samples per second.
const RATE_HZ: u32 = 16_000;
/// Samples per frame.
const N_FFT: usize = 400;
/// Samples from frame to frame.
const HOP: usize = 160;
/// Shorter clips are padded with silence to this length: half a second, as transformers does.
const MIN_SAMPLES: usize = 8000;

/// What an audio token attends to in the encoder.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum AudioAttention {
    /// Windows of the length that the model was made for, 8 s in every release.
    #[default]
    Windowed,
    /// The whole clip, as the official package computes it without FlashAttention.
    Full,
}

/// The front end's parameters: those of Whisper, which no file names.
pub fn mel_params(n_mels: usize) -> MelParams {
    MelParams {
        recipe: MelRecipe::Whisper,
        rate_hz: RATE_HZ,
        n_fft: N_FFT,
        win_length: N_FFT,
        hop: HOP,
        n_mels,
        min_samples: MIN_SAMPLES,
    }
}

/// Loads a text file `qwen3vl` with its projector file `qwen3a`, or a bundle of both.
///
/// Errors: keys or tensors that are missing or do not fit each other.
pub fn load(files: &[Gguf], w: &WeightStore, attention: AudioAttention) -> Result<EncoderDecoder<Encoder, Decoder>> {
    let decoder = qwen3::load(files, "qwen3vl", w)?;
    let encoder = Encoder::load(files, w, decoder.n_embd(), attention)?;
    Ok(EncoderDecoder::new("qwen3-asr", encoder, decoder))
}
