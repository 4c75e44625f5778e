//! Products of 32-blocks with many rows of 8-bit activations.
//!
//! A vector holds four neighbouring levels of 8 rows of weights, as nibbles; four levels of one row of activations are
//! spread over it. `maddubs` multiplies them, and because nibbles are small a whole block fits sums of 16 bits. Levels of
//! 8 bits are two planes of nibbles. A result is the chain over ascending blocks of `fma(w.q . x.q, w.d x.d, result)`, the
//! integer exact: the same bits as in `dot`, whatever the blocking.
//!
//! Where 16 weights have a scale, their levels, below 64, are one plane; sums of 16 bits are multiplied with the scale as they
//! are widened, and `w.q` above is the product of scale and level.

#![allow(unsafe_code, reason = "vector stores, methods of traits that need CPU features")]

use std::arch::x86_64::*;

use super::blocks::*;
use super::dot::nibbles;
use super::{WIDTH, load, load_16, load_32, store, transpose};
use crate::activation::BlockQ8;
use crate::cpu::product::Product;
use crate::cpu::rows::padded;
use crate::cpu::tiles::{Results, in_tiles};
use crate::quant::{
    BlockIQ4_NL, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, F16Bytes, SMALL_BLOCK, SUPER_BLOCK,
};

/// Blocks of a row that are unpacked at a time: those of eight rows, 11 KiB, stay in the first-level cache.
const DEPTH: usize = 16;

/// Vectors of a block: four levels of 8 rows each.
const QUADS: usize = SMALL_BLOCK / 4;

/// A block of each of 8 rows.
#[derive(Clone, Copy)]
pub(super) struct Unpacked {
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

/// How the unsigned levels of a format lie in [`Unpacked`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Planes {
    /// Levels below 16, in the low plane.
    Nibbles,
    /// The same, larger by 8 than levels.
    NibblesAroundEight,
    /// Levels larger by 128: their low and their high nibbles.
    Bytes,
    /// Levels below 8, in the low plane, with a scale for each 16.
    SmallHalves,
    /// Levels below 64, in the low plane, with a scale for each 16.
    Halves,
}

/// A block that is brought into the layout of [`Unpacked`]; unless it says how, one whose groups of 32 weights have a scale.
pub(super) trait Layout: Sixteens {
    /// How levels lie there.
    const PLANES: Planes;

    /// Unpacks groups of 32 weights from number `from` on of eight rows; `from` begins a block, and `out` takes whole ones.
    ///
    /// # Safety
    ///
    /// The CPU has AVX2, FMA and F16C.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack(rows: [&[Self]; WIDTH], from: usize, out: &mut [Unpacked]) {
        unpack_groups(rows, from, out);
    }
}

impl Layout for BlockQ8_0 {
    const PLANES: Planes = Planes::Bytes;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack(rows: [&[Self]; WIDTH], from: usize, out: &mut [Unpacked]) {
        unpack_q8_0(rows, from, out);
    }
}

impl Layout for BlockQ4_0 {
    const PLANES: Planes = Planes::NibblesAroundEight;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack(rows: [&[Self]; WIDTH], from: usize, out: &mut [Unpacked]) {
        unpack_q4_0(rows, from, out);
    }
}

impl<B: Eighths> Layout for B {
    const PLANES: Planes = match (B::IS_WIDE, B::BITS) {
        (true, ..=4) => Planes::Nibbles,
        (true, _) => Planes::Bytes,
        (false, ..=3) => Planes::SmallHalves,
        (false, _) => Planes::Halves,
    };

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack(rows: [&[Self]; WIDTH], from: usize, out: &mut [Unpacked]) {
        if B::IS_WIDE {
            unpack_groups(rows, from, out);
        } else {
            unpack_halves(rows, from, out);
        }
    }
}

impl Layout for BlockQ4_1 {
    const PLANES: Planes = Planes::Nibbles;
}

impl Layout for BlockQ5_0 {
    const PLANES: Planes = Planes::Bytes;
}

impl Layout for BlockQ5_1 {
    const PLANES: Planes = Planes::Bytes;
}

impl Layout for BlockIQ4_NL {
    const PLANES: Planes = Planes::Bytes;
}

