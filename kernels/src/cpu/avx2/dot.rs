//! Products with few rows of activations: weights are read once, as they are stored.
//!
//! A tile is R rows of weights with M rows of activations; each result has an accumulator of its own, so its bits do
//! not depend on R and M.

#![allow(unsafe_code, reason = "methods of traits that need CPU features")]

use std::arch::x86_64::*;

use super::blocks::*;
use super::{Plain, Vector, WIDTH, by_lane, load_16, load_32, sum, tile};
use crate::activation::{BlockQ8, BlockQ8_K};
use crate::cpu::product::Product;
use crate::cpu::tiles::{in_tiles, write};
use crate::quant::iq4_nl::VALUES;
use crate::quant::{BF16Bytes, BlockIQ4_NL, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, F16Bytes, F32Bytes};

/// Calls `$tile(rows, columns, i)` for 4 or 1 rows of weights with 4, 2 or 1 rows of activations from number `i` on, until all
/// results are there.
macro_rules! tiles {
    ($tile:ident, $block:ident, $p:ident, $out:ident, $x:expr) => {{
        let row = |j: usize| $p.blocks::<$block>(j);
        for j in (0..$p.n_rows / 4 * 4).step_by(4) {
            tiles!(4, [row(j), row(j + 1), row(j + 2), row(j + 3)], j, $tile, $block, $p, $out, $x);
        }
        for j in $p.n_rows / 4 * 4..$p.n_rows {
            tiles!(1, [row(j)], j, $tile, $block, $p, $out, $x);
        }
    }};
    ($rows:literal, $w:expr, $j:ident, $tile:ident, $block:ident, $p:ident, $out:ident, $x:expr) => {{
        let (w, x, mut i) = ($w, $x, 0);
        while i < $p.m {
            let out = &mut $out[i * $p.n_rows + $j..];
            match $p.m - i {
                1 => {
                    write($tile::<$block, $rows, 1>(w, [x(i)], i), out, $p.n_rows);
                    i += 1;
                }
                2 | 3 => {
                    write($tile::<$block, $rows, 2>(w, [x(i), x(i + 1)], i), out, $p.n_rows);
                    i += 2;
                }
                _ => {
                    let x = [x(i), x(i + 1), x(i + 2), x(i + 3)];
                    write($tile::<$block, $rows, 4>(w, x, i), out, $p.n_rows);
                    i += 4;
                }
            }
        }
    }};
}

/// Products of a plain format with rows of f32.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn product_plain<B: Plain>(p: &Product<'_>, out: &mut [f32], _scratch: &mut [f32]) {
    tiles!(tile_plain, B, p, out, |i| p.panel(i));
}

/// Products of 32-blocks with few rows of [`BlockQ8`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn product_few_q8<B: Groups>(p: &Product<'_>, out: &mut [f32]) {
    tiles!(tile_q8, B, p, out, |i| p.activations(i));
}

/// [`tile`], which asks for the rows of the next tile as it comes to these. Four rows with four of activations are two tiles:
/// that many sums do not fit the registers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile_plain<B: Plain, const R: usize, const M: usize>(w: [&[B]; R], x: [&[f32]; M], i: usize) -> [[f32; M]; R] {
    let ahead = if i == 0 { R * w[0].len() } else { 0 };
    if let ([w0, w1, w2, w3], 4) = (&w[..], M) {
        let (mut results, low, high) =
            ([[0.0; M]; R], tile::<B, 2, M>([w0, w1], x, ahead), tile::<B, 2, M>([w2, w3], x, ahead));
        results.iter_mut().zip(low.into_iter().chain(high)).for_each(|(y, of_row)| *y = of_row);
        return results;
    }
    tile(w, x, ahead)
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

/// What levels are larger by than those of the format.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    /// They are signed, and as they are.
    Signed,
    /// They are 0 ..= 31, and as they are.
    None,
    /// They are 0 ..= 31, larger by this power of two.
    Power(i32),
}

/// A block of 32 weights as one vector of levels.
pub(super) trait Groups: Sixteens {
    /// What levels are larger by.
    const EXCESS: Excess;

    /// The levels.
    ///
    /// # Safety
    ///
    /// The CPU has AVX2, FMA and F16C.
    unsafe fn levels(&self) -> __m256i;

    /// Scale and offset.
    fn scales(&self) -> [F16Bytes; 2];
}

/// The offset of formats that have none.
const NONE: F16Bytes = F16Bytes([0; 2]);

/// Implements [`Groups`]: what levels are larger by, scale and offset, and the levels.
macro_rules! groups {
    ($(|$b:ident: $block:ident| $excess:expr, $scales:expr, $levels:expr;)*) => {
        $(
            impl Groups for $block {
                const EXCESS: Excess = $excess;

                #[inline]
                #[target_feature(enable = "avx2,fma,f16c")]
                unsafe fn levels(&self) -> __m256i {
                    let $b = self;
                    $levels
                }

                fn scales(&self) -> [F16Bytes; 2] {
                    let $b = self;
                    $scales
                }
            }
        )*
    };
}

