//! Products of 32-blocks with many rows of 8-bit activations.
//!
//! A vector holds four neighbouring levels of 16 rows of weights; four levels of one row of activations are spread over
//! it, so that a `dpbusd` adds four products to 16 sums. Levels are brought into that layout, as unsigned bytes,
//! [`DEPTH`] blocks at a time. A result is the chain over ascending blocks of `fma(w.q . x.q, w.d x.d, result)`, the
//! integer exact: the same bits as in `dot`, whatever the blocking.

#![allow(unsafe_code, reason = "masked loads and stores")]

use std::arch::x86_64::*;

use bytemuck::{Pod, Zeroable};

use super::dot::{Q4_0, Q8_0, offset};
use super::{WIDTH, load, load_64, store, store_64};
use crate::cpu::avx2::{load_16, load_32};
use crate::cpu::product::Product;
use crate::quant::activation::BlockQ8;
use crate::quant::{BlockQ4_0, BlockQ8_0, F16Bytes, Format, SMALL_BLOCK};

/// Groups of 16 rows of weights in a microkernel: with six rows of activations, 12 sums of each kind in 32 registers.
const GROUPS: usize = 2;

/// Blocks of a row that are unpacked at a time: those of two groups, 18 KiB, stay in the first-level cache.
const DEPTH: usize = 16;

/// Vectors of a block: four levels of 16 rows each.
const QUADS: usize = SMALL_BLOCK / 4;

/// A block of each of 16 rows.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Unpacked {
    /// Byte `4 r + i` of vector `v` is level `4 v + i` of row `r`, made unsigned.
    levels: [[u8; 64]; QUADS],
    /// Scales of the rows.
    d: [f32; WIDTH],
}

/// `f32`s that [`product_many_q8`] needs to work in: unpacked blocks, and room to align them.
pub fn product_many_q8_scratch_len() -> usize {
    (GROUPS * DEPTH + 1) * size_of::<Unpacked>() / size_of::<f32>()
}

