//! Products of 32-blocks with many rows of 8-bit activations.
//!
//! A vector holds four neighbouring levels of 8 rows of weights, as nibbles; four levels of one row of activations are
//! spread over it. `maddubs` multiplies them, and because nibbles are small a whole block fits sums of 16 bits. Levels of
//! 8 bits are two planes of nibbles. A result is the chain over ascending blocks of `fma(w.q . x.q, w.d x.d, result)`, the
//! integer exact: the same bits as in `dot`, whatever the blocking.
//!
//! Where 16 weights have a scale, their levels, below 64, are one plane; sums of 16 bits are multiplied with the scale as they
//! are widened, and `w.q` above is the product of scale and level.

#![allow(unsafe_code, reason = "vector stores")]

use std::arch::x86_64::*;

use super::blocks::*;
use super::dot::{self, levels};
use super::{WIDTH, load, load_16, load_32, store, transpose};
use crate::activation::BlockQ8;
use crate::cpu::product::Product;
use crate::cpu::rows::padded;
use crate::quant::{BlockQ4_0, BlockQ8_0, F16Bytes, Format, SMALL_BLOCK, SUPER_BLOCK};

/// Blocks of a row that are unpacked at a time: those of eight rows, 11 KiB, stay in the first-level cache.
const DEPTH: usize = 16;

/// Vectors of a block: four levels of 8 rows each.
const QUADS: usize = SMALL_BLOCK / 4;

/// A block of each of 8 rows.
#[derive(Clone, Copy)]
struct Unpacked {
    /// Byte `4 r + i` of vector `v` is the low nibble of level `4 v + i` of row `r`, made unsigned.
    low: [[u8; 32]; QUADS],
    /// The high nibbles; unused in formats of 4 bits.
    high: [[u8; 32]; QUADS],
    /// Scales of the rows.
    d: [f32; WIDTH],
    /// What weights of the rows are larger by than levels times scale, or the scale of their minima; used in formats that have
    /// it.
    offset: [f32; WIDTH],
    /// Scales of the halves of the rows, each twice; used in formats with a scale for each half, as are minima.
    scales: [[[i16; 2]; WIDTH]; 2],
    /// What negative sums of the halves of activations are multiplied with: minima, or scales times what levels are too large
    /// by.
    mins: [[i16; 2]; WIDTH],
}

/// A block of zeros.
const EMPTY: Unpacked = Unpacked {
    low: [[0; 32]; QUADS],
    high: [[0; 32]; QUADS],
    d: [0.0; WIDTH],
    offset: [0.0; WIDTH],
    scales: [[[0; 2]; WIDTH]; 2],
    mins: [[0; 2]; WIDTH],
};

/// Whether levels fit a nibble as they are.
const fn is_nibble<const FORMAT: usize>() -> bool {
    matches!(FORMAT, Q4_1 | Q4_K)
}

/// Whether levels need a second plane.
const fn has_high<const FORMAT: usize>() -> bool {
    FORMAT != Q4_0 && !is_nibble::<FORMAT>()
}

/// Whether 16 weights have a scale; their levels are in the low plane.
const fn has_halves<const FORMAT: usize>() -> bool {
    matches!(FORMAT, Q2_K | Q3_K | Q6_K)
}

