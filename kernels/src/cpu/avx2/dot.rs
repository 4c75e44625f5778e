//! Products with few rows of activations: weights are read once, as they are stored.
//!
//! A tile is R rows of weights with M rows of activations; each result has an accumulator of its own, so its bits do
//! not depend on R and M.

#![allow(unsafe_code, reason = "methods of traits that need CPU features")]

use std::arch::x86_64::*;

use super::blocks::*;
use super::{Plain, Vector, WIDTH, lanes, load_16, load_32, sum, tile};
use crate::activation::{BlockQ8, BlockQ8_K};
use crate::cpu::product::Product;
use crate::cpu::rows::write;
use crate::quant::iq4_nl::VALUES;
use crate::quant::{BF16Bytes, BlockIQ4_NL, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, F16Bytes, F32Bytes};

/// Calls a tile function for 4 x 2, 4 x 1, 1 x 2 and 1 x 1 results until all are there.
macro_rules! tiles {
    ($tile:ident, $block:ident, $p:ident, $out:ident, $x:expr) => {{
        let x = $x;
        let row = |j: usize| $p.blocks::<$block>(j);
        let mut j = 0;
        while j < $p.n_rows {
            let n = if $p.n_rows - j >= 4 { 4 } else { 1 };
            for i in (0..$p.m).step_by(2) {
                let pair = $p.m - i >= 2;
                let out = &mut $out[i * $p.n_rows + j..];
                match (n, pair) {
                    (4, true) => {
                        let w = [row(j), row(j + 1), row(j + 2), row(j + 3)];
                        write($tile::<$block, 4, 2>(w, [x(i), x(i + 1)]), out, $p.n_rows)
                    }
                    (4, false) => {
                        let w = [row(j), row(j + 1), row(j + 2), row(j + 3)];
                        write($tile::<$block, 4, 1>(w, [x(i)]), out, $p.n_rows)
                    }
                    (_, true) => write($tile::<$block, 1, 2>([row(j)], [x(i), x(i + 1)]), out, $p.n_rows),
                    (_, false) => write($tile::<$block, 1, 1>([row(j)], [x(i)]), out, $p.n_rows),
                }
            }
            j += n;
        }
    }};
}

/// Products of a plain format with rows of f32.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn product_plain<B: Plain>(p: &Product<'_>, out: &mut [f32], _scratch: &mut [f32]) {
    tiles!(tile, B, p, out, |i| p.panel(i));
}

/// Products of 32-blocks with few rows of [`BlockQ8`].
#[target_feature(enable = "avx2,fma,f16c")]
pub fn product_few_q8<B: Groups>(p: &Product<'_>, out: &mut [f32]) {
    tiles!(tile_q8, B, p, out, |i| p.activations(i));
}

impl Plain for F32Bytes {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn widen(x: &[Self; WIDTH]) -> Vector {
        _mm256_castsi256_ps(load_32(bytemuck::cast_ref(x)))
    }
}

impl Plain for F16Bytes {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn widen(x: &[Self; WIDTH]) -> Vector {
        _mm256_cvtph_ps(load_16(bytemuck::cast_ref(x)))
    }
}

impl Plain for BF16Bytes {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn widen(x: &[Self; WIDTH]) -> Vector {
        let x = _mm256_cvtepu16_epi32(load_16(bytemuck::cast_ref(x)));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))
    }
}

/// A block of 32 weights as one vector of levels.
pub trait Groups: Sixteens {
    /// Scale, offset and levels.
    ///
    /// # Safety
    ///
    /// The CPU has AVX2, FMA and F16C.
    unsafe fn group(&self) -> (F16Bytes, F16Bytes, __m256i);
}

/// The offset of formats that have none.
const NONE: F16Bytes = F16Bytes([0; 2]);

impl Groups for BlockQ8_0 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn group(&self) -> (F16Bytes, F16Bytes, __m256i) {
        (self.d, NONE, load_32(bytemuck::cast_ref(&self.q)))
    }
}

impl Groups for BlockQ4_0 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn group(&self) -> (F16Bytes, F16Bytes, __m256i) {
        (self.d, NONE, _mm256_sub_epi8(nibbles(&self.qs), _mm256_set1_epi8(8)))
    }
}

impl Groups for BlockQ4_1 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn group(&self) -> (F16Bytes, F16Bytes, __m256i) {
        (self.d, self.m, nibbles(&self.qs))
    }
}

impl Groups for BlockQ5_0 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn group(&self) -> (F16Bytes, F16Bytes, __m256i) {
        (self.d, NONE, _mm256_sub_epi8(with_fifth_bits(nibbles(&self.qs), self.qh), _mm256_set1_epi8(16)))
    }
}

impl Groups for BlockQ5_1 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn group(&self) -> (F16Bytes, F16Bytes, __m256i) {
        (self.d, self.m, with_fifth_bits(nibbles(&self.qs), self.qh))
    }
}

impl Groups for BlockIQ4_NL {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn group(&self) -> (F16Bytes, F16Bytes, __m256i) {
        let values = load_16(bytemuck::cast_ref(&VALUES));
        (self.d, NONE, _mm256_shuffle_epi8(_mm256_set_m128i(values, values), nibbles(&self.qs)))
    }
}

/// The low nibbles of 16 bytes, then the high ones.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn nibbles(pairs: &[u8; 16]) -> __m256i {
    let x = load_16(pairs);
    _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(x), x), _mm256_set1_epi8(15))
}

