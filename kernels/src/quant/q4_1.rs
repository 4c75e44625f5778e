//! Q4_1: 32 levels of 4 bits with a scale and a minimum.

use bytemuck::{Pod, Zeroable};

use super::{F16Bytes, SMALL_BLOCK};

/// Value of a level: `level * d + m`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ4_1 {
    /// Scale.
    pub d: F16Bytes,
    /// Minimum.
    pub m: F16Bytes,
    /// Byte i: element i in the low nibble, element i + 16 in the high one.
    pub qs: [u8; SMALL_BLOCK / 2],
}

/// Decodes whole blocks.
#[inline(always)]
pub(super) fn decode(blocks: &[BlockQ4_1], out: &mut [[f32; SMALL_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let (d, m) = (b.d.to_f32(), b.m.to_f32());
        let (low, high) = y.split_at_mut(SMALL_BLOCK / 2);
        for ((low, high), q) in low.iter_mut().zip(high).zip(b.qs) {
            *low = f32::from(q & 15) * d + m;
            *high = f32::from(q >> 4) * d + m;
        }
    }
}
