//! Products of 256-blocks with few rows of 8-bit activations: weights are read once, as they are stored.
//!
//! A result is the sum over blocks of `x.d w.d sum(scale w.level x.q) - x.d w.dmin sum(min x.q)`, where scales and minima
//! belong to groups of 16 weights and the sums are integers, in 16 partial sums. Levels are unsigned, larger by [`Stored::EXCESS`],
//! so that `2^excess sum(scale x.q)` is taken off the first sum.
//!
//! Bits of levels lie above each other in bytes, so that a vector of levels is two runs of 32 ([`Quarters::RUNS`]); activations are
//! brought into that order once.

#![allow(unsafe_code, reason = "methods of traits that need CPU features")]

use std::arch::x86_64::*;

use bytemuck::{Pod, Zeroable};

use super::blocks::{Stored, StoredScales};
use super::dot::prefetch_block;
use super::{load_16, load_32, load_64, sum};
use crate::activation::BlockQ8_K;
use crate::cpu::avx2;
use crate::cpu::product::Product;
use crate::cpu::tiles::{in_tiles, write};
use crate::quant::{BlockQ2_K, BlockQ3_K, BlockQ4_K, BlockQ5_K, BlockQ6_K, F16Bytes, SUPER_BLOCK};

/// Vectors of levels in a block.
pub(super) const QUARTERS: usize = 4;

/// Weights in a run of levels that are together in every format.
const RUN: usize = 32;

/// Bytes between weights in use and those that memory is asked for: some microseconds at the speed of memory.
const AHEAD: usize = 4096;

/// Scales of a block and of its groups.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    /// Scale of the scales, then that of the minima in formats that have them.
    pub d: __m128,
    /// Scales of the groups, words.
    pub scales: __m256i,
    /// What sums of activations are multiplied with, words: minima, or scales in formats with a [`Stored::EXCESS`].
    pub mins: __m256i,
}

impl Scales {
    /// Those of a block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    pub(super) fn of<B: Stored>(block: &B) -> Self {
        match block.scales() {
            StoredScales::Nibbles { d, dmin, pairs } => {
                let both = _mm256_cvtepu8_epi16(load_16(pairs));
                let (scales, mins) = (_mm256_and_si256(both, _mm256_set1_epi16(15)), _mm256_srli_epi16::<4>(both));
                Self { d: widen(d, dmin), scales, mins }
            }
            // Eight scales, then eight minima, which are beside the second half of the sums.
            StoredScales::Packed { d, dmin, packed } => {
                let all = _mm256_cvtepu8_epi16(scales_mins_k4(packed));
                Self { d: widen(d, dmin), scales: all, mins: all }
            }
            StoredScales::AroundThirtyTwo { d, scales } => {
                Self::signed(d, _mm_sub_epi8(load_16(&scales), _mm_set1_epi8(32)))
            }
            StoredScales::Signed { d, scales } => Self::signed(d, load_16(bytemuck::cast_ref(scales))),
        }
    }

    /// Signed scales, which are multiplied with sums of activations too.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    fn signed(d: F16Bytes, scales: __m128i) -> Self {
        let scales = _mm256_cvtepi8_epi16(scales);
        Self { d: widen(d, F16Bytes::default()), scales, mins: scales }
    }
}

/// A block of 256 weights as four vectors of unsigned levels.
pub(super) trait Quarters: Stored {
    /// Numbers of the two runs of levels in each vector.
    const RUNS: [[usize; 2]; QUARTERS];

    /// Vector `c` of the levels.
    ///
    /// # Safety
    ///
    /// The CPU has the features of this module.
    unsafe fn quarter(&self, c: usize) -> __m512i;
}

/// Runs that are four apart.
const FOUR_APART: [[usize; 2]; QUARTERS] = [[0, 4], [1, 5], [2, 6], [3, 7]];
/// Runs that are two apart.
const TWO_APART: [[usize; 2]; QUARTERS] = [[0, 2], [1, 3], [4, 6], [5, 7]];
/// Runs that follow each other.
const IN_ORDER: [[usize; 2]; QUARTERS] = [[0, 1], [2, 3], [4, 5], [6, 7]];

impl Quarters for BlockQ2_K {
    const RUNS: [[usize; 2]; QUARTERS] = FOUR_APART;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn quarter(&self, c: usize) -> __m512i {
        low_bits(&self.qs, 2 * c, 3)
    }
}

