//! [`Passages`]: how sequences pass through a state of fixed extent.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Bytes of a row of the state.
    row_bytes: u64,
    traffic: Arc<AtomicU64>,
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
    /// `reads, slots, kept, ranges` from argument number `first` on, behind the state.
    pub(super) fn bind(cx: &Lowering<'_>, at: At<'_>, first: usize) -> Result<Self> {
        let state = cx.desc(at.arg(first - 1)).shape;
        Ok(Self {
            row_bytes: (state.elements() / state.dim(0) * size_of::<f32>()) as u64,
            traffic: cx.state_traffic(),
            reads: cx.view(at.arg(first))?,
            slots: cx.view(at.arg(first + 1))?,
            kept: cx.view(at.arg(first + 2))?,
            ranges: cx.view(at.arg(first + 3))?,
            n_seqs: cx.desc(at.arg(first)).shape.elements(),
        })
    }

    /// Those of all sequences that have rows, for a chunk of the step, which has its part of the state. The first chunk counts
    /// for all: a passage reads a row, unless it begins with zeros, and writes one.
    pub(super) fn of_chunk(&self, chunk: usize) -> impl Iterator<Item = Passage> {
        if chunk == 0 {
            let rows: u64 = self.iter().map(|passage| 1 + u64::from(passage.read.is_some())).sum();
            self.traffic.fetch_add(rows * self.row_bytes, Ordering::Relaxed);
        }
        self.iter()
    }

    fn iter(&self) -> impl Iterator<Item = Passage> {
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
