//! Ops that move rows: `GetRows`, `Embed`, `KvWrite`, `Copy`, `Concat`, `MaskRows`.

#![allow(unsafe_code, reason = "writes rows of results")]

use std::ops::Range;

use engine::DType;
use engine::tensor::TensorDesc;
use half::f16;
use kernels::cpu::Kernels;

use super::super::context::{Needs, Prepared};
use super::super::mem::{View, ViewMut};
use super::super::region::{Step, Worker};
use super::CHUNK_ELEMENTS;
use super::by_row::ByRow;
use crate::format::format_of;

/// Whether every row begins with a block.
pub(super) fn has_whole_blocks(t: &TensorDesc) -> bool {
    let (len, dims) = (t.dtype.block().len, t.shape.dims());
    let outer = dims.iter().zip(t.strides).take(dims.len().saturating_sub(1));
    t.shape.last().is_multiple_of(len)
        && outer.into_iter().all(|(&n, step)| n == 1 || (step as usize).is_multiple_of(len))
}

/// `[table, ids]`, or `[table, ids, rows]` with row `-1 - id` for a negative id.
pub(super) fn get_rows(args: &[&TensorDesc]) -> Option<Prepared> {
    let format = format_of(args[0].dtype).filter(|_| has_whole_blocks(args[0]))?;
    Some(Prepared::without_scratch(move |cx, at| {
        let (table, ids) = (cx.bytes(at.arg(0))?, cx.view::<i32>(at.arg(1))?);
        let given = at.node.args.get(2).map(|&rows| cx.view::<f32>(rows)).transpose()?;
        let kernels = cx.machine.kernels;
        Ok(ByRow::new(cx.result::<f32>(at.out(0))?, move |rows, _| {
            for (r, y) in rows {
                match (element(&ids, r), &given) {
                    (id @ ..0, Some(given)) => y.copy_from_slice(given.row(index(-1 - id))),
                    (id, _) => kernels.decode_row(format, table.row(index(id)), y),
                }
            }
        }))
    }))
}

/// An id, a slot, a position or a length. The session checks what callers pass; panics on what it would refuse.
pub(super) fn index(i: i32) -> usize {
    usize::try_from(i).expect("the session refuses negative indices")
}

/// `[x, state, slots, positions, sequences]`.
pub(super) fn kv_write(args: &[&TensorDesc]) -> Prepared {
    let [n_tokens, n_head] = [0, 1].map(|i| args[0].shape.dim(i));
    let (n_ctx, dtype) = (args[1].shape.dim(1), args[1].dtype);
    Prepared::without_scratch(move |cx, at| {
        let state = match dtype {
            DType::F16 => KvState::F16(cx.result(at.arg(1))?),
            _ => KvState::F32(cx.result(at.arg(1))?),
        };
        Ok(KvWrite {
            x: cx.view(at.arg(0))?,
            state,
            slots: cx.view(at.arg(2))?,
            positions: cx.view(at.arg(3))?,
            sequences: Sequences(cx.view(at.arg(4))?),
            n_tokens,
            n_head,
            n_ctx,
            kernels: cx.machine.kernels,
        })
    })
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
pub(super) fn copy() -> Prepared {
    Prepared::without_scratch(|cx, at| Ok(copied(cx.view(at.arg(0))?, cx.result(at.out(0))?)))
}

/// `[a, b]`.
pub(super) fn concat() -> Prepared {
    Prepared::new(Needs::default(), |cx, at| {
        let mut first = 0;
        for &arg in &at.node.args {
            let x = cx.view(arg)?;
            let y = cx.result_part(at.out(0), first, &x)?;
            first += x.n_rows() * x.row_len();
            cx.push(copied(x, y));
        }
        Ok(())
    })
}

/// The step that copies rows of any strides.
fn copied(x: View<f32>, y: ViewMut<f32>) -> impl Step {
    ByRow::new(y, move |rows, _| {
        for (r, y) in rows {
            if x.inner() == 1 {
                y.copy_from_slice(x.row(r));
            } else {
                for (y, x) in y.iter_mut().zip(x.strided_row(r).iter().step_by(x.inner())) {
                    *y = *x;
                }
            }
        }
    })
}

/// `[x, ranges]`: zeros outside of every range; `unit` entries of `ranges` make a row.
pub(super) fn mask(args: &[&TensorDesc], unit: usize) -> Prepared {
    let (n_rows, n_ranges) = (args[0].shape.dim(0), args[1].shape.dim(0));
    Prepared::without_scratch(move |cx, at| {
        // `None`: planned in place, `y` already holds x.
        let x = cx.unless_in_place(at.arg(0), at.out(0))?;
        let (ranges, y) = (cx.view::<i32>(at.arg(1))?, cx.result::<f32>(at.out(0))?);
        // A row of the op is several rows of the view where there are more than two extents.
        let views_per_row = y.n_rows() / n_rows;
        let is_real = move |row: usize| {
            let rows = |i| {
                let Range { start, end } = range(&ranges, i);
                start / unit..end.div_ceil(unit)
            };
            (0..n_ranges).any(|i| rows(i).contains(&row))
        };
        Ok(ByRow::new(y, move |rows, _| {
            for (r, y) in rows {
                match &x {
                    _ if !is_real(r / views_per_row) => y.fill(0.0),
                    Some(x) => y.copy_from_slice(x.row(r)),
                    None => {}
                }
            }
        }))
    })
}
