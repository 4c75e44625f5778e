//! IEEE half precision: five bits of exponent, ten of fraction.

use bytemuck::{Pod, Zeroable};

use super::Block;

/// From here on values round to infinity.
const OVERFLOW: f32 = 65520.0;

/// The largest half, which bounds the scales of blocks.
pub(super) const MAX: f32 = 65504.0;

/// The nearest half of `x`, ties to even; subnormals are kept, infinity from 65520 on. NaN becomes sign + 0x7E00.
#[inline]
pub(crate) fn from_f32(x: f32) -> u16 {
    if x.is_nan() { (x.to_bits() >> 16) as u16 & 0x8000 | 0x7E00 } else { half::f16::from_f32(x).to_bits() }
}

/// The value of a half, exactly.
#[inline]
pub(crate) fn to_f32(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

/// Whether these are the bits of neither an infinity nor a NaN.
pub(crate) const fn is_finite(bits: u16) -> bool {
    const EXPONENT: u16 = 0x7C00;
    bits & EXPONENT != EXPONENT
}

/// An f16 as it lies in a file: two bytes, little-endian, no alignment.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct F16Bytes(pub [u8; 2]);

impl F16Bytes {
    /// The nearest half of `x`, ties to even; subnormals are kept, infinity from 65520 on.
    #[inline]
    pub fn from_f32(x: f32) -> Self {
        Self(from_f32(x).to_le_bytes())
    }

    /// The bits of the half.
    pub const fn to_bits(self) -> u16 {
        u16::from_le_bytes(self.0)
    }

    /// The value, exactly.
    #[inline]
    pub fn to_f32(self) -> f32 {
        to_f32(self.to_bits())
    }
}

impl Block for F16Bytes {
    const LEN: usize = 1;
    const SCALES: &'static [usize] = &[0];
    const USES_IMPORTANCE: bool = false;
    const LIMIT: f32 = OVERFLOW;

    #[inline(always)]
    fn decode(row: &[Self], out: &mut [f32]) {
        for (y, h) in out.iter_mut().zip(row) {
            *y = h.to_f32();
        }
    }

    #[inline(always)]
    fn encode(x: &[f32], _importance: Option<&[f32]>, out: &mut [Self]) {
        for (h, x) in out.iter_mut().zip(x) {
            *h = Self::from_f32(*x);
        }
    }
}
