//! Ops that look at one element or one row at a time. Each works in place.

use engine::op::{Binary, Rope, RopePairs, Unary};

use super::math::activation;

/// `f(y)` everywhere.
pub(super) fn unary(f: Unary, y: &mut [f64]) {
    y.iter_mut().for_each(|v| *v = activation(f, *v));
}

/// `y op b`, with `b` repeated.
#[deny(clippy::wildcard_enum_match_arm)]
pub(super) fn binary(op: Binary, y: &mut [f64], b: &[f64]) {
    for (y, b) in y.iter_mut().zip(b.iter().cycle()) {
        match op {
            Binary::Add => *y += b,
            Binary::Mul => *y *= b,
        }
    }
}

/// `y / sqrt(mean(y^2) + eps) * w` for every row of `n` elements; `w` is repeated.
pub(super) fn rms_norm(y: &mut [f64], n: usize, w: &[f64], eps: f32) {
    for row in y.chunks_exact_mut(n) {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / n as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        row.iter_mut().for_each(|v| *v *= scale);
    }
    binary(Binary::Mul, y, w);
}

/// `(y - mean) / sqrt(variance + eps) * w + b` for every row of `n` elements; the variance is that of the whole population,
/// `w` and `b` are repeated.
pub(super) fn layer_norm(y: &mut [f64], n: usize, [w, b]: [&[f64]; 2], eps: f32) {
    for row in y.chunks_exact_mut(n) {
        let mean = row.iter().sum::<f64>() / n as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
        let scale = 1.0 / (variance + f64::from(eps)).sqrt();
        row.iter_mut().for_each(|v| *v = (*v - mean) * scale);
    }
    binary(Binary::Mul, y, w);
    binary(Binary::Add, y, b);
}

/// Rotates every head of `y [.., n_head, head_dim]`; `positions` has one entry per token, `factors` one per pair.
///
/// Source: Su et al. 2021, "RoFormer", section 3.2.2.
pub(super) fn rope(
    rope: Rope,
    factors: Option<&[f64]>,
    y: &mut [f64],
    positions: &[f64],
    n_head: usize,
    head_dim: usize,
) {
    let n_rot = rope.n_rot as usize;
    let theta = |i: usize| {
        let theta = f64::from(rope.theta_base).powf(-2.0 * i as f64 / n_rot as f64);
        factors.map_or(theta, |factors| theta / factors[i])
    };
    for (token, position) in y.chunks_exact_mut(n_head * head_dim).zip(positions) {
        for i in 0..n_rot / 2 {
            let (sin, cos) = (position * theta(i)).sin_cos();
            let (p, q) = match rope.pairs {
                RopePairs::Halves => (i, i + n_rot / 2),
                RopePairs::Interleaved => (2 * i, 2 * i + 1),
            };
            for head in token.chunks_exact_mut(head_dim) {
                (head[p], head[q]) = (head[p] * cos - head[q] * sin, head[q] * cos + head[p] * sin);
            }
        }
    }
}
