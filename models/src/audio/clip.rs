//! [`Audio`]: a recording as the models hear it.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use super::decode::{decode_bytes_within, decode_file, decode_reader};
use super::error::{AudioError, AudioErrorKind};
use super::limits::{MAX_MAGNITUDE, MAX_RATE_HZ, MIN_RATE_HZ};
use super::loss::{Loss, TrackChoice};
use super::recording::Decoded;
use super::{normalize, resample};
use crate::transcribe::RATE_HZ;

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

    /// Reads a file in memory, of at most so many seconds.
    ///
    /// Errors: as [`Audio::of_file`]; `TooLong`.
    pub fn of_bytes(name: &str, bytes: &[u8], max_s: u32) -> Result<Self, AudioError> {
        let start = Instant::now();
        Self::decoded(name, decode_bytes_within(name, bytes, max_s)?, start)
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
