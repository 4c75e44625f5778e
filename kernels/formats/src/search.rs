//! The searches behind the encoders: scales and levels that keep a weighted error small.
//!
//! Functions stand where closures would do: large closures are not inlined, and are then compiled without the
//! instruction set of their caller.
//!
//! All of it is f32, without fused multiply-add, every sum from the first element to the last, so that the bytes of a
//! file do not depend on the CPU. Source: ggml 0.25.3, `ggml-quants.c`, as the bytes of its files show it.

use super::lanes::Lanes;
use super::{SUPER_BLOCK, round};

/// Groups whose elements are all smaller are zeros.
pub(super) const TINY: f32 = 1e-15;

/// Rounds of the searches that move single levels.
const ROUNDS: usize = 5;

/// Scales that [`affine`] tries: those that give the largest element the level `n_max + first + step * s`.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub first: f32,
    pub step: f32,
    /// The last s; the first is 0.
    pub last: u8,
    /// Whether the error is the square, not the size, of a difference.
    pub is_squared: bool,
}

/// The steps of every format with importance weights.
pub(super) const WEIGHTED: Steps = Steps { first: -0.9, step: 0.05, last: 36, is_squared: true };

/// What [`affine`] finds: element e of a group is near `scale * levels[e] - min`.
pub(super) struct Affine<const G: usize> {
    pub scale: Lanes,
    /// At least 0.
    pub min: Lanes,
    pub levels: [Lanes; G],
}

/// Scale, minimum and levels 0..=`n_max` of groups `x`, with weights `w` of the errors.
///
/// For each scale of `steps` the elements are rounded, and the weighted least squares line through the levels gives
/// scale and minimum; those with the smallest error stay. A minimum is never positive. A better one takes part in the
/// rounding of the following steps.
#[inline(always)]
pub(super) fn affine<const G: usize>(x: &[Lanes; G], w: &[Lanes; G], n_max: i32, steps: Steps) -> Affine<G> {
    let zero = Lanes::ZERO;
    let (mut low, mut high, mut sum_w, mut sum_x) = (x[0], x[0], w[0], w[0] * x[0]);
    for (x, w) in x.iter().zip(w).skip(1) {
        low = low.gt(*x).select(*x, low);
        high = x.gt(high).select(*x, high);
        sum_w = sum_w + *w;
        sum_x = sum_x + *w * *x;
    }
    low = low.gt(zero).select(zero, low);
    let is_flat = high.eq(low);
    let flat_min = -low;

    let top = n_max as f32;
    let inverse = Lanes::splat(top) / (high - low);
    let mut scale = Lanes::splat(1.0) / inverse;
    let mut levels = [zero; G];
    for (level, x) in levels.iter_mut().zip(x) {
        *level = (inverse * (*x - low)).round_clamped(0, n_max);
    }
    let mut best = affine_error(x, w, &levels, scale, low, steps.is_squared);
    // The levels that stay follow from the scale and the minimum that they were rounded with.
    let mut rounding = (inverse, low);

    for s in 0..=steps.last {
        let inverse = Lanes::splat(steps.first + steps.step * f32::from(s) + top) / (high - low);
        let (mut sum_l, mut sum_ll, mut sum_xl) = (zero, zero, zero);
        for ((level, x), w) in levels.iter_mut().zip(x).zip(w) {
            let l = (inverse * (*x - low)).round_clamped(0, n_max);
            let wl = *w * l;
            sum_l = sum_l + wl;
            sum_ll = sum_ll + wl * l;
            sum_xl = sum_xl + wl * *x;
            *level = l;
        }
        let determinant = sum_w * sum_ll - sum_l * sum_l;
        let offset = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
        let is_positive = offset.gt(zero);
        let slope = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let slope = is_positive.select(sum_xl / sum_ll, slope);
        let offset = is_positive.select(zero, offset);
        let found = affine_error(x, w, &levels, slope, offset, steps.is_squared);
        let is_better = determinant.gt(zero).and(best.gt(found));
        best = is_better.select(found, best);
        scale = is_better.select(slope, scale);
        rounding = (is_better.select(inverse, rounding.0), is_better.select(low, rounding.1));
        low = is_better.select(offset, low);
    }
    for (level, x) in levels.iter_mut().zip(x) {
        *level = is_flat.select(zero, (rounding.0 * (*x - rounding.1)).round_clamped(0, n_max));
    }
    Affine { scale: is_flat.select(zero, scale), min: is_flat.select(flat_min, -low), levels }
}

