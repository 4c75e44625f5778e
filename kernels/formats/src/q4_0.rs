//! Q4_0: 32 levels of 4 bits around 8 and one scale.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::block::in_whole_blocks;
use super::lanes::{Lanes, WIDTH, by_lane, group};
use super::search::{extreme, symmetric, weights};
use super::{Block, F16Bytes, Group, Integers, SMALL_BLOCK, f16, inverse_or_zero, trunc8};

/// Value of a level: `(level - 8) * d`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ4_0 {
    /// Scale; negative where the largest element is positive.
    pub d: F16Bytes,
    /// Byte i: element i in the low nibble, element i + 16 in the high one.
    pub qs: [u8; SMALL_BLOCK / 2],
}

impl Block for BlockQ4_0 {
    const SCALES: &'static [usize] = &[offset_of!(Self, d)];
    const LIMIT: f32 = 8.0 * f16::MAX;

    in_whole_blocks!(SMALL_BLOCK, Small);
}

#[inline(always)]
fn integers(b: &BlockQ4_0) -> Group {
    Group { levels: unpack(&b.qs).map(|level| level as i8 - 8), scale: b.d.to_f32(), offset: 0.0 }
}

/// The levels that [`pack`] has packed.
#[inline(always)]
pub(super) fn unpack(qs: &[u8; SMALL_BLOCK / 2]) -> [u8; SMALL_BLOCK] {
    std::array::from_fn(|e| if e < SMALL_BLOCK / 2 { qs[e] & 15 } else { qs[e - SMALL_BLOCK / 2] >> 4 })
}

/// Decodes whole blocks.
#[inline(always)]
fn decode(blocks: &[BlockQ4_0], out: &mut [[f32; SMALL_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let d = b.d.to_f32();
        let (low, high) = y.split_at_mut(SMALL_BLOCK / 2);
        for ((low, high), q) in low.iter_mut().zip(high).zip(b.qs) {
            *low = f32::from((q & 15) as i8 - 8) * d;
            *high = f32::from((q >> 4) as i8 - 8) * d;
        }
    }
}

/// Encodes a row.
///
/// Without weights the element largest in size gets level 0, so `d` is that element / -8, and levels come from the
/// unrounded `d`. With weights the errors of element e of column c are weighted by
/// `importance[c] sqrt(mean(x x) + x_e x_e)`, the mean over the row, in the search [`symmetric`].
///
/// Source: ggml, `quantize_row_q4_0_ref` and `quantize_q4_0`.
#[inline(always)]
fn encode(x: &[[f32; SMALL_BLOCK]], importance: Option<&[[f32; SMALL_BLOCK]]>, out: &mut [BlockQ4_0]) {
    if let Some(importance) = importance {
        return encode_weighted(x, importance, out);
    }
    for (b, x) in out.iter_mut().zip(x) {
        let d = extreme(x) / -8.0;
        let id = inverse_or_zero(d);
        b.d = F16Bytes::from_f32(d);
        b.qs = pack(&x.map(|x| trunc8(x * id + 8.5).min(15) as u8));
    }
}

#[inline(always)]
fn encode_weighted(x: &[[f32; SMALL_BLOCK]], importance: &[[f32; SMALL_BLOCK]], out: &mut [BlockQ4_0]) {
    let mean = mean_square(x);
    for ((out, x), importance) in out.chunks_mut(WIDTH).zip(x.chunks(WIDTH)).zip(importance.chunks(WIDTH)) {
        let x = by_lane(x);
        let found = symmetric(&x, &weights(&x, &by_lane(importance), Lanes::splat(mean)), 8);
        for (l, b) in out.iter_mut().enumerate() {
            b.d = F16Bytes::from_f32(found.scale.0[l]);
            b.qs = pack(&group(&found.levels, l));
        }
    }
}

/// Two levels of 4 bits per byte: element i in the low nibble, element i + 16 in the high one; higher bits are lost.
#[inline(always)]
pub(super) fn pack(levels: &[u8; SMALL_BLOCK]) -> [u8; SMALL_BLOCK / 2] {
    std::array::from_fn(|i| levels[i] & 15 | levels[i + SMALL_BLOCK / 2] << 4)
}

/// The mean of `x x` over a row, summed from its first element to its last.
#[inline(always)]
pub(super) fn mean_square(x: &[[f32; SMALL_BLOCK]]) -> f32 {
    let x = x.as_flattened();
    x.iter().fold(0.0, |sum, x| sum + x * x) / x.len() as f32
}
