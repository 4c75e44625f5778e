//! [`Rollback`]: how recurrent states come back to where they were before a guess that was wrong. [`Undo`] is what a sequence keeps
//! for it.

use std::time::{Duration, Instant};

use engine::batch::Rows;
use engine::memory::{Memory, Slot};

use crate::decoding::{Choices, Decoding};
use crate::draft::Undone;
use crate::error::Result;

/// Longest pause after replays that were wrong again, in steps.
const MAX_PAUSE: u64 = 64;

/// How wrong guesses are taken back. Where no state folds what came before, sequences are just cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rollback {
    /// Inputs of recurrent states are kept until it is sure that they stay: what was wrong is not folded. It takes a session that
    /// is opened for so many tokens ([`engine::session::SessionOptions::n_pending`]).
    Ring,
    /// Slots have two rows of every state ([`engine::session::SessionOptions::two_rows`]): a verification reads one and writes the
    /// other, and behind a wrong guess the sequence is in the first one again, with nothing copied. What was right is fed again, as
    /// with [`Self::Checkpoint`].
    Row {
        /// Most replays of a guess.
        n_tries: u32,
    },
    /// States are copied to host memory before every verification, and back where a part of the guess was wrong; what was right,
    /// and the token behind it, is fed again as a guess in its turn. Should that be wrong again, as it can where logits depend on
    /// the company of a row, it is tried so often; then the sequence goes on without guesses for 2, 4 and up to 64 steps.
    ///
    /// Source: llama.cpp, `tools/server/server-context.cpp`, checkpoints of speculation, with a bound on its replays.
    Checkpoint {
        /// Most replays of a guess.
        n_tries: u32,
    },
}

impl Rollback {
    /// Tokens that a session has to take back from recurrent states, for guesses of `n_drafts`.
    pub fn n_pending(self, n_drafts: usize) -> usize {
        match self {
            Self::Ring => n_drafts,
            Self::Row { .. } | Self::Checkpoint { .. } => 0,
        }
    }

    /// Whether a session's states have two rows in every slot.
    pub fn two_rows(self) -> bool {
        match self {
            Self::Row { .. } => true,
            Self::Ring | Self::Checkpoint { .. } => false,
        }
    }

    /// Most tokens of a guess that can be taken back.
    pub(super) fn revocable(self, memory: &Memory) -> usize {
        match self {
            Self::Ring => memory.revocable(),
            Self::Row { .. } if !memory.keeps_last_call() => 0,
            Self::Row { .. } => usize::MAX,
            Self::Checkpoint { .. } => usize::MAX,
        }
    }

    /// Bytes that a sequence has of states beside its own.
    pub(super) fn copied_bytes(self, memory: &Memory) -> usize {
        match self {
            Self::Ring => 0,
            Self::Row { .. } | Self::Checkpoint { .. } => memory.bytes_of_checkpoint(),
        }
    }

    /// Most replays of a guess, where what was right of it is fed again.
    fn n_tries(self, memory: &Memory) -> Option<u32> {
        match self {
            Self::Ring => None,
            Self::Row { n_tries } | Self::Checkpoint { n_tries } => memory.needs_checkpoints().then_some(n_tries),
        }
    }
}

/// What a sequence keeps to come back, where what was right of a guess is fed again.
#[derive(Default)]
pub(super) struct Undo {
    /// The sequence before the guess at hand.
    before: Option<Before>,
    /// What was right of a guess and the token behind it, to be fed again.
    replay: Option<Vec<u32>>,
    /// Guesses whose replays were all wrong, behind each other.
    misses: u32,
    /// Steps without guesses that are left.
    pausing: u64,
    /// A checkpoint that nobody needs any more.
    stale: Option<usize>,
    /// What coming back took since this was asked for.
    undone: Undone,
}

/// A sequence before a guess.
struct Before {
    n_past: usize,
    choices: Choices,
    /// Tokens of the guess that are verified.
    n_drafts: usize,
    /// Replays that it may still have, and whether one is at hand.
    tries_left: u32,
    is_replay: bool,
    /// What its steps took.
    time: Duration,
    /// Whether there is no copy that was made for it: it was there before, for something else, or the last call left a row.
    is_kept: bool,
}

