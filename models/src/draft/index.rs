//! [`Index`]: where the `n`-grams of a history begin, found by hash. What `ngram-map-k` and `ngram-map-k4v` share.

use super::{common, query};

/// Places of the table.
const N_PLACES: usize = 1 << 18;
/// Factor of the hash. Source: Knuth, The Art of Computer Programming, volume 3, section 6.4.
const FACTOR: u32 = 2_654_435_761;

/// Places of `n`-grams that have `m` tokens and one more behind them. A place of the table belongs to whoever comes first, so
/// what is found is compared, and what is not in the table is searched for where the history is not in it yet.
pub(super) struct Index {
    n: usize,
    m: usize,
    /// First positions; 0, which does not count, where there is none.
    table: Vec<u32>,
    /// Positions up to this one are in the table.
    last: usize,
    /// Tokens of the history when the text's continuation began.
    begun: usize,
    seen: Vec<u32>,
}

impl Index {
    pub(super) fn new(n: usize, m: usize) -> Self {
        Self { n, m, table: vec![0; N_PLACES], last: 0, begun: 0, seen: Vec::new() }
    }

    /// A text begins. Returns the position from which on nothing that was known counts any more.
    pub(super) fn begin(&mut self, history: &[u32]) -> usize {
        let same = common(&self.seen, history);
        let mut kept = usize::MAX;
        if same < self.seen.len() {
            // What lies behind a place must still be there.
            kept = same.saturating_sub(self.n + self.m);
            self.table.iter_mut().filter(|at| **at as usize >= kept).for_each(|at| *at = 0);
            self.last = self.last.min(kept.saturating_sub(1));
        }
        self.seen.clear();
        self.seen.extend_from_slice(history);
        self.begun = history.len();
        kept
    }

    /// Where the last `n` tokens of a history stood before, `m` tokens and one more before its end at least.
    pub(super) fn find(&mut self, history: &[u32]) -> Option<usize> {
        let Self { n, m, .. } = *self;
        self.seen.extend_from_slice(&history[self.seen.len().min(history.len())..]);
        let (_, past) = history.split_last()?;
        if past.len() < 2 * n + m {
            return None;
        }
        let wanted = query(history, n)?;
        let is_there = |at: &usize| &past[*at..*at + n] == wanted;
        let (end, begun) = (past.len() - n - m, self.begun.saturating_sub(n + m));
        let known = self.table[place(wanted)] as usize;
        let found = (known > 0 && known < end && is_there(&known)).then_some(known);
        // Thoughts may be cut from a history later, so what came before them is preferred.
        let before = |last: usize| (last + 1..begun.min(end)).rev();
        let after = |last: usize| (last.max(begun.saturating_sub(1)) + 1..end).rev();
        let last = self.last;
        let found = found.or_else(|| before(last).find(is_there)).or_else(|| after(last).find(is_there));
        for at in before(last).chain(after(last)) {
            let entry = &mut self.table[place(&past[at..at + n])];
            if *entry == 0 {
                *entry = u32::try_from(at).expect("contexts have far fewer tokens");
            }
        }
        self.last = last.max(end.saturating_sub(1));
        found
    }
}

fn place(tokens: &[u32]) -> usize {
    let hash = tokens.iter().fold(0u32, |hash, token| hash.wrapping_mul(FACTOR).wrapping_add(*token));
    hash as usize % N_PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_the_hash_of_another_is_not_taken_for_it() {
        // Two pairs of tokens with the same place: the second differs by a multiple of the table's size.
        let other = 2 + u32::try_from(N_PLACES).unwrap();
        assert_eq!(place(&[1, 2]), place(&[1, other]));
        let mut history = vec![9, 1, 2, 3, 3, 3, 3, 8, 7, 6];
        let mut index = Index::new(2, 2);
        assert_eq!(index.find(&history), None);
        history.extend([1, other]);
        assert_eq!(index.find(&history), None);
        history.extend([4, 4, 4, 4, 1, 2]);
        assert_eq!(index.find(&history), Some(1));
        // The place is taken, and its history is in the table by now: it is not found again.
        history.extend([5, 5, 5, 1, other]);
        assert_eq!(index.find(&history), None);
    }

    #[test]
    fn a_history_that_shrinks_takes_its_places_along() {
        let mut index = Index::new(2, 2);
        let history = [9, 1, 2, 3, 4, 5, 6, 1, 2];
        index.begin(&history[..7]);
        assert_eq!(index.find(&history), Some(1));
        // The tokens behind the place are others now.
        let changed = [9, 1, 2, 7, 7, 5, 6, 1, 2];
        assert_eq!(index.begin(&changed), 0);
        assert_eq!(index.find(&changed), Some(1));
        let (longer, other) = ([9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], [9, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0]);
        index.begin(&longer);
        assert_eq!(index.find(&longer), Some(1));
        assert_eq!(index.begin(&other), 4, "the first 8 tokens are the same");
        assert!(index.table.iter().all(|&at| at < 4) && index.last == 3);
    }
}
