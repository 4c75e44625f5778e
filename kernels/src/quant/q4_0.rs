//! Q4_0: 32 levels of 4 bits around 8 and one scale.

use bytemuck::{Pod, Zeroable};

use super::{F16Bytes, SMALL_BLOCK, inverse_or_zero, trunc8};

/// Value of a level: `(level - 8) * d`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ4_0 {
    /// Scale; negative where the largest element is positive.
    pub d: F16Bytes,
    /// Byte i: element i in the low nibble, element i + 16 in the high one.
    pub qs: [u8; SMALL_BLOCK / 2],
}

/// Decodes whole blocks.
#[inline(always)]
pub(super) fn decode(blocks: &[BlockQ4_0], out: &mut [[f32; SMALL_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let d = b.d.to_f32();
        let (low, high) = y.split_at_mut(SMALL_BLOCK / 2);
        for ((low, high), q) in low.iter_mut().zip(high).zip(b.qs) {
            *low = f32::from((q & 15) as i8 - 8) * d;
            *high = f32::from((q >> 4) as i8 - 8) * d;
        }
    }
}

/// Encodes whole blocks: the element largest in size gets level 0, so `d` is that element / -8.
///
/// Source: ggml, `quantize_row_q4_0_ref`.
pub(super) fn encode(x: &[[f32; SMALL_BLOCK]], out: &mut [BlockQ4_0]) {
    for (b, x) in out.iter_mut().zip(x) {
        let extreme = x.iter().fold(0.0, |m: f32, x| if x.abs() > m.abs() { *x } else { m });
        let d = extreme / -8.0;
        let id = inverse_or_zero(d);
        b.d = F16Bytes::from_f32(d);
        let level = |x: f32| trunc8(x * id + 8.5).min(15) as u8;
        let (low, high) = x.split_at(SMALL_BLOCK / 2);
        for (q, (low, high)) in b.qs.iter_mut().zip(low.iter().zip(high)) {
            *q = level(*low) | level(*high) << 4;
        }
    }
}
