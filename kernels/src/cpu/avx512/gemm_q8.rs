//! Products of 32-blocks with many rows of 8-bit activations.
//!
//! Lanes are 16 rows of weights. A result is the chain over ascending blocks of `fma(w.q . x.q, w.d x.d, result)`, the
//! integer exact. A vector holds four neighbouring levels of 16 rows, and four levels of a row of activations are spread
//! over it, so that a `dpbusd` adds four products to 16 sums. Levels are brought into that layout [`DEPTH`] blocks at a
//! time.
//!
//! Formats of 32-blocks that take more than that are unpacked [`Sixteens::sixteen`] at a time, those of 256-blocks in `unpack_k`. Where
//! 16 weights have a scale, in Q6_K, the halves of a block are two links of the chain.
//!
//! Levels are unsigned, larger by [`Layout::EXCESS_OF_UNPACKED`]; what that adds is known from the sums of the activations.

#![allow(unsafe_code, reason = "masked loads and stores, methods of traits that need CPU features")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::blocks::*;
use super::dot::prefetch_block;
use super::few_q8_k::Quarters;
use super::unpack_k::unpack_k;
use super::unpacked::{GROUPS, QUADS, Unpacked, transpose_4, transpose_8};
use super::{WIDTH, load, load_16, load_32, load_64, nibbles, store, store_64};
use crate::activation::BlockQ8;
use crate::cpu::product::Product;
use crate::cpu::tiles::{Results, in_tiles};
use crate::quant::{Block, BlockIQ4_NL, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, SMALL_BLOCK};

/// Blocks of a row that are worked on at a time: unpacked ones of two groups, 24 KiB, stay in the first-level cache.
pub(super) const DEPTH: usize = 16;

/// Vectors that hold 16 bytes of each of 16 rows.
pub(super) const FOURS: usize = 4;

/// Bytes that memory moves at once.
const CACHE_LINE: usize = 64;

/// Factors of the negative sums of the halves of a block of activations, so that what the larger levels beside scale `h` add
/// is taken away.
const fn excess_factors<B: Layout>(h: usize) -> [i16; 2] {
    let excess = B::EXCESS_OF_UNPACKED;
    match (B::N_SCALES, h) {
        (1, _) => [excess, excess],
        (_, 0) => [excess, 0],
        _ => [0, excess],
    }
}

/// A block that is brought into the layout of [`Unpacked`]; unless it says how, one of 32 weights with a scale.
pub(super) trait Layout: Sixteens {
    /// What unsigned levels are larger by there than levels.
    const EXCESS_OF_UNPACKED: i16 = 128;
    /// Scales of 32 weights: one, or one for each half.
    const N_SCALES: usize = 1;
    /// Whether products of levels and scales of 16 take the place of the levels.
    const HAS_PRODUCTS: bool = false;

    /// Unpacks groups of 32 weights from number `range.start` to `range.end` of the 16 rows from number `first` on. Rows past
    /// the last one are that again. `range` is whole blocks, at most [`DEPTH`] groups.
    ///
    /// # Safety
    ///
    /// The CPU has the features of this module.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn unpack(p: &Product<'_>, first: usize, range: Range<usize>, out: &mut [Unpacked]) {
        unpack_groups::<Self>(p, first, range.start, out);
    }
}

impl Layout for BlockQ8_0 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn unpack(p: &Product<'_>, first: usize, range: Range<usize>, out: &mut [Unpacked]) {
        unpack_in_order::<Self>(p, first, range, out, |w, b, out| levels_q8_0(w, b, out));
    }
}

impl Layout for BlockQ4_0 {
    const EXCESS_OF_UNPACKED: i16 = 8;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn unpack(p: &Product<'_>, first: usize, range: Range<usize>, out: &mut [Unpacked]) {
        unpack_in_order::<Self>(p, first, range, out, |w, b, out| levels_q4_0(w, b, out));
    }
}

impl Layout for BlockQ4_1 {}

impl Layout for BlockQ5_0 {}

impl Layout for BlockQ5_1 {}

impl Layout for BlockIQ4_NL {}

impl<B: Quarters> Layout for B {
    const EXCESS_OF_UNPACKED: i16 = match B::EXCESS {
        None => 0,
        // Products are -124 ..= 128.
        Some(_) if Self::HAS_PRODUCTS => 127,
        Some(excess) => 1 << excess,
    };
    const N_SCALES: usize = if B::IS_WIDE || Self::HAS_PRODUCTS { 1 } else { 2 };
    // Of larger levels they do not fit a byte.
    const HAS_PRODUCTS: bool = !B::IS_WIDE && B::BITS <= 3;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn unpack(p: &Product<'_>, first: usize, range: Range<usize>, out: &mut [Unpacked]) {
        unpack_k::<Self>(p, first, range.start, out);
    }
}

