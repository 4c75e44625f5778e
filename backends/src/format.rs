//! The kernels' [`Format`] of the engine's [`DType`]s.

use engine::DType;
use kernels::quant::Format;

/// The format in which kernels read weights of this type; none for integers.
pub const fn format_of(dtype: DType) -> Option<Format> {
    dtype.format()
}
