//! The formats weights are stored in: geometry, decoding and encoding. [`Format`] is the type to read first.
//!
//! Decoding and encoding are exact: bit for bit what ggml's reference functions give (ggml 0.25.3, `ggml-quants.c`,
//! compiled without fused multiply-add). Blocks are plain bytes without alignment, so any slice of a file can be
//! viewed as blocks.
//!
//! A leaf of its own, below `kernels`, which multiplies with these blocks, and `engine`, which knows what tensors are made of:
//! both take the formats from the one list [`formats!`], and neither knows the other.
//!
//! A format is a file here with its block and an implementation of [`Block`], and an entry of the list. With these it runs
//! everywhere, on every instruction set: rows are decoded and multiplied in f32, or, where the block tells its levels
//! ([`Integers`]), multiplied in integers by plain code. An instruction set has faster kernels for those formats for which its
//! module in `kernels` adds them.

#![warn(unreachable_pub)]

mod block;
mod format;
mod lanes;
mod search;

pub mod bf16;
mod f16;
mod f32;
pub mod iq4_nl;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

pub use self::bf16::BF16Bytes;
pub use self::block::{Arithmetic, Block, Group, Integers, Listed, Sixteen, SuperBlock, decode_row, encode_row};
pub use self::f16::F16Bytes;
pub use self::f32::F32Bytes;
pub use self::format::Format;
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

/// The list of formats: calls the macro `$with` with an entry `NAME: Block, id ID, files [TYPE = NUMBER, ..];` for each.
///
/// ID is that of a GGUF tensor table (ggml, `enum ggml_type`). The types are those of files whose matrices have the format
/// where no rule says otherwise, with `general.file_type` (llama.cpp, `enum llama_ftype`). The order of the entries is that in
/// which people see formats.
#[macro_export]
macro_rules! formats {
    ($with:ident) => {
        $with! {
            /// IEEE single precision.
            F32: F32Bytes, id 0, files [F32 = 0];
            /// IEEE half precision.
            F16: F16Bytes, id 1, files [F16 = 1];
            /// The upper half of an IEEE single.
            BF16: BF16Bytes, id 30, files [BF16 = 32];
            /// 32 signed bytes and one f16 scale.
            Q8_0: BlockQ8_0, id 8, files [Q8_0 = 7];
            /// 32 levels of 4 bits around 8 and one f16 scale.
            Q4_0: BlockQ4_0, id 2, files [Q4_0 = 2];
            /// 32 levels of 4 bits, f16 scale and minimum.
            Q4_1: BlockQ4_1, id 3, files [Q4_1 = 3];
            /// 32 levels of 5 bits around 16 and one f16 scale.
            Q5_0: BlockQ5_0, id 6, files [Q5_0 = 8];
            /// 32 levels of 5 bits, f16 scale and minimum.
            Q5_1: BlockQ5_1, id 7, files [Q5_1 = 9];
            /// 32 levels of 4 bits that index sixteen values of uneven distance, one f16 scale.
            IQ4_NL: BlockIQ4_NL, id 20, files [IQ4_NL = 25];
            /// 256 levels of 2 bits, 16 groups with 4-bit scale and minimum.
            Q2_K: BlockQ2_K, id 10, files [Q2_K = 10];
            /// 256 levels of 3 bits, 16 groups with 6-bit scale.
            Q3_K: BlockQ3_K, id 11, files [Q3_K_S = 11, Q3_K_M = 12, Q3_K_L = 13];
            /// 256 levels of 4 bits, 8 groups with 6-bit scale and minimum.
            Q4_K: BlockQ4_K, id 12, files [Q4_K_S = 14, Q4_K_M = 15];
            /// 256 levels of 5 bits, 8 groups with 6-bit scale and minimum.
            Q5_K: BlockQ5_K, id 13, files [Q5_K_S = 16, Q5_K_M = 17];
            /// 256 levels of 6 bits, 16 groups with 8-bit scale.
            Q6_K: BlockQ6_K, id 14, files [Q6_K = 18];
        }
    };
}

/// Elements in a block of the `Qx_0` and `Qx_1` formats.
pub const SMALL_BLOCK: usize = 32;
/// Elements in a block of the `Qx_K` formats.
pub const SUPER_BLOCK: usize = 256;

/// Adding this and taking it away rounds an f32 below 2^22 in size to the nearest integer, ties to even.
const ROUND: f32 = 12582912.0;

/// The nearest integer, ties to even, for abs(x) < 2^22; other values keep the low bits that the formula gives.
#[inline(always)]
pub fn round(x: f32) -> i32 {
    ((x + ROUND).to_bits() & 0x007F_FFFF) as i32 - 0x0040_0000
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
pub const fn scale_min_k4(scales: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        (scales[j + 4] & 15 | scales[j - 4] >> 6 << 4, scales[j + 4] >> 4 | scales[j] >> 6 << 4)
    }
}

/// [`scale_min_k4`] of all eight groups: scales, then minima.
#[inline]
pub fn scales_mins_k4(scales: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
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
