//! [`Statistics`]: what came of guesses.

use std::time::Duration;

/// What it took to come back from guesses that were wrong, where recurrent states are copied for it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Undone {
    /// Steps in which what was right of a guess was fed again.
    pub replays: u64,
    /// Time of copying states away.
    pub save: Duration,
    /// Time of copying them back.
    pub restore: Duration,
    /// Time of replays.
    pub replay: Duration,
}

impl Undone {
    /// Adds those of another sequence.
    pub fn add(&mut self, other: &Self) {
        self.replays += other.replays;
        self.save += other.save;
        self.restore += other.restore;
        self.replay += other.replay;
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            replays: self.replays - earlier.replays,
            save: self.save - earlier.save,
            restore: self.restore - earlier.restore,
            replay: self.replay - earlier.replay,
        }
    }
}

/// Counts of a sequence, or of several.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Statistics {
    /// Tokens that drafters proposed, of those that were wanted of them.
    pub proposed: u64,
    /// Those of them that were fed, to be verified.
    pub verified: u64,
    /// Those of them that were right.
    pub accepted: u64,
    /// Tokens that would have been accepted had they been proposed: the model itself had to give them, though they stood in the last
    /// guess of a drafter behind tokens that were all right. They were not verified because lengths followed success and cost, because
    /// of a pause, or because a call or what can be taken back had no room for them. Drafters that guess for next to nothing are asked
    /// in full for this count, a draft model is not. A text's last token is none of them: guessing it saves no step.
    pub missed: u64,
    /// Tokens that came out, guessed or not.
    pub emitted: u64,
    /// Tokens that were fed, or came out, behind what ended the text.
    pub cut: u64,
    /// Guesses that were verified.
    pub drafts: u64,
    /// Steps that gave tokens, the prompt's last one not among them, and steps that were replayed.
    pub steps: u64,
    /// Time of these steps.
    pub stepped: Duration,
    /// Time that drafters took.
    pub drafted: Duration,
    /// Time that as many tokens would have taken one by one, as far as the time of one is known.
    pub plain: Duration,
    /// What wrong guesses took besides their steps.
    pub undone: Undone,
}

impl Statistics {
    /// Tokens of a guess that were right, in the mean.
    pub fn mean_accepted(&self) -> f64 {
        ratio(self.accepted as f64, self.drafts as f64)
    }

    /// Part of the verified tokens that was right.
    pub fn acceptance(&self) -> f64 {
        ratio(self.accepted as f64, self.verified as f64)
    }

    /// How many times faster the text came than token by token; below 1 guessing lost. Nothing where there is too little to say.
    pub fn net_factor(&self) -> Option<f64> {
        let took = self.stepped + self.drafted + self.undone.save + self.undone.restore;
        (!self.plain.is_zero() && !took.is_zero()).then(|| self.plain.as_secs_f64() / took.as_secs_f64())
    }

    /// Adds those of another sequence.
    pub fn add(&mut self, other: &Self) {
        self.proposed += other.proposed;
        self.verified += other.verified;
        self.accepted += other.accepted;
        self.missed += other.missed;
        self.emitted += other.emitted;
        self.cut += other.cut;
        self.drafts += other.drafts;
        self.steps += other.steps;
        self.stepped += other.stepped;
        self.drafted += other.drafted;
        self.plain += other.plain;
        self.undone.add(&other.undone);
    }

    /// What came after these `earlier` ones of the same sequence.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            proposed: self.proposed - earlier.proposed,
            verified: self.verified - earlier.verified,
            accepted: self.accepted - earlier.accepted,
            missed: self.missed - earlier.missed,
            emitted: self.emitted - earlier.emitted,
            cut: self.cut - earlier.cut,
            drafts: self.drafts - earlier.drafts,
            steps: self.steps - earlier.steps,
            stepped: self.stepped - earlier.stepped,
            drafted: self.drafted - earlier.drafted,
            plain: self.plain - earlier.plain,
            undone: self.undone.since(&earlier.undone),
        }
    }
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

impl std::fmt::Display for Statistics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { proposed, verified, accepted, missed, emitted, cut, drafts, steps, .. } = self;
        write!(f, "{proposed} tokens proposed, {verified} verified in {drafts} drafts, {accepted} accepted")?;
        write!(
            f,
            " ({:.2} of a draft), {missed} would have been accepted had they been proposed",
            self.mean_accepted()
        )?;
        write!(f, ", {cut} cut, {emitted} emitted in {steps} steps")?;
        let Undone { replays, save, restore, replay } = self.undone;
        if !save.is_zero() {
            let ms = |time: Duration| time.as_secs_f64() * 1e3 / (*drafts).max(1) as f64;
            write!(f, ", {replays} replays, of a draft {:.2} ms to save states", ms(save))?;
            write!(f, ", {:.2} to restore them, {:.2} to replay", ms(restore), ms(replay))?;
        }
        match self.net_factor() {
            Some(factor) => write!(f, ", net factor {factor:.2}"),
            None => Ok(()),
        }
    }
}
