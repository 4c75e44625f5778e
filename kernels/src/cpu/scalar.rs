//! What every kernel means, in plain Rust; also the fallback for CPUs without a file of their own.
//!
//! Sums run in [`LANES`] partial sums, element i in sum i % LANES, joined by halving. The bodies are always inlined and
//! generic over `FMA` (see [`crate::math`]), so the files of instruction sets reuse those that the compiler vectorises.

use half::f16;

use super::attention::{Attention, KEY_BLOCK, KvRows};
use super::formats::{FormatKernels, Formats, ProductKernel, of_every_format};
use super::integers;
use super::product::{Operand, PANEL_ROWS, Product};
use crate::activation::{quantize_q8, quantize_q8_k};
use crate::math::{self, fma};
use crate::quant::{self, Arithmetic, Block};

/// Partial sums of a reduction.
pub(super) const LANES: usize = 16;

/// Joins partial sums: halves are added until one is left.
#[inline(always)]
pub(super) fn sum_lanes(mut acc: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            acc[i] += acc[i + width];
        }
        width /= 2;
    }
    acc[0]
}

/// `sum f(x_i)` in the order of this file.
#[inline(always)]
fn sum_by(x: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut acc = [0.0; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for x in chunks {
        for (acc, x) in acc.iter_mut().zip(x) {
            *acc = f(*acc, *x);
        }
    }
    for (acc, x) in acc.iter_mut().zip(tail) {
        *acc = f(*acc, *x);
    }
    sum_lanes(acc)
}

/// `sum a_i b_i`.
#[inline(always)]
pub(super) fn dot_f32<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [0.0; LANES];
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((acc, a), b) in acc.iter_mut().zip(a).zip(b) {
            *acc = fma::<FMA>(*a, *b, *acc);
        }
    }
    for ((acc, a), b) in acc.iter_mut().zip(a_tail).zip(b_tail) {
        *acc = fma::<FMA>(*a, *b, *acc);
    }
    sum_lanes(acc)
}

/// `sum a_i b_i` with `a` widened.
pub(super) fn dot_f16(a: &[f16], b: &[f32]) -> f32 {
    let mut acc = [0.0; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((acc, a), b) in acc.iter_mut().zip(a).zip(b) {
            *acc = fma::<false>(a.to_f32(), *b, *acc);
        }
    }
    sum_lanes(acc)
}

/// `y += s x`.
#[inline(always)]
pub(super) fn axpy_f32<const FMA: bool>(y: &mut [f32], s: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = fma::<FMA>(s, *x, *y);
    }
}

/// `y += a b`, element by element.
#[inline(always)]
pub(super) fn add_product<const FMA: bool>(y: &mut [f32], a: &[f32], b: &[f32]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = fma::<FMA>(*a, *b, *y);
    }
}

/// `y += s x` with `x` widened.
pub(super) fn axpy_f16(y: &mut [f32], s: f32, x: &[f16]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = fma::<false>(s, x.to_f32(), *y);
    }
}

/// Widens a row.
pub(super) fn f16_to_f32(x: &[f16], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = x.to_f32();
    }
}

/// Rounds a row to halves, ties to even.
pub(super) fn f32_to_f16(x: &[f32], y: &mut [f16]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = f16::from_f32(*x);
    }
}

/// Makes one panel of an operand from up to `panel_rows` rows, `stride` apart.
#[inline(always)]
pub(super) fn prepare(operand: Operand, x: &[f32], stride: usize, n_rows: usize, k: usize, out: &mut [f32]) {
    match operand {
        Operand::Rows => out.copy_from_slice(&x[..k]),
        Operand::Q8 => quantize_q8(x[..k].as_chunks().0, bytemuck::cast_slice_mut(out)),
        Operand::Q8K => quantize_q8_k(x[..k].as_chunks().0, bytemuck::cast_slice_mut(out)),
        Operand::Panels => {
            out.fill(0.0);
            for i in 0..n_rows {
                for (column, x) in out.as_chunks_mut::<PANEL_ROWS>().0.iter_mut().zip(&x[i * stride..][..k]) {
                    column[i] = *x;
                }
            }
        }
    }
}

