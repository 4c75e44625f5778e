//! [`Speculation`]: the drafters of one sequence, how long their guesses may be, and what came of them. [`Drafters`] makes one for
//! every sequence.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::length::Length;
use super::model::{DraftModel, ModelDrafter};
use super::{
    Automaton, Costs, Drafter, Kind, MapK, MapK4v, Modular, NO_TOKEN, NgramCache, NgramCounts, Outcome, Parameters,
    Simple, Statistics, Undone, common,
};
use crate::error::{Error, Result};

/// What the drafters of several sequences share.
#[derive(Clone, Default)]
pub struct Shared {
    /// What earlier histories taught `ngram-cache`.
    pub earlier: Arc<Mutex<NgramCounts>>,
    /// What a collection of texts taught it.
    pub texts: Arc<NgramCounts>,
    /// The draft model, where there is one.
    pub model: Option<Arc<DraftModel>>,
}

/// Makes the drafters of sequences.
#[derive(Clone)]
pub struct Drafters {
    parameters: Parameters,
    shared: Shared,
    is_apart: bool,
}

impl Drafters {
    /// Errors: `Argument` for a draft model that is asked for and is not there.
    pub fn new(mut parameters: Parameters, shared: Shared) -> Result<Self> {
        parameters.kinds.sort_unstable();
        parameters.kinds.dedup();
        if parameters.kinds.contains(&Kind::DraftModel) && shared.model.is_none() {
            let what = format!("{} needs a draft model", Kind::DraftModel.name());
            return Err(Error::Argument { name: "drafters", what });
        }
        Ok(Self { parameters, shared, is_apart: false })
    }

    /// The same, where no sequence learns from others: how long a text takes says nothing about those of other people.
    pub fn apart(mut self) -> Self {
        self.is_apart = true;
        self
    }

    /// Which drafters they are, and their sizes.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// What they share.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Bytes of the draft model's file, where there is one.
    pub fn weights_bytes(&self) -> usize {
        self.shared.model.as_ref().map_or(0, |model| model.weights_bytes())
    }

    /// Bytes of what the draft model remembers of a sequence of so many tokens, where there is one.
    pub fn state_bytes(&self, n_tokens: usize) -> usize {
        self.shared.model.as_ref().map_or(0, |model| model.state_bytes(n_tokens))
    }

    /// The drafters of a sequence that begins with this prompt, where ids below 0 stand for vectors.
    ///
    /// Errors: the draft model has no slot for another sequence.
    pub fn speculation(&self, prompt: &[i32]) -> Result<Speculation> {
        let p = &self.parameters;
        let make = |kind: &Kind| -> Result<Entry> {
            let drafter: Box<dyn Drafter> = match kind {
                Kind::NgramSimple => Box::new(Simple::new(p.simple.n, p.simple.m)),
                Kind::NgramMapK => Box::new(MapK::new(p.map_k.n, p.map_k.m)),
                Kind::NgramMapK4v => Box::new(MapK4v::new(p.map_k4v.n, p.map_k4v.m, p.map_k4v.min_hits)),
                Kind::NgramMod => Box::new(Modular::new(p.mod_n, p.modular.min, p.modular.max)),
                Kind::NgramCache => {
                    let earlier = if self.is_apart { Arc::default() } else { Arc::clone(&self.shared.earlier) };
                    Box::new(NgramCache::new(earlier, Arc::clone(&self.shared.texts)))
                }
                Kind::Suffix => Box::new(Automaton::new(p.suffix.n, p.suffix.m)),
                Kind::DraftModel => {
                    let model = self.shared.model.as_ref().expect("`new` saw to it");
                    Box::new(ModelDrafter::new(Arc::clone(model), p.model_p_min)?)
                }
            };
            let min = if *kind == Kind::DraftModel { p.model.min.max(p.min) } else { p.min };
            Ok(Entry::new(drafter, min, p.most(*kind)))
        };
        let entries = p.kinds.iter().map(make).collect::<Result<_>>()?;
        Ok(Speculation::of(entries, p.adapts, prompt))
    }
}

/// A drafter and how long its guesses may be.
struct Entry {
    drafter: Box<dyn Drafter>,
    min: usize,
    max: usize,
    length: Length,
    /// Seconds that it takes for a token.
    token_s: f64,
    /// Its last guess, behind the tokens that came since, as long as these are right.
    known: Vec<u32>,
}

impl Entry {
    fn new(drafter: Box<dyn Drafter>, min: usize, max: usize) -> Self {
        Self { drafter, min, max, length: Length::new(), token_s: 0.0, known: Vec::new() }
    }

