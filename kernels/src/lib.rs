//! Numeric kernels: slices in, slices out. No graph, no file, no allocation, no threads.
//!
//! - [`quant`]: the formats weights are stored in: block structs, decoding, encoding. The crate `formats`.
//! - [`activation`]: activations quantized on the fly, to be multiplied with weights in these formats.
//! - [`cpu`]: kernels per instruction set behind one handle, [`cpu::Kernels`]. Read that type first.
//! - [`math`]: the approximations that the kernels share, each with its error.
//!
//! A kernel is called *exact* where every instruction set gives the same bits (decoding, encoding, conversions) and
//! *close* where they agree within the rounding of the sums. One instruction set always gives the same bits for the
//! same element, however the caller splits rows into calls.
//!
//! Lengths that do not fit together are a mistake of the caller and panic.

#![warn(unreachable_pub)]

pub mod activation;
pub mod cpu;
pub mod math;
pub use formats as quant;
