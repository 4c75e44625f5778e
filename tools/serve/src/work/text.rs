//! [`TextWork`]: a prompt that is continued, between the calls of the engine.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Duration;

use models::decoding::{Decoding, Event, Finish};
use models::draft::Statistics;
use models::generate::{Continuation, Generated};
use models::scheduler::{Seat, Seated, Shared};

use super::{Answer, Piece};
use crate::figures::Begun;

/// What the HTTP side made of a request.
pub(crate) struct TextWork {
    continuation: Option<Continuation>,
    decoding: Option<Decoding>,
    n_prompt: usize,
    /// Most tokens of prompt and answer together.
    n_most: usize,
    prompt_left: usize,
    /// The slot that it wants, and what of that it may use.
    seat: Seat,
    /// Where it is, and what it shares with what was there.
    place: usize,
    shared: Shared,
    /// Whether the text is wanted as it grows.
    is_streamed: bool,
    /// Alternatives that are told of every token; none where not even its own probability is wanted.
    n_probs: Option<usize>,
    /// Longest time from the first token on.
    most: Option<Duration>,
    /// Tokens that were chosen and are not shown.
    views: VecDeque<TokenView>,
    /// Tokens that were shown.
    shown: Vec<TokenView>,
    /// Bytes of the text that were sent.
    n_sent: usize,
    n_generated: usize,
    /// When the stage at hand began.
    since: Duration,
    prompt_time: Duration,
    decode_time: Duration,
}

/// A token with its probability.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct TokenView {
    /// The token.
    pub id: u32,
    /// Logarithm of its probability, before any sampling.
    pub logprob: f64,
    /// The most likely ones, the first the most likely.
    pub top: Vec<(u32, f64)>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct TextAnswer {
    /// The text and its tokens.
    pub generated: Generated,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Those of them that were in memory already.
    pub n_cached: usize,
    /// The slot.
    pub place: usize,
    /// What of the text was not sent yet.
    pub rest: String,
    /// The tokens with their probabilities, where they were asked for.
    pub tokens: Vec<TokenView>,
    /// From the first call to the first token.
    pub prompt_time: Duration,
    /// From there to the end.
    pub decode_time: Duration,
    /// What came of drafts, where there were drafters.
    pub drafts: Option<Box<Statistics>>,
}

impl TextWork {
    /// Work on a sequence whose prompt has so many tokens, and with its answer `n_most`.
    pub(crate) fn new(continuation: Continuation, decoding: Decoding, n_prompt: usize, n_most: usize) -> Self {
        Self {
            continuation: Some(continuation),
            decoding: Some(decoding),
            n_prompt,
            n_most,
            prompt_left: n_prompt,
            seat: Seat::default(),
            place: 0,
            shared: Shared::default(),
            is_streamed: false,
            n_probs: None,
            most: None,
            views: VecDeque::new(),
            shown: Vec::new(),
            n_sent: 0,
            n_generated: 0,
            since: Duration::ZERO,
            prompt_time: Duration::ZERO,
            decode_time: Duration::ZERO,
        }
    }

    /// It wants this slot, and uses and leaves what this says.
    pub(crate) fn seated(mut self, seat: Seat) -> Self {
        self.seat = seat;
        self
    }

    /// The slot that it wants, and what of that it may use.
    pub(crate) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// The prompt, until it has begun.
    pub(crate) fn prompt_ids(&self) -> &[i32] {
        self.decoding.as_ref().map_or(&[], Decoding::prompt_ids)
    }

    /// It has a slot, and takes over what that has of the prompt.
    pub(crate) fn submitted(&mut self, seated: Seated) {
        (self.place, self.shared) = (seated.place, seated.shared);
        self.prompt_left = self.n_prompt - self.shared.n_reused;
    }

    /// How the prompt began.
    pub(crate) fn begun(&self) -> Begun {
        Begun { n_prompt: self.n_prompt, shared: self.shared, reuses: self.seat.reuses }
    }

    /// The text is sent as it grows.
    pub(crate) fn streamed(mut self, is_streamed: bool) -> Self {
        self.is_streamed = is_streamed;
        self
    }

    /// Tokens come with their probability and so many alternatives.
    pub(crate) fn with_probabilities(mut self, n_probs: Option<usize>) -> Self {
        self.n_probs = n_probs;
        self
    }

    /// It ends so long after its first token.
    pub(crate) fn within(mut self, most: Option<Duration>) -> Self {
        self.most = most;
        self
    }

    /// The sequence, which has not begun.
    pub(crate) fn begin(&mut self, now: Duration) -> Option<Decoding> {
        self.since = now;
        self.decoding.take()
    }

