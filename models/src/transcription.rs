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
            pieces: split(&samples, RATE_HZ, max_samples).map(|range| Piece { range, answer: None }).collect(),
            n_samples: samples.len(),
            n_gone: 0,
            samples,
            language: request.language.map(str::to_owned),
            max_tokens: request.max_tokens,
            max_answer: request.max_answer.unwrap_or(usize::MAX),
            ignore_stop: request.ignore_stop,
            start_s: request.start_s,
            prompt,
            transcript,
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

/// A clip between two calls of the decoder. Its segments are asked for in their order, one at a time or several, and are in the
/// transcript in that order whichever is answered first.
pub struct Transcription<'a> {
    listener: Arc<Listener>,
    /// Those of the clip without the first ones, which nobody will ask for again.
    samples: Cow<'a, [f32]>,
    n_gone: usize,
    /// Of the whole clip.
    n_samples: usize,
    language: Option<String>,
    max_tokens: Option<usize>,
    /// Of all segments together.
    max_answer: usize,
    ignore_stop: bool,
    start_s: f64,
    prompt: speech::Prompt,
    /// Segments that are not in the transcript; the first one is at hand.
    pieces: VecDeque<Piece>,
    transcript: Transcript,
}

/// A segment that is not in the transcript.
struct Piece {
    /// Its samples in the clip.
    range: Range<usize>,
    /// Once it was asked for.
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
    n_prompt: usize,
    prompt_left: usize,
    is_whole: bool,
}

