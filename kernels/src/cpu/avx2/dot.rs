//! Products with few rows of activations: weights are read once, as they are stored.
//!
//! A tile is R rows of weights with M rows of activations; each result has an accumulator of its own, so its bits do
//! not depend on R and M.

#![allow(unsafe_code, reason = "vector loads")]

use std::arch::x86_64::*;

use super::blocks::*;
use super::rows::block_weights;
use super::{WIDTH, decode_row, dot_f32, horizontal_sum, lanes, load, load_16, load_32, padded, widen};
use crate::cpu::product::{Operand, Product};
use crate::quant::activation::{BlockQ8, BlockQ8_K};
use crate::quant::{BlockQ4_K, BlockQ5_K, BlockQ6_K, Format, scales_mins_k4};

// Formats as constants that a generic function can take.
pub(super) const F32: usize = Format::F32 as usize;
pub(super) const F16: usize = Format::F16 as usize;
const BF16: usize = Format::BF16 as usize;
pub(super) const Q8_0: usize = Format::Q8_0 as usize;
pub(super) const Q8_0_BYTES: usize = Format::Q8_0.block_bytes();

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
        (Operand::Q8K, Format::Q4_K) => product_q8_k(p, out, dot_q4_k),
        (Operand::Q8K, Format::Q5_K) => product_q8_k(p, out, dot_q5_k),
        (Operand::Q8K, Format::Q6_K) => product_q8_k(p, out, dot_q6_k),
        (Operand::Rows, Format::Q4_1) => tiles!(tile_blocks, [Q4_1, Q4_1_BYTES], |i| p.panel(i)),
        (Operand::Rows, Format::Q5_0) => tiles!(tile_blocks, [Q5_0, Q5_0_BYTES], |i| p.panel(i)),
        (Operand::Rows, Format::Q5_1) => tiles!(tile_blocks, [Q5_1, Q5_1_BYTES], |i| p.panel(i)),
        (Operand::Rows, Format::IQ4_NL) => tiles!(tile_blocks, [IQ4_NL, IQ4_NL_BYTES], |i| p.panel(i)),
        (Operand::Rows, Format::Q2_K) => tiles!(tile_blocks, [Q2_K, Q2_K_BYTES], |i| p.panel(i)),
        (Operand::Rows, Format::Q3_K) => tiles!(tile_blocks, [Q3_K, Q3_K_BYTES], |i| p.panel(i)),
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

/// Eight weights from element `8 c` of a row; the row is that long.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn weights<const FORMAT: usize>(row: &[u8], c: usize) -> __m256 {
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

/// Dot products of plain rows: element i in lane i % 8.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn tile<const FORMAT: usize, const R: usize, const M: usize>(
    w: [&[u8]; R],
    x: [&[f32]; M],
) -> [[f32; M]; R] {
    let k = x[0].len();
    let bytes = if FORMAT == F32 { 4 } else { 2 };
    // One length for all rows lets the compiler drop the checks in the loop.
    let (w, x) = (w.map(|w| &w[..k * bytes]), x.map(|x| &x[..k]));
    let mut acc = [[_mm256_setzero_ps(); M]; R];
    for c in 0..k / WIDTH {
        let mut wide = [_mm256_setzero_ps(); R];
        for (wide, w) in wide.iter_mut().zip(w) {
            *wide = weights::<FORMAT>(w, c);
        }
        for (i, x) in x.iter().enumerate() {
            let x = load(&x.as_chunks().0[c]);
            for (acc, wide) in acc.iter_mut().zip(wide) {
                acc[i] = _mm256_fmadd_ps(wide, x, acc[i]);
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
            sums[r][i] = horizontal_sum(_mm256_fmadd_ps(last, x, acc[r][i]));
        }
    }
    sums
}

/// Dot products of rows of blocks: element i in lane i % 8.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile_blocks<const FORMAT: usize, const BYTES: usize, const R: usize, const M: usize>(
    w: [&[u8]; R],
    x: [&[f32]; M],
) -> [[f32; M]; R] {
    let w = w.map(|w| w.as_chunks::<BYTES>().0);
    let x = x.map(|x| x.as_chunks::<WIDTH>().0.as_chunks::<2>().0);
    let mut acc = [[_mm256_setzero_ps(); M]; R];
    for b in 0..w[0].len() {
        for c in 0..n_sixteens::<FORMAT>() {
            let x = x.map(|x| x[b * n_sixteens::<FORMAT>() + c].each_ref().map(|x| load(x)));
            for (w, acc) in w.iter().zip(&mut acc) {
                let w = block_weights::<FORMAT, BYTES>(&w[b], c);
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = _mm256_fmadd_ps(w[1], x[1], _mm256_fmadd_ps(w[0], x[0], *acc));
                }
            }
        }
    }
    acc.map(|acc| acc.map(|acc| horizontal_sum(acc)))
}