/// The kernels of every format in plain Rust.
pub(super) static FORMATS: Formats = quant::formats!(of_every_format);

const fn of_plain_code<B: Block>() -> FormatKernels {
    const ROW: fn(usize, usize, usize) -> usize = |_, k, _| k;
    const NOTHING: fn(usize, usize, usize) -> usize = |_, _, _| 0;
    let (q8, q8_k): (Option<ProductKernel>, Option<ProductKernel>) = match B::INTEGERS.arithmetic() {
        Arithmetic::Float => (None, None),
        Arithmetic::Small => {
            (Some(ProductKernel { scratch_len: NOTHING, run: |p, out, _| integers::groups_q8::<B>(p, out) }), None)
        }
        Arithmetic::Super => (
            Some(ProductKernel { scratch_len: NOTHING, run: |p, out, _| integers::super_blocks_q8::<B>(p, out) }),
            Some(ProductKernel { scratch_len: NOTHING, run: |p, out, _| integers::super_blocks_q8_k::<B>(p, out) }),
        ),
    };
    FormatKernels {
        decode_row: quant::decode_row::<B>,
        encode_row: quant::encode_row::<B>,
        rows: ProductKernel { scratch_len: ROW, run: product_rows::<B> },
        panels: ProductKernel { scratch_len: ROW, run: product_panels::<B> },
        q8,
        q8_k,
    }
}

/// `out[i, j] = sum over k of w[j, k] x[i, k]` with rows of f32, in the order of [`dot_f32`].
fn product_rows<B: Block>(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
    let row = &mut scratch[..p.k];
    for j in 0..p.n_rows {
        quant::decode_row::<B>(p.row(j), row);
        for i in 0..p.m {
            out[i * p.n_rows + j] = dot_f32::<false>(row, p.panel(i));
        }
    }
}

/// The same with panels: one sum in ascending k.
fn product_panels<B: Block>(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
    let row = &mut scratch[..p.k];
    for j in 0..p.n_rows {
        quant::decode_row::<B>(p.row(j), row);
        for i in (0..p.m).step_by(PANEL_ROWS) {
            let mut acc = [0.0; PANEL_ROWS];
            for (w, x) in row.iter().zip(p.panel(i / PANEL_ROWS).as_chunks::<PANEL_ROWS>().0) {
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = fma::<false>(*w, *x, *acc);
                }
            }
            for (r, y) in acc.iter().take(p.m - i).enumerate() {
                out[(i + r) * p.n_rows + j] = *y;
            }
        }
    }
}

/// `out[i] = sum over keys j in the range of softmax_j(scale q_i . k_j) v_j`; zeros for an empty range.
///
/// Keys are taken in blocks of [`KEY_BLOCK`] with a running maximum; inside a block values are added in ascending order.
/// Source of the method: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax".
pub(super) fn attention(a: &Attention<'_>, out: &mut [f32], scratch: &mut [f32]) {
    for (i, ([start, end], out)) in a.ranges.iter().zip(out.chunks_exact_mut(a.head_dim)).enumerate() {
        let head = i / (a.ranges.len() / a.n_head) * a.head_dim;
        let q = &a.q[i * a.q_stride..][..a.head_dim];
        let (start, end) = (*start as usize, *end as usize);
        let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
        out.fill(0.0);
        if start >= end {
            continue;
        }
        for block in (start / KEY_BLOCK..end.div_ceil(KEY_BLOCK)).map(|b| b * KEY_BLOCK) {
            let keys = start.max(block)..end.min(block + KEY_BLOCK);
            let scores = &mut scratch[..keys.len()];
            for (s, j) in scores.iter_mut().zip(keys.clone()) {
                *s = a.scale
                    * match a.k {
                        KvRows::F32 { x, stride } => dot_f32::<false>(q, &x[j * stride + head..][..a.head_dim]),
                        KvRows::F16 { x, stride } => dot_f16(&x[j * stride + head..][..a.head_dim], q),
                    };
            }
            let new_max = max_of(scores).max(max);
            let shrink = math::exp::<false>(max - new_max);
            max = new_max;
            sum = sum * shrink + exp_sum::<false>(scores, max);
            out.iter_mut().for_each(|y| *y *= shrink);
            for (p, j) in scores.iter().zip(keys) {
                match a.v {
                    KvRows::F32 { x, stride } => axpy_f32::<false>(out, *p, &x[j * stride + head..][..a.head_dim]),
                    KvRows::F16 { x, stride } => axpy_f16(out, *p, &x[j * stride + head..][..a.head_dim]),
                }
            }
        }
        out.iter_mut().for_each(|y| *y /= sum);
    }
}

