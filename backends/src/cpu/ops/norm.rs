//! RMS and layer norm, alone and after a residual sum.

use engine::error::Result;
use kernels::cpu::Kernels;

use super::super::context::{At, Lowering, Prepared};
use super::super::mem::View;
use super::by_row::{ByRow, in_place};

/// `[x, w]` for RMS norm, `[x, w, b]` for layer norm.
pub(super) fn norm(eps: f32) -> Prepared {
    Prepared::without_scratch(move |cx, at| {
        let (affine, kernels) = (Affine::new(cx, at, 1)?, cx.machine.kernels);
        in_place(cx, at, move |r, y| affine.apply(kernels, r, y, eps))
    })
}

/// `[x, residual, w]` or `[x, residual, w, b]`; results are the sum and its norm.
pub(super) fn add_norm(eps: f32) -> Prepared {
    Prepared::without_scratch(move |cx, at| {
        // `None`: planned in place, the sum already holds x.
        let x = cx.unless_in_place(at.arg(0), at.out(0))?;
        let residual = cx.view::<f32>(at.arg(1))?;
        let (affine, kernels) = (Affine::new(cx, at, 2)?, cx.machine.kernels);
        let results = (cx.result::<f32>(at.out(0))?, cx.result::<f32>(at.out(1))?);
        Ok(ByRow::new(results, move |rows, _| {
            for (r, (sum, y)) in rows {
                if let Some(x) = &x {
                    sum.copy_from_slice(x.row(r));
                }
                kernels.add(sum, residual.row(r));
                y.copy_from_slice(sum);
                affine.apply(kernels, r, y, eps);
            }
        }))
    })
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

    /// Normalises row `r` in place. The rows of the weights repeat.
    fn apply(&self, kernels: Kernels, r: usize, y: &mut [f32], eps: f32) {
        let w = self.w.row(r % self.w.n_rows());
        match &self.b {
            Some(b) => kernels.layer_norm(y, w, b.row(r % b.n_rows()), eps),
            None => kernels.rms_norm(y, w, eps),
        }
    }
}
