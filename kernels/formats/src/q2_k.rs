//! Q2_K: 256 levels of 2 bits; 16 groups of 16 with 4-bit scale and minimum.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::block::in_whole_blocks;
use super::lanes::{Lanes, by_lane, group};
use super::search::{Steps, WEIGHTED, affine, affine_levels, by_largest, positive, super_block_sum, weights};
use super::{Block, F16Bytes, Format, Integers, SUPER_BLOCK, Sixteen, SuperBlock};

/// Value of a level in a group: `(d * scale) * level - dmin * min`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ2_K {
    /// Byte j: scale of group j in the low nibble, its minimum in the high one.
    pub scales: [u8; 16],
    /// Element e is in byte `32 * (e / 128) + e % 32`, bits from `2 * (e % 128 / 32)`.
    pub qs: [u8; SUPER_BLOCK / 4],
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Scale of the minima.
    pub dmin: F16Bytes,
}

impl Block for BlockQ2_K {
    const SCALES: &'static [usize] = &[offset_of!(Self, d), offset_of!(Self, dmin)];
    const SUBSTITUTE: Format = Format::Q4_0;

    in_whole_blocks!(SUPER_BLOCK, Super);
}

#[inline(always)]
fn integers(b: &BlockQ2_K) -> SuperBlock {
    let sixteen = |j: usize| {
        let (at, shift) = place(j);
        let levels = std::array::from_fn(|e| (b.qs[at + e] >> shift & 3) as i8);
        Sixteen { levels, scale: (b.scales[j] & 15) as i8, min: b.scales[j] >> 4 }
    };
    SuperBlock { d: b.d.to_f32(), dmin: b.dmin.to_f32(), sixteens: std::array::from_fn(sixteen) }
}

/// Where sixteen `j` begins in bytes that hold 32 levels of 2 bits on top of each other: byte and bit.
pub(super) const fn place(j: usize) -> (usize, usize) {
    (32 * (j / 8) + 16 * (j % 2), 2 * (j % 8 / 2))
}

/// Decodes whole blocks.
#[inline(always)]
fn decode(blocks: &[BlockQ2_K], out: &mut [[f32; SUPER_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let (d, dmin) = (b.d.to_f32(), b.dmin.to_f32());
        for (j, (y, s)) in y.as_chunks_mut::<16>().0.iter_mut().zip(b.scales).enumerate() {
            let (scale, min) = (d * f32::from(s & 15), dmin * f32::from(s >> 4));
            let e = 16 * j;
            let (at, shift) = (32 * (e / 128) + e % 32, 2 * (e % 128 / 32));
            for (y, q) in y.iter_mut().zip(&b.qs[at..]) {
                *y = scale * f32::from(q >> shift & 3) - min;
            }
        }
    }
}

/// The search without importance weights; it minimizes the sum of absolute errors.
const PLAIN: Steps = Steps { first: -0.5, step: 0.1, last: 15, is_squared: false };

/// Encodes whole blocks.
///
/// Each group gets a scale and a minimum by [`affine`], with weights `abs(x)`, or
/// `importance sqrt(mean(x x) + x x)` with the mean over the block. Scales and minima are then rounded to 4 bits: the
/// largest to 15, or by [`positive`] where there is importance. Levels are rounded anew with what was stored; groups
/// whose scale became 0 keep those of the search.
///
/// Source: ggml, `quantize_row_q2_K_ref` and `quantize_q2_K`.
#[inline(always)]
fn encode(x: &[[f32; SUPER_BLOCK]], importance: Option<&[[f32; SUPER_BLOCK]]>, out: &mut [BlockQ2_K]) {
    for (i, (b, x)) in out.iter_mut().zip(x).enumerate() {
        let groups = x.as_chunks::<16>().0;
        let lanes = by_lane(groups);
        let (found, (d, scales), (dmin, mins));
        match importance {
            None => {
                found = affine(&lanes, &lanes.map(Lanes::abs), 3, PLAIN);
                (d, scales) = by_largest(&found.scale.0, 15);
                (dmin, mins) = by_largest(&found.min.0, 15);
            }
            Some(importance) => {
                let mean = super_block_sum(x) / SUPER_BLOCK as f32;
                let w = weights(&lanes, &by_lane(importance[i].as_chunks::<16>().0), Lanes::splat(mean));
                let of_groups = w.iter().fold(Lanes::ZERO, |sum, w| sum + *w).0;
                found = affine(&lanes, &w, 3, WEIGHTED);
                (d, scales) = positive(&found.scale.0, &of_groups, 15);
                (dmin, mins) = positive(&found.min.0, &of_groups, 15);
            }
        }
        b.d = F16Bytes::from_f32(d);
        b.dmin = F16Bytes::from_f32(dmin);
        b.scales = std::array::from_fn(|j| scales[j] | mins[j] << 4);
        b.qs = [0; SUPER_BLOCK / 4];
        let (d, dmin) = (b.d.to_f32(), b.dmin.to_f32());
        for (j, x) in groups.iter().enumerate() {
            let (scale, min) = (d * f32::from(b.scales[j] & 15), dmin * f32::from(b.scales[j] >> 4));
            let levels = if scale == 0.0 { group(&found.levels, j) } else { affine_levels(x, scale, min, 3) };
            let e = 16 * j;
            let (at, shift) = (32 * (e / 128) + e % 32, 2 * (e % 128 / 32));
            for (q, level) in b.qs[at..].iter_mut().zip(levels) {
                *q |= level << shift;
            }
        }
    }
}