    /// Takes what came of a call. More of the text, where it is streamed and there is some; whether it goes on.
    pub(crate) fn advance(
        &mut self,
        event: &Event,
        logits: &[f32],
        n_vocab: usize,
        now: Duration,
    ) -> (Option<Piece>, ControlFlow<()>) {
        if self.prompt_left > 0 {
            self.prompt_left -= event.accepted.min(self.prompt_left);
            if self.prompt_left == 0 {
                self.prompt_time = now - self.since;
                self.since = now;
            }
        }
        if let Some(n_top) = self.n_probs {
            let rows = event.tokens.iter().zip(logits.chunks_exact(n_vocab));
            self.views.extend(rows.map(|(&id, row)| view(id, row, n_top)));
        }
        self.n_generated += chosen(event).count();
        let Some(continuation) = &mut self.continuation else { return (None, ControlFlow::Break(())) };
        let mut piece = Piece::default();
        let Self { is_streamed, n_sent, views, shown, .. } = self;
        let flow = continuation.advance(event, &mut |ids, text| {
            let n = ids.len().min(views.len());
            let tokens = views.drain(..n);
            if *is_streamed {
                piece.text.push_str(&text[*n_sent..]);
                *n_sent = text.len();
                piece.tokens.extend(tokens);
            } else {
                shown.extend(tokens);
            }
            ControlFlow::Continue(())
        });
        self.decode_time = if self.prompt_left == 0 { now - self.since } else { Duration::ZERO };
        let is_late = self.prompt_left == 0 && self.most.is_some_and(|most| self.decode_time >= most);
        let flow = if is_late { ControlFlow::Break(()) } else { flow };
        let has_more = !piece.text.is_empty() || !piece.tokens.is_empty();
        (has_more.then_some(piece), flow)
    }

    /// Most tokens that its sequence will have.
    pub(crate) fn n_most(&self) -> usize {
        self.n_most
    }

    /// Tokens of the prompt that are in memory, and of the answer so far.
    pub(crate) fn n_tokens(&self) -> (usize, usize) {
        (self.n_prompt - self.prompt_left, self.n_generated)
    }

    /// The whole answer, and what came of its drafts.
    pub(crate) fn into_answer(mut self, drafts: Option<Statistics>) -> Option<Answer> {
        let generated = self.continuation?.finish();
        // Of the tokens that were held back, those that stay are shown now; a stop text takes the rest with it.
        let n_left = generated.ids.len().saturating_sub(self.shown.len()).min(self.views.len());
        self.shown.extend(self.views.drain(..n_left));
        let rest = generated.text.get(self.n_sent..).unwrap_or_default().to_owned();
        Some(Answer::Text(TextAnswer {
            n_prompt: self.n_prompt,
            n_cached: self.shared.n_reused,
            place: self.place,
            rest,
            tokens: self.shown,
            prompt_time: self.prompt_time,
            decode_time: self.decode_time,
            drafts: drafts.map(Box::new),
            generated,
        }))
    }
}

/// The tokens that a call chose, one that ends the text among them: one for every row of its logits.
pub(crate) fn chosen(event: &Event) -> impl Iterator<Item = usize> + '_ {
    let last = match event.finish {
        Some(Finish::Stop(id)) => Some(id as usize),
        Some(Finish::Limit) | None => None,
    };
    event.tokens.iter().map(|&id| id as usize).chain(last)
}

/// Logarithm of the softmax of `logits` at `i`.
pub(crate) fn log_probability(logits: &[f32], i: usize) -> f64 {
    f64::from(logits[i]) - log_sum(logits)
}

/// Logarithm of the sum of the exponentials.
fn log_sum(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    largest + logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum::<f64>().ln()
}

fn view(id: u32, logits: &[f32], n_top: usize) -> TokenView {
    let sum = log_sum(logits);
    let mut order: Vec<u32> = (0..u32::try_from(logits.len()).expect("vocabularies have far fewer rows")).collect();
    let descending = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let n_top = n_top.min(order.len());
    if n_top > 0 && n_top < order.len() {
        order.select_nth_unstable_by(n_top - 1, descending);
    }
    order.truncate(n_top);
    order.sort_unstable_by(descending);
    let logprob = |id: u32| f64::from(logits[id as usize]) - sum;
    TokenView { id, logprob: logprob(id), top: order.into_iter().map(|id| (id, logprob(id))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        let logits = [1.0f32, 3.0, f32::NEG_INFINITY, 3.0, -2.0];
        let sum: f64 = [1.0f64, 3.0, 3.0, -2.0].iter().map(|x| x.exp()).sum();
        let view = view(0, &logits, 3);
        assert!((view.logprob - (1.0 - sum.ln())).abs() < 1e-12);
        assert_eq!(view.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 0]);
        assert!((view.top[1].1 - (3.0 - sum.ln())).abs() < 1e-12);
        assert!((log_probability(&logits, 4) - (-2.0 - sum.ln())).abs() < 1e-12);
    }
}
