//! [`Simple`]: the last place where the last tokens stood before, searched anew every time.

use super::{Drafter, query};

/// The drafter `ngram-simple`. It looks for the last `n` tokens in the history before them, from its end to its beginning, and
/// proposes the `m` tokens behind the place where it finds them first, if there are `n` at least. The token that was generated
/// last is asked for and not searched in, and the first position of a history does not count.
///
/// Source: llama.cpp, `common_ngram_simple_draft`.
pub struct Simple {
    n: usize,
    m: usize,
}

impl Simple {
    /// Looks for `n` tokens and proposes `m`.
    pub fn new(n: usize, m: usize) -> Self {
        Self { n, m }
    }
}

impl Drafter for Simple {
    fn begin(&mut self, _: &[u32]) {}

    fn draft(&mut self, history: &[u32], _: usize, guess: &mut Vec<u32>) {
        let Self { n, m } = *self;
        let Some((_, past)) = history.split_last() else { return };
        if past.len() <= n + m + 1 {
            return;
        }
        let Some(wanted) = query(history, n) else { return };
        let found = (1..past.len() - n).rev().find(|&at| &past[at..at + n] == wanted);
        let behind = found.map_or(&[][..], |at| &past[at + n..]);
        if behind.len() >= n {
            guess.extend_from_slice(&behind[..behind.len().min(m)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(n: usize, m: usize, history: &[u32]) -> Vec<u32> {
        let mut guess = Vec::new();
        Simple::new(n, m).draft(history, usize::MAX, &mut guess);
        guess
    }

    #[test]
    fn boundaries_are_those_of_llama_cpp() {
        // n = 2, m = 2: more than 5 tokens before the last one.
        assert_eq!(guess(2, 2, &[9, 1, 2, 3, 1, 2]), [0u32; 0]);
        assert_eq!(guess(2, 2, &[9, 1, 2, 3, 4, 1, 2]), [3, 4]);
        // The first position does not count.
        assert_eq!(guess(2, 2, &[1, 2, 3, 4, 5, 1, 2]), [0u32; 0]);
        assert_eq!(guess(2, 2, &[9, 1, 2, 3, 4, 5, 1, 2]), [3, 4]);
        // The place nearest to the end.
        assert_eq!(guess(2, 2, &[9, 1, 2, 3, 4, 1, 2, 5, 6, 1, 2]), [5, 6]);
        // Too few tokens behind it: there is no second look.
        assert_eq!(guess(2, 2, &[9, 1, 1, 5, 5, 5, 1, 1, 1, 1]), [0u32; 0]);
        // Fewer than m.
        assert_eq!(guess(2, 4, &[9, 9, 9, 9, 9, 1, 2, 3, 1, 2]), [3, 1]);
        assert_eq!(guess(2, 2, &[]), [0u32; 0]);
        assert_eq!(guess(1, 1, &[7]), [0u32; 0]);
    }
}
