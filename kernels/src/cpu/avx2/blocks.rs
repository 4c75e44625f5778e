//! Sixteen weights of a block at a time: for rows that are decoded, and for products with many rows of activations.

#![allow(unsafe_code, reason = "methods of traits that need CPU features")]

use std::arch::x86_64::*;

use super::{load_16, load_32, widen};
use crate::quant::iq4_nl::VALUES;
use crate::quant::{
    BlockIQ4_NL, BlockQ2_K, BlockQ3_K, BlockQ4_0, BlockQ4_1, BlockQ4_K, BlockQ5_0, BlockQ5_1, BlockQ5_K, BlockQ6_K,
    BlockQ8_0, F16Bytes, Listed, scales_mins_k4,
};

/// Weights that [`Sixteens::sixteen`] gives.
pub(crate) const SIXTEEN: usize = 16;

/// Sixteen weights: `scale * level`, and `+ offset` in formats that [have one](Sixteens::HAS_OFFSET).
#[derive(Clone, Copy)]
pub(crate) struct Sixteen {
    /// Signed bytes.
    pub levels: __m128i,
    /// Factor of all of them.
    pub scale: f32,
    /// Summand of all of them.
    pub offset: f32,
}

impl Sixteen {
    /// Levels that are multiplied with a scale.
    fn scaled(levels: __m128i, scale: f32) -> Self {
        Self { levels, scale, offset: 0.0 }
    }
}

/// A block that is taken apart sixteen weights at a time.
pub(crate) trait Sixteens: Listed {
    /// Whether weights are more than levels times a scale.
    const HAS_OFFSET: bool;

    /// Weights `16 c .. 16 c + 16`.
    ///
    /// # Safety
    ///
    /// The CPU has AVX2, FMA and F16C.
    unsafe fn sixteen(&self, c: usize) -> Sixteen;
}

/// Scales of a block of 256 weights and of its groups as they are stored, with minima where the format has them.
#[derive(Clone, Copy)]
pub(crate) enum StoredScales<'a> {
    /// Scales of 16 groups, the low nibbles, and their minima.
    Nibbles { d: F16Bytes, dmin: F16Bytes, pairs: &'a [u8; 16] },
    /// Scales and minima of eight groups, as [`scales_mins_k4`] reads them.
    Packed { d: F16Bytes, dmin: F16Bytes, packed: &'a [u8; 12] },
    /// Scales of 16 groups, larger by 32.
    AroundThirtyTwo { d: F16Bytes, scales: [u8; 16] },
    /// Scales of 16 groups.
    Signed { d: F16Bytes, scales: &'a [i8; 16] },
}

/// A block of 256 weights as it is stored: unsigned levels, and scales for its groups.
pub(crate) trait Stored: Sixteens {
    /// Bits of a level.
    const BITS: i32;
    /// Whether scales and minima belong to 32 weights, as in Q4_K and Q5_K; else to 16.
    const IS_WIDE: bool = matches!(Self::BITS, 4 | 5);
    /// What unsigned levels are larger by than levels, as a power of two, if they are: where nothing else makes weights negative.
    const EXCESS: Option<i32> = if Self::HAS_OFFSET { None } else { Some(Self::BITS - 1) };

    /// Scales and minima.
    fn scales(&self) -> StoredScales<'_>;
}

/// Scales of a block and of its 16 groups; minima where the format has them.
#[derive(Clone, Copy)]
pub(crate) struct Scales {
    /// Scale of the scales.
    pub d: f32,
    /// Scale of the minima.
    pub dmin: f32,
    /// Scales of the groups, words.
    pub scales: __m256i,
    /// Minima of the groups, words.
    pub mins: __m256i,
}

impl Scales {
    /// Those of a block.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn of<B: Stored>(block: &B) -> Self {
        match block.scales() {
            StoredScales::Nibbles { d, dmin, pairs } => {
                let both = _mm256_cvtepu8_epi16(load_16(pairs));
                let (scales, mins) = (_mm256_and_si256(both, _mm256_set1_epi16(15)), _mm256_srli_epi16::<4>(both));
                Self { d: value(d), dmin: value(dmin), scales, mins }
            }
            StoredScales::Packed { d, dmin, packed } => {
                let (scales, mins) = scales_mins_k4(packed);
                Self { d: value(d), dmin: value(dmin), scales: twice(scales), mins: twice(mins) }
            }
            StoredScales::AroundThirtyTwo { d, scales } => {
                Self::without_mins(d, _mm_sub_epi8(load_16(&scales), _mm_set1_epi8(32)))
            }
            StoredScales::Signed { d, scales } => Self::without_mins(d, load_16(bytemuck::cast_ref(scales))),
        }
    }

    /// Signed scales.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn without_mins(d: F16Bytes, scales: __m128i) -> Self {
        Self { d: value(d), dmin: 0.0, scales: _mm256_cvtepi8_epi16(scales), mins: _mm256_setzero_si256() }
    }
}

