//! Products of plain formats and of Q8_0 with few rows of activations: weights are read once, as they are stored.
//!
//! A tile is R rows of weights with M rows of activations; each result has an accumulator of its own, so its bits do
//! not depend on R and M. Products of other blocks are in `few_q8` and `few_q8_k`.

#![allow(unsafe_code, reason = "methods of traits that need CPU features")]

use std::arch::x86_64::*;

use bytemuck::Zeroable;

use super::{Plain, Vector, WIDTH, by_lane, load_32, load_64, tile};
use crate::activation::BlockQ8;
use crate::cpu::product::Product;
use crate::cpu::tiles::write;
use crate::quant::{BF16Bytes, BlockQ8_0, F16Bytes, F32Bytes};

/// Calls `$tile::<.., R, M>(rows, columns, i)` for 4 or 1 rows of weights with 4, 2 or 1 rows of activations from number `i` on,
/// until all results are there.
macro_rules! tiles {
    ($tile:ident, [$($generic:ident,)?], $p:ident, $out:ident, $row:expr, $x:expr) => {{
        let (row, x) = ($row, $x);
        for j in (0..$p.n_rows / 4 * 4).step_by(4) {
            let w = [row(j), row(j + 1), row(j + 2), row(j + 3)];
            tiles!(4, w, j, $tile, [$($generic,)?], $p, $out, x);
        }
        for j in $p.n_rows / 4 * 4..$p.n_rows {
            tiles!(1, [row(j)], j, $tile, [$($generic,)?], $p, $out, x);
        }
    }};
    ($rows:literal, $w:expr, $j:expr, $tile:ident, [$($generic:ident,)?], $p:ident, $out:ident, $x:ident) => {{
        let (w, mut i) = ($w, 0);
        while i < $p.m {
            let out = &mut $out[i * $p.n_rows + $j..];
            i += match $p.m - i {
                1 => {
                    write($tile::<$($generic,)? $rows, 1>(w, [$x(i)], i), out, $p.n_rows);
                    1
                }
                2 | 3 => {
                    write($tile::<$($generic,)? $rows, 2>(w, [$x(i), $x(i + 1)], i), out, $p.n_rows);
                    2
                }
                _ => {
                    let x = [$x(i), $x(i + 1), $x(i + 2), $x(i + 3)];
                    write($tile::<$($generic,)? $rows, 4>(w, x, i), out, $p.n_rows);
                    4
                }
            }
        }
    }};
}

/// Products of a plain format with rows of f32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn product_plain<B: Plain>(p: &Product<'_>, out: &mut [f32], _scratch: &mut [f32]) {
    tiles!(tile_plain, [B,], p, out, |j| p.blocks(j), |i| p.panel(i));
}

/// [`tile`], which asks for the rows of the next tile as it comes to these.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn tile_plain<B: Plain, const R: usize, const M: usize>(w: [&[B]; R], x: [&[f32]; M], i: usize) -> [[f32; M]; R] {
    tile(w, x, if i == 0 { R * w[0].len() } else { 0 })
}

/// Products of Q8_0 with few rows of [`BlockQ8`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn product_few_q8_0(p: &Product<'_>, out: &mut [f32]) {
    tiles!(tile_q8_0, [], p, out, |j| p.blocks(j), |i| p.activations(i));
}

impl Plain for F32Bytes {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn widen(x: &[Self; WIDTH]) -> Vector {
        _mm512_castsi512_ps(load_64(bytemuck::cast_ref(x)))
    }
}

impl Plain for F16Bytes {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn widen(x: &[Self; WIDTH]) -> Vector {
        _mm512_cvtph_ps(load_32(bytemuck::cast_ref(x)))
    }
}

impl Plain for BF16Bytes {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn widen(x: &[Self; WIDTH]) -> Vector {
        let x = _mm512_cvtepu16_epi32(load_32(bytemuck::cast_ref(x)));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
    }
}

