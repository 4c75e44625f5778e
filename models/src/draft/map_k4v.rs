//! [`MapK4v`]: what followed the last tokens most often, where it did so clearly.

use std::collections::HashMap;

use super::index::Index;
use super::map_k::Key;
use super::{Drafter, Outcome};

/// Continuations that are told apart for some tokens.
const MAX_VALUES: usize = 4;
/// Where counts end.
const MAX_COUNT: u16 = 16_380;
/// How many times as often as all others together the most frequent one must have come.
const CLEARLY: u32 = 2;

/// A continuation.
#[derive(Clone, Copy, Debug)]
struct Value {
    /// Where it began first.
    at: usize,
    count: u16,
    key: Key,
}

/// What is known of the tokens that were looked for.
#[derive(Default, Debug)]
struct Values {
    /// How often they were found.
    hits: u16,
    values: Vec<Value>,
    /// Positions before this one were examined.
    examined: usize,
}

impl Values {
    /// Counts the continuations of `wanted` at the places from where it was examined to `end`.
    fn examine(&mut self, history: &[u32], wanted: &[u32], end: usize, m: usize) {
        let n = wanted.len();
        for at in self.examined.max(1)..end {
            if &history[at..at + n] != wanted {
                continue;
            }
            let of = |at: usize| &history[at..at + m];
            let is_full = self.values.len() == MAX_VALUES;
            match self.values.iter_mut().find(|v| of(v.at) == of(at + n)) {
                Some(value) => value.count = (value.count + 1).min(MAX_COUNT),
                None if is_full => {}
                None => self.values.push(Value { at: at + n, count: 1, key: Key::new(m) }),
            }
        }
        self.examined = self.examined.max(end);
    }

    /// The continuation that came clearly more often than the others.
    fn winner(&mut self) -> Option<(usize, &mut Value)> {
        let sum: u32 = self.values.iter().map(|v| u32::from(v.count)).sum();
        // The first of equals, which then win only alone.
        let (i, best) = self.values.iter_mut().enumerate().rev().max_by_key(|(_, v)| v.count)?;
        let count = u32::from(best.count);
        (count >= CLEARLY * (sum - count)).then_some((i, best))
    }
}

/// The drafter `ngram-map-k4v`: like `ngram-map-k`, but of up to four continuations of the last `n` tokens, each `m` long, it
/// takes the one that came at least twice as often as the others together, once the tokens were found `min_hits` times.
///
/// Source: llama.cpp, `common_ngram_map_draft`, which counts for the winner and proposes what stands at the place that it found.
pub struct MapK4v {
    n: usize,
    m: usize,
    min_hits: usize,
    index: Index,
    keys: HashMap<Box<[u32]>, Values>,
    /// The key of the last guess, its continuation, and the tokens that it had.
    last: Option<(Box<[u32]>, usize, usize)>,
}

impl MapK4v {
    /// Looks for `n` tokens and proposes `m` at most.
    pub fn new(n: usize, m: usize, min_hits: usize) -> Self {
        Self { n, m, min_hits, index: Index::new(n, m), keys: HashMap::new(), last: None }
    }
}

impl Drafter for MapK4v {
    fn begin(&mut self, history: &[u32]) {
        if self.index.begin(history) != usize::MAX {
            self.keys.clear();
        }
        self.last = None;
    }

    fn draft(&mut self, history: &[u32], _: usize, guess: &mut Vec<u32>) {
        let Self { n, m, min_hits, .. } = *self;
        if self.index.find(history).is_none() {
            return;
        }
        let wanted = &history[history.len() - n..];
        let values = self.keys.entry(wanted.into()).or_default();
        values.hits = (values.hits + 1).min(MAX_COUNT);
        // Of a place whose continuation is whole.
        values.examine(history, wanted, history.len() - n - m, m);
        if usize::from(values.hits) < min_hits {
            return;
        }
        let Some((i, value)) = values.winner() else { return };
        let length = value.key.allowed().min(m);
        if length > 0 {
            guess.extend_from_slice(&history[value.at..][..length]);
            self.last = Some((wanted.into(), i, length));
        }
    }

    fn judged(&mut self, outcome: Outcome) {
        let Some((wanted, i, proposed)) = self.last.take() else { return };
        if let Some(value) = self.keys.get_mut(&wanted).and_then(|values| values.values.get_mut(i)) {
            value.key.judged(outcome, proposed, self.m);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::guess;
    use super::*;

    /// `1, 2` followed by these pairs one after the other, then `1, 2` again.
    fn history(pairs: &[[u32; 2]]) -> Vec<u32> {
        let parts = pairs.iter().enumerate().flat_map(|(i, p)| [1, 2, p[0], p[1], 90 + u32::try_from(i).unwrap()]);
        [99].into_iter().chain(parts).chain([1, 2]).collect()
    }

    #[test]
    fn the_most_frequent_continuation_is_proposed_where_it_is_clear() {
        let of = |pairs: &[[u32; 2]]| guess(&mut MapK4v::new(2, 2, 1), &history(pairs));
        assert_eq!(of(&[[3, 4], [3, 4]]), [3, 4]);
        // Not what came first.
        assert_eq!(of(&[[3, 4], [5, 6], [5, 6]]), [5, 6]);
        // A tie, and three beside two.
        assert_eq!(of(&[[3, 4], [5, 6]]), [0u32; 0]);
        assert_eq!(of(&[[3, 4], [5, 6], [5, 6], [3, 4], [5, 6]]), [0u32; 0]);
        // Twice as often as all others together.
        assert_eq!(of(&[[3, 4], [5, 6], [5, 6], [7, 8], [5, 6], [5, 6]]), [5, 6]);
        assert_eq!(of(&[[3, 4], [5, 6], [5, 6], [7, 8], [5, 6]]), [0u32; 0]);
        // What differs only in its second token is another continuation.
        assert_eq!(of(&[[3, 4], [3, 5], [3, 6]]), [0u32; 0]);
        // A fifth continuation has no place, and its count no part.
        let five = [[1, 1], [3, 3], [4, 4], [5, 5], [6, 6], [6, 6], [6, 6], [6, 6], [6, 6], [6, 6], [6, 6], [6, 6]];
        assert_eq!(of(&five), [0u32; 0]);
    }

    #[test]
    fn tokens_must_be_found_so_often() {
        let mut drafter = MapK4v::new(2, 2, 3);
        let mut history = history(&[[3, 4], [3, 4]]);
        for want in [&[][..], &[], &[3, 4]] {
            assert_eq!(guess(&mut drafter, &history), want);
            history.extend([3, 4, 50, 1, 2]);
        }
    }

    #[test]
    fn counts_end() {
        let mut values = Values::default();
        let history: Vec<u32> = [7].into_iter().cycle().take(20_010).collect();
        values.examine(&history, &[7, 7], 20_000, 2);
        assert_eq!((values.values.len(), values.values[0].count), (1, MAX_COUNT));
        values.hits = MAX_COUNT;
        let mut drafter = MapK4v::new(2, 2, 1);
        drafter.keys.insert([7, 7].into(), values);
        assert_eq!(guess(&mut drafter, &history), [7, 7]);
        assert_eq!(drafter.keys[&[7, 7][..]].hits, MAX_COUNT);
    }
}
