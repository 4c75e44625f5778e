//! Mixtures of experts: the choice of experts, their products and the weighted sum.

use engine::Result;
use engine::op::{Gating, Route, Unary};
use engine::tensor::TensorId;

use super::linear::dot;
use super::math::activation;
use super::operands::{Operands, index};

/// `[logits]` or `[logits, bias]`: ids and weights by falling score.
#[deny(clippy::wildcard_enum_match_arm)]
pub(super) fn route(cx: &Operands<'_>, args: &[TensorId], route: Route) -> Result<[Vec<f64>; 2]> {
    let logits = cx.values(args[0])?;
    let n_expert = cx.desc(args[0]).shape.last();
    let bias = if route.bias { Some(cx.values(args[1])?) } else { None };
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for logits in logits.chunks_exact(n_expert) {
        let scores: Vec<f64> = match route.gating {
            Gating::Sigmoid => logits.iter().map(|&x| activation(Unary::Sigmoid, x)).collect(),
            Gating::Softmax => {
                let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = logits.iter().map(|x| (x - max).exp()).sum();
                logits.iter().map(|x| (x - max).exp() / sum).collect()
            }
        };
        let selection = |e: usize| scores[e] + bias.as_ref().map_or(0.0, |b| b[e]);
        let mut order: Vec<usize> = (0..n_expert).collect();
        order.sort_by(|&a, &b| selection(b).total_cmp(&selection(a)));
        order.truncate(route.n_used as usize);
        let sum: f64 = order.iter().map(|&e| scores[e]).sum();
        let norm = if route.normalize { sum + f64::from(route.norm_eps) } else { 1.0 };
        weights.extend(order.iter().map(|&e| scores[e] / norm * f64::from(route.scale)));
        ids.extend(order.iter().map(|&e| e as f64));
    }
    Ok([ids, weights])
}

/// `[x, w, ids]`: each token's row, or its row for the expert, times the matrices of its experts.
pub(super) fn linear(cx: &Operands<'_>, args: &[TensorId]) -> Result<Vec<f64>> {
    let [n_expert, n, k] = cx.dims(args[1])?;
    let n_used = cx.desc(args[2]).shape.last();
    let (x, ids) = (cx.values(args[0])?, cx.values(args[2])?);
    let rows = cx.rows(args[1])?;
    // A token has one row for all of its experts, or one for each.
    let shared = if x.len() / k == ids.len() { 1 } else { n_used };
    let mut out = vec![0.0; ids.len() * n];
    let mut row = vec![0.0; k];
    for e in 0..n_expert {
        let chosen: Vec<usize> = (0..ids.len()).filter(|&i| index(ids[i], n_expert).is_ok_and(|id| id == e)).collect();
        for j in 0..if chosen.is_empty() { 0 } else { n } {
            rows.row(e * n + j, &mut row)?;
            for &i in &chosen {
                out[i * n + j] = dot(&row, &x[i / shared * k..][..k]);
            }
        }
    }
    Ok(out)
}

/// `[x, weights]`: the weighted sum over each token's experts.
pub(super) fn sum(cx: &Operands<'_>, args: &[TensorId]) -> Result<Vec<f64>> {
    let (x, weights) = (cx.values(args[0])?, cx.values(args[1])?);
    let (n, n_used) = (cx.desc(args[0]).shape.last(), cx.desc(args[1]).shape.last());
    let token = |(rows, weights): (&[f64], &[f64])| {
        let column = |i: usize| rows.chunks_exact(n).zip(weights).map(|(row, w)| w * row[i]).sum();
        (0..n).map(column).collect::<Vec<f64>>()
    };
    Ok(x.chunks_exact(n * n_used).zip(weights.chunks_exact(n_used)).flat_map(token).collect())
}
