//! [`Transcriber`]: audio to text. What users see is decided here: how long audio is cut, the prompt, when decoding ends,
//! how the answer is read. The command line only parses arguments and prints.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::DType;
use engine::backend::Backend;
use engine::batch::Features;
use engine::session::{Session, SessionOptions};

use crate::Loaded;
use crate::audio::{MelSpectrogram, activity, split};
use crate::decoding::{Decoding, Finish, Prompt, Rules};
use crate::error::{Error, Result};
use crate::hparams::context_length;
use crate::sample::Sampling;
use crate::scheduler::{SPARE_BYTES, Scheduler};
use crate::speech::{self, SpeechFormat, merge_languages, push_text, stated_segment_s};
use crate::tokenizer::Tokenizer;

/// Rate of the samples that [`Transcriber::transcribe`] takes.
pub const RATE_HZ: u32 = 16_000;

/// Default limit of generated tokens per segment: no language is spoken faster than this, in tokens per second.
const TOKENS_PER_SECOND: f64 = 16.0;
/// Added for the language tag and the stop token.
const EXTRA_TOKENS: usize = 32;
/// Short clips get at least this many.
const MIN_TOKENS: usize = 64;

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
    fn push(&mut self, segment: Segment) {
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
    /// Where in it there is sound, in seconds ([`activity()`]): text is spoken there, not between.
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
    format: &'a dyn SpeechFormat,
    raw: &'a str,
    language: Option<&'a str>,
    /// The text of the segments before.
    before: &'a str,
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
    tokenizer: Tokenizer,
    mel: MelSpectrogram,
    format: Box<dyn SpeechFormat>,
    segment_s: f64,
    /// Rows of the head that stand for a token; what follows is padding and never chosen.
    n_usable: usize,
    n_ctx: usize,
}

impl Transcriber {
    /// Opens a session on these backends. `kv_dtype` is the type of the attention cache.
    ///
    /// Errors: a model without an audio encoder, a vocabulary that the tokenizer refuses or that lacks a token of the
    /// prompt, a segment length that makes no sense.
    pub fn open(loaded: &Loaded, backends: &[Arc<dyn Backend>], kv_dtype: DType) -> Result<Self> {
        let tokenizer = Tokenizer::from_gguf(&loaded.files[0])?;
        let format = loaded.arch.speech_format(&tokenizer).map_err(|e| e.of_vocabulary(loaded.files[0].path()))?;
        let encoder = loaded.model.encoder().ok_or(Error::NoEncoder { arch: loaded.arch.name })?;
        let mel = MelSpectrogram::new(format.mel(encoder.n_mels))?;
        let segment_s = stated_segment_s(&loaded.files)?.unwrap_or_else(|| format.segment_s());
        let options = SessionOptions {
            n_slots: 1,
            n_ctx: FIRST_CONTEXT,
            kv_dtype,
            spare_bytes: SPARE_BYTES,
            ..SessionOptions::default()
        };
        let session = Session::open(Arc::clone(&loaded.model), &loaded.weights, backends, options)?;
        let n_usable = tokenizer.n_used(loaded.model.n_vocab());
        let n_ctx = context_length(&loaded.files[0])?;
        Ok(Self { scheduler: Scheduler::new(session), tokenizer, mel, format, segment_s, n_usable, n_ctx })
    }

    /// Tokens of the model's context: prompt, audio and answer of a segment.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// What the model can be asked for.
    pub fn format(&self) -> &dyn SpeechFormat {
        &*self.format
    }

    /// Length near which long audio is cut by default, in seconds: the one that the model's files state
    /// ([`speech::SEGMENT_KEY`]), else the architecture's ([`SpeechFormat::segment_s`]).
    pub fn segment_s(&self) -> f64 {
        self.segment_s
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
        let segment_s = request.segment_s.unwrap_or(self.segment_s);
        let max_samples = (segment_s * f64::from(RATE_HZ)).round();
        // Float to integer conversion saturates; 0 means no limit.
        let max_samples = match max_samples as usize {
            0 => usize::MAX,
            max => max,
        };
        let prompt = self.format.prompt(&self.tokenizer, request.context, request.language)?;
        let mut transcript = Transcript {
            duration_s: seconds(samples.len()),
            language: None,
            text: String::new(),
            segments: Vec::new(),
            timings: Timings::default(),
        };
        for (i, range) in split(samples, RATE_HZ, max_samples).enumerate() {
            let Transcript { text, timings, .. } = &mut transcript;
            let samples = &samples[range.clone()];
            let time = |at: usize| request.start_s + seconds(range.start + at);
            let loud: Vec<Range<f64>> =
                activity(samples, RATE_HZ).into_iter().map(|part| time(part.start)..time(part.end)).collect();
            let job = Job { index: i, samples, loud: &loud, before: text, prompt: &prompt, request };
            let (token_ids, raw, truncated) = self.segment(&job, timings, observer)?;
            let answer = self.format.parse(&raw, request.language);
            transcript.push(Segment {
                start_s: time(0),
                end_s: time(samples.len()),
                text: answer.text,
                loud,
                language: Some(answer.language).filter(|l| !l.is_empty()),
                truncated,
                token_ids,
            });
            observer.segment(&transcript);
        }
        Ok(transcript)
    }

