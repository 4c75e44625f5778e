//! `JoinPending`: rows that were kept come before new ones, and some of the new ones are kept.

#![allow(unsafe_code, reason = "writes rows of results and states")]

use engine::error::Result;
use engine::tensor::TensorDesc;

use super::super::context::{At, Lowering, Prepared};
use super::super::mem::{View, ViewMut};
use super::super::region::{Step, Worker};
use super::rows::{element, index, range};

/// `[x_0, .., x_(n-1), pending, slots, kept, ranges, joined]`.
pub(super) fn join(args: &[&TensorDesc], n: usize) -> Prepared {
    let n_pending = args[n].shape.dim(1);
    Prepared::without_scratch(move |cx, at| Join::bind(cx, at, n, n_pending))
}

/// A chunk is a sequence: no two chunks touch the same pending rows.
struct Join {
    /// What is joined, and its result.
    parts: Vec<(View<f32>, ViewMut<f32>)>,
    pending: ViewMut<f32>,
    slots: View<i32>,
    kept: View<i32>,
    ranges: View<i32>,
    joined: View<i32>,
    n_pending: usize,
    n_seqs: usize,
}

impl Join {
    fn bind(cx: &Lowering<'_>, at: At<'_>, n: usize, n_pending: usize) -> Result<Self> {
        let part = |i| Ok((cx.view(at.arg(i))?, cx.result(at.out(i))?));
        Ok(Self {
            parts: (0..n).map(part).collect::<Result<_>>()?,
            pending: cx.result(at.arg(n))?,
            slots: cx.view(at.arg(n + 1))?,
            kept: cx.view(at.arg(n + 2))?,
            ranges: cx.view(at.arg(n + 3))?,
            joined: cx.view(at.arg(n + 4))?,
            n_pending,
            n_seqs: cx.desc(at.arg(n + 1)).shape.elements(),
        })
    }
}

impl Step for Join {
    fn chunks(&self) -> usize {
        self.n_seqs
    }

    fn run(&self, s: usize, _worker: &mut Worker) {
        let (new, joined) = (range(&self.ranges, s), range(&self.joined, s));
        if new.is_empty() {
            return;
        }
        let n_folded = joined.len().checked_sub(new.len()).expect("all new rows are among the joined ones");
        let n_kept = index(element(&self.kept, s)).checked_sub(n_folded).expect("pending rows are folded first");
        let first = index(element(&self.slots, s)) * self.n_pending;
        let n_left = new.len() - n_kept;
        assert!(n_folded.max(n_left) <= self.n_pending, "{n_folded}, then {n_left} of {}", self.n_pending);
        let mut column = 0;
        for (x, y) in &self.parts {
            let columns = column..column + x.row_len();
            column = columns.end;
            for i in 0..joined.len() {
                // SAFETY: rows of this sequence belong to this chunk alone.
                let y = unsafe { y.row_mut(joined.start + i) };
                match i.checked_sub(n_folded) {
                    None => y.copy_from_slice(self.pending.part(first + i, columns.clone())),
                    Some(i) => y.copy_from_slice(x.row(new.start + i)),
                }
            }
            for i in 0..n_left {
                // SAFETY: pending rows of this slot belong to this chunk alone, and what was in them is copied.
                let row = unsafe { self.pending.part_mut(first + i, columns.clone()) };
                row.copy_from_slice(x.row(new.start + n_kept + i));
            }
        }
    }
}
