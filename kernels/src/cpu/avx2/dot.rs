//! Products with few rows of activations: weights are read once, as they are stored.
//!
//! A tile is R rows of weights with M rows of activations; each result has an accumulator of its own, so its bits do
//! not depend on R and M.

#![allow(unsafe_code, reason = "vector loads")]

use std::arch::x86_64::*;

use super::blocks::*;
use super::{Vector, WIDTH, decode_row, dot_f32, lanes, load_16, load_32, sum, tile};
use crate::activation::{BlockQ8, BlockQ8_K};
use crate::cpu::product::{Operand, Product};
use crate::cpu::rows::{BF16, F16, F32, write};
use crate::quant::iq4_nl::VALUES;
use crate::quant::{
    BlockIQ4_NL, BlockQ2_K, BlockQ3_K, BlockQ4_0, BlockQ4_1, BlockQ4_K, BlockQ5_0, BlockQ5_1, BlockQ5_K, BlockQ6_K,
    BlockQ8_0, F16Bytes, Format,
};

/// `out[i, j] = sum over k of w[j, k] x[i, k]` with rows of f32 or of 8 bits; `scratch` holds one decoded row.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn product_rows(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
    /// Calls a tile function for 4 x 2, 4 x 1, 1 x 2 and 1 x 1 results until all are there.
    macro_rules! tiles {
        ($tile:ident, [$($format:ident),*], $x:expr) => {{
            let x = $x;
            let mut j = 0;
            while j < p.n_rows {
                let n = if p.n_rows - j >= 4 { 4 } else { 1 };
                for i in (0..p.m).step_by(2) {
                    let pair = p.m - i >= 2;
                    let out = &mut out[i * p.n_rows + j..];
                    match (n, pair) {
                        (4, true) => {
                            let w = [p.row(j), p.row(j + 1), p.row(j + 2), p.row(j + 3)];
                            write($tile::<$($format),*, 4, 2>(w, [x(i), x(i + 1)]), out, p.n_rows)
                        }
                        (4, false) => {
                            let w = [p.row(j), p.row(j + 1), p.row(j + 2), p.row(j + 3)];
                            write($tile::<$($format),*, 4, 1>(w, [x(i)]), out, p.n_rows)
                        }
                        (_, true) => write($tile::<$($format),*, 1, 2>([p.row(j)], [x(i), x(i + 1)]), out, p.n_rows),
                        (_, false) => write($tile::<$($format),*, 1, 1>([p.row(j)], [x(i)]), out, p.n_rows),
                    }
                }
                j += n;
            }
        }};
    }
    match (p.operand, p.format) {
        (Operand::Rows, Format::F32) => tiles!(tile, [F32], |i| p.panel(i)),
        (Operand::Rows, Format::F16) => tiles!(tile, [F16], |i| p.panel(i)),
        (Operand::Rows, Format::BF16) => tiles!(tile, [BF16], |i| p.panel(i)),
        (Operand::Q8, Format::Q8_0) => tiles!(tile_q8, [Q8_0, Q8_0_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
        (Operand::Q8, Format::Q4_0) => tiles!(tile_q8, [Q4_0, Q4_0_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
        (Operand::Q8, Format::Q4_1) => tiles!(tile_q8, [Q4_1, Q4_1_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
        (Operand::Q8, Format::Q5_0) => tiles!(tile_q8, [Q5_0, Q5_0_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
        (Operand::Q8, Format::Q5_1) => tiles!(tile_q8, [Q5_1, Q5_1_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
        (Operand::Q8, Format::IQ4_NL) => tiles!(tile_q8, [IQ4_NL, IQ4_NL_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
        (Operand::Q8K, Format::Q2_K) => product_q8_k::<Q2_K, Q2_K_BYTES>(p, out),
        (Operand::Q8K, Format::Q3_K) => product_q8_k::<Q3_K, Q3_K_BYTES>(p, out),
        (Operand::Q8K, Format::Q4_K) => product_q8_k::<Q4_K, Q4_K_BYTES>(p, out),
        (Operand::Q8K, Format::Q5_K) => product_q8_k::<Q5_K, Q5_K_BYTES>(p, out),
        (Operand::Q8K, Format::Q6_K) => product_q8_k::<Q6_K, Q6_K_BYTES>(p, out),
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

/// Eight weights from element `8 c` of a row; the row is that long.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn weights<const FORMAT: usize>(row: &[u8], c: usize) -> Vector {
    match FORMAT {
        F32 => {
            let x = &row.as_chunks::<{ 4 * WIDTH }>().0[c];
            _mm256_castsi256_ps(load_32(x))
        }
        F16 => _mm256_cvtph_ps(load_16(&row.as_chunks().0[c])),
        BF16 => {
            let x = _mm256_cvtepu16_epi32(load_16(&row.as_chunks().0[c]));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))
        }
        _ => unreachable!("plain formats"),
    }
}

/// Scale, offset and levels of a block of 32 weights.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn block<const FORMAT: usize, const BYTES: usize>(block: &[u8; BYTES]) -> (F16Bytes, F16Bytes, __m256i) {
    let none = F16Bytes::default();
    match FORMAT {
        Q8_0 => {
            let b: &BlockQ8_0 = bytemuck::from_bytes(block);
            (b.d, none, load_32(bytemuck::cast_ref(&b.q)))
        }
        Q4_0 => {
            let b: &BlockQ4_0 = bytemuck::from_bytes(block);
            (b.d, none, _mm256_sub_epi8(nibbles(&b.qs), _mm256_set1_epi8(8)))
        }
        Q4_1 => {
            let b: &BlockQ4_1 = bytemuck::from_bytes(block);
            (b.d, b.m, nibbles(&b.qs))
        }
        Q5_0 => {
            let b: &BlockQ5_0 = bytemuck::from_bytes(block);
            (b.d, none, _mm256_sub_epi8(with_fifth_bits(nibbles(&b.qs), b.qh), _mm256_set1_epi8(16)))
        }
        Q5_1 => {
            let b: &BlockQ5_1 = bytemuck::from_bytes(block);
            (b.d, b.m, with_fifth_bits(nibbles(&b.qs), b.qh))
        }
        IQ4_NL => {
            let b: &BlockIQ4_NL = bytemuck::from_bytes(block);
            let values = load_16(bytemuck::cast_ref(&VALUES));
            (b.d, none, _mm256_shuffle_epi8(_mm256_set_m128i(values, values), nibbles(&b.qs)))
        }
        _ => unreachable!("formats of 32-blocks"),
    }
}

/// The low nibbles of 16 bytes, then the high ones.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles(pairs: &[u8; 16]) -> __m256i {
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
fn tile_q8<const FORMAT: usize, const BYTES: usize, const R: usize, const M: usize>(
    w: [&[u8]; R],
    x: [&[BlockQ8]; M],
) -> [[f32; M]; R] {
    let n_blocks = x[0].len();
    // One length for all rows lets the compiler drop the checks in the loop.
    let x = x.map(|x| &x[..n_blocks]);
    let w: [_; 4] = std::array::from_fn(|r| &w[r.min(R - 1)].as_chunks::<BYTES>().0[..n_blocks]);
    let mut acc = [_mm_setzero_ps(); M];
    for b in 0..n_blocks {
        // Scales of the rows, then offsets.
        let mut halves = [F16Bytes::default(); 8];
        let mut sums = [[_mm256_setzero_si256(); 4]; M];
        for (r, w) in w.iter().enumerate() {
            // The same place in the rows of the next tile: rows are short, and each is a stream of its own.
            _mm_prefetch::<_MM_HINT_T0>(w[b].as_ptr().wrapping_add(R * n_blocks * BYTES).cast());
            let levels;
            (halves[r], halves[4 + r], levels) = block::<FORMAT, BYTES>(&w[b]);
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
            if has_offset::<FORMAT>() {
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

/// Every result of a product of 256-blocks by a dot product of rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn product_q8_k<const FORMAT: usize, const BYTES: usize>(p: &Product<'_>, out: &mut [f32]) {
    for j in 0..p.n_rows {
        let w = p.row(j).as_chunks().0;
        for i in 0..p.m {
            out[i * p.n_rows + j] = dot_k::<FORMAT, BYTES>(w, bytemuck::cast_slice(p.panel(i)));
        }
    }
}

/// Vectors of levels in a block of 256.
const EIGHTHS: usize = 8;

/// What unsigned levels of a 256-block are larger by than levels, as a power of two, if they are.
pub(super) const fn excess<const FORMAT: usize>() -> Option<i32> {
    match FORMAT {
        Q3_K => Some(2),
        Q6_K => Some(5),
        _ => None,
    }
}

/// Per block `x.d w.d sum(scale w.level x.q) - x.d w.dmin sum(min x.q)`, where scales and minima belong to groups of 16 and
/// the sums are integers.
///
/// Levels are unsigned, larger by [`excess`], so that `2^excess sum(scale x.q)` is taken off the first sum.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_k<const FORMAT: usize, const BYTES: usize>(w: &[[u8; BYTES]], x: &[BlockQ8_K]) -> f32 {
    let mut acc = _mm256_setzero_ps();
    for (w, x) in w.iter().zip(x) {
        let Scales { d, dmin, scales, mins } = scales::<FORMAT, BYTES>(w);
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
            let pairs = _mm256_maddubs_epi16(levels::<FORMAT, BYTES>(w, c), activations);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale));
        }
        let group_sums = load_32(bytemuck::cast_ref(&x.sums));
        if let Some(excess) = excess::<FORMAT>() {
            let offset = _mm256_sll_epi32(_mm256_madd_epi16(scales, group_sums), _mm_cvtsi32_si128(excess));
            sum = _mm256_sub_epi32(sum, offset);
        }
        acc = _mm256_fmadd_ps(_mm256_set1_ps(x.d * d), _mm256_cvtepi32_ps(sum), acc);
        if has_offset::<FORMAT>() {
            let offset = _mm256_cvtepi32_ps(_mm256_madd_epi16(mins, group_sums));
            acc = _mm256_fnmadd_ps(_mm256_set1_ps(x.d * dmin), offset, acc);
        }
    }
    sum(acc)
}

/// Vector `c` of the unsigned levels of a block of 256, those of elements `32 c .. 32 c + 32`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn levels<const FORMAT: usize, const BYTES: usize>(block: &[u8; BYTES], c: usize) -> __m256i {
    // `N` bits from bit `from` on of each byte.
    let bits = |bytes: &[u8; 32], from: usize, mask: i8| {
        _mm256_and_si256(_mm256_srl_epi16(load_32(bytes), _mm_cvtsi32_si128(from as i32)), _mm256_set1_epi8(mask))
    };
    match FORMAT {
        Q2_K => {
            let b: &BlockQ2_K = bytemuck::from_bytes(block);
            bits(&b.qs.as_chunks().0[c / 4], 2 * (c % 4), 3)
        }
        Q3_K => {
            let b: &BlockQ3_K = bytemuck::from_bytes(block);
            let third = _mm256_slli_epi16::<2>(bits(&b.hmask, c, 1));
            _mm256_or_si256(bits(&b.qs.as_chunks().0[c / 4], 2 * (c % 4), 3), third)
        }
        Q4_K => {
            let b: &BlockQ4_K = bytemuck::from_bytes(block);
            bits(&b.qs.as_chunks().0[c / 2], 4 * (c % 2), 15)
        }
        Q5_K => {
            let b: &BlockQ5_K = bytemuck::from_bytes(block);
            let fifth = _mm256_slli_epi16::<4>(bits(&b.qh, c, 1));
            _mm256_or_si256(bits(&b.qs.as_chunks().0[c / 2], 4 * (c % 2), 15), fifth)
        }
        Q6_K => {
            let b: &BlockQ6_K = bytemuck::from_bytes(block);
            let (h, k) = (c / 4, c % 4);
            let high = _mm256_slli_epi16::<4>(bits(&b.qh.as_chunks().0[h], 2 * k, 3));
            _mm256_or_si256(bits(&b.ql.as_chunks().0[2 * h + k % 2], 4 * (k / 2), 15), high)
        }
        _ => unreachable!("formats of 256-blocks"),
    }
}