/// Levels with the given bits as their fifth ones.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn with_fifth_bits(levels: __m256i, bits: [u8; 4]) -> __m256i {
    const EACH: i64 = 0x0101_0101_0101_0101;
    // Each of the four bytes eight times.
    let index = _mm256_set_epi64x(3 * EACH, 2 * EACH, EACH, 0);
    let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(bits)), index);
    let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
    let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, own), own);
    _mm256_or_si256(levels, _mm256_and_si256(is_set, _mm256_set1_epi8(16)))
}

/// `w . x` in eight parts.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot(w: __m256i, x: __m256i) -> __m256i {
    // maddubs takes one unsigned operand: use |w| and move w's sign to x.
    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// Dot products of rows of 32-blocks: the chain over ascending blocks of `fma(w.q . x.q, w.d x.d, result)`, the integer
/// exact, followed by `fma(w.offset, x.d sum(x.q), result)` in formats that have an offset. Four rows, one per lane, so
/// that their sums are brought together; with fewer the last one counts.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile_q8<B: Groups, const R: usize, const M: usize>(w: [&[B]; R], x: [&[BlockQ8]; M]) -> [[f32; M]; R] {
    let n_blocks = x[0].len();
    // One length for all rows lets the compiler drop the checks in the loop.
    let x = x.map(|x| &x[..n_blocks]);
    let w: [_; 4] = std::array::from_fn(|r| &w[r.min(R - 1)][..n_blocks]);
    let mut acc = [_mm_setzero_ps(); M];
    for b in 0..n_blocks {
        // Scales of the rows, then offsets.
        let mut halves = [F16Bytes::default(); 8];
        let mut sums = [[_mm256_setzero_si256(); 4]; M];
        for (r, w) in w.iter().enumerate() {
            // The same place in the rows of the next tile: rows are short, and each is a stream of its own.
            _mm_prefetch::<_MM_HINT_T0>((&raw const w[b]).wrapping_add(R * n_blocks).cast());
            let levels;
            // SAFETY: this function has the features.
            (halves[r], halves[4 + r], levels) = unsafe { w[b].group() };
            for (sums, x) in sums.iter_mut().zip(x) {
                sums[r] = dot(levels, load_32(bytemuck::cast_ref(&x[b].q)));
            }
        }
        let halves = _mm256_cvtph_ps(load_16(bytemuck::cast_ref(&halves)));
        let (d, offset) = (_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
        for ((acc, sums), x) in acc.iter_mut().zip(sums).zip(x) {
            let pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
            let sum = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
            *acc = _mm_fmadd_ps(_mm_cvtepi32_ps(sum), _mm_mul_ps(d, _mm_set1_ps(x[b].d)), *acc);
            if B::HAS_OFFSET {
                *acc = _mm_fmadd_ps(offset, _mm_set1_ps(x[b].d * -x[b].neg_sum as f32), *acc);
            }
        }
    }
    let mut results = [[0.0; M]; R];
    for (i, acc) in acc.into_iter().enumerate() {
        for (results, y) in results.iter_mut().zip(lanes(acc)) {
            results[i] = y;
        }
    }
    results
}

/// Products of 256-blocks with rows of [`BlockQ8_K`], every result by a dot product of rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn product_q8_k<B: Eighths>(p: &Product<'_>, out: &mut [f32], _scratch: &mut [f32]) {
    for j in 0..p.n_rows {
        for i in 0..p.m {
            out[i * p.n_rows + j] = dot_k::<B>(p.blocks(j), p.activations(i));
        }
    }
}

/// Vectors of levels in a block of 256.
const EIGHTHS: usize = 8;

/// Per block `x.d w.d sum(scale w.level x.q) - x.d w.dmin sum(min x.q)`, where scales and minima belong to groups of 16 and
/// the sums are integers.
///
/// Levels are unsigned, larger by [`Eighths::EXCESS`], so that `2^excess sum(scale x.q)` is taken off the first sum.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_k<B: Eighths>(w: &[B], x: &[BlockQ8_K]) -> f32 {
    let mut acc = _mm256_setzero_ps();
    for (w, x) in w.iter().zip(x) {
        // SAFETY: this function has the features.
        let Scales { d, dmin, scales, mins } = unsafe { w.scales() };
        // The first eight scales in both halves, and the others.
        let scales_twice =
            [_mm256_permute2x128_si256::<0x00>(scales, scales), _mm256_permute2x128_si256::<0x11>(scales, scales)];
        let mut sum = _mm256_setzero_si256();
        for c in 0..EIGHTHS {
            // Word 2 c of the eight in the first half, word 2 c + 1 in the second.
            let word = |j: usize| _mm_set1_epi16((0x0100 + 0x0202 * (j % 8)) as i16);
            let index = _mm256_set_m128i(word(2 * c + 1), word(2 * c));
            let scale = _mm256_shuffle_epi8(scales_twice[c / 4], index);
            let activations = load_32(&bytemuck::cast_ref::<_, [[u8; 32]; EIGHTHS]>(&x.q)[c]);
            // SAFETY: this function has the features.
            let pairs = _mm256_maddubs_epi16(unsafe { w.eighth(c) }, activations);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale));
        }
        let group_sums = load_32(bytemuck::cast_ref(&x.sums));
        if let Some(excess) = B::EXCESS {
            let offset = _mm256_sll_epi32(_mm256_madd_epi16(scales, group_sums), _mm_cvtsi32_si128(excess));
            sum = _mm256_sub_epi32(sum, offset);
        }
        acc = _mm256_fmadd_ps(_mm256_set1_ps(x.d * d), _mm256_cvtepi32_ps(sum), acc);
        if B::HAS_OFFSET {
            let offset = _mm256_cvtepi32_ps(_mm256_madd_epi16(mins, group_sums));
            acc = _mm256_fnmadd_ps(_mm256_set1_ps(x.d * dmin), offset, acc);
        }
    }
    sum(acc)
}