/// `out[i, j] = sum over k of w[j, k] x[i, k]` with rows of [`BlockQ8`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub fn product_many_q8(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
    match p.format {
        Format::Q8_0 => product::<Q8_0>(p, out, scratch),
        Format::Q4_0 => product::<Q4_0>(p, out, scratch),
        _ => unreachable!("no Q8 operand for {:?}", p.format),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn product<const FORMAT: usize>(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
    let (_, blocks, _) = bytemuck::pod_align_to_mut::<_, Unpacked>(scratch);
    let n_blocks = p.k / SMALL_BLOCK;
    for first in (0..p.n_rows).step_by(GROUPS * WIDTH) {
        let n = (p.n_rows - first).min(GROUPS * WIDTH);
        let n_groups = n.div_ceil(WIDTH);
        for from in (0..n_blocks).step_by(DEPTH) {
            let to = n_blocks.min(from + DEPTH);
            // What is unpacked next: further blocks of these rows, or the first ones of the next groups.
            let rest = GROUPS * WIDTH * n_blocks - from;
            let ahead = if to < n_blocks { DEPTH } else { rest } * p.format.block_bytes();
            for (g, blocks) in blocks.chunks_exact_mut(DEPTH).enumerate().take(n_groups) {
                // Rows past the last one are that again.
                let rows = std::array::from_fn(|r| p.row((first + g * WIDTH + r).min(p.n_rows - 1)));
                unpack::<FORMAT>(rows, from, &mut blocks[..to - from], ahead);
            }
            let groups: [&[Unpacked]; GROUPS] = std::array::from_fn(|g| &blocks[g * DEPTH..][..to - from]);
            let x = |i: usize| &bytemuck::cast_slice::<_, BlockQ8>(p.panel(i))[from..to];
            let mut i = 0;
            while i < p.m {
                let out = &mut Results { out: &mut out[i * p.n_rows + first..], stride: p.n_rows, n, add: from > 0 };
                macro_rules! columns {
                    ($n:literal) => {{
                        let x: [&[BlockQ8]; $n] = std::array::from_fn(|c| x(i + c));
                        match n_groups {
                            1 => microkernel::<FORMAT, 1, $n>([groups[0]], x, out),
                            _ => microkernel::<FORMAT, GROUPS, $n>(groups, x, out),
                        }
                        i += $n;
                    }};
                }
                match p.m - i {
                    1 => columns!(1),
                    2 => columns!(2),
                    3 => columns!(3),
                    4 => columns!(4),
                    5 => columns!(5),
                    _ => columns!(6),
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

impl Results<'_> {
    /// Elements of group `g` in row `c`, at most 16.
    fn part(&mut self, c: usize, g: usize) -> &mut [f32] {
        let n = (self.n - g * WIDTH).min(WIDTH);
        &mut self.out[c * self.stride + g * WIDTH..][..n]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    fn load(&mut self, c: usize, g: usize) -> __m512 {
        if !self.add {
            return _mm512_setzero_ps();
        }
        let part = self.part(c, g);
        // SAFETY: the mask has as many bits as `part` has elements, and no others are read.
        unsafe { _mm512_maskz_loadu_ps(u16::MAX >> (WIDTH - part.len()), part.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    fn store(&mut self, c: usize, g: usize, x: __m512) {
        let part = self.part(c, g);
        // SAFETY: the mask has as many bits as `part` has elements, and no others are written.
        unsafe { _mm512_mask_storeu_ps(part.as_mut_ptr(), u16::MAX >> (WIDTH - part.len()), x) }
    }
}

/// Adds the products of `G` groups of rows of weights with `C` rows of activations to the results.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn microkernel<const FORMAT: usize, const G: usize, const C: usize>(
    w: [&[Unpacked]; G],
    x: [&[BlockQ8]; C],
    out: &mut Results<'_>,
) {
    let n_blocks = x[0].len();
    // One length for all rows lets the compiler drop the checks in the loop.
    let (w, x) = (w.map(|w| &w[..n_blocks]), x.map(|x| &x[..n_blocks]));
    let mut acc = [[_mm512_setzero_ps(); G]; C];
    for (c, acc) in acc.iter_mut().enumerate() {
        for (g, acc) in acc.iter_mut().enumerate() {
            *acc = out.load(c, g);
        }
    }
    for b in 0..n_blocks {
        let mut sums = [[_mm512_setzero_si512(); G]; C];
        for (sums, x) in sums.iter_mut().zip(x) {
            // Levels are too large by a constant, so that each of them adds that times its activation.
            let neg_sum = _mm512_set1_epi32(x[b].neg_sum);
            *sums = [_mm512_sllv_epi32(neg_sum, _mm512_set1_epi32(offset::<FORMAT>().ilog2() as i32)); G];
        }
        for v in 0..QUADS {
            let mut levels = [_mm512_setzero_si512(); G];
            for (levels, w) in levels.iter_mut().zip(w) {
                *levels = load_64(&w[b].levels[v]);
            }
            for (sums, x) in sums.iter_mut().zip(x) {
                let quad = &x[b].q.as_chunks::<4>().0[v];
                let quad = _mm512_set1_epi32(i32::from_le_bytes(quad.map(|q| q as u8)));
                for (sum, levels) in sums.iter_mut().zip(levels) {
                    *sum = _mm512_dpbusd_epi32(*sum, levels, quad);
                }
            }
        }
        let mut d = [_mm512_setzero_ps(); G];
        for (d, w) in d.iter_mut().zip(w) {
            *d = load(&w[b].d);
        }
        for ((acc, sums), x) in acc.iter_mut().zip(sums).zip(x) {
            let x_d = _mm512_set1_ps(x[b].d);
            for ((acc, sum), d) in acc.iter_mut().zip(sums).zip(d) {
                *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(d, x_d), *acc);
            }
        }
    }
    for (c, acc) in acc.into_iter().enumerate() {
        for (g, acc) in acc.into_iter().enumerate() {
            out.store(c, g, acc);
        }
    }
}

/// Unpacks blocks from number `from` on of 16 rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn unpack<const FORMAT: usize>(rows: [&[u8]; WIDTH], from: usize, out: &mut [Unpacked], ahead: usize) {
    if FORMAT == Q8_0 {
        let rows = rows.map(|row| &bytemuck::cast_slice::<_, BlockQ8_0>(row)[from..from + out.len()]);
        unpack_scales(rows, |b| b.d, out, ahead);
        let sign = _mm512_set1_epi8(i8::MIN);
        for (b, out) in out.iter_mut().enumerate() {
            let quads = transpose_8(std::array::from_fn(|r| {
                let half = |r: usize| load_32(bytemuck::cast_ref(&rows[r][b].q));
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half(r)), half(r + 8))
            }));
            for (levels, quad) in out.levels.iter_mut().zip(quads) {
                store_64(levels, _mm512_xor_si512(quad, sign));
            }
        }
    } else {
        let rows = rows.map(|row| &bytemuck::cast_slice::<_, BlockQ4_0>(row)[from..from + out.len()]);
        unpack_scales(rows, |b| b.d, out, ahead);
        let nibble = _mm512_set1_epi8(15);
        for (b, out) in out.iter_mut().enumerate() {
            let quads = transpose_4(std::array::from_fn(|r| {
                let part = |r: usize| load_16(&rows[r][b].qs);
                let x = _mm512_castsi128_si512(part(r));
                let x = _mm512_inserti32x4::<1>(x, part(r + 4));
                let x = _mm512_inserti32x4::<2>(x, part(r + 8));
                _mm512_inserti32x4::<3>(x, part(r + 12))
            }));
            let (low, high) = out.levels.split_at_mut(QUADS / 2);
            for ((low, high), quad) in low.iter_mut().zip(high).zip(quads) {
                let upper = _mm512_srli_epi16::<4>(quad);
                store_64(low, _mm512_and_si512(quad, nibble));
                store_64(high, _mm512_and_si512(upper, nibble));
            }
        }
    }
}

/// Unpacks scales, and asks for the bytes that lie `ahead` of the blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn unpack_scales<B>(rows: [&[B]; WIDTH], d: impl Fn(&B) -> F16Bytes, out: &mut [Unpacked], ahead: usize) {
    let mut bits = [[0; WIDTH]; DEPTH];
    for (r, row) in rows.into_iter().enumerate() {
        for (bits, block) in bits.iter_mut().zip(row) {
            bits[r] = d(block).to_bits();
            _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(block).cast::<i8>().wrapping_add(ahead));
        }
    }
    for (out, bits) in out.iter_mut().zip(&bits) {
        store(&mut out.d, _mm512_cvtph_ps(load_32(bytemuck::cast_ref(bits))));
    }
}

/// Four vectors of which lane `l` of number `r`, 128 bits, holds 32-bit elements 0 .. 4 of row `4 l + r`: number `v` of the
/// result holds element `v` of the 16 rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn transpose_4(r: [__m512i; 4]) -> [__m512i; 4] {
    let (a, b) = (_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1]));
    let (c, d) = (_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3]));
    [_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d), _mm512_unpackhi_epi64(b, d)]
}

/// Eight vectors of which half `h` of number `r` holds the eight 32-bit elements of row `8 h + r`: number `v` of the result
/// holds element `v` of the 16 rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn transpose_8(r: [__m512i; 8]) -> [__m512i; 8] {
    // Lane l of low[v] holds element v, or in odd lanes v + 4, of rows 8 (l / 2) .. 8 (l / 2) + 4; high, of the next four.
    let low = transpose_4([r[0], r[1], r[2], r[3]]);
    let high = transpose_4([r[4], r[5], r[6], r[7]]);
    let even = _mm512_set_epi64(13, 12, 5, 4, 9, 8, 1, 0);
    let odd = _mm512_set_epi64(15, 14, 7, 6, 11, 10, 3, 2);
    let mut out = r;
    for v in 0..4 {
        out[v] = _mm512_permutex2var_epi64(low[v], even, high[v]);
        out[v + 4] = _mm512_permutex2var_epi64(low[v], odd, high[v]);
    }
    out
}
