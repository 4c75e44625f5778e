//! Sixteen weights of a block at a time: for rows that are decoded, and for products with many rows of activations.

use std::arch::x86_64::*;

use super::{load_16, widen};
use crate::quant::iq4_nl::VALUES;
use crate::quant::{
    BlockIQ4_NL, BlockQ2_K, BlockQ3_K, BlockQ4_0, BlockQ4_1, BlockQ4_K, BlockQ5_0, BlockQ5_1, BlockQ5_K, BlockQ6_K,
    F16Bytes, Format, scales_mins_k4,
};

// Formats as constants that a generic function can take.
pub const Q8_0: usize = Format::Q8_0 as usize;
pub const Q4_0: usize = Format::Q4_0 as usize;
pub const Q4_1: usize = Format::Q4_1 as usize;
pub const Q5_0: usize = Format::Q5_0 as usize;
pub const Q5_1: usize = Format::Q5_1 as usize;
pub const IQ4_NL: usize = Format::IQ4_NL as usize;
pub const Q2_K: usize = Format::Q2_K as usize;
pub const Q3_K: usize = Format::Q3_K as usize;
pub const Q4_K: usize = Format::Q4_K as usize;
pub const Q5_K: usize = Format::Q5_K as usize;
pub const Q6_K: usize = Format::Q6_K as usize;
pub const Q8_0_BYTES: usize = Format::Q8_0.block_bytes();
pub const Q4_0_BYTES: usize = Format::Q4_0.block_bytes();
pub const Q4_1_BYTES: usize = Format::Q4_1.block_bytes();
pub const Q5_0_BYTES: usize = Format::Q5_0.block_bytes();
pub const Q5_1_BYTES: usize = Format::Q5_1.block_bytes();
pub const IQ4_NL_BYTES: usize = Format::IQ4_NL.block_bytes();
pub const Q2_K_BYTES: usize = Format::Q2_K.block_bytes();
pub const Q3_K_BYTES: usize = Format::Q3_K.block_bytes();
pub const Q4_K_BYTES: usize = Format::Q4_K.block_bytes();
pub const Q5_K_BYTES: usize = Format::Q5_K.block_bytes();
pub const Q6_K_BYTES: usize = Format::Q6_K.block_bytes();

/// Weights that [`sixteen`] gives.
pub const SIXTEEN: usize = 16;

/// Sixteen weights: `scale * level`, and `+ offset` in formats that [have one](has_offset).
#[derive(Clone, Copy)]
pub struct Sixteen {
    /// Signed bytes.
    pub levels: __m128i,
    /// Factor of all of them.
    pub scale: f32,
    /// Summand of all of them.
    pub offset: f32,
}

/// Sixteens in a block.
pub const fn n_sixteens<const FORMAT: usize>() -> usize {
    match FORMAT {
        Q4_0 | Q4_1 | Q5_0 | Q5_1 | IQ4_NL => Format::Q4_0.block_len() / SIXTEEN,
        _ => Format::Q4_K.block_len() / SIXTEEN,
    }
}

/// Whether weights are more than levels times a scale.
pub const fn has_offset<const FORMAT: usize>() -> bool {
    matches!(FORMAT, Q4_1 | Q5_1 | Q2_K | Q4_K | Q5_K)
}

/// Weights `16 c .. 16 c + 16` of a block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn sixteen<const FORMAT: usize, const BYTES: usize>(block: &[u8; BYTES], c: usize) -> Sixteen {
    let plain = |levels, scale| Sixteen { levels, scale, offset: 0.0 };
    match FORMAT {
        Q4_0 => {
            let b: &BlockQ4_0 = bytemuck::from_bytes(block);
            plain(_mm_sub_epi8(nibbles(&b.qs, c), _mm_set1_epi8(8)), value(b.d))
        }
        Q4_1 => {
            let b: &BlockQ4_1 = bytemuck::from_bytes(block);
            Sixteen { levels: nibbles(&b.qs, c), scale: value(b.d), offset: value(b.m) }
        }
        Q5_0 => {
            let b: &BlockQ5_0 = bytemuck::from_bytes(block);
            let levels = _mm_or_si128(nibbles(&b.qs, c), fifth_bits(b.qh, c));
            plain(_mm_sub_epi8(levels, _mm_set1_epi8(16)), value(b.d))
        }
        Q5_1 => {
            let b: &BlockQ5_1 = bytemuck::from_bytes(block);
            let levels = _mm_or_si128(nibbles(&b.qs, c), fifth_bits(b.qh, c));
            Sixteen { levels, scale: value(b.d), offset: value(b.m) }
        }
        IQ4_NL => {
            let b: &BlockIQ4_NL = bytemuck::from_bytes(block);
            let values = load_16(bytemuck::cast_ref(&VALUES));
            plain(_mm_shuffle_epi8(values, nibbles(&b.qs, c)), value(b.d))
        }
        Q2_K => {
            let b: &BlockQ2_K = bytemuck::from_bytes(block);
            let (scale, min) = (b.scales[c] & 15, b.scales[c] >> 4);
            let levels = bits::<2>(&b.qs[32 * (c / 8) + 16 * (c % 2)..], 2 * (c % 8 / 2));
            Sixteen { levels, scale: value(b.d) * f32::from(scale), offset: -(value(b.dmin) * f32::from(min)) }
        }
        Q3_K => {
            let b: &BlockQ3_K = bytemuck::from_bytes(block);
            let low = bits::<2>(&b.qs[32 * (c / 8) + 16 * (c % 2)..], 2 * (c % 8 / 2));
            let high = _mm_slli_epi16::<2>(bits::<1>(&b.hmask[16 * (c % 2)..], c / 2));
            let levels = _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(4));
            plain(levels, value(b.d) * f32::from(b.scale(c)))
        }
        Q4_K => {
            let b: &BlockQ4_K = bytemuck::from_bytes(block);
            let (scale, min) = b.scale_min(c / 2);
            let levels = bits::<4>(&b.qs[32 * (c / 4) + 16 * (c % 2)..], 4 * (c / 2 % 2));
            Sixteen { levels, scale: value(b.d) * f32::from(scale), offset: -(value(b.dmin) * f32::from(min)) }
        }
        Q5_K => {
            let b: &BlockQ5_K = bytemuck::from_bytes(block);
            let (scale, min) = b.scale_min(c / 2);
            let low = bits::<4>(&b.qs[32 * (c / 4) + 16 * (c % 2)..], 4 * (c / 2 % 2));
            let high = _mm_slli_epi16::<4>(bits::<1>(&b.qh[16 * (c % 2)..], c / 2));
            let levels = _mm_or_si128(low, high);
            Sixteen { levels, scale: value(b.d) * f32::from(scale), offset: -(value(b.dmin) * f32::from(min)) }
        }
        Q6_K => {
            let b: &BlockQ6_K = bytemuck::from_bytes(block);
            let (h, k, l) = (c / 8, c % 8 / 2, 16 * (c % 2));
            let low = bits::<4>(&b.ql[64 * h + 32 * (k % 2) + l..], 4 * (k / 2));
            let high = _mm_slli_epi16::<4>(bits::<2>(&b.qh[32 * h + l..], 2 * k));
            let levels = _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32));
            plain(levels, value(b.d) * f32::from(b.scales[c]))
        }
        _ => unreachable!("formats of this file"),
    }
}

