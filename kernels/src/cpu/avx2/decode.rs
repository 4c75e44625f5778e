//! Rows of weights to rows of f32.

#![allow(unsafe_code, reason = "methods of traits that need CPU features")]

use std::arch::x86_64::*;

use super::blocks::*;
use super::{WIDTH, load_16, store, widen};

/// Decodes one row of F16; exact.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    let ((x, x_tail), (y, y_tail)) = (bytes.as_chunks::<{ 2 * WIDTH }>(), out.as_chunks_mut::<WIDTH>());
    for (y, x) in y.iter_mut().zip(x) {
        store(y, _mm256_cvtph_ps(load_16(x)));
    }
    for (y, x) in y_tail.iter_mut().zip(x_tail.as_chunks().0) {
        *y = widen(u16::from_le_bytes(*x));
    }
}

/// Decodes one row of blocks; exact.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn decode_blocks<B: Sixteens>(bytes: &[u8], out: &mut [f32]) {
    let out = out.as_chunks_mut::<WIDTH>().0.as_chunks_mut::<2>().0.chunks_exact_mut(B::LEN / SIXTEEN);
    for (block, out) in bytemuck::cast_slice::<_, B>(bytes).iter().zip(out) {
        for (c, y) in out.iter_mut().enumerate() {
            // SAFETY: this function has the features.
            let Sixteen { levels, scale, offset } = unsafe { block.sixteen(c) };
            for (y, levels) in y.iter_mut().zip([levels, _mm_unpackhi_epi64(levels, levels)]) {
                let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(levels)), _mm256_set1_ps(scale));
                store(y, if B::HAS_OFFSET { _mm256_add_ps(scaled, _mm256_set1_ps(offset)) } else { scaled });
            }
        }
    }
}