impl Quarters for BlockQ3_K {
    const RUNS: [[usize; 2]; QUARTERS] = FOUR_APART;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn quarter(&self, c: usize) -> __m512i {
        let third = high_bits(&self.hmask, Self::RUNS[c], 2, 4);
        _mm512_or_si512(low_bits(&self.qs, 2 * c, 3), third)
    }
}

impl Quarters for BlockQ4_K {
    const RUNS: [[usize; 2]; QUARTERS] = TWO_APART;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn quarter(&self, c: usize) -> __m512i {
        low_bits(&bytemuck::cast_ref::<_, [[u8; 64]; 2]>(&self.qs)[c / 2], 4 * (c % 2), 15)
    }
}

impl Quarters for BlockQ5_K {
    const RUNS: [[usize; 2]; QUARTERS] = TWO_APART;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn quarter(&self, c: usize) -> __m512i {
        let fifth = high_bits(&self.qh, Self::RUNS[c], 4, 16);
        let qs: &[[u8; 64]; 2] = bytemuck::cast_ref(&self.qs);
        _mm512_or_si512(low_bits(&qs[c / 2], 4 * (c % 2), 15), fifth)
    }
}

impl Quarters for BlockQ6_K {
    const RUNS: [[usize; 2]; QUARTERS] = IN_ORDER;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn quarter(&self, c: usize) -> __m512i {
        let (ql, qh): (&[[u8; 64]; 2], &[[u8; RUN]; 2]) = (bytemuck::cast_ref(&self.ql), bytemuck::cast_ref(&self.qh));
        let upper = high_bits(&qh[c / 2], [4 * (c % 2), 4 * (c % 2) + 2], 4, 0x30);
        _mm512_or_si512(low_bits(&ql[c / 2], 4 * (c % 2), 15), upper)
    }
}

/// Two halves, widened.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn widen(low: F16Bytes, high: F16Bytes) -> __m128 {
    let both = u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
    _mm_cvtph_ps(_mm_cvtsi32_si128(both.cast_signed()))
}

/// Bits `mask` of each byte, from bit `from` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn low_bits(bytes: &[u8; 64], from: usize, mask: i8) -> __m512i {
    _mm512_and_si512(_mm512_srl_epi16(load_64(bytes), _mm_cvtsi32_si128(from as i32)), _mm512_set1_epi8(mask))
}

/// A block of activations in the order of a format's levels.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Activations {
    /// Levels beside those of each vector.
    levels: [[[i8; RUN]; 2]; QUARTERS],
    /// Their sums beside [`Scales::mins`].
    sums: [i16; 16],
    /// Scale.
    d: f32,
    fill: [f32; 7],
}

/// `f32`s that [`product_few_q8_k`] needs to work in: activations, and room to align them.
pub(super) fn product_few_q8_k_scratch_len(k: usize, m: usize) -> usize {
    (m * (k / SUPER_BLOCK) + 1) * size_of::<Activations>() / size_of::<f32>()
}

/// `out[i, j] = sum over k of w[j, k] x[i, k]` with rows of [`BlockQ8_K`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn product_few_q8_k<B: Quarters>(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
    let (_, x, _) = bytemuck::pod_align_to_mut::<_, Activations>(scratch);
    let n_blocks = p.k / SUPER_BLOCK;
    for i in 0..p.m {
        order::<B>(p.activations(i), &mut x[i * n_blocks..][..n_blocks]);
    }
    let x = |i: usize| &x[i * n_blocks..][..n_blocks];
    for j in 0..p.n_rows {
        let w = &p.blocks::<B>(j)[..n_blocks];
        in_tiles!(p.m, x, [4, 2], |i, x| {
            write([tile(w, x)], &mut out[i * p.n_rows + j..], p.n_rows);
        });
    }
}

/// Brings a row of activations into the order of a format.
fn order<B: Quarters>(x: &[BlockQ8_K], out: &mut [Activations]) {
    for (out, x) in out.iter_mut().zip(x) {
        let all: &[[i8; RUN]; 2 * QUARTERS] = bytemuck::cast_ref(&x.q);
        for (levels, [first, second]) in out.levels.iter_mut().zip(B::RUNS) {
            *levels = [all[first], all[second]];
        }
        out.sums = x.sums;
        if B::IS_WIDE {
            let (zero, sums) = out.sums.split_at_mut(2 * QUARTERS);
            zero.fill(0);
            for (sum, [a, b]) in sums.iter_mut().zip(x.sums.as_chunks().0) {
                *sum = a + b;
            }
        }
        out.d = x.d;
    }
}

