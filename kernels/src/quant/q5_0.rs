//! Q5_0: 32 levels of 5 bits around 16 and one scale.

use bytemuck::{Pod, Zeroable};

use super::{F16Bytes, SMALL_BLOCK};

/// Value of a level: `(level - 16) * d`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ5_0 {
    /// Scale.
    pub d: F16Bytes,
    /// Little-endian u32: bit e is the fifth bit of element e.
    pub qh: [u8; 4],
    /// Byte i: element i in the low nibble, element i + 16 in the high one.
    pub qs: [u8; SMALL_BLOCK / 2],
}

/// Decodes whole blocks.
#[inline(always)]
pub(super) fn decode(blocks: &[BlockQ5_0], out: &mut [[f32; SMALL_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let d = b.d.to_f32();
        for (y, level) in y.iter_mut().zip(levels(b.qh, &b.qs)) {
            *y = f32::from(level as i8 - 16) * d;
        }
    }
}

/// The 32 levels of a Q5_0 or Q5_1 block.
#[inline(always)]
pub(super) fn levels(qh: [u8; 4], qs: &[u8; SMALL_BLOCK / 2]) -> [u8; SMALL_BLOCK] {
    let high = u32::from_le_bytes(qh);
    std::array::from_fn(|e| {
        let q = qs[e % 16];
        let nibble = if e < 16 { q & 15 } else { q >> 4 };
        nibble | ((high >> e & 1) << 4) as u8
    })
}
