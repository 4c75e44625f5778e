//! Attention with and without memory.

use std::ops::Range;

use engine::Result;
use engine::op::Window;
use engine::tensor::TensorId;
use rayon::prelude::*;

use super::linear::dot;
use super::operands::{Operands, decode, encode};

/// `[x, state, slots, positions, sequences]`: stores the rows of every sequence.
pub(super) fn kv_write(cx: &Operands<'_>, args: &[TensorId]) -> Result<()> {
    let [n_slots, n_ctx, n_head_kv, head_dim] = cx.dims(args[1])?;
    let dtype = cx.desc(args[1]).dtype;
    let width = n_head_kv * head_dim;
    let row_bytes = dtype.row_bytes(width);
    let x = cx.values(args[0])?;
    let slots = cx.indices(args[2], n_slots)?;
    let positions = cx.indices(args[3], n_ctx)?;
    let mut state = cx.state(args[1])?.lock();
    for (t, s) in cx.sequences(args[4], slots.len())?.into_iter().enumerate() {
        let Some(s) = s else { continue };
        let row = slots[s] * n_ctx + positions[t];
        encode(dtype, &x[t * width..][..width], &mut state[row * row_bytes..][..row_bytes])?;
    }
    Ok(())
}

/// Keys and values of one sequence, `[n_rows, n_head_kv, head_dim]`.
struct Past<'a> {
    k: &'a [f64],
    v: &'a [f64],
    n_head_kv: usize,
    head_dim: usize,
}

impl Past<'_> {
    /// `softmax(scale q . k^T) v` of every head of one token over some rows; `q` and `out`: `[n_head, head_dim]`.
    fn attend(&self, q: &[f64], rows: Range<usize>, scale: f32, out: &mut [f64]) {
        let (n_head_kv, head_dim) = (self.n_head_kv, self.head_dim);
        let n_head = q.len() / head_dim;
        for (h, (q, out)) in q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
            let row = |r: usize| (r * n_head_kv + h * n_head_kv / n_head) * head_dim;
            let mut p: Vec<f64> =
                rows.clone().map(|r| f64::from(scale) * dot(q, &self.k[row(r)..][..head_dim])).collect();
            let max = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            p.iter_mut().for_each(|p| *p = (*p - max).exp());
            let sum: f64 = p.iter().sum();
            out.fill(0.0);
            for (p, r) in p.iter().zip(rows.clone()) {
                out.iter_mut().zip(&self.v[row(r)..][..head_dim]).for_each(|(o, v)| *o += p / sum * v);
            }
        }
    }
}

/// `[q, k, v, slots, positions, sequences]`: over rows `0 ..= position` of the sequence's slot. NaN for padding.
pub(super) fn cached(cx: &Operands<'_>, args: &[TensorId], scale: f32) -> Result<Vec<f64>> {
    let [n_tokens, n_head, head_dim] = cx.dims(args[0])?;
    let [n_slots, n_ctx, n_head_kv, _] = cx.dims(args[1])?;
    let q = cx.values(args[0])?;
    let slots = cx.indices(args[3], n_slots)?;
    let positions = cx.indices(args[4], n_ctx)?;
    let sequences = cx.sequences(args[5], slots.len())?;
    let width = n_head * head_dim;
    let mut out = vec![f64::NAN; n_tokens * width];
    for (s, slot) in slots.iter().enumerate() {
        let Some(last) = (0..n_tokens).filter(|&t| sequences[t] == Some(s)).map(|t| positions[t]).max() else {
            continue;
        };
        let rows = |id: TensorId| {
            let dtype = cx.desc(id).dtype;
            let row_bytes = dtype.row_bytes(n_head_kv * head_dim);
            let bytes = slot * n_ctx * row_bytes..(slot * n_ctx + last + 1) * row_bytes;
            decode(dtype, &cx.state(id)?.lock()[bytes], (last + 1) * n_head_kv * head_dim)
        };
        let (k, v) = (rows(args[1])?, rows(args[2])?);
        let past = Past { k: &k, v: &v, n_head_kv, head_dim };
        let tokens = out.par_chunks_exact_mut(width).enumerate().filter(|(t, _)| sequences[*t] == Some(s));
        tokens.for_each(|(t, out)| past.attend(&q[t * width..][..width], 0..positions[t] + 1, scale, out));
    }
    Ok(out)
}

