//! Convolutions.

use std::borrow::Cow;

use engine::tensor::TensorId;
use engine::{DType, Result};

use super::linear::product;
use super::operands::{Operands, Rows, decode, encode};

/// `[x, w, state, slots, positions, lengths]`: `y[t] = sum_j w[:, j] * x[t - (d_conv - 1) + j]` over the slot's past.
/// NaN for padding.
pub fn causal_conv1d(cx: &Operands<'_>, args: &[TensorId]) -> Result<Vec<f64>> {
    let [n_seqs, n_tokens, width] = cx.dims(args[0])?;
    let [n_slots, history, _] = cx.dims(args[2])?;
    let (x, w) = (cx.values(args[0])?, cx.values(args[1])?);
    let slots = cx.indices(args[3], n_slots)?;
    let positions = cx.values(args[4])?;
    let lengths = cx.lengths(args[5], n_tokens)?;
    let d_conv = history + 1;
    let slot_bytes = DType::F32.row_bytes(history * width);
    let mut state = cx.state(args[2])?.lock();
    let mut out = vec![f64::NAN; n_seqs * n_tokens * width];
    for s in (0..n_seqs).filter(|&s| lengths[s] > 0) {
        let state = &mut state[slots[s] * slot_bytes..][..slot_bytes];
        // [history + length, width]
        let mut inputs = if positions[s * n_tokens] == 0.0 {
            vec![0.0; history * width]
        } else {
            decode(DType::F32, state, history * width)?
        };
        inputs.extend_from_slice(&x[s * n_tokens * width..][..lengths[s] * width]);
        for t in 0..lengths[s] {
            for c in 0..width {
                let taps = (0..d_conv).map(|j| w[c * d_conv + j] * inputs[(t + j) * width + c]);
                out[(s * n_tokens + t) * width + c] = taps.sum();
            }
        }
        encode(DType::F32, &inputs[lengths[s] * width..], state)?;
    }
    Ok(out)
}

/// `[x, w, bias]`: cross-correlation with a border of zeros; a product of patches with rearranged weights.
pub fn conv2d(cx: &Operands<'_>, args: &[TensorId], stride: usize, pad: usize) -> Result<Vec<f64>> {
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
