//! [`SpeechWork`]: a clip on its way to text, between the calls of the engine.

use std::collections::VecDeque;
use std::time::Duration;

use engine::batch;
use engine::session::Session;
use models::audio::Features;
use models::decoding::{Decoding, Event};
use models::draft::Statistics;
use models::speech::gap;
use models::transcribe::{Observer, Partial, Transcript};
use models::transcription::{Stage, Transcription};

use super::text::{chosen, log_probability};
use super::{Answer, AudioCache, ClipKey, Piece};

/// What the HTTP side made of a request.
pub(crate) struct SpeechWork {
    transcription: Transcription<'static>,
    /// The segments that are not encoded, in their order.
    clips: VecDeque<Clip>,
    /// Most tokens of a segment's sequence.
    n_most: usize,
    /// Audio vectors of the segment at hand, as far as they are there.
    embeddings: Vec<f32>,
    /// Frames of the segment at hand that are encoded.
    n_encoded: usize,
    /// Frames that are encoded at once, where the encoder hears no further than these.
    slice_frames: Option<usize>,
    /// Whether the text is wanted as it grows, and what is out of it.
    stream: Option<Sent>,
    /// Whether it is wanted how sure the model was.
    wants_confidence: bool,
    /// Sum of log-probabilities and number of tokens, by segment.
    confidence: Vec<(f64, usize)>,
    /// When the stage at hand began.
    since: Duration,
}

/// What the encoder hears of a segment.
pub(crate) struct Clip {
    features: Features,
    key: ClipKey,
}

impl Clip {
    /// One with these features.
    pub(crate) fn new(features: Features) -> Self {
        let key = ClipKey::of(&features);
        Self { features, key }
    }
}

/// What a client was sent.
#[derive(Default)]
struct Sent {
    /// Text of the segments before, as it was sent.
    last: Option<char>,
    /// Of the segment at hand.
    segment: String,
    /// Not sent yet.
    more: String,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct SpeechAnswer {
    /// The text, and what it took.
    pub transcript: Transcript,
    /// Mean log-probability of the tokens of every segment, where it was asked for.
    pub confidence: Vec<Option<f64>>,
    /// What came of drafts, where there were drafters.
    pub drafts: Option<Statistics>,
}

impl SpeechWork {
    /// Work on a transcription with all of its segments, of which the longest makes a sequence of `n_most` tokens.
    pub(crate) fn new(transcription: Transcription<'static>, clips: VecDeque<Clip>, n_most: usize) -> Self {
        Self {
            transcription,
            clips,
            n_most,
            embeddings: Vec::new(),
            n_encoded: 0,
            slice_frames: None,
            stream: None,
            wants_confidence: false,
            confidence: Vec::new(),
            since: Duration::ZERO,
        }
    }

    /// The text is sent as it grows.
    pub(crate) fn streamed(mut self, is_streamed: bool) -> Self {
        self.stream = is_streamed.then(Sent::default);
        self
    }

    /// Segments are answered with how sure the model was.
    pub(crate) fn with_confidence(mut self, is_wanted: bool) -> Self {
        self.wants_confidence = is_wanted;
        self
    }

    /// Encodes so many frames at once, which the encoder hears by themselves.
    pub(crate) fn in_slices(mut self, slice_frames: Option<usize>) -> Self {
        self.slice_frames = slice_frames;
        self
    }

    /// Whether the encoder is next.
    pub(crate) fn needs_encoder(&self) -> bool {
        !self.clips.is_empty()
    }

    /// Encodes the next slice, or takes the whole segment's vectors from the cache, which keeps those that are new. The segment's
    /// sequence, once all of it is encoded.
    ///
    /// Errors: those of the session.
    pub(crate) fn encode(
        &mut self,
        session: &mut Session,
        cache: &mut AudioCache,
        now: Duration,
    ) -> models::Result<Option<Decoding>> {
        let Some(Clip { features, key }) = self.clips.front() else { return Ok(None) };
        if self.n_encoded == 0 {
            self.since = now;
            if let Some(vectors) = cache.get(key) {
                self.embeddings.extend_from_slice(vectors);
                return Ok(Some(self.begin()));
            }
        }
        let left = features.n_frames - self.n_encoded;
        let n = self.slice_frames.map_or(left, |slice| slice.min(left));
        let values = slice(features, self.n_encoded, n);
        let input = batch::Features { n_mels: features.n_mels, n_frames: n, values: &values };
        self.embeddings.extend_from_slice(session.encode(&[input])?.clip(0));
        self.n_encoded += n;
        if self.n_encoded < features.n_frames {
            return Ok(None);
        }
        cache.put(*key, &self.embeddings);
        Ok(Some(self.begin()))
    }

