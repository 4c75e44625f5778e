//! [`Machine`]: what decides how an op is cut and multiplied, and the rule for the arithmetic of products.

use engine::op::Precision;
use kernels::cpu::{Kernels, Operand};
use kernels::quant::Format;

/// Most rows of activations that are rounded to 8 bits where a model asks for [`Precision::Kept`]: with so few, time is that
/// of reading the weights, which 8-bit arithmetic alone keeps up with. What a clip of so few tokens loses is that of a
/// decoder's step, and tests hold encoders to it.
const FEW: usize = 8;

/// What decides how an op is cut into chunks and how much scratch memory it wants.
#[derive(Clone, Copy)]
pub(super) struct Machine {
    pub(super) kernels: Kernels,
    pub(super) n_workers: usize,
}

impl Machine {
    /// The layout of `m` rows of activations, and with it the arithmetic, of a product with weights of a format. Every product
    /// of this backend asks here.
    pub(super) fn operand(self, format: Format, m: usize, precision: Precision) -> Operand {
        match (self.kernels.operand(format, m), precision) {
            (Operand::Q8 | Operand::Q8K, Precision::Kept) if m > FEW => Operand::Panels,
            (operand, Precision::Fast | Precision::Kept) => operand,
            (_, Precision::Alone) => self.kernels.operand(format, 1),
        }
    }
}
