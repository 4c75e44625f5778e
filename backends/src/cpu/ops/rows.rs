//! Ops that move rows: `GetRows`, `KvWrite`, `Copy`, `Concat`.

#![allow(unsafe_code, reason = "writes rows of results")]

use std::ops::Range;

use engine::DType;
use engine::error::Result;
use engine::tensor::TensorDesc;
use half::f16;
use kernels::cpu::Kernels;
use kernels::quant::Format;

use super::super::context::{At, Lowering};
use super::super::mem::{View, ViewMut};
use super::super::region::{Step, Worker, piece};
use super::{CHUNK_ELEMENTS, rows_per_chunk};
use crate::format::format_of;

/// Whether every row begins with a block.
pub(in super::super) fn has_whole_blocks(t: &TensorDesc) -> bool {
    let (len, dims) = (t.dtype.block().len, t.shape.dims());
    let outer = dims.iter().zip(t.strides).take(dims.len().saturating_sub(1));
    t.shape.last().is_multiple_of(len)
        && outer.into_iter().all(|(&n, step)| n == 1 || (step as usize).is_multiple_of(len))
}

/// `[table, ids]`, or `[table, ids, rows]` with row `-1 - id` for a negative id.
pub(in super::super) fn get_rows(cx: &mut Lowering<'_>, at: At<'_>) -> Result<()> {
    let format = format_of(cx.desc(at.arg(0)).dtype).ok_or_else(|| cx.fail("a table of integers"))?;
    let step = GetRows {
        table: cx.bytes(at.arg(0))?,
        format,
        ids: cx.view(at.arg(1))?,
        rows: at.node.args.get(2).map(|&rows| cx.view(rows)).transpose()?,
        y: cx.result(at.out(0))?,
        kernels: cx.machine.kernels,
    };
    cx.push(step);
    Ok(())
}

struct GetRows {
    table: View<u8>,
    format: Format,
    ids: View<i32>,
    rows: Option<View<f32>>,
    y: ViewMut<f32>,
    kernels: Kernels,
}

impl Step for GetRows {
    fn chunks(&self) -> usize {
        self.y.n_rows().div_ceil(rows_per_chunk(self.y.row_len()))
    }

    fn run(&self, chunk: usize, _worker: &mut Worker) {
        for r in piece(chunk, rows_per_chunk(self.y.row_len()), self.y.n_rows()) {
            // SAFETY: row `r` of `y` belongs to this chunk alone.
            let y = unsafe { self.y.row_mut(r) };
            match (element(&self.ids, r), &self.rows) {
                (id @ ..0, Some(rows)) => y.copy_from_slice(rows.row(index(-1 - id))),
                (id, _) => self.kernels.decode_row(self.format, self.table.row(index(id)), y),
            }
        }
    }
}

/// An id, a slot, a position or a length. The session checks what callers pass; panics on what it would refuse.
pub(super) fn index(i: i32) -> usize {
    usize::try_from(i).expect("the session refuses negative indices")
}

/// `[x, state, slots, positions, sequences]`.
pub(in super::super) fn kv_write(cx: &mut Lowering<'_>, at: At<'_>) -> Result<()> {
    let state = match cx.desc(at.arg(1)).dtype {
        DType::F16 => KvState::F16(cx.result(at.arg(1))?),
        _ => KvState::F32(cx.result(at.arg(1))?),
    };
    let shape = cx.desc(at.arg(0)).shape;
    let step = KvWrite {
        x: cx.view(at.arg(0))?,
        state,
        slots: cx.view(at.arg(2))?,
        positions: cx.view(at.arg(3))?,
        sequences: Sequences(cx.view(at.arg(4))?),
        n_tokens: shape.dim(0),
        n_head: shape.dim(1),
        n_ctx: cx.desc(at.arg(1)).shape.dim(1),
        kernels: cx.machine.kernels,
    };
    cx.push(step);
    Ok(())
}

enum KvState {
    F32(ViewMut<f32>),
    F16(ViewMut<f16>),
}

struct KvWrite {
    x: View<f32>,
    state: KvState,
    slots: View<i32>,
    positions: View<i32>,
    sequences: Sequences,
    n_tokens: usize,
    n_head: usize,
    n_ctx: usize,
    kernels: Kernels,
}

impl KvWrite {
    fn is_small(&self) -> bool {
        self.x.n_rows() * self.x.row_len() <= CHUNK_ELEMENTS
    }

    /// Writes row `r` of the state, whose head belongs to this chunk.
    fn store(&self, r: usize, x: &[f32]) {
        match &self.state {
            // SAFETY: rows of this head belong to this chunk alone, and the last row's reference is gone.
            KvState::F32(state) => unsafe { state.row_mut(r) }.copy_from_slice(x),
            // SAFETY: as above.
            KvState::F16(state) => self.kernels.f32_to_f16(x, unsafe { state.row_mut(r) }),
        }
    }
}

impl Step for KvWrite {
    /// A chunk is a head of all tokens, so that no two of them write the same row whatever the positions are.
    fn chunks(&self) -> usize {
        if self.is_small() { 1 } else { self.n_head }
    }

