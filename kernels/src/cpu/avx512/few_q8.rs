//! Products of 32-blocks with few rows of 8-bit activations: weights are read once, as they are stored. Those of Q8_0 are
//! in `dot`.
//!
//! Lanes of 32 bits are 16 rows of weights. A vector holds 16 levels of a block of four rows, one in each lane of 128 bits;
//! `dpbusd` leaves four partial sums there, and those of four vectors are brought together. A result is the chain over
//! ascending blocks of `fma(w.q . x.q, w.d x.d, result)`, the integer exact, followed by
//! `fma(w.offset, x.d sum(x.q), result)` in formats that have an offset: the same bits as in `gemm_q8`.
//!
//! Levels are unsigned, larger by [`Fours::EXCESS`]; what that adds is known from the sum of the activations.

#![allow(unsafe_code, reason = "methods of traits that need CPU features")]

use std::arch::x86_64::*;

use super::blocks::*;
use super::gemm_q8::{Ahead, Blocks, DEPTH, FOURS, blocks, four};
use super::{MANY, WIDTH, load_16, load_64, nibbles, store};
use crate::activation::BlockQ8;
use crate::cpu::product::Product;
use crate::quant::iq4_nl::VALUES;
use crate::quant::{BlockIQ4_NL, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, SMALL_BLOCK};

/// A block of 32 weights that is taken from four rows at once. It begins with its scale and its offset.
pub(super) trait Fours: Sixteens {
    /// What unsigned levels are larger by than levels, as a power of two, if they are.
    const EXCESS: Option<u32>;

    /// The unsigned levels of block `b` of four rows from number `r` on, the low 16 and the high ones; `head` holds the first
    /// 16 bytes of the blocks.
    ///
    /// # Safety
    ///
    /// The CPU has the features of this module.
    unsafe fn levels(w: &Blocks<'_, Self>, b: usize, r: usize, head: __m512i) -> [__m512i; 2];
}

impl Fours for BlockQ4_0 {
    const EXCESS: Option<u32> = Some(3);

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn levels(w: &Blocks<'_, Self>, b: usize, r: usize, _head: __m512i) -> [__m512i; 2] {
        nibbles(four(w, b, r, 2))
    }
}

impl Fours for BlockQ4_1 {
    const EXCESS: Option<u32> = None;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn levels(w: &Blocks<'_, Self>, b: usize, r: usize, _head: __m512i) -> [__m512i; 2] {
        nibbles(four(w, b, r, 4))
    }
}

impl Fours for BlockQ5_0 {
    const EXCESS: Option<u32> = Some(4);

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn levels(w: &Blocks<'_, Self>, b: usize, r: usize, head: __m512i) -> [__m512i; 2] {
        with_fifth_bits::<2>(nibbles(four(w, b, r, 6)), head)
    }
}

impl Fours for BlockQ5_1 {
    const EXCESS: Option<u32> = None;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn levels(w: &Blocks<'_, Self>, b: usize, r: usize, head: __m512i) -> [__m512i; 2] {
        with_fifth_bits::<4>(nibbles(four(w, b, r, 8)), head)
    }
}

impl Fours for BlockIQ4_NL {
    const EXCESS: Option<u32> = Some(7);

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn levels(w: &Blocks<'_, Self>, b: usize, r: usize, _head: __m512i) -> [__m512i; 2] {
        const UNSIGNED: [u8; 16] = unsigned(VALUES);
        let values = _mm512_broadcast_i32x4(load_16(&UNSIGNED));
        let [low, high] = nibbles(four(w, b, r, 2));
        [_mm512_shuffle_epi8(values, low), _mm512_shuffle_epi8(values, high)]
    }
}

/// `out[i, j] = sum over k of w[j, k] x[i, k]` with less than [`MANY`] rows of [`BlockQ8`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn product_few_q8<B: Fours>(p: &Product<'_>, out: &mut [f32]) {
    let mut tail = [[B::zeroed(); DEPTH]; WIDTH];
    let n_blocks = p.k / SMALL_BLOCK;
    for first in (0..p.n_rows).step_by(WIDTH) {
        let n = (p.n_rows - first).min(WIDTH);
        let mut acc = [_mm512_setzero_ps(); MANY];
        for from in (0..n_blocks).step_by(DEPTH) {
            let to = n_blocks.min(from + DEPTH);
            let (w, ahead) = (blocks(p, first, from, to, &mut tail), Ahead::blocks(p, first, to));
            let x = |i: usize| &p.activations(i)[from..to];
            for i in (0..p.m).step_by(2) {
                if let [a, b] = &mut acc[i..p.m.min(i + 2)] {
                    [*a, *b] = tile::<B, 2>(&w, [x(i), x(i + 1)], [*a, *b], ahead);
                } else {
                    [acc[i]] = tile::<B, 1>(&w, [x(i)], [acc[i]], ahead);
                }
            }
        }
        for (i, acc) in acc.into_iter().enumerate().take(p.m) {
            let mut y = [0.0; WIDTH];
            store(&mut y, acc);
            out[i * p.n_rows + first..][..n].copy_from_slice(&y[..n]);
        }
    }
}