/// Dot products of rows of Q8_0: the chain over ascending blocks of `fma(w.q . x.q, w.d x.d, result)`, the integer exact.
/// Four rows, one per lane, so that their sums are brought together; with fewer the last one counts.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn tile_q8_0<const R: usize, const M: usize>(w: [&[BlockQ8_0]; R], x: [&[BlockQ8]; M], i: usize) -> [[f32; M]; R] {
    let n_blocks = x[0].len();
    // One length for all rows lets the compiler drop the checks in the loop.
    let x = x.map(|x| &x[..n_blocks]);
    let row = |r: usize| &w[r.min(R - 1)][..n_blocks];
    let (w0, w1, w2, w3) = (row(0), row(1), row(2), row(3));
    let mut acc = [_mm_setzero_ps(); M];
    for b in (0..n_blocks / 2 * 2).step_by(2) {
        let w = [[&w0[b], &w0[b + 1]], [&w1[b], &w1[b + 1]], [&w2[b], &w2[b + 1]], [&w3[b], &w3[b + 1]]];
        if i == 0 {
            for &block in w.as_flattened() {
                // The same place in the rows of the next tile: rows are short, and each is a stream of its own.
                _mm_prefetch::<_MM_HINT_T0>((&raw const *block).wrapping_add(R * n_blocks).cast());
            }
        }
        acc = two_blocks_q8_0(w, x.map(|x| [&x[b], &x[b + 1]]), acc);
    }
    if n_blocks % 2 == 1 {
        let (b, none, no_weights) = (n_blocks - 1, BlockQ8::zeroed(), BlockQ8_0::zeroed());
        let w = [[&w0[b], &no_weights], [&w1[b], &no_weights], [&w2[b], &no_weights], [&w3[b], &no_weights]];
        acc = two_blocks_q8_0(w, x.map(|x| [&x[b], &none]), acc);
    }
    by_lane(acc)
}

/// Adds two blocks of four rows of Q8_0. A vector holds one row's blocks behind each other, in lanes of 128 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn two_blocks_q8_0<const M: usize>(w: [[&BlockQ8_0; 2]; 4], x: [[&BlockQ8; 2]; M], acc: [__m128; M]) -> [__m128; M] {
    let mut levels = [_mm512_setzero_si512(); 4];
    let mut scales = [0; 2];
    for r in (0..4).rev() {
        let blocks = w[r];
        // dpbusd takes one unsigned operand: levels larger by 128.
        levels[r] = _mm512_xor_si512(halves(&blocks[0].q, &blocks[1].q), _mm512_set1_epi8(i8::MIN));
        for (scales, block) in scales.iter_mut().zip(blocks) {
            // Brought together by integer shifts: the vector units have enough to do.
            *scales = *scales << 16 | i64::from(block.d.to_bits());
        }
    }
    let d = _mm256_cvtph_ps(_mm_set_epi64x(scales[1], scales[0]));
    let mut sums = acc;
    for (acc, [a, b]) in sums.iter_mut().zip(x) {
        // What the larger levels add is taken from one of the partial sums.
        let excess = _mm512_mask_set1_epi32(_mm512_maskz_set1_epi32(1, a.neg_sum * 128), 1 << 8, b.neg_sum * 128);
        let x = halves(&a.q, &b.q);
        let mut s = [excess; 4];
        for (s, levels) in s.iter_mut().zip(levels) {
            *s = _mm512_dpbusd_epi32(*s, levels, x);
        }
        let s01 = _mm512_add_epi32(_mm512_unpacklo_epi32(s[0], s[1]), _mm512_unpackhi_epi32(s[0], s[1]));
        let s23 = _mm512_add_epi32(_mm512_unpacklo_epi32(s[2], s[3]), _mm512_unpackhi_epi32(s[2], s[3]));
        let s = _mm512_add_epi32(_mm512_unpacklo_epi64(s01, s23), _mm512_unpackhi_epi64(s01, s23));
        // Lanes 0 and 1 are the first block, 2 and 3 the second.
        let s = _mm512_cvtepi32_ps(_mm512_add_epi32(s, _mm512_shuffle_i32x4::<0b10_11_00_01>(s, s)));
        let d = _mm256_mul_ps(d, _mm256_set_m128(_mm_set1_ps(b.d), _mm_set1_ps(a.d)));
        let first = _mm_fmadd_ps(_mm512_castps512_ps128(s), _mm256_castps256_ps128(d), *acc);
        *acc = _mm_fmadd_ps(_mm512_extractf32x4_ps::<2>(s), _mm256_extractf128_ps::<1>(d), first);
    }
    sums
}

/// Two times 32 levels in one vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn halves(a: &[i8; 32], b: &[i8; 32]) -> __m512i {
    let a = _mm512_castsi256_si512(load_32(bytemuck::cast_ref(a)));
    _mm512_inserti64x4::<1>(a, load_32(bytemuck::cast_ref(b)))
}

/// Asks for the lines that lie `distance` bytes behind a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn prefetch_block<B>(block: &B, distance: usize) {
    for line in (0..size_of::<B>()).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>((&raw const *block).cast::<i8>().wrapping_add(distance + line));
    }
}
