//! Audio files as samples at the models' rate, and what it took to read them.

use std::path::Path;
use std::time::Instant;

use models::audio::{AudioError, AudioErrorKind, Decoded, Loss, decode_file, decode_reader, normalize, resample};
use models::transcribe::RATE_HZ;

use crate::exit::{Failure, Outcome};
use crate::report::Verbosity;

/// Mono samples at [`RATE_HZ`], at least one.
pub(crate) struct Samples {
    /// The samples.
    pub values: Vec<f32>,
    /// From the file's bytes to samples.
    pub decode_audio_ms: f64,
    /// From the file's rate to ours.
    pub resample_ms: f64,
}

impl Samples {
    /// Reads a file. Says what of a damaged file is lost.
    ///
    /// Errors: no audio, no samples.
    pub(crate) fn of_file(path: &Path, say: Verbosity) -> Outcome<Self> {
        let start = Instant::now();
        Self::new(&path.display().to_string(), decode_file(path), start, say)
    }

    /// Reads standard input.
    ///
    /// Errors: as [`Self::of_file`].
    pub(crate) fn of_stdin(say: Verbosity) -> Outcome<Self> {
        const NAME: &str = "standard input";
        let start = Instant::now();
        Self::new(NAME, decode_reader(NAME, std::io::stdin().lock()), start, say)
    }

    fn new(name: &str, decoded: Result<Decoded, AudioError>, start: Instant, say: Verbosity) -> Outcome<Self> {
        let decoded = decoded.map_err(Failure::input)?;
        if decoded.samples.is_empty() {
            return Err(Failure::input(AudioError { input: name.into(), kind: AudioErrorKind::NoSamples }));
        }
        if !decoded.loss.is_none() {
            let Loss { bad_packets, cut_short } = decoded.loss;
            let end = if cut_short { ", ends before its announced end" } else { "" };
            say.note(format_args!("{name}: damaged: {bad_packets} packets left out{end}"));
        }
        let decode_audio_ms = start.elapsed().as_secs_f64() * 1000.0;
        let start = Instant::now();
        let mut values = resample(decoded.samples, decoded.rate_hz, RATE_HZ);
        normalize(&mut values);
        Ok(Self { values, decode_audio_ms, resample_ms: start.elapsed().as_secs_f64() * 1000.0 })
    }
}
