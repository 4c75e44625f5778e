//! Products with few rows of activations: weights are read once, as they are stored.
//!
//! A tile is R rows of weights with M rows of activations; each result has an accumulator of its own, so its bits do
//! not depend on R and M. Other products of 32-blocks are in `gemm_q8`.

#![allow(unsafe_code, reason = "vector loads")]

use std::arch::x86_64::*;

use super::blocks::*;
use super::rows::block_weights;
use super::{WIDTH, decode_row, dot_f32, horizontal_sum, lanes, load, load_16, load_32, load_64, padded, widen};
use crate::cpu::product::{Operand, Product};
use crate::quant::activation::{BlockQ8, BlockQ8_K};
use crate::quant::{BlockQ4_K, BlockQ5_K, BlockQ6_K, BlockQ8_0, Format, scales_mins_k4};

// Formats as constants that a generic function can take.
pub(super) const F32: usize = Format::F32 as usize;
pub(super) const F16: usize = Format::F16 as usize;
const BF16: usize = Format::BF16 as usize;
const Q8_0_BYTES: usize = Format::Q8_0.block_bytes();

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
        (Operand::Q8, Format::Q8_0) => tiles!(tile_q8_0, [Q8_0_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
        (Operand::Q8K, Format::Q4_K) => tiles!(tile_k4, [Q4_K, Q4_K_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
        (Operand::Q8K, Format::Q5_K) => tiles!(tile_k4, [Q5_K, Q5_K_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
        (Operand::Q8K, Format::Q6_K) => tiles!(tile_q6_k, [Q6_K_BYTES], |i| bytemuck::cast_slice(p.panel(i))),
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

/// Dot products of rows of blocks: element i in lane i % 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn tile_blocks<const FORMAT: usize, const BYTES: usize, const R: usize, const M: usize>(
    w: [&[u8]; R],
    x: [&[f32]; M],
) -> [[f32; M]; R] {
    let w = w.map(|w| w.as_chunks::<BYTES>().0);
    let x = x.map(|x| x.as_chunks::<SIXTEEN>().0);
    let mut acc = [[_mm512_setzero_ps(); M]; R];
    for b in 0..w[0].len() {
        for c in 0..n_sixteens::<FORMAT>() {
            let x = x.map(|x| load(&x[b * n_sixteens::<FORMAT>() + c]));
            for (w, acc) in w.iter().zip(&mut acc) {
                let w = block_weights::<FORMAT, BYTES>(&w[b], c);
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = _mm512_fmadd_ps(w, x, *acc);
                }
            }
        }
    }
    acc.map(|acc| acc.map(|acc| _mm512_reduce_add_ps(acc)))
}

/// Dot products of rows of Q8_0: the chain over ascending blocks of `fma(w.q . x.q, w.d x.d, result)`, the integer exact.
/// Four rows, one per lane, so that their sums are brought together; with fewer the last one counts.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn tile_q8_0<const BYTES: usize, const R: usize, const M: usize>(w: [&[u8]; R], x: [&[BlockQ8]; M]) -> [[f32; M]; R] {
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
            let w: &BlockQ8_0 = bytemuck::from_bytes(&w[b]);
            d[r] = w.d.to_bits();
            // dpbusd takes one unsigned operand: levels larger by 128.
            let levels = _mm256_xor_si256(load_32(bytemuck::cast_ref(&w.q)), _mm256_set1_epi8(i8::MIN));
            for (sums, x) in sums.iter_mut().zip(x) {
                sums[r] = _mm256_dpbusd_epi32(sums[r], levels, load_32(bytemuck::cast_ref(&x[b].q)));
            }
        }
        let d = _mm_cvtph_ps(load_16(bytemuck::cast_ref(&d)));
        for ((acc, sums), x) in acc.iter_mut().zip(sums).zip(x) {
            let pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
            let sum = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
            let sum = _mm_add_epi32(sum, _mm_set1_epi32(x[b].neg_sum * 128));
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

/// The 64 levels of a chunk of activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn levels(x: &BlockQ8_K, chunk: usize) -> __m512i {
    load_64(&bytemuck::cast_ref::<_, [[u8; 64]; 4]>(&x.q)[chunk])
}

/// The sums of the 16 groups of activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn group_sums(x: &BlockQ8_K) -> __m256i {
    load_32(bytemuck::cast_ref(&x.sums))
}

/// Two vectors behind each other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn join(low: __m256i, high: __m256i) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// Lanes 0 .. 32 of 16 bits hold element `first + lane / width` of `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn spread(x: __m256i, first: usize, width: usize) -> __m512i {
    let index: [u16; 32] = std::array::from_fn(|lane| (first + lane / width) as u16);
    _mm512_permutexvar_epi16(load_64(bytemuck::cast_ref(&index)), _mm512_castsi256_si512(x))
}

/// Dot products of a row of Q4_K or Q5_K: per block `x.d w.d sum(scale w.q x.q) - x.d w.dmin sum(min x.q)`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn tile_k4<const FORMAT: usize, const BYTES: usize, const R: usize, const M: usize>(
    w: [&[u8]; R],
    x: [&[BlockQ8_K]; M],
) -> [[f32; M]; R] {
    let n_blocks = x[0].len();
    let (w, x) = (w.map(|w| &w.as_chunks::<BYTES>().0[..n_blocks]), x.map(|x| &x[..n_blocks]));
    let nibble = _mm512_set1_epi8(15);
    let mut acc = [[_mm512_setzero_ps(); M]; R];
    let mut offsets = [[_mm256_setzero_ps(); M]; R];
    for b in 0..n_blocks {
        for ((w, acc), offsets) in w.iter().zip(&mut acc).zip(&mut offsets) {
            prefetch_block(&w[b], R * n_blocks * BYTES);
            let (d, dmin, packed, high, qs) = parts_k4::<FORMAT, BYTES>(&w[b]);
            let (scales, mins) = scales_mins_k4(packed);
            let scales = _mm256_cvtepu8_epi16(_mm_set_epi64x(0, i64::from_le_bytes(scales)));
            // Each of the eight minima twice, beside the sums of its two groups of 16.
            let mins = _mm_set_epi64x(0, i64::from_le_bytes(mins));
            let mins = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(mins, mins));
            let mut sums = [_mm512_setzero_si512(); M];
            for (c, q) in qs.iter().enumerate() {
                let q = load_32(q);
                let mut q = _mm512_and_si512(join(q, _mm256_srli_epi16::<4>(q)), nibble);
                if FORMAT == Q5_K {
                    let bit = |j: usize| _mm256_set1_epi8(1 << j);
                    let fifth = _mm512_test_epi8_mask(join(high, high), join(bit(2 * c), bit(2 * c + 1)));
                    q = _mm512_mask_add_epi8(q, fifth, q, _mm512_set1_epi8(16));
                }
                let scale = spread(scales, 2 * c, 16);
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = _mm512_dpwssd_epi32(*sum, _mm512_maddubs_epi16(q, levels(&x[b], c)), scale);
                }
            }
            for (i, sum) in sums.into_iter().enumerate() {
                let x = &x[i][b];
                acc[i] = _mm512_fmadd_ps(_mm512_set1_ps(x.d * d), _mm512_cvtepi32_ps(sum), acc[i]);
                let offset = _mm256_cvtepi32_ps(_mm256_madd_epi16(mins, group_sums(x)));
                offsets[i] = _mm256_fmadd_ps(_mm256_set1_ps(x.d * dmin), offset, offsets[i]);
            }
        }
    }
    let mut results = [[0.0; M]; R];
    for r in 0..R {
        for i in 0..M {
            results[r][i] = _mm512_reduce_add_ps(acc[r][i]) - horizontal_sum(offsets[r][i]);
        }
    }
    results
}

