//! Q2_K: 256 levels of 2 bits; 16 groups of 16 with 4-bit scale and minimum.

use bytemuck::{Pod, Zeroable};

use super::{F16Bytes, SUPER_BLOCK};

/// Value of a level in a group: `(d * scale) * level - dmin * min`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ2_K {
    /// Byte j: scale of group j in the low nibble, its minimum in the high one.
    pub scales: [u8; 16],
    /// Element e is in byte `32 * (e / 128) + e % 32`, bits from `2 * (e % 128 / 32)`.
    pub qs: [u8; SUPER_BLOCK / 4],
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Scale of the minima.
    pub dmin: F16Bytes,
}

/// Decodes whole blocks.
#[inline(always)]
pub(super) fn decode(blocks: &[BlockQ2_K], out: &mut [[f32; SUPER_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let (d, dmin) = (b.d.to_f32(), b.dmin.to_f32());
        for (j, (y, s)) in y.as_chunks_mut::<16>().0.iter_mut().zip(b.scales).enumerate() {
            let (scale, min) = (d * f32::from(s & 15), dmin * f32::from(s >> 4));
            let e = 16 * j;
            let (at, shift) = (32 * (e / 128) + e % 32, 2 * (e % 128 / 32));
            for (y, q) in y.iter_mut().zip(&b.qs[at..]) {
                *y = scale * f32::from(q >> shift & 3) - min;
            }
        }
    }
}
