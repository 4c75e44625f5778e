//! [`NgramCache`]: what followed one to four tokens how often, in this history, in earlier ones and in a collection of texts.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use super::{Drafter, NO_TOKEN, common};

/// Longest n-gram.
const MAX_N: usize = 4;
/// Tokens of the n-grams of a collection of texts.
const STATIC_N: usize = 2;
/// Tokens of a guess where nobody says how many.
pub(super) const LENGTH: usize = 8;
/// Stands in a file behind the tokens of an n-gram of fewer than four.
const PADDING: i32 = -1;
/// Most bytes of a file that is read.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// N-grams of earlier histories up to which others are learnt: some hundred MB.
const MAX_LEARNT: usize = 1 << 20;
/// Factor of a count in a collection of texts, where it decides between tokens.
const STATIC_FACTOR: u64 = 100;

/// What must be known of an n-gram before what followed it is a guess, by its number of tokens.
struct Thresholds {
    /// How often it came.
    samples: [u64; MAX_N],
    /// Percent of them that the guess followed.
    percent: [u64; MAX_N],
}

const LAX: Thresholds = Thresholds { samples: [2, 2, 1, 1], percent: [66, 50, 50, 50] };
const STRICT: Thresholds = Thresholds { samples: [4, 3, 2, 2], percent: [75, 66, 66, 66] };

/// One to four tokens.
type Ngram = [u32; MAX_N];

/// How often which token followed which tokens.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NgramCounts(BTreeMap<Ngram, BTreeMap<u32, u32>>);

impl NgramCounts {
    /// Counts the tokens of a history from `from` on by the `n` tokens before them, for every `n` up to four.
    fn count(&mut self, history: &[u32], from: usize) {
        for at in from..history.len() {
            for n in (1..=MAX_N).take_while(|&n| n <= at) {
                if let Some(ngram) = ngram(&history[at - n..at])
                    && history[at] != NO_TOKEN
                {
                    let count = self.0.entry(ngram).or_default().entry(history[at]).or_default();
                    *count = count.saturating_add(1).min(i32::MAX as u32);
                }
            }
        }
    }

    /// Adds what others counted; n-grams that are new only as long as there are few enough.
    pub fn add(&mut self, other: &Self) {
        for (ngram, tokens) in &other.0 {
            if self.0.len() >= MAX_LEARNT && !self.0.contains_key(ngram) {
                continue;
            }
            let ours = self.0.entry(*ngram).or_default();
            for (token, count) in tokens {
                let sum = ours.entry(*token).or_default();
                *sum = sum.saturating_add(*count).min(i32::MAX as u32);
            }
        }
    }

    /// Reads a file of llama.cpp's `lookup-create`: for every n-gram four i32, those it lacks -1, then the number of pairs as i32,
    /// then the pairs, a token and its count as i32 each; little endian.
    ///
    /// Errors: those of `from`; `InvalidData` for a file that is no such file, or is cut.
    pub fn read(from: &mut dyn Read) -> io::Result<Self> {
        let mut bytes = Vec::new();
        from.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(damaged(format!("want at most {MAX_FILE_BYTES} bytes")));
        }
        let (words, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(damaged(format!("want whole numbers of 4 bytes, got {} bytes", bytes.len())));
        }
        let mut words = words.iter().map(|word| i32::from_le_bytes(*word));
        let mut counts = Self::default();
        while let Some(first) = words.next() {
            let mut next = || words.next().ok_or_else(|| damaged("it ends inside an n-gram"));
            let tokens = [first, next()?, next()?, next()?];
            let n_pairs = next()?;
            let n = tokens.iter().position(|&token| token == PADDING).unwrap_or(MAX_N);
            if n == 0 || tokens[..n].iter().any(|&t| t < 0) || tokens[n..].iter().any(|&t| t != PADDING) || n_pairs < 0
            {
                return Err(damaged(format!("{tokens:?} with {n_pairs} pairs is no n-gram")));
            }
            let entry = counts.0.entry(tokens.map(i32::cast_unsigned)).or_default();
            for _ in 0..n_pairs {
                let (token, count) = (next()?, next()?);
                if token < 0 || count <= 0 {
                    return Err(damaged(format!("token {token} cannot have come {count} times")));
                }
                let sum = entry.entry(token.cast_unsigned()).or_default();
                *sum = sum.saturating_add(count.cast_unsigned()).min(i32::MAX as u32);
            }
        }
        Ok(counts)
    }

    /// The bytes of a file as [`NgramCounts::read`] reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let number = |n: usize| u32::try_from(n).expect("a vocabulary has far fewer tokens");
        let of = |(ngram, tokens): (&Ngram, &BTreeMap<u32, u32>)| {
            let head = ngram.iter().copied().chain([number(tokens.len())]);
            let pairs = tokens.iter().flat_map(|(token, count)| [*token, *count]);
            head.chain(pairs).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()
        };
        self.0.iter().flat_map(of).collect()
    }

    /// How often a token followed two others.
    fn of_pair(&self, pair: Option<Ngram>, token: u32) -> Option<u32> {
        self.0.get(&pair?)?.get(&token).copied()
    }

    /// The token that most likely follows, by n-grams of four tokens down to one.
    fn next(&self, history: &[u32], texts: &Self, thresholds: &Thresholds) -> Option<u32> {
        let pair = last(history, STATIC_N);
        (1..=MAX_N).rev().find_map(|n| {
            let tokens = self.0.get(&last(history, n)?)?;
            let score = |token: u32, count: u32| {
                u64::from(count) * texts.of_pair(pair, token).map_or(1, |count| STATIC_FACTOR * u64::from(count))
            };
            // The first of equals, in the order of the vocabulary.
            let best = tokens.iter().rev().max_by_key(|(token, count)| score(**token, **count))?;
            is_enough(tokens, *best.1, n, thresholds).then_some(*best.0)
        })
    }

    /// The token that most likely follows the last two, in a collection of texts by itself.
    fn next_in_texts(&self, history: &[u32]) -> Option<u32> {
        let tokens = self.0.get(&last(history, STATIC_N)?)?;
        let best = tokens.iter().rev().max_by_key(|(_, count)| **count)?;
        is_enough(tokens, *best.1, STATIC_N, &LAX).then_some(*best.0)
    }
}

