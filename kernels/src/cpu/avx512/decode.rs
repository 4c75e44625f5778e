//! Rows of weights to rows of f32.

use std::arch::x86_64::*;

use super::blocks::*;
use super::{WIDTH, load_16, load_32, store, widen};
use crate::quant::{BlockQ8_0, Format};

/// Decodes one row of weights; exact.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub fn decode_row(format: Format, bytes: &[u8], out: &mut [f32]) {
    match format {
        Format::F16 => {
            let ((x, x_tail), (y, y_tail)) = (bytes.as_chunks::<{ 2 * WIDTH }>(), out.as_chunks_mut::<WIDTH>());
            for (y, x) in y.iter_mut().zip(x) {
                store(y, _mm512_cvtph_ps(load_32(x)));
            }
            for (y, x) in y_tail.iter_mut().zip(x_tail.as_chunks().0) {
                *y = widen(u16::from_le_bytes(*x));
            }
        }
        Format::Q8_0 => {
            for (y, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytemuck::cast_slice::<_, BlockQ8_0>(bytes)) {
                let d = _mm512_set1_ps(widen(b.d.to_bits()));
                for (y, q) in y.as_chunks_mut::<WIDTH>().0.iter_mut().zip(b.q.as_chunks::<WIDTH>().0) {
                    let q = _mm512_cvtepi8_epi32(load_16(bytemuck::cast_ref(q)));
                    store(y, _mm512_mul_ps(_mm512_cvtepi32_ps(q), d));
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

/// Weights `16 c .. 16 c + 16` of a block; exact.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn block_weights<const FORMAT: usize, const BYTES: usize>(block: &[u8; BYTES], c: usize) -> __m512 {
    let Sixteen { levels, scale, offset } = sixteen::<FORMAT, BYTES>(block, c);
    let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(levels)), _mm512_set1_ps(scale));
    if has_offset::<FORMAT>() { _mm512_add_ps(scaled, _mm512_set1_ps(offset)) } else { scaled }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn decode_blocks<const FORMAT: usize, const BYTES: usize>(bytes: &[u8], out: &mut [f32]) {
    let out = out.as_chunks_mut::<WIDTH>().0.chunks_exact_mut(n_sixteens::<FORMAT>());
    for (block, out) in bytes.as_chunks().0.iter().zip(out) {
        for (c, y) in out.iter_mut().enumerate() {
            store(y, block_weights::<FORMAT, BYTES>(block, c));
        }
    }
}
