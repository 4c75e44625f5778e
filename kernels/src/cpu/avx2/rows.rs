//! Single rows: dot products, sums of scaled rows, conversions, decoding.

#![allow(unsafe_code, reason = "vector loads and stores")]

use std::arch::x86_64::*;

use half::f16;

use super::blocks::*;
use super::{WIDTH, horizontal_sum, load, load_16, load_f16, padded, store, widen};
use crate::quant::{BlockQ8_0, Format};

/// `sum a_i b_i`: element i in lane i % 8.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = _mm256_setzero_ps();
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<WIDTH>(), b.as_chunks::<WIDTH>());
    for (a, b) in a.iter().zip(b) {
        acc = _mm256_fmadd_ps(load(a), load(b), acc);
    }
    horizontal_sum(_mm256_fmadd_ps(load(&padded(a_tail, 0.0)), load(&padded(b_tail, 0.0)), acc))
}

/// `sum a_i b_i` with `a` widened: element i in lane i % 8.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn dot_f16(a: &[f16], b: &[f32]) -> f32 {
    let mut acc = _mm256_setzero_ps();
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<WIDTH>(), b.as_chunks::<WIDTH>());
    for (a, b) in a.iter().zip(b) {
        acc = _mm256_fmadd_ps(load_f16(a), load(b), acc);
    }
    horizontal_sum(_mm256_fmadd_ps(load_f16(&padded(a_tail, f16::ZERO)), load(&padded(b_tail, 0.0)), acc))
}

/// `y += s x` with `x` widened.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn axpy_f16(y: &mut [f32], s: f32, x: &[f16]) {
    let factor = _mm256_set1_ps(s);
    let ((y, y_tail), (x, x_tail)) = (y.as_chunks_mut::<WIDTH>(), x.as_chunks::<WIDTH>());
    for (y, x) in y.iter_mut().zip(x) {
        store(y, _mm256_fmadd_ps(factor, load_f16(x), load(y)));
    }
    for (y, x) in y_tail.iter_mut().zip(x_tail) {
        *y = s.mul_add(widen(x.to_bits()), *y);
    }
}

/// Widens a row; exact.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f16_to_f32(x: &[f16], y: &mut [f32]) {
    let ((x, x_tail), (y, y_tail)) = (x.as_chunks::<WIDTH>(), y.as_chunks_mut::<WIDTH>());
    for (y, x) in y.iter_mut().zip(x) {
        store(y, load_f16(x));
    }
    for (y, x) in y_tail.iter_mut().zip(x_tail) {
        *y = widen(x.to_bits());
    }
}

/// Rounds a row to halves, ties to even.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_to_f16(x: &[f32], y: &mut [f16]) {
    let ((x, x_tail), (y, y_tail)) = (x.as_chunks::<WIDTH>(), y.as_chunks_mut::<WIDTH>());
    for (y, x) in y.iter_mut().zip(x) {
        let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(load(x));
        // SAFETY: `y` is 16 writable bytes, and the store needs no alignment.
        unsafe { _mm_storeu_si128(y.as_mut_ptr().cast(), halves) };
    }
    for (y, x) in y_tail.iter_mut().zip(x_tail) {
        let half = _mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(*x));
        *y = f16::from_bits(_mm_cvtsi128_si32(half) as u16);
    }
}

/// Decodes one row of weights; exact.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn decode_row(format: Format, bytes: &[u8], out: &mut [f32]) {
    match format {
        Format::F16 => {
            let ((x, x_tail), (y, y_tail)) = (bytes.as_chunks::<{ 2 * WIDTH }>(), out.as_chunks_mut::<WIDTH>());
            for (y, x) in y.iter_mut().zip(x) {
                store(y, _mm256_cvtph_ps(load_16(x)));
            }
            for (y, x) in y_tail.iter_mut().zip(x_tail.as_chunks().0) {
                *y = widen(u16::from_le_bytes(*x));
            }
        }
        Format::Q8_0 => {
            for (y, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytemuck::cast_slice::<_, BlockQ8_0>(bytes)) {
                let d = _mm256_set1_ps(widen(b.d.to_bits()));
                for (y, q) in y.as_chunks_mut::<WIDTH>().0.iter_mut().zip(b.q.as_chunks::<WIDTH>().0) {
                    let q = _mm256_cvtepi8_epi32(_mm_set_epi64x(0, i64::from_le_bytes(bytemuck::cast(*q))));
                    store(y, _mm256_mul_ps(_mm256_cvtepi32_ps(q), d));
                }
            }
        }
        Format::Q4_0 => decode_blocks::<Q4_0, Q4_0_BYTES>(bytes, out),
        Format::Q4_1 => decode_blocks::<Q4_1, Q4_1_BYTES>(bytes, out),
        Format::Q5_0 => decode_blocks::<Q5_0, Q5_0_BYTES>(bytes, out),
        Format::Q5_1 => decode_blocks::<Q5_1, Q5_1_BYTES>(bytes, out),
        Format::IQ4_NL => decode_blocks::<IQ4_NL, IQ4_NL_BYTES>(bytes, out),
        Format::Q2_K => decode_blocks::<Q2_K, Q2_K_BYTES>(bytes, out),
        Format::Q3_K => decode_blocks::<Q3_K, Q3_K_BYTES>(bytes, out),
        Format::Q4_K => decode_blocks::<Q4_K, Q4_K_BYTES>(bytes, out),
        Format::Q5_K => decode_blocks::<Q5_K, Q5_K_BYTES>(bytes, out),
        Format::Q6_K => decode_blocks::<Q6_K, Q6_K_BYTES>(bytes, out),
        Format::F32 | Format::BF16 => format.decode_row(bytes, out),
    }
}

/// Weights `16 c .. 16 c + 16` of a block, in two halves; exact.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn block_weights<const FORMAT: usize, const BYTES: usize>(block: &[u8; BYTES], c: usize) -> [__m256; 2] {
    let Sixteen { levels, scale, offset } = sixteen::<FORMAT, BYTES>(block, c);
    [levels, _mm_unpackhi_epi64(levels, levels)].map(|levels| {
        let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(levels)), _mm256_set1_ps(scale));
        if has_offset::<FORMAT>() { _mm256_add_ps(scaled, _mm256_set1_ps(offset)) } else { scaled }
    })
}

#[target_feature(enable = "avx2,fma,f16c")]
fn decode_blocks<const FORMAT: usize, const BYTES: usize>(bytes: &[u8], out: &mut [f32]) {
    let out = out.as_chunks_mut::<WIDTH>().0.as_chunks_mut::<2>().0.chunks_exact_mut(n_sixteens::<FORMAT>());
    for (block, out) in bytes.as_chunks().0.iter().zip(out) {
        for (c, y) in out.iter_mut().enumerate() {
            let weights = block_weights::<FORMAT, BYTES>(block, c);
            y.iter_mut().zip(weights).for_each(|(y, w)| store(y, w));
        }
    }
}
