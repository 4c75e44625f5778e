//! The formats weights are stored in: geometry, decoding and encoding. [`Format`] is the type to read first.
//!
//! Decoding and encoding are exact: bit for bit what ggml's reference functions give (ggml 0.25.3, `ggml-quants.c`,
//! compiled without fused multiply-add). Blocks are plain bytes without alignment, so any slice of a file can be
//! viewed as blocks. Activations that are quantized on the fly are in [`activation`].

pub mod activation;
pub mod bf16;
pub mod f16;
pub mod iq4_nl;
mod lanes;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
mod search;

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

pub use self::iq4_nl::BlockIQ4_NL;
pub use self::q2_k::BlockQ2_K;
pub use self::q3_k::BlockQ3_K;
pub use self::q4_0::BlockQ4_0;
pub use self::q4_1::BlockQ4_1;
pub use self::q4_k::BlockQ4_K;
pub use self::q5_0::BlockQ5_0;
pub use self::q5_1::BlockQ5_1;
pub use self::q5_k::BlockQ5_K;
pub use self::q6_k::BlockQ6_K;
pub use self::q8_0::BlockQ8_0;

/// Elements in a block of the `Qx_0` and `Qx_1` formats.
pub const SMALL_BLOCK: usize = 32;
/// Elements in a block of the `Qx_K` formats.
pub const SUPER_BLOCK: usize = 256;

/// A format of weights, named as in GGUF.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an IEEE single.
    BF16,
    /// 32 signed bytes and one f16 scale.
    Q8_0,
    /// 32 levels of 4 bits around 8 and one f16 scale.
    Q4_0,
    /// 32 levels of 4 bits, f16 scale and minimum.
    Q4_1,
    /// 32 levels of 5 bits around 16 and one f16 scale.
    Q5_0,
    /// 32 levels of 5 bits, f16 scale and minimum.
    Q5_1,
    /// 32 levels of 4 bits that index sixteen values of uneven distance, one f16 scale.
    IQ4_NL,
    /// 256 levels of 2 bits, 16 groups with 4-bit scale and minimum.
    Q2_K,
    /// 256 levels of 3 bits, 16 groups with 6-bit scale.
    Q3_K,
    /// 256 levels of 4 bits, 8 groups with 6-bit scale and minimum.
    Q4_K,
    /// 256 levels of 5 bits, 8 groups with 6-bit scale and minimum.
    Q5_K,
    /// 256 levels of 6 bits, 16 groups with 8-bit scale.
    Q6_K,
}