/// What has become of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// What was chosen stays. So many guessed tokens were verified, in steps that took so long.
    Stays { n_drafts: usize, time: Duration },
    /// The sequence is where it was, and nobody is told anything: what was right is fed again.
    Again,
    /// The sequence is where it was, and goes on without a guess.
    GivenUp { n_drafts: usize, time: Duration },
}

impl Undo {
    /// What to feed in place of a drafter's guess: that of a replay, or nothing in a pause.
    pub(super) fn guess(&mut self) -> Option<Vec<u32>> {
        if let Some(replay) = self.replay.take() {
            return Some(replay);
        }
        let is_pause = self.pausing > 0;
        self.pausing = self.pausing.saturating_sub(1);
        is_pause.then(Vec::new)
    }

    /// Sees to it that a sequence can come back to where it is before `n_drafts` guessed tokens are fed, by a copy of its states
    /// unless these have two rows. Nothing is left to do for a guess that is replayed.
    ///
    /// Errors: those of the backend.
    pub(super) fn save(
        &mut self,
        rollback: Rollback,
        memory: &mut Memory,
        slot: Slot,
        (decoding, n_drafts): (&Decoding, usize),
    ) -> Result<()> {
        let Some(tries_left) = rollback.n_tries(memory).filter(|_| n_drafts > 0 && self.before.is_none()) else {
            return Ok(());
        };
        let start = Instant::now();
        let n_past = memory.n_past(slot)?;
        let is_kept = rollback.two_rows() || memory.checkpoints(slot)?.any(|at| at == n_past);
        if !rollback.two_rows() {
            memory.checkpoint(slot)?;
        }
        let (choices, is_replay, time) = (decoding.choices(), false, Duration::ZERO);
        self.before = Some(Before { n_past, choices, n_drafts, tries_left, is_replay, time, is_kept });
        self.undone.save += start.elapsed();
        Ok(())
    }

    /// Which rows of a step give logits. States that were copied fold all of them.
    pub(super) fn rows(&self, rows: Rows) -> Rows {
        match rows {
            Rows::Drafts(n) if self.before.is_some() => Rows::Tail(n + 1),
            rows => rows,
        }
    }

    /// Judges a step of `n_fed` rows that took so long. Where a part of the guess was wrong, and the text goes on, `decoding` comes
    /// back to where it was.
    pub(super) fn judge(&mut self, decoding: &mut Decoding, n_fed: usize, time: Duration) -> Verdict {
        let event = decoding.event();
        let is_whole = event.accepted == n_fed || event.finish.is_some();
        let Some(mut before) = self.before.take() else { return Verdict::Stays { n_drafts: n_fed - 1, time } };
        before.time += time;
        if before.is_replay {
            self.undone.replay += time;
            self.undone.replays += 1;
        }
        let (n_drafts, time) = (before.n_drafts, before.time);
        let stale = (!before.is_kept).then_some(before.n_past);
        if is_whole {
            (self.stale, self.misses) = (stale, 0);
            return Verdict::Stays { n_drafts, time };
        }
        let right = event.tokens.clone();
        decoding.come_back(&before.choices);
        if before.tries_left == 0 {
            self.stale = stale;
            self.misses += 1;
            self.pausing = 1 << self.misses.min(MAX_PAUSE.ilog2());
            return Verdict::GivenUp { n_drafts, time };
        }
        self.replay = Some(right);
        self.before = Some(Before { tries_left: before.tries_left - 1, is_replay: true, ..before });
        Verdict::Again
    }

    /// Makes memory what the sequence is, of `n_past` tokens.
    ///
    /// Errors: those of [`Memory::rewind`].
    pub(super) fn settle(&mut self, memory: &mut Memory, slot: Slot, n_past: usize) -> engine::Result<()> {
        let start = Instant::now();
        let result = memory.rewind(slot, n_past);
        if self.before.is_some() || self.stale == Some(n_past) {
            self.undone.restore += start.elapsed();
        }
        result
    }

    /// Drops a copy that nobody needs any more.
    pub(super) fn drop_stale(&mut self, memory: &mut Memory, slot: Slot) {
        if let Some(stale) = self.stale.take() {
            // A slot that is gone has none.
            let _ = memory.keep_checkpoints(slot, |at| at != stale);
        }
    }