/// The largest element, NaN ignored; minus infinity of nothing.
#[inline(always)]
pub(super) fn max_of(x: &[f32]) -> f32 {
    let mut acc = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for x in chunks {
        for (acc, x) in acc.iter_mut().zip(x) {
            *acc = if *x > *acc { *x } else { *acc };
        }
    }
    for (acc, x) in acc.iter_mut().zip(tail) {
        *acc = if *x > *acc { *x } else { *acc };
    }
    acc.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
}

/// `x_i = e^(x_i - max)`; returns their sum.
#[inline(always)]
pub(super) fn exp_sum<const FMA: bool>(x: &mut [f32], max: f32) -> f32 {
    for x in x.iter_mut() {
        *x = math::exp::<FMA>(*x - max);
    }
    sum_by(x, |acc, x| acc + x)
}

/// `y = y / sqrt(mean(y^2) + eps) * w`.
#[inline(always)]
pub(super) fn rms_norm<const FMA: bool>(y: &mut [f32], w: &[f32], eps: f32) {
    let mean = sum_by(y, |acc, x| fma::<FMA>(x, x, acc)) / y.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for (y, w) in y.iter_mut().zip(w) {
        *y = *y * scale * w;
    }
}

/// `y = (y - mean) / sqrt(variance + eps) * w + b`; the variance is that of the whole population, from a second pass.
#[inline(always)]
pub(super) fn layer_norm<const FMA: bool>(y: &mut [f32], w: &[f32], b: &[f32], eps: f32) {
    let n = y.len() as f32;
    let mean = sum_by(y, |acc, x| acc + x) / n;
    let variance = sum_by(y, |acc, x| fma::<FMA>(x - mean, x - mean, acc)) / n;
    let scale = 1.0 / (variance + eps).sqrt();
    for ((y, w), b) in y.iter_mut().zip(w).zip(b) {
        *y = fma::<FMA>((*y - mean) * scale, *w, *b);
    }
}

/// `y += x`.
#[inline(always)]
pub(super) fn add(y: &mut [f32], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

/// `y *= x`.
#[inline(always)]
pub(super) fn mul(y: &mut [f32], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y *= x;
    }
}

/// `y *= s`.
#[inline(always)]
pub(super) fn scale(y: &mut [f32], s: f32) {
    for y in y {
        *y *= s;
    }
}

/// `y = silu(y)`; see [`math::silu`].
#[inline(always)]
pub(super) fn silu<const FMA: bool>(y: &mut [f32]) {
    for y in y {
        *y = math::silu::<FMA>(*y);
    }
}

/// `y = sigmoid(y)`; see [`math::sigmoid`].
#[inline(always)]
pub(super) fn sigmoid<const FMA: bool>(y: &mut [f32]) {
    for y in y {
        *y = math::sigmoid::<FMA>(*y);
    }
}