groups! {
    |b: BlockQ8_0| Excess::Signed, [b.d, NONE], load_32(bytemuck::cast_ref(&b.q));
    |b: BlockQ4_0| Excess::Power(3), [b.d, NONE], nibbles(&b.qs);
    |b: BlockQ4_1| Excess::None, [b.d, b.m], nibbles(&b.qs);
    |b: BlockQ5_0| Excess::Power(4), [b.d, NONE], with_fifth_bits(nibbles(&b.qs), b.qh);
    |b: BlockQ5_1| Excess::None, [b.d, b.m], with_fifth_bits(nibbles(&b.qs), b.qh);
    |b: BlockIQ4_NL| Excess::Signed, [b.d, NONE], values_of(nibbles(&b.qs));
}

/// The low nibbles of 16 bytes, then the high ones.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn nibbles(pairs: &[u8; 16]) -> __m256i {
    // The same bytes twice, of which the second are shifted.
    let shift = _mm256_set_epi64x(4, 4, 0, 0);
    let pairs = _mm256_srlv_epi64(_mm256_broadcastsi128_si256(load_16(pairs)), shift);
    _mm256_and_si256(pairs, _mm256_set1_epi8(15))
}

/// The values of IQ4_NL that nibbles stand for.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn values_of(nibbles: __m256i) -> __m256i {
    let values = load_16(bytemuck::cast_ref(&VALUES));
    _mm256_shuffle_epi8(_mm256_set_m128i(values, values), nibbles)
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

/// Dot products of rows of 32-blocks: the chain over ascending blocks of `fma(w.q . x.q, w.d x.d, result)`, the integer
/// exact, followed by `fma(w.offset, x.d sum(x.q), result)` in formats that have an offset. Four rows, one per lane, so
/// that their sums are brought together; with fewer the last one counts.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile_q8<B: Groups, const R: usize, const M: usize>(w: [&[B]; R], x: [&[BlockQ8]; M], i: usize) -> [[f32; M]; R] {
    let n_blocks = x[0].len();
    // One length for all rows lets the compiler drop the checks in the loop.
    let x = x.map(|x| &x[..n_blocks]);
    let w: [_; 4] = std::array::from_fn(|r| &w[r.min(R - 1)][..n_blocks]);
    let mut acc = [_mm_setzero_ps(); M];
    for b in 0..n_blocks {
        let w = [&w[0][b], &w[1][b], &w[2][b], &w[3][b]];
        if i == 0 {
            for block in w {
                // The same place in the rows of the next tile: rows are short, and each is a stream of its own.
                _mm_prefetch::<_MM_HINT_T0>((&raw const *block).wrapping_add(R * n_blocks).cast());
            }
        }
        let x: [&BlockQ8; M] = x.map(|x| &x[b]);
        let sums = sums_q8(w, x);
        let (d, offset) = scales(w);
        for ((acc, sum), x) in acc.iter_mut().zip(sums).zip(x) {
            *acc = _mm_fmadd_ps(_mm_cvtepi32_ps(sum), _mm_mul_ps(d, _mm_set1_ps(x.d)), *acc);
            if B::HAS_OFFSET {
                *acc = _mm_fmadd_ps(offset, _mm_set1_ps(x.d * -x.neg_sum as f32), *acc);
            }
        }
    }
    by_lane(acc)
}

/// Scales and offsets of four blocks.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scales<B: Groups>(w: [&B; 4]) -> (__m128, __m128) {
    // Brought together by integer shifts: the vector units have enough to do.
    let (mut d, mut offset) = (0, 0);
    for block in w.into_iter().rev() {
        let [of_levels, of_all] = block.scales();
        d = d << 16 | i64::from(of_levels.to_bits());
        offset = offset << 16 | i64::from(of_all.to_bits());
    }
    let widen = |bits: i64| _mm_cvtph_ps(_mm_cvtsi64_si128(bits));
    (widen(d), if B::HAS_OFFSET { widen(offset) } else { _mm_setzero_ps() })
}

