//! [`Recognizer`]: recordings to text.

use std::num::NonZeroUsize;
use std::path::Path;

use engine::DType;
use models::audio::{Audio, Loss, TrackChoice};
use models::languages::UnknownLanguage;
use models::transcribe::{Observer, Request, Transcriber, Transcript, USUAL_PARALLEL};

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
    /// Segments of long audio that are worked on at once, each with memory for its states; the text is the same.
    pub parallel: NonZeroUsize,
}

impl Default for Device {
    fn default() -> Self {
        Self { name: "cpu".into(), threads: None, kv_dtype: DType::F16, parallel: USUAL_PARALLEL }
    }
}

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
        let transcriber = Transcriber::open_parallel(&model.loaded, &[backend], device.kv_dtype, device.parallel)?;
        Ok(Self { transcriber })
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