/// Whether `count` of some counts of an n-gram are enough.
fn is_enough(tokens: &BTreeMap<u32, u32>, count: u32, n: usize, thresholds: &Thresholds) -> bool {
    let sum: u64 = tokens.values().map(|&count| u64::from(count)).sum();
    sum >= thresholds.samples[n - 1] && 100 * u64::from(count) >= thresholds.percent[n - 1] * sum
}

fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Tokens as files have them; nothing where a vector is among them.
fn ngram(tokens: &[u32]) -> Option<Ngram> {
    let mut ngram = [PADDING.cast_unsigned(); MAX_N];
    ngram[..tokens.len()].copy_from_slice(tokens);
    (!tokens.contains(&NO_TOKEN)).then_some(ngram)
}

fn last(history: &[u32], n: usize) -> Option<Ngram> {
    ngram(super::query(history, n)?)
}

/// The drafter `ngram-cache`: what most often followed the last four tokens, or three, or two, or the last one. What was seen in
/// this history decides, else in earlier ones, which asks for more certainty, else in a collection of texts, which also weighs
/// tokens of the others.
///
/// Source: llama.cpp, `common_ngram_cache_draft`.
pub struct NgramCache {
    /// Of this history.
    own: NgramCounts,
    n_counted: usize,
    seen: Vec<u32>,
    /// Of earlier ones; this one's counts come to them when it ends.
    earlier: Arc<Mutex<NgramCounts>>,
    /// Of a collection of texts.
    texts: Arc<NgramCounts>,
}

impl NgramCache {
    /// A drafter that shares what earlier histories taught with others, and knows a collection of texts.
    pub fn new(earlier: Arc<Mutex<NgramCounts>>, texts: Arc<NgramCounts>) -> Self {
        Self { own: NgramCounts::default(), n_counted: 0, seen: Vec::new(), earlier, texts }
    }

    fn next(&self, history: &[u32]) -> Option<u32> {
        let own = self.own.next(history, &self.texts, &LAX);
        let earlier = || self.lock().next(history, &self.texts, &STRICT);
        own.or_else(earlier).or_else(|| self.texts.next_in_texts(history))
    }

    /// Counts are whole between two changes, whoever panicked.
    fn lock(&self) -> std::sync::MutexGuard<'_, NgramCounts> {
        self.earlier.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Hands over what this history taught.
    fn hand_over(&mut self) {
        let own = std::mem::take(&mut self.own);
        self.lock().add(&own);
        self.n_counted = 0;
        self.seen.clear();
    }
}

impl Drafter for NgramCache {
    fn begin(&mut self, history: &[u32]) {
        if common(&self.seen, history) < self.seen.len() {
            self.hand_over();
        }
    }

