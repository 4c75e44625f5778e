//! Q5_1: 32 levels of 5 bits with a scale and a minimum.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::block::in_whole_blocks;
use super::lanes::{Lanes, WIDTH, by_lane, group};
use super::q4_0::{mean_square, pack};
use super::q4_1::range;
use super::q5_0::{fifth_bits, levels};
use super::search::{WEIGHTED, affine, weights};
use super::{Block, F16Bytes, Group, Integers, SMALL_BLOCK, inverse_or_zero, trunc8};

/// Value of a level: `level * d + m`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ5_1 {
    /// Scale.
    pub d: F16Bytes,
    /// Minimum.
    pub m: F16Bytes,
    /// Little-endian u32: bit e is the fifth bit of element e.
    pub qh: [u8; 4],
    /// Byte i: element i in the low nibble, element i + 16 in the high one.
    pub qs: [u8; SMALL_BLOCK / 2],
}

impl BlockQ5_1 {
    /// The unsigned levels.
    #[inline(always)]
    pub fn levels(&self) -> [u8; SMALL_BLOCK] {
        levels(self.qh, &self.qs)
    }
}

impl Block for BlockQ5_1 {
    const SCALES: &'static [usize] = &[offset_of!(Self, d), offset_of!(Self, m)];

    in_whole_blocks!(SMALL_BLOCK, Small);
}

#[inline(always)]
fn integers(b: &BlockQ5_1) -> Group {
    Group { levels: b.levels().map(|level| level as i8), scale: b.d.to_f32(), offset: b.m.to_f32() }
}

/// Decodes whole blocks.
#[inline(always)]
fn decode(blocks: &[BlockQ5_1], out: &mut [[f32; SMALL_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let (d, m) = (b.d.to_f32(), b.m.to_f32());
        for (y, level) in y.iter_mut().zip(b.levels()) {
            *y = f32::from(level) * d + m;
        }
    }
}

/// Encodes a row: as Q4_1 with 31 in place of 15.
///
/// Source: ggml, `quantize_row_q5_1_ref` and `quantize_q5_1`.
#[inline(always)]
fn encode(x: &[[f32; SMALL_BLOCK]], importance: Option<&[[f32; SMALL_BLOCK]]>, out: &mut [BlockQ5_1]) {
    if let Some(importance) = importance {
        return encode_weighted(x, importance, out);
    }
    for (b, x) in out.iter_mut().zip(x) {
        let (low, high) = range(x);
        let d = (high - low) / 31.0;
        let id = inverse_or_zero(d);
        let levels = x.map(|x| trunc8((x - low) * id + 0.5) as u8);
        *b = BlockQ5_1 {
            d: F16Bytes::from_f32(d),
            m: F16Bytes::from_f32(low),
            qh: fifth_bits(&levels),
            qs: pack(&levels),
        };
    }
}

#[inline(always)]
fn encode_weighted(x: &[[f32; SMALL_BLOCK]], importance: &[[f32; SMALL_BLOCK]], out: &mut [BlockQ5_1]) {
    let mean = mean_square(x);
    for ((out, x), importance) in out.chunks_mut(WIDTH).zip(x.chunks(WIDTH)).zip(importance.chunks(WIDTH)) {
        let x = by_lane(x);
        let found = affine(&x, &weights(&x, &by_lane(importance), Lanes::splat(mean)), 31, WEIGHTED);
        for (l, b) in out.iter_mut().enumerate() {
            let levels = group(&found.levels, l);
            let (d, m) = (F16Bytes::from_f32(found.scale.0[l]), F16Bytes::from_f32(-found.min.0[l]));
            *b = BlockQ5_1 { d, m, qh: fifth_bits(&levels), qs: pack(&levels) };
        }
    }
}