/// Blocks of 16 rows.
pub(super) type Blocks<'a, B> = [&'a [B; DEPTH]; WIDTH];

/// `f32`s that [`product_many_q8`] needs to work in: unpacked blocks, and room to align them.
pub(super) fn product_many_q8_scratch_len() -> usize {
    (GROUPS * DEPTH + 1) * size_of::<Unpacked>() / size_of::<f32>()
}

/// Blocks `from .. to` of the 16 rows from number `first` on. Rows past the last one are that again, and blocks past `to`
/// do not matter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn blocks<'a, B: Block>(
    p: &Product<'a>,
    first: usize,
    from: usize,
    to: usize,
    tail: &'a mut [[B; DEPTH]; WIDTH],
) -> Blocks<'a, B> {
    let n_blocks = p.k / SMALL_BLOCK;
    let all: &[B] = bytemuck::cast_slice(p.w);
    if to - from < DEPTH {
        for (r, tail) in tail.iter_mut().enumerate() {
            let start = (first + r).min(p.n_rows - 1) * n_blocks + from;
            tail[..to - from].copy_from_slice(&all[start..start + to - from]);
        }
        return tail.each_ref();
    }
    let mut rows = [all.first_chunk().expect("a row has these blocks"); WIDTH];
    for (r, row) in rows.iter_mut().enumerate() {
        let start = (first + r).min(p.n_rows - 1) * n_blocks + from;
        *row = all[start..].first_chunk().expect("a row has these blocks");
    }
    rows
}

/// Bits of the scales of 16 rows, with which blocks begin, block by block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn scales<B: Block>(blocks: &Blocks<'_, B>) -> [[u16; WIDTH]; DEPTH] {
    let mut bits = [[0; WIDTH]; DEPTH];
    for (r, row) in blocks.iter().enumerate() {
        for (bits, block) in bits.iter_mut().zip(*row) {
            let block = bytemuck::bytes_of(block);
            bits[r] = u16::from_le_bytes([block[0], block[1]]);
        }
    }
    bits
}

/// Weights that come after those in work, asked for piece by piece; a piece is as large as a block of 16 rows.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    first: *const i8,
    /// Bytes from piece to piece.
    step: usize,
}

impl Ahead {
    /// What comes `n_rows` rows after the 16 from number `first` on, in place of their block `from`, in the order of memory.
    fn rows(p: &Product<'_>, first: usize, n_rows: usize, from: usize) -> Self {
        let bytes = p.format.block_bytes();
        let ahead = (n_rows * p.k / SMALL_BLOCK + WIDTH * from) * bytes;
        Self { first: p.row(first).as_ptr().cast::<i8>().wrapping_add(ahead), step: WIDTH * bytes }
    }

    /// The next [`DEPTH`] blocks of the 16 rows from number `first` on, behind block `to`, or the first ones of the 16 rows
    /// after them. A piece is of one row: what is asked for is soon used, and little of it by another thread.
    pub(super) fn blocks(p: &Product<'_>, first: usize, to: usize) -> Self {
        let (bytes, row_bytes) = (p.format.block_bytes(), p.format.row_bytes(p.k));
        let ahead = if to * SMALL_BLOCK < p.k { to * bytes } else { WIDTH * row_bytes };
        Self { first: p.row(first).as_ptr().cast::<i8>().wrapping_add(ahead), step: row_bytes }
    }

    /// Asks for piece `i`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    pub(super) fn prefetch<B>(self, i: usize) {
        for at in (0..WIDTH * size_of::<B>()).step_by(CACHE_LINE) {
            _mm_prefetch::<_MM_HINT_T0>(self.first.wrapping_add(i * self.step + at));
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn widen(bits: &[u16; WIDTH]) -> __m512 {
    _mm512_cvtph_ps(load_32(bytemuck::cast_ref(bits)))
}

/// Rows `r` and `r + 8` of Q8_0 in the halves of vector `r`, as unsigned levels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn pairs(blocks: &Blocks<'_, BlockQ8_0>, b: usize) -> [__m512i; 8] {
    let mut x = [_mm512_setzero_si512(); 8];
    for (r, x) in x.iter_mut().enumerate() {
        let half = |r: usize| load_32(bytemuck::cast_ref(&blocks[r][b].q));
        let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half(r)), half(r + 8));
        *x = _mm512_xor_si512(both, _mm512_set1_epi8(i8::MIN));
    }
    x
}

