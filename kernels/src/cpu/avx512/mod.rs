//! AVX-512 F, BW, VL, DQ and VNNI.
//!
//! Vectors are loaded from arrays of their width, so that a load can be checked by reading its line.

#![allow(unsafe_code, reason = "vector loads and stores")]

mod decode;
mod dot;
mod few_q8;
mod few_q8_k;
mod gemm;
mod gemm_q8;
mod unpack_k;
mod unpacked;

use std::arch::x86_64::*;

use half::f16;

use self::blocks::Sixteens;
use self::decode::{decode_blocks, decode_f16};
use self::dot::{product_few_q8_0, product_plain};
use self::few_q8::{Fours, product_few_q8};
use self::few_q8_k::{Quarters, product_few_q8_k, product_few_q8_k_scratch_len};
use self::gemm::{prepare_panel, product_panels, product_panels_scratch_len};
use self::gemm_q8::{Layout, product_many_q8, product_many_q8_scratch_len};
use super::attention_tiles::attention_for;
use super::avx2::{self, blocks, by_lane, load_16, load_32, narrow, widen};
use super::compiled::compiled_for;
use super::formats::formats_for;
use super::product::Product;
use super::rows::rows_for;
use crate::quant::{
    BF16Bytes, BlockIQ4_NL, BlockQ2_K, BlockQ3_K, BlockQ4_0, BlockQ4_1, BlockQ4_K, BlockQ5_0, BlockQ5_1, BlockQ5_K,
    BlockQ6_K, BlockQ8_0, F16Bytes, F32Bytes, Format,
};

/// `f32`s in a vector.
const WIDTH: usize = 16;

/// That many `f32`s.
type Vector = __m512;

/// Rows of 8-bit activations from which on it pays to bring weights into another layout.
const MANY: usize = 5;

compiled_for!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
rows_for!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
formats_for!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
attention_for!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");

/// The kernels of every format.
pub(super) static FORMATS: Formats = {
    let mut formats = WITH_PLAIN_FORMATS;
    sixteens::<BlockQ8_0>(&mut formats);
    formats[Format::Q8_0 as usize].q8 = Some(of_unpacked(product_q8_0));
    fours::<BlockQ4_0>(&mut formats);
    fours::<BlockQ4_1>(&mut formats);
    fours::<BlockQ5_0>(&mut formats);
    fours::<BlockQ5_1>(&mut formats);
    fours::<BlockIQ4_NL>(&mut formats);
    quarters::<BlockQ2_K>(&mut formats);
    quarters::<BlockQ3_K>(&mut formats);
    quarters::<BlockQ4_K>(&mut formats);
    quarters::<BlockQ5_K>(&mut formats);
    quarters::<BlockQ6_K>(&mut formats);
    formats
};

const fn fours<B: Fours + Layout>(formats: &mut Formats) {
    sixteens::<B>(formats);
    formats[B::FORMAT as usize].q8 = Some(of_unpacked(product_fours_q8::<B>));
}

const fn quarters<B: Quarters>(formats: &mut Formats) {
    sixteens::<B>(formats);
    formats[B::FORMAT as usize].q8 = Some(of_unpacked(product_many_q8::<B>));
    formats[B::FORMAT as usize].q8_k =
        Some(ProductKernel { scratch_len: |_, k, m| product_few_q8_k_scratch_len(k, m), run: product_few_q8_k::<B> });
}

/// A kernel with unpacked blocks in its scratch memory.
const fn of_unpacked(run: unsafe fn(&Product<'_>, &mut [f32], &mut [f32])) -> ProductKernel {
    ProductKernel { scratch_len: |_, _, _| product_many_q8_scratch_len(), run }
}

/// Products of Q8_0 with rows of 8 bits. Its rows are long: memory gives four of them faster than 16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn product_q8_0(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
    if p.m >= MANY { product_many_q8::<BlockQ8_0>(p, out, scratch) } else { product_few_q8_0(p, out) }
}

/// Products of other 32-blocks with rows of 8 bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn product_fours_q8<B: Fours + Layout>(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
    if p.m >= MANY { product_many_q8::<B>(p, out, scratch) } else { product_few_q8::<B>(p, out) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn zero() -> Vector {
    _mm512_setzero_ps()
}

/// `x` in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn splat(x: f32) -> Vector {
    _mm512_set1_ps(x)
}

/// `a b + c`, rounded once.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn fma(a: Vector, b: Vector, c: Vector) -> Vector {
    _mm512_fmadd_ps(a, b, c)
}

/// The sum of the sixteen lanes, halves first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn sum(x: Vector) -> f32 {
    avx2::sum(half(x))
}

/// The sums of four vectors' lanes, each as [`sum`] has it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn sums([a, b, c, d]: [Vector; 4]) -> [f32; 4] {
    avx2::sums([half(a), half(b), half(c), half(d)])
}

/// The lower eight lanes plus the upper ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn half(x: Vector) -> __m256 {
    _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn load(x: &[f32; WIDTH]) -> Vector {
    // SAFETY: `x` is 64 readable bytes, and the load needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn store(y: &mut [f32; WIDTH], x: Vector) {
    // SAFETY: `y` is 64 writable bytes, and the store needs no alignment.
    unsafe { _mm512_storeu_ps(y.as_mut_ptr(), x) }
}

/// Widens sixteen halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn load_f16(x: &[f16; WIDTH]) -> Vector {
    // SAFETY: `x` is 32 readable bytes, and the load needs no alignment.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) })
}

/// Rounds to sixteen halves, ties to even.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn store_f16(y: &mut [f16; WIDTH], x: Vector) {
    let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x);
    // SAFETY: `y` is 32 writable bytes, and the store needs no alignment.
    unsafe { _mm256_storeu_si256(y.as_mut_ptr().cast(), halves) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn load_64(x: &[u8; 64]) -> __m512i {
    // SAFETY: `x` is 64 readable bytes, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn store_64(y: &mut [u8; 64], x: __m512i) {
    // SAFETY: `y` is 64 writable bytes, and the store needs no alignment.
    unsafe { _mm512_storeu_si512(y.as_mut_ptr().cast(), x) }
}

/// The nibbles of bytes: low ones, high ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn nibbles(x: __m512i) -> [__m512i; 2] {
    let nibble = _mm512_set1_epi8(15);
    [_mm512_and_si512(x, nibble), _mm512_and_si512(_mm512_srli_epi16::<4>(x), nibble)]
}
