//! AVX2, FMA and F16C.
//!
//! Vectors are loaded from arrays of their width, so that a load can be checked by reading its line.

#![allow(unsafe_code, reason = "vector loads and stores")]

pub(super) mod blocks;
mod decode;
mod dot;
mod gemm;
mod gemm_q8;

use std::arch::x86_64::*;

use half::f16;

use self::blocks::{Eighths, Sixteens};
use self::decode::{decode_blocks, decode_f16};
use self::dot::{Groups, product_few_q8, product_plain, product_q8_k};
use self::gemm::{prepare_panel, product_panels, product_panels_scratch_len, transpose};
use self::gemm_q8::{Layout, Planes, product_many_q8};
use super::attention_tiles::attention_for;
use super::compiled::compiled_for;
use super::formats::formats_for;
use super::product::Product;
use super::rows::rows_for;
use crate::quant::{
    BF16Bytes, BlockIQ4_NL, BlockQ2_K, BlockQ3_K, BlockQ4_0, BlockQ4_1, BlockQ4_K, BlockQ5_0, BlockQ5_1, BlockQ5_K,
    BlockQ6_K, BlockQ8_0, F16Bytes, F32Bytes, Format,
};

/// `f32`s in a vector.
const WIDTH: usize = 8;

/// That many `f32`s.
type Vector = __m256;

/// Rows of 8-bit activations from which on it pays to bring weights into another layout.
const fn many<B: Layout>() -> usize {
    match B::PLANES {
        Planes::Nibbles | Planes::NibblesAroundEight | Planes::SmallHalves | Planes::Halves => 5,
        // There they are multiplied twice.
        Planes::Bytes => 16,
    }
}

compiled_for!("avx2,fma,f16c");
rows_for!("avx2,fma,f16c");
formats_for!("avx2,fma,f16c");
attention_for!("avx2,fma,f16c");

/// The kernels of every format.
pub(super) static FORMATS: Formats = {
    let mut formats = WITH_PLAIN_FORMATS;
    groups::<BlockQ8_0>(&mut formats);
    groups::<BlockQ4_0>(&mut formats);
    groups::<BlockQ4_1>(&mut formats);
    groups::<BlockQ5_0>(&mut formats);
    groups::<BlockQ5_1>(&mut formats);
    groups::<BlockIQ4_NL>(&mut formats);
    eighths::<BlockQ2_K>(&mut formats);
    eighths::<BlockQ3_K>(&mut formats);
    eighths::<BlockQ4_K>(&mut formats);
    eighths::<BlockQ5_K>(&mut formats);
    eighths::<BlockQ6_K>(&mut formats);
    formats
};

const fn groups<B: Groups + Layout>(formats: &mut Formats) {
    sixteens::<B>(formats);
    formats[B::FORMAT as usize].q8 = Some(ProductKernel { scratch_len: NOTHING, run: product_groups_q8::<B> });
}

const fn eighths<B: Eighths + Layout>(formats: &mut Formats) {
    sixteens::<B>(formats);
    formats[B::FORMAT as usize].q8 = Some(ProductKernel { scratch_len: NOTHING, run: product_eighths_q8::<B> });
    formats[B::FORMAT as usize].q8_k = Some(ProductKernel { scratch_len: NOTHING, run: product_q8_k::<B> });
}

/// Products of 32-blocks with rows of 8 bits.
#[target_feature(enable = "avx2,fma,f16c")]
fn product_groups_q8<B: Groups + Layout>(p: &Product<'_>, out: &mut [f32], _scratch: &mut [f32]) {
    if p.m >= many::<B>() { product_many_q8::<B>(p, out) } else { product_few_q8::<B>(p, out) }
}

/// Products of 256-blocks with rows of 8 bits in blocks of 32.
#[target_feature(enable = "avx2,fma,f16c")]
fn product_eighths_q8<B: Layout>(p: &Product<'_>, out: &mut [f32], _scratch: &mut [f32]) {
    product_many_q8::<B>(p, out);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn zero() -> Vector {
    _mm256_setzero_ps()
}

/// `x` in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn splat(x: f32) -> Vector {
    _mm256_set1_ps(x)
}

/// `a b + c`, rounded once.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fma(a: Vector, b: Vector, c: Vector) -> Vector {
    _mm256_fmadd_ps(a, b, c)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load(x: &[f32; WIDTH]) -> Vector {
    // SAFETY: `x` is 32 readable bytes, and the load needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store(y: &mut [f32; WIDTH], x: Vector) {
    // SAFETY: `y` is 32 writable bytes, and the store needs no alignment.
    unsafe { _mm256_storeu_ps(y.as_mut_ptr(), x) }
}

/// Widens eight halves.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_f16(x: &[f16; WIDTH]) -> Vector {
    // SAFETY: `x` is 16 readable bytes, and the load needs no alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}

/// Rounds to eight halves, ties to even.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store_f16(y: &mut [f16; WIDTH], x: Vector) {
    let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x);
    // SAFETY: `y` is 16 writable bytes, and the store needs no alignment.
    unsafe { _mm_storeu_si128(y.as_mut_ptr().cast(), halves) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_16(x: &[u8; 16]) -> __m128i {
    // SAFETY: `x` is 16 readable bytes, and the load needs no alignment.
    unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_32(x: &[u8; 32]) -> __m256i {
    // SAFETY: `x` is 32 readable bytes, and the load needs no alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

/// The value of a half.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn widen(bits: u16) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
}

/// The half nearest to a value, of two the even one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn narrow(x: f32) -> u16 {
    _mm_cvtsi128_si32(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(x))) as u16
}

/// The sum of the eight lanes, halves first.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sum(x: Vector) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
}

/// The sums of four vectors' lanes, each as [`sum`] has it.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sums([a, b, c, d]: [Vector; 4]) -> [f32; 4] {
    let half = |x| _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let (a, b, c, d) = (half(a), half(b), half(c), half(d));
    // Lanes 0 + 2 and 1 + 3 of each.
    let ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
    let cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    lanes(_mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)))
}

/// The four lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn lanes(x: __m128) -> [f32; 4] {
    let mut y = [0.0; 4];
    // SAFETY: `y` is 16 writable bytes, and the store needs no alignment.
    unsafe { _mm_storeu_ps(y.as_mut_ptr(), x) };
    y
}

/// The first `R` lanes of the vectors, lane by lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn by_lane<const R: usize, const M: usize>(vectors: [__m128; M]) -> [[f32; M]; R] {
    let mut results = [[0.0; M]; R];
    for (i, vector) in vectors.into_iter().enumerate() {
        for (results, y) in results.iter_mut().zip(lanes(vector)) {
            results[i] = y;
        }
    }
    results
}