/// Bytes `from .. from + 16` of block `b` of rows `r`, `r + 4`, `r + 8` and `r + 12`, one in each lane of 128 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn four<B: Block>(w: &Blocks<'_, B>, b: usize, r: usize, from: usize) -> __m512i {
    let part = |r: usize| load_16(bytemuck::bytes_of(&w[r][b])[from..].first_chunk().expect("16 bytes of a block"));
    let mut x = _mm512_castsi128_si512(part(r));
    x = _mm512_inserti32x4::<1>(x, part(r + 4));
    x = _mm512_inserti32x4::<2>(x, part(r + 8));
    _mm512_inserti32x4::<3>(x, part(r + 12))
}

/// `out[i, j] = sum over k of w[j, k] x[i, k]` with rows of [`BlockQ8`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn product_many_q8<B: Layout>(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
    let (_, unpacked, _) = bytemuck::pod_align_to_mut::<_, Unpacked>(scratch);
    let n_blocks = p.k / SMALL_BLOCK;
    for first in (0..p.n_rows).step_by(GROUPS * WIDTH) {
        let n = (p.n_rows - first).min(GROUPS * WIDTH);
        let n_groups = n.div_ceil(WIDTH);
        for from in (0..n_blocks).step_by(DEPTH) {
            let to = n_blocks.min(from + DEPTH);
            for (g, out) in unpacked.chunks_exact_mut(DEPTH).enumerate().take(n_groups) {
                // SAFETY: this function has the features.
                unsafe { B::unpack(p, first + g * WIDTH, from..to, &mut out[..to - from]) };
            }
            let groups: [&[Unpacked]; GROUPS] = std::array::from_fn(|g| &unpacked[g * DEPTH..][..to - from]);
            in_tiles!(p.m, |i| &p.activations(i)[from..to], [6, 5, 4, 3, 2], |i, x| {
                let mut results = Results { out: &mut out[i * p.n_rows + first..], stride: p.n_rows, n, add: from > 0 };
                match n_groups {
                    1 => microkernel::<B, 1, _>([groups[0]], x, &mut results),
                    _ => microkernel::<B, GROUPS, _>(groups, x, &mut results),
                }
            });
        }
    }
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
fn microkernel<B: Layout, const G: usize, const C: usize>(
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
        let (w_b, x_b): ([&Unpacked; G], [&BlockQ8; C]) = (w.map(|w| &w[b]), x.map(|x| &x[b]));
        acc = with_scale::<B, 0, G, C>(w_b, x_b, acc);
        if B::N_SCALES == 2 {
            acc = with_scale::<B, 1, G, C>(w_b, x_b, acc);
        }
        if B::HAS_OFFSET && B::HAS_PRODUCTS {
            for (acc, x) in acc.iter_mut().zip(x) {
                let (neg_sums, x_d) = (neg_sums(&x[b]), _mm512_set1_ps(x[b].d));
                for (acc, w) in acc.iter_mut().zip(w) {
                    let mins = _mm512_madd_epi16(load_64(bytemuck::cast_ref(&w[b].mins)), neg_sums);
                    *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(mins), _mm512_mul_ps(load(&w[b].offset), x_d), *acc);
                }
            }
        } else if B::HAS_OFFSET {
            for (acc, x) in acc.iter_mut().zip(x) {
                let neg_sum = _mm512_cvtepi32_ps(_mm512_set1_epi32(x[b].neg_sum));
                let neg_sum = _mm512_mul_ps(neg_sum, _mm512_set1_ps(x[b].d));
                for (acc, w) in acc.iter_mut().zip(w) {
                    *acc = _mm512_fnmadd_ps(load(&w[b].offset), neg_sum, *acc);
                }
            }
        }
    }
    for (c, acc) in acc.into_iter().enumerate() {
        for (g, acc) in acc.into_iter().enumerate() {
            out.store(c, g, acc);
        }
    }
}

