//! Rows of weights to rows of f32.

#![allow(unsafe_code, reason = "methods of traits that need CPU features")]

use std::arch::x86_64::*;

use super::blocks::*;
use super::{WIDTH, load_32, store, widen};

/// Decodes one row of F16; exact.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    let ((x, x_tail), (y, y_tail)) = (bytes.as_chunks::<{ 2 * WIDTH }>(), out.as_chunks_mut::<WIDTH>());
    for (y, x) in y.iter_mut().zip(x) {
        store(y, _mm512_cvtph_ps(load_32(x)));
    }
    for (y, x) in y_tail.iter_mut().zip(x_tail.as_chunks().0) {
        *y = widen(u16::from_le_bytes(*x));
    }
}

/// Decodes one row of blocks; exact.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn decode_blocks<B: Sixteens>(bytes: &[u8], out: &mut [f32]) {
    let out = out.as_chunks_mut::<WIDTH>().0.chunks_exact_mut(B::LEN / SIXTEEN);
    for (block, out) in bytemuck::cast_slice::<_, B>(bytes).iter().zip(out) {
        for (c, y) in out.iter_mut().enumerate() {
            // SAFETY: this function has the features.
            let Sixteen { levels, scale, offset } = unsafe { block.sixteen(c) };
            let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(levels)), _mm512_set1_ps(scale));
            store(y, if B::HAS_OFFSET { _mm512_add_ps(scaled, _mm512_set1_ps(offset)) } else { scaled });
        }
    }
}
