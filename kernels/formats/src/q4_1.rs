//! Q4_1: 32 levels of 4 bits with a scale and a minimum.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::block::in_whole_blocks;
use super::lanes::{Lanes, WIDTH, by_lane, group};
use super::q4_0::{mean_square, pack, unpack};
use super::search::{WEIGHTED, affine, weights};
use super::{Block, F16Bytes, Group, Integers, SMALL_BLOCK, inverse_or_zero, trunc8};

/// Value of a level: `level * d + m`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ4_1 {
    /// Scale.
    pub d: F16Bytes,
    /// Minimum.
    pub m: F16Bytes,
    /// Byte i: element i in the low nibble, element i + 16 in the high one.
    pub qs: [u8; SMALL_BLOCK / 2],
}

impl Block for BlockQ4_1 {
    const SCALES: &'static [usize] = &[offset_of!(Self, d), offset_of!(Self, m)];

    in_whole_blocks!(SMALL_BLOCK, Small);
}

#[inline(always)]
fn integers(b: &BlockQ4_1) -> Group {
    Group { levels: unpack(&b.qs).map(|level| level as i8), scale: b.d.to_f32(), offset: b.m.to_f32() }
}

/// Decodes whole blocks.
#[inline(always)]
fn decode(blocks: &[BlockQ4_1], out: &mut [[f32; SMALL_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let (d, m) = (b.d.to_f32(), b.m.to_f32());
        let (low, high) = y.split_at_mut(SMALL_BLOCK / 2);
        for ((low, high), q) in low.iter_mut().zip(high).zip(b.qs) {
            *low = f32::from(q & 15) * d + m;
            *high = f32::from(q >> 4) * d + m;
        }
    }
}

/// Encodes a row.
///
/// Without weights `m` is the smallest element, the largest gets level 15, and levels come from the unrounded `d`.
/// With weights the search is [`affine`], with the weights of Q4_0; its minimum is never above 0.
///
/// Source: ggml, `quantize_row_q4_1_ref` and `quantize_q4_1`.
#[inline(always)]
fn encode(x: &[[f32; SMALL_BLOCK]], importance: Option<&[[f32; SMALL_BLOCK]]>, out: &mut [BlockQ4_1]) {
    if let Some(importance) = importance {
        return encode_weighted(x, importance, out);
    }
    for (b, x) in out.iter_mut().zip(x) {
        let (low, high) = range(x);
        let d = (high - low) / 15.0;
        let id = inverse_or_zero(d);
        let levels = x.map(|x| trunc8((x - low) * id + 0.5).min(15) as u8);
        *b = BlockQ4_1 { d: F16Bytes::from_f32(d), m: F16Bytes::from_f32(low), qs: pack(&levels) };
    }
}

#[inline(always)]
fn encode_weighted(x: &[[f32; SMALL_BLOCK]], importance: &[[f32; SMALL_BLOCK]], out: &mut [BlockQ4_1]) {
    let mean = mean_square(x);
    for ((out, x), importance) in out.chunks_mut(WIDTH).zip(x.chunks(WIDTH)).zip(importance.chunks(WIDTH)) {
        let x = by_lane(x);
        let found = affine(&x, &weights(&x, &by_lane(importance), Lanes::splat(mean)), 15, WEIGHTED);
        for (l, b) in out.iter_mut().enumerate() {
            let levels = group(&found.levels, l);
            let (d, m) = (F16Bytes::from_f32(found.scale.0[l]), F16Bytes::from_f32(-found.min.0[l]));
            *b = BlockQ4_1 { d, m, qs: pack(&levels) };
        }
    }
}

/// The smallest and the largest element, the first of equals.
#[inline(always)]
pub(super) fn range(x: &[f32; SMALL_BLOCK]) -> (f32, f32) {
    x.iter().fold((x[0], x[0]), |(low, high), &x| (if x < low { x } else { low }, if x > high { x } else { high }))
}