/// Adds the products of what has scale `H` of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn with_scale<B: Layout, const H: usize, const G: usize, const C: usize>(
    w: [&Unpacked; G],
    x: [&BlockQ8; C],
    mut acc: [[__m512; G]; C],
) -> [[__m512; G]; C] {
    let mut sums = [[_mm512_setzero_si512(); G]; C];
    if B::EXCESS_OF_UNPACKED != 0 {
        for (sums, x) in sums.iter_mut().zip(x) {
            // Levels are too large by a constant, so that each of them adds that times its activation.
            let factors = _mm512_set1_epi32(bytemuck::cast(excess_factors::<B>(H)));
            *sums = [_mm512_madd_epi16(neg_sums(x), factors); G];
        }
    }
    let n_quads = QUADS / B::N_SCALES;
    for v in H * n_quads..(H + 1) * n_quads {
        let mut levels = [_mm512_setzero_si512(); G];
        for (levels, w) in levels.iter_mut().zip(w) {
            *levels = load_64(&w.levels[v]);
        }
        for (sums, x) in sums.iter_mut().zip(x) {
            let quad = &x.q.as_chunks::<4>().0[v];
            let quad = _mm512_set1_epi32(i32::from_le_bytes(quad.map(|q| q as u8)));
            for (sum, levels) in sums.iter_mut().zip(levels) {
                *sum = _mm512_dpbusd_epi32(*sum, levels, quad);
            }
        }
    }
    let mut d = [_mm512_setzero_ps(); G];
    for (d, w) in d.iter_mut().zip(w) {
        *d = load(&w.d[H]);
    }
    for ((acc, sums), x) in acc.iter_mut().zip(sums).zip(x) {
        let x_d = _mm512_set1_ps(x.d);
        for ((acc, sum), d) in acc.iter_mut().zip(sums).zip(d) {
            *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(d, x_d), *acc);
        }
    }
    acc
}

/// The negative sums of the halves of a block, in every lane of 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn neg_sums(x: &BlockQ8) -> __m512i {
    _mm512_set1_epi32(bytemuck::cast(x.neg_sums))
}

/// [`Layout::unpack`] of blocks that begin with their scale; `levels` gives the unsigned levels of a block of 16 rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn unpack_in_order<B: Layout>(
    p: &Product<'_>,
    first: usize,
    range: Range<usize>,
    out: &mut [Unpacked],
    levels: impl Fn(&Blocks<'_, B>, usize, &mut [[u8; 64]; QUADS]),
) {
    let mut tail = [[B::zeroed(); DEPTH]; WIDTH];
    let w = blocks(p, first, range.start, range.end, &mut tail);
    let ahead = Ahead::rows(p, first, GROUPS * WIDTH, range.start);
    let scales = scales(&w);
    for (b, (out, bits)) in out.iter_mut().zip(&scales).enumerate() {
        ahead.prefetch::<B>(b);
        store(&mut out.d[0], widen(bits));
        levels(&w, b, &mut out.levels);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn levels_q8_0(w: &Blocks<'_, BlockQ8_0>, b: usize, out: &mut [[u8; 64]; QUADS]) {
    for (levels, quad) in out.iter_mut().zip(transpose_8(pairs(w, b))) {
        store_64(levels, quad);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn levels_q4_0(w: &Blocks<'_, BlockQ4_0>, b: usize, out: &mut [[u8; 64]; QUADS]) {
    let (low, high) = out.split_at_mut(QUADS / 2);
    let mut pairs = [_mm512_setzero_si512(); FOURS];
    for (r, pairs) in pairs.iter_mut().enumerate() {
        *pairs = four(w, b, r, 2);
    }
    for ((low, high), quad) in low.iter_mut().zip(high).zip(transpose_4(pairs)) {
        let [a, b] = nibbles(quad);
        store_64(low, a);
        store_64(high, b);
    }
}

/// [`Layout::unpack`] of groups of 32 weights with a scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn unpack_groups<B: Layout>(p: &Product<'_>, first: usize, from: usize, out: &mut [Unpacked]) {
    let rows: [&[B]; WIDTH] = std::array::from_fn(|r| p.blocks((first + r).min(p.n_rows - 1)));
    for (i, out) in (from..).zip(out) {
        let mut levels = [_mm512_setzero_si512(); 8];
        for (r, row) in rows.iter().enumerate() {
            let block = &row[i];
            prefetch_block(block, GROUPS * WIDTH * size_of_val(*row));
            // SAFETY: this function has the features.
            let (low, high) = unsafe { (block.sixteen(0), block.sixteen(1)) };
            // Both halves of a block have its scale.
            (out.d[0][r], out.offset[r]) = (low.scale, low.offset);
            let both = _mm256_set_m128i(high.levels, low.levels);
            let levels = &mut levels[r % 8];
            *levels = if r < 8 { _mm512_castsi256_si512(both) } else { _mm512_inserti64x4::<1>(*levels, both) };
        }
        let unsigned = levels.map(|levels| _mm512_xor_si512(levels, _mm512_set1_epi8(i8::MIN)));
        for (levels, quad) in out.levels.iter_mut().zip(transpose_8(unsigned)) {
            store_64(levels, quad);
        }
    }
}
