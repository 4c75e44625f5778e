//! Q6_K: 256 levels of 6 bits around 32; 16 groups of 16 with an 8-bit scale.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::block::in_whole_blocks;
use super::lanes::{by_lane, group};
use super::search::{TINY, extreme, symmetric, symmetric_levels};
use super::{Block, F16Bytes, Format, Integers, SUPER_BLOCK, Sixteen, SuperBlock, round};

/// Value of a level in a group: `(d * scale) * (level - 32)`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ6_K {
    /// Low four bits. With h = e / 128, k = e % 128 / 32: byte `64 * h + 32 * (k % 2) + e % 32`, high nibble for k >= 2.
    pub ql: [u8; SUPER_BLOCK / 2],
    /// Upper two bits: byte `32 * h + e % 32`, bits from `2 * k`.
    pub qh: [u8; SUPER_BLOCK / 4],
    /// Scales of the groups.
    pub scales: [i8; SUPER_BLOCK / 16],
    /// Scale of the scales.
    pub d: F16Bytes,
}

impl Block for BlockQ6_K {
    const SCALES: &'static [usize] = &[offset_of!(Self, d)];
    const SUBSTITUTE: Format = Format::Q8_0;

    in_whole_blocks!(SUPER_BLOCK, Super);
}

#[inline(always)]
fn integers(b: &BlockQ6_K) -> SuperBlock {
    let sixteen = |j: usize| {
        let (h, k, l) = (j / 8, j % 8 / 2, 16 * (j % 2));
        let low = |e: usize| b.ql[64 * h + 32 * (k % 2) + l + e] >> (4 * (k / 2)) & 15;
        let high = |e: usize| b.qh[32 * h + l + e] >> (2 * k) & 3;
        let levels = std::array::from_fn(|e| (low(e) | high(e) << 4) as i8 - 32);
        Sixteen { levels, scale: b.scales[j], min: 0 }
    };
    SuperBlock { d: b.d.to_f32(), dmin: 0.0, sixteens: std::array::from_fn(sixteen) }
}

/// Decodes whole blocks.
#[inline(always)]
fn decode(blocks: &[BlockQ6_K], out: &mut [[f32; SUPER_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let d = b.d.to_f32();
        for (j, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(b.scales[j]);
            let e = 16 * j;
            let (h, k, l) = (e / 128, e % 128 / 32, e % 32);
            let low = &b.ql[64 * h + 32 * (k % 2) + l..];
            for ((y, low), high) in y.iter_mut().zip(low).zip(&b.qh[32 * h + l..]) {
                let level = low >> (4 * (k / 2)) & 15 | (high >> (2 * k) & 3) << 4;
                *y = scale * f32::from(level as i8 - 32);
            }
        }
    }
}

/// Encodes whole blocks.
///
/// Each group gets a scale by [`symmetric`], with weights `x x`, or the importance alone. The scale largest in size
/// becomes -128. Levels are rounded anew with what was stored; groups whose scale became 0 keep those of the search. A
/// block whose scales are all below 1e-15 is zero bytes.
///
/// Source: ggml, `quantize_row_q6_K_ref` and `quantize_q6_K`.
#[inline(always)]
fn encode(x: &[[f32; SUPER_BLOCK]], importance: Option<&[[f32; SUPER_BLOCK]]>, out: &mut [BlockQ6_K]) {
    for (i, (b, x)) in out.iter_mut().zip(x).enumerate() {
        *b = BlockQ6_K::zeroed();
        let groups = x.as_chunks::<16>().0;
        let lanes = by_lane(groups);
        let w = match importance {
            None => lanes.map(|x| x * x),
            Some(importance) => by_lane(importance[i].as_chunks::<16>().0),
        };
        let found = symmetric(&lanes, &w, 32);
        let extreme = extreme(&found.scale.0);
        if extreme.abs() < TINY {
            continue;
        }
        let inverse = -128.0 / extreme;
        b.d = F16Bytes::from_f32(1.0 / inverse);
        b.scales = found.scale.0.map(|scale| round(inverse * scale).min(127) as i8);
        let d = b.d.to_f32();
        for (j, x) in groups.iter().enumerate() {
            let scale = d * f32::from(b.scales[j]);
            let levels = if scale == 0.0 { group(&found.levels, j) } else { symmetric_levels(x, scale, 32) };
            let e = 16 * j;
            let (h, k, l) = (e / 128, e % 128 / 32, e % 32);
            let low = &mut b.ql[64 * h + 32 * (k % 2) + l..];
            for ((low, high), level) in low.iter_mut().zip(&mut b.qh[32 * h + l..]).zip(levels) {
                *low |= (level & 15) << (4 * (k / 2));
                *high |= level >> 4 << (2 * k);
            }
        }
    }
}