    fn run(&self, chunk: usize, _worker: &mut Worker) {
        let heads = if self.is_small() { 0..self.n_head } else { chunk..chunk + 1 };
        for t in 0..self.n_tokens {
            let Some(s) = self.sequences.of(t) else { continue };
            let (slot, position) = (index(element(&self.slots, s)), index(element(&self.positions, t)));
            assert!(position < self.n_ctx, "position {position} of {}", self.n_ctx);
            for h in heads.clone() {
                self.store((slot * self.n_ctx + position) * self.n_head + h, self.x.row(t * self.n_head + h));
            }
        }
    }
}

/// Element `i` in the order of the shape.
pub(super) fn element(x: &View<i32>, i: usize) -> i32 {
    x.row(i / x.row_len())[i % x.row_len()]
}

/// The sequence of every row.
pub(super) struct Sequences(pub(super) View<i32>);

impl Sequences {
    /// The sequence of a row; none for padding.
    pub(super) fn of(&self, row: usize) -> Option<usize> {
        usize::try_from(element(&self.0, row)).ok()
    }

    /// Neighbouring rows of one sequence each.
    pub(super) fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = (Option<usize>, Range<usize>)> {
        let mut next = rows.start;
        std::iter::from_fn(move || {
            let first = next;
            let s = (first < rows.end).then(|| self.of(first))?;
            while next < rows.end && self.of(next) == s {
                next += 1;
            }
            Some((s, first..next))
        })
    }
}

/// Range number `i` of a list of beginnings and ends.
pub(super) fn range(ranges: &View<i32>, i: usize) -> Range<usize> {
    index(element(ranges, 2 * i))..index(element(ranges, 2 * i + 1))
}

/// `[x]`.
pub(in super::super) fn copy(cx: &mut Lowering<'_>, at: At<'_>) -> Result<()> {
    let step = Copy { x: cx.view(at.arg(0))?, y: cx.result(at.out(0))? };
    cx.push(step);
    Ok(())
}

/// `[x, ranges]`: zeros outside of every range; `unit` entries of `ranges` make a row.
pub(in super::super) fn mask(cx: &mut Lowering<'_>, at: At<'_>, unit: usize) -> Result<()> {
    let shape = cx.desc(at.arg(0)).shape;
    let y = cx.result(at.out(0))?;
    let step = MaskRows {
        x: cx.unless_in_place(at.arg(0), at.out(0))?,
        n_ranges: cx.desc(at.arg(1)).shape.dim(0),
        ranges: cx.view(at.arg(1))?,
        unit,
        // A row of the op is several rows of the view where there are more than two extents.
        views_per_row: y.n_rows() / shape.dim(0),
        y,
    };
    cx.push(step);
    Ok(())
}

struct MaskRows {
    /// `None`: planned in place, `y` already holds x.
    x: Option<View<f32>>,
    ranges: View<i32>,
    n_ranges: usize,
    unit: usize,
    views_per_row: usize,
    y: ViewMut<f32>,
}

impl MaskRows {
    /// Whether a row of the op lies in a range.
    fn is_real(&self, row: usize) -> bool {
        let rows = |i| {
            let Range { start, end } = range(&self.ranges, i);
            start / self.unit..end.div_ceil(self.unit)
        };
        (0..self.n_ranges).any(|i| rows(i).contains(&row))
    }
}

impl Step for MaskRows {
    fn chunks(&self) -> usize {
        self.y.n_rows().div_ceil(rows_per_chunk(self.y.row_len()))
    }

    fn run(&self, chunk: usize, _worker: &mut Worker) {
        for r in piece(chunk, rows_per_chunk(self.y.row_len()), self.y.n_rows()) {
            let is_real = self.is_real(r / self.views_per_row);
            if is_real && self.x.is_none() {
                continue;
            }
            // SAFETY: row `r` of `y` belongs to this chunk alone.
            let y = unsafe { self.y.row_mut(r) };
            match &self.x {
                Some(x) if is_real => y.copy_from_slice(x.row(r)),
                _ => y.fill(0.0),
            }
        }
    }
}

/// `[a, b]`.
pub(in super::super) fn concat(cx: &mut Lowering<'_>, at: At<'_>) -> Result<()> {
    let mut first = 0;
    for &arg in &at.node.args {
        let x = cx.view(arg)?;
        let y = cx.result_part(at.out(0), first, &x)?;
        first += x.n_rows() * x.row_len();
        cx.push(Copy { x, y });
    }
    Ok(())
}

struct Copy {
    x: View<f32>,
    y: ViewMut<f32>,
}

impl Step for Copy {
    fn chunks(&self) -> usize {
        self.y.n_rows().div_ceil(rows_per_chunk(self.y.row_len()))
    }

    fn run(&self, chunk: usize, _worker: &mut Worker) {
        for r in piece(chunk, rows_per_chunk(self.y.row_len()), self.y.n_rows()) {
            // SAFETY: row `r` of `y` belongs to this chunk alone.
            let y = unsafe { self.y.row_mut(r) };
            if self.x.inner() == 1 {
                y.copy_from_slice(self.x.row(r));
            } else {
                for (y, x) in y.iter_mut().zip(self.x.strided_row(r).iter().step_by(self.x.inner())) {
                    *y = *x;
                }
            }
        }
    }
}
