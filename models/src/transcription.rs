//! [`Transcription`]: one clip on its way to text, without a network. It says which samples are next and what is to be decoded
//! for them, and takes what was decoded: whoever has a session can carry out many of them at once. [`Listener`] is what they
//! have in common.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use engine::parallel::Parallel;

use crate::Loaded;
use crate::audio::{Features, MelSpectrogram, activity, split};
use crate::decoding::{Decoding, Event, Finish, Prompt, Rules};
use crate::error::{Error, Result};
use crate::hparams::context_length;
use crate::sample::Sampling;
use crate::speech::{self, SpeechFormat, stated_segment_s};
use crate::tokenizer::{Tokenizer, Unfinished};
use crate::transcribe::{Observer, Partial, RATE_HZ, Request, Segment, Timings, Transcript};

/// Default limit of generated tokens per segment: no language is spoken faster than this, in tokens per second.
const TOKENS_PER_SECOND: f64 = 16.0;
/// Added for the language tag and the stop token.
const EXTRA_TOKENS: usize = 32;
/// Short clips get at least this many.
const MIN_TOKENS: usize = 64;

/// All of a speech model but its network: the front end, the prompts, the reading of answers. It can be shared.
pub struct Listener {
    tokenizer: Arc<Tokenizer>,
    mel: MelSpectrogram,
    format: Box<dyn SpeechFormat>,
    segment_s: f64,
    /// Rows of the head that stand for a token; what follows is padding and never chosen.
    n_usable: usize,
    n_ctx: usize,
    n_embd: usize,
}

impl Listener {
    /// That of a model.
    ///
    /// Errors: a model without an audio encoder, a vocabulary that the tokenizer refuses or that lacks a token of the
    /// prompt, a segment length that makes no sense.
    pub fn open(loaded: &Loaded) -> Result<Self> {
        let tokenizer = Arc::new(Tokenizer::from_gguf(&loaded.files[0])?);
        let format = loaded.arch.speech_format(&tokenizer).map_err(|e| e.of_vocabulary(loaded.files[0].path()))?;
        let encoder = loaded.model.encoder().ok_or(Error::NoEncoder { arch: loaded.arch.name })?;
        let mel = MelSpectrogram::new(format.mel(encoder.n_mels))?;
        let segment_s = stated_segment_s(&loaded.files)?.unwrap_or_else(|| format.segment_s());
        let n_usable = tokenizer.n_used(loaded.model.n_vocab());
        let n_ctx = context_length(&loaded.files[0])?;
        Ok(Self { tokenizer, mel, format, segment_s, n_usable, n_ctx, n_embd: loaded.model.n_embd() })
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// What the model can be asked for.
    pub fn format(&self) -> &dyn SpeechFormat {
        &*self.format
    }

    /// Tokens of the model's context: prompt, audio and answer of a segment.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Length near which long audio is cut by default, in seconds: the one that the model's files state
    /// ([`speech::SEGMENT_KEY`]), else the architecture's ([`SpeechFormat::segment_s`]).
    pub fn segment_s(&self) -> f64 {
        self.segment_s
    }

    /// Values of an audio vector.
    pub fn n_embd(&self) -> usize {
        self.n_embd
    }

    /// What the encoder takes of some samples.
    ///
    /// Errors: no samples.
    pub fn features(&self, samples: &[f32], threads: &dyn Parallel) -> Result<Features> {
        self.mel.compute(samples, threads)
    }

    /// Begins with mono samples at [`RATE_HZ`].
    ///
    /// Errors: a context or language that the model has no prompt for.
    pub fn begin<'a>(
        self: &Arc<Self>,
        samples: impl Into<Cow<'a, [f32]>>,
        request: &Request<'_>,
    ) -> Result<Transcription<'a>> {
        let samples = samples.into();
        let prompt = self.format.prompt(&self.tokenizer, request.context, request.language)?;
        let max_samples = (request.segment_s.unwrap_or(self.segment_s) * f64::from(RATE_HZ)).round();
        // Float to integer conversion saturates; 0 means no limit.
        let max_samples = match max_samples as usize {
            0 => usize::MAX,
            max => max,
        };
        let transcript = Transcript {
            duration_s: seconds(samples.len()),
            language: None,
            text: String::new(),
            segments: Vec::new(),
            timings: Timings::default(),
        };
        Ok(Transcription {
            listener: Arc::clone(self),
            left: split(&samples, RATE_HZ, max_samples).collect(),
            samples,
            language: request.language.map(str::to_owned),
            max_tokens: request.max_tokens,
            max_answer: request.max_answer.unwrap_or(usize::MAX),
            ignore_stop: request.ignore_stop,
            start_s: request.start_s,
            prompt,
            transcript,
            answer: None,
        })
    }
}

/// What came of a call for a transcription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// More of the prompt is in memory.
    Prompt,
    /// The prompt is in memory, and the first token was chosen.
    First,
    /// More of the answer was decoded.
    Answer,
}

/// A clip between two calls of the decoder.
pub struct Transcription<'a> {
    listener: Arc<Listener>,
    samples: Cow<'a, [f32]>,
    language: Option<String>,
    max_tokens: Option<usize>,
    /// Of all segments together.
    max_answer: usize,
    ignore_stop: bool,
    start_s: f64,
    prompt: speech::Prompt,
    /// Segments that are not finished; the first one is at hand.
    left: VecDeque<Range<usize>>,
    transcript: Transcript,
    /// That of the segment at hand, once it was asked for.
    answer: Option<Answer>,
}

