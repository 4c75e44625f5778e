//! Pointwise functions of one and of two operands.

#![allow(unsafe_code, reason = "writes rows of results")]

use engine::error::Result;
use engine::op::{Binary, Unary};
use kernels::cpu::Kernels;

use super::super::lower::{At, Lowering};
use super::super::mem::{View, ViewMut};
use super::super::region::{Step, Worker};
use super::{activate, gated, piece, rows_per_chunk};

/// `[a, b]`; `b` is repeated over the outer extents of `a` that it lacks.
pub(in super::super) fn binary(cx: &mut Lowering<'_>, at: At<'_>, op: Binary) -> Result<()> {
    let a = cx.unless_in_place(at.arg(0), at.out(0))?;
    let is_scalar = cx.desc(at.arg(1)).shape.rank() == 0;
    let step =
        TwoOperands { a, b: cx.view(at.arg(1))?, op, is_scalar, y: cx.result(at.out(0))?, kernels: cx.machine.kernels };
    cx.push(step);
    Ok(())
}

/// `[x]`.
pub(in super::super) fn unary(cx: &mut Lowering<'_>, at: At<'_>, act: Unary) -> Result<()> {
    let x = cx.unless_in_place(at.arg(0), at.out(0))?;
    cx.push(Activation { x, up: None, act, y: cx.result(at.out(0))?, kernels: cx.machine.kernels });
    Ok(())
}

/// `[gate, up]`.
pub(in super::super) fn glu(cx: &mut Lowering<'_>, at: At<'_>, act: Unary) -> Result<()> {
    let x = cx.unless_in_place(at.arg(0), at.out(0))?;
    let up = Some(cx.view(at.arg(1))?);
    cx.push(Activation { x, up, act, y: cx.result(at.out(0))?, kernels: cx.machine.kernels });
    Ok(())
}

/// `[a, b]`: `a + scale * b`.
pub(in super::super) fn add_scaled(cx: &mut Lowering<'_>, at: At<'_>, scale: f32) -> Result<()> {
    let a = cx.unless_in_place(at.arg(0), at.out(0))?;
    cx.push(AddScaled { a, b: cx.view(at.arg(1))?, scale, y: cx.result(at.out(0))?, kernels: cx.machine.kernels });
    Ok(())
}

struct AddScaled {
    /// `None`: planned in place, `y` already holds a.
    a: Option<View<f32>>,
    b: View<f32>,
    scale: f32,
    y: ViewMut<f32>,
    kernels: Kernels,
}

impl Step for AddScaled {
    fn chunks(&self) -> usize {
        self.y.n_rows().div_ceil(rows_per_chunk(self.y.row_len()))
    }

    fn run(&self, chunk: usize, _worker: &mut Worker) {
        for r in piece(chunk, rows_per_chunk(self.y.row_len()), self.y.n_rows()) {
            // SAFETY: row `r` of `y` belongs to this chunk alone.
            let y = unsafe { self.y.row_mut(r) };
            if let Some(a) = &self.a {
                y.copy_from_slice(a.row(r));
            }
            self.kernels.axpy_f32(y, self.scale, self.b.row(r));
        }
    }
}

struct TwoOperands {
    /// `None`: planned in place, `y` already holds a.
    a: Option<View<f32>>,
    b: View<f32>,
    op: Binary,
    /// Whether `b` is a single element for every row.
    is_scalar: bool,
    y: ViewMut<f32>,
    kernels: Kernels,
}

impl Step for TwoOperands {
    fn chunks(&self) -> usize {
        self.y.n_rows().div_ceil(rows_per_chunk(self.y.row_len()))
    }

    fn run(&self, chunk: usize, _worker: &mut Worker) {
        for r in piece(chunk, rows_per_chunk(self.y.row_len()), self.y.n_rows()) {
            // SAFETY: row `r` of `y` belongs to this chunk alone.
            let y = unsafe { self.y.row_mut(r) };
            if let Some(a) = &self.a {
                y.copy_from_slice(a.row(r));
            }
            let b = self.b.row(r % self.b.n_rows());
            match (self.op, self.is_scalar) {
                (Binary::Add, false) => self.kernels.add(y, b),
                (Binary::Mul, false) => self.kernels.mul(y, b),
                (Binary::Add, true) => y.iter_mut().for_each(|y| *y += b[0]),
                (Binary::Mul, true) => self.kernels.scale(y, b[0]),
            }
        }
    }
}

/// `act(x)`, or with `up` `act(x) * up`.
struct Activation {
    /// `None`: planned in place, `y` already holds x.
    x: Option<View<f32>>,
    up: Option<View<f32>>,
    act: Unary,
    y: ViewMut<f32>,
    kernels: Kernels,
}

impl Step for Activation {
    fn chunks(&self) -> usize {
        self.y.n_rows().div_ceil(rows_per_chunk(self.y.row_len()))
    }

    fn run(&self, chunk: usize, _worker: &mut Worker) {
        for r in piece(chunk, rows_per_chunk(self.y.row_len()), self.y.n_rows()) {
            // SAFETY: row `r` of `y` belongs to this chunk alone.
            let y = unsafe { self.y.row_mut(r) };
            if let Some(x) = &self.x {
                y.copy_from_slice(x.row(r));
            }
            match &self.up {
                Some(up) => gated(self.kernels, Some(self.act), y, up.row(r)),
                None => activate(self.kernels, Some(self.act), y),
            }
        }
    }
}