/// A block of 256 weights as eight vectors of unsigned levels.
pub(crate) trait Eighths: Stored {
    /// Vector `c` of the levels, those of elements `32 c .. 32 c + 32`.
    ///
    /// # Safety
    ///
    /// The CPU has AVX2, FMA and F16C.
    unsafe fn eighth(&self, c: usize) -> __m256i;
}

impl Sixteens for BlockQ8_0 {
    const HAS_OFFSET: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(&self, c: usize) -> Sixteen {
        let levels = bytemuck::cast_ref::<_, [[u8; SIXTEEN]; 2]>(&self.q);
        Sixteen::scaled(load_16(&levels[c]), value(self.d))
    }
}

impl Sixteens for BlockQ4_0 {
    const HAS_OFFSET: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(&self, c: usize) -> Sixteen {
        Sixteen::scaled(_mm_sub_epi8(nibbles(&self.qs, c), _mm_set1_epi8(8)), value(self.d))
    }
}

impl Sixteens for BlockQ4_1 {
    const HAS_OFFSET: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(&self, c: usize) -> Sixteen {
        Sixteen { levels: nibbles(&self.qs, c), scale: value(self.d), offset: value(self.m) }
    }
}

impl Sixteens for BlockQ5_0 {
    const HAS_OFFSET: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(&self, c: usize) -> Sixteen {
        let levels = _mm_or_si128(nibbles(&self.qs, c), fifth_bits(self.qh, c));
        Sixteen::scaled(_mm_sub_epi8(levels, _mm_set1_epi8(16)), value(self.d))
    }
}

impl Sixteens for BlockQ5_1 {
    const HAS_OFFSET: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(&self, c: usize) -> Sixteen {
        let levels = _mm_or_si128(nibbles(&self.qs, c), fifth_bits(self.qh, c));
        Sixteen { levels, scale: value(self.d), offset: value(self.m) }
    }
}

impl Sixteens for BlockIQ4_NL {
    const HAS_OFFSET: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(&self, c: usize) -> Sixteen {
        let values = load_16(bytemuck::cast_ref(&VALUES));
        Sixteen::scaled(_mm_shuffle_epi8(values, nibbles(&self.qs, c)), value(self.d))
    }
}

impl Sixteens for BlockQ2_K {
    const HAS_OFFSET: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(&self, c: usize) -> Sixteen {
        let (scale, min) = (self.scales[c] & 15, self.scales[c] >> 4);
        let levels = bits::<2>(&self.qs[32 * (c / 8) + 16 * (c % 2)..], 2 * (c % 8 / 2));
        Sixteen { levels, scale: value(self.d) * f32::from(scale), offset: -(value(self.dmin) * f32::from(min)) }
    }
}

impl Stored for BlockQ2_K {
    const BITS: i32 = 2;

    #[inline]
    fn scales(&self) -> StoredScales<'_> {
        StoredScales::Nibbles { d: self.d, dmin: self.dmin, pairs: &self.scales }
    }
}

impl Eighths for BlockQ2_K {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eighth(&self, c: usize) -> __m256i {
        bits_32(&self.qs.as_chunks().0[c / 4], 2 * (c % 4), 3)
    }
}

impl Sixteens for BlockQ3_K {
    const HAS_OFFSET: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(&self, c: usize) -> Sixteen {
        let low = bits::<2>(&self.qs[32 * (c / 8) + 16 * (c % 2)..], 2 * (c % 8 / 2));
        let high = _mm_slli_epi16::<2>(bits::<1>(&self.hmask[16 * (c % 2)..], c / 2));
        let levels = _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(4));
        Sixteen::scaled(levels, value(self.d) * f32::from(self.scale(c)))
    }
}

impl Stored for BlockQ3_K {
    const BITS: i32 = 3;

