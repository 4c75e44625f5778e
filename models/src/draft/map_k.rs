//! [`MapK`]: the first known place of the last tokens, with a length for each that follows its success.

use std::collections::HashMap;

use super::index::Index;
use super::{Drafter, Outcome};

/// Most guesses that a key lets pass after misses.
const MAX_REST: u32 = 64;

/// What is known of the tokens that were looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Tokens that its next guess may have.
    pub length: usize,
    /// Misses behind each other: guesses of which nothing was right.
    misses: u32,
    /// Guesses that it lets pass before the next one.
    rest: u32,
}

impl Key {
    pub(super) fn new(m: usize) -> Self {
        Self { length: m, misses: 0, rest: 0 }
    }

    /// Tokens that may be guessed now; none while it rests.
    pub(super) fn allowed(&mut self) -> usize {
        if self.rest > 0 {
            self.rest -= 1;
            return 0;
        }
        self.length
    }

    /// Takes note of what became of a guess of `proposed` tokens, where `m` is the most it may have.
    pub(super) fn judged(&mut self, outcome: Outcome, proposed: usize, m: usize) {
        let Outcome { verified, accepted } = outcome;
        match accepted {
            _ if verified == 0 => {}
            0 => {
                self.misses += 1;
                self.rest = 1u32.checked_shl(self.misses).map_or(MAX_REST, |rest| rest.min(MAX_REST));
                self.length = 1;
            }
            // Whoever was cut short is not judged by the cut.
            n if n == verified && verified < proposed => self.misses = 0,
            n if n == verified => (self.length, self.misses) = ((2 * self.length).min(m), 0),
            n => (self.length, self.misses) = (n, 0),
        }
    }
}

/// The drafter `ngram-map-k`: the `m` tokens behind the first place where the last `n` tokens stood, fewer where fewer were
/// right the last time these `n` were looked for. Where none was, it lets the next two pass, then four, up to 64.
///
/// Source: llama.cpp, `common_ngram_map_draft` with `key_only`, which never tries such a key again.
pub struct MapK {
    n: usize,
    m: usize,
    index: Index,
    /// By the tokens that were looked for.
    keys: HashMap<Box<[u32]>, Key>,
    /// The key of the last guess, and the tokens that it had.
    last: Option<(Box<[u32]>, usize)>,
}

impl MapK {
    /// Looks for `n` tokens and proposes `m` at most.
    pub fn new(n: usize, m: usize) -> Self {
        Self { n, m, index: Index::new(n, m), keys: HashMap::new(), last: None }
    }
}

impl Drafter for MapK {
    fn begin(&mut self, history: &[u32]) {
        if self.index.begin(history) != usize::MAX {
            self.keys.clear();
        }
        self.last = None;
    }

    fn draft(&mut self, history: &[u32], _: usize, guess: &mut Vec<u32>) {
        let Some(at) = self.index.find(history) else { return };
        let wanted = &history[history.len() - self.n..];
        let key = self.keys.entry(wanted.into()).or_insert_with(|| Key::new(self.m));
        let length = key.allowed().min(self.m);
        if length > 0 {
            guess.extend_from_slice(&history[at + self.n..][..length]);
            self.last = Some((wanted.into(), length));
        }
    }

    fn judged(&mut self, outcome: Outcome) {
        let Some((wanted, proposed)) = self.last.take() else { return };
        if let Some(key) = self.keys.get_mut(&wanted) {
            key.judged(outcome, proposed, self.m);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::guess;
    use super::*;

    /// A history that ends in `1, 2` for the time after `n_before` others.
    fn history(n_before: usize) -> Vec<u32> {
        let mut history = vec![9, 1, 2, 3, 4, 5, 6];
        for i in 0..n_before {
            history.extend([100 + u32::try_from(i).unwrap(), 1, 2]);
        }
        history
    }

    #[test]
    fn there_must_be_twice_n_and_m_tokens_before_the_last() {
        // n = 2, m = 2: 6 tokens.
        assert_eq!(guess(&mut MapK::new(2, 2), &[9, 1, 2, 3, 1, 2]), [0u32; 0]);
        assert_eq!(guess(&mut MapK::new(2, 2), &[9, 1, 2, 3, 4, 1, 2]), [3, 4]);
        assert_eq!(guess(&mut MapK::new(2, 2), &[1, 2, 3, 4, 5, 1, 2]), [0u32; 0]);
        assert_eq!(guess(&mut MapK::new(2, 2), &[1, 2, 3, 4, 5, 6, 1, 2]), [0u32; 0]);
    }

    #[test]
    fn the_first_place_is_kept_and_lengths_follow_success() {
        let mut drafter = MapK::new(2, 4);
        drafter.begin(&history(0));
        assert_eq!(guess(&mut drafter, &history(2)), [3, 4, 5, 6]);
        drafter.judged(Outcome { verified: 4, accepted: 2 });
        assert_eq!(guess(&mut drafter, &history(3)), [3, 4]);
        // It was cut: one right token of one says nothing about the second.
        drafter.judged(Outcome { verified: 1, accepted: 1 });
        assert_eq!(guess(&mut drafter, &history(4)), [3, 4]);
        drafter.judged(Outcome { verified: 2, accepted: 2 });
        assert_eq!(guess(&mut drafter, &history(5)), [3, 4, 5, 6]);
        // A miss: two pass, then one token; the next miss: four.
        drafter.judged(Outcome { verified: 4, accepted: 0 });
        let lengths = |drafter: &mut MapK, from: usize, n: usize| -> Vec<usize> {
            (from..from + n).map(|i| guess(drafter, &history(i)).len()).collect()
        };
        assert_eq!(lengths(&mut drafter, 6, 3), [0, 0, 1]);
        drafter.judged(Outcome { verified: 1, accepted: 0 });
        assert_eq!(lengths(&mut drafter, 9, 5), [0, 0, 0, 0, 1]);
        for _ in 0..100 {
            drafter.judged(Outcome { verified: 1, accepted: 0 });
            assert!((0..=MAX_REST).any(|_| !guess(&mut drafter, &history(20)).is_empty()));
        }
    }

    #[test]
    fn a_shorter_history_forgets() {
        let mut drafter = MapK::new(2, 2);
        assert_eq!(guess(&mut drafter, &[9, 1, 2, 3, 4, 5, 6, 1, 2]), [3, 4]);
        drafter.judged(Outcome { verified: 2, accepted: 0 });
        let other = [9, 1, 2, 7, 8, 5, 6];
        drafter.begin(&other);
        assert_eq!(guess(&mut drafter, &[9, 1, 2, 7, 8, 5, 6, 1, 2]), [7, 8]);
    }
}
