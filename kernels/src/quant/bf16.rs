//! Brain float: the upper half of an IEEE single.

/// `x` rounded to the upper 16 bits, nearest even; may overflow to infinity. NaN keeps its upper bits, quiet.
pub const fn from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16) as u16 }
}

/// The value, exactly.
pub const fn to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// Widens a row of little-endian values.
#[inline(always)]
pub(super) fn decode(row: &[[u8; 2]], out: &mut [f32]) {
    for (y, b) in out.iter_mut().zip(row) {
        *y = to_f32(u16::from_le_bytes(*b));
    }
}

/// Rounds a row to little-endian values.
#[inline(always)]
pub(super) fn encode(x: &[f32], out: &mut [[u8; 2]]) {
    for (b, x) in out.iter_mut().zip(x) {
        *b = from_f32(*x).to_le_bytes();
    }
}
