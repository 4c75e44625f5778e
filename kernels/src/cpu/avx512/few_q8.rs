//! Products of 32-blocks with few rows of 8-bit activations: weights are read once, as they are stored. Those of Q8_0 are
//! in `dot`.
//!
//! Lanes of 32 bits are 16 rows of weights. A vector holds 16 levels of a block of four rows, one in each lane of 128 bits;
//! `dpbusd` leaves four partial sums there, and those of four vectors are brought together. A result is the chain over
//! ascending blocks of `fma(w.q . x.q, w.d x.d, result)`, the integer exact, followed by
//! `fma(w.offset, x.d sum(x.q), result)` in formats that have an offset: the same bits as in `gemm_q8`.
//!
//! Levels are unsigned, larger by [`excess`]; what that adds is known from the sum of the activations.

#![allow(unsafe_code, reason = "vector loads and stores")]

use std::arch::x86_64::*;

use super::blocks::*;
use super::gemm_q8::{Ahead, Blocks, DEPTH, FOURS, blocks, four};
use super::{MANY, WIDTH, load_16, load_64, nibbles, store};
use crate::activation::BlockQ8;
use crate::cpu::product::Product;
use crate::quant::iq4_nl::VALUES;
use crate::quant::{Format, SMALL_BLOCK};

/// What unsigned levels are larger by than levels, as a power of two, if they are.
const fn excess<const FORMAT: usize>() -> Option<u32> {
    match FORMAT {
        Q4_0 => Some(3),
        Q5_0 => Some(4),
        IQ4_NL => Some(7),
        _ => None,
    }
}

/// `out[i, j] = sum over k of w[j, k] x[i, k]` with less than [`MANY`] rows of [`BlockQ8`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub fn product_few_q8(p: &Product<'_>, out: &mut [f32]) {
    match p.format {
        Format::Q4_0 => few::<Q4_0, Q4_0_BYTES>(p, out),
        Format::Q4_1 => few::<Q4_1, Q4_1_BYTES>(p, out),
        Format::Q5_0 => few::<Q5_0, Q5_0_BYTES>(p, out),
        Format::Q5_1 => few::<Q5_1, Q5_1_BYTES>(p, out),
        Format::IQ4_NL => few::<IQ4_NL, IQ4_NL_BYTES>(p, out),
        _ => unreachable!("no Q8 operand for few rows of {:?}", p.format),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn few<const FORMAT: usize, const BYTES: usize>(p: &Product<'_>, out: &mut [f32]) {
    let mut tail = [[[0; BYTES]; DEPTH]; WIDTH];
    let n_blocks = p.k / SMALL_BLOCK;
    for first in (0..p.n_rows).step_by(WIDTH) {
        let n = (p.n_rows - first).min(WIDTH);
        let mut acc = [_mm512_setzero_ps(); MANY];
        for from in (0..n_blocks).step_by(DEPTH) {
            let to = n_blocks.min(from + DEPTH);
            let (w, ahead) = (blocks(p, first, from, to, &mut tail), Ahead::blocks(p, first, to));
            let x = |i: usize| &bytemuck::cast_slice::<_, BlockQ8>(p.panel(i))[from..to];
            for i in (0..p.m).step_by(2) {
                if let [a, b] = &mut acc[i..p.m.min(i + 2)] {
                    [*a, *b] = tile::<FORMAT, BYTES, 2>(&w, [x(i), x(i + 1)], [*a, *b], ahead);
                } else {
                    [acc[i]] = tile::<FORMAT, BYTES, 1>(&w, [x(i)], [acc[i]], ahead);
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
fn tile<const FORMAT: usize, const BYTES: usize, const M: usize>(
    w: &Blocks<'_, BYTES>,
    x: [&[BlockQ8]; M],
    mut acc: [__m512; M],
    ahead: Ahead,
) -> [__m512; M] {
    let n_blocks = x[0].len().min(DEPTH);
    // One length for all rows lets the compiler drop the checks in the loop.
    let x = x.map(|x| &x[..n_blocks]);
    for b in 0..n_blocks {
        ahead.prefetch::<BYTES>(b);
        let mut heads = [_mm512_setzero_si512(); FOURS];
        let mut parts = [[_mm512_setzero_si512(); FOURS]; M];
        for r in 0..FOURS {
            heads[r] = four(w, b, r, 0);
            let [low, high] = levels::<FORMAT, BYTES>(w, b, r, heads[r]);
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
            if let Some(excess) = excess::<FORMAT>() {
                sum = _mm512_add_epi32(sum, _mm512_set1_epi32(x[b].neg_sum << excess));
            }
            *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(d, _mm512_set1_ps(x[b].d)), *acc);
            if has_offset::<FORMAT>() {
                *acc = _mm512_fmadd_ps(offset, _mm512_set1_ps(x[b].d * -x[b].neg_sum as f32), *acc);
            }
        }
    }
    acc
}

/// The unsigned levels of four rows, the low 16 of a block and the high ones; `head` holds the first 16 bytes of the block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn levels<const FORMAT: usize, const BYTES: usize>(
    w: &Blocks<'_, BYTES>,
    b: usize,
    r: usize,
    head: __m512i,
) -> [__m512i; 2] {
    match FORMAT {
        Q4_0 => nibbles(four(w, b, r, 2)),
        Q4_1 => nibbles(four(w, b, r, 4)),
        Q5_0 => with_fifth_bits::<2>(nibbles(four(w, b, r, 6)), head),
        Q5_1 => with_fifth_bits::<4>(nibbles(four(w, b, r, 8)), head),
        IQ4_NL => {
            const UNSIGNED: [u8; 16] = unsigned(VALUES);
            let values = _mm512_broadcast_i32x4(load_16(&UNSIGNED));
            let [low, high] = nibbles(four(w, b, r, 2));
            [_mm512_shuffle_epi8(values, low), _mm512_shuffle_epi8(values, high)]
        }
        _ => unreachable!("formats of 32-blocks"),
    }
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
