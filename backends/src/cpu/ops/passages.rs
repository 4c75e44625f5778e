//! [`Passages`]: how sequences pass through a state of fixed extent.

use std::ops::Range;

use engine::error::Result;

use super::super::context::{At, Lowering};
use super::super::mem::View;
use super::rows::{element, index, range};

/// How sequences pass through a state of fixed extent.
pub(super) struct Passages {
    reads: View<i32>,
    slots: View<i32>,
    kept: View<i32>,
    ranges: View<i32>,
    n_seqs: usize,
}

/// The way of one sequence through a state.
pub(super) struct Passage {
    /// Its rows; there are some.
    pub(super) rows: Range<usize>,
    /// The row of the state that it continues from; `None`: zeros.
    pub(super) read: Option<usize>,
    /// The row of the state that is written.
    pub(super) slot: usize,
    /// After how many of `rows`.
    pub(super) kept: usize,
}

impl Passages {
    /// `reads, slots, kept, ranges` from argument number `first` on.
    pub(super) fn bind(cx: &Lowering<'_>, at: At<'_>, first: usize) -> Result<Self> {
        Ok(Self {
            reads: cx.view(at.arg(first))?,
            slots: cx.view(at.arg(first + 1))?,
            kept: cx.view(at.arg(first + 2))?,
            ranges: cx.view(at.arg(first + 3))?,
            n_seqs: cx.desc(at.arg(first)).shape.elements(),
        })
    }

    /// Those of all sequences that have rows.
    pub(super) fn iter(&self) -> impl Iterator<Item = Passage> {
        (0..self.n_seqs).filter_map(|s| {
            let rows = range(&self.ranges, s);
            let kept = index(element(&self.kept, s));
            assert!(kept <= rows.len(), "{kept} of {} rows", rows.len());
            (!rows.is_empty()).then(|| Passage {
                read: usize::try_from(element(&self.reads, s)).ok(),
                slot: index(element(&self.slots, s)),
                kept,
                rows,
            })
        })
    }
}
