//! Pointwise functions of one and of two operands.

use engine::op::{Binary, Unary};
use engine::tensor::TensorDesc;

use super::super::context::Prepared;
use super::by_row::in_place;
use super::{activate, gated};

/// `[a, b]`; `b` is repeated over the outer extents of `a` that it lacks.
pub(super) fn binary(args: &[&TensorDesc], op: Binary) -> Prepared {
    // A single element for every row.
    let is_scalar = args[1].shape.rank() == 0;
    Prepared::without_scratch(move |cx, at| {
        let (b, kernels) = (cx.view::<f32>(at.arg(1))?, cx.machine.kernels);
        in_place(cx, at, move |r, y| {
            let b = b.row(r % b.n_rows());
            match (op, is_scalar) {
                (Binary::Add, false) => kernels.add(y, b),
                (Binary::Mul, false) => kernels.mul(y, b),
                (Binary::Add, true) => y.iter_mut().for_each(|y| *y += b[0]),
                (Binary::Mul, true) => kernels.scale(y, b[0]),
            }
        })
    })
}

/// `[x]`: `factor * x`.
pub(super) fn scale(factor: f32) -> Prepared {
    Prepared::without_scratch(move |cx, at| {
        let kernels = cx.machine.kernels;
        in_place(cx, at, move |_, y| kernels.scale(y, factor))
    })
}

/// `[a, b]`: `a + scale * b`.
pub(super) fn add_scaled(scale: f32) -> Prepared {
    Prepared::without_scratch(move |cx, at| {
        let (b, kernels) = (cx.view::<f32>(at.arg(1))?, cx.machine.kernels);
        in_place(cx, at, move |r, y| kernels.axpy_f32(y, scale, b.row(r)))
    })
}

/// `[x]`.
pub(super) fn unary(act: Unary) -> Prepared {
    Prepared::without_scratch(move |cx, at| {
        let kernels = cx.machine.kernels;
        in_place(cx, at, move |_, y| activate(kernels, Some(act), y))
    })
}

/// `[gate, up]`.
pub(super) fn glu(act: Unary) -> Prepared {
    Prepared::without_scratch(move |cx, at| {
        let (up, kernels) = (cx.view::<f32>(at.arg(1))?, cx.machine.kernels);
        in_place(cx, at, move |r, y| gated(kernels, Some(act), y, up.row(r)))
    })
}
