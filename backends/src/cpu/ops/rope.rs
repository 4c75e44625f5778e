//! Rotary position embedding.

use engine::op::{Rope, RopePairs};
use engine::tensor::TensorDesc;

use super::super::context::Prepared;
use super::by_row::in_place;

/// `[x, positions]`, and factors where there are some.
pub(super) fn rope(args: &[&TensorDesc], rope: Rope) -> Prepared {
    let n_head = args[0].shape.dim(1);
    Prepared::without_scratch(move |cx, at| {
        let (table, kernels) = (cx.rope_table(at.arg(1), at.node.args.get(2).copied(), rope)?, cx.machine.kernels);
        in_place(cx, at, move |r, y| {
            let (cos, sin) = (table.cos.row(r / n_head), table.sin.row(r / n_head));
            match rope.pairs {
                RopePairs::Halves => kernels.rope_half(y, cos, sin),
                RopePairs::Interleaved => kernels.rope_interleaved(y, cos, sin),
            }
        })
    })
}