impl Transcription<'_> {
    /// The number of the segment that is to be asked for next, from 0. None where all were asked for, or where it is not known
    /// before others are finished how many tokens are left for it ([`Request::max_answer`]).
    pub fn next_segment(&self) -> Option<usize> {
        self.next_piece().map(|i| self.transcript.segments.len() + i)
    }

    fn next_piece(&self) -> Option<usize> {
        let next = self.pieces.iter().position(|piece| piece.answer.is_none())?;
        (next == 0 || self.max_answer == usize::MAX).then_some(next)
    }

    /// The samples of the segment that is next.
    pub fn segment(&self) -> Option<&[f32]> {
        self.next_piece().map(|i| self.samples_of(&self.pieces[i].range))
    }

    fn samples_of(&self, range: &Range<usize>) -> &[f32] {
        &self.samples[range.start - self.n_gone..range.end - self.n_gone]
    }

    /// The samples of every segment that is not finished, and most tokens that its answer may have.
    pub fn segments(&self) -> impl Iterator<Item = (&[f32], usize)> {
        self.pieces.iter().map(|piece| (self.samples_of(&piece.range), self.max_tokens_of(&piece.range)))
    }

    /// Whether all segments are finished.
    pub fn is_over(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Where the segment at hand begins, in seconds; where all are finished, their end.
    pub fn segment_start_s(&self) -> f64 {
        self.start_s + seconds(self.pieces.front().map_or(self.n_samples, |piece| piece.range.start))
    }

    /// Tokens of a prompt with so many audio positions.
    pub fn n_prompt(&self, n_audio: usize) -> usize {
        self.prompt.before.len() + n_audio + self.prompt.after.len()
    }

    /// The prompt of any segment with -1 at every one of so many audio positions.
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
        let n_audio = embeddings.len() / self.listener.n_embd;
        let ids = self.prompt_ids(n_audio);
        let timings = &mut self.transcript.timings;
        timings.audio_tokens += n_audio;
        timings.prompt_tokens += ids.len();
        let mut max_tokens = 1;
        if let Some(i) = self.next_piece() {
            let range = self.pieces[i].range.clone();
            let time = |at: usize| self.start_s + seconds(range.start + at);
            let loud = activity(self.samples_of(&range), RATE_HZ).into_iter();
            let loud = loud.map(|part| time(part.start)..time(part.end)).collect();
            max_tokens = self.max_tokens_of(&range);
            self.pieces[i].answer = Some(Answer {
                unfinished: Unfinished::new(true),
                text: String::new(),
                ids: Vec::new(),
                truncated: false,
                loud,
                n_prompt: ids.len(),
                prompt_left: ids.len(),
                is_whole: false,
            });
            self.let_go();
        }
        let rules = Rules {
            sampling: Sampling::default(),
            stop: self.listener.format.stop().to_vec(),
            ignore_stop: self.ignore_stop,
            max_tokens,
            n_usable: self.listener.n_usable,
            prompt_logits: false,
        };
        Decoding::new(Prompt { ids, embeddings }, self.listener.n_embd, rules)
    }

    /// Lets go of the samples of finished segments once all others were asked for: the next clip may be in memory by then.
    fn let_go(&mut self) {
        let (next, first) = (self.next_piece(), self.pieces.front());
        if let (None, Some(first), Cow::Owned(samples)) = (next, first, &mut self.samples) {
            samples.drain(..first.range.start - self.n_gone);
            samples.shrink_to_fit();
            self.n_gone = first.range.start;
        }
    }

    /// Forgets that a segment was asked for, and what came of it: it is asked for again. Nothing happens where it is finished.
    pub fn ask_again(&mut self, i_segment: usize) {
        let i = i_segment.checked_sub(self.transcript.segments.len());
        if let Some(answer) = i.and_then(|i| self.pieces.get_mut(i)).and_then(|piece| piece.answer.take()) {
            let timings = &mut self.transcript.timings;
            let n_prompt = self.prompt.before.len() + self.prompt.after.len();
            timings.audio_tokens -= answer.n_prompt - n_prompt;
            timings.prompt_tokens -= answer.n_prompt;
        }
    }

    /// Takes what came of a call for a segment that was asked for. `observer` sees the answer of the segment at hand grow. Once
    /// the sequence is at its end, the answer is whole.
    pub fn advance(&mut self, i_segment: usize, event: &Event, observer: &mut dyn Observer) -> Stage {
        let Self { listener, language, pieces, transcript, .. } = self;
        let i = i_segment.checked_sub(transcript.segments.len());
        let Some(answer) = i.and_then(|i| pieces.get_mut(i)?.answer.as_mut()) else { return Stage::Prompt };
        let mut stage = Stage::Answer;
        if answer.prompt_left > 0 {
            answer.prompt_left -= event.accepted;
            stage = if answer.prompt_left > 0 { Stage::Prompt } else { Stage::First };
        }
        for &id in &event.tokens {
            answer.ids.push(id);
            answer.unfinished.push(&listener.tokenizer, id, &mut answer.text);
            if i == Some(0) {
                observer.answer(&answer.partial(listener, language.as_deref(), &transcript.text));
            }
        }
        match event.finish {
            Some(Finish::Stop(id)) => answer.ids.push(id),
            Some(Finish::Limit) => answer.truncated = true,
            None => {}
        }
        answer.is_whole = event.finish.is_some();
        stage
    }

    /// What there is of the answer for the segment at hand.
    pub fn partial(&self) -> Option<Partial<'_>> {
        let answer = self.pieces.front()?.answer.as_ref().filter(|answer| !answer.ids.is_empty())?;
        Some(answer.partial(&self.listener, self.language.as_deref(), &self.transcript.text))
    }

    /// Finishes the segment at hand and those behind it, as far as their answers are whole. `observer` is told of each, and
    /// sees what there is of the answer behind them.
    pub fn settle(&mut self, observer: &mut dyn Observer) {
        let is_whole = |piece: &Piece| piece.answer.as_ref().is_some_and(|answer| answer.is_whole);
        if !self.pieces.front().is_some_and(is_whole) {
            return;
        }
        while self.pieces.front().is_some_and(is_whole) {
            observer.segment(self.finish());
        }
        if let Some(partial) = self.partial() {
            observer.answer(&partial);
        }
    }

    /// Ends the segment at hand with the answer that came. The transcript has it as its last one, and it is the last where no
    /// tokens are left for others.
    pub fn finish(&mut self) -> &Transcript {
        if let Some(Piece { range, answer: Some(mut answer) }) =
            self.pieces.pop_front_if(|piece| piece.answer.is_some())
        {
            answer.unfinished.finish(&mut answer.text);
            self.transcript.timings.generated_tokens += answer.ids.len();
            if self.transcript.timings.generated_tokens >= self.max_answer {
                answer.truncated |= !self.pieces.is_empty();
                self.pieces.clear();
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

impl Answer {
    fn partial<'a>(&'a self, listener: &'a Listener, language: Option<&'a str>, before: &'a str) -> Partial<'a> {
        Partial { format: listener.format(), raw: &self.text, language, before, loud: &self.loud }
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