    fn draft(&mut self, history: &[u32], max: usize, guess: &mut Vec<u32>) {
        self.own.count(history, self.n_counted);
        self.n_counted = history.len();
        self.seen.extend_from_slice(&history[self.seen.len()..]);
        let mut known = history[history.len().saturating_sub(MAX_N)..].to_vec();
        for _ in 0..max {
            let Some(next) = self.next(&known) else { break };
            guess.push(next);
            known.push(next);
        }
    }
}

impl Drop for NgramCache {
    fn drop(&mut self) {
        self.hand_over();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> NgramCache {
        NgramCache::new(Arc::default(), Arc::default())
    }

    fn guess(drafter: &mut NgramCache, history: &[u32]) -> Vec<u32> {
        let mut guess = Vec::new();
        drafter.draft(history, LENGTH, &mut guess);
        guess
    }

    #[test]
    fn longer_ngrams_ask_for_less_and_decide_first() {
        // Once is enough for three or four tokens, not for one or two.
        assert_eq!(guess(&mut empty(), &[1, 2, 3, 4, 5, 6, 7, 1, 2, 3]), [4, 5, 6, 7, 1, 2, 3, 4]);
        assert_eq!(guess(&mut empty(), &[1, 2, 4, 5, 6, 9, 1, 2]), [0u32; 0]);
        // Twice is enough, where half of what followed two tokens was the same: the larger count, else the lower id.
        assert_eq!(guess(&mut empty(), &[8, 1, 2, 5, 9, 1, 2, 4, 7, 1, 2])[..1], [4]);
        // After one token two thirds must be the same.
        assert_eq!(guess(&mut empty(), &[3, 2, 5, 4, 2, 6, 7, 2]), [0u32; 0]);
        assert_eq!(guess(&mut empty(), &[3, 2, 5, 4, 2, 5, 7, 2, 5, 8, 2, 6, 9, 2])[..1], [5]);
    }

    #[test]
    fn earlier_histories_and_texts_are_asked_in_turn() {
        let earlier = Arc::new(Mutex::new(NgramCounts::default()));
        let mut texts = NgramCounts::default();
        texts.count(&[20, 21, 22, 20, 21, 22, 20, 21, 23], 0);
        let texts = Arc::new(texts);
        let open = || NgramCache::new(Arc::clone(&earlier), Arc::clone(&texts));
        let mut first = open();
        assert_eq!(guess(&mut first, &[1, 2, 3, 4, 5, 6]), [0u32; 0]);
        drop(first);
        let mut second = open();
        assert_eq!(guess(&mut second, &[1, 2, 3, 4]), [0u32; 0], "once is too little for what others saw");
        // Two tokens of the collection: two of three.
        assert_eq!(guess(&mut second, &[1, 2, 3, 4, 20, 21])[..1], [22]);
        second.begin(&[1, 2, 3, 4]);
        assert_eq!(guess(&mut second, &[9, 1, 2, 3, 4, 5]), [0u32; 0]);
        drop(second);
        let mut third = open();
        assert_eq!(guess(&mut third, &[2, 3, 4])[..1], [5], "twice is enough after three");
    }

    #[test]
    fn files_come_back_and_damage_is_found() {
        let mut counts = NgramCounts::default();
        counts.count(&[5, 6, 7, 5, 6, 8], 0);
        let bytes = counts.to_bytes();
        // 5 alone, followed by 6 twice.
        let words = [5i32, -1, -1, -1, 1, 6, 2].map(i32::to_le_bytes).concat();
        assert!(bytes.windows(28).any(|part| part == words));
        assert_eq!(NgramCounts::read(&mut &bytes[..]).unwrap(), counts);
        let cut = (1..bytes.len()).filter(|&n| NgramCounts::read(&mut &bytes[..n]).is_ok()).count();
        assert_eq!(cut, counts.0.len() - 1, "it may only end behind an n-gram");
        for bad in [
            &[-1i32, -1, -1, -1, 0][..],
            &[1, -1, 2, -1, 0],
            &[1, 2, 3, 4, -1],
            &[1, 2, 3, 4, 1, 5, 0],
            &[-2, -1, -1, -1, 0],
        ] {
            let bytes: Vec<u8> = bad.iter().flat_map(|n| n.to_le_bytes()).collect();
            assert!(NgramCounts::read(&mut &bytes[..]).is_err(), "{bad:?}");
        }
        let mut twice = counts.clone();
        twice.add(&counts);
        assert_eq!(twice.0[&[5, u32::MAX, u32::MAX, u32::MAX]][&6], 4);
    }
}