/// Bits of the scale and levels of a block of Q8_0 or Q4_0.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn block<const FORMAT: usize, const BYTES: usize>(block: &[u8; BYTES]) -> (u16, __m256i) {
    let (d, q) = block.split_first_chunk().expect("a block begins with its scale");
    let q = match FORMAT {
        Q8_0 => load_32(q.first_chunk().expect("32 levels")),
        Q4_0 => {
            let nibbles = nibbles(load_16(q.first_chunk().expect("16 pairs of levels")));
            _mm256_sub_epi8(nibbles, _mm256_set1_epi8(8))
        }
        _ => unreachable!("formats with a Q8 operand"),
    };
    (u16::from_le_bytes(*d), q)
}

/// `w . x` in eight parts.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot(w: __m256i, x: __m256i) -> __m256i {
    // maddubs takes one unsigned operand: use |w| and move w's sign to x.
    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// The low nibbles of 16 bytes, then the high ones.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles(x: __m128i) -> __m256i {
    _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(x), x), _mm256_set1_epi8(15))
}

/// Dot products of rows of 32-blocks: the chain over ascending blocks of `fma(w.q . x.q, w.d x.d, result)`, the integer
/// exact. Four rows, one per lane, so that their sums are brought together; with fewer the last one counts.
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
        let mut d = [0; 8];
        let mut sums = [[_mm256_setzero_si256(); 4]; M];
        for (r, w) in w.iter().enumerate() {
            // The same place in the rows of the next tile: rows are short, and each is a stream of its own.
            _mm_prefetch::<_MM_HINT_T0>(w[b].as_ptr().wrapping_add(R * n_blocks * BYTES).cast());
            let (scale, levels) = block::<FORMAT, BYTES>(&w[b]);
            d[r] = scale;
            for (sums, x) in sums.iter_mut().zip(x) {
                sums[r] = dot(levels, load_32(bytemuck::cast_ref(&x[b].q)));
            }
        }
        let d = _mm_cvtph_ps(load_16(bytemuck::cast_ref(&d)));
        for ((acc, sums), x) in acc.iter_mut().zip(sums).zip(x) {
            let pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
            let sum = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
            *acc = _mm_fmadd_ps(_mm_cvtepi32_ps(sum), _mm_mul_ps(d, _mm_set1_ps(x[b].d)), *acc);
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
fn product_q8_k<B: bytemuck::AnyBitPattern>(
    p: &Product<'_>,
    out: &mut [f32],
    dot: unsafe fn(&[B], &[BlockQ8_K]) -> f32,
) {
    for j in 0..p.n_rows {
        let w = bytemuck::cast_slice(p.row(j));
        for i in 0..p.m {
            // SAFETY: `dot` needs the CPU features that this function has.
            out[i * p.n_rows + j] = unsafe { dot(w, bytemuck::cast_slice(p.panel(i))) };
        }
    }
}

/// The 32 levels of a chunk of activations.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn levels(x: &BlockQ8_K, chunk: usize) -> __m256i {
    load_32(&bytemuck::cast_ref::<_, [[u8; 32]; 8]>(&x.q)[chunk])
}

/// The sums of the 16 groups of activations.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn group_sums(x: &BlockQ8_K) -> __m256i {
    load_32(bytemuck::cast_ref(&x.sums))
}

/// `sum over groups of min sum(x.q)`, in eight parts.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn min_sums(mins: [u8; 8], x: &BlockQ8_K) -> __m256i {
    // Each of the eight minima twice, beside the sums of its two groups of 16.
    let mins = _mm_set_epi64x(0, i64::from_le_bytes(mins));
    _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(mins, mins)), group_sums(x))
}