/// `[q, k, v, sequences, ranges]`: over the rows of the query's window. NaN for padding.
#[deny(clippy::wildcard_enum_match_arm)]
pub(super) fn windowed(cx: &Operands<'_>, args: &[TensorId], scale: f32, window: Window) -> Result<Vec<f64>> {
    let [n_tokens, n_head, head_dim] = cx.dims(args[0])?;
    let (q, k, v) = (cx.values(args[0])?, cx.values(args[1])?, cx.values(args[2])?);
    let ranges = cx.ranges(args[4], n_tokens)?;
    let sequences = cx.sequences(args[3], ranges.len())?;
    let width = n_head * head_dim;
    let past = Past { k: &k, v: &v, n_head_kv: n_head, head_dim };
    let mut out = vec![f64::NAN; n_tokens * width];
    out.par_chunks_exact_mut(width).enumerate().for_each(|(t, out)| {
        let Some(s) = sequences[t] else { return };
        let Range { start: first, end } = ranges[s];
        let rows = match window {
            Window::Full => first..end,
            Window::Blocks(n) => {
                let n = (n as usize).max(1);
                let start = first + (t - first) / n * n;
                start..(start + n).min(end)
            }
        };
        past.attend(&q[t * width..][..width], rows, scale, out);
    });
    Ok(out)
}

/// Base of the frequencies of relative positions.
const SINUSOID_BASE: f64 = 10_000.0;

/// `[x]`: `[2 n_tokens - 1, n]`, sines and cosines of the distances `n_tokens - 1` down to `-(n_tokens - 1)`.
///
/// Source: Vaswani et al. 2017, "Attention is all you need", section 3.5, for distances as Dai et al. 2019 have them.
pub(super) fn rel_positions(cx: &Operands<'_>, args: &[TensorId]) -> Result<Vec<f64>> {
    let [n_tokens, n] = cx.dims(args[0])?;
    let mut out = Vec::with_capacity((2 * n_tokens - 1) * n);
    for r in 0..2 * n_tokens - 1 {
        let distance = (n_tokens - 1) as f64 - r as f64;
        for i in 0..n / 2 {
            let (sin, cos) = (distance * SINUSOID_BASE.powf(-2.0 * i as f64 / n as f64)).sin_cos();
            out.extend([sin, cos]);
        }
    }
    Ok(out)
}

/// `[q, k, v, p, bias_u, bias_v, sequences, ranges]`: over the rows of the query's sequence, with relative positions. NaN
/// for padding.
pub(super) fn rel_pos(cx: &Operands<'_>, args: &[TensorId], scale: f32) -> Result<Vec<f64>> {
    let [n_tokens, n_head, head_dim] = cx.dims(args[0])?;
    let [q, k, v, p, bias_u, bias_v] = [0, 1, 2, 3, 4, 5].map(|i| cx.values(args[i]));
    let (q, k, v, p, bias_u, bias_v) = (q?, k?, v?, p?, bias_u?, bias_v?);
    let ranges = cx.ranges(args[7], n_tokens)?;
    let sequences = cx.sequences(args[6], ranges.len())?;
    let width = n_head * head_dim;
    let mut out = vec![f64::NAN; n_tokens * width];
    out.par_chunks_exact_mut(width).enumerate().for_each(|(i, out)| {
        let Some(s) = sequences[i] else { return };
        for (h, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let head = h * head_dim..(h + 1) * head_dim;
            let row = |token: usize| token * width + h * head_dim;
            let query = &q[row(i)..][..head_dim];
            let plus = |b: &[f64]| query.iter().zip(&b[head.clone()]).map(|(q, b)| q + b).collect::<Vec<_>>();
            let (content, position) = (plus(&bias_u), plus(&bias_v));
            let score = |j: usize| {
                let distance = &p[row(j + n_tokens - 1 - i)..][..head_dim];
                f64::from(scale) * (dot(&content, &k[row(j)..][..head_dim]) + dot(&position, distance))
            };
            let mut scores: Vec<f64> = ranges[s].clone().map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            scores.iter_mut().for_each(|s| *s = (*s - max).exp());
            let sum: f64 = scores.iter().sum();
            out.fill(0.0);
            for (j, weight) in ranges[s].clone().zip(&scores) {
                out.iter_mut().zip(&v[row(j)..][..head_dim]).for_each(|(o, v)| *o += weight / sum * v);
            }
        }
    });
    Ok(out)
}