/// `out[i, j] = sum over k of w[j, k] x[i, k]` with rows of [`BlockQ8`].
#[target_feature(enable = "avx2,fma,f16c")]
pub fn product_many_q8(p: &Product<'_>, out: &mut [f32]) {
    match p.format {
        Format::Q8_0 => product::<Q8_0, Q8_0_BYTES>(p, out),
        Format::Q4_0 => product::<Q4_0, Q4_0_BYTES>(p, out),
        Format::Q4_1 => product::<Q4_1, Q4_1_BYTES>(p, out),
        Format::Q5_0 => product::<Q5_0, Q5_0_BYTES>(p, out),
        Format::Q5_1 => product::<Q5_1, Q5_1_BYTES>(p, out),
        Format::IQ4_NL => product::<IQ4_NL, IQ4_NL_BYTES>(p, out),
        Format::Q2_K => product::<Q2_K, Q2_K_BYTES>(p, out),
        Format::Q3_K => product::<Q3_K, Q3_K_BYTES>(p, out),
        Format::Q4_K => product::<Q4_K, Q4_K_BYTES>(p, out),
        Format::Q5_K => product::<Q5_K, Q5_K_BYTES>(p, out),
        Format::Q6_K => product::<Q6_K, Q6_K_BYTES>(p, out),
        _ => unreachable!("no Q8 operand for {:?}", p.format),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn product<const FORMAT: usize, const BYTES: usize>(p: &Product<'_>, out: &mut [f32]) {
    let mut blocks = [EMPTY; DEPTH];
    let n_blocks = p.k / SMALL_BLOCK;
    for first in (0..p.n_rows).step_by(WIDTH) {
        let n = (p.n_rows - first).min(WIDTH);
        // Rows past the last one are that again.
        let rows = std::array::from_fn(|r| p.row(first + r.min(n - 1)));
        for from in (0..n_blocks).step_by(DEPTH) {
            let to = n_blocks.min(from + DEPTH);
            let blocks = &mut blocks[..to - from];
            if has_halves::<FORMAT>() {
                unpack_halves::<FORMAT, BYTES>(rows, from, blocks);
            } else {
                unpack::<FORMAT, BYTES>(rows, from, blocks);
            }
            let x = |i: usize| &bytemuck::cast_slice::<_, BlockQ8>(p.panel(i))[from..to];
            let mut i = 0;
            while i < p.m {
                let out = &mut Results { out: &mut out[i * p.n_rows + first..], stride: p.n_rows, n, add: from > 0 };
                macro_rules! columns {
                    ($n:literal) => {{
                        let x: [&[BlockQ8]; $n] = std::array::from_fn(|c| x(i + c));
                        microkernel::<FORMAT, $n>(blocks, x, out);
                        i += $n;
                    }};
                }
                match p.m - i {
                    1 => columns!(1),
                    2 => columns!(2),
                    3 => columns!(3),
                    _ => columns!(4),
                }
            }
        }
    }
}

/// Where a microkernel's results go: rows of `out` that are `stride` apart, `n` elements of each.
struct Results<'a> {
    out: &'a mut [f32],
    stride: usize,
    n: usize,
    /// Whether what is there is added to.
    add: bool,
}

/// Adds the products of eight rows of weights with `C` rows of activations to the results.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn microkernel<const FORMAT: usize, const C: usize>(w: &[Unpacked], x: [&[BlockQ8]; C], results: &mut Results<'_>) {
    // One length for all rows lets the compiler drop the checks in the loop.
    let x = x.map(|x| &x[..w.len()]);
    let mut acc = [_mm256_setzero_ps(); C];
    if results.add {
        for (c, acc) in acc.iter_mut().enumerate() {
            *acc = load(&padded(&results.out[c * results.stride..][..results.n], 0.0));
        }
    }
    for (b, w) in w.iter().enumerate() {
        let x_b: [&BlockQ8; C] = x.map(|x| &x[b]);
        let sums = if has_halves::<FORMAT>() { sums_of_halves::<FORMAT, C>(w, x_b) } else { sums::<FORMAT, C>(w, x_b) };
        let d = load(&w.d);
        for ((acc, sum), x) in acc.iter_mut().zip(sums).zip(x_b) {
            *acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(d, _mm256_set1_ps(x.d)), *acc);
        }
        if FORMAT == Q2_K {
            for (acc, x) in acc.iter_mut().zip(x_b) {
                let mins = _mm256_cvtepi32_ps(of_neg_sums(w, x));
                *acc = _mm256_fmadd_ps(mins, _mm256_mul_ps(load(&w.offset), _mm256_set1_ps(x.d)), *acc);
            }
        } else if has_offset::<FORMAT>() {
            for (acc, x) in acc.iter_mut().zip(x) {
                let sum = _mm256_set1_ps(x[b].d * -x[b].neg_sum as f32);
                *acc = _mm256_fmadd_ps(load(&w.offset), sum, *acc);
            }
        }
    }
    for (c, acc) in acc.into_iter().enumerate() {
        let mut y = [0.0; WIDTH];
        store(&mut y, acc);
        results.out[c * results.stride..][..results.n].copy_from_slice(&y[..results.n]);
    }
}

