//! Products with few rows of activations: weights are read once, as they are stored.
//!
//! A tile is R rows of weights with M rows of activations; each result has an accumulator of its own, so its bits do
//! not depend on R and M. Products of 32-blocks are in `few_q8`.

#![allow(unsafe_code, reason = "vector loads")]

use std::arch::x86_64::*;

use super::blocks::*;
use super::{WIDTH, decode_row, dot_f32, horizontal_sum, load, load_32, load_64, padded};
use crate::cpu::product::{Operand, Product};
use crate::quant::activation::BlockQ8_K;
use crate::quant::{BlockQ2_K, BlockQ3_K, BlockQ4_K, BlockQ5_K, BlockQ6_K, Format};

// Formats as constants that a generic function can take.
pub(super) const F32: usize = Format::F32 as usize;
pub(super) const F16: usize = Format::F16 as usize;
const BF16: usize = Format::BF16 as usize;

/// `out[i, j] = sum over k of w[j, k] x[i, k]` with rows of f32 or of 8 bits; `scratch` holds one decoded row.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub fn product_rows(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
    /// Calls a tile function, for 4 or 1 rows with 4, 2 or 1 activations, until all results are there.
    macro_rules! tiles {
        ($tile:ident, [$($format:ident),*], $x:expr) => {{
            let x = $x;
            for j in (0..p.n_rows / 4 * 4).step_by(4) {
                let w = [p.row(j), p.row(j + 1), p.row(j + 2), p.row(j + 3)];
                tiles!(4, w, j, $tile, [$($format),*], x);
            }
            for j in p.n_rows / 4 * 4..p.n_rows {
                tiles!(1, [p.row(j)], j, $tile, [$($format),*], x);
            }
        }};
        ($rows:literal, $w:expr, $j:expr, $tile:ident, [$($format:ident),*], $x:ident) => {{
            let (w, mut i) = ($w, 0);
            while i < p.m {
                let out = &mut out[i * p.n_rows + $j..];
                i += match p.m - i {
                    1 => {
                        write($tile::<$($format,)* $rows, 1>(w, [$x(i)]), out, p.n_rows);
                        1
                    }
                    2 | 3 => {
                        write($tile::<$($format,)* $rows, 2>(w, [$x(i), $x(i + 1)]), out, p.n_rows);
                        2
                    }
                    _ => {
                        let x = [$x(i), $x(i + 1), $x(i + 2), $x(i + 3)];
                        write($tile::<$($format,)* $rows, 4>(w, x), out, p.n_rows);
                        4
                    }
                }
            }
        }};
    }
    match (p.operand, p.format) {
        (Operand::Rows, Format::F32) => tiles!(tile, [F32], |i| p.panel(i)),
        (Operand::Rows, Format::F16) => tiles!(tile, [F16], |i| p.panel(i)),
        (Operand::Rows, Format::BF16) => tiles!(tile, [BF16], |i| p.panel(i)),
        (Operand::Q8K, Format::Q2_K) => tiles!(tile_k, [Q2_K, Q2_K_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
        (Operand::Q8K, Format::Q3_K) => tiles!(tile_k, [Q3_K, Q3_K_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
        (Operand::Q8K, Format::Q4_K) => tiles!(tile_k, [Q4_K, Q4_K_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
        (Operand::Q8K, Format::Q5_K) => tiles!(tile_k, [Q5_K, Q5_K_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
        (Operand::Q8K, Format::Q6_K) => tiles!(tile_k, [Q6_K, Q6_K_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
        (Operand::Rows, _) => {
            for j in 0..p.n_rows {
                decode_row(p.format, p.row(j), &mut scratch[..p.k]);
                for i in 0..p.m {
                    out[i * p.n_rows + j] = dot_f32(&scratch[..p.k], p.panel(i));
                }
            }
        }
        (Operand::Q8 | Operand::Q8K | Operand::Panels, _) => unreachable!("{:?} with {:?}", p.operand, p.format),
    }
}

/// Puts a tile's results, `[R][M]`, into `out`, whose rows are `n_rows` apart.
fn write<const R: usize, const M: usize>(results: [[f32; M]; R], out: &mut [f32], n_rows: usize) {
    for (r, results) in results.into_iter().enumerate() {
        for (i, y) in results.into_iter().enumerate() {
            out[i * n_rows + r] = y;
        }
    }
}

/// Sixteen weights from element `16 c` of a row; the row is that long.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn weights<const FORMAT: usize>(row: &[u8], c: usize) -> __m512 {
    match FORMAT {
        F32 => {
            let x = &row.as_chunks::<{ 4 * WIDTH }>().0[c];
            _mm512_castsi512_ps(load_64(x))
        }
        F16 => _mm512_cvtph_ps(load_32(&row.as_chunks().0[c])),
        BF16 => {
            let x = _mm512_cvtepu16_epi32(load_32(&row.as_chunks().0[c]));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
        }
        _ => unreachable!("plain formats"),
    }
}

/// Dot products of plain rows: element i in lane i % 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn tile<const FORMAT: usize, const R: usize, const M: usize>(
    w: [&[u8]; R],
    x: [&[f32]; M],
) -> [[f32; M]; R] {
    let k = x[0].len();
    let bytes = if FORMAT == F32 { 4 } else { 2 };
    // One length for all rows lets the compiler drop the checks in the loop.
    let (w, x) = (w.map(|w| &w[..k * bytes]), x.map(|x| &x[..k]));
    let mut acc = [[_mm512_setzero_ps(); M]; R];
    for c in 0..k / WIDTH {
        let mut wide = [_mm512_setzero_ps(); R];
        for (wide, w) in wide.iter_mut().zip(w) {
            *wide = weights::<FORMAT>(w, c);
        }
        for (i, x) in x.iter().enumerate() {
            let x = load(&x.as_chunks().0[c]);
            for (acc, wide) in acc.iter_mut().zip(wide) {
                acc[i] = _mm512_fmadd_ps(wide, x, acc[i]);
            }
        }
    }
    let done = k / WIDTH * WIDTH;
    let mut sums = [[0.0; M]; R];
    for r in 0..R {
        let mut last = [0; 4 * WIDTH];
        last[..(k - done) * bytes].copy_from_slice(&w[r][done * bytes..]);
        let last = weights::<FORMAT>(&last[..bytes * WIDTH], 0);
        for i in 0..M {
            let x = load(&padded(&x[i][done..], 0.0));
            sums[r][i] = _mm512_reduce_add_ps(_mm512_fmadd_ps(last, x, acc[r][i]));
        }
    }
    sums
}

/// Dot products of rows of 256-blocks: per block `x.d w.d sum(scale w.level x.q) - x.d w.dmin sum(min x.q)`, where scales
/// and minima belong to groups of 16 and the sums are integers.
///
/// Levels are unsigned, larger by [`excess`], so that `2^excess sum(scale x.q)` is taken off the first sum.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn tile_k<const FORMAT: usize, const BYTES: usize, const R: usize, const M: usize>(
    w: [&[u8]; R],
    x: [&[BlockQ8_K]; M],
) -> [[f32; M]; R] {
    let n_blocks = x[0].len();
    // One length for all rows lets the compiler drop the checks in the loop.
    let (w, x) = (w.map(|w| &w.as_chunks::<BYTES>().0[..n_blocks]), x.map(|x| &x[..n_blocks]));
    let mut acc = [[_mm512_setzero_ps(); M]; R];
    let mut offsets = [[_mm256_setzero_ps(); M]; R];
    for b in 0..n_blocks {
        for ((w, acc), offsets) in w.iter().zip(&mut acc).zip(&mut offsets) {
            prefetch_block(&w[b], R * n_blocks * BYTES);
            let Scales { d, dmin, scales, mins } = scales::<FORMAT, BYTES>(&w[b]);
            let mut sums = [_mm512_setzero_si512(); M];
            for c in 0..QUARTERS {
                let levels = levels::<FORMAT, BYTES>(&w[b], c);
                let index = load_64(bytemuck::cast_ref(&const { scale_index::<FORMAT>() }[c]));
                let scale = _mm512_permutexvar_epi16(index, _mm512_castsi256_si512(scales));
                for (sum, x) in sums.iter_mut().zip(x) {
                    let pairs = _mm512_maddubs_epi16(levels, activations::<FORMAT>(&x[b], c));
                    *sum = _mm512_dpwssd_epi32(*sum, pairs, scale);
                }
            }
            for (i, mut sum) in sums.into_iter().enumerate() {
                let x = &x[i][b];
                let group_sums = load_32(bytemuck::cast_ref(&x.sums));
                if let Some(excess) = excess::<FORMAT>() {
                    let offset = _mm256_sll_epi32(_mm256_madd_epi16(scales, group_sums), _mm_cvtsi32_si128(excess));
                    sum = _mm512_sub_epi32(sum, _mm512_zextsi256_si512(offset));
                }
                acc[i] = _mm512_fmadd_ps(_mm512_set1_ps(x.d * d), _mm512_cvtepi32_ps(sum), acc[i]);
                if has_offset::<FORMAT>() {
                    let offset = _mm256_cvtepi32_ps(_mm256_madd_epi16(mins, group_sums));
                    offsets[i] = _mm256_fmadd_ps(_mm256_set1_ps(x.d * dmin), offset, offsets[i]);
                }
            }
        }
    }
    let mut results = [[0.0; M]; R];
    for r in 0..R {
        for i in 0..M {
            results[r][i] = _mm512_reduce_add_ps(acc[r][i]);
            if has_offset::<FORMAT>() {
                results[r][i] -= horizontal_sum(offsets[r][i]);
            }
        }
    }
    results
}

/// Vectors of levels in a block.
const QUARTERS: usize = 4;

/// What unsigned levels are larger by than levels, as a power of two, if they are.
const fn excess<const FORMAT: usize>() -> Option<i32> {
    match FORMAT {
        Q3_K => Some(2),
        Q6_K => Some(5),
        _ => None,
    }
}

/// Whether a vector of levels has 32 levels of each half of a block, not 64 that follow each other.
const fn is_halved<const FORMAT: usize>() -> bool {
    matches!(FORMAT, Q2_K | Q3_K)
}

/// Numbers of the scales of vector `c`, for each word.
const fn scale_index<const FORMAT: usize>() -> [[u16; 32]; QUARTERS] {
    let mut index = [[0; 32]; QUARTERS];
    let mut i = 0;
    while i < QUARTERS * 32 {
        let (c, group) = (i / 32, i % 32 / 8);
        index[c][i % 32] =
            if is_halved::<FORMAT>() { 8 * (group / 2) + 2 * c + group % 2 } else { 4 * c + group } as u16;
        i += 1;
    }
    index
}

/// Levels of activations beside vector `c` of levels of weights.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn activations<const FORMAT: usize>(x: &BlockQ8_K, c: usize) -> __m512i {
    if is_halved::<FORMAT>() {
        let [low, high]: &[[[u8; 32]; 4]; 2] = bytemuck::cast_ref(&x.q);
        join(load_32(&low[c]), load_32(&high[c]))
    } else {
        load_64(&bytemuck::cast_ref::<_, [[u8; 64]; QUARTERS]>(&x.q)[c])
    }
}

/// Two vectors behind each other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn join(low: __m256i, high: __m256i) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// Vector `c` of the unsigned levels of a block: 64 that follow each other, or 32 of each [half](is_halved).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn levels<const FORMAT: usize, const BYTES: usize>(block: &[u8; BYTES], c: usize) -> __m512i {
    let bytes = |x: i8| _mm512_set1_epi8(x);
    let right = |x: __m512i, by: usize| _mm512_srl_epi16(x, _mm_cvtsi32_si128(by as i32));
    let nibbles = |q: &[u8]| {
        let q = load_32(q.first_chunk().expect("32 pairs of levels"));
        _mm512_and_si512(join(q, _mm256_srli_epi16::<4>(q)), bytes(15))
    };
    match FORMAT {
        Q2_K => {
            let b: &BlockQ2_K = bytemuck::from_bytes(block);
            _mm512_and_si512(right(load_64(&b.qs), 2 * c), bytes(3))
        }
        Q3_K => {
            let b: &BlockQ3_K = bytemuck::from_bytes(block);
            let low = _mm512_and_si512(right(load_64(&b.qs), 2 * c), bytes(3));
            // Bit c of a byte of the first half, bit c + 4 of one of the second.
            let high = load_32(&b.hmask);
            let third = _mm512_test_epi8_mask(join(high, _mm256_srli_epi16::<4>(high)), bytes(1 << c));
            _mm512_mask_add_epi8(low, third, low, bytes(4))
        }
        Q4_K => {
            let b: &BlockQ4_K = bytemuck::from_bytes(block);
            nibbles(&b.qs[32 * c..])
        }
        Q5_K => {
            let b: &BlockQ5_K = bytemuck::from_bytes(block);
            let (low, high) = (nibbles(&b.qs[32 * c..]), load_32(&b.qh));
            let bit = |j: usize| _mm256_set1_epi8((1_u8 << j).cast_signed());
            let fifth = _mm512_test_epi8_mask(join(high, high), join(bit(2 * c), bit(2 * c + 1)));
            _mm512_mask_add_epi8(low, fifth, low, bytes(16))
        }
        Q6_K => {
            let b: &BlockQ6_K = bytemuck::from_bytes(block);
            let (low, high): (&[[u8; 64]; 2], &[[u8; 32]; 2]) = (bytemuck::cast_ref(&b.ql), bytemuck::cast_ref(&b.qh));
            let low = _mm512_and_si512(right(load_64(&low[c / 2]), 4 * (c % 2)), bytes(15));
            // Bits 4 c .. 4 c + 2 of a byte belong to the first 32 levels, the two above to the others.
            let high = load_32(&high[c / 2]);
            let both = if c.is_multiple_of(2) {
                join(_mm256_slli_epi16::<4>(high), _mm256_slli_epi16::<2>(high))
            } else {
                join(high, _mm256_srli_epi16::<2>(high))
            };
            _mm512_or_si512(low, _mm512_and_si512(both, bytes(0x30)))
        }
        _ => unreachable!("formats of 256-blocks"),
    }
}

/// Asks for the lines that lie `distance` bytes behind a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn prefetch_block<const BYTES: usize>(block: &[u8; BYTES], distance: usize) {
    for line in (0..BYTES).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_add(distance + line).cast());
    }
}