/// Per block `x.d w.d sum(scale w.q x.q) - x.d w.dmin sum(min x.q)`.
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_q4_k(w: &[BlockQ4_K], x: &[BlockQ8_K]) -> f32 {
    let low = _mm256_set1_epi8(15);
    let mut acc = _mm256_setzero_ps();
    for (w, x) in w.iter().zip(x) {
        let (scales, mins) = scales_mins_k4(&w.scales);
        let mut sum = _mm256_setzero_si256();
        for (c, q) in w.qs.as_chunks::<32>().0.iter().enumerate() {
            let q = load_32(q);
            let nibbles = [_mm256_and_si256(q, low), _mm256_and_si256(_mm256_srli_epi16::<4>(q), low)];
            for (j, q) in (2 * c..).zip(nibbles) {
                let pairs = _mm256_maddubs_epi16(q, levels(x, j));
                let scale = _mm256_set1_epi16(i16::from(scales[j]));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale));
            }
        }
        let (d, dmin) = (x.d * widen(w.d.to_bits()), x.d * widen(w.dmin.to_bits()));
        acc = _mm256_fmadd_ps(_mm256_set1_ps(d), _mm256_cvtepi32_ps(sum), acc);
        acc = _mm256_fnmadd_ps(_mm256_set1_ps(dmin), _mm256_cvtepi32_ps(min_sums(mins, x)), acc);
    }
    horizontal_sum(acc)
}

/// As [`dot_q4_k`], with a fifth bit.
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_q5_k(w: &[BlockQ5_K], x: &[BlockQ8_K]) -> f32 {
    let (low, fifth) = (_mm256_set1_epi8(15), _mm256_set1_epi8(16));
    let mut acc = _mm256_setzero_ps();
    for (w, x) in w.iter().zip(x) {
        let (scales, mins) = scales_mins_k4(&w.scales);
        let mut high = load_32(&w.qh);
        let mut sum = _mm256_setzero_si256();
        for (c, q) in w.qs.as_chunks::<32>().0.iter().enumerate() {
            let q = load_32(q);
            let nibbles = [_mm256_and_si256(q, low), _mm256_and_si256(_mm256_srli_epi16::<4>(q), low)];
            for (j, q) in (2 * c..).zip(nibbles) {
                // Bit j of each byte is its lowest by now.
                let q = _mm256_or_si256(q, _mm256_and_si256(_mm256_slli_epi16::<4>(high), fifth));
                high = _mm256_srli_epi16::<1>(high);
                let pairs = _mm256_maddubs_epi16(q, levels(x, j));
                let scale = _mm256_set1_epi16(i16::from(scales[j]));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale));
            }
        }
        let (d, dmin) = (x.d * widen(w.d.to_bits()), x.d * widen(w.dmin.to_bits()));
        acc = _mm256_fmadd_ps(_mm256_set1_ps(d), _mm256_cvtepi32_ps(sum), acc);
        acc = _mm256_fnmadd_ps(_mm256_set1_ps(dmin), _mm256_cvtepi32_ps(min_sums(mins, x)), acc);
    }
    horizontal_sum(acc)
}

/// Per block `x.d w.d (sum(scale w.level x.q) - 32 sum(scale x.q))`.
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_q6_k(w: &[BlockQ6_K], x: &[BlockQ8_K]) -> f32 {
    let (four, two) = (_mm256_set1_epi8(15), _mm256_set1_epi8(3));
    let mut acc = _mm256_setzero_ps();
    for (w, x) in w.iter().zip(x) {
        let scales = _mm256_cvtepi8_epi16(load_16(bytemuck::cast_ref(&w.scales)));
        let mut sum = _mm256_setzero_si256();
        for (h, (low, high)) in w.ql.as_chunks::<64>().0.iter().zip(w.qh.as_chunks::<32>().0).enumerate() {
            let [first, second] = low.as_chunks::<32>().0 else { unreachable!("64 is twice 32") };
            let (first, second, high) = (load_32(first), load_32(second), load_32(high));
            let shifted =
                [high, _mm256_srli_epi16::<2>(high), _mm256_srli_epi16::<4>(high), _mm256_srli_epi16::<6>(high)];
            let low = [first, second, _mm256_srli_epi16::<4>(first), _mm256_srli_epi16::<4>(second)];
            for (k, (low, high)) in low.into_iter().zip(shifted).enumerate() {
                let high = _mm256_slli_epi16::<4>(_mm256_and_si256(high, two));
                let q = _mm256_or_si256(_mm256_and_si256(low, four), high);
                let chunk = 4 * h + k;
                let pairs = _mm256_maddubs_epi16(q, levels(x, chunk));
                let (a, b) = (i16::from(w.scales[2 * chunk]), i16::from(w.scales[2 * chunk + 1]));
                let scale = _mm256_set_m128i(_mm_set1_epi16(b), _mm_set1_epi16(a));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale));
            }
        }
        let offset = _mm256_slli_epi32::<5>(_mm256_madd_epi16(scales, group_sums(x)));
        let sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, offset));
        acc = _mm256_fmadd_ps(_mm256_set1_ps(x.d * widen(w.d.to_bits())), sum, acc);
    }
    horizontal_sum(acc)
}