/// Levels times activations of a block, in integers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sums<const FORMAT: usize, const C: usize>(w: &Unpacked, x: [&BlockQ8; C]) -> [__m256i; C] {
    let (mut low, mut high) = ([_mm256_setzero_si256(); C], [_mm256_setzero_si256(); C]);
    for v in 0..QUADS {
        let (w_low, w_high) = (load_32(&w.low[v]), load_32(&w.high[v]));
        for ((low, high), x) in low.iter_mut().zip(&mut high).zip(x) {
            let quad = quad(x, v);
            *low = _mm256_add_epi16(*low, _mm256_maddubs_epi16(w_low, quad));
            if has_high::<FORMAT>() {
                *high = _mm256_add_epi16(*high, _mm256_maddubs_epi16(w_high, quad));
            }
        }
    }
    let mut sums = low;
    for ((low, high), x) in sums.iter_mut().zip(high).zip(x) {
        // Levels are too large by a constant, so that each of them adds that times its activation.
        let neg_sum = _mm256_set1_epi32(x.neg_sum);
        *low = _mm256_madd_epi16(*low, _mm256_set1_epi16(1));
        if has_high::<FORMAT>() {
            let high = _mm256_madd_epi16(high, _mm256_set1_epi16(16));
            *low = _mm256_add_epi32(_mm256_add_epi32(*low, high), _mm256_slli_epi32::<7>(neg_sum));
        } else if !is_nibble::<FORMAT>() {
            *low = _mm256_add_epi32(*low, _mm256_slli_epi32::<3>(neg_sum));
        }
    }
    sums
}

/// Scales times levels times activations of a block, in integers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sums_of_halves<const FORMAT: usize, const C: usize>(w: &Unpacked, x: [&BlockQ8; C]) -> [__m256i; C] {
    // Two products of levels below 64 in a lane of 16 bits leave room for two more, those below 8 for all of a half.
    let together = if FORMAT == Q6_K { 2 } else { QUADS / 2 };
    let mut sums = [_mm256_setzero_si256(); C];
    if dot::excess::<FORMAT>().is_some() {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = of_neg_sums(w, x);
        }
    }
    for from in (0..QUADS).step_by(together) {
        let mut pairs = [_mm256_setzero_si256(); C];
        for v in from..from + together {
            let levels = load_32(&w.low[v]);
            for (pairs, x) in pairs.iter_mut().zip(x) {
                *pairs = _mm256_add_epi16(*pairs, _mm256_maddubs_epi16(levels, quad(x, v)));
            }
        }
        let scales = load_32(bytemuck::cast_ref(&w.scales[from / (QUADS / 2)]));
        for (sum, pairs) in sums.iter_mut().zip(pairs) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, scales));
        }
    }
    sums
}

/// Quad `v` of a block of activations, for every row of weights.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn quad(x: &BlockQ8, v: usize) -> __m256i {
    let quad = &x.q.as_chunks::<4>().0[v];
    _mm256_set1_epi32(i32::from_le_bytes(quad.map(|q| q as u8)))
}

/// Minima times the negative sums of the halves of a block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn of_neg_sums(w: &Unpacked, x: &BlockQ8) -> __m256i {
    let neg_sums = _mm256_set1_epi32(bytemuck::cast(x.neg_sums));
    _mm256_madd_epi16(load_32(bytemuck::cast_ref(&w.mins)), neg_sums)
}

/// Unpacks blocks from number `from` on of eight rows of 256-blocks; `from` begins one of these, and `out` takes whole ones.
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_halves<const FORMAT: usize, const BYTES: usize>(rows: [&[u8]; WIDTH], from: usize, out: &mut [Unpacked]) {
    const IN_BLOCK: usize = SUPER_BLOCK / SMALL_BLOCK;
    let rows: [&[[u8; BYTES]]; WIDTH] = rows.map(|row| row.as_chunks().0);
    for (i, out) in (from / IN_BLOCK..).zip(out.as_chunks_mut::<IN_BLOCK>().0) {
        for (r, row) in rows.iter().enumerate() {
            let Scales { d, dmin, scales, mins } = scales::<FORMAT, BYTES>(&row[i]);
            let mins = match dot::excess::<FORMAT>() {
                Some(excess) => _mm256_sll_epi16(scales, _mm_cvtsi32_si128(excess)),
                None => mins,
            };
            let (mut of_scales, mut of_mins) = ([[0; 2]; IN_BLOCK], [[0; 2]; IN_BLOCK]);
            store_32(bytemuck::cast_mut(&mut of_scales), scales);
            store_32(bytemuck::cast_mut(&mut of_mins), mins);
            for ((out, [first, second]), mins) in out.iter_mut().zip(of_scales).zip(of_mins) {
                (out.d[r], out.offset[r], out.mins[r]) = (d, dmin, mins);
                (out.scales[0][r], out.scales[1][r]) = ([first; 2], [second; 2]);
            }
        }
        for (c, out) in out.iter_mut().enumerate() {
            let mut quads = [_mm256_setzero_ps(); WIDTH];
            for (quads, row) in quads.iter_mut().zip(rows) {
                *quads = _mm256_castsi256_ps(levels::<FORMAT, BYTES>(&row[i], c));
            }
            for (low, quad) in out.low.iter_mut().zip(transpose(quads)) {
                store_32(low, _mm256_castps_si256(quad));
            }
        }
    }
}