    #[inline]
    fn scales(&self) -> StoredScales<'_> {
        StoredScales::AroundThirtyTwo { d: self.d, scales: bytemuck::cast(self.unsigned_scales()) }
    }
}

impl Eighths for BlockQ3_K {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eighth(&self, c: usize) -> __m256i {
        let third = _mm256_slli_epi16::<2>(bits_32(&self.hmask, c, 1));
        _mm256_or_si256(bits_32(&self.qs.as_chunks().0[c / 4], 2 * (c % 4), 3), third)
    }
}

impl Sixteens for BlockQ4_K {
    const HAS_OFFSET: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(&self, c: usize) -> Sixteen {
        let (scale, min) = self.scale_min(c / 2);
        let levels = bits::<4>(&self.qs[32 * (c / 4) + 16 * (c % 2)..], 4 * (c / 2 % 2));
        Sixteen { levels, scale: value(self.d) * f32::from(scale), offset: -(value(self.dmin) * f32::from(min)) }
    }
}

impl Stored for BlockQ4_K {
    const BITS: i32 = 4;

    #[inline]
    fn scales(&self) -> StoredScales<'_> {
        StoredScales::Packed { d: self.d, dmin: self.dmin, packed: &self.scales }
    }
}

impl Eighths for BlockQ4_K {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eighth(&self, c: usize) -> __m256i {
        bits_32(&self.qs.as_chunks().0[c / 2], 4 * (c % 2), 15)
    }
}

impl Sixteens for BlockQ5_K {
    const HAS_OFFSET: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(&self, c: usize) -> Sixteen {
        let (scale, min) = self.scale_min(c / 2);
        let low = bits::<4>(&self.qs[32 * (c / 4) + 16 * (c % 2)..], 4 * (c / 2 % 2));
        let high = _mm_slli_epi16::<4>(bits::<1>(&self.qh[16 * (c % 2)..], c / 2));
        let levels = _mm_or_si128(low, high);
        Sixteen { levels, scale: value(self.d) * f32::from(scale), offset: -(value(self.dmin) * f32::from(min)) }
    }
}

impl Stored for BlockQ5_K {
    const BITS: i32 = 5;

    #[inline]
    fn scales(&self) -> StoredScales<'_> {
        StoredScales::Packed { d: self.d, dmin: self.dmin, packed: &self.scales }
    }
}

impl Eighths for BlockQ5_K {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eighth(&self, c: usize) -> __m256i {
        let fifth = _mm256_slli_epi16::<4>(bits_32(&self.qh, c, 1));
        _mm256_or_si256(bits_32(&self.qs.as_chunks().0[c / 2], 4 * (c % 2), 15), fifth)
    }
}

impl Sixteens for BlockQ6_K {
    const HAS_OFFSET: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(&self, c: usize) -> Sixteen {
        let (h, k, l) = (c / 8, c % 8 / 2, 16 * (c % 2));
        let low = bits::<4>(&self.ql[64 * h + 32 * (k % 2) + l..], 4 * (k / 2));
        let high = _mm_slli_epi16::<4>(bits::<2>(&self.qh[32 * h + l..], 2 * k));
        let levels = _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32));
        Sixteen::scaled(levels, value(self.d) * f32::from(self.scales[c]))
    }
}

impl Stored for BlockQ6_K {
    const BITS: i32 = 6;

    #[inline]
    fn scales(&self) -> StoredScales<'_> {
        StoredScales::Signed { d: self.d, scales: &self.scales }
    }
}

impl Eighths for BlockQ6_K {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eighth(&self, c: usize) -> __m256i {
        let (h, k) = (c / 4, c % 4);
        let high = _mm256_slli_epi16::<4>(bits_32(&self.qh.as_chunks().0[h], 2 * k, 3));
        _mm256_or_si256(bits_32(&self.ql.as_chunks().0[2 * h + k % 2], 4 * (k / 2), 15), high)
    }
}

/// Eight scales of 32 weights, each twice.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn twice(x: [u8; 8]) -> __m256i {
    let x = _mm_set_epi64x(0, i64::from_le_bytes(x));
    _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, x))
}

/// Bits `mask` of each byte, from bit `from` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bits_32(bytes: &[u8; 32], from: usize, mask: i8) -> __m256i {
    _mm256_and_si256(_mm256_srl_epi16(load_32(bytes), _mm_cvtsi32_si128(from as i32)), _mm256_set1_epi8(mask))
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
