//! Rotary position embedding.

use engine::error::Result;
use engine::op::{Rope, RopePairs};

use super::super::context::{At, Lowering};
use super::ByRow;

/// `[x, positions]`.
pub(in super::super) fn rope(cx: &mut Lowering<'_>, at: At<'_>, rope: Rope) -> Result<()> {
    let table = cx.rope_table(at.arg(1), rope)?;
    let (n_head, kernels) = (cx.desc(at.arg(0)).shape.dim(1), cx.machine.kernels);
    let step = ByRow::new(cx, at, move |r, y| {
        let (cos, sin) = (table.cos.row(r / n_head), table.sin.row(r / n_head));
        match rope.pairs {
            RopePairs::Halves => kernels.rope_half(y, cos, sin),
            RopePairs::Interleaved => kernels.rope_interleaved(y, cos, sin),
        }
    })?;
    cx.push(step);
    Ok(())
}
