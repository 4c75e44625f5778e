//! IQ4_NL: 32 levels of 4 bits that index a table of uneven steps, and one scale.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::block::in_whole_blocks;
use super::lanes::{Lanes, WIDTH, by_lane, group, sum_of_squares};
use super::q4_0::{pack, unpack};
use super::search::{TINY, extremes, weights};
use super::{Block, F16Bytes, Group, Integers, SMALL_BLOCK};

/// What the levels stand for: steps are finer where weights are dense.
pub const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Value of a level: `d * VALUES[level]`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockIQ4_NL {
    /// Scale.
    pub d: F16Bytes,
    /// Byte i: element i in the low nibble, element i + 16 in the high one.
    pub qs: [u8; SMALL_BLOCK / 2],
}

impl Block for BlockIQ4_NL {
    const SCALES: &'static [usize] = &[offset_of!(Self, d)];

    in_whole_blocks!(SMALL_BLOCK, Small);
}

#[inline(always)]
fn integers(b: &BlockIQ4_NL) -> Group {
    let levels = unpack(&b.qs).map(|level| VALUES[usize::from(level)]);
    Group { levels, scale: b.d.to_f32(), offset: 0.0 }
}

/// Decodes whole blocks.
#[inline(always)]
fn decode(blocks: &[BlockIQ4_NL], out: &mut [[f32; SMALL_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let d = b.d.to_f32();
        let (low, high) = y.split_at_mut(SMALL_BLOCK / 2);
        for ((low, high), q) in low.iter_mut().zip(high).zip(b.qs) {
            *low = d * f32::from(VALUES[usize::from(q & 15)]);
            *high = d * f32::from(VALUES[usize::from(q >> 4)]);
        }
    }
}

/// Encodes a row: fifteen scales around the one where the extreme element has the value -127 are tried.
///
/// For each the elements go to the nearest of [`VALUES`], halves up, and that one stays whose values q have the largest
/// `(sum w q x)^2 / sum w q q`. Weights are `x x`, with importance `importance sqrt(2 mean(x x) + x x)`, the mean over
/// the block. The levels that are stored come from the best scale, unrounded. Blocks of zeros have level 8.
///
/// Source: ggml, `quantize_iq4_nl`; `quantize_row_iq4_nl_ref` searches less.
#[inline(always)]
fn encode(x: &[[f32; SMALL_BLOCK]], importance: Option<&[[f32; SMALL_BLOCK]]>, out: &mut [BlockIQ4_NL]) {
    for (i, (out, x)) in out.chunks_mut(WIDTH).zip(x.chunks(WIDTH)).enumerate() {
        let x = by_lane(x);
        let w = match importance {
            None => x.map(|x| x * x),
            Some(importance) => {
                let mean = sum_of_squares(&x) * Lanes::splat(2.0 / SMALL_BLOCK as f32);
                weights(&x, &by_lane(importance.chunks(WIDTH).nth(i).unwrap_or_default()), mean)
            }
        };
        let (scale, levels) = search(&x, &w);
        for (l, b) in out.iter_mut().enumerate() {
            *b = BlockIQ4_NL { d: F16Bytes::from_f32(scale.0[l]), qs: pack(&group(&levels, l)) };
        }
    }
}

/// Scales and levels of groups `x`, with weights `w` of the squared errors.
#[inline(always)]
fn search(x: &[Lanes; SMALL_BLOCK], w: &[Lanes; SMALL_BLOCK]) -> (Lanes, [Lanes; SMALL_BLOCK]) {
    let zero = Lanes::ZERO;
    let extreme = extremes(x);
    let is_zero = Lanes::splat(TINY).gt(extreme.abs());
    let (qx, qq) = sums(x, w, Lanes::splat(1.0) / (-extreme / Lanes::splat(-127.0)));
    let mut scale = qq.gt(zero).select(qx / qq, zero);
    let mut best = scale * qx;
    for step in -7..=7i8 {
        let (qx, qq) = sums(x, w, Lanes::splat(f32::from(step) - 127.0) / extreme);
        let is_better = qq.gt(zero).and((qx * qx).gt(best * qq));
        scale = is_better.select(qx / qq, scale);
        best = is_better.select(scale * qx, best);
    }
    let scale = is_zero.select(zero, scale);
    let inverse = scale.eq(zero).select(zero, Lanes::splat(1.0) / scale);
    let mut levels = [zero; SMALL_BLOCK];
    for (level, x) in levels.iter_mut().zip(x) {
        *level = nearest(inverse * *x, |level| level as f32);
    }
    (scale, levels)
}

/// `sum w q x` and `sum w q q` of the values q nearest to `inverse * x`.
// Not a closure: those are too large to be inlined, and are then compiled without the caller's instruction set.
#[inline(always)]
fn sums(x: &[Lanes; SMALL_BLOCK], w: &[Lanes; SMALL_BLOCK], inverse: Lanes) -> (Lanes, Lanes) {
    let (mut qx, mut qq) = (Lanes::ZERO, Lanes::ZERO);
    for (x, w) in x.iter().zip(w) {
        let q = nearest(inverse * *x, |level| f32::from(VALUES[level]));
        let wq = *w * q;
        qx = qx + wq * *x;
        qq = qq + wq * q;
    }
    (qx, qq)
}

/// `of` the level whose value is nearest, halves up.
#[inline(always)]
fn nearest(x: Lanes, of: impl Fn(usize) -> f32) -> Lanes {
    (1..VALUES.len()).fold(Lanes::splat(of(0)), |nearest, level| {
        // Exact: the middle between two integers below 128.
        let middle = (f32::from(VALUES[level - 1]) + f32::from(VALUES[level])) / 2.0;
        x.ge(Lanes::splat(middle)).select(Lanes::splat(of(level)), nearest)
    })
}