/// `y = gelu(y)`, the exact form; see [`math::gelu`].
#[inline(always)]
pub(super) fn gelu<const FMA: bool>(y: &mut [f32]) {
    for y in y {
        *y = math::gelu::<FMA>(*y);
    }
}

/// `y = gelu(y)`, the tanh form; see [`math::gelu_tanh`].
#[inline(always)]
pub(super) fn gelu_tanh<const FMA: bool>(y: &mut [f32]) {
    for y in y {
        *y = math::gelu_tanh::<FMA>(*y);
    }
}

/// `y = max(y, 0)`; NaN stays.
#[inline(always)]
pub(super) fn relu(y: &mut [f32]) {
    for y in y {
        *y = if *y < 0.0 { 0.0 } else { *y };
    }
}

/// `y = softplus(y)`; see [`math::softplus`].
#[inline(always)]
pub(super) fn softplus<const FMA: bool>(y: &mut [f32]) {
    for y in y {
        *y = math::softplus::<FMA>(*y);
    }
}

/// `gate = silu(gate) up`.
#[inline(always)]
pub(super) fn silu_mul<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = math::silu::<FMA>(*gate) * up;
    }
}

/// Columns whose sums [`two_products`] keeps in registers.
const COLUMNS: usize = 2 * LANES;

/// `ya = a . s` and `yb = b . s` for a matrix `s [a.len(), ya.len()]`, in one walk through it: each sum in ascending rows.
#[inline(always)]
pub(super) fn two_products<const FMA: bool>(s: &[f32], a: &[f32], b: &[f32], ya: &mut [f32], yb: &mut [f32]) {
    let n = ya.len();
    let whole = n / COLUMNS * COLUMNS;
    for first in (0..whole).step_by(COLUMNS) {
        let (mut sum_a, mut sum_b) = ([0.0; COLUMNS], [0.0; COLUMNS]);
        for ((row, a), b) in s.chunks_exact(n).zip(a).zip(b) {
            let row = &row[first..first + COLUMNS];
            for ((sum_a, sum_b), s) in sum_a.iter_mut().zip(&mut sum_b).zip(row) {
                *sum_a = fma::<FMA>(*a, *s, *sum_a);
                *sum_b = fma::<FMA>(*b, *s, *sum_b);
            }
        }
        ya[first..first + COLUMNS].copy_from_slice(&sum_a);
        yb[first..first + COLUMNS].copy_from_slice(&sum_b);
    }
    let (ya, yb) = (&mut ya[whole..], &mut yb[whole..]);
    ya.fill(0.0);
    yb.fill(0.0);
    for ((row, a), b) in s.chunks_exact(n).zip(a).zip(b) {
        axpy_f32::<FMA>(ya, *a, &row[whole..]);
        axpy_f32::<FMA>(yb, *b, &row[whole..]);
    }
}

/// `s = diag(w) s + a y^T` for a matrix `s [a.len(), y.len()]`.
#[inline(always)]
pub(super) fn decay_add_outer<const FMA: bool>(s: &mut [f32], w: &[f32], a: &[f32], y: &[f32]) {
    for ((row, w), a) in s.chunks_exact_mut(y.len()).zip(w).zip(a) {
        for (s, y) in row.iter_mut().zip(y) {
            *s = fma::<FMA>(*a, *y, *w * *s);
        }
    }
}

/// Rotates the pairs `(x[i], x[i + n])`, n = `cos.len()`, by the angle of index i.
#[inline(always)]
pub(super) fn rope_half(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, rest) = x.split_at_mut(cos.len());
    for (((a, b), c), s) in first.iter_mut().zip(rest).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}

/// Rotates the pairs `(x[2 i], x[2 i + 1])` by the angle of index i.
#[inline(always)]
pub(super) fn rope_interleaved(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for (([a, b], c), s) in x.as_chunks_mut().0.iter_mut().zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}
