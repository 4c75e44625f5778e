//! Q5_1: 32 levels of 5 bits with a scale and a minimum.

use bytemuck::{Pod, Zeroable};

use super::{F16Bytes, SMALL_BLOCK, q5_0};

/// Value of a level: `level * d + m`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ5_1 {
    /// Scale.
    pub d: F16Bytes,
    /// Minimum.
    pub m: F16Bytes,
    /// Little-endian u32: bit e is the fifth bit of element e.
    pub qh: [u8; 4],
    /// Byte i: element i in the low nibble, element i + 16 in the high one.
    pub qs: [u8; SMALL_BLOCK / 2],
}

/// Decodes whole blocks.
#[inline(always)]
pub(super) fn decode(blocks: &[BlockQ5_1], out: &mut [[f32; SMALL_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let (d, m) = (b.d.to_f32(), b.m.to_f32());
        for (y, level) in y.iter_mut().zip(q5_0::levels(b.qh, &b.qs)) {
            *y = f32::from(level) * d + m;
        }
    }
}
