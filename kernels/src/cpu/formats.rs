//! What an instruction set does with weights of each format: [`FormatKernels`].
//!
//! Every format has every kernel: where an instruction set has none of its own, the plain code is compiled for it. Its module
//! puts those that it has into the table.

use super::product::{Operand, Product};
use crate::quant::Format;

/// Kernels of one instruction set for one format. Calling them is sound on a CPU that has it.
#[derive(Clone, Copy)]
pub(super) struct FormatKernels {
    /// Decodes one row.
    pub decode_row: unsafe fn(&[u8], &mut [f32]),
    /// Encodes one row; an importance for each column, or none.
    pub encode_row: unsafe fn(&[f32], Option<&[f32]>, &mut [u8]),
    /// Products with [`Operand::Rows`].
    pub rows: ProductKernel,
    /// Products with [`Operand::Panels`].
    pub panels: ProductKernel,
    /// Products with [`Operand::Q8`]; none for formats that are only multiplied in f32.
    pub q8: Option<ProductKernel>,
    /// Products with [`Operand::Q8K`]; only for formats of 256-blocks.
    pub q8_k: Option<ProductKernel>,
}

/// `out[i, j] = sum over k of w[j, k] x[i, k]`.
#[derive(Clone, Copy)]
pub(super) struct ProductKernel {
    /// `f32`s that it needs to work in, for rows of weights, their length, and rows of activations.
    pub scratch_len: fn(usize, usize, usize) -> usize,
    /// Product, results, what it works in.
    pub run: unsafe fn(&Product<'_>, &mut [f32], &mut [f32]),
}

/// The kernels of every format, in the order of [`Format::ALL`].
pub(super) type Formats = [FormatKernels; Format::ALL.len()];

impl FormatKernels {
    /// The kernel of products with an operand, which is one that the format has.
    pub(super) fn product(&self, operand: Operand) -> ProductKernel {
        let kernel = match operand {
            Operand::Rows => Some(self.rows),
            Operand::Panels => Some(self.panels),
            Operand::Q8 => self.q8,
            Operand::Q8K => self.q8_k,
        };
        kernel.expect("an operand of this format")
    }
}

/// `[of_plain_code::<F32Bytes>(), ..]`, for every format.
macro_rules! of_every_format {
    ($($(#[$doc:meta])* $name:ident: $block:ident, id $id:literal, files [$($file:ident = $number:literal),*];)*) => {
        [$(of_plain_code::<crate::quant::$block>()),*]
    };
}

/// Defines, for a set of CPU features, `PLAIN_CODE`: the kernels of every format from plain code and from the module's
/// `dot_f32` and `product_panels`; `WITH_PLAIN_FORMATS`, which has its `product_plain` and `decode_f16` too; and what its table
/// `FORMATS` is made with. That is what `decode_row` looks into.
macro_rules! formats_for {
    ($features:literal) => {
        use std::ops::Range;

        use crate::cpu::formats::{FormatKernels, Formats, ProductKernel, of_every_format};
        use crate::cpu::integers;
        use crate::quant::{self, Arithmetic, Block, Listed};

        /// Decodes one row of weights; exact.
        #[target_feature(enable = $features)]
        pub(super) fn decode_row(format: Format, bytes: &[u8], out: &mut [f32]) {
            // SAFETY: kernels of this table need the features that this function has.
            unsafe { (FORMATS[format as usize].decode_row)(bytes, out) }
        }

        /// Decodes these columns of all rows of weights, at most `DEPTH`.
        #[target_feature(enable = $features)]
        fn decode_columns<const DEPTH: usize>(p: &Product<'_>, columns: Range<usize>, out: &mut [[f32; DEPTH]]) {
            let bytes = p.format.row_bytes(columns.start)..p.format.row_bytes(columns.end);
            for (j, row) in out.iter_mut().take(p.n_rows).enumerate() {
                decode_row(p.format, &p.row(j)[bytes.clone()], &mut row[..columns.len()]);
            }
        }

        #[target_feature(enable = $features)]
        fn decode_plainly<B: Block>(bytes: &[u8], out: &mut [f32]) {
            quant::decode_row::<B>(bytes, out);
        }

        #[target_feature(enable = $features)]
        fn encode_plainly<B: Block>(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
            quant::encode_row::<B>(x, importance, out);
        }

        #[target_feature(enable = $features)]
        fn groups_q8_plainly<B: Block>(p: &Product<'_>, out: &mut [f32], _scratch: &mut [f32]) {
            integers::groups_q8::<B>(p, out);
        }

        #[target_feature(enable = $features)]
        fn super_blocks_q8_plainly<B: Block>(p: &Product<'_>, out: &mut [f32], _scratch: &mut [f32]) {
            integers::super_blocks_q8::<B>(p, out);
        }

        #[target_feature(enable = $features)]
        fn super_blocks_q8_k_plainly<B: Block>(p: &Product<'_>, out: &mut [f32], _scratch: &mut [f32]) {
            integers::super_blocks_q8_k::<B>(p, out);
        }

        /// The scratch memory of kernels without.
        const NOTHING: fn(usize, usize, usize) -> usize = |_, _, _| 0;

        /// Products of weights that are decoded into scratch, a row at a time, with rows of f32.
        #[target_feature(enable = $features)]
        fn product_decoded(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
            let row = &mut scratch[..p.k];
            for j in 0..p.n_rows {
                decode_row(p.format, p.row(j), row);
                for i in 0..p.m {
                    out[i * p.n_rows + j] = dot_f32(row, p.panel(i));
                }
            }
        }

        const fn of_plain_code<B: Block>() -> FormatKernels {
            let (q8, q8_k): (Option<ProductKernel>, Option<ProductKernel>) = match B::INTEGERS.arithmetic() {
                Arithmetic::Float => (None, None),
                Arithmetic::Small => (Some(ProductKernel { scratch_len: NOTHING, run: groups_q8_plainly::<B> }), None),
                Arithmetic::Super => (
                    Some(ProductKernel { scratch_len: NOTHING, run: super_blocks_q8_plainly::<B> }),
                    Some(ProductKernel { scratch_len: NOTHING, run: super_blocks_q8_k_plainly::<B> }),
                ),
            };
            FormatKernels {
                decode_row: decode_plainly::<B>,
                encode_row: encode_plainly::<B>,
                rows: ProductKernel { scratch_len: |_, k, _| k, run: product_decoded },
                panels: ProductKernel {
                    scratch_len: |n_rows, _, m| product_panels_scratch_len(n_rows, m),
                    run: product_panels,
                },
                q8,
                q8_k,
            }
        }

        pub(super) const PLAIN_CODE: Formats = quant::formats!(of_every_format);

        const WITH_PLAIN_FORMATS: Formats = {
            let mut formats = PLAIN_CODE;
            plain::<F32Bytes>(&mut formats);
            plain::<F16Bytes>(&mut formats);
            formats[Format::F16 as usize].decode_row = decode_f16;
            plain::<BF16Bytes>(&mut formats);
            formats
        };

        const fn plain<B: Plain>(formats: &mut Formats) {
            formats[B::FORMAT as usize].rows = ProductKernel { scratch_len: NOTHING, run: product_plain::<B> };
        }

        const fn sixteens<B: Sixteens>(formats: &mut Formats) {
            formats[B::FORMAT as usize].decode_row = decode_blocks::<B>;
        }
    };
}

pub(super) use {formats_for, of_every_format};
