//! [`Decoding`]: one sequence from its prompt to its last token. A state machine without I/O, memory or model: it says what
//! to feed next, takes the logits of what was fed, and says what came of it. [`crate::scheduler`] runs many of them.

use engine::batch::{Rows, Tokens};

use crate::sample::{NotFinite, Sampler, Sampling};

/// What is fed before anything is generated: ids, and vectors in place of embeddings where the id is -1.
#[derive(Clone, Default, Debug)]
pub struct Prompt {
    /// One per token; -1 takes the next vector.
    pub ids: Vec<i32>,
    /// `[n, n_embd]` for the `n` ids that are -1.
    pub embeddings: Vec<f32>,
}

impl Prompt {
    /// A prompt of text alone. Ids above 2^31 are of no vocabulary, and are refused as such when they are fed.
    pub fn of_ids(ids: &[u32]) -> Self {
        Self { ids: ids.iter().map(|id| id.cast_signed()).collect(), embeddings: Vec::new() }
    }
}

/// How tokens are chosen and when there are enough.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Tokens that end the text.
    pub stop: Vec<u32>,
    /// Goes on past them.
    pub ignore_stop: bool,
    /// Most tokens that are generated, one that ends the text included; 0 only feeds the prompt.
    pub max_tokens: usize,
    /// The first rows of the head, to which tokens belong; the others pad it.
    pub n_usable: usize,
    /// Whether every token of the prompt gets logits, not the last one alone.
    pub prompt_logits: bool,
}

/// Why a sequence is at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finish {
    /// This token came, which ends the text.
    Stop(u32),
    /// As many tokens came as were asked for.
    Limit,
}

/// What came of a call.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Event {
    /// Tokens that were fed and stay: all of them but drafts that turned out wrong.
    pub accepted: usize,
    /// Tokens that were generated, one that ends the text not among them.
    pub tokens: Vec<u32>,
    /// Whether the sequence is at its end, and why.
    pub finish: Option<Finish>,
}

/// What a sequence has chosen so far, to come back to.
#[derive(Clone, Debug)]
pub(crate) struct Choices {
    sampler: Sampler,
    /// The token that was generated last.
    last: Option<u32>,
    n_generated: usize,
}

/// One sequence between two calls.
#[derive(Clone, Debug)]
pub struct Decoding {
    prompt: Prompt,
    /// Values of a vector.
    n_embd: usize,
    /// Tokens and vectors of the prompt that were fed.
    n_fed: usize,
    n_vectors: usize,
    rules: Rules,
    sampler: Sampler,
    /// The token that was generated last and has not been fed, and drafts of those that may follow.
    next: Vec<u32>,
    n_generated: usize,
    event: Event,
}

impl Decoding {
    /// A sequence that begins with a prompt of at least one token, whose vectors have `n_embd` values.
    pub fn new(prompt: Prompt, n_embd: usize, rules: Rules) -> Self {
        let mut sampler = Sampler::new(rules.sampling);
        prompt.ids.iter().filter_map(|&id| usize::try_from(id).ok()).for_each(|id| sampler.see(id));
        let event = Event::default();
        Self { prompt, n_embd, n_fed: 0, n_vectors: 0, rules, sampler, next: Vec::new(), n_generated: 0, event }
    }

    /// The same, with something added to the logits of some tokens ([`Sampler::set_bias`]).
    pub fn with_bias(mut self, bias: &[(u32, f32)]) -> Self {
        self.sampler.set_bias(bias);
        self
    }

    /// Why a model with such a vocabulary and such vectors cannot be fed with the prompt, if it cannot.
    pub fn unfit(&self, n_vocab: usize, n_embd: usize) -> Option<String> {
        let Prompt { ids, embeddings } = &self.prompt;
        let outside = ids.iter().find(|&&id| id != -1 && id.cast_unsigned() as usize >= n_vocab);
        let (want, got) = (n_vectors(ids) * n_embd, embeddings.len());
        match outside {
            _ if ids.is_empty() => Some("a prompt without tokens".into()),
            Some(id) => Some(format!("token {} is outside the vocabulary of {n_vocab}", id.cast_unsigned())),
            None if want != got => Some(format!("want {want} values for the positions without an id, got {got}")),
            None => None,
        }
    }

