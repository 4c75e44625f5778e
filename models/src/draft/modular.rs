//! [`Modular`]: one table from hashes of tokens to the token that came next, which nobody compares.

use super::{Drafter, Outcome};

/// Places of the table, each a token: 16 MiB, of which only what is used becomes memory.
const N_PLACES: usize = 4 << 20;
/// Factor of the hash. Source: Knuth, MMIX, `6364136223846793005`.
const FACTOR: u64 = 6_364_136_223_846_793_005;
/// New tokens are entered when there are more than so many.
const CHUNK: usize = 32;
/// A text begins with an empty table where more than this part of it is taken.
const FULL: usize = N_PLACES / 4;
/// The table is emptied after so many guesses behind each other of which less than a quarter was right.
const MAX_BAD: u32 = 5;
const BAD_PART: usize = 4;

/// The drafter `ngram-mod`. The token after the last `n` ones is looked up by their hash, and guessed tokens are looked up in
/// turn, until a place is empty or there are `max` of them; fewer than `min` are no guess. The last writer has a place.
///
/// Source: llama.cpp, `common_ngram_mod`, which has one table for all sequences: what one user writes then shows in the speed of
/// another's answer. Here every sequence has its own.
pub struct Modular {
    n: usize,
    min: usize,
    max: usize,
    /// Tokens plus one; 0 is empty.
    table: Vec<u32>,
    n_taken: usize,
    /// Tokens of the history that were entered.
    n_entered: usize,
    n_bad: u32,
}

impl Modular {
    /// Looks for `n` tokens and proposes `min` to `max`.
    pub fn new(n: usize, min: usize, max: usize) -> Self {
        Self { n, min, max, table: vec![0; N_PLACES], n_taken: 0, n_entered: 0, n_bad: 0 }
    }

    fn enter(&mut self, history: &[u32]) {
        let first = self.n_entered.saturating_sub(self.n).min(history.len());
        for window in history[first..].windows(self.n + 1) {
            let (next, before) = window.split_last().expect("windows have a token");
            let entry = &mut self.table[place(before)];
            self.n_taken += usize::from(*entry == 0);
            *entry = next.wrapping_add(1);
        }
        self.n_entered = history.len();
    }

    fn empty(&mut self) {
        self.table = vec![0; N_PLACES];
        (self.n_taken, self.n_bad) = (0, 0);
    }
}

fn place(tokens: &[u32]) -> usize {
    let hash = tokens.iter().fold(0u64, |hash, token| hash.wrapping_mul(FACTOR).wrapping_add(u64::from(*token)));
    usize::try_from(hash % N_PLACES as u64).expect("the table has fewer places")
}

impl Drafter for Modular {
    fn begin(&mut self, history: &[u32]) {
        if self.n_taken > FULL {
            self.empty();
        }
        self.n_entered = 0;
        self.enter(history);
    }

    fn draft(&mut self, history: &[u32], _: usize, guess: &mut Vec<u32>) {
        if history.len() - self.n_entered > CHUNK {
            self.enter(history);
        }
        let Some(last) = super::query(history, self.n) else { return };
        let first = guess.len();
        let mut known = last.to_vec();
        while guess.len() - first < self.max {
            let Some(next) = self.table[place(&known[known.len() - self.n..])].checked_sub(1) else { break };
            guess.push(next);
            known.push(next);
        }
        if guess.len() - first < self.min {
            guess.truncate(first);
        }
    }

    fn judged(&mut self, outcome: Outcome) {
        let is_bad = outcome.accepted * BAD_PART < outcome.verified;
        self.n_bad = if is_bad { self.n_bad + 1 } else { 0 };
        if self.n_bad >= MAX_BAD {
            self.empty();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::guess;
    use super::*;

    #[test]
    fn guesses_go_on_from_guesses() {
        let prompt: Vec<u32> = (10..40).chain([10, 11]).collect();
        let mut drafter = Modular::new(2, 3, 5);
        drafter.begin(&prompt);
        assert_eq!(guess(&mut drafter, &prompt), [12, 13, 14, 15, 16]);
        // At the end of what is known there is too little.
        assert_eq!(guess(&mut drafter, &[&prompt[..], &[36, 37]].concat()), [38, 39, 10, 11, 12]);
        assert_eq!(guess(&mut drafter, &[&prompt[..], &[7, 8]].concat()), [0u32; 0]);
        let mut short = Modular::new(2, 3, 5);
        short.begin(&[1, 2, 3, 4]);
        assert_eq!(guess(&mut short, &[1, 2, 3, 4, 1, 2]), [0u32; 0]);
        let mut shorter = Modular::new(2, 2, 5);
        shorter.begin(&[1, 2, 3, 4]);
        assert_eq!(guess(&mut shorter, &[1, 2, 3, 4, 1, 2]), [3, 4]);
        assert_eq!(guess(&mut shorter, &[1]), [0u32; 0]);
    }

    #[test]
    fn new_tokens_are_entered_in_chunks_and_the_last_writer_wins() {
        let mut drafter = Modular::new(1, 1, 1);
        let mut history = vec![1, 2];
        drafter.begin(&history);
        history.extend([1, 3]);
        history.extend(std::iter::repeat_n(50, CHUNK - 2));
        history.push(1);
        history.remove(history.len() - 2);
        assert_eq!(guess(&mut drafter, &history), [2], "{} new ones", history.len() - 2);
        history.extend([50, 1]);
        assert_eq!(guess(&mut drafter, &history), [50], "the last thing that came after a 1");
    }

    #[test]
    fn bad_guesses_and_a_full_table_empty_it() {
        let prompt: Vec<u32> = (10..40).chain([10, 11]).collect();
        let mut drafter = Modular::new(2, 1, 4);
        drafter.begin(&prompt);
        for accepted in [0, 0, 0, 0, 1, 0, 0, 0, 0] {
            drafter.judged(Outcome { verified: 4, accepted });
        }
        assert_eq!(guess(&mut drafter, &prompt).len(), 4, "a quarter is not bad");
        drafter.judged(Outcome { verified: 4, accepted: 0 });
        assert_eq!(guess(&mut drafter, &prompt), [0u32; 0]);
        drafter.begin(&prompt);
        assert_eq!(guess(&mut drafter, &prompt).len(), 4);
        drafter.n_taken = FULL + 1;
        drafter.begin(&[1, 2, 3]);
        assert_eq!((drafter.n_taken, guess(&mut drafter, &prompt)), (1, vec![]));
    }
}