impl Format {
    /// Every format, in declaration order.
    pub const ALL: [Self; 14] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::IQ4_NL,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Elements of one block; plain types are blocks of one element.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::IQ4_NL => SMALL_BLOCK,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => SUPER_BLOCK,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => size_of::<BlockQ8_0>(),
            Self::Q4_0 => size_of::<BlockQ4_0>(),
            Self::Q4_1 => size_of::<BlockQ4_1>(),
            Self::Q5_0 => size_of::<BlockQ5_0>(),
            Self::Q5_1 => size_of::<BlockQ5_1>(),
            Self::IQ4_NL => size_of::<BlockIQ4_NL>(),
            Self::Q2_K => size_of::<BlockQ2_K>(),
            Self::Q3_K => size_of::<BlockQ3_K>(),
            Self::Q4_K => size_of::<BlockQ4_K>(),
            Self::Q5_K => size_of::<BlockQ5_K>(),
            Self::Q6_K => size_of::<BlockQ6_K>(),
        }
    }

    /// Bytes of a row of `n` elements; `n` is a multiple of [`block_len`](Self::block_len).
    pub const fn row_bytes(self, n: usize) -> usize {
        assert!(n.is_multiple_of(self.block_len()), "a row is whole blocks");
        n / self.block_len() * self.block_bytes()
    }

    /// Decodes one row; `out.len()` is a multiple of [`block_len`](Self::block_len) and `bytes` holds exactly that row.
    #[inline(always)]
    pub fn decode_row(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), self.row_bytes(out.len()), "bytes of a row");
        match self {
            Self::F32 => {
                for (y, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *y = f32::from_le_bytes(*b);
                }
            }
            Self::F16 => f16::decode(bytemuck::cast_slice(bytes), out),
            Self::BF16 => bf16::decode(bytemuck::cast_slice(bytes), out),
            Self::Q8_0 => q8_0::decode(bytemuck::cast_slice(bytes), out.as_chunks_mut().0),
            Self::Q4_0 => q4_0::decode(bytemuck::cast_slice(bytes), out.as_chunks_mut().0),
            Self::Q4_1 => q4_1::decode(bytemuck::cast_slice(bytes), out.as_chunks_mut().0),
            Self::Q5_0 => q5_0::decode(bytemuck::cast_slice(bytes), out.as_chunks_mut().0),
            Self::Q5_1 => q5_1::decode(bytemuck::cast_slice(bytes), out.as_chunks_mut().0),
            Self::IQ4_NL => iq4_nl::decode(bytemuck::cast_slice(bytes), out.as_chunks_mut().0),
            Self::Q2_K => q2_k::decode(bytemuck::cast_slice(bytes), out.as_chunks_mut().0),
            Self::Q3_K => q3_k::decode(bytemuck::cast_slice(bytes), out.as_chunks_mut().0),
            Self::Q4_K => q4_k::decode(bytemuck::cast_slice(bytes), out.as_chunks_mut().0),
            Self::Q5_K => q5_k::decode(bytemuck::cast_slice(bytes), out.as_chunks_mut().0),
            Self::Q6_K => q6_k::decode(bytemuck::cast_slice(bytes), out.as_chunks_mut().0),
        }
    }

    /// Whether every value, or every scale and minimum, in `bytes` of whole blocks is finite.
    pub fn is_finite(self, bytes: &[u8]) -> bool {
        let scales: &[usize] = match self {
            Self::F32 => return bytes.as_chunks().0.iter().all(|b| f32::from_le_bytes(*b).is_finite()),
            Self::BF16 => {
                return bytes.as_chunks().0.iter().all(|b| bf16::to_f32(u16::from_le_bytes(*b)).is_finite());
            }
            Self::F16 => &[0],
            Self::Q8_0 => &[offset_of!(BlockQ8_0, d)],
            Self::Q4_0 => &[offset_of!(BlockQ4_0, d)],
            Self::Q4_1 => &[offset_of!(BlockQ4_1, d), offset_of!(BlockQ4_1, m)],
            Self::Q5_0 => &[offset_of!(BlockQ5_0, d)],
            Self::Q5_1 => &[offset_of!(BlockQ5_1, d), offset_of!(BlockQ5_1, m)],
            Self::IQ4_NL => &[offset_of!(BlockIQ4_NL, d)],
            Self::Q2_K => &[offset_of!(BlockQ2_K, d), offset_of!(BlockQ2_K, dmin)],
            Self::Q3_K => &[offset_of!(BlockQ3_K, d)],
            Self::Q4_K => &[offset_of!(BlockQ4_K, d), offset_of!(BlockQ4_K, dmin)],
            Self::Q5_K => &[offset_of!(BlockQ5_K, d), offset_of!(BlockQ5_K, dmin)],
            Self::Q6_K => &[offset_of!(BlockQ6_K, d)],
        };
        let is_finite = |block: &[u8], at: usize| f16::is_finite(u16::from_le_bytes([block[at], block[at + 1]]));
        bytes.chunks_exact(self.block_bytes()).all(|block| scales.iter().all(|&at| is_finite(block, at)))
    }

    /// Whether importance changes what [`encode_row_weighted`](Self::encode_row_weighted) writes.
    pub const fn uses_importance(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::BF16 | Self::Q8_0)
    }

    /// Encodes one row; `x.len()` is a multiple of [`block_len`](Self::block_len) and `out` takes exactly that row.
    ///
    /// Rows are independent of each other, and so are blocks: a row may be encoded in pieces of whole blocks.
    ///
    /// Infinities and NaN keep their meaning in F32, F16 and BF16. In the quantized formats they give a scale that is
    /// not finite or levels without meaning: the caller checks its rows first.
    pub fn encode_row(self, x: &[f32], out: &mut [u8]) {
        self.encode(x, None, out);
    }

    /// Encodes one row with an importance for each column, finite and not negative, which weighs the squared errors.
    ///
    /// Q4_0, Q4_1, Q5_0 and Q5_1 look at the whole row, so that it is encoded in one piece. F32, F16, BF16 and Q8_0
    /// ignore the importance.
    pub fn encode_row_weighted(self, x: &[f32], importance: &[f32], out: &mut [u8]) {
        self.encode(x, Some(importance), out);
    }

    #[inline(always)]
    pub(crate) fn encode(self, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        assert_eq!(out.len(), self.row_bytes(x.len()), "bytes of a row");
        assert!(importance.is_none_or(|importance| importance.len() == x.len()), "an importance for each column");
        let (small, importance_of_small) = (x.as_chunks().0, importance.map(|w| w.as_chunks().0));
        let (large, importance_of_large) = (x.as_chunks().0, importance.map(|w| w.as_chunks().0));
        match self {
            Self::F32 => {
                for (b, x) in out.as_chunks_mut().0.iter_mut().zip(x) {
                    *b = x.to_le_bytes();
                }
            }
            Self::F16 => f16::encode(x, bytemuck::cast_slice_mut(out)),
            Self::BF16 => bf16::encode(x, bytemuck::cast_slice_mut(out)),
            Self::Q8_0 => q8_0::encode(small, bytemuck::cast_slice_mut(out)),
            Self::Q4_0 => q4_0::encode(small, importance_of_small, bytemuck::cast_slice_mut(out)),
            Self::Q4_1 => q4_1::encode(small, importance_of_small, bytemuck::cast_slice_mut(out)),
            Self::Q5_0 => q5_0::encode(small, importance_of_small, bytemuck::cast_slice_mut(out)),
            Self::Q5_1 => q5_1::encode(small, importance_of_small, bytemuck::cast_slice_mut(out)),
            Self::IQ4_NL => iq4_nl::encode(small, importance_of_small, bytemuck::cast_slice_mut(out)),
            Self::Q2_K => q2_k::encode(large, importance_of_large, bytemuck::cast_slice_mut(out)),
            Self::Q3_K => q3_k::encode(large, importance_of_large, bytemuck::cast_slice_mut(out)),
            Self::Q4_K => q4_k::encode(large, importance_of_large, bytemuck::cast_slice_mut(out)),
            Self::Q5_K => q5_k::encode(large, importance_of_large, bytemuck::cast_slice_mut(out)),
            Self::Q6_K => q6_k::encode(large, importance_of_large, bytemuck::cast_slice_mut(out)),
        }
    }
}

