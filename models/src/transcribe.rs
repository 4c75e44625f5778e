//! [`Transcriber`]: audio to text. What users see is decided here: how long audio is cut, the prompt, when decoding ends,
//! how the answer is read. The command line only parses arguments and prints. One clip on its way is a
//! [`Transcription`].

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::DType;
use engine::backend::Backend;
use engine::batch::Features;
use engine::session::{Session, SessionOptions};

use crate::Loaded;
use crate::error::{Error, Result};
use crate::scheduler::{SPARE_BYTES, Scheduler};
use crate::speech::{SpeechFormat, merge_languages, push_text};
use crate::transcription::{Listener, Stage, Transcription};

/// Rate of the samples that [`Transcriber::transcribe`] takes.
pub const RATE_HZ: u32 = 16_000;

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

/// Time and tokens by stage, summed over segments.
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

/// What a caller may watch, and stop, while a clip is transcribed.
pub trait Observer {
    /// Whether to stop. Looked at before every stage of a segment and after every call of the decoder.
    fn is_cancelled(&self) -> bool {
        false
    }

    /// More of an answer was decoded; `answer` is all of the segment so far.
    fn answer(&mut self, answer: &Partial<'_>) {
        let _ = answer;
    }

    /// A segment is finished, the last one of `so_far`, whose text is a beginning of the whole.
    fn segment(&mut self, so_far: &Transcript) {
        let _ = so_far;
    }

    /// Intermediate tensors of a segment, for checking conversions.
    fn tensors(&mut self, segment: usize, tensors: &Tensors<'_>) {
        let _ = (segment, tensors);
    }
}

/// Watches nothing.
impl Observer for () {}

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
    scheduler: Scheduler,
    listener: Arc<Listener>,
}

impl Transcriber {
    /// Opens a session on these backends. `kv_dtype` is the type of the attention cache.
    ///
    /// Errors: as [`Listener::open`]; those of the session.
    pub fn open(loaded: &Loaded, backends: &[Arc<dyn Backend>], kv_dtype: DType) -> Result<Self> {
        let listener = Arc::new(Listener::open(loaded)?);
        let options = SessionOptions {
            n_slots: 1,
            n_ctx: FIRST_CONTEXT,
            kv_dtype,
            spare_bytes: SPARE_BYTES,
            ..SessionOptions::default()
        };
        let session = Session::open(Arc::clone(&loaded.model), &loaded.weights, backends, options)?;
        Ok(Self { scheduler: Scheduler::new(session), listener })
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
        let Self { scheduler, listener } = self;
        let mut transcription = listener.begin(samples, request)?;
        while transcription.segment().is_some() {
            segment(scheduler, listener, &mut transcription, observer)?;
            observer.segment(transcription.finish());
        }
        Ok(transcription.into_transcript())
    }
}

/// Decodes the answer to the segment at hand.
fn segment(
    scheduler: &mut Scheduler,
    listener: &Listener,
    transcription: &mut Transcription<'_>,
    observer: &mut dyn Observer,
) -> Result<()> {
    go_on(observer)?;
    let start = Instant::now();
    let samples = transcription.segment().unwrap_or_default();
    let features = listener.features(samples, scheduler.session().parallel())?;
    transcription.timings().mel += start.elapsed();

    go_on(observer)?;
    let start = Instant::now();
    let input = Features { n_mels: features.n_mels, n_frames: features.n_frames, values: &features.values };
    let embeddings = scheduler.session_mut().encode(&[input])?.clip(0).to_vec();
    transcription.timings().encode += start.elapsed();

    go_on(observer)?;
    let mut start = Instant::now();
    let index = transcription.transcript().segments.len();
    let n_embd = listener.n_embd();
    let prompt_ids = transcription.prompt_ids(embeddings.len() / n_embd);
    let decoding = transcription.ask(embeddings.clone());
    let mut is_cancelled = false;
    scheduler.run(decoding, &mut |event, logits| {
        let stage = transcription.advance(event, observer);
        if stage == Stage::First {
            transcription.timings().prefill += start.elapsed();
            start = Instant::now();
            let tensors = Tensors {
                mel: &features,
                audio_embeddings: &embeddings,
                n_embd,
                prompt_ids: &prompt_ids,
                first_logits: logits,
            };
            observer.tensors(index, &tensors);
        }
        is_cancelled = event.finish.is_none() && observer.is_cancelled();
        if is_cancelled { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    transcription.timings().decode += start.elapsed();
    if is_cancelled { Err(Error::Cancelled) } else { Ok(()) }
}

/// Errors: `Cancelled`.
fn go_on(observer: &dyn Observer) -> Result<()> {
    if observer.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}
