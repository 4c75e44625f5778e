//! [`Length`]: how long the guesses of one drafter may be, by how many were right and what verifying them costs.

use super::{Costs, Outcome};

/// The first guess.
const FIRST: usize = 8;
/// Guesses double where at least this part was right, and halve below the other.
const GROWS: f64 = 0.8;
const SHRINKS: f64 = 0.3;
/// Losing rounds behind each other after which a drafter pauses.
const MAX_LOST: u32 = 3;
/// Steps of the first pause; every further one that ends in a loss is twice as long.
const FIRST_PAUSE: u64 = 16;
const MAX_PAUSE: u64 = 512;
/// What older guesses count for beside the next one.
const MEMORY: f64 = 0.8;
/// What is assumed of a drafter: as if it had been right so often of so many tokens.
const ASSUMED: [f64; 2] = [1.4, 2.0];

/// The state of one drafter in one sequence.
#[derive(Clone, Debug)]
pub(super) struct Length {
    /// Most tokens of the next guess.
    most: usize,
    /// Tokens that were right, and that were judged, older ones counting less.
    right: f64,
    judged: f64,
    /// Losing rounds behind each other.
    lost: u32,
    /// Steps that it still pauses, and those of its next pause.
    pausing: u64,
    next_pause: u64,
}

impl Length {
    pub(super) fn new() -> Self {
        let [right, judged] = ASSUMED;
        Self { most: FIRST, right, judged, lost: 0, pausing: 0, next_pause: FIRST_PAUSE }
    }

    /// How many tokens of a guess of up to `n` are worth verifying in a step, as [`Length::worth`] has it; none while it pauses,
    /// which it does where none are.
    pub(super) fn ask(&mut self, n: usize, n_others: usize, token_s: f64, costs: &Costs) -> usize {
        if self.pausing > 0 {
            self.pausing -= 1;
            return 0;
        }
        let worth = self.worth(n, n_others, token_s, costs);
        if worth == 0 && n > 0 && costs.estimate(n_others).is_some() {
            self.pause();
        }
        worth
    }

    /// Begins a pause. What is proposed behind it is short.
    fn pause(&mut self) {
        self.pausing = self.next_pause;
        self.next_pause = (2 * self.next_pause).min(MAX_PAUSE);
        let [right, judged] = ASSUMED;
        (self.right, self.judged, self.most) = (right, judged, 1);
    }

    /// How likely the next token of a guess is right, if those before it are.
    fn likely(&self) -> f64 {
        self.right / self.judged
    }

    /// Of a guess of `n` tokens, how many to verify beside `n_others` rows that are fed anyway, all of which give a token: as many
    /// as give most tokens in their time. `token_s`: seconds that the drafter takes for each.
    pub(super) fn worth(&self, n: usize, n_others: usize, token_s: f64, costs: &Costs) -> usize {
        let Some(plain) = costs.estimate(n_others) else { return 0 };
        let mut best = (n_others as f64 / plain.max(f64::MIN_POSITIVE), 0);
        // Of the guess alone.
        let (mut expected, mut likely) = (0.0, 1.0);
        for k in 1..=n.min(self.most) {
            likely *= self.likely();
            expected += likely;
            let time = costs.estimate(n_others + k).unwrap_or(plain) + token_s * k as f64;
            let rate = (n_others as f64 + expected) / time.max(f64::MIN_POSITIVE);
            if rate > best.0 {
                best = (rate, k);
            }
        }
        best.1
    }

    /// Takes note of what became of a guess that was verified beside `n_others` rows.
    pub(super) fn judged(&mut self, outcome: Outcome, n_others: usize, costs: &Costs) {
        let Outcome { verified, accepted } = outcome;
        if verified == 0 {
            return;
        }
        let n_judged = (accepted + 1).min(verified);
        self.right = self.right * MEMORY + accepted as f64;
        self.judged = self.judged * MEMORY + n_judged as f64;
        let part = accepted as f64 / verified as f64;
        if part >= GROWS {
            // A guess that was shorter than it might have been says nothing about longer ones.
            self.most = self.most.max((2 * verified).min(self.most * 2));
        } else if part < SHRINKS {
            self.most = (self.most / 2).max(1);
        }
        let time = |n| costs.measured(n).map(|t| t.as_secs_f64()).or_else(|| costs.estimate(n)).unwrap_or(0.0);
        let (with, without) = (time(n_others + verified), time(n_others));
        let gained = (n_others + accepted) as f64 * without >= n_others as f64 * with;
        if gained && accepted > 0 {
            (self.lost, self.next_pause) = (0, FIRST_PAUSE);
            return;
        }
        self.lost += 1;
        if self.lost >= MAX_LOST {
            // One more loss behind it, and it pauses again.
            self.lost = MAX_LOST - 1;
            self.pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Steps whose time is `1 + slope (n - 1)`.
    fn costs(slope: f64) -> Costs {
        let mut costs = Costs::default();
        (1..=65usize).for_each(|n| costs.record(n, Duration::from_secs_f64(0.04 * (1.0 + slope * (n - 1) as f64))));
        costs
    }

    /// Rows that were fed in `n` steps, guesses of which so many are right; what it took, in plain steps.
    fn run(n: usize, slope: f64, right: usize) -> (usize, f64, Vec<usize>) {
        let costs = costs(slope);
        let mut length = Length::new();
        let (mut emitted, mut time, mut lengths) = (0, 0.0, Vec::new());
        while emitted < n {
            let k = length.ask(64, 1, 0.0, &costs);
            let accepted = right.min(k);
            length.judged(Outcome { verified: k, accepted }, 1, &costs);
            emitted += 1 + accepted;
            time += 1.0 + slope * k as f64;
            lengths.push(k);
        }
        (emitted, time, lengths)
    }

    #[test]
    fn a_drafter_that_is_always_wrong_costs_little() {
        for slope in [0.05, 0.2, 0.4, 0.5] {
            let (emitted, time, lengths) = run(512, slope, 0);
            assert!(emitted as f64 / time >= 0.95, "slope {slope}: {time} for {emitted}, {lengths:?}");
            assert!(lengths.iter().filter(|&&k| k > 0).count() >= 3 || slope > 0.4, "{lengths:?}");
        }
    }

    #[test]
    fn a_drafter_that_is_always_right_is_asked_for_more_and_more() {
        let (emitted, time, lengths) = run(512, 0.1, usize::MAX);
        assert_eq!(lengths[..4], [4, 8, 16, 32], "{lengths:?}");
        assert!(emitted as f64 / time > 5.0);
    }

    #[test]
    fn guesses_are_as_long_as_they_are_right() {
        let (emitted, time, lengths) = run(512, 0.3, 3);
        let last = *lengths.last().unwrap();
        assert!((2..=6).contains(&last), "{lengths:?}");
        assert!(emitted as f64 / time > 1.3, "{emitted} in {time}");
    }

    #[test]
    fn where_rows_cost_as_much_as_steps_nothing_is_guessed() {
        let (emitted, time, lengths) = run(512, 1.0, 1);
        assert!(emitted as f64 / time >= 0.98, "{lengths:?}");
    }

    #[test]
    fn nothing_is_guessed_before_a_step_was_measured() {
        let mut length = Length::new();
        assert!((0..100).all(|_| length.ask(8, 1, 0.0, &Costs::default()) == 0));
        assert!(length.ask(8, 1, 0.0, &costs(0.1)) > 0);
    }
}
