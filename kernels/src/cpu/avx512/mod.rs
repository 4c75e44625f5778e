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

pub use self::decode::decode_row;
use self::dot::{product_rows, weights};
use self::few_q8::product_few_q8;
use self::few_q8_k::{product_few_q8_k, product_few_q8_k_scratch_len};
use self::gemm::{prepare_panel, product_panels, product_panels_scratch_len};
use self::gemm_q8::{product_many_q8, product_many_q8_scratch_len};
use super::attention_tiles::attention_for;
use super::avx2::{self, blocks, lanes, load_16, load_32, narrow, widen};
use super::compiled::compiled_for;
use super::product::Product;
use super::rows::rows_for;
use crate::quant::{Format, SMALL_BLOCK};

/// `f32`s in a vector.
const WIDTH: usize = 16;

/// That many `f32`s.
type Vector = __m512;

/// Rows of 8-bit activations from which on it pays to bring weights into another layout.
const MANY: usize = 5;

compiled_for!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
rows_for!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
attention_for!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");

/// Makes one panel of an operand; see `scalar::prepare`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub fn prepare(operand: Operand, x: &[f32], stride: usize, n_rows: usize, k: usize, out: &mut [f32]) {
    match operand {
        Operand::Panels => prepare_panel(x, stride, n_rows, k, out),
        Operand::Rows | Operand::Q8 | Operand::Q8K => prepare_rows(operand, x, stride, n_rows, k, out),
    }
}

/// `f32`s that [`product`] needs to work in.
pub fn product_scratch_len(_format: Format, operand: Operand, n_rows: usize, k: usize, m: usize) -> usize {
    match operand {
        Operand::Panels => product_panels_scratch_len(n_rows, m),
        Operand::Q8 => product_many_q8_scratch_len(),
        Operand::Q8K => product_few_q8_k_scratch_len(k, m),
        Operand::Rows => k,
    }
}

/// Whether weights of 32-blocks are used as they are stored.
fn is_few(format: Format, m: usize) -> bool {
    m < MANY && format.block_len() == SMALL_BLOCK
}

/// `out[i, j] = sum over k of w[j, k] x[i, k]`; see `scalar::product`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub fn product(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
    match p.operand {
        Operand::Panels => product_panels(p, out, scratch),
        // Its rows are long: memory gives four of them faster than 16.
        Operand::Q8 if p.format == Format::Q8_0 && p.m < MANY => product_rows(p, out, scratch),
        Operand::Q8 if is_few(p.format, p.m) => product_few_q8(p, out),
        Operand::Q8 => product_many_q8(p, out, scratch),
        Operand::Q8K => product_few_q8_k(p, out, scratch),
        Operand::Rows => product_rows(p, out, scratch),
    }
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
