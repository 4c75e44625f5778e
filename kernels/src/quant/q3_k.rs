//! Q3_K: 256 levels of 3 bits around 4; 16 groups of 16 with a 6-bit scale around 32.

use bytemuck::{Pod, Zeroable};

use super::{F16Bytes, SUPER_BLOCK};

/// Value of a level in a group: `(d * (scale - 32)) * (level - 4)`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ3_K {
    /// Third bit of element e: byte `e % 32`, bit `e / 32`.
    pub hmask: [u8; SUPER_BLOCK / 8],
    /// Low bits of element e: byte `32 * (e / 128) + e % 32`, bits from `2 * (e % 128 / 32)`.
    pub qs: [u8; SUPER_BLOCK / 4],
    /// Sixteen 6-bit scales; see [`BlockQ3_K::scale`].
    pub scales: [u8; 12],
    /// Scale of the scales.
    pub d: F16Bytes,
}

impl BlockQ3_K {
    /// The signed scale of group `j`, -32..=31: low four bits in bytes 0..8, upper two in bytes 8..12.
    pub const fn scale(&self, j: usize) -> i8 {
        let low = if j < 8 { self.scales[j] & 15 } else { self.scales[j - 8] >> 4 };
        let high = self.scales[8 + j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    }
}

/// Decodes whole blocks.
#[inline(always)]
pub(super) fn decode(blocks: &[BlockQ3_K], out: &mut [[f32; SUPER_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let d = b.d.to_f32();
        for (j, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(b.scale(j));
            let e = 16 * j;
            let (at, shift, bit) = (32 * (e / 128) + e % 32, 2 * (e % 128 / 32), e / 32);
            for ((y, q), h) in y.iter_mut().zip(&b.qs[at..]).zip(&b.hmask[e % 32..]) {
                let level = q >> shift & 3 | (h >> bit & 1) << 2;
                *y = scale * f32::from(level as i8 - 4);
            }
        }
    }
}
