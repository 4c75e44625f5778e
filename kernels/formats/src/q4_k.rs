//! Q4_K: 256 levels of 4 bits; 8 groups of 32 with 6-bit scale and minimum.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::block::in_whole_blocks;
use super::lanes::{Lanes, WIDTH, by_lane, group, sum_of_squares};
use super::search::{Steps, WEIGHTED, affine, affine_levels, by_largest, positive, super_block_sum, weights};
use super::{Block, F16Bytes, Format, Integers, SUPER_BLOCK, Sixteen, SuperBlock, pack_scales_mins_k4, scale_min_k4};

/// Value of a level in a group: `(d * scale) * level - dmin * min`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ4_K {
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Scale of the minima.
    pub dmin: F16Bytes,
    /// Eight 6-bit scales and minima; see [`BlockQ4_K::scale_min`].
    pub scales: [u8; 12],
    /// Element e is in byte `32 * (e / 64) + e % 32`; the low nibble where `e % 64 < 32`.
    pub qs: [u8; SUPER_BLOCK / 2],
}

impl BlockQ4_K {
    /// Scale and minimum of group `j`, six bits each.
    pub const fn scale_min(&self, j: usize) -> (u8, u8) {
        scale_min_k4(&self.scales, j)
    }
}

impl Block for BlockQ4_K {
    const SCALES: &'static [usize] = &[offset_of!(Self, d), offset_of!(Self, dmin)];
    const SUBSTITUTE: Format = Format::Q5_0;

    in_whole_blocks!(SUPER_BLOCK, Super);
}

#[inline(always)]
fn integers(b: &BlockQ4_K) -> SuperBlock {
    let sixteen = |j: usize| {
        let (scale, min) = b.scale_min(j / 2);
        let low = |e: usize| b.qs[32 * (j / 4) + 16 * (j % 2) + e] >> (4 * (j / 2 % 2)) & 15;
        Sixteen { levels: std::array::from_fn(|e| low(e) as i8), scale: scale as i8, min }
    };
    SuperBlock { d: b.d.to_f32(), dmin: b.dmin.to_f32(), sixteens: std::array::from_fn(sixteen) }
}

/// Decodes whole blocks.
#[inline(always)]
fn decode(blocks: &[BlockQ4_K], out: &mut [[f32; SUPER_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let (d, dmin) = (b.d.to_f32(), b.dmin.to_f32());
        for (j, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = b.scale_min(j);
            let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
            for (y, q) in y.iter_mut().zip(&b.qs[32 * (j / 2)..]) {
                *y = scale * f32::from(q >> (4 * (j % 2)) & 15) - min;
            }
        }
    }
}

/// The search without importance weights.
const PLAIN: Steps = Steps { first: -1.0, step: 0.1, last: 20, is_squared: true };

/// Encodes whole blocks.
///
/// Each group gets a scale and a minimum by [`affine`], with weights `sqrt(mean(x x)) + abs(x)`, the mean over the
/// group, or `importance sqrt(2 mean(x x) + x x)`, the mean over the block. Scales and minima are then rounded to 6
/// bits: the largest to 63, or by [`positive`] where there is importance. Levels are rounded anew with what was stored;
/// groups whose scale became 0 keep those of the search.
///
/// Source: ggml, `quantize_row_q4_K_ref` and `quantize_q4_K`.
#[inline(always)]
fn encode(x: &[[f32; SUPER_BLOCK]], importance: Option<&[[f32; SUPER_BLOCK]]>, out: &mut [BlockQ4_K]) {
    encode_groups(x, importance, 15, PLAIN, |i, head, levels| {
        let mut qs = [0; SUPER_BLOCK / 2];
        for (j, levels) in levels.iter().enumerate() {
            for (q, level) in qs[32 * (j / 2)..].iter_mut().zip(levels) {
                *q |= level << (4 * (j % 2));
            }
        }
        out[i] = BlockQ4_K { d: head.d, dmin: head.dmin, scales: head.scales, qs };
    });
}

/// What Q4_K and Q5_K have in common.
pub(super) struct Head {
    pub d: F16Bytes,
    pub dmin: F16Bytes,
    pub scales: [u8; 12],
}

/// Groups of a block, and of the elements of a group.
const GROUPS: usize = 8;
const GROUP: usize = SUPER_BLOCK / GROUPS;
/// Blocks that are searched together.
const BLOCKS: usize = WIDTH / GROUPS;

/// Calls `write(i, head, levels)` for each block i; see [`encode`].
#[inline(always)]
pub(super) fn encode_groups(
    x: &[[f32; SUPER_BLOCK]],
    importance: Option<&[[f32; SUPER_BLOCK]]>,
    n_max: u8,
    plain: Steps,
    mut write: impl FnMut(usize, &Head, &[[u8; GROUP]; GROUPS]),
) {
    for (i, x) in x.chunks(BLOCKS).enumerate() {
        let groups = x.as_flattened().as_chunks::<GROUP>().0;
        let lanes = by_lane(groups);
        let importance = importance.map(|importance| &importance[BLOCKS * i..][..x.len()]);
        let (w, steps) = match importance {
            None => {
                let size = (sum_of_squares(&lanes) / Lanes::splat(GROUP as f32)).sqrt();
                (lanes.map(|x| size + x.abs()), plain)
            }
            Some(importance) => {
                let mut mean = Lanes::ZERO;
                for (mean, x) in mean.0.chunks_mut(GROUPS).zip(x) {
                    mean.fill(2.0 * super_block_sum(x) / SUPER_BLOCK as f32);
                }
                (weights(&lanes, &by_lane(importance.as_flattened().as_chunks::<GROUP>().0), mean), WEIGHTED)
            }
        };
        let of_groups = w.iter().fold(Lanes::ZERO, |sum, w| sum + *w).0;
        let found = affine(&lanes, &w, i32::from(n_max), steps);
        for (l, groups) in groups.as_chunks::<GROUPS>().0.iter().enumerate() {
            let of_block = |v: &[f32; WIDTH]| -> [f32; GROUPS] { std::array::from_fn(|j| v[GROUPS * l + j]) };
            let round = |v: &Lanes| match importance {
                None => by_largest(&of_block(&v.0), 63),
                Some(_) => positive(&of_block(&v.0), &of_block(&of_groups), 63),
            };
            let ((d, scales), (dmin, mins)) = (round(&found.scale), round(&found.min));
            let head = Head {
                d: F16Bytes::from_f32(d),
                dmin: F16Bytes::from_f32(dmin),
                scales: pack_scales_mins_k4(scales.map(|s| s.min(63)), mins.map(|m| m.min(63))),
            };
            let (d, dmin) = (head.d.to_f32(), head.dmin.to_f32());
            let levels: [[u8; GROUP]; GROUPS] = std::array::from_fn(|j| {
                let (scale, min) = scale_min_k4(&head.scales, j);
                let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
                if scale == 0.0 {
                    group(&found.levels, GROUPS * l + j)
                } else {
                    affine_levels(&groups[j], scale, min, i32::from(n_max))
                }
            });
            write(BLOCKS * i + l, &head, &levels);
        }
    }
}
