//! Drafters: guesses of the tokens that follow a history, which the model then verifies in one step. A guess changes nothing but
//! how many steps a text takes. What a drafter proposes is a function of the tokens it was shown and of what became of its
//! earlier guesses; it knows no model, but for [`model`], which is one.
//!
//! Read [`Speculation`] first: the drafters of one sequence, how long their guesses may be, and what came of them.

mod automaton;
mod cache;
mod costs;
mod index;
mod length;
mod map_k;
mod map_k4v;
pub mod model;
mod modular;
mod oracle;
mod parameters;
mod simple;
mod speculation;
mod statistics;

pub use automaton::Automaton;
pub use cache::{NgramCache, NgramCounts};
pub use costs::Costs;
pub use map_k::MapK;
pub use map_k4v::MapK4v;
pub use modular::Modular;
pub use oracle::Oracle;
pub use parameters::{Kind, Limits, NgramSizes, Parameters};
pub use simple::Simple;
pub use speculation::{Drafters, Shared, Speculation};
pub(crate) use speculation::{Room, Step};
pub use statistics::{Statistics, Undone};

/// Stands in a history where a vector was fed, and equals no token.
pub const NO_TOKEN: u32 = u32::MAX;

/// What became of a guess.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Tokens of the guess that were verified, from its first on.
    pub verified: usize,
    /// Those of them that were right.
    pub accepted: usize,
}

/// Guesses what follows.
pub trait Drafter: Send {
    /// A text is about to be continued after `history`, which has nothing in common with earlier ones but how it begins.
    fn begin(&mut self, history: &[u32]);

    /// Appends to `guess` what may follow `history`, whose last token was generated last: at most `max` tokens, or more where
    /// that costs nothing, of which no more than `max` are used. Since the last call `history` has only grown.
    fn draft(&mut self, history: &[u32], max: usize, guess: &mut Vec<u32>);

    /// Whether a guess takes so little that it is made even where none of it will be verified, to know what that costs.
    fn is_cheap(&self) -> bool {
        true
    }

    /// What became of the last guess that was not empty. It is not called for guesses that another drafter's was preferred to.
    fn judged(&mut self, outcome: Outcome) {
        let _ = outcome;
    }
}

/// The last `n` tokens of a history that has at least so many.
fn query(history: &[u32], n: usize) -> Option<&[u32]> {
    history.len().checked_sub(n).map(|at| &history[at..])
}

/// How many tokens two histories have in common at their beginning.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// What a drafter guesses, for tests.
#[cfg(test)]
fn guess(drafter: &mut dyn Drafter, history: &[u32]) -> Vec<u32> {
    let mut guess = Vec::new();
    drafter.draft(history, usize::MAX, &mut guess);
    guess
}