/// The weighted error of `scale * level + low`.
#[inline(always)]
fn affine_error<const G: usize>(
    x: &[Lanes; G],
    w: &[Lanes; G],
    levels: &[Lanes; G],
    scale: Lanes,
    low: Lanes,
    is_squared: bool,
) -> Lanes {
    let mut sum = Lanes::ZERO;
    for ((level, x), w) in levels.iter().zip(x).zip(w) {
        let difference = scale * *level + low - *x;
        sum = sum + *w * if is_squared { difference * difference } else { difference.abs() };
    }
    sum
}

/// What [`symmetric`] and [`cube`] find: element e of a group is near `scale * (levels[e] - n_max)`.
pub(super) struct Symmetric<const G: usize, const W: usize> {
    pub scale: Lanes<W>,
    pub levels: [Lanes<W>; G],
}

/// Scale and levels 0..`2 * n_max` of groups `x`, with weights `w` of the squared errors.
///
/// Tries scales that give the extreme element a level near `-n_max`; the one stays whose levels l have the largest
/// `(sum w x l)^2 / sum w l l`, which is the smallest error of the best scale for these levels.
#[inline(always)]
pub(super) fn symmetric<const G: usize, const W: usize>(
    x: &[Lanes<W>; G],
    w: &[Lanes<W>; G],
    n_max: i32,
) -> Symmetric<G, W> {
    let zero = Lanes::ZERO;
    let extreme = extremes(x);
    let is_zero = Lanes::splat(TINY).gt(extreme.abs());

    let top = n_max as f32;
    let mut chosen = Lanes::splat(-top) / extreme;
    let (xl, ll) = symmetric_sums(x, w, chosen, n_max);
    let mut scale = ll.eq(zero).select(zero, xl / ll);
    let mut best = scale * xl;
    for s in (-9..=9i8).filter(|s| *s != 0) {
        let inverse = Lanes::splat(-(top + 0.1 * f32::from(s))) / extreme;
        let (xl, ll) = symmetric_sums(x, w, inverse, n_max);
        let is_better = ll.gt(zero).and((xl * xl).gt(best * ll));
        chosen = is_better.select(inverse, chosen);
        scale = is_better.select(xl / ll, scale);
        best = is_better.select(scale * xl, best);
    }
    let mut levels = [zero; G];
    for (level, x) in levels.iter_mut().zip(x) {
        let l = (chosen * *x).round_clamped(-n_max, n_max - 1);
        *level = is_zero.select(zero, l + Lanes::splat(top));
    }
    Symmetric { scale: is_zero.select(zero, scale), levels }
}

/// `sum w x l` and `sum w l l` of the levels l nearest to `inverse * x`.
#[inline(always)]
fn symmetric_sums<const G: usize, const W: usize>(
    x: &[Lanes<W>; G],
    w: &[Lanes<W>; G],
    inverse: Lanes<W>,
    n_max: i32,
) -> (Lanes<W>, Lanes<W>) {
    let (mut xl, mut ll) = (Lanes::ZERO, Lanes::ZERO);
    for (x, w) in x.iter().zip(w) {
        let l = (inverse * *x).round_clamped(-n_max, n_max - 1);
        xl = xl + *w * *x * l;
        ll = ll + *w * l * l;
    }
    (xl, ll)
}

