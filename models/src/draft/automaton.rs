//! [`Automaton`]: the longest end of a history that stood in it before.

use std::collections::HashMap;

use super::{Drafter, common};

/// The state of the empty word, which every word ends in.
const ROOT: u32 = 0;
/// States that take note of a newer place for every token: those of the longest ends. Shorter ones may know an older place.
const MAX_NEWER: usize = 64;

/// Words that end at the same places.
#[derive(Clone, Copy, Debug)]
struct State {
    /// Tokens of the longest of them.
    len: u32,
    /// The state of their longest ends that end elsewhere too.
    link: u32,
    /// Tokens up to the end of a place where they stand: the last one that is known.
    end: u32,
}

/// The drafter `suffix`: a suffix automaton of the history. The longest end of the history that stood in it before decides,
/// of `n` tokens at least, and of its places the last; the `m` tokens behind it are the guess.
///
/// Source: Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text".
pub struct Automaton {
    n: usize,
    m: usize,
    states: Vec<State>,
    /// By state and token.
    next: HashMap<(u32, u32), u32>,
    /// The transitions of every state, to copy them.
    tokens: Vec<Vec<u32>>,
    /// The state of the whole history.
    last: u32,
    seen: Vec<u32>,
    /// The longest end that stood elsewhere before: its length, and the tokens up to the end of that place.
    found: (usize, usize),
}

impl Automaton {
    /// Looks for at least `n` tokens and proposes at most `m`.
    pub fn new(n: usize, m: usize) -> Self {
        let mut automaton = Self {
            n,
            m,
            states: Vec::new(),
            next: HashMap::new(),
            tokens: Vec::new(),
            last: ROOT,
            seen: Vec::new(),
            found: (0, 0),
        };
        automaton.clear();
        automaton
    }

    fn clear(&mut self) {
        self.states.clear();
        self.next.clear();
        self.tokens.clear();
        self.seen.clear();
        self.add(State { len: 0, link: ROOT, end: 0 });
        (self.last, self.found) = (ROOT, (0, 0));
    }

    fn add(&mut self, state: State) -> u32 {
        self.states.push(state);
        self.tokens.push(Vec::new());
        u32::try_from(self.states.len() - 1).expect("contexts have far fewer tokens")
    }

    fn state(&self, state: u32) -> State {
        self.states[state as usize]
    }

    fn connect(&mut self, from: u32, token: u32, to: u32) {
        if self.next.insert((from, token), to).is_none() {
            self.tokens[from as usize].push(token);
        }
    }

    /// Follows with one more token, and looks where its history stood before.
    fn follow(&mut self, token: u32) {
        self.seen.push(token);
        let end = u32::try_from(self.seen.len()).expect("contexts have far fewer tokens");
        let new = self.add(State { len: end, link: ROOT, end });
        let mut at = Some(self.last);
        let mut known = None;
        while let Some(state) = at {
            known = self.next.get(&(state, token)).map(|&next| (state, next));
            if known.is_some() {
                break;
            }
            self.connect(state, token, new);
            at = (state != ROOT).then(|| self.state(state).link);
        }
        if let Some((state, next)) = known {
            let link =
                if self.state(state).len + 1 == self.state(next).len { next } else { self.split(state, token, next) };
            self.states[new as usize].link = link;
        }
        self.last = new;
        let link = self.state(self.state(new).link);
        self.found = (link.len as usize, link.end as usize);
        let mut at = new;
        for _ in 0..MAX_NEWER {
            at = self.state(at).link;
            if at == ROOT {
                break;
            }
            self.states[at as usize].end = end;
        }
    }

    /// Gives the words of `next` that come over `from` and `token` a state of their own.
    fn split(&mut self, from: u32, token: u32, next: u32) -> u32 {
        let copy = self.add(State { len: self.state(from).len + 1, ..self.state(next) });
        for token in self.tokens[next as usize].clone() {
            let to = self.next[&(next, token)];
            self.connect(copy, token, to);
        }
        self.states[next as usize].link = copy;
        let mut at = Some(from);
        while let Some(state) = at.filter(|&state| self.next.get(&(state, token)) == Some(&next)) {
            self.connect(state, token, copy);
            at = (state != ROOT).then(|| self.state(state).link);
        }
        copy
    }
}

impl Drafter for Automaton {
    fn begin(&mut self, history: &[u32]) {
        if common(&self.seen, history) < self.seen.len() {
            self.clear();
        }
    }

    fn draft(&mut self, history: &[u32], _: usize, guess: &mut Vec<u32>) {
        history[self.seen.len().min(history.len())..].iter().for_each(|&token| self.follow(token));
        let (len, end) = self.found;
        if len > 0 && len >= self.n {
            guess.extend(history[end..].iter().take(self.m));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of the longest end of `history` that stands in it before, and where it ends there last.
    fn searched(history: &[u32]) -> (usize, usize) {
        (1..history.len())
            .rev()
            .find_map(|len| {
                let wanted = &history[history.len() - len..];
                let last = (0..history.len() - len).rev().find(|&at| &history[at..at + len] == wanted)?;
                Some((len, last + len))
            })
            .unwrap_or((0, 0))
    }

    #[test]
    fn the_longest_end_is_found_at_its_last_place() {
        let mut state = 1u64;
        for n_tokens in [1, 2, 3, 5, 20] {
            for _ in 0..40 {
                let mut automaton = Automaton::new(1, 3);
                let mut history = Vec::new();
                for _ in 0..60 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    history.push(u32::try_from((state >> 33) % n_tokens).unwrap());
                    let mut guess = Vec::new();
                    automaton.draft(&history, usize::MAX, &mut guess);
                    let (len, end) = searched(&history);
                    assert_eq!(automaton.found.0, len, "{history:?}");
                    if len > 0 {
                        assert_eq!(automaton.found.1, end, "{history:?}");
                        assert_eq!(guess, history[end..].iter().copied().take(3).collect::<Vec<_>>());
                    }
                }
            }
        }
    }

    #[test]
    fn short_matches_are_none_and_another_history_begins_anew() {
        let mut automaton = Automaton::new(3, 9);
        let draft = |automaton: &mut Automaton, history: &[u32]| {
            let mut guess = Vec::new();
            automaton.draft(history, usize::MAX, &mut guess);
            guess
        };
        assert_eq!(draft(&mut automaton, &[1, 2, 3, 4, 5, 1, 2]), [0u32; 0]);
        assert_eq!(draft(&mut automaton, &[1, 2, 3, 4, 5, 1, 2, 3]), [4, 5, 1, 2, 3]);
        automaton.begin(&[1, 2, 3, 9]);
        assert_eq!(draft(&mut automaton, &[1, 2, 3, 9, 1, 2, 3]), [9, 1, 2, 3]);
        automaton.begin(&[1, 2, 3, 9, 1, 2, 3, 8]);
        assert_eq!(draft(&mut automaton, &[1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3]), [8, 1, 2, 3]);
    }
}