/// An f16 as it lies in a file: two bytes, little-endian, no alignment.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct F16Bytes(pub [u8; 2]);

impl F16Bytes {
    /// The nearest half of `x`; see [`f16::from_f32`].
    pub fn from_f32(x: f32) -> Self {
        Self(f16::from_f32(x).to_le_bytes())
    }

    /// The bits of the half.
    pub const fn to_bits(self) -> u16 {
        u16::from_le_bytes(self.0)
    }

    /// The value, exactly.
    pub fn to_f32(self) -> f32 {
        f16::to_f32(self.to_bits())
    }
}

/// Truncates toward zero and keeps the low 8 bits; NaN and what does not fit an i32 give 0.
///
/// x86's cvttss2si followed by a cast to i8, which Rust's saturating `as i8` is not.
fn trunc8(x: f32) -> i8 {
    // -2^31 is the value of the instruction for what does not fit; its low bits are 0 too.
    if (-2147483648.0..2147483648.0).contains(&x) { (x as i32) as i8 } else { 0 }
}

/// `1 / d`, or 0 where `d` is 0.
fn inverse_or_zero(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// 6-bit scale and minimum of group `j` of the eight groups in a Q4_K or Q5_K block.
///
/// Source: ggml, `get_scale_min_k4`.
pub(crate) const fn scale_min_k4(scales: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        (scales[j + 4] & 15 | scales[j - 4] >> 6 << 4, scales[j + 4] >> 4 | scales[j] >> 6 << 4)
    }
}

/// [`scale_min_k4`] of all eight groups: scales, then minima.
pub(crate) fn scales_mins_k4(scales: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let word = |i: usize| u32::from_le_bytes([scales[4 * i], scales[4 * i + 1], scales[4 * i + 2], scales[4 * i + 3]]);
    let (a, b, c) = (word(0), word(1), word(2));
    let join = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
    let (six, four, two) = (0x3F3F_3F3F, 0x0F0F_0F0F, 0x0303_0303);
    (join(a & six, c & four | (a >> 6 & two) << 4), join(b & six, c >> 4 & four | (b >> 6 & two) << 4))
}

/// Eight 6-bit scales and minima in twelve bytes; the inverse of [`scale_min_k4`].
fn pack_scales_mins_k4(scales: [u8; 8], mins: [u8; 8]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => scales[i] | scales[i + 4] >> 4 << 6,
        4..8 => mins[i - 4] | mins[i] >> 4 << 6,
        _ => scales[i - 4] & 15 | mins[i - 4] << 4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_and_minima_unpack_together() {
        let bytes = [0x12, 0xF3, 0x4C, 0xA5, 0x96, 0x0F, 0xF8, 0x71, 0x62, 0xDE, 0x3B, 0x84];
        let (scales, mins) = scales_mins_k4(&bytes);
        for j in 0..8 {
            assert_eq!((scales[j], mins[j]), scale_min_k4(&bytes, j));
        }
        assert_eq!(pack_scales_mins_k4(scales, mins), bytes);
    }

    #[test]
    fn truncation_keeps_the_low_byte() {
        for (x, want) in [
            (1.9, 1),
            (-1.9, -1),
            (127.5, 127),
            (128.0, -128),
            (-129.0, 127),
            (2147483648.0, 0),
            (f32::NAN, 0),
            (f32::NEG_INFINITY, 0),
        ] {
            assert_eq!(trunc8(x), want, "{x}");
        }
    }
}
