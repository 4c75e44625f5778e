//! IQ4_NL: 32 levels of 4 bits that index a table of uneven steps, and one scale.

use bytemuck::{Pod, Zeroable};

use super::{F16Bytes, SMALL_BLOCK};

/// What the levels stand for: steps are finer where weights are dense.
pub const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Value of a level: `d * VALUES[level]`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockIQ4_NL {
    /// Scale.
    pub d: F16Bytes,
    /// Byte i: element i in the low nibble, element i + 16 in the high one.
    pub qs: [u8; SMALL_BLOCK / 2],
}

/// Decodes whole blocks.
#[inline(always)]
pub(super) fn decode(blocks: &[BlockIQ4_NL], out: &mut [[f32; SMALL_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let d = b.d.to_f32();
        let (low, high) = y.split_at_mut(SMALL_BLOCK / 2);
        for ((low, high), q) in low.iter_mut().zip(high).zip(b.qs) {
            *low = d * f32::from(VALUES[usize::from(q & 15)]);
            *high = d * f32::from(VALUES[usize::from(q >> 4)]);
        }
    }
}
