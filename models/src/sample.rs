//! Choosing the next token from logits: [`greedy`], or at random with a [`Sampler`].

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

/// Logits with a NaN or with +infinity among them: what computed them is broken, and no choice among them means anything.
/// -infinity is a logit like any other: that of what is never to be chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotFinite;

impl std::fmt::Display for NotFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("logits that are not finite")
    }
}

impl std::error::Error for NotFinite {}

/// The index of the largest logit, the first of equals.
///
/// Errors: [`NotFinite`].
pub fn greedy(logits: &[f32]) -> Result<usize, NotFinite> {
    let mut best = 0;
    let mut largest = f32::NEG_INFINITY;
    let mut are_finite = true;
    for (i, &x) in logits.iter().enumerate() {
        are_finite &= x < f32::INFINITY;
        if x > largest {
            (best, largest) = (i, x);
        }
    }
    if are_finite { Ok(best) } else { Err(NotFinite) }
}

/// What narrows the choice, or changes its shares. Penalties come before all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// [`Sampling::temperature`].
    Temperature,
    /// [`Sampling::top_k`].
    TopK,
    /// [`Sampling::top_p`].
    TopP,
    /// [`Sampling::min_p`].
    MinP,
}

impl Step {
    /// Number of steps.
    pub const N: usize = 4;

    /// The order of transformers, [`Sampling`]'s own.
    pub const OF_TRANSFORMERS: [Option<Self>; Self::N] =
        [Some(Self::Temperature), Some(Self::TopK), Some(Self::TopP), Some(Self::MinP)];

    /// The order of llama.cpp. Source: llama.cpp, `common/common.h`, `common_params_sampling`.
    pub const OF_LLAMA_CPP: [Option<Self>; Self::N] =
        [Some(Self::TopK), Some(Self::TopP), Some(Self::MinP), Some(Self::Temperature)];
}

/// How tokens are drawn. The default is greedy.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the largest one.
    pub temperature: f32,
    /// Only so many of the largest logits are kept, and those equal to the last of them; 0 keeps all.
    pub top_k: usize,
    /// Only the most likely tokens are kept that together have this probability, at least one; 1 keeps all.
    pub top_p: f32,
    /// Only tokens are kept that are at least so likely, as a share of the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Logits of tokens of the prompt and of those that were generated are divided by it, negative ones multiplied; 1 changes
    /// nothing.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that were generated, however often; 0 changes nothing.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens as often as they were generated; 0 changes nothing.
    pub frequency_penalty: f32,
    /// Penalties look at so many tokens, the last ones of prompt and answer; `None` at all of them.
    pub penalty_last_n: Option<usize>,
    /// What is done in which order; what is not among it is not done, but a temperature of 0 takes the largest logit always.
    pub order: [Option<Step>; Step::N],
    /// Where the random numbers begin.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_last_n: None,
            order: Step::OF_TRANSFORMERS,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Whether what came before changes the logits.
    fn has_penalties(&self) -> bool {
        let changes = self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0;
        changes && self.penalty_last_n != Some(0)
    }
}

/// Draws one token after the other. Equal settings, prompts and logits give equal tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: Random,
    /// Candidates and their probabilities, from the most likely on.
    candidates: Vec<(usize, f64)>,
    /// Tokens that came before: how often, and how often they were generated; empty without penalties.
    seen: BTreeMap<usize, [u32; 2]>,
    /// The last of them, and whether they were generated; empty where all count.
    last: VecDeque<(usize, bool)>,
    /// Added to the logits of some tokens.
    bias: Vec<(usize, f32)>,
    /// Logits with penalties.
    penalized: Vec<f32>,
}

impl Sampler {
    /// A sampler at the beginning of its random numbers.
    pub fn new(sampling: Sampling) -> Self {
        let (candidates, seen, last, bias, penalized) = Default::default();
        Self { sampling, random: Random(sampling.seed), candidates, seen, last, bias, penalized }
    }

    /// Adds to the logits of some tokens, before anything else; -infinity keeps a token from being chosen.
    pub fn set_bias(&mut self, bias: &[(u32, f32)]) {
        self.bias = bias.iter().map(|&(id, x)| (id as usize, x)).collect();
    }

    /// Takes note of a token of the prompt.
    pub fn see(&mut self, id: usize) {
        self.count(id, false);
    }

