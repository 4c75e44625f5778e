//! Q3_K: 256 levels of 3 bits around 4; 16 groups of 16 with a 6-bit scale around 32.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::block::in_whole_blocks;
use super::lanes::{Lanes, by_lane, group};
use super::q2_k::place;
use super::search::{cube, extreme, super_block_sum, symmetric, symmetric_levels, weights};
use super::{Block, F16Bytes, Format, Integers, SUPER_BLOCK, Sixteen, SuperBlock, round};

/// Value of a level in a group: `(d * (scale - 32)) * (level - 4)`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ3_K {
    /// Third bit of element e: byte `e % 32`, bit `e / 32`.
    pub hmask: [u8; SUPER_BLOCK / 8],
    /// Low bits of element e: byte `32 * (e / 128) + e % 32`, bits from `2 * (e % 128 / 32)`.
    pub qs: [u8; SUPER_BLOCK / 4],
    /// Sixteen 6-bit scales; see [`BlockQ3_K::scale`].
    pub scales: [u8; 12],
    /// Scale of the scales.
    pub d: F16Bytes,
}

impl BlockQ3_K {
    /// The signed scale of group `j`, -32..=31: low four bits in bytes 0..8, upper two in bytes 8..12.
    pub const fn scale(&self, j: usize) -> i8 {
        let low = if j < 8 { self.scales[j] & 15 } else { self.scales[j - 8] >> 4 };
        let high = self.scales[8 + j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    }

    /// [`scale`](Self::scale) of all groups, larger by 32.
    #[inline(always)]
    pub fn unsigned_scales(&self) -> [[u8; 4]; 4] {
        let [a, b, high] = bytemuck::cast_ref::<_, [[u8; 4]; 3]>(&self.scales);
        let (a, b, high) = (u32::from_le_bytes(*a), u32::from_le_bytes(*b), u32::from_le_bytes(*high));
        let join = |low: u32, high: u32| (low & 0x0F0F_0F0F | (high & 0x0303_0303) << 4).to_le_bytes();
        [join(a, high), join(b, high >> 2), join(a >> 4, high >> 4), join(b >> 4, high >> 6)]
    }
}

impl Block for BlockQ3_K {
    const SCALES: &'static [usize] = &[offset_of!(Self, d)];
    const SUBSTITUTE: Format = Format::Q4_0;

    in_whole_blocks!(SUPER_BLOCK, Super);
}

#[inline(always)]
fn integers(b: &BlockQ3_K) -> SuperBlock {
    let sixteen = |j: usize| {
        let (at, shift) = place(j);
        let third = |e: usize| b.hmask[16 * (j % 2) + e] >> (j / 2) & 1;
        let levels = std::array::from_fn(|e| (b.qs[at + e] >> shift & 3 | third(e) << 2) as i8 - 4);
        Sixteen { levels, scale: b.scale(j), min: 0 }
    };
    SuperBlock { d: b.d.to_f32(), dmin: 0.0, sixteens: std::array::from_fn(sixteen) }
}

/// Decodes whole blocks.
#[inline(always)]
fn decode(blocks: &[BlockQ3_K], out: &mut [[f32; SUPER_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let d = b.d.to_f32();
        for (j, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(b.scale(j));
            let e = 16 * j;
            let (at, shift, bit) = (32 * (e / 128) + e % 32, 2 * (e % 128 / 32), e / 32);
            for ((y, q), h) in y.iter_mut().zip(&b.qs[at..]).zip(&b.hmask[e % 32..]) {
                let level = q >> shift & 3 | (h >> bit & 1) << 2;
                *y = scale * f32::from(level as i8 - 4);
            }
        }
    }
}

/// Encodes whole blocks.
///
/// Without importance each group gets a scale by [`cube`], and the scale largest in size becomes -32. With importance
/// both are [`symmetric`] searches: of each group with weights `importance sqrt(2 mean(x x) + x x)`, the mean over the
/// block, and of the scales with the sums of these. Levels are rounded anew with what was stored; groups whose scale
/// became 0 keep those of the search.
///
/// Source: ggml, `quantize_row_q3_K_ref` and `quantize_q3_K`.
#[inline(always)]
fn encode(x: &[[f32; SUPER_BLOCK]], importance: Option<&[[f32; SUPER_BLOCK]]>, out: &mut [BlockQ3_K]) {
    for (i, (b, x)) in out.iter_mut().zip(x).enumerate() {
        let groups = x.as_chunks::<16>().0;
        let lanes = by_lane(groups);
        let (found, d, scales);
        match importance {
            None => {
                found = cube(&lanes, 4);
                (d, scales) = by_extreme(&found.scale.0);
            }
            Some(importance) => {
                let mean = 2.0 * super_block_sum(x) / SUPER_BLOCK as f32;
                let w = weights(&lanes, &by_lane(importance[i].as_chunks::<16>().0), Lanes::splat(mean));
                let of_groups = w.iter().fold(Lanes::ZERO, |sum, w| sum + *w).0;
                found = symmetric(&lanes, &w, 4);
                let of_scales = symmetric(&found.scale.0.map(|x| Lanes([x])), &of_groups.map(|w| Lanes([w])), 32);
                (d, scales) = (of_scales.scale.0[0], of_scales.levels.map(|l| l.0[0] as u8));
            }
        }
        *b = BlockQ3_K::zeroed();
        b.d = F16Bytes::from_f32(d);
        for (j, scale) in scales.iter().enumerate() {
            b.scales[j % 8] |= (scale & 15) << (4 * (j / 8));
            b.scales[8 + j % 4] |= scale >> 4 << (2 * (j / 4));
        }
        let d = b.d.to_f32();
        for (j, x) in groups.iter().enumerate() {
            let scale = d * f32::from(b.scale(j));
            let levels = if scale == 0.0 { group(&found.levels, j) } else { symmetric_levels(x, scale, 4) };
            let e = 16 * j;
            let (at, shift, bit) = (32 * (e / 128) + e % 32, 2 * (e % 128 / 32), e / 32);
            for ((q, h), level) in b.qs[at..].iter_mut().zip(&mut b.hmask[e % 32..]).zip(levels) {
                *q |= (level & 3) << shift;
                *h |= level >> 2 << bit;
            }
        }
    }
}

/// The scale with which the value largest in size becomes -32, and the nearest levels, 32 added.
///
/// Where all are zeros so are the levels, 32 not added.
#[inline(always)]
fn by_extreme(v: &[f32; 16]) -> (f32, [u8; 16]) {
    let extreme = extreme(v);
    if extreme == 0.0 {
        return (0.0, [0; 16]);
    }
    let inverse = -32.0 / extreme;
    (1.0 / inverse, v.map(|v| ((round(inverse * v) as i8).clamp(-32, 31) + 32) as u8))
}