/// Unpacks blocks from number `from` on of eight rows.
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack<const FORMAT: usize, const BYTES: usize>(rows: [&[u8]; WIDTH], from: usize, out: &mut [Unpacked]) {
    let nibble = _mm256_set1_epi8(15);
    if FORMAT == Q8_0 {
        let rows = rows.map(|row| &bytemuck::cast_slice::<_, BlockQ8_0>(row)[from..from + out.len()]);
        let sign = _mm256_set1_epi8(i8::MIN);
        for (b, out) in out.iter_mut().enumerate() {
            unpack_scales(rows.map(|row| row[b].d), &mut out.d);
            let mut levels = [_mm256_setzero_ps(); WIDTH];
            for (levels, row) in levels.iter_mut().zip(rows) {
                *levels = _mm256_castsi256_ps(load_32(bytemuck::cast_ref(&row[b].q)));
            }
            for ((low, high), quad) in out.low.iter_mut().zip(&mut out.high).zip(transpose(levels)) {
                let quad = _mm256_xor_si256(_mm256_castps_si256(quad), sign);
                store_32(low, _mm256_and_si256(quad, nibble));
                store_32(high, _mm256_and_si256(_mm256_srli_epi16::<4>(quad), nibble));
            }
        }
    } else if FORMAT != Q4_0 {
        let in_block = n_sixteens::<FORMAT>() * SIXTEEN / SMALL_BLOCK;
        let rows: [&[[u8; BYTES]]; WIDTH] = rows.map(|row| row.as_chunks().0);
        let sign = if is_nibble::<FORMAT>() { _mm256_setzero_si256() } else { _mm256_set1_epi8(i8::MIN) };
        for (i, out) in (from..).zip(out) {
            let mut levels = [_mm256_setzero_ps(); WIDTH];
            for (r, (levels, row)) in levels.iter_mut().zip(rows).enumerate() {
                let (block, c) = (&row[i / in_block], i % in_block * 2);
                let (low, high) = (sixteen::<FORMAT, BYTES>(block, c), sixteen::<FORMAT, BYTES>(block, c + 1));
                // Both halves of a group have its scale.
                (out.d[r], out.offset[r]) = (low.scale, low.offset);
                *levels = _mm256_castsi256_ps(_mm256_set_m128i(high.levels, low.levels));
            }
            for ((low, high), quad) in out.low.iter_mut().zip(&mut out.high).zip(transpose(levels)) {
                let quad = _mm256_xor_si256(_mm256_castps_si256(quad), sign);
                store_32(low, _mm256_and_si256(quad, nibble));
                store_32(high, _mm256_and_si256(_mm256_srli_epi16::<4>(quad), nibble));
            }
        }
    } else {
        let rows = rows.map(|row| &bytemuck::cast_slice::<_, BlockQ4_0>(row)[from..from + out.len()]);
        for (b, out) in out.iter_mut().enumerate() {
            unpack_scales(rows.map(|row| row[b].d), &mut out.d);
            let mut levels = [_mm256_setzero_ps(); WIDTH];
            for (levels, row) in levels.iter_mut().zip(rows) {
                let pairs = load_16(&row[b].qs);
                let nibbles = _mm256_set_m128i(_mm_srli_epi16::<4>(pairs), pairs);
                *levels = _mm256_castsi256_ps(_mm256_and_si256(nibbles, nibble));
            }
            for (low, quad) in out.low.iter_mut().zip(transpose(levels)) {
                store_32(low, _mm256_castps_si256(quad));
            }
        }
    }
}

/// Widens the scales of eight rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_scales(d: [F16Bytes; WIDTH], out: &mut [f32; WIDTH]) {
    let bits = d.map(F16Bytes::to_bits);
    store(out, _mm256_cvtph_ps(load_16(bytemuck::cast_ref(&bits))));
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store_32(y: &mut [u8; 32], x: __m256i) {
    // SAFETY: `y` is 32 writable bytes, and the store needs no alignment.
    unsafe { _mm256_storeu_si256(y.as_mut_ptr().cast(), x) }
}
