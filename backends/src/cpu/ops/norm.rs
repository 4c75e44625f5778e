//! RMS and layer norm, alone and after a residual sum.

#![allow(unsafe_code, reason = "writes rows of results")]

use engine::error::Result;
use kernels::cpu::Kernels;

use super::super::context::{At, Lowering};
use super::super::mem::{View, ViewMut};
use super::super::region::{Step, Worker, piece};
use super::{ByRow, rows_per_chunk};

/// `[x, w]` for RMS norm, `[x, w, b]` for layer norm.
pub(in super::super) fn norm(cx: &mut Lowering<'_>, at: At<'_>, eps: f32) -> Result<()> {
    let (affine, kernels) = (Affine::new(cx, at, 1)?, cx.machine.kernels);
    let step = ByRow::new(cx, at, move |_, y| affine.apply(kernels, y, eps))?;
    cx.push(step);
    Ok(())
}

/// `[x, residual, w]` or `[x, residual, w, b]`; results are the sum and its norm.
pub(in super::super) fn add_norm(cx: &mut Lowering<'_>, at: At<'_>, eps: f32) -> Result<()> {
    let x = cx.unless_in_place(at.arg(0), at.out(0))?;
    let (residual, sum) = (cx.view(at.arg(1))?, cx.result(at.out(0))?);
    let (affine, y) = (Affine::new(cx, at, 2)?, cx.result(at.out(1))?);
    cx.push(AddNorm { x, residual, sum, affine, y, eps, kernels: cx.machine.kernels });
    Ok(())
}

/// What a normalised row is multiplied with, and for layer norm what is added.
struct Affine {
    w: View<f32>,
    b: Option<View<f32>>,
}

impl Affine {
    /// Operands `first` and, where there is one, `first + 1`.
    fn new(cx: &Lowering<'_>, at: At<'_>, first: usize) -> Result<Self> {
        let b = at.node.args.get(first + 1).map(|&b| cx.view(b)).transpose()?;
        Ok(Self { w: cx.view(at.arg(first))?, b })
    }

    /// Normalises a row in place.
    fn apply(&self, kernels: Kernels, y: &mut [f32], eps: f32) {
        match &self.b {
            Some(b) => kernels.layer_norm(y, self.w.row(0), b.row(0), eps),
            None => kernels.rms_norm(y, self.w.row(0), eps),
        }
    }
}

struct AddNorm {
    /// `None`: planned in place, `sum` already holds x.
    x: Option<View<f32>>,
    residual: View<f32>,
    sum: ViewMut<f32>,
    affine: Affine,
    y: ViewMut<f32>,
    eps: f32,
    kernels: Kernels,
}

impl Step for AddNorm {
    fn chunks(&self) -> usize {
        self.y.n_rows().div_ceil(rows_per_chunk(self.y.row_len()))
    }

    fn run(&self, chunk: usize, _worker: &mut Worker) {
        for r in piece(chunk, rows_per_chunk(self.y.row_len()), self.y.n_rows()) {
            // SAFETY: row `r` of `sum` belongs to this chunk alone.
            let sum = unsafe { self.sum.row_mut(r) };
            if let Some(x) = &self.x {
                sum.copy_from_slice(x.row(r));
            }
            self.kernels.add(sum, self.residual.row(r));
            // SAFETY: row `r` of `y` belongs to this chunk alone.
            let y = unsafe { self.y.row_mut(r) };
            y.copy_from_slice(sum);
            self.affine.apply(self.kernels, y, self.eps);
        }
    }
}