/// Scale and levels 0..`2 * n_max` of groups `x`, with the weights `x x`.
///
/// Starts where the extreme element has the level `-n_max`, then moves one level after the other as long as
/// `(sum w x l)^2 / sum w l l` grows.
#[inline(always)]
pub(super) fn cube<const G: usize>(x: &[Lanes; G], n_max: i32) -> Symmetric<G, { super::lanes::WIDTH }> {
    let zero = Lanes::ZERO;
    let extreme = extremes(x);
    let is_zero = Lanes::splat(TINY).gt(extreme.abs());
    let inverse = Lanes::splat(-(n_max as f32)) / extreme;
    let (mut sum_xl, mut sum_ll) = (zero, zero);
    let mut levels = [zero; G];
    for (level, x) in levels.iter_mut().zip(x) {
        let l = (inverse * *x).round_clamped(-n_max, n_max - 1);
        let w = *x * *x;
        sum_xl = sum_xl + w * *x * l;
        sum_ll = sum_ll + w * l * l;
        *level = l;
    }
    for _ in 0..ROUNDS {
        let mut has_changed = false;
        for (level, x) in levels.iter_mut().zip(x) {
            let (w, l) = (*x * *x, *level);
            let xl = sum_xl - w * *x * l;
            let ll = sum_ll - w * l * l;
            let moved = (*x * ll / xl).round_clamped(-n_max, n_max - 1);
            let is_other = xl.gt(zero).and(moved.eq(l).not());
            let xl = xl + w * *x * moved;
            let ll = ll + w * moved * moved;
            let is_better = is_other.and(ll.gt(zero)).and((xl * xl * sum_ll).gt(sum_xl * sum_xl * ll));
            *level = is_better.select(moved, l);
            sum_xl = is_better.select(xl, sum_xl);
            sum_ll = is_better.select(ll, sum_ll);
            has_changed |= is_better.any();
        }
        if !has_changed {
            break;
        }
    }
    for level in &mut levels {
        *level = is_zero.select(zero, *level + Lanes::splat(n_max as f32));
    }
    Symmetric { scale: is_zero.not().and(sum_ll.gt(zero)).select(sum_xl / sum_ll, zero), levels }
}

/// Scale and levels 0..=`n_max` of the values `v`, which are not negative, with weights `w` of the squared errors.
///
/// Tries scales that give the largest value a level near `n_max`, then moves one level after the other as long as
/// `(sum w v l)^2 / sum w l l` grows.
#[inline(always)]
pub(super) fn positive<const N: usize>(v: &[f32; N], w: &[f32; N], n_max: u8) -> (f32, [u8; N]) {
    let largest = largest(v);
    if largest < TINY {
        return (0.0, [0; N]);
    }
    let top = f32::from(n_max);
    let level = |x: f32| round(x).min(i32::from(n_max));
    let mut chosen = top / largest;
    // Not cut to `n_max`, as in the source.
    let mut best = positive_errors(v, w, Lanes([chosen]), i32::MAX).0[0];
    const STEPS: [i8; 8] = [-4, -3, -2, -1, 1, 2, 3, 4];
    let inverses = STEPS.map(|s| (0.1 * f32::from(s) + top) / largest);
    let errors = positive_errors(v, w, Lanes(inverses), i32::from(n_max)).0;
    for (inverse, error) in inverses.into_iter().zip(errors) {
        if error < best {
            (best, chosen) = (error, inverse);
        }
    }

    let mut levels = v.map(|v| level(chosen * v) as u8);
    let (mut sum_vl, mut sum_ll) = (0.0, 0.0);
    for ((l, v), w) in levels.iter().zip(v).zip(w) {
        let l = f32::from(*l);
        sum_vl += w * v * l;
        sum_ll += w * l * l;
    }
    for _ in 0..ROUNDS {
        let mut has_changed = false;
        for ((level_, v), w) in levels.iter_mut().zip(v).zip(w) {
            let l = f32::from(*level_);
            let vl = sum_vl - w * v * l;
            let ll = sum_ll - w * l * l;
            if !(vl > 0.0 && ll > 0.0) {
                continue;
            }
            let moved = level(v * ll / vl);
            if moved == i32::from(*level_) {
                continue;
            }
            let vl = vl + w * v * moved as f32;
            let ll = ll + w * moved as f32 * moved as f32;
            if vl * vl * sum_ll > sum_vl * sum_vl * ll {
                (*level_, sum_vl, sum_ll) = (moved as u8, vl, ll);
                has_changed = true;
            }
        }
        if !has_changed {
            break;
        }
    }
    (if sum_ll > 0.0 { sum_vl / sum_ll } else { 0.0 }, levels)
}

