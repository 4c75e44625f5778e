//! The passes between building a graph and planning it: prune, assign, fuse, cut. [`CompileOptions`] switches them.

pub mod assign;
pub mod fuse;
pub(crate) mod prune;

use std::collections::BTreeMap;

/// How graphs are compiled; constant for a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CompileOptions {
    /// Whether fusion rules apply.
    pub fuse: bool,
    /// Whether dead and fresh bytes of the arena are filled with NaN, so that a lifetime bug shows.
    pub poison: bool,
    /// Alignment of tensors in bytes, where it is larger than what backends need: a test keeps them apart with it.
    pub alignment: usize,
    /// Named tensors that the caller wants to read after a run.
    pub taps: Vec<String>,
}

impl Default for CompileOptions {
    fn default() -> Self {
        Self { fuse: true, poison: false, alignment: 1, taps: Vec::new() }
    }
}

/// How often each fusion rule applied, by rule name.
pub type FuseCounts = BTreeMap<&'static str, usize>;
