//! [`Transcriber`]: audio to text. What users see is decided here: how long audio is cut, the prompt, when decoding ends,
//! how the answer is read. The command line only parses arguments and prints. One clip on its way is a
//! [`crate::transcription::Transcription`], several are [`Together`].

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use engine::DType;
use engine::backend::Backend;
use engine::session::{Session, SessionOptions};

use crate::Loaded;
use crate::error::Result;
use crate::scheduler::{SPARE_BYTES, Scheduler};
use crate::speech::{SpeechFormat, merge_languages, push_text};
use crate::together::{Ended, Together};
use crate::transcription::Listener;

/// Rate of the samples that [`Transcriber::transcribe`] takes.
pub const RATE_HZ: u32 = 16_000;

/// Segments that are worked on at once where nothing else is asked for: most of what calls of several rows gain, for a few
/// hundred megabytes of states.
pub const USUAL_PARALLEL: NonZeroUsize = NonZeroUsize::new(4).expect("it is not 0");

/// Positions of a slot before the first clip says how many it needs.
const FIRST_CONTEXT: usize = 256;

/// How a clip is to be transcribed.
#[derive(Clone, Default, Debug)]
pub struct Request<'a> {
    /// Name of the language spoken, where known, as [`SpeechFormat::find_language`] gives it.
    pub language: Option<&'a str>,
    /// Names and terms to expect, for models that take them ([`SpeechFormat::takes_context`]).
    pub context: &'a str,
    /// Long audio is cut near this length at a quiet place; 0 never cuts. If none is given, it is
    /// [`Transcriber::segment_s`].
    pub segment_s: Option<f64>,
    /// Most generated tokens per segment.
    pub max_tokens: Option<usize>,
    /// Most generated tokens of all segments together: what is not transcribed by then is left out.
    pub max_answer: Option<usize>,
    /// Goes on past tokens that end an answer, to the limit: for measuring.
    pub ignore_stop: bool,
    /// Time of the first sample, in seconds of the clock that segments are given in.
    pub start_s: f64,
}

/// The text of a clip.
#[derive(Clone, PartialEq, Debug)]
pub struct Transcript {
    /// Length of the clip in seconds.
    pub duration_s: f64,
    /// Languages in order of appearance, separated by commas; none if no segment has one.
    pub language: Option<String>,
    /// The texts of all segments.
    pub text: String,
    /// The pieces that were transcribed one by one.
    pub segments: Vec<Segment>,
    /// What it took.
    pub timings: Timings,
}

impl Transcript {
    /// Whether the text of a segment was cut at the token limit.
    pub fn truncated(&self) -> bool {
        self.segments.iter().any(|s| s.truncated)
    }

    /// Adds the next segment; what the text was stays its beginning.
    pub(crate) fn push(&mut self, segment: Segment) {
        push_text(&mut self.text, &segment.text);
        self.segments.push(segment);
        let languages = merge_languages(self.segments.iter().filter_map(|s| s.language.as_deref()));
        self.language = Some(languages).filter(|l| !l.is_empty());
    }
}

/// The text of one piece of a clip.
#[derive(Clone, PartialEq, Debug)]
pub struct Segment {
    /// Start in seconds.
    pub start_s: f64,
    /// End in seconds.
    pub end_s: f64,
    /// What was said.
    pub text: String,
    /// Where in it there is sound, in seconds ([`crate::audio::activity()`]): text is spoken there, not between.
    pub loud: Vec<Range<f64>>,
    /// The language that the model named, or the one asked for.
    pub language: Option<String>,
    /// Whether the token limit came before a stop token.
    pub truncated: bool,
    /// The generated ids; the stop token last, where there was one.
    pub token_ids: Vec<u32>,
}

/// Time and tokens by stage, summed over segments. Calls in which several segments decode are divided among them evenly.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Timings {
    /// Samples to log-mel features.
    pub mel: Duration,
    /// Features to audio embeddings.
    pub encode: Duration,
    /// The prompt up to the first logits.
    pub prefill: Duration,
    /// Everything after the first logits.
    pub decode: Duration,
    /// Audio embeddings in prompts.
    pub audio_tokens: usize,
    /// Tokens of prompts, audio included.
    pub prompt_tokens: usize,
    /// Tokens generated, stop tokens included.
    pub generated_tokens: usize,
}

impl Timings {
    /// Of all stages.
    pub fn sum(&self) -> Duration {
        self.mel + self.encode + self.prefill + self.decode
    }
}

/// What a caller may watch, and stop, while a clip is transcribed. Segments are shown and told in their order, also where several
/// are worked on at once.
pub trait Observer {
    /// Whether to stop. Looked at before every stage of a segment and after every call of the decoder.
    fn is_cancelled(&self) -> bool {
        false
    }

    /// Whether text is wanted as soon as it can be there, if the whole takes longer for it.
    fn waits_for_text(&self) -> bool {
        true
    }

    /// More of an answer was decoded; `answer` is all of the segment so far.
    fn answer(&mut self, answer: &Partial<'_>) {
        let _ = answer;
    }

    /// A segment is finished, the last one of `so_far`, whose text is a beginning of the whole.
    fn segment(&mut self, so_far: &Transcript) {
        let _ = so_far;
    }

    /// Intermediate tensors of a segment, for checking conversions; segments before it need not be finished.
    fn tensors(&mut self, segment: usize, tensors: &Tensors<'_>) {
        let _ = (segment, tensors);
    }
}

/// Watches nothing.
impl Observer for () {
    fn waits_for_text(&self) -> bool {
        false
    }
}

