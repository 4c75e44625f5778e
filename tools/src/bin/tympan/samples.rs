//! Audio files as samples at the models' rate, and what it took to read them.

use std::path::Path;
use std::time::Duration;

use models::audio::AudioError;
use tympan::{Audio, Loss, TrackChoice};

use crate::exit::{Failure, Outcome};
use crate::report::Verbosity;

/// What standard input is called in messages.
const STDIN: &str = "standard input";

/// From this many seconds on, what was lost of a file shows in the exit code.
const MAX_LOST_S: f64 = 0.5;

/// Mono samples at the models' rate, at least one.
pub(crate) struct Samples {
    /// What messages call the file.
    pub name: String,
    /// The samples.
    pub values: Vec<f32>,
    /// What the file did not give.
    pub condition: Condition,
    /// From the file's bytes to samples.
    pub decode_audio_ms: f64,
    /// From the file's rate to ours.
    pub resample_ms: f64,
}

/// How samples stand to the file that they are of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Condition {
    /// When the first sample sounds, in seconds of the file's clock.
    pub start_s: f64,
    /// What could not be decoded.
    pub losses: Vec<Loss>,
    /// Which track this is, where there was a choice.
    pub track: Option<TrackChoice>,
}

impl Condition {
    /// Whether so much is missing that the run has not succeeded.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.lost_s() >= MAX_LOST_S || self.track.as_ref().is_some_and(|track| !track.left_out.is_empty())
    }

    fn lost_s(&self) -> f64 {
        self.losses.iter().map(Loss::seconds).sum()
    }

    /// Says what is missing.
    pub(crate) fn say(&self, name: &str, say: Verbosity) {
        if let Some(TrackChoice { index, codec, left_out }) = self.track.as_ref().filter(|t| !t.left_out.is_empty()) {
            let left_out = left_out.join(", ");
            say.note(format_args!(
                "{name}: no decoder for {left_out}: left out; this is audio track {index} ({codec})"
            ));
        }
        let [first, rest @ ..] = &self.losses[..] else { return };
        let more = if rest.is_empty() { String::new() } else { format!("; {} more places", rest.len()) };
        say.note(format_args!(
            "{name}: damaged: {:.2} s lost ({:.2} to {:.2} s: {}{more})",
            self.lost_s(),
            first.start_s,
            first.end_s,
            first.what
        ));
    }
}

impl Samples {
    /// Reads a file.
    ///
    /// Errors: no audio, no samples.
    pub(crate) fn of_file(path: &Path) -> Outcome<Self> {
        Self::new(&path.display().to_string(), Audio::of_file(path))
    }

    /// Reads standard input.
    ///
    /// Errors: as [`Self::of_file`].
    pub(crate) fn of_stdin() -> Outcome<Self> {
        Self::new(STDIN, Audio::of_reader(STDIN, std::io::stdin().lock()))
    }

    fn new(name: &str, audio: Result<Audio, AudioError>) -> Outcome<Self> {
        let Audio { samples: values, start_s, losses, track, decode, resample } =
            audio.map_err(|e| refused(name, e))?;
        let condition = Condition { start_s, losses, track };
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let name = name.to_owned();
        Ok(Self { name, values, condition, decode_audio_ms: ms(decode), resample_ms: ms(resample) })
    }
}

/// The failure of an input, with the command that converts it where another program can.
fn refused(name: &str, error: AudioError) -> Failure {
    let hint = error.kind.is_convertible();
    let failure = Failure::input(error);
    if !hint {
        return failure;
    }
    let input = if name == STDIN { "-" } else { name };
    let error = anyhow::anyhow!("{failure}; convert it: ffmpeg -i '{input}' -ac 1 -ar 16000 out.wav");
    Failure { error, ..failure }
}