    /// The tokens of the prompt, -1 where a vector is fed.
    pub fn prompt_ids(&self) -> &[i32] {
        &self.prompt.ids
    }

    /// Tokens that are still to be fed before one can be generated; 0 once the prompt is in memory.
    pub fn prompt_left(&self) -> usize {
        self.prompt.ids.len() - self.n_fed
    }

    /// Whether the prompt's tokens get logits, so that all of them have to be fed.
    pub fn wants_prompt_logits(&self) -> bool {
        self.rules.prompt_logits
    }

    /// The first `n` tokens of the prompt are in memory: they are not fed. The last one always is.
    pub(crate) fn skip(&mut self, n: usize) {
        debug_assert!(self.n_fed == 0 && n < self.prompt.ids.len());
        self.n_vectors = n_vectors(&self.prompt.ids[..n]);
        self.n_fed = n;
    }

    /// Tokens that wait to be fed.
    pub(crate) fn n_waiting(&self) -> usize {
        if self.prompt_left() > 0 { self.prompt_left() } else { self.next.len() }
    }

    /// Tokens that were generated.
    pub fn n_generated(&self) -> usize {
        self.n_generated
    }

    /// What came of the last call.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Most tokens that the sequence's memory will hold: nothing is fed after the last token.
    pub(crate) fn n_most(&self) -> usize {
        self.prompt.ids.len().saturating_add(self.rules.max_tokens.saturating_sub(1))
    }

    /// Drafts that can count: what is generated after the next token.
    pub(crate) fn draft_room(&self) -> usize {
        (self.rules.max_tokens - self.n_generated).saturating_sub(1)
    }

    /// Guesses which tokens follow the one that was generated last, in place of earlier guesses. They are fed with it, as
    /// far as they can count, and change nothing but how many calls the sequence takes.
    pub fn draft(&mut self, guess: &[u32]) {
        if self.prompt_left() == 0 && !self.next.is_empty() {
            let usable = guess.iter().take(self.draft_room()).take_while(|&&id| (id as usize) < self.rules.n_usable);
            self.next.truncate(1);
            self.next.extend(usable);
        }
    }

    /// What it has chosen so far. Its prompt is in memory.
    pub(crate) fn choices(&self) -> Choices {
        let Self { sampler, next, n_generated, .. } = self;
        Choices { sampler: sampler.clone(), last: next.first().copied(), n_generated: *n_generated }
    }

    /// Comes back to earlier choices of its own.
    pub(crate) fn come_back(&mut self, choices: &Choices) {
        self.sampler.clone_from(&choices.sampler);
        self.next.clear();
        self.next.extend(choices.last);
        self.n_generated = choices.n_generated;
    }

    /// Drops all drafts but the first `n`.
    pub(crate) fn keep_drafts(&mut self, n: usize) {
        self.next.truncate(n.saturating_add(1));
    }

    /// The next tokens, at most `max` of a prompt, and which of them want logits.
    pub fn next(&self, max: usize) -> (Tokens<'_>, Rows) {
        let left = self.prompt_left();
        if left == 0 {
            return (Tokens::Ids(&self.next), Rows::Drafts(self.next.len().saturating_sub(1)));
        }
        let n = left.min(max);
        let ids = &self.prompt.ids[self.n_fed..][..n];
        let embeddings = &self.prompt.embeddings[self.n_vectors * self.n_embd..][..n_vectors(ids) * self.n_embd];
        let rows = match self.rules.prompt_logits {
            true => Rows::All,
            false if n == left => Rows::Last,
            false => Rows::None,
        };
        (Tokens::Mixed { ids, embeddings }, rows)
    }

