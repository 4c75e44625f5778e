//! Pointwise functions of one and of two operands.

use engine::error::Result;
use engine::op::{Binary, Unary};

use super::super::context::{At, Lowering};
use super::{ByRow, activate, gated};

/// `[a, b]`; `b` is repeated over the outer extents of `a` that it lacks.
pub(in super::super) fn binary(cx: &mut Lowering<'_>, at: At<'_>, op: Binary) -> Result<()> {
    // A single element for every row.
    let is_scalar = cx.desc(at.arg(1)).shape.rank() == 0;
    let (b, kernels) = (cx.view::<f32>(at.arg(1))?, cx.machine.kernels);
    let step = ByRow::new(cx, at, move |r, y| {
        let b = b.row(r % b.n_rows());
        match (op, is_scalar) {
            (Binary::Add, false) => kernels.add(y, b),
            (Binary::Mul, false) => kernels.mul(y, b),
            (Binary::Add, true) => y.iter_mut().for_each(|y| *y += b[0]),
            (Binary::Mul, true) => kernels.scale(y, b[0]),
        }
    })?;
    cx.push(step);
    Ok(())
}

/// `[a, b]`: `a + scale * b`.
pub(in super::super) fn add_scaled(cx: &mut Lowering<'_>, at: At<'_>, scale: f32) -> Result<()> {
    let (b, kernels) = (cx.view::<f32>(at.arg(1))?, cx.machine.kernels);
    let step = ByRow::new(cx, at, move |r, y| kernels.axpy_f32(y, scale, b.row(r)))?;
    cx.push(step);
    Ok(())
}

/// `[x]`.
pub(in super::super) fn unary(cx: &mut Lowering<'_>, at: At<'_>, act: Unary) -> Result<()> {
    let kernels = cx.machine.kernels;
    let step = ByRow::new(cx, at, move |_, y| activate(kernels, Some(act), y))?;
    cx.push(step);
    Ok(())
}

/// `[gate, up]`.
pub(in super::super) fn glu(cx: &mut Lowering<'_>, at: At<'_>, act: Unary) -> Result<()> {
    let (up, kernels) = (cx.view::<f32>(at.arg(1))?, cx.machine.kernels);
    let step = ByRow::new(cx, at, move |r, y| gated(kernels, Some(act), y, up.row(r)))?;
    cx.push(step);
    Ok(())
}
