//! [`Oracle`]: a drafter that knows the text, to measure with.

use super::{Drafter, common};

/// Proposes `k` tokens of a known continuation, the last ones wrong, so that every step gives `mean` tokens in the mean, the
/// model's own among them. The text stays what it is.
pub struct Oracle {
    /// Prompt and continuation.
    text: Vec<u32>,
    k: usize,
    mean: f64,
    n_drafts: usize,
    /// Another token for every one.
    n_vocab: u32,
}

impl Oracle {
    /// `mean`: 1, where every guess is wrong from its first token on, to `k + 1`.
    pub fn new(text: Vec<u32>, k: usize, mean: f64, n_vocab: u32) -> Self {
        Self { text, k, mean, n_drafts: 0, n_vocab }
    }
}

impl Drafter for Oracle {
    fn begin(&mut self, _: &[u32]) {}

    fn draft(&mut self, history: &[u32], max: usize, guess: &mut Vec<u32>) {
        if common(&self.text, history) < history.len() {
            return;
        }
        // Whole tokens whose mean over all guesses so far is what was asked for.
        let upto = |n: usize| (n as f64 * (self.mean - 1.0)).round() as usize;
        let n_right = upto(self.n_drafts + 1) - upto(self.n_drafts);
        let known = self.text[history.len()..].iter().take(self.k.min(max));
        let wrong = |id: u32| if id + 1 < self.n_vocab { id + 1 } else { 0 };
        guess.extend(known.enumerate().map(|(i, &id)| if i < n_right { id } else { wrong(id) }));
        self.n_drafts += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_where_the_mean_wants_them() {
        let text: Vec<u32> = (0..1000).map(|i| i % 50).collect();
        for mean in [1.0, 2.5, 4.0, 5.0] {
            let mut oracle = Oracle::new(text.clone(), 4, mean, 50);
            let (mut at, mut n_steps) = (1, 0);
            while at < 900 {
                let mut guess = Vec::new();
                oracle.draft(&text[..at], 4, &mut guess);
                assert_eq!(guess.len(), 4);
                at += 1 + common(&guess, &text[at..]);
                n_steps += 1;
            }
            let got = f64::from(at as u32 - 1) / f64::from(n_steps);
            assert!((got - mean).abs() < 0.02, "{mean}: {got}");
        }
    }
}