    /// Takes the logits of the `n` tokens that [`Self::next`] gave and that were fed: the rows it asked for, of `n_vocab`
    /// values each.
    ///
    /// Errors: logits that no token can be chosen from. The sequence cannot go on.
    pub fn advance(&mut self, n: usize, logits: &[f32], n_vocab: usize) -> Result<&Event, NotFinite> {
        self.event.tokens.clear();
        self.event.finish = None;
        let left = self.prompt_left();
        if left > 0 {
            self.event.accepted = n;
            self.n_vectors += n_vectors(&self.prompt.ids[self.n_fed..][..n]);
            self.n_fed += n;
            if n == left {
                let last = logits.len() - n_vocab;
                self.choose(&logits[last..], n_vocab, 0)?;
            }
        } else {
            self.event.accepted = self.choose(logits, n_vocab, n - 1)?;
        }
        Ok(&self.event)
    }

    /// Chooses a token from every row, as long as the `n_drafts` drafts are what was chosen. Returns how many rows counted.
    fn choose(&mut self, logits: &[f32], n_vocab: usize, n_drafts: usize) -> Result<usize, NotFinite> {
        let mut n_rows = 0;
        for row in logits.chunks_exact(n_vocab) {
            if self.n_generated == self.rules.max_tokens {
                self.event.finish = Some(Finish::Limit);
                break;
            }
            let chosen = self.sampler.choose(&row[..self.rules.n_usable.min(n_vocab)])?;
            let id = u32::try_from(chosen).expect("vocabularies have far fewer rows");
            n_rows += 1;
            self.n_generated += 1;
            if !self.rules.ignore_stop && self.rules.stop.contains(&id) {
                self.event.finish = Some(Finish::Stop(id));
                break;
            }
            self.event.tokens.push(id);
            if self.n_generated == self.rules.max_tokens {
                self.event.finish = Some(Finish::Limit);
                break;
            }
            if n_rows > n_drafts || self.next[n_rows] != id {
                break;
            }
        }
        self.next.clear();
        self.next.extend(self.event.tokens.last());
        Ok(n_rows)
    }
}