/// `out[i, j] = sum over k of w[j, k] x[i, k]` with rows of [`BlockQ8`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn product_many_q8<B: Layout>(p: &Product<'_>, out: &mut [f32]) {
    let mut blocks = [EMPTY; DEPTH];
    let n_blocks = p.k / SMALL_BLOCK;
    for first in (0..p.n_rows).step_by(WIDTH) {
        let n = (p.n_rows - first).min(WIDTH);
        // Rows past the last one are that again.
        let rows = std::array::from_fn(|r| p.blocks(first + r.min(n - 1)));
        for from in (0..n_blocks).step_by(DEPTH) {
            let to = n_blocks.min(from + DEPTH);
            let blocks = &mut blocks[..to - from];
            // SAFETY: this function has the features.
            unsafe { B::unpack(rows, from, blocks) };
            in_tiles!(p.m, |i| &p.activations(i)[from..to], [4, 3, 2], |i, x| {
                let mut results = Results { out: &mut out[i * p.n_rows + first..], stride: p.n_rows, n, add: from > 0 };
                microkernel::<B, _>(blocks, x, &mut results);
            });
        }
    }
}

/// Adds the products of eight rows of weights with `C` rows of activations to the results.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn microkernel<B: Layout, const C: usize>(w: &[Unpacked], x: [&[BlockQ8]; C], results: &mut Results<'_>) {
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
        let has_halves = matches!(B::PLANES, Planes::SmallHalves | Planes::Halves);
        let sums = if has_halves { sums_of_halves::<B, C>(w, x_b) } else { sums::<B, C>(w, x_b) };
        let d = load(&w.d);
        for ((acc, sum), x) in acc.iter_mut().zip(sums).zip(x_b) {
            *acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(d, _mm256_set1_ps(x.d)), *acc);
        }
        if B::HAS_OFFSET && has_halves {
            for (acc, x) in acc.iter_mut().zip(x_b) {
                let mins = _mm256_cvtepi32_ps(of_neg_sums(w, x));
                *acc = _mm256_fmadd_ps(mins, _mm256_mul_ps(load(&w.offset), _mm256_set1_ps(x.d)), *acc);
            }
        } else if B::HAS_OFFSET {
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
fn sums<B: Layout, const C: usize>(w: &Unpacked, x: [&BlockQ8; C]) -> [__m256i; C] {
    let (mut low, mut high) = ([_mm256_setzero_si256(); C], [_mm256_setzero_si256(); C]);
    for v in 0..QUADS {
        let (w_low, w_high) = (load_32(&w.low[v]), load_32(&w.high[v]));
        for ((low, high), x) in low.iter_mut().zip(&mut high).zip(x) {
            let quad = quad(x, v);
            *low = _mm256_add_epi16(*low, _mm256_maddubs_epi16(w_low, quad));
            if B::PLANES == Planes::Bytes {
                *high = _mm256_add_epi16(*high, _mm256_maddubs_epi16(w_high, quad));
            }
        }
    }
    let mut sums = low;
    for ((low, high), x) in sums.iter_mut().zip(high).zip(x) {
        // Levels are too large by a constant, so that each of them adds that times its activation.
        let neg_sum = _mm256_set1_epi32(x.neg_sum);
        *low = _mm256_madd_epi16(*low, _mm256_set1_epi16(1));
        if B::PLANES == Planes::Bytes {
            let high = _mm256_madd_epi16(high, _mm256_set1_epi16(16));
            *low = _mm256_add_epi32(_mm256_add_epi32(*low, high), _mm256_slli_epi32::<7>(neg_sum));
        } else if B::PLANES == Planes::NibblesAroundEight {
            *low = _mm256_add_epi32(*low, _mm256_slli_epi32::<3>(neg_sum));
        }
    }
    sums
}

/// Scales times levels times activations of a block, in integers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sums_of_halves<B: Layout, const C: usize>(w: &Unpacked, x: [&BlockQ8; C]) -> [__m256i; C] {
    // Two products of levels below 64 in a lane of 16 bits leave room for two more, those below 8 for all of a half.
    let together = if B::PLANES == Planes::Halves { 2 } else { QUADS / 2 };
    let mut sums = [_mm256_setzero_si256(); C];
    // Minima are multiplied apart; what levels are too large by is taken off here.
    if !B::HAS_OFFSET {
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

/// [`Layout::unpack`] of blocks with a scale for each half.
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_halves<B: Eighths>(rows: [&[B]; WIDTH], from: usize, out: &mut [Unpacked]) {
    const IN_BLOCK: usize = SUPER_BLOCK / SMALL_BLOCK;
    for (i, out) in (from / IN_BLOCK..).zip(out.as_chunks_mut::<IN_BLOCK>().0) {
        for (r, row) in rows.iter().enumerate() {
            let Scales { d, dmin, scales, mins } = Scales::of(&row[i]);
            let mins = match B::EXCESS {
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
                // SAFETY: this function has the features.
                *quads = _mm256_castsi256_ps(unsafe { row[i].eighth(c) });
            }
            for (low, quad) in out.low.iter_mut().zip(transpose(quads)) {
                store_32(low, _mm256_castps_si256(quad));
            }
        }
    }
}

/// [`Layout::unpack`] of Q8_0.
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_q8_0(rows: [&[BlockQ8_0]; WIDTH], from: usize, out: &mut [Unpacked]) {
    let rows = rows.map(|row| &row[from..from + out.len()]);
    for (b, out) in out.iter_mut().enumerate() {
        unpack_scales(rows.map(|row| row[b].d), &mut out.d);
        let mut levels = [_mm256_setzero_ps(); WIDTH];
        for (levels, row) in levels.iter_mut().zip(rows) {
            *levels = _mm256_castsi256_ps(load_32(bytemuck::cast_ref(&row[b].q)));
        }
        store_planes(out, levels, i8::MIN);
    }
}

/// [`Layout::unpack`] of Q4_0.
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_q4_0(rows: [&[BlockQ4_0]; WIDTH], from: usize, out: &mut [Unpacked]) {
    let rows = rows.map(|row| &row[from..from + out.len()]);
    for (b, out) in out.iter_mut().enumerate() {
        unpack_scales(rows.map(|row| row[b].d), &mut out.d);
        let mut levels = [_mm256_setzero_ps(); WIDTH];
        for (levels, row) in levels.iter_mut().zip(rows) {
            *levels = _mm256_castsi256_ps(nibbles(&row[b].qs));
        }
        for (low, quad) in out.low.iter_mut().zip(transpose(levels)) {
            store_32(low, _mm256_castps_si256(quad));
        }
    }
}

/// [`Layout::unpack`] of groups of 32 weights with a scale.
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_groups<B: Layout>(rows: [&[B]; WIDTH], from: usize, out: &mut [Unpacked]) {
    let in_block = B::LEN / SMALL_BLOCK;
    let sign = if B::PLANES == Planes::Nibbles { 0 } else { i8::MIN };
    for (i, out) in (from..).zip(out) {
        let mut levels = [_mm256_setzero_ps(); WIDTH];
        for (r, (levels, row)) in levels.iter_mut().zip(rows).enumerate() {
            let (block, c) = (&row[i / in_block], i % in_block * 2);
            // SAFETY: this function has the features.
            let (low, high) = unsafe { (block.sixteen(c), block.sixteen(c + 1)) };
            // Both halves of a group have its scale.
            (out.d[r], out.offset[r]) = (low.scale, low.offset);
            *levels = _mm256_castsi256_ps(_mm256_set_m128i(high.levels, low.levels));
        }
        store_planes(out, levels, sign);
    }
}

/// Writes the levels of eight rows, with the bits of `sign` turned, as two planes of nibbles.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store_planes(out: &mut Unpacked, levels: [__m256; WIDTH], sign: i8) {
    let (nibble, sign) = (_mm256_set1_epi8(15), _mm256_set1_epi8(sign));
    for ((low, high), quad) in out.low.iter_mut().zip(&mut out.high).zip(transpose(levels)) {
        let quad = _mm256_xor_si256(_mm256_castps_si256(quad), sign);
        store_32(low, _mm256_and_si256(quad, nibble));
        store_32(high, _mm256_and_si256(_mm256_srli_epi16::<4>(quad), nibble));
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