    /// Takes note of what came. Returns how many tokens of it were known.
    fn follow(&mut self, tokens: &[u32]) -> usize {
        let n = common(&self.known, tokens);
        self.known.drain(..if n == tokens.len() { n } else { self.known.len() });
        n
    }
}

/// What older times of a drafter count for beside the next one.
const MEMORY: f64 = 0.8;

/// The drafters of one sequence.
pub struct Speculation {
    /// All tokens so far.
    history: Vec<u32>,
    entries: Vec<Entry>,
    adapts: bool,
    guess: Vec<u32>,
    /// Whose guess it is.
    by: Option<usize>,
    statistics: Statistics,
}

impl std::fmt::Debug for Speculation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Speculation").field("guess", &self.guess).field("statistics", &self.statistics).finish()
    }
}

impl Speculation {
    /// One drafter of a caller's own, whose guesses of at most `max` tokens are verified whole, whatever comes of them, unless they
    /// are to follow success and cost. For measuring and for tests.
    pub fn with(drafter: Box<dyn Drafter>, max: usize, adapts: bool, prompt: &[i32]) -> Self {
        Self::of(vec![Entry::new(drafter, 0, max)], adapts, prompt)
    }

    fn of(mut entries: Vec<Entry>, adapts: bool, prompt: &[i32]) -> Self {
        let history: Vec<u32> = prompt.iter().map(|&id| u32::try_from(id).unwrap_or(NO_TOKEN)).collect();
        entries.iter_mut().for_each(|entry| entry.drafter.begin(&history));
        let (guess, by, statistics) = Default::default();
        Self { history, entries, adapts, guess, by, statistics }
    }

    /// What came of its guesses so far.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Guesses tokens for a step in which `n_others` rows are fed anyway, that of the last token among them.
    pub(crate) fn propose(&mut self, room: Room, n_others: usize, costs: &Costs) -> &[u32] {
        let Self { history, entries, adapts, guess, by: by_whom, statistics } = self;
        guess.clear();
        *by_whom = None;
        for (by, entry) in entries.iter_mut().enumerate() {
            let most = room.of_step.min(entry.max);
            let wanted = if *adapts { entry.length.ask(most, n_others, entry.token_s, costs) } else { most };
            let wanted = if wanted < entry.min { 0 } else { wanted };
            let is_cheap = entry.drafter.is_cheap();
            if wanted == 0 && !is_cheap {
                continue;
            }
            let start = Instant::now();
            entry.drafter.draft(history, if is_cheap { entry.max } else { wanted }, guess);
            let took = start.elapsed();
            statistics.proposed += guess.len().min(wanted) as u64;
            if guess.len() < entry.min {
                guess.clear();
            }
            if !guess.is_empty() {
                entry.known.clear();
                entry.known.extend(guess.iter().take(room.of_text.min(entry.max)));
                entry.token_s = MEMORY * entry.token_s + (1.0 - MEMORY) * took.as_secs_f64() / guess.len() as f64;
                let n = guess.len().min(wanted);
                // It is made already.
                guess.truncate(if *adapts { entry.length.worth(n, n_others, 0.0, costs) } else { n });
            }
            statistics.drafted += took;
            if !guess.is_empty() {
                *by_whom = Some(by);
                break;
            }
        }
        guess
    }

    /// Takes note of what a step gave: of the guess `n_fed` tokens were fed, and these tokens came out, then `stop`, where a token
    /// ended the text. `time`: that of the step.
    pub(crate) fn judged(&mut self, n_fed: usize, tokens: &[u32], stop: Option<u32>, step: Step<'_>) {
        let Self { history, entries, guess, by, statistics, .. } = self;
        history.extend_from_slice(tokens);
        let fed = &guess[..n_fed.min(guess.len())];
        let accepted = common(fed, tokens);
        statistics.steps += 1;
        statistics.emitted += tokens.len() as u64;
        statistics.accepted += accepted as u64;
        let known = entries.iter_mut().map(|entry| entry.follow(tokens)).max().unwrap_or(0);
        statistics.missed += known.saturating_sub(accepted) as u64;
        statistics.verified += fed.len() as u64;
        statistics.drafts += u64::from(!fed.is_empty());
        let Step { n_others, time, costs } = step;
        if let Some(plain) = costs.measured(n_others) {
            statistics.stepped += time;
            statistics.plain += plain * u32::try_from(tokens.len()).expect("a step has far fewer tokens");
        }
        if stop.is_some() && fed.get(accepted).copied() == stop {
            statistics.cut += (fed.len() - accepted) as u64;
        }
        if let Some(by) = by.take() {
            let outcome = Outcome { verified: fed.len(), accepted };
            entries[by].drafter.judged(outcome);
            entries[by].length.judged(outcome, n_others, costs);
        }
        guess.clear();
    }