/// The products of a row of weights with `M` rows of activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn tile<B: Quarters, const M: usize>(w: &[B], x: [&[Activations]; M]) -> [f32; M] {
    let mut acc = [_mm512_setzero_ps(); M];
    let mut offsets = [_mm256_setzero_ps(); M];
    for (b, w) in w.iter().enumerate() {
        prefetch_block(w, AHEAD);
        let Scales { d, scales, mins } = Scales::of(w);
        let mut sums = [_mm512_setzero_si512(); M];
        for c in 0..QUARTERS {
            // SAFETY: this function has the features.
            let levels = unsafe { w.quarter(c) };
            let index = load_64(bytemuck::cast_ref(&const { scale_index::<B>() }[c]));
            let scale = _mm512_permutexvar_epi16(index, _mm512_castsi256_si512(scales));
            for (sum, x) in sums.iter_mut().zip(x) {
                let pairs = _mm512_maddubs_epi16(levels, load_64(bytemuck::cast_ref(&x[b].levels[c])));
                *sum = _mm512_dpwssd_epi32(*sum, pairs, scale);
            }
        }
        for (i, mut sum) in sums.into_iter().enumerate() {
            let x = &x[i][b];
            let mut offset = _mm256_madd_epi16(mins, load_32(bytemuck::cast_ref(&x.sums)));
            // Of levels, then of minima.
            let factors = _mm_mul_ps(d, _mm_set1_ps(x.d));
            if let Some(excess) = B::EXCESS {
                offset = _mm256_sll_epi32(offset, _mm_cvtsi32_si128(excess));
                sum = _mm512_sub_epi32(sum, _mm512_zextsi256_si512(offset));
            } else {
                let dmin = _mm256_broadcastss_ps(_mm_movehdup_ps(factors));
                offsets[i] = _mm256_fmadd_ps(dmin, _mm256_cvtepi32_ps(offset), offsets[i]);
            }
            acc[i] = _mm512_fmadd_ps(_mm512_broadcastss_ps(factors), _mm512_cvtepi32_ps(sum), acc[i]);
        }
    }
    let mut results = [0.0; M];
    for (i, y) in results.iter_mut().enumerate() {
        *y = sum(acc[i]) - avx2::sum(offsets[i]);
    }
    results
}

/// Eight scales and eight minima of Q4_K or Q5_K, bytes; see `scale_min_k4` for where their bits are.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn scales_mins_k4(packed: &[u8; 12]) -> __m128i {
    let [first, second, third] = bytemuck::cast_ref::<_, [[u8; 4]; 3]>(packed);
    let (first, second, third) = (u32::from_le_bytes(*first), u32::from_le_bytes(*second), u32::from_le_bytes(*third));
    // The first four scales, then the first four minima, with the upper bits of the others above them.
    let six = u64::from(first) | u64::from(second) << 32;
    // The low bits of the others.
    let four = u64::from(third & 0x0F0F_0F0F) | u64::from(third & 0xF0F0_F0F0) << 28;
    let low = six & 0x3F3F_3F3F_3F3F_3F3F;
    let high = four | six >> 2 & 0x3030_3030_3030_3030;
    _mm_unpacklo_epi32(_mm_cvtsi64_si128(low.cast_signed()), _mm_cvtsi64_si128(high.cast_signed()))
}

/// Numbers of the scales of each vector of levels, for each word.
pub(super) const fn scale_index<B: Quarters>() -> [[u16; 32]; QUARTERS] {
    let mut index = [[0; 32]; QUARTERS];
    let mut i = 0;
    while i < QUARTERS * 32 {
        let (c, sixteen) = (i / 32, i % 32 / 8);
        let run = B::RUNS[c][sixteen / 2];
        index[c][i % 32] = if B::IS_WIDE { run } else { 2 * run + sixteen % 2 } as u16;
        i += 1;
    }
    index
}

/// Two runs of the bytes with bit `from` of the first one and of the second one at bit `to`; then the bits of `mask`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn high_bits(bytes: &[u8; RUN], from: [usize; 2], to: usize, mask: i8) -> __m512i {
    const BITS: usize = 32;
    let [first, second] = [(to + BITS - from[0]) as i32, (to + BITS - from[1]) as i32];
    let count = _mm512_inserti64x4::<1>(_mm512_set1_epi32(first), _mm256_set1_epi32(second));
    let turned = _mm512_rolv_epi32(_mm512_broadcast_i64x4(load_32(bytes)), count);
    _mm512_and_si512(turned, _mm512_set1_epi8(mask))
}