    /// The sequence of the first segment, whose vectors are there.
    fn begin(&mut self) -> Decoding {
        self.clips.pop_front();
        self.n_encoded = 0;
        self.confidence.push((0.0, 0));
        if let Some(sent) = &mut self.stream {
            sent.segment.clear();
        }
        self.transcription.ask(std::mem::take(&mut self.embeddings))
    }

    /// The segment's sequence was given a slot.
    pub(crate) fn submitted(&mut self, now: Duration) {
        self.transcription.timings().encode += now - self.since;
        self.since = now;
    }

    /// Takes what came of a call. More of the text, where it is streamed and there is some.
    pub(crate) fn advance(&mut self, event: &Event, logits: &[f32], n_vocab: usize, now: Duration) -> Option<Piece> {
        if self.wants_confidence
            && let Some((sum, n)) = self.confidence.last_mut()
        {
            for (id, row) in chosen(event).zip(logits.chunks_exact(n_vocab)) {
                *sum += log_probability(row, id);
                *n += 1;
            }
        }
        let at_hand = self.transcription.transcript().segments.len();
        let stage = match &mut self.stream {
            Some(sent) => self.transcription.advance(at_hand, event, sent),
            None => self.transcription.advance(at_hand, event, &mut ()),
        };
        if stage == Stage::First {
            self.transcription.timings().prefill += now - self.since;
            self.since = now;
        }
        let at_s = self.transcription.segment_start_s();
        if event.finish.is_some() {
            self.transcription.timings().decode += now - self.since;
            let transcript = self.transcription.finish();
            if let (Some(sent), Some(segment)) = (&mut self.stream, transcript.segments.last()) {
                sent.grow(&segment.text);
                sent.last = segment.text.chars().next_back().or(sent.last);
            }
        }
        let text = std::mem::take(&mut self.stream.as_mut()?.more);
        (!text.is_empty()).then_some(Piece { text, at_s, ..Piece::default() })
    }

    /// Whether all segments are finished.
    pub(crate) fn is_over(&self) -> bool {
        self.transcription.is_over()
    }

    /// Most tokens that a sequence of it will have.
    pub(crate) fn n_most(&self) -> usize {
        self.n_most
    }

    /// Tokens of prompts and of answers so far.
    pub(crate) fn n_tokens(&self) -> (usize, usize) {
        let timings = &self.transcription.transcript().timings;
        (timings.prompt_tokens, timings.generated_tokens)
    }

    /// The whole answer, and what came of its drafts.
    pub(crate) fn into_answer(self, drafts: Option<Statistics>) -> Answer {
        let mean = |(sum, n): (f64, usize)| (n > 0).then(|| sum / n as f64);
        let confidence = self.confidence.into_iter().map(mean).collect();
        Answer::Speech(SpeechAnswer { transcript: self.transcription.into_transcript(), confidence, drafts })
    }
}

impl Sent {
    /// Sends what the text of the segment at hand has more than what is out. A text that turns out otherwise stays as it was
    /// sent; the whole one comes at the end.
    fn grow(&mut self, text: &str) {
        let Some(more) = text.strip_prefix(self.segment.as_str()).filter(|more| !more.is_empty()) else { return };
        if self.segment.is_empty() {
            self.more.push_str(gap(self.last, text));
        }
        self.more.push_str(more);
        self.segment.push_str(more);
    }
}

impl Observer for Sent {
    fn answer(&mut self, answer: &Partial<'_>) {
        if let Some(text) = answer.segment_so_far() {
            self.grow(&text);
        }
    }
}

/// `n` frames of features from `start` on, `[n_mels, n]`.
fn slice(features: &Features, start: usize, n: usize) -> Vec<f32> {
    let rows = features.values.chunks_exact(features.n_frames);
    rows.flat_map(|row| &row[start..][..n]).copied().collect()
}