/// Scales of a block and of its 16 groups; minima where the format has them.
#[derive(Clone, Copy)]
pub struct Scales {
    /// Scale of the scales.
    pub d: f32,
    /// Scale of the minima.
    pub dmin: f32,
    /// Scales of the groups, words.
    pub scales: __m256i,
    /// Minima of the groups, words.
    pub mins: __m256i,
}

/// Scales and minima of a block of 256.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn scales<const FORMAT: usize, const BYTES: usize>(block: &[u8; BYTES]) -> Scales {
    let signed = |d, scales| Scales { d: value(d), dmin: 0.0, scales, mins: _mm256_setzero_si256() };
    // Eight scales of 32 weights, each twice.
    let twice = |x: [u8; 8]| {
        let x = _mm_set_epi64x(0, i64::from_le_bytes(x));
        _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, x))
    };
    match FORMAT {
        Q2_K => {
            let b: &BlockQ2_K = bytemuck::from_bytes(block);
            let both = _mm256_cvtepu8_epi16(load_16(&b.scales));
            let (scales, mins) = (_mm256_and_si256(both, _mm256_set1_epi16(15)), _mm256_srli_epi16::<4>(both));
            Scales { d: value(b.d), dmin: value(b.dmin), scales, mins }
        }
        Q3_K => {
            let b: &BlockQ3_K = bytemuck::from_bytes(block);
            let scales = _mm_sub_epi8(load_16(bytemuck::cast_ref(&b.unsigned_scales())), _mm_set1_epi8(32));
            signed(b.d, _mm256_cvtepi8_epi16(scales))
        }
        Q4_K => {
            let b: &BlockQ4_K = bytemuck::from_bytes(block);
            let (scales, mins) = scales_mins_k4(&b.scales);
            Scales { d: value(b.d), dmin: value(b.dmin), scales: twice(scales), mins: twice(mins) }
        }
        Q5_K => {
            let b: &BlockQ5_K = bytemuck::from_bytes(block);
            let (scales, mins) = scales_mins_k4(&b.scales);
            Scales { d: value(b.d), dmin: value(b.dmin), scales: twice(scales), mins: twice(mins) }
        }
        Q6_K => {
            let b: &BlockQ6_K = bytemuck::from_bytes(block);
            signed(b.d, _mm256_cvtepi8_epi16(load_16(bytemuck::cast_ref(&b.scales))))
        }
        _ => unreachable!("formats of 256-blocks"),
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn value(x: F16Bytes) -> f32 {
    widen(x.to_bits())
}

/// The low nibbles of bytes, or the high ones.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles(pairs: &[u8; 16], high: usize) -> __m128i {
    bits::<4>(pairs, 4 * high)
}

/// `N` bits from bit `from` on of each of the first 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bits<const N: u32>(bytes: &[u8], from: usize) -> __m128i {
    let bytes = load_16(bytes.first_chunk().expect("16 bytes of a block"));
    let shifted = _mm_srl_epi16(bytes, _mm_cvtsi32_si128(from as i32));
    _mm_and_si128(shifted, _mm_set1_epi8((1 << N) - 1))
}

/// Bits `16 c .. 16 c + 16`, each as bit 4 of a byte.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fifth_bits(all: [u8; 4], c: usize) -> __m128i {
    let two = _mm_cvtsi32_si128((u32::from_le_bytes(all) >> (16 * c)) as i32);
    // The first byte eight times, then the second.
    let bytes = _mm_shuffle_epi8(two, _mm_set_epi64x(0x0101_0101_0101_0101, 0));
    let own = _mm_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
    _mm_and_si128(_mm_cmpeq_epi8(_mm_and_si128(bytes, own), own), _mm_set1_epi8(16))
}