    fn segment(
        &mut self,
        job: &Job<'_>,
        timings: &mut Timings,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<u32>, String, bool)> {
        let Self { scheduler, tokenizer, mel, format, n_usable, .. } = self;
        let format: &dyn SpeechFormat = &**format;
        let n_embd = scheduler.session().model().n_embd();

        go_on(observer)?;
        let start = Instant::now();
        let features = mel.compute(job.samples, scheduler.session().parallel())?;
        timings.mel += start.elapsed();

        go_on(observer)?;
        let start = Instant::now();
        let input = Features { n_mels: features.n_mels, n_frames: features.n_frames, values: &features.values };
        let embeddings = scheduler.session_mut().encode(&[input])?.clip(0).to_vec();
        timings.encode += start.elapsed();

        go_on(observer)?;
        let mut start = Instant::now();
        let n_audio = embeddings.len() / n_embd;
        let ids = prompt_ids(job.prompt, n_audio);
        let rules = Rules {
            sampling: Sampling::default(),
            stop: format.stop().to_vec(),
            ignore_stop: job.request.ignore_stop,
            max_tokens: job.max_tokens(),
            n_usable: *n_usable,
            prompt_logits: false,
        };
        let prompt = Prompt { ids: ids.clone(), embeddings: embeddings.clone() };
        let mut decoder = tokenizer.decoder(true);
        let mut answer = Answer::default();
        let mut prompt_left = ids.len();
        let mut is_cancelled = false;
        scheduler.run(Decoding::new(prompt, n_embd, rules), &mut |event, logits| {
            if prompt_left > 0 {
                prompt_left -= event.accepted;
                if prompt_left > 0 {
                    is_cancelled = observer.is_cancelled();
                    return if is_cancelled { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
                }
                timings.prefill += start.elapsed();
                start = Instant::now();
                let tensors = Tensors {
                    mel: &features,
                    audio_embeddings: &embeddings,
                    n_embd,
                    prompt_ids: &ids,
                    first_logits: logits,
                };
                observer.tensors(job.index, &tensors);
            }
            for &id in &event.tokens {
                answer.ids.push(id);
                decoder.push(id, &mut answer.text);
                let Job { loud, before, .. } = *job;
                let language = job.request.language;
                observer.answer(&Partial { format, raw: &answer.text, language, before, loud });
            }
            match event.finish {
                Some(Finish::Stop(id)) => answer.ids.push(id),
                Some(Finish::Limit) => answer.truncated = true,
                None => is_cancelled = observer.is_cancelled(),
            }
            if is_cancelled { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if is_cancelled {
            return Err(Error::Cancelled);
        }
        decoder.finish(&mut answer.text);
        timings.decode += start.elapsed();
        timings.audio_tokens += n_audio;
        timings.prompt_tokens += ids.len();
        timings.generated_tokens += answer.ids.len();
        Ok((answer.ids, answer.text, answer.truncated))
    }
}

/// Errors: `Cancelled`.
fn go_on(observer: &dyn Observer) -> Result<()> {
    if observer.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}

/// One segment to transcribe.
struct Job<'a> {
    index: usize,
    samples: &'a [f32],
    /// Where there is sound, in seconds.
    loud: &'a [Range<f64>],
    /// The text of the segments before.
    before: &'a str,
    prompt: &'a speech::Prompt,
    request: &'a Request<'a>,
}

impl Job<'_> {
    fn max_tokens(&self) -> usize {
        self.request.max_tokens.unwrap_or_else(|| default_max_tokens(self.samples.len())).max(1)
    }
}

/// What was generated so far.
#[derive(Default)]
struct Answer {
    text: String,
    ids: Vec<u32>,
    truncated: bool,
}

/// The prompt with -1 at every audio position.
fn prompt_ids(prompt: &speech::Prompt, n_audio: usize) -> Vec<i32> {
    let ids = |ids: &[u32]| ids.iter().map(|id| id.cast_signed()).collect::<Vec<_>>();
    [ids(&prompt.before), vec![-1; n_audio], ids(&prompt.after)].concat()
}

/// Default token limit of a segment: `max(64, ceil(16 * seconds) + 32)`.
fn default_max_tokens(n_samples: usize) -> usize {
    let by_length = (TOKENS_PER_SECOND * seconds(n_samples)).ceil() as usize;
    MIN_TOKENS.max(by_length + EXTRA_TOKENS)
}

fn seconds(n_samples: usize) -> f64 {
    n_samples as f64 / f64::from(RATE_HZ)
}

#[cfg(test)]
mod tests {
    use super::default_max_tokens;

    #[test]
    fn the_token_limit_grows_with_the_clip() {
        assert_eq!(default_max_tokens(0), 64);
        assert_eq!(default_max_tokens(16_000), 64);
        assert_eq!(default_max_tokens(16_000 * 60), 992);
        assert_eq!(default_max_tokens(16_001 * 60), 993);
    }
}