/// An answer that is being written.
struct Answer {
    unfinished: Unfinished,
    text: String,
    ids: Vec<u32>,
    truncated: bool,
    /// Where there is sound, in seconds.
    loud: Vec<Range<f64>>,
    prompt_left: usize,
}

impl Transcription<'_> {
    /// The samples of the segment that is next; none where all are finished.
    pub fn segment(&self) -> Option<&[f32]> {
        self.left.front().map(|range| &self.samples[range.clone()])
    }

    /// The samples of every segment that is not finished, and most tokens that its answer may have.
    pub fn segments(&self) -> impl Iterator<Item = (&[f32], usize)> {
        self.left.iter().map(|range| (&self.samples[range.clone()], self.max_tokens_of(range)))
    }

    /// Where the segment that is next begins, in seconds; where all are finished, their end.
    pub fn segment_start_s(&self) -> f64 {
        self.start_s + seconds(self.left.front().map_or(self.samples.len(), |range| range.start))
    }

    /// Tokens of a prompt with so many audio positions.
    pub fn n_prompt(&self, n_audio: usize) -> usize {
        self.prompt.before.len() + n_audio + self.prompt.after.len()
    }

    /// The prompt of the next segment with -1 at every one of so many audio positions.
    pub fn prompt_ids(&self, n_audio: usize) -> Vec<i32> {
        let ids = |ids: &[u32]| ids.iter().map(|id| id.cast_signed()).collect::<Vec<_>>();
        [ids(&self.prompt.before), vec![-1; n_audio], ids(&self.prompt.after)].concat()
    }

    fn max_tokens_of(&self, range: &Range<usize>) -> usize {
        let left = self.max_answer.saturating_sub(self.transcript.timings.generated_tokens);
        self.max_tokens.unwrap_or_else(|| default_max_tokens(range.len())).min(left).max(1)
    }

    /// The sequence that answers for the next segment, whose audio vectors these are. What comes of it goes to
    /// [`Self::advance`].
    pub fn ask(&mut self, embeddings: Vec<f32>) -> Decoding {
        let listener = &self.listener;
        let n_audio = embeddings.len() / listener.n_embd;
        let ids = self.prompt_ids(n_audio);
        let timings = &mut self.transcript.timings;
        timings.audio_tokens += n_audio;
        timings.prompt_tokens += ids.len();
        let loud = match self.left.front() {
            Some(range) => {
                let time = |at: usize| self.start_s + seconds(range.start + at);
                let parts = activity(&self.samples[range.clone()], RATE_HZ).into_iter();
                parts.map(|part| time(part.start)..time(part.end)).collect()
            }
            None => Vec::new(),
        };
        self.answer = Some(Answer {
            unfinished: Unfinished::new(true),
            text: String::new(),
            ids: Vec::new(),
            truncated: false,
            loud,
            prompt_left: ids.len(),
        });
        let rules = Rules {
            sampling: Sampling::default(),
            stop: listener.format.stop().to_vec(),
            ignore_stop: self.ignore_stop,
            max_tokens: self.left.front().map_or(1, |range| self.max_tokens_of(range)),
            n_usable: listener.n_usable,
            prompt_logits: false,
        };
        Decoding::new(Prompt { ids, embeddings }, listener.n_embd, rules)
    }

    /// Takes what came of a call; `observer` sees the answer grow. Once the sequence is at its end, [`Self::finish`] is next.
    pub fn advance(&mut self, event: &Event, observer: &mut dyn Observer) -> Stage {
        let format = self.listener.format();
        let Some(answer) = &mut self.answer else { return Stage::Prompt };
        let mut stage = Stage::Answer;
        if answer.prompt_left > 0 {
            answer.prompt_left -= event.accepted;
            stage = if answer.prompt_left > 0 { Stage::Prompt } else { Stage::First };
        }
        for &id in &event.tokens {
            answer.ids.push(id);
            answer.unfinished.push(&self.listener.tokenizer, id, &mut answer.text);
            observer.answer(&Partial {
                format,
                raw: &answer.text,
                language: self.language.as_deref(),
                before: &self.transcript.text,
                loud: &answer.loud,
            });
        }
        match event.finish {
            Some(Finish::Stop(id)) => answer.ids.push(id),
            Some(Finish::Limit) => answer.truncated = true,
            None => {}
        }
        stage
    }

    /// Ends the segment at hand with the answer that came. The transcript has it as its last one, and it is the last where no
    /// tokens are left for others.
    pub fn finish(&mut self) -> &Transcript {
        if let (Some(mut answer), Some(range)) = (self.answer.take(), self.left.pop_front()) {
            answer.unfinished.finish(&mut answer.text);
            self.transcript.timings.generated_tokens += answer.ids.len();
            if self.transcript.timings.generated_tokens >= self.max_answer {
                answer.truncated |= !self.left.is_empty();
                self.left.clear();
            }
            let parsed = self.listener.format.parse(&answer.text, self.language.as_deref());
            self.transcript.push(Segment {
                start_s: self.start_s + seconds(range.start),
                end_s: self.start_s + seconds(range.end),
                text: parsed.text,
                loud: answer.loud,
                language: Some(parsed.language).filter(|l| !l.is_empty()),
                truncated: answer.truncated,
                token_ids: answer.ids,
            });
        }
        &self.transcript
    }

    /// The segments that are finished.
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// What it took so far, to add to.
    pub fn timings(&mut self) -> &mut Timings {
        &mut self.transcript.timings
    }

    /// The segments that are finished.
    pub fn into_transcript(self) -> Transcript {
        self.transcript
    }
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
