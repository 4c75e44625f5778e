//! Q5_0: 32 levels of 5 bits around 16 and one scale.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::block::in_whole_blocks;
use super::lanes::{Lanes, WIDTH, by_lane, group};
use super::q4_0::{mean_square, pack};
use super::search::{extreme, symmetric, weights};
use super::{Block, F16Bytes, Group, Integers, SMALL_BLOCK, inverse_or_zero, trunc8};

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

impl BlockQ5_0 {
    /// The unsigned levels.
    #[inline(always)]
    pub fn levels(&self) -> [u8; SMALL_BLOCK] {
        levels(self.qh, &self.qs)
    }
}

impl Block for BlockQ5_0 {
    const SCALES: &'static [usize] = &[offset_of!(Self, d)];

    in_whole_blocks!(SMALL_BLOCK, Small);
}

#[inline(always)]
fn integers(b: &BlockQ5_0) -> Group {
    Group { levels: b.levels().map(|level| level as i8 - 16), scale: b.d.to_f32(), offset: 0.0 }
}

/// Decodes whole blocks.
#[inline(always)]
fn decode(blocks: &[BlockQ5_0], out: &mut [[f32; SMALL_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let d = b.d.to_f32();
        for (y, level) in y.iter_mut().zip(b.levels()) {
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

/// Encodes a row: as Q4_0 with 16 in place of 8.
///
/// Source: ggml, `quantize_row_q5_0_ref` and `quantize_q5_0`.
#[inline(always)]
fn encode(x: &[[f32; SMALL_BLOCK]], importance: Option<&[[f32; SMALL_BLOCK]]>, out: &mut [BlockQ5_0]) {
    if let Some(importance) = importance {
        return encode_weighted(x, importance, out);
    }
    for (b, x) in out.iter_mut().zip(x) {
        let d = extreme(x) / -16.0;
        let id = inverse_or_zero(d);
        let levels = x.map(|x| trunc8(x * id + 16.5).min(31) as u8);
        *b = BlockQ5_0 { d: F16Bytes::from_f32(d), qh: fifth_bits(&levels), qs: pack(&levels) };
    }
}

#[inline(always)]
fn encode_weighted(x: &[[f32; SMALL_BLOCK]], importance: &[[f32; SMALL_BLOCK]], out: &mut [BlockQ5_0]) {
    let mean = mean_square(x);
    for ((out, x), importance) in out.chunks_mut(WIDTH).zip(x.chunks(WIDTH)).zip(importance.chunks(WIDTH)) {
        let x = by_lane(x);
        let found = symmetric(&x, &weights(&x, &by_lane(importance), Lanes::splat(mean)), 16);
        for (l, b) in out.iter_mut().enumerate() {
            let levels = group(&found.levels, l);
            *b = BlockQ5_0 { d: F16Bytes::from_f32(found.scale.0[l]), qh: fifth_bits(&levels), qs: pack(&levels) };
        }
    }
}

/// Bit 4 of every level.
#[inline(always)]
pub(super) fn fifth_bits(levels: &[u8; SMALL_BLOCK]) -> [u8; 4] {
    levels.iter().rev().fold(0, |bits: u32, l| bits << 1 | u32::from(l >> 4 & 1)).to_le_bytes()
}