    /// What coming back took since this was asked for last.
    pub(super) fn take_undone(&mut self) -> Undone {
        std::mem::take(&mut self.undone)
    }
}

#[cfg(test)]
mod tests {
    use crate::decoding::{Prompt, Rules};
    use crate::sample::Sampling;

    use super::*;

    const N_VOCAB: usize = 8;

    /// Logits of which the largest is that of a token.
    fn logits(ids: &[u32]) -> Vec<f32> {
        ids.iter().flat_map(|&id| (0..N_VOCAB).map(move |v| if v == id as usize { 1.0 } else { 0.0 })).collect()
    }

    fn decoding() -> Decoding {
        let rules = Rules {
            sampling: Sampling::default(),
            stop: Vec::new(),
            ignore_stop: true,
            max_tokens: 1000,
            n_usable: N_VOCAB,
            prompt_logits: false,
        };
        let mut decoding = Decoding::new(Prompt::of_ids(&[0]), 0, rules);
        decoding.advance(1, &logits(&[1]), N_VOCAB).unwrap();
        decoding
    }

    /// As [`Undo::save`], without a memory.
    fn save(undo: &mut Undo, decoding: &Decoding, tries_left: u32) {
        let (n_past, n_drafts, time) = (1, 3, Duration::ZERO);
        let choices = decoding.choices();
        undo.before.get_or_insert(Before {
            n_past,
            choices,
            n_drafts,
            tries_left,
            is_replay: false,
            time,
            is_kept: false,
        });
    }

    #[test]
    fn what_was_right_is_fed_again_and_stays() {
        let (mut undo, mut decoding) = (Undo::default(), decoding());
        let ms = Duration::from_millis;
        assert_eq!(undo.guess(), None);
        decoding.draft(&[2, 3, 4]);
        save(&mut undo, &decoding, 2);
        assert_eq!((undo.rows(Rows::Drafts(3)), undo.rows(Rows::Last)), (Rows::Tail(4), Rows::Last));
        // 2 is right, 5 comes in place of 3.
        decoding.advance(4, &logits(&[2, 5, 1, 1]), N_VOCAB).unwrap();
        assert_eq!(undo.judge(&mut decoding, 4, ms(5)), Verdict::Again);
        assert_eq!(decoding.n_generated(), 1);
        let replay = undo.guess().unwrap();
        assert_eq!(replay, [2, 5]);
        decoding.draft(&replay);
        decoding.advance(3, &logits(&[2, 5, 6]), N_VOCAB).unwrap();
        assert_eq!(undo.judge(&mut decoding, 3, ms(3)), Verdict::Stays { n_drafts: 3, time: ms(8) });
        assert_eq!((&decoding.event().tokens[..], decoding.n_generated()), (&[2, 5, 6][..], 4));
        let Undone { replays, replay, .. } = undo.take_undone();
        assert_eq!((replays, replay, undo.stale, undo.guess()), (1, ms(3), Some(1), None));
    }

    /// Logits that are others whenever they are computed again end no text.
    #[test]
    fn replays_are_bounded_and_pauses_grow() {
        let mut undo = Undo::default();
        let mut decoding = decoding();
        for want in [2, 4, 8, 16, 32, 64, 64] {
            for n_tries in 0..=2 {
                let guess = undo.guess().unwrap_or_else(|| vec![2, 3]);
                decoding.draft(&guess);
                save(&mut undo, &decoding, 2);
                let n_fed = 1 + guess.len();
                // The first token is another one every time.
                let other = logits(&vec![4 + n_tries; n_fed]);
                decoding.advance(n_fed, &other, N_VOCAB).unwrap();
                let verdict = undo.judge(&mut decoding, n_fed, Duration::ZERO);
                assert_eq!(verdict == Verdict::Again, n_tries < 2, "{verdict:?}");
                assert_eq!(decoding.n_generated(), 1);
            }
            let pause = std::iter::from_fn(|| undo.guess()).inspect(|guess| assert!(guess.is_empty())).count();
            assert_eq!(pause, want);
        }
    }
}