    /// Takes note of a token.
    fn count(&mut self, id: usize, is_generated: bool) {
        if !self.sampling.has_penalties() {
            return;
        }
        let [n_seen, n_generated] = self.seen.entry(id).or_default();
        *n_seen += 1;
        *n_generated += u32::from(is_generated);
        let Some(most) = self.sampling.penalty_last_n else { return };
        self.last.push_back((id, is_generated));
        if self.last.len() > most
            && let Some((id, was_generated)) = self.last.pop_front()
            && let Some([n_seen, n_generated]) = self.seen.get_mut(&id)
        {
            *n_seen -= 1;
            *n_generated -= u32::from(was_generated);
            if *n_seen == 0 {
                self.seen.remove(&id);
            }
        }
    }

    /// The index of the chosen logit, drawn from [`Sampler::probabilities`]. It counts as generated from now on.
    ///
    /// Errors: [`NotFinite`].
    pub fn choose(&mut self, logits: &[f32]) -> Result<usize, NotFinite> {
        self.probabilities(logits)?;
        let mut left = self.random.uniform();
        let drawn = self.candidates.iter().find(|(_, p)| {
            left -= p;
            left < 0.0
        });
        // Rounding may leave a little more than all candidates have together.
        let (chosen, _) = *drawn.or(self.candidates.last()).expect("there is always a candidate");
        self.count(chosen, true);
        Ok(chosen)
    }

    /// The indices that can be drawn, each with its probability, from the most likely on. In this order: bias, repetition
    /// penalty, presence and frequency penalty, then [`Sampling::order`]: temperature, the largest `top_k`, the most likely that
    /// reach `top_p`, those above `min_p`.
    ///
    /// Errors: [`NotFinite`].
    ///
    /// Source: transformers, `RepetitionPenaltyLogitsProcessor`, `TemperatureLogitsWarper`, `TopKLogitsWarper`,
    /// `TopPLogitsWarper`, `MinPLogitsWarper` in the order in which `GenerationMixin` applies them; the other penalties: OpenAI,
    /// API reference, "Frequency and presence penalties".
    pub fn probabilities(&mut self, logits: &[f32]) -> Result<&[(usize, f64)], NotFinite> {
        let Sampling { temperature, order, .. } = self.sampling;
        let mut logits = logits;
        if self.sampling.has_penalties() || !self.bias.is_empty() {
            greedy(logits)?;
            self.penalize(logits);
            logits = &self.penalized;
        }
        let best = greedy(logits)?;
        let largest = logits.get(best).copied().unwrap_or(f32::NEG_INFINITY);
        let candidates = &mut self.candidates;
        candidates.clear();
        // Where all are -infinity there is no softmax.
        if temperature <= 0.0 || largest == f32::NEG_INFINITY {
            candidates.push((best, 1.0));
            return Ok(candidates);
        }
        // Logits, the largest of which is 0 whatever is done to them.
        candidates.extend(logits.iter().enumerate().map(|(i, &x)| (i, f64::from(x) - f64::from(largest))));
        order.into_iter().flatten().for_each(|step| narrow(candidates, step, &self.sampling));
        candidates.sort_unstable_by(descending);
        candidates.iter_mut().for_each(|(_, x)| *x = x.exp());
        let kept: f64 = candidates.iter().map(|(_, p)| p).sum();
        candidates.iter_mut().for_each(|(_, p)| *p /= kept);
        Ok(candidates)
    }

    /// Makes `penalized` of the logits.
    fn penalize(&mut self, logits: &[f32]) {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        self.penalized.clear();
        self.penalized.extend_from_slice(logits);
        for &(id, bias) in &self.bias {
            if let Some(x) = self.penalized.get_mut(id) {
                *x += bias;
            }
        }
        for (&id, &[_, n_generated]) in &self.seen {
            let Some(x) = self.penalized.get_mut(id) else { continue };
            *x = if *x < 0.0 { *x * repetition_penalty } else { *x / repetition_penalty };
            if n_generated > 0 {
                *x -= presence_penalty + frequency_penalty * n_generated as f32;
            }
        }
    }
}

