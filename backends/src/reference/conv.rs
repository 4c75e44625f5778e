//! Convolutions.

use std::borrow::Cow;

use engine::Result;
use engine::tensor::TensorId;

use super::linear::product;
use super::operands::{Operands, Rows};
use super::state;

/// `[x, w, state, reads, slots, kept, ranges]`, and the bias: `y[t] = bias + sum_j w[:, j] * x[t - (d_conv - 1) + j]`. NaN
/// for padding.
pub(super) fn causal_conv1d(cx: &Operands<'_>, args: &[TensorId], bias: bool) -> Result<Vec<f64>> {
    let [n_tokens, width] = cx.dims(args[0])?;
    let [_, history, _] = cx.dims(args[2])?;
    let (x, w) = (state::rounded(cx, args[0])?, cx.values(args[1])?);
    let bias = if bias { cx.values(args[7])? } else { Cow::Owned(vec![0.0; width]) };
    let d_conv = history + 1;
    let mut out = vec![f64::NAN; x.len()];
    state::pass(cx, &args[2..7], n_tokens, |t, past| {
        // [history, width], oldest first
        let x = &x[t * width..][..width];
        for (c, out) in out[t * width..][..width].iter_mut().enumerate() {
            let input = |j: usize| past.get(j * width + c).copied().unwrap_or(x[c]);
            *out = bias[c] + (0..d_conv).map(|j| w[c * d_conv + j] * input(j)).sum::<f64>();
        }
        past.extend_from_slice(x);
        past.drain(..width);
    })?;
    Ok(out)
}

/// `[x, w, bias]`: cross-correlation with a border of zeros; a product of patches with rearranged weights.
pub(super) fn conv2d(cx: &Operands<'_>, args: &[TensorId], stride: usize, pad: usize) -> Result<Vec<f64>> {
    let [n, height, width, c_in] = cx.dims(args[0])?;
    let [c_out, _, kh, kw] = cx.dims(args[1])?;
    let (x, w, bias) = (cx.values(args[0])?, cx.values(args[1])?, cx.values(args[2])?);
    let (h_out, w_out) = ((height + 2 * pad - kh) / stride + 1, (width + 2 * pad - kw) / stride + 1);
    let patch = kh * kw * c_in;
    // [c_out, kh, kw, c_in]
    let mut weights = vec![0.0; c_out * patch];
    for (o, row) in weights.chunks_exact_mut(patch).enumerate() {
        for (at, v) in row.iter_mut().enumerate() {
            *v = w[o * patch + at % c_in * kh * kw + at / c_in];
        }
    }
    // [n, h_out, w_out, kh, kw, c_in]
    let mut patches = vec![0.0; n * h_out * w_out * patch];
    for (pixel, taps) in patches.chunks_exact_mut(patch).enumerate() {
        let (image, oy, ox) = (pixel / (h_out * w_out), pixel / w_out % h_out, pixel % w_out);
        for (tap, channels) in taps.chunks_exact_mut(c_in).enumerate() {
            let (y, x_at) = ((oy * stride + tap / kw).checked_sub(pad), (ox * stride + tap % kw).checked_sub(pad));
            if let (Some(iy), Some(ix)) = (y.filter(|&y| y < height), x_at.filter(|&x| x < width)) {
                channels.copy_from_slice(&x[((image * height + iy) * width + ix) * c_in..][..c_in]);
            }
        }
    }
    let mut out = product(&patches, &Rows::Values(Cow::Owned(weights)), c_out, patch)?;
    out.chunks_exact_mut(c_out).for_each(|row| row.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b));
    Ok(out)
}

/// `[x, w, bias]`: every channel with its own kernel, with a border of zeros.
pub(super) fn depthwise_conv2d(cx: &Operands<'_>, args: &[TensorId], stride: usize, pad: usize) -> Result<Vec<f64>> {
    let [n, height, width, channels] = cx.dims(args[0])?;
    let [_, _, kh, kw] = cx.dims(args[1])?;
    let (x, w, bias) = (cx.values(args[0])?, cx.values(args[1])?, cx.values(args[2])?);
    let (h_out, w_out) = ((height + 2 * pad - kh) / stride + 1, (width + 2 * pad - kw) / stride + 1);
    let mut out = Vec::with_capacity(n * h_out * w_out * channels);
    for pixel in 0..n * h_out * w_out {
        let (image, oy, ox) = (pixel / (h_out * w_out), pixel / w_out % h_out, pixel % w_out);
        for c in 0..channels {
            let mut sum = bias[c];
            for tap in 0..kh * kw {
                let (y, x_at) = ((oy * stride + tap / kw).checked_sub(pad), (ox * stride + tap % kw).checked_sub(pad));
                if let (Some(iy), Some(ix)) = (y.filter(|&y| y < height), x_at.filter(|&x| x < width)) {
                    sum += w[c * kh * kw + tap] * x[((image * height + iy) * width + ix) * channels + c];
                }
            }
            out.push(sum);
        }
    }
    Ok(out)
}

/// `[x, w, bias, sequences, ranges]`: a centred kernel for every channel over the rows of a sequence. NaN for padding.
pub(super) fn depthwise_conv1d(cx: &Operands<'_>, args: &[TensorId]) -> Result<Vec<f64>> {
    let [n_tokens, width] = cx.dims(args[0])?;
    let [_, d_conv] = cx.dims(args[1])?;
    let (x, w, bias) = (cx.values(args[0])?, cx.values(args[1])?, cx.values(args[2])?);
    let mut out = vec![f64::NAN; n_tokens * width];
    for rows in cx.ranges(args[4], n_tokens)? {
        for t in rows.clone() {
            for c in 0..width {
                let inputs = (0..d_conv).filter_map(|j| Some((j, (t + j).checked_sub(d_conv / 2)?)));
                let taps = inputs.filter(|(_, i)| rows.contains(i));
                let products = taps.map(|(j, i)| w[c * d_conv + j] * x[i * width + c]);
                out[t * width + c] = bias[c] + products.sum::<f64>();
            }
        }
    }
    Ok(out)
}

/// `[x, ranges]`: zeros in the rows outside of every range; `unit` entries of the ranges make a row.
pub(super) fn mask_rows(cx: &Operands<'_>, args: &[TensorId], unit: usize) -> Result<Vec<f64>> {
    let mut out = cx.values(args[0])?.into_owned();
    let n_rows = cx.desc(args[0]).shape.dim(0);
    let ranges = cx.ranges(args[1], n_rows.saturating_mul(unit))?;
    let row_len = out.len() / n_rows;
    for (r, row) in out.chunks_exact_mut(row_len).enumerate() {
        if !ranges.iter().any(|range| (range.start / unit..range.end.div_ceil(unit)).contains(&r)) {
            row.fill(0.0);
        }
    }
    Ok(out)
}
