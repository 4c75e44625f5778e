//! IEEE half precision: five bits of exponent, ten of fraction.

use super::F16Bytes;

/// The nearest half of `x`, ties to even; subnormals are kept, infinity from 65520 on. NaN becomes sign + 0x7E00.
pub fn from_f32(x: f32) -> u16 {
    if x.is_nan() { (x.to_bits() >> 16) as u16 & 0x8000 | 0x7E00 } else { half::f16::from_f32(x).to_bits() }
}

/// The value of a half, exactly.
pub fn to_f32(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

/// Whether these are the bits of neither an infinity nor a NaN.
pub const fn is_finite(bits: u16) -> bool {
    const EXPONENT: u16 = 0x7C00;
    bits & EXPONENT != EXPONENT
}

/// Widens a row.
#[inline(always)]
pub(super) fn decode(row: &[F16Bytes], out: &mut [f32]) {
    for (y, h) in out.iter_mut().zip(row) {
        *y = h.to_f32();
    }
}

/// Rounds a row.
#[inline(always)]
pub(super) fn encode(x: &[f32], out: &mut [F16Bytes]) {
    for (h, x) in out.iter_mut().zip(x) {
        *h = F16Bytes::from_f32(*x);
    }
}
