//! [`ByRow`]: the step of every op that makes its results row by row.

#![allow(unsafe_code, reason = "writes rows of results")]

use std::ops::Range;

use bytemuck::Pod;
use engine::error::Result;

use super::super::context::{At, Lowering};
use super::super::mem::ViewMut;
use super::super::region::{Step, Worker, piece};
use super::rows_per_chunk;

/// One result, or several that have equally many rows.
pub(super) trait Results: Send + Sync + 'static {
    /// A row of each.
    type Row<'a>;

    /// Number of rows.
    fn n_rows(&self) -> usize;

    /// Elements of a row of the last one.
    fn row_len(&self) -> usize;

    /// Row `r` of each.
    ///
    /// # Safety
    ///
    /// No other reference to these rows is used while it lives.
    unsafe fn row(&self, r: usize) -> Self::Row<'_>;
}

impl<T: Pod + Send + Sync> Results for ViewMut<T> {
    type Row<'a> = &'a mut [T];

    fn n_rows(&self) -> usize {
        (**self).n_rows()
    }

    fn row_len(&self) -> usize {
        (**self).row_len()
    }

    unsafe fn row(&self, r: usize) -> &mut [T] {
        // SAFETY: the caller's guarantee.
        unsafe { self.row_mut(r) }
    }
}

impl<A: Results, B: Results> Results for (A, B) {
    type Row<'a> = (A::Row<'a>, B::Row<'a>);

    fn n_rows(&self) -> usize {
        self.0.n_rows()
    }

    fn row_len(&self) -> usize {
        self.1.row_len()
    }

    unsafe fn row(&self, r: usize) -> (A::Row<'_>, B::Row<'_>) {
        // SAFETY: the caller's guarantee.
        let a = unsafe { self.0.row(r) };
        // SAFETY: as above, and results of a node do not overlap.
        (a, unsafe { self.1.row(r) })
    }
}

/// The rows of a chunk, each with its number.
pub(super) struct ChunkRows<'a, Y> {
    y: &'a Y,
    left: Range<usize>,
}

impl<'a, Y: Results> Iterator for ChunkRows<'a, Y> {
    type Item = (usize, Y::Row<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let r = self.left.next()?;
        // SAFETY: row `r` belongs to this chunk alone, each chunk runs once in a run, and the iterator gives the row once.
        Some((r, unsafe { self.y.row(r) }))
    }
}

/// A step whose chunks are some rows of its results.
pub(super) struct ByRow<Y, F> {
    y: Y,
    rows_per_chunk: usize,
    /// Makes the rows of a chunk.
    make: F,
}

impl<Y: Results, F: for<'a> Fn(ChunkRows<'a, Y>, &mut Worker) + Send + Sync + 'static> ByRow<Y, F> {
    /// Rows that cost as much as their elements.
    pub(super) fn new(y: Y, make: F) -> Self {
        let width = y.row_len();
        Self::of_width(y, width, make)
    }

    /// Rows that cost as much as `width` elements.
    pub(super) fn of_width(y: Y, width: usize, make: F) -> Self {
        Self { y, rows_per_chunk: rows_per_chunk(width), make }
    }
}

impl<Y: Results, F: for<'a> Fn(ChunkRows<'a, Y>, &mut Worker) + Send + Sync + 'static> Step for ByRow<Y, F> {
    fn chunks(&self) -> usize {
        self.y.n_rows().div_ceil(self.rows_per_chunk)
    }

    fn run(&self, chunk: usize, worker: &mut Worker) {
        let left = piece(chunk, self.rows_per_chunk, self.y.n_rows());
        (self.make)(ChunkRows { y: &self.y, left }, worker);
    }
}

/// A step that makes every row of the first result from the same row of the first operand, in place: `f` is given the row
/// with its number.
pub(super) fn in_place<F: Fn(usize, &mut [f32]) + Send + Sync + 'static>(
    cx: &Lowering<'_>,
    at: At<'_>,
    f: F,
) -> Result<impl Step + use<F>> {
    // `None`: planned in place, `y` already holds x.
    let x = cx.unless_in_place(at.arg(0), at.out(0))?;
    Ok(ByRow::new(cx.result::<f32>(at.out(0))?, move |rows, _| {
        for (r, y) in rows {
            if let Some(x) = &x {
                y.copy_from_slice(x.row(r));
            }
            f(r, y);
        }
    }))
}
