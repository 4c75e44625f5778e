//! What attention of one key-value head is given: [`Attention`].

use half::f16;

/// Keys that are scored before the running maximum of the softmax is renewed.
///
/// Blocks begin at multiples of this, counted from the first row of the keys, whatever the ranges are: the order of a
/// query's sums depends on its own range alone.
pub const KEY_BLOCK: usize = 64;

/// Rows of keys or of values, `stride` elements apart.
#[derive(Clone, Copy, Debug)]
pub enum KvRows<'a> {
    /// Stored as f32.
    F32 {
        /// The elements from the first row on; the last row may end the slice.
        x: &'a [f32],
        /// Elements from one row to the next.
        stride: usize,
    },
    /// Stored as f16.
    F16 {
        /// The elements from the first row on; the last row may end the slice.
        x: &'a [f16],
        /// Elements from one row to the next.
        stride: usize,
    },
}

impl KvRows<'_> {
    /// Whether `n` rows of `head_dim` elements fit.
    pub(super) fn holds(&self, n: usize, head_dim: usize) -> bool {
        let (len, stride) = match *self {
            Self::F32 { x, stride } => (x.len(), stride),
            Self::F16 { x, stride } => (x.len(), stride),
        };
        n == 0 || stride.checked_mul(n - 1).and_then(|at| at.checked_add(head_dim)).is_some_and(|end| end <= len)
    }
}

/// Queries that share the keys and values of one head.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Elements of a query, a key and a value.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// `[n_q, head_dim]`, rows `q_stride` apart.
    pub q: &'a [f32],
    /// Elements from one query to the next.
    pub q_stride: usize,
    /// Keys.
    pub k: KvRows<'a>,
    /// Values.
    pub v: KvRows<'a>,
    /// `[start, end)` of the keys that each query sees; their number is `n_q`.
    pub ranges: &'a [[u32; 2]],
}
