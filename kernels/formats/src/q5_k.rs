//! Q5_K: 256 levels of 5 bits; 8 groups of 32 with 6-bit scale and minimum.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::block::in_whole_blocks;
use super::q4_k::encode_groups;
use super::search::Steps;
use super::{Block, F16Bytes, Format, Integers, SUPER_BLOCK, Sixteen, SuperBlock, scale_min_k4};

/// Value of a level in a group: `(d * scale) * level - dmin * min`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ5_K {
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Scale of the minima.
    pub dmin: F16Bytes,
    /// Eight 6-bit scales and minima; see [`BlockQ5_K::scale_min`].
    pub scales: [u8; 12],
    /// Fifth bit of element e: byte `e % 32`, bit `e / 32`.
    pub qh: [u8; SUPER_BLOCK / 8],
    /// Low bits of element e: byte `32 * (e / 64) + e % 32`; the low nibble where `e % 64 < 32`.
    pub qs: [u8; SUPER_BLOCK / 2],
}

impl BlockQ5_K {
    /// Scale and minimum of group `j`, six bits each.
    pub const fn scale_min(&self, j: usize) -> (u8, u8) {
        scale_min_k4(&self.scales, j)
    }
}

impl Block for BlockQ5_K {
    const SCALES: &'static [usize] = &[offset_of!(Self, d), offset_of!(Self, dmin)];
    const SUBSTITUTE: Format = Format::Q5_1;

    in_whole_blocks!(SUPER_BLOCK, Super);
}

#[inline(always)]
fn integers(b: &BlockQ5_K) -> SuperBlock {
    let sixteen = |j: usize| {
        let (scale, min) = b.scale_min(j / 2);
        let low = |e: usize| b.qs[32 * (j / 4) + 16 * (j % 2) + e] >> (4 * (j / 2 % 2)) & 15;
        let fifth = |e: usize| b.qh[16 * (j % 2) + e] >> (j / 2) & 1;
        let levels = std::array::from_fn(|e| (low(e) | fifth(e) << 4) as i8);
        Sixteen { levels, scale: scale as i8, min }
    };
    SuperBlock { d: b.d.to_f32(), dmin: b.dmin.to_f32(), sixteens: std::array::from_fn(sixteen) }
}

/// Decodes whole blocks.
#[inline(always)]
fn decode(blocks: &[BlockQ5_K], out: &mut [[f32; SUPER_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let (d, dmin) = (b.d.to_f32(), b.dmin.to_f32());
        for (j, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = b.scale_min(j);
            let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
            for ((y, q), h) in y.iter_mut().zip(&b.qs[32 * (j / 2)..]).zip(&b.qh) {
                let level = q >> (4 * (j % 2)) & 15 | (h >> j & 1) << 4;
                *y = scale * f32::from(level) - min;
            }
        }
    }
}

/// The search without importance weights.
const PLAIN: Steps = Steps { first: -0.5, step: 0.1, last: 15, is_squared: true };

/// Encodes whole blocks: as Q4_K with levels up to 31.
///
/// Source: ggml, `quantize_row_q5_K_ref` and `quantize_q5_K`.
#[inline(always)]
fn encode(x: &[[f32; SUPER_BLOCK]], importance: Option<&[[f32; SUPER_BLOCK]]>, out: &mut [BlockQ5_K]) {
    encode_groups(x, importance, 31, PLAIN, |i, head, levels| {
        let (mut qh, mut qs) = ([0; SUPER_BLOCK / 8], [0; SUPER_BLOCK / 2]);
        for (j, levels) in levels.iter().enumerate() {
            for ((q, h), level) in qs[32 * (j / 2)..].iter_mut().zip(&mut qh).zip(levels) {
                *q |= (level & 15) << (4 * (j % 2));
                *h |= level >> 4 << j;
            }
        }
        out[i] = BlockQ5_K { d: head.d, dmin: head.dmin, scales: head.scales, qh, qs };
    });
}