/// Products of levels of four blocks, one in each lane, with those of `M` blocks of activations.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sums_q8<B: Groups, const M: usize>(w: [&B; 4], x: [&BlockQ8; M]) -> [__m128i; M] {
    let one = _mm256_set1_epi16(1);
    let mut firsts = [_mm256_setzero_si256(); M];
    let mut sums = [_mm_setzero_si128(); M];
    for (pair, w) in w.as_chunks::<2>().0.iter().enumerate() {
        // SAFETY: this function has the features.
        let (w0, w1) = unsafe { (w[0].levels(), w[1].levels()) };
        // maddubs takes one unsigned operand: use |w| and move w's sign to x.
        let (size0, size1) = (_mm256_abs_epi8(w0), _mm256_abs_epi8(w1));
        for ((first, sum), x) in firsts.iter_mut().zip(&mut sums).zip(x) {
            let q = load_32(bytemuck::cast_ref(&x.q));
            let both = if B::EXCESS == Excess::Signed {
                let a = _mm256_madd_epi16(_mm256_maddubs_epi16(size0, _mm256_sign_epi8(q, w0)), one);
                let b = _mm256_madd_epi16(_mm256_maddubs_epi16(size1, _mm256_sign_epi8(q, w1)), one);
                _mm256_hadd_epi32(a, b)
            } else {
                // Sums of eight products of levels below 32 fit 16 bits.
                _mm256_hadd_epi16(_mm256_maddubs_epi16(w0, q), _mm256_maddubs_epi16(w1, q))
            };
            if pair == 0 {
                *first = both;
                continue;
            }
            let all = if B::EXCESS == Excess::Signed {
                _mm256_hadd_epi32(*first, both)
            } else {
                _mm256_madd_epi16(_mm256_hadd_epi16(*first, both), one)
            };
            *sum = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
            if let Excess::Power(excess) = B::EXCESS {
                *sum = _mm_add_epi32(*sum, _mm_set1_epi32(x.neg_sum << excess));
            }
        }
    }
    sums
}

/// Products of 256-blocks with rows of [`BlockQ8_K`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn product_q8_k<B: Eighths>(p: &Product<'_>, out: &mut [f32], _scratch: &mut [f32]) {
    for j in 0..p.n_rows {
        let w = p.blocks::<B>(j);
        in_tiles!(p.m, |i| p.activations(i), [4, 2], |i, x| {
            write([dots_q8_k(w, x)], &mut out[i * p.n_rows + j..], p.n_rows);
        });
    }
}

/// Vectors of levels in a block of 256.
const EIGHTHS: usize = 8;

/// Dot products of a row with `M` rows of activations. Per block `x.d w.d sum(scale w.level x.q) - x.d w.dmin sum(min x.q)`,
/// where scales and minima belong to groups of 16 and the sums are integers.
///
/// Levels are unsigned, larger by [`Stored::EXCESS`], so that `2^excess sum(scale x.q)` is taken off the first sum.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dots_q8_k<B: Eighths, const M: usize>(w: &[B], x: [&[BlockQ8_K]; M]) -> [f32; M] {
    let mut acc = [_mm256_setzero_ps(); M];
    for (b, w) in w.iter().enumerate() {
        let Scales { d, dmin, scales, mins } = Scales::of(w);
        // The first eight scales in both halves, and the others.
        let scales_twice =
            [_mm256_permute2x128_si256::<0x00>(scales, scales), _mm256_permute2x128_si256::<0x11>(scales, scales)];
        let mut sums = [_mm256_setzero_si256(); M];
        for c in 0..EIGHTHS {
            // Word 2 c of the eight in the first half, word 2 c + 1 in the second.
            let word = |j: usize| _mm_set1_epi16((0x0100 + 0x0202 * (j % 8)) as i16);
            let index = _mm256_set_m128i(word(2 * c + 1), word(2 * c));
            let scale = _mm256_shuffle_epi8(scales_twice[c / 4], index);
            // SAFETY: this function has the features.
            let levels = unsafe { w.eighth(c) };
            for (sum, x) in sums.iter_mut().zip(x) {
                let activations = load_32(&bytemuck::cast_ref::<_, [[u8; 32]; EIGHTHS]>(&x[b].q)[c]);
                let pairs = _mm256_maddubs_epi16(levels, activations);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, scale));
            }
        }
        for ((acc, mut sum), x) in acc.iter_mut().zip(sums).zip(x) {
            let x = &x[b];
            let group_sums = load_32(bytemuck::cast_ref(&x.sums));
            if let Some(excess) = B::EXCESS {
                let offset = _mm256_sll_epi32(_mm256_madd_epi16(scales, group_sums), _mm_cvtsi32_si128(excess));
                sum = _mm256_sub_epi32(sum, offset);
            }
            *acc = _mm256_fmadd_ps(_mm256_set1_ps(x.d * d), _mm256_cvtepi32_ps(sum), *acc);
            if B::HAS_OFFSET {
                let offset = _mm256_cvtepi32_ps(_mm256_madd_epi16(mins, group_sums));
                *acc = _mm256_fnmadd_ps(_mm256_set1_ps(x.d * dmin), offset, *acc);
            }
        }
    }
    let mut results = [0.0; M];
    results.iter_mut().zip(acc).for_each(|(y, acc)| *y = sum(acc));
    results
}
