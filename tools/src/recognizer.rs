//! [`Recognizer`]: recordings to text.

use std::io::Read;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use engine::DType;
use models::audio::{
    AudioError, AudioErrorKind, Decoded, Loss, MAX_MAGNITUDE, MAX_RATE_HZ, MIN_RATE_HZ, TrackChoice, decode_file,
    decode_reader, normalize, resample,
};
use models::languages::UnknownLanguage;
use models::transcribe::{Observer, RATE_HZ, Request, Transcriber, Transcript};

use crate::error::Result;
use crate::model::Model;

/// What computes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// One of [`backends::list`].
    pub name: String,
    /// Threads; all available cores where nothing is said.
    pub threads: Option<NonZeroUsize>,
    /// Type of the attention cache: F16 or F32.
    pub kv_dtype: DType,
}

impl Default for Device {
    fn default() -> Self {
        Self { name: "cpu".into(), threads: None, kv_dtype: DType::F16 }
    }
}

/// A recording as the models hear it.
#[derive(Clone, Debug)]
pub struct Audio {
    /// Mono at [`RATE_HZ`], at least one, scaled as the official loaders do.
    pub samples: Vec<f32>,
    /// When the first sample sounds, in seconds of the file's clock.
    pub start_s: f64,
    /// What of the file could not be decoded: it is silence here.
    pub losses: Vec<Loss>,
    /// Which track this is, where there was a choice.
    pub track: Option<TrackChoice>,
    /// From the file's bytes to samples.
    pub decode: Duration,
    /// From the file's rate to [`RATE_HZ`].
    pub resample: Duration,
}

impl Audio {
    /// Reads a file of any format that is read.
    ///
    /// Errors: no file, no audio, a codec that is not read, no samples.
    pub fn of_file(path: &Path) -> Result<Self, AudioError> {
        let start = Instant::now();
        Self::decoded(&path.display().to_string(), decode_file(path)?, start)
    }

    /// Reads a stream to its end. `name` stands for it in messages.
    ///
    /// Errors: as [`Audio::of_file`].
    pub fn of_reader(name: &str, reader: impl Read) -> Result<Self, AudioError> {
        let start = Instant::now();
        Self::decoded(name, decode_reader(name, reader)?, start)
    }

    /// Mono samples, at a rate from [`MIN_RATE_HZ`] to [`MAX_RATE_HZ`].
    ///
    /// Errors: no samples, another rate, a sample that is not a number or above [`MAX_MAGNITUDE`].
    pub fn of_samples(samples: Vec<f32>, rate_hz: u32) -> Result<Self, AudioError> {
        let refused = |kind| Err(AudioError { input: SAMPLES.into(), kind });
        if !(MIN_RATE_HZ..=MAX_RATE_HZ).contains(&rate_hz) {
            return refused(AudioErrorKind::SampleRate { rate_hz });
        }
        let is_good = |sample: &f32| sample.abs() <= MAX_MAGNITUDE;
        if let Some((at, &value)) = (0..).zip(&samples).find(|(_, sample)| !is_good(sample)) {
            return refused(AudioErrorKind::BadSample { at, value });
        }
        Self::resampled(SAMPLES, samples, rate_hz)
    }

    fn decoded(name: &str, decoded: Decoded, start: Instant) -> Result<Self, AudioError> {
        let Decoded { samples, rate_hz, start_s, losses, track, .. } = decoded;
        let decode = start.elapsed();
        Ok(Self { start_s, losses, track, decode, ..Self::resampled(name, samples, rate_hz)? })
    }

    fn resampled(name: &str, samples: Vec<f32>, rate_hz: u32) -> Result<Self, AudioError> {
        if samples.is_empty() {
            return Err(AudioError { input: name.into(), kind: AudioErrorKind::NoSamples });
        }
        let start = Instant::now();
        let mut samples = resample(samples, rate_hz, RATE_HZ);
        normalize(&mut samples);
        Ok(Self {
            samples,
            start_s: 0.0,
            losses: Vec::new(),
            track: None,
            decode: Duration::ZERO,
            resample: start.elapsed(),
        })
    }
}

/// What samples without a file are called in messages.
const SAMPLES: &str = "samples";

/// The text of a recording, and what of it is missing.
#[derive(Clone, Debug)]
pub struct Recognized {
    /// What was said, and when.
    pub transcript: Transcript,
    /// What of the file could not be decoded.
    pub losses: Vec<Loss>,
    /// Which track was heard, where there was a choice.
    pub track: Option<TrackChoice>,
}

/// A speech model on a device, ready for one recording after the other. It is not shared between threads; each thread that
/// transcribes has one of its own, and all of them share the model's weights.
pub struct Recognizer {
    transcriber: Transcriber,
}

impl Recognizer {
    pub(crate) fn open(model: &Model, device: &Device) -> Result<Self> {
        let backend = backends::open(&device.name, &backends::Options { threads: device.threads })?;
        Ok(Self { transcriber: Transcriber::open(&model.loaded, &[backend], device.kv_dtype)? })
    }

    /// Transcribes a file.
    ///
    /// Errors: a file that cannot be read; a language or context that the model cannot be asked for; values that are not
    /// finite; `Cancelled` where the observer says so. A damaged file is no error: what is lost of it is in the result.
    pub fn file(
        &mut self,
        path: impl AsRef<Path>,
        request: &Request<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Recognized> {
        self.audio(Audio::of_file(path.as_ref())?, request, observer)
    }

    /// Transcribes mono samples at any rate.
    ///
    /// Errors: as [`Recognizer::file`].
    pub fn samples(
        &mut self,
        samples: Vec<f32>,
        rate_hz: u32,
        request: &Request<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Recognized> {
        self.audio(Audio::of_samples(samples, rate_hz)?, request, observer)
    }

    /// Transcribes a recording that was read. Times are those of its clock, after [`Request::start_s`]. The language may be
    /// named as users name it: by its name, code or tag.
    ///
    /// Errors: as [`Recognizer::file`].
    pub fn audio(&mut self, audio: Audio, request: &Request<'_>, observer: &mut dyn Observer) -> Result<Recognized> {
        let Audio { samples, start_s, losses, track, .. } = audio;
        let find = |wanted| self.transcriber.format().find_language(wanted);
        let language = request.language.map(find).transpose();
        let unknown = |e: UnknownLanguage| models::Error::Argument { name: "language", what: e.to_string() };
        let language = language.map_err(unknown)?;
        let start_s = request.start_s + start_s;
        let request = Request { start_s, language: language.as_deref(), ..request.clone() };
        let transcript = self.transcriber.transcribe(&samples, &request, observer)?;
        Ok(Recognized { transcript, losses, track })
    }

    /// What is below: the model's prompt and languages, counters, profiles.
    pub fn transcriber(&mut self) -> &mut Transcriber {
        &mut self.transcriber
    }
}