    /// Takes note of what it took to come back from guesses that were wrong.
    pub(crate) fn undone(&mut self, undone: &Undone) {
        self.statistics.undone.add(undone);
        self.statistics.steps += undone.replays;
    }

    /// Takes note of the tokens that a prompt gave.
    pub(crate) fn began(&mut self, tokens: &[u32]) {
        self.history.extend_from_slice(tokens);
        self.statistics.emitted += tokens.len() as u64;
    }
}

/// How many tokens of a guess have room.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// Before the text's last token.
    pub of_text: usize,
    /// In the step at hand: no more than before the text's last token.
    pub of_step: usize,
}

/// A step as a sequence sees it.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    /// Rows that are fed anyway.
    pub n_others: usize,
    /// What it took.
    pub time: Duration,
    /// What steps take.
    pub costs: &'a Costs,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows a text.
    struct Script(Vec<u32>);

    impl Drafter for Script {
        fn begin(&mut self, _: &[u32]) {}

        fn draft(&mut self, history: &[u32], max: usize, guess: &mut Vec<u32>) {
            guess.extend(self.0[history.len()..].iter().take(max));
        }
    }

    fn judge(speculation: &mut Speculation, n_fed: usize, tokens: &[u32]) {
        let (time, costs) = (Duration::ZERO, &Costs::default());
        speculation.judged(n_fed, tokens, None, Step { n_others: 1, time, costs });
    }

    fn propose(speculation: &mut Speculation, of_text: usize, of_step: usize) -> Vec<u32> {
        speculation.propose(Room { of_text, of_step }, 1, &Costs::default()).to_vec()
    }

    fn missed(speculation: &Speculation) -> u64 {
        speculation.statistics().missed
    }

    #[test]
    fn what_was_known_and_not_verified_is_counted_once() {
        let text: Vec<u32> = (0..12).collect();
        let open = |adapts| Speculation::with(Box::new(Script(text.clone())), 4, adapts, &[0]);
        let mut speculation = open(false);
        // Two of four have room, and the third comes from the model.
        assert_eq!(propose(&mut speculation, 10, 2), [1, 2]);
        judge(&mut speculation, 2, &[1, 2, 3]);
        assert_eq!((missed(&speculation), speculation.statistics().proposed), (1, 2));
        // All of them are verified.
        assert_eq!(propose(&mut speculation, 7, 7), [4, 5, 6, 7]);
        judge(&mut speculation, 4, &[4, 5, 6, 7, 8]);
        assert_eq!(missed(&speculation), 1);
        // Wrong from the second on: the model's own token was not known.
        assert_eq!(propose(&mut speculation, 2, 1), [9]);
        judge(&mut speculation, 1, &[9, 77]);
        assert_eq!(missed(&speculation), 1);
        // The last token has nothing behind it.
        let mut speculation = open(false);
        assert_eq!(propose(&mut speculation, 1, 0), [0u32; 0]);
        judge(&mut speculation, 0, &[1]);
        assert_eq!(propose(&mut speculation, 0, 0), [0u32; 0]);
        judge(&mut speculation, 0, &[2]);
        assert_eq!(missed(&speculation), 1);
        // As long as no step was measured, nothing is proposed.
        let mut speculation = open(true);
        for (i, token) in (1..=5).enumerate() {
            assert_eq!(propose(&mut speculation, 10 - i, 10 - i), [0u32; 0]);
            judge(&mut speculation, 0, &[token]);
        }
        let Statistics { missed, proposed, accepted, .. } = *speculation.statistics();
        assert_eq!((missed, proposed, accepted), (5, 0, 0));
    }

    #[test]
    fn another_drafters_wrong_guess_hides_nothing() {
        let text: Vec<u32> = (0..12).collect();
        let wrong: Vec<u32> = (0..12).map(|i| 50 + i).collect();
        let entry = |script: &[u32], min| Entry::new(Box::new(Script(script.to_vec())), min, 4);
        // The first one's guesses are too short for what has room.
        let mut speculation = Speculation::of(vec![entry(&text, 3), entry(&wrong, 0)], false, &[0]);
        assert_eq!(propose(&mut speculation, 9, 2), [51, 52]);
        judge(&mut speculation, 2, &[1]);
        assert_eq!(missed(&speculation), 1);
    }
}
