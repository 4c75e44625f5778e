//! Brain float: the upper half of an IEEE single.

use bytemuck::{Pod, Zeroable};

use super::Block;

/// `x` rounded to the upper 16 bits, nearest even; may overflow to infinity. NaN keeps its upper bits, quiet.
pub const fn from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16) as u16 }
}

/// The value, exactly.
pub const fn to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// A bf16 as it lies in a file: two bytes, little-endian, no alignment.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct BF16Bytes(pub [u8; 2]);

impl Block for BF16Bytes {
    const LEN: usize = 1;
    const SCALES: &'static [usize] = &[];
    const USES_IMPORTANCE: bool = false;
    /// Everything above rounds to infinity.
    const LIMIT: f32 = f32::from_bits(0x7F7F_8000);

    #[inline(always)]
    fn decode(row: &[Self], out: &mut [f32]) {
        for (y, b) in out.iter_mut().zip(row) {
            *y = to_f32(u16::from_le_bytes(b.0));
        }
    }

    #[inline(always)]
    fn encode(x: &[f32], _importance: Option<&[f32]>, out: &mut [Self]) {
        for (b, x) in out.iter_mut().zip(x) {
            b.0 = from_f32(*x).to_le_bytes();
        }
    }

    #[inline]
    fn is_finite(&self) -> bool {
        to_f32(u16::from_le_bytes(self.0)).is_finite()
    }
}