/// Scale, scale of the minima, packed scales, fifth bits (zeros in Q4_K) and low bits of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn parts_k4<const FORMAT: usize, const BYTES: usize>(
    block: &[u8; BYTES],
) -> (f32, f32, &[u8; 12], __m256i, &[[u8; 32]; 4]) {
    if FORMAT == Q4_K {
        let block: &BlockQ4_K = bytemuck::from_bytes(block);
        let qs = bytemuck::cast_ref(&block.qs);
        (widen(block.d.to_bits()), widen(block.dmin.to_bits()), &block.scales, _mm256_setzero_si256(), qs)
    } else {
        let block: &BlockQ5_K = bytemuck::from_bytes(block);
        let qs = bytemuck::cast_ref(&block.qs);
        (widen(block.d.to_bits()), widen(block.dmin.to_bits()), &block.scales, load_32(&block.qh), qs)
    }
}

/// Dot products of a row of Q6_K: per block `x.d w.d (sum(scale w.level x.q) - 32 sum(scale x.q))`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn tile_q6_k<const BYTES: usize, const R: usize, const M: usize>(w: [&[u8]; R], x: [&[BlockQ8_K]; M]) -> [[f32; M]; R] {
    let n_blocks = x[0].len();
    let (w, x) = (w.map(|w| &w.as_chunks::<BYTES>().0[..n_blocks]), x.map(|x| &x[..n_blocks]));
    let (four, two) = (_mm512_set1_epi8(0x0F), _mm512_set1_epi8(0x30));
    // The four pairs of upper bits of a byte, moved to bits 4 and 5.
    let left = join(_mm256_set1_epi16(4), _mm256_set1_epi16(2));
    let right = join(_mm256_set1_epi16(0), _mm256_set1_epi16(2));
    let mut acc = [[_mm512_setzero_ps(); M]; R];
    for b in 0..n_blocks {
        for (w, acc) in w.iter().zip(&mut acc) {
            prefetch_block(&w[b], R * n_blocks * BYTES);
            let w: &BlockQ6_K = bytemuck::from_bytes(&w[b]);
            let scales = _mm256_cvtepi8_epi16(load_16(bytemuck::cast_ref(&w.scales)));
            let mut sums = [_mm512_setzero_si512(); M];
            for (h, (low, high)) in w.ql.as_chunks().0.iter().zip(w.qh.as_chunks().0).enumerate() {
                let (low, high) = (load_64(low), load_32(high));
                let high = join(high, high);
                let halves = [
                    (low, _mm512_sllv_epi16(high, left)),
                    (_mm512_srli_epi16::<4>(low), _mm512_srlv_epi16(high, right)),
                ];
                for (c, (low, high)) in (2 * h..).zip(halves) {
                    let q = _mm512_or_si512(_mm512_and_si512(low, four), _mm512_and_si512(high, two));
                    let scale = spread(scales, 4 * c, 8);
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = _mm512_dpwssd_epi32(*sum, _mm512_maddubs_epi16(q, levels(&x[b], c)), scale);
                    }
                }
            }
            let d = widen(w.d.to_bits());
            for (i, sum) in sums.into_iter().enumerate() {
                let x = &x[i][b];
                let offset = _mm256_slli_epi32::<5>(_mm256_madd_epi16(scales, group_sums(x)));
                let sum = _mm512_sub_epi32(sum, _mm512_zextsi256_si512(offset));
                acc[i] = _mm512_fmadd_ps(_mm512_set1_ps(x.d * d), _mm512_cvtepi32_ps(sum), acc[i]);
            }
        }
    }
    let mut results = [[0.0; M]; R];
    for (results, acc) in results.iter_mut().zip(acc) {
        for (y, acc) in results.iter_mut().zip(acc) {
            *y = _mm512_reduce_add_ps(acc);
        }
    }
    results
}

/// Asks for the lines that lie `distance` bytes behind a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn prefetch_block<const BYTES: usize>(block: &[u8; BYTES], distance: usize) {
    for line in (0..BYTES).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_add(distance + line).cast());
    }
}