/// From the largest logit on, of equals the first.
fn descending(a: &(usize, f64), b: &(usize, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Does one step to indices with their logits, the largest of which is 0.
fn narrow(candidates: &mut Vec<(usize, f64)>, step: Step, sampling: &Sampling) {
    let &Sampling { temperature, top_k, top_p, min_p, .. } = sampling;
    match step {
        Step::Temperature => candidates.iter_mut().for_each(|(_, x)| *x /= f64::from(temperature)),
        Step::TopK if top_k > 0 && top_k < candidates.len() => {
            let (_, &mut (_, least), _) = candidates.select_nth_unstable_by(top_k - 1, descending);
            candidates.retain(|&(_, x)| x.total_cmp(&least) != Ordering::Less);
        }
        Step::TopP if top_p < 1.0 => {
            candidates.sort_unstable_by(descending);
            let sum: f64 = candidates.iter().map(|(_, x)| x.exp()).sum();
            let mut kept = 0.0;
            let n_kept = candidates.iter().position(|(_, x)| {
                kept += x.exp();
                kept >= f64::from(top_p) * sum
            });
            candidates.truncate(n_kept.map_or(candidates.len(), |last| last + 1));
        }
        // The first is 1.
        Step::MinP => candidates.retain(|&(_, x)| x.exp() >= f64::from(min_p)),
        Step::TopK | Step::TopP => {}
    }
}

/// SplitMix64. Source: Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.0;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1), a multiple of `2^-53`.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_wins() {
        assert_eq!(greedy(&[0.0, 3.0, 3.0, -1.0]), Ok(1));
        assert_eq!(greedy(&[f32::NEG_INFINITY, -5.0, f32::NEG_INFINITY, -4.0]), Ok(3));
        assert_eq!(greedy(&[f32::NEG_INFINITY; 3]), Ok(0));
    }

    #[test]
    fn random_numbers_are_the_published_ones() {
        let mut random = Random(1_234_567);
        let want = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(want.map(|_| random.next()), want);
    }

    const LOGITS: [f32; 6] = [1.0, f32::NEG_INFINITY, 2.5, -1.0, 2.5, 0.0];

    /// How often each index is drawn.
    fn shares(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        const N: usize = 100_000;
        let mut sampler = Sampler::new(sampling);
        let mut counts = vec![0; logits.len()];
        for _ in 0..N {
            counts[sampler.choose(logits).unwrap()] += 1;
        }
        counts.into_iter().map(|n| f64::from(n) / N as f64).collect()
    }

    /// Shares of the indices in `kept` by the definition.
    fn softmax(temperature: f64, kept: &[usize]) -> Vec<f64> {
        let weight = |i: &usize| (f64::from(LOGITS[*i]) / temperature).exp();
        let sum: f64 = kept.iter().map(weight).sum();
        (0..LOGITS.len()).map(|i| if kept.contains(&i) { weight(&i) / sum } else { 0.0 }).collect()
    }

    #[test]
    fn tokens_are_drawn_as_likely_as_they_are() {
        let sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        for (sampling, kept) in [
            (sampling, &[0, 2, 3, 4, 5][..]),
            (Sampling { temperature: 2.5, ..sampling }, &[0, 2, 3, 4, 5]),
            (Sampling { temperature: 0.3, ..sampling }, &[0, 2, 3, 4, 5]),
            // The second and the third are equally likely.
            (Sampling { top_k: 1, ..sampling }, &[2, 4]),
            (Sampling { top_k: 3, ..sampling }, &[0, 2, 4]),
            (Sampling { top_k: 100, ..sampling }, &[0, 2, 3, 4, 5]),
            // 0.428, 0.428, 0.096, 0.035, 0.013 at temperature 1: the first that reach the share stay.
            (Sampling { top_p: 0.40, ..sampling }, &[2]),
            (Sampling { top_p: 0.80, ..sampling }, &[2, 4]),
            (Sampling { top_p: 0.95, ..sampling }, &[0, 2, 4]),
            (Sampling { top_p: 0.0, ..sampling }, &[2]),
            // Among the three of top_k the first two have 0.900 of the probability.
            (Sampling { top_k: 3, top_p: 0.89, ..sampling }, &[2, 4]),
        ] {
            let got = shares(sampling, &LOGITS);
            let want = softmax(f64::from(sampling.temperature), kept);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                // Five standard deviations of a share of 1/2 in 100,000 draws.
                assert!((got - want).abs() < 0.008, "{sampling:?}, {i}: want {want}, got {got}");
                assert!(*want > 0.0 || *got == 0.0, "{sampling:?}, {i} is left out");
                // A share of 1e-3 is drawn a hundred times.
                assert!(*want < 1e-3 || *got > 0.0, "{sampling:?}, {i} is never drawn");
            }
        }
    }

    #[test]
    fn penalties_count_what_was_generated() {
        let sampling = Sampling { presence_penalty: 2.0, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling);
        sampler.see(2);
        // The prompt is no reason; once generated, the next best comes until its turn is over too.
        let drawn: Vec<usize> = (0..5).map(|_| sampler.choose(&LOGITS).unwrap()).collect();
        assert_eq!(drawn, [2, 4, 0, 2, 2]);
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 3.0, ..Sampling::default() });
        sampler.see(2);
        assert_eq!(sampler.choose(&LOGITS), Ok(4));
    }

    #[test]
    fn penalties_count_how_often_and_look_back_so_far() {
        let sampling = Sampling { frequency_penalty: 0.8, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling);
        // 2.5 and 2.5 to 0.9 and 0.9 by two each, then 1.0 of the first token comes once.
        let drawn: Vec<usize> = (0..6).map(|_| sampler.choose(&LOGITS).unwrap()).collect();
        assert_eq!(drawn, [2, 4, 2, 4, 0, 2]);
        let mut sampler = Sampler::new(Sampling { presence_penalty: 9.0, penalty_last_n: Some(1), ..sampling });
        sampler.see(4);
        let drawn: Vec<usize> = (0..4).map(|_| sampler.choose(&LOGITS).unwrap()).collect();
        assert_eq!(drawn, [2, 4, 2, 4]);
        let mut sampler = Sampler::new(Sampling { presence_penalty: 9.0, penalty_last_n: Some(0), ..sampling });
        assert_eq!((0..3).map(|_| sampler.choose(&LOGITS).unwrap()).collect::<Vec<_>>(), [2, 2, 2]);
    }

    #[test]
    fn a_bias_makes_tokens_likely_or_impossible() {
        let mut sampler = Sampler::new(Sampling::default());
        sampler.set_bias(&[(2, f32::NEG_INFINITY), (4, -2.0), (99, 1.0)]);
        assert_eq!(sampler.choose(&LOGITS), Ok(0));
        sampler.set_bias(&[(5, 3.0)]);
        assert_eq!(sampler.choose(&LOGITS), Ok(5));
    }

    /// By the definition, in f64: what is done first decides what the next step sees.
    #[test]
    fn the_order_of_steps_counts() {
        let sampling = Sampling { temperature: 4.0, top_p: 0.9, min_p: 0.1, seed: 7, ..Sampling::default() };
        let kept = |order| {
            let mut sampler = Sampler::new(Sampling { order, ..sampling });
            let mut kept: Vec<usize> = sampler.probabilities(&LOGITS).unwrap().iter().map(|c| c.0).collect();
            kept.sort_unstable();
            kept
        };
        // At temperature 4 the shares are 0.275, 0.275, 0.189, 0.147, 0.115: 0.9 needs all, and 0.115 / 0.275 is above 0.1.
        assert_eq!(kept(Step::OF_TRANSFORMERS), [0, 2, 3, 4, 5]);
        // At temperature 1 they are 0.428, 0.428, 0.096, ...: 0.9 needs three, and 0.096 / 0.428 is above 0.1.
        assert_eq!(kept(Step::OF_LLAMA_CPP), [0, 2, 4]);
        assert_eq!(kept([Some(Step::MinP), None, None, None]), [0, 2, 4]);
        assert_eq!(kept([None; Step::N]).len(), LOGITS.len());
    }

    #[test]
    fn the_seed_decides() {
        let draws = |seed| {
            let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed, ..Sampling::default() });
            (0..100).map(|_| sampler.choose(&LOGITS).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }

    #[test]
    fn temperature_zero_is_greedy() {
        let mut sampler = Sampler::new(Sampling { top_k: 3, top_p: 0.5, seed: 3, ..Sampling::default() });
        assert!((0..100).all(|_| sampler.choose(&LOGITS) == Ok(2)));
    }

    #[test]
    fn what_is_no_number_is_an_error_and_what_is_never_to_be_chosen_is_not() {
        for temperature in [0.0, 1.0] {
            let mut sampler = Sampler::new(Sampling { temperature, ..Sampling::default() });
            assert_eq!(sampler.choose(&[0.0, f32::INFINITY, f32::INFINITY]), Err(NotFinite));
            assert_eq!(sampler.choose(&[f32::NAN, f32::NEG_INFINITY, 1.0]), Err(NotFinite));
            assert_eq!(sampler.choose(&[f32::NEG_INFINITY; 2]), Ok(0));
            assert_eq!(sampler.choose(&[f32::NEG_INFINITY, 0.0]), Ok(1));
        }
        let cold = Sampling { temperature: f32::MIN_POSITIVE, ..Sampling::default() };
        assert_eq!(Sampler::new(cold).choose(&[1.0, 1.5]), Ok(1));
    }
}