/// Vectors among some ids.
fn n_vectors(ids: &[i32]) -> usize {
    ids.iter().filter(|&&id| id == -1).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const N_VOCAB: usize = 8;

    /// A model that always wants the id after the last one, modulo the vocabulary.
    fn logits(ids: &[u32]) -> Vec<f32> {
        let row = |id: u32| (0..N_VOCAB).map(move |v| if v == (id as usize + 1) % N_VOCAB { 1.0 } else { 0.0 });
        ids.iter().flat_map(|&id| row(id)).collect()
    }

    fn rules(max_tokens: usize) -> Rules {
        Rules {
            sampling: Sampling::default(),
            stop: vec![7],
            ignore_stop: false,
            max_tokens,
            n_usable: N_VOCAB,
            prompt_logits: false,
        }
    }

    /// Runs to the end, with a guess before every call; the ids, and how many calls it took.
    fn run(mut decoding: Decoding, guess: impl Fn(u32) -> Vec<u32>) -> (Vec<u32>, Finish, usize) {
        let (mut ids, mut calls) = (Vec::new(), 0);
        loop {
            if let Some(&last) = ids.last() {
                decoding.draft(&guess(last));
            }
            let (fed, rows) = match decoding.next(2) {
                (Tokens::Ids(ids), rows) => (ids.to_vec(), rows),
                (Tokens::Mixed { ids, .. }, rows) => (ids.iter().map(|id| id.cast_unsigned()).collect(), rows),
            };
            let n_rows = rows.count(fed.len());
            let event = decoding.advance(fed.len(), &logits(&fed[fed.len() - n_rows..]), N_VOCAB).unwrap().clone();
            assert!(event.accepted >= 1 && event.accepted <= fed.len());
            ids.extend(&event.tokens);
            calls += 1;
            if let Some(finish) = event.finish {
                return (ids, finish, calls);
            }
        }
    }

    #[test]
    fn prompts_come_in_pieces_and_end_in_a_choice() {
        let decoding = Decoding::new(Prompt::of_ids(&[0, 5, 1]), 0, rules(3));
        assert_eq!((decoding.prompt_left(), decoding.n_most()), (3, 5));
        assert_eq!(run(decoding, |_| Vec::new()), (vec![2, 3, 4], Finish::Limit, 4));
        let decoding = Decoding::new(Prompt::of_ids(&[0, 5, 1]), 0, rules(100));
        assert_eq!(run(decoding, |_| Vec::new()), (vec![2, 3, 4, 5, 6], Finish::Stop(7), 7));
        let all = Rules { ignore_stop: true, ..rules(8) };
        let (ids, finish, _) = run(Decoding::new(Prompt::of_ids(&[1]), 0, all), |_| Vec::new());
        assert_eq!((ids, finish), (vec![2, 3, 4, 5, 6, 7, 0, 1], Finish::Limit));
    }

    #[test]
    fn drafts_change_nothing_but_the_number_of_calls() {
        let open = |max| Decoding::new(Prompt::of_ids(&[0]), 0, rules(max));
        for max in 1..=8 {
            let (want, finish, plain) = run(open(max), |_| Vec::new());
            let right = |last: u32| (1..=3).map(|i| (last + i) % 8).collect();
            let (got, same, fewer) = run(open(max), right);
            assert_eq!((&got, same), (&want, finish));
            assert!(fewer <= plain && (max < 4 || fewer < plain), "{fewer} of {plain} calls");
            for wrong_at in 0..3 {
                let guess = |last: u32| (1..=3).map(|i| (last + i + u32::from(i > wrong_at)) % 8).collect();
                let (got, same, calls) = run(open(max), guess);
                assert_eq!((&got, same), (&want, finish), "wrong at {wrong_at}");
                assert!(wrong_at > 0 || calls == plain);
            }
        }
    }

    #[test]
    fn vectors_follow_their_place_in_the_prompt() {
        let prompt = Prompt { ids: vec![3, -1, -1, 4, -1], embeddings: vec![0.0, 0.1, 1.0, 1.1, 2.0, 2.1] };
        let mut decoding = Decoding::new(prompt, 2, rules(1));
        let (Tokens::Mixed { ids, embeddings }, Rows::None) = decoding.next(2) else { panic!("a piece") };
        assert_eq!((ids, embeddings), (&[3, -1][..], &[0.0, 0.1][..]));
        decoding.advance(2, &[], N_VOCAB).unwrap();
        let (Tokens::Mixed { ids, embeddings }, Rows::Last) = decoding.next(9) else { panic!("the rest") };
        assert_eq!((ids, embeddings), (&[-1, 4, -1][..], &[1.0, 1.1, 2.0, 2.1][..]));
    }

    #[test]
    fn logits_that_are_no_numbers_end_the_sequence() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut row = logits(&[1]);
            row[6] = bad;
            let mut decoding = Decoding::new(Prompt::of_ids(&[1]), 0, rules(4));
            assert!(decoding.advance(1, &row, N_VOCAB).is_err());
            // Rows that pad the head may hold anything.
            let few = Rules { n_usable: 6, ..rules(4) };
            let mut decoding = Decoding::new(Prompt::of_ids(&[1]), 0, few);
            assert_eq!(decoding.advance(1, &row, N_VOCAB).unwrap().tokens, [2]);
        }
        let mut row = logits(&[1]);
        row[6] = f32::NEG_INFINITY;
        let mut decoding = Decoding::new(Prompt::of_ids(&[1]), 0, rules(4));
        assert_eq!(decoding.advance(1, &row, N_VOCAB).unwrap().tokens, [2]);
    }
}
