//! What a matrix product is given: [`Product`], and how its activations are laid out: [`Operand`].

use bytemuck::Pod;

use crate::activation::{BlockQ8, BlockQ8_K};
use crate::quant::{Arithmetic, Block, Format, SMALL_BLOCK, SUPER_BLOCK};

/// Rows of activations in one panel of [`Operand::Panels`].
pub const PANEL_ROWS: usize = 16;

/// Most rows of activations that are few; see [`Operand::of`].
const FEW: usize = 8;

/// How a product wants its activations. [`Operand::of`] chooses, `Kernels::prepare` makes it, panel by panel.
///
/// The buffer is counted in `f32`s whatever is in it. Panels lie behind each other; each holds
/// [`panel_rows`](Self::panel_rows) rows in [`panel_len`](Self::panel_len) `f32`s. The value of a result depends on its
/// weight row, its activation row and the operand, and on nothing else.
///
/// Quantized activations `x'` are off by half a level: `abs(x' - x) <= amax / 254` for a block's largest size `amax`, so a
/// result is off by `sum over blocks of amax / 254 sum abs(w)` at most, and by about `amax sqrt(sum w^2) / 440` for errors
/// that are independent. The products and the sums of a block are exact; blocks are added in f32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operand {
    /// f32 rows as they are: rows that lie without gaps need no preparation.
    Rows,
    /// Rows of [`BlockQ8`].
    Q8,
    /// Rows of [`BlockQ8_K`].
    Q8K,
    /// `[n_panels, k, PANEL_ROWS]` f32: transposed, so that a vector holds one column of 16 rows. Missing rows are 0.
    Panels,
}

impl Operand {
    /// The arithmetic of a product of `m` rows of activations with weights of a format: the one place where it is chosen.
    ///
    /// Formats without integer arithmetic are multiplied in f32: as rows while it pays to read rows of weights once and leave
    /// them as they are, else as panels. For the others activations are rounded to 8 bits in blocks: of 32, so that a row's
    /// results are the same for every `m`, or, with weights in blocks of 256, of 256 for few rows and of 32 for many. A
    /// `precise` product of many rows is one in f32; with few rows, time is that of reading the weights.
    ///
    /// `m` counts the rows of the whole call, whatever sequences they belong to: a row of weights in blocks of 256, or of a
    /// `precise` product, may have another value in larger company.
    pub const fn of(format: Format, m: usize, precise: bool) -> Self {
        match (format.arithmetic(), m <= FEW) {
            (Arithmetic::Float, true) => Self::Rows,
            (Arithmetic::Float, false) => Self::Panels,
            (Arithmetic::Small | Arithmetic::Super, false) if precise => Self::Panels,
            (Arithmetic::Super, true) => Self::Q8K,
            (Arithmetic::Small, _) | (Arithmetic::Super, false) => Self::Q8,
        }
    }

    /// Rows of activations that one panel holds.
    pub const fn panel_rows(self) -> usize {
        match self {
            Self::Rows | Self::Q8 | Self::Q8K => 1,
            Self::Panels => PANEL_ROWS,
        }
    }

    /// `f32`s of one panel of rows of `k` elements.
    pub const fn panel_len(self, k: usize) -> usize {
        match self {
            Self::Rows => k,
            Self::Q8 => k / SMALL_BLOCK * (size_of::<BlockQ8>() / size_of::<f32>()),
            Self::Q8K => k / SUPER_BLOCK * (size_of::<BlockQ8_K>() / size_of::<f32>()),
            Self::Panels => k * PANEL_ROWS,
        }
    }

    /// `f32`s of the whole operand: `m` rows of `k` elements.
    pub const fn len(self, m: usize, k: usize) -> usize {
        m.div_ceil(self.panel_rows()) * self.panel_len(k)
    }
}

/// A tile of a matrix product: some rows of weights with all rows of activations.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// Format of the weights.
    pub format: Format,
    /// Rows of weights, `[n_rows, k]`, in `format`, without gaps.
    pub w: &'a [u8],
    /// Rows of weights.
    pub n_rows: usize,
    /// Elements of a row; a multiple of the format's block.
    pub k: usize,
    /// Layout of the activations, as [`Operand::of`] gave it for `format`.
    pub operand: Operand,
    /// The prepared activations, `operand.len(m, k)`.
    pub x: &'a [f32],
    /// Rows of activations.
    pub m: usize,
}

impl<'a> Product<'a> {
    /// The bytes of weight row `j`.
    pub(super) fn row(&self, j: usize) -> &'a [u8] {
        let row_bytes = self.format.row_bytes(self.k);
        &self.w[j * row_bytes..][..row_bytes]
    }

    /// The blocks of weight row `j`, which are of the product's format.
    pub(super) fn blocks<B: Block>(&self, j: usize) -> &'a [B] {
        bytemuck::cast_slice(self.row(j))
    }

    /// Row `i` of activations in blocks, as a quantized operand has them.
    pub(super) fn activations<B: Pod>(&self, i: usize) -> &'a [B] {
        bytemuck::cast_slice(self.panel(i))
    }

    /// Panel `i` of the activations.
    pub(super) fn panel(&self, i: usize) -> &'a [f32] {
        let len = self.operand.panel_len(self.k);
        &self.x[i * len..][..len]
    }
}