/// Adds the products of 16 rows of weights with `M` rows of activations to the results.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn tile<B: Fours, const M: usize>(
    w: &Blocks<'_, B>,
    x: [&[BlockQ8]; M],
    mut acc: [__m512; M],
    ahead: Ahead,
) -> [__m512; M] {
    let n_blocks = x[0].len().min(DEPTH);
    // One length for all rows lets the compiler drop the checks in the loop.
    let x = x.map(|x| &x[..n_blocks]);
    for b in 0..n_blocks {
        ahead.prefetch::<B>(b);
        let mut heads = [_mm512_setzero_si512(); FOURS];
        let mut parts = [[_mm512_setzero_si512(); FOURS]; M];
        for r in 0..FOURS {
            heads[r] = four(w, b, r, 0);
            // SAFETY: this function has the features.
            let [low, high] = unsafe { B::levels(w, b, r, heads[r]) };
            for (parts, x) in parts.iter_mut().zip(x) {
                let [x_low, x_high]: &[[u8; 16]; 2] = bytemuck::cast_ref(&x[b].q);
                parts[r] = _mm512_dpbusd_epi32(parts[r], low, _mm512_broadcast_i32x4(load_16(x_low)));
                parts[r] = _mm512_dpbusd_epi32(parts[r], high, _mm512_broadcast_i32x4(load_16(x_high)));
            }
        }
        let heads = first_of_lanes(heads);
        let (d, offset) = (half::<0>(heads), half::<1>(heads));
        for ((acc, parts), x) in acc.iter_mut().zip(parts).zip(x) {
            let mut sum = sum_lanes(parts);
            if let Some(excess) = B::EXCESS {
                sum = _mm512_add_epi32(sum, _mm512_set1_epi32(x[b].neg_sum << excess));
            }
            *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(d, _mm512_set1_ps(x[b].d)), *acc);
            if B::HAS_OFFSET {
                *acc = _mm512_fmadd_ps(offset, _mm512_set1_ps(x[b].d * -x[b].neg_sum as f32), *acc);
            }
        }
    }
    acc
}

/// Values larger by 128.
const fn unsigned(values: [i8; 16]) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < out.len() {
        out[i] = values[i] as u8 ^ 0x80;
        i += 1;
    }
    out
}

/// Levels with the bits that begin at byte `FROM` of each lane of `head` as their fifth ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn with_fifth_bits<const FROM: i64>(levels: [__m512i; 2], head: __m512i) -> [__m512i; 2] {
    const EACH: i64 = 0x0101_0101_0101_0101;
    let own = _mm512_set1_epi64(0x8040_2010_0804_0201_u64.cast_signed());
    let add = |levels: __m512i, from: i64| {
        // A byte eight times, then the next one.
        let index = _mm512_broadcast_i32x4(_mm_set_epi64x(EACH * (from + 1), EACH * from));
        let bits = _mm512_test_epi8_mask(_mm512_shuffle_epi8(head, index), own);
        _mm512_mask_add_epi8(levels, bits, levels, _mm512_set1_epi8(16))
    };
    [add(levels[0], FROM), add(levels[1], FROM + 2)]
}

/// Element `r` of lane `l` of the result is the first 32-bit element of lane `l` of vector `r`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn first_of_lanes(x: [__m512i; FOURS]) -> __m512i {
    _mm512_unpacklo_epi64(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpacklo_epi32(x[2], x[3]))
}

/// Half `AT` of each 32-bit element, widened.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn half<const AT: u16>(x: __m512i) -> __m512 {
    const INDEX: [[u16; 32]; 2] = [halves_from(0), halves_from(1)];
    let halves = _mm512_permutexvar_epi16(load_64(bytemuck::cast_ref(&INDEX[AT as usize])), x);
    _mm512_cvtph_ps(_mm512_castsi512_si256(halves))
}

/// Every other word, from `first` on.
const fn halves_from(first: u16) -> [u16; 32] {
    let mut index = [0; 32];
    let mut i = 0;
    while i < WIDTH {
        index[i] = 2 * i as u16 + first;
        i += 1;
    }
    index
}

/// Element `r` of lane `l` of the result is the sum of the elements of lane `l` of vector `r`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn sum_lanes(x: [__m512i; FOURS]) -> __m512i {
    let pairs = |a: __m512i, b: __m512i| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (a, b) = (pairs(x[0], x[1]), pairs(x[2], x[3]));
    _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
}
