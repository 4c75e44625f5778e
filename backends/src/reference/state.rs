//! States of fixed extent: how sequences pass through them, and the recurrences that are nothing else.

use std::borrow::Cow;

use engine::op::ScanDecay;
use engine::tensor::TensorId;
use engine::{DType, Result};

use super::operands::{Operands, decode, encode, index};

/// Takes the sequences of `n_rows` rows through a state. `args` are `state, reads, slots, kept, ranges`; `step` is told the
/// number of a row and makes of the state before it the one behind it.
///
/// What goes from row to row is rounded to f32, so that it makes no difference where a sequence is cut into calls.
pub(super) fn pass(
    cx: &Operands<'_>,
    args: &[TensorId],
    n_rows: usize,
    mut step: impl FnMut(usize, &mut Vec<f64>),
) -> Result<()> {
    let extents = cx.desc(args[0]).shape.extents();
    let (n_slots, n) = (extents[0], extents[1..].iter().product());
    let row_bytes = DType::F32.row_bytes(n);
    let (reads, slots) = (cx.values(args[1])?, cx.indices(args[2], n_slots)?);
    let (kept, ranges) = (cx.indices(args[3], n_rows + 1)?, cx.ranges(args[4], n_rows)?);
    let mut memory = cx.state(args[0])?.lock();
    for (s, rows) in ranges.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        let mut state = vec![0.0; n];
        if reads[s] >= 0.0 {
            let row = index(reads[s], n_slots)?;
            state = decode(DType::F32, &memory[row * row_bytes..][..row_bytes], n)?;
        }
        let stored = rows.start + kept[s];
        for row in rows.start..=rows.end {
            if row == stored {
                encode(DType::F32, &state, &mut memory[slots[s] * row_bytes..][..row_bytes])?;
            }
            if row < rows.end {
                step(row, &mut state);
                state.iter_mut().for_each(|v| *v = f64::from(*v as f32));
            }
        }
    }
    Ok(())
}

/// Values as an op with a state takes them: in f32, as they are kept where they are pending, so that it makes no difference
/// whether they were.
pub(super) fn rounded<'a>(cx: &Operands<'a>, arg: TensorId) -> Result<Cow<'a, [f64]>> {
    let values = cx.values(arg)?;
    let is_rounded = values.iter().all(|&v| f64::from(v as f32).to_bits() == v.to_bits());
    Ok(if is_rounded { values } else { values.iter().map(|&v| f64::from(v as f32)).collect() })
}

/// `[x_0, .., x_(n-1), pending, slots, kept, ranges, joined]`. NaN for padding.
pub(super) fn join_pending(cx: &Operands<'_>, args: &[TensorId], n: usize, n_rows: usize) -> Result<Vec<Vec<f64>>> {
    let [n_tokens, _] = cx.dims(args[0])?;
    let [n_slots, n_pending, width] = cx.dims(args[n])?;
    let xs = args[..n].iter().map(|&x| rounded(cx, x)).collect::<Result<Vec<_>>>()?;
    let (slots, kept) = (cx.indices(args[n + 1], n_slots)?, cx.indices(args[n + 2], n_rows + 1)?);
    let (ranges, joined) = (cx.ranges(args[n + 3], n_tokens)?, cx.ranges(args[n + 4], n_rows)?);
    let mut outs: Vec<Vec<f64>> = xs.iter().map(|x| vec![f64::NAN; x.len() / n_tokens * n_rows]).collect();
    let row_bytes = DType::F32.row_bytes(width);
    let mut memory = cx.state(args[n])?.lock();
    for (s, (new, joined)) in ranges.into_iter().zip(joined).enumerate().filter(|(_, (new, _))| !new.is_empty()) {
        let row = |i: usize| (slots[s] * n_pending + i) * row_bytes..(slots[s] * n_pending + i + 1) * row_bytes;
        let n_folded = joined.len() - new.len();
        let new_row = |t: usize| -> Vec<f64> {
            xs.iter().flat_map(|x| x[t * x.len() / n_tokens..][..x.len() / n_tokens].iter().copied()).collect()
        };
        let mut rows = Vec::new();
        for i in 0..n_folded {
            rows.push(decode(DType::F32, &memory[row(index(i as f64, n_pending)?)], width)?);
        }
        rows.extend(new.clone().map(new_row));
        for (i, row_of_all) in rows.iter().enumerate() {
            let mut rest = &row_of_all[..];
            for out in &mut outs {
                let len = out.len() / n_rows;
                let (own, others) = rest.split_at(len);
                out[(joined.start + i) * len..][..len].copy_from_slice(own);
                rest = others;
            }
        }
        for (i, left) in rows[kept[s]..].iter().enumerate() {
            encode(DType::F32, left, &mut memory[row(index(i as f64, n_pending)?)])?;
        }
    }
    Ok(outs)
}

/// `[x, dt, b, c, dt_bias, a, d, state, reads, slots, kept, ranges]`, one token after the other. NaN for padding.
pub(super) fn ssm_scan(cx: &Operands<'_>, args: &[TensorId], decay: ScanDecay) -> Result<Vec<f64>> {
    let [n_tokens, n_head, head_dim] = cx.dims(args[0])?;
    let [_, n_group, d_state] = cx.dims(args[2])?;
    let (x, dt, b, c) = (cx.values(args[0])?, rounded(cx, args[1])?, rounded(cx, args[2])?, rounded(cx, args[3])?);
    let (dt_bias, a, d) = (cx.values(args[4])?, cx.values(args[5])?, cx.values(args[6])?);
    let n_steps = d.len();
    let mut y = vec![f64::NAN; x.len()];
    pass(cx, &args[7..], n_tokens, |t, state| {
        for h in 0..n_head {
            let group = (t * n_group + h * n_group / n_head) * d_state;
            for p in 0..head_dim {
                let channel = h * head_dim + p;
                let i = match decay {
                    ScanDecay::Channel => channel,
                    ScanDecay::Head => h,
                };
                let step = softplus(dt[t * n_steps + i] + dt_bias[i]);
                let at = t * n_head * head_dim + channel;
                y[at] = d[i] * x[at];
                for n in 0..d_state {
                    let a = match decay {
                        ScanDecay::Channel => a[i * d_state + n],
                        ScanDecay::Head => a[i],
                    };
                    let s = &mut state[(h * d_state + n) * head_dim + p];
                    *s = (step * a).exp() * *s + step * b[group + n] * x[at];
                    y[at] += c[group + n] * *s;
                }
            }
        }
    })?;
    Ok(y)
}

/// `ln(1 + e^v)`, which is `v` for large ones. Source: torch, `nn.functional.softplus`, whose threshold is 20.
pub(super) fn softplus(v: f64) -> f64 {
    if v > 20.0 { v } else { v.exp().ln_1p() }
}
