//! Products in integers in plain code, for every format that tells its levels.
//!
//! Like the bodies in `scalar`, functions are always inlined, so that they are compiled for the caller's instruction set.

use super::product::Product;
use crate::activation::{BlockQ8, BlockQ8_K};
use crate::quant::{Block, Group, SMALL_BLOCK, SUPER_BLOCK, Sixteen, SuperBlock};

/// Adds `of(block, activations, sum)` to each result, blocks ascending; `X` are as many activations as a block has weights.
#[inline(always)]
fn by_block<B: Block, W, X: bytemuck::Pod>(
    p: &Product<'_>,
    out: &mut [f32],
    unpack: fn(&B) -> W,
    add: impl Fn(&W, &X, f32) -> f32,
) {
    out.fill(0.0);
    for j in 0..p.n_rows {
        for (b, block) in p.blocks(j).iter().enumerate() {
            let block = unpack(block);
            for i in 0..p.m {
                let y = &mut out[i * p.n_rows + j];
                *y = add(&block, &p.activations(i)[b], *y);
            }
        }
    }
}

/// Groups of 32 weights with [`BlockQ8`]: `sum over groups of w.scale x.d (levels . x.q) + w.offset x.d sum(x.q)`.
#[inline(always)]
pub(super) fn groups_q8<B: Block>(p: &Product<'_>, out: &mut [f32]) {
    by_block::<B, Group, BlockQ8>(p, out, const { B::INTEGERS.small() }, |w, x, acc| {
        let dot: i32 = w.levels.iter().zip(x.q).map(|(w, x)| i32::from(*w) * i32::from(x)).sum();
        let acc = acc + w.scale * x.d * dot as f32;
        acc + w.offset * (x.d * -x.neg_sum as f32)
    });
}

/// Blocks of 256 weights with [`BlockQ8`]: `sum over sixteens of x.d (w.d scale (level . x.q) - w.dmin min sum(x.q))`.
#[inline(always)]
pub(super) fn super_blocks_q8<B: Block>(p: &Product<'_>, out: &mut [f32]) {
    type Activations = [BlockQ8; SUPER_BLOCK / SMALL_BLOCK];
    by_block::<B, SuperBlock, Activations>(p, out, const { B::INTEGERS.super_block() }, |w, x, mut acc| {
        for (j, sixteen) in w.sixteens.iter().enumerate() {
            let (x, h) = (&x[j / 2], j % 2);
            acc += w.d * f32::from(sixteen.scale) * x.d * dot(sixteen, &x.q.as_chunks().0[h]) as f32;
            acc += w.dmin * f32::from(sixteen.min) * (x.d * f32::from(x.neg_sums[h]));
        }
        acc
    });
}

/// Blocks of 256 weights with [`BlockQ8_K`]:
/// `sum over blocks of x.d (w.d sum over j of scale (level . x.q) - w.dmin sum over j of min sum(x.q))`, where the sums over j
/// are integers.
#[inline(always)]
pub(super) fn super_blocks_q8_k<B: Block>(p: &Product<'_>, out: &mut [f32]) {
    by_block::<B, SuperBlock, BlockQ8_K>(p, out, const { B::INTEGERS.super_block() }, |w, x, acc| {
        let (mut sum, mut offset) = (0, 0);
        for ((sixteen, q), q_sum) in w.sixteens.iter().zip(x.q.as_chunks().0).zip(x.sums) {
            sum += i32::from(sixteen.scale) * dot(sixteen, q);
            offset += i32::from(sixteen.min) * i32::from(q_sum);
        }
        acc + x.d * (w.d * sum as f32 - w.dmin * offset as f32)
    });
}

/// `levels . q`.
#[inline(always)]
fn dot(w: &Sixteen, q: &[i8; 16]) -> i32 {
    w.levels.iter().zip(q).map(|(w, x)| i32::from(*w) * i32::from(*x)).sum()
}
