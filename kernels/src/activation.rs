//! Activations quantized on the fly, for the integer dot products with quantized weights. Never stored in a file.

use bytemuck::{Pod, Zeroable};

use crate::quant::{SMALL_BLOCK, SUPER_BLOCK, round};

/// Activations in half a block of 32.
const HALF: usize = SMALL_BLOCK / 2;

/// 32 activations beside weights in 32-blocks, or in 256-blocks where many rows are multiplied: value `q[e] * d`.
///
/// Unlike a block of weights the scale is an f32: nothing is gained by a shorter one, and no rounding is added.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ8 {
    /// Scale, `amax / 127`.
    pub d: f32,
    /// Sum of `q` with the sign changed, for weights whose levels have an offset.
    pub neg_sum: i32,
    /// The same of each half, for weights with a scale or a minimum for 16.
    pub neg_sums: [i16; 2],
    /// Levels, -127..=127.
    pub q: [i8; SMALL_BLOCK],
}

/// 256 activations beside weights in 256-blocks where few rows are multiplied: value `q[e] * d`. Same layout as ggml's `block_q8_K`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ8_K {
    /// Scale.
    pub d: f32,
    /// Levels, -127..=127.
    pub q: [i8; SUPER_BLOCK],
    /// Sums of `q` over groups of 16, for weights with minima.
    pub sums: [i16; SUPER_BLOCK / 16],
}

/// Quantizes whole blocks: `d = amax / 127`, levels are `x * (127 / amax)` to the nearest integer, ties to even.
///
/// A block with a NaN or an infinity has a scale that is not finite, so that it shows in every product.
#[inline(always)]
pub(crate) fn quantize_q8(x: &[[f32; SMALL_BLOCK]], out: &mut [BlockQ8]) {
    for (b, x) in out.iter_mut().zip(x) {
        let amax = largest_size(x);
        let inverse = 127.0 / amax;
        // Blocks of zeros, and of values so small that the division overflows.
        let inverse = if inverse < f32::INFINITY { inverse } else { 0.0 };
        b.d = amax / 127.0;
        b.neg_sum = 0;
        let halves = b.q.as_chunks_mut::<HALF>().0.iter_mut().zip(x.as_chunks::<HALF>().0);
        // Loops, since what closures of arrays do is compiled without the caller's instruction set.
        for (neg_sum, (q, x)) in b.neg_sums.iter_mut().zip(halves) {
            let mut sum = 0;
            for (q, x) in q.iter_mut().zip(x) {
                let level = round(x * inverse);
                sum -= level;
                *q = level as i8;
            }
            *neg_sum = sum as i16;
            b.neg_sum += sum;
        }
    }
}

/// Quantizes whole blocks as ggml's `quantize_row_q8_K_ref` does: the element largest in size gets level -127.
///
/// A block of zeros has `d = 0` and sums of 0. A block with a NaN has NaN for `d`, so that it shows in every product.
#[inline(always)]
pub(crate) fn quantize_q8_k(x: &[[f32; SUPER_BLOCK]], out: &mut [BlockQ8_K]) {
    for (b, x) in out.iter_mut().zip(x) {
        let extreme = extreme(x);
        if extreme == 0.0 {
            *b = BlockQ8_K::zeroed();
            continue;
        }
        let inverse = -127.0 / extreme;
        b.d = 1.0 / inverse;
        for (q, x) in b.q.iter_mut().zip(x) {
            *q = round(x * inverse).min(127) as i8;
        }
        for (sum, q) in b.sums.iter_mut().zip(b.q.as_chunks::<16>().0) {
            *sum = q.iter().map(|q| i16::from(*q)).sum();
        }
    }
}

/// The largest `abs(x)`; NaN if there is one, since its bits are above those of infinity.
#[inline(always)]
fn largest_size(x: &[f32]) -> f32 {
    f32::from_bits(x.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7FFF_FFFF)))
}

/// The first of the elements that are largest in size; NaN if there is one.
#[inline(always)]
fn extreme(x: &[f32]) -> f32 {
    let amax = largest_size(x);
    // As integers, bits of positive numbers are in order; unsigned, those of negative ones are above, largest size last.
    let highest = x.iter().fold(i32::MIN, |m, x| m.max(x.to_bits().cast_signed()));
    let lowest = x.iter().fold(0, |m, x| m.max(x.to_bits()));
    match (highest.cast_unsigned() == amax.to_bits(), lowest == (-amax).to_bits()) {
        _ if amax.is_nan() => f32::NAN,
        (true, false) => amax,
        (false, true) => -amax,
        _ => x.iter().find(|x| x.abs() == amax).copied().unwrap_or(f32::NAN),
    }
}
