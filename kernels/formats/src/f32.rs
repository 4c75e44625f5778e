//! IEEE single precision.

use bytemuck::{Pod, Zeroable};

use super::Block;

/// An f32 as it lies in a file: four bytes, little-endian, no alignment.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct F32Bytes(pub [u8; 4]);

impl Block for F32Bytes {
    const LEN: usize = 1;
    const SCALES: &'static [usize] = &[];
    const USES_IMPORTANCE: bool = false;

    #[inline(always)]
    fn decode(row: &[Self], out: &mut [f32]) {
        for (y, b) in out.iter_mut().zip(row) {
            *y = f32::from_le_bytes(b.0);
        }
    }

    #[inline(always)]
    fn encode(x: &[f32], _importance: Option<&[f32]>, out: &mut [Self]) {
        for (b, x) in out.iter_mut().zip(x) {
            b.0 = x.to_le_bytes();
        }
    }

    #[inline]
    fn is_finite(&self) -> bool {
        f32::from_le_bytes(self.0).is_finite()
    }
}