impl<O: Observer + ?Sized> Observer for &mut O {
    fn is_cancelled(&self) -> bool {
        (**self).is_cancelled()
    }

    fn waits_for_text(&self) -> bool {
        (**self).waits_for_text()
    }

    fn answer(&mut self, answer: &Partial<'_>) {
        (**self).answer(answer);
    }

    fn segment(&mut self, so_far: &Transcript) {
        (**self).segment(so_far);
    }

    fn tensors(&mut self, segment: usize, tensors: &Tensors<'_>) {
        (**self).tensors(segment, tensors);
    }
}

/// An answer that is still being written.
#[derive(Clone, Copy)]
pub struct Partial<'a> {
    pub(crate) format: &'a dyn SpeechFormat,
    pub(crate) raw: &'a str,
    pub(crate) language: Option<&'a str>,
    /// The text of the segments before.
    pub(crate) before: &'a str,
    /// Where in the segment there is sound, in seconds ([`Segment::loud`]).
    pub loud: &'a [Range<f64>],
}

impl Partial<'_> {
    /// The text of the segment up to here, none while it is not clear where the answer's text begins.
    pub fn segment_so_far(&self) -> Option<String> {
        self.format.text_so_far(self.raw, self.language)
    }

    /// The text of the clip up to here, none while it is not clear where the answer's text begins.
    pub fn text_so_far(&self) -> Option<String> {
        let text = self.segment_so_far()?;
        let mut joined = self.before.to_owned();
        push_text(&mut joined, &text);
        Some(joined)
    }
}

/// What a segment's first token is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Tensors<'a> {
    /// Log-mel features.
    pub mel: &'a crate::audio::Features,
    /// `[n_tokens, n_embd]`.
    pub audio_embeddings: &'a [f32],
    /// Width of the embeddings.
    pub n_embd: usize,
    /// The prompt, -1 at every audio position.
    pub prompt_ids: &'a [i32],
    /// `[n_vocab]`: the first token is chosen from these.
    pub first_logits: &'a [f32],
}

/// A speech model ready to transcribe clip after clip.
pub struct Transcriber {
    pub(crate) scheduler: Scheduler,
    pub(crate) listener: Arc<Listener>,
}

impl Transcriber {
    /// Opens a session on these backends, for one segment at a time. `kv_dtype` is the type of the attention cache.
    ///
    /// Errors: as [`Listener::open`]; those of the session.
    pub fn open(loaded: &Loaded, backends: &[Arc<dyn Backend>], kv_dtype: DType) -> Result<Self> {
        Self::open_parallel(loaded, backends, kv_dtype, NonZeroUsize::MIN)
    }

    /// As [`Self::open`], for up to `n_parallel` segments at once. Each has the memory of a sequence while it is worked on; what
    /// comes of it is the same.
    ///
    /// Errors: as [`Self::open`].
    pub fn open_parallel(
        loaded: &Loaded,
        backends: &[Arc<dyn Backend>],
        kv_dtype: DType,
        n_parallel: NonZeroUsize,
    ) -> Result<Self> {
        let listener = Arc::new(Listener::open(loaded)?);
        let options = SessionOptions {
            n_slots: n_parallel.get(),
            n_ctx: FIRST_CONTEXT,
            kv_dtype,
            spare_bytes: SPARE_BYTES,
            ..SessionOptions::default()
        };
        let session = Session::open(Arc::clone(&loaded.model), &loaded.weights, backends, options)?;
        let mut scheduler = Scheduler::new(session);
        scheduler.read_apart();
        Ok(Self { scheduler, listener })
    }

    /// Segments that can be worked on at once.
    pub fn n_parallel(&self) -> usize {
        self.scheduler.session().memory().n_slots()
    }

    /// Tokens of the model's context: prompt, audio and answer of a segment.
    pub fn n_ctx(&self) -> usize {
        self.listener.n_ctx()
    }

    /// What the model can be asked for.
    pub fn format(&self) -> &dyn SpeechFormat {
        self.listener.format()
    }

    /// Length near which long audio is cut by default, in seconds ([`Listener::segment_s`]).
    pub fn segment_s(&self) -> f64 {
        self.listener.segment_s()
    }

    /// Switches the reuse of compiled graphs.
    pub fn set_reuse(&mut self, reuse: engine::session::Reuse) {
        self.scheduler.session_mut().set_reuse(reuse);
    }

    /// Switches timing of every node on or off. Switching it on where it is on sets all times to 0.
    pub fn set_profiling(&mut self, on: bool) {
        self.scheduler.session_mut().set_profiling(on);
    }

    /// Times of every node since profiling was switched on.
    pub fn profile(&self) -> Option<&engine::profile::Profile> {
        self.scheduler.session().profile()
    }

    /// Counters of the session.
    pub fn stats(&self) -> engine::session::Stats {
        self.scheduler.session().stats()
    }

    /// Transcribes mono samples at [`RATE_HZ`], at least one.
    ///
    /// Errors: no samples; a context or language that the model has no prompt for; a prompt that no context holds;
    /// `NotFinite`; `Cancelled` where the observer says so before the last segment is finished.
    pub fn transcribe(
        &mut self,
        samples: &[f32],
        request: &Request<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Transcript> {
        let mut together = Together::new(self);
        let transcription = together.begin(samples, request)?;
        together.add(transcription, observer);
        loop {
            if let Some(Ended { transcript, result, .. }) = together.ended() {
                return result.map(|()| transcript);
            }
            together.step();
        }
    }
}