/// The weighted squared errors with several scales, `1 / inverse`, and levels up to `n_max`.
#[inline(always)]
fn positive_errors<const W: usize>(v: &[f32], w: &[f32], inverse: Lanes<W>, n_max: i32) -> Lanes<W> {
    let scale = Lanes::splat(1.0) / inverse;
    let mut sum = Lanes::ZERO;
    for (v, w) in v.iter().zip(w) {
        let v = Lanes::splat(*v);
        let difference = v - scale * (inverse * v).round_clamped(i32::MIN, n_max);
        sum = sum + Lanes::splat(*w) * difference * difference;
    }
    sum
}

/// The largest value, at least 0.
#[inline(always)]
pub(super) fn largest(v: &[f32]) -> f32 {
    v.iter().fold(0.0, |m, v| if *v > m { *v } else { m })
}

/// The value largest in size, with its sign; the first of equals, +0.0 of zeros.
#[inline(always)]
pub(super) fn extreme(v: &[f32]) -> f32 {
    v.iter().fold(0.0, |m: f32, v| if v.abs() > m.abs() { *v } else { m })
}

/// [`extreme`] of each group.
#[inline(always)]
pub(super) fn extremes<const G: usize, const W: usize>(x: &[Lanes<W>; G]) -> Lanes<W> {
    x.iter().fold(Lanes::ZERO, |m, x| x.abs().gt(m.abs()).select(*x, m))
}

/// Weights of errors with importance: `importance sqrt(mean + x x)`.
#[inline(always)]
pub(super) fn weights<const G: usize>(x: &[Lanes; G], importance: &[Lanes; G], mean: Lanes) -> [Lanes; G] {
    std::array::from_fn(|e| importance[e] * (mean + x[e] * x[e]).sqrt())
}

/// `sum x x` of a block, from its first element to its last.
#[inline(always)]
pub(super) fn super_block_sum(x: &[f32; SUPER_BLOCK]) -> f32 {
    x.iter().fold(0.0, |sum, x| sum + x * x)
}

/// The scale with which the largest of `v` becomes `n_max`, and the nearest levels.
#[inline(always)]
pub(super) fn by_largest<const N: usize>(v: &[f32; N], n_max: u8) -> (f32, [u8; N]) {
    let largest = largest(v);
    if largest == 0.0 {
        return (0.0, [0; N]);
    }
    let top = f32::from(n_max);
    let inverse = top / largest;
    (largest / top, v.map(|v| round(inverse * v) as u8))
}

/// Levels 0..=`n_max` with `scale * level - min` nearest to `x`.
#[inline(always)]
pub(super) fn affine_levels<const G: usize>(x: &[f32; G], scale: f32, min: f32, n_max: i32) -> [u8; G] {
    x.map(|x| round((x + min) / scale).clamp(0, n_max) as u8)
}

/// Levels 0..`2 * n_max` with `scale * (level - n_max)` nearest to `x`.
#[inline(always)]
pub(super) fn symmetric_levels<const G: usize>(x: &[f32; G], scale: f32, n_max: i32) -> [u8; G] {
    x.map(|x| (round(x / scale).clamp(-n_max, n_max - 1) + n_max) as u8)
}
