//! What every kernel means, in plain Rust; also the fallback for CPUs without a file of their own.
//!
//! Sums run in [`LANES`] partial sums, element i in sum i % LANES, joined by halving. The bodies are always inlined and
//! generic over `FMA` (see [`crate::math`]), so the files of instruction sets reuse those that the compiler vectorises.

use half::f16;

use super::attention::{Attention, KEY_BLOCK, KvRows};
use super::product::{Operand, PANEL_ROWS, Product};
use crate::activation::{BlockQ8, BlockQ8_K, quantize_q8, quantize_q8_k};
use crate::math::{self, fma};
use crate::quant;
use crate::quant::{
    BlockIQ4_NL, BlockQ2_K, BlockQ3_K, BlockQ4_0, BlockQ4_1, BlockQ4_K, BlockQ5_0, BlockQ5_1, BlockQ5_K, BlockQ6_K,
    BlockQ8_0, F16Bytes, Format, SMALL_BLOCK, SUPER_BLOCK, iq4_nl,
};

/// Partial sums of a reduction.
pub const LANES: usize = 16;

/// Joins partial sums: halves are added until one is left.
#[inline(always)]
pub fn sum_lanes(mut acc: [f32; LANES]) -> f32 {
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
pub fn dot_f32<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
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
pub fn dot_f16(a: &[f16], b: &[f32]) -> f32 {
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
pub fn axpy_f32<const FMA: bool>(y: &mut [f32], s: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = fma::<FMA>(s, *x, *y);
    }
}

/// `y += a b`, element by element.
#[inline(always)]
pub fn add_product<const FMA: bool>(y: &mut [f32], a: &[f32], b: &[f32]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = fma::<FMA>(*a, *b, *y);
    }
}

/// `y += s x` with `x` widened.
pub fn axpy_f16(y: &mut [f32], s: f32, x: &[f16]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = fma::<false>(s, x.to_f32(), *y);
    }
}

/// Widens a row.
pub fn f16_to_f32(x: &[f16], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = x.to_f32();
    }
}

/// Rounds a row to halves, ties to even.
pub fn f32_to_f16(x: &[f32], y: &mut [f16]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = f16::from_f32(*x);
    }
}

/// Decodes one row of weights.
pub fn decode_row(format: Format, bytes: &[u8], out: &mut [f32]) {
    format.decode_row(bytes, out);
}

/// Encodes one row of weights.
#[inline(always)]
pub fn encode_row(format: Format, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    macro_rules! by_block {
        ($($(#[$doc:meta])* $name:ident: $block:ident, id $id:literal, files [$($file:ident = $number:literal),*];)*) => {
            match format {
                $(Format::$name => quant::encode_row::<quant::$block>(x, importance, out),)*
            }
        };
    }
    quant::formats!(by_block)
}

/// The operand for a product of `m` rows of activations.
pub fn operand(format: Format, m: usize) -> Operand {
    /// Largest `m` for which a product reads rows of weights once and leaves them as they are.
    const SMALL_M: usize = 8;
    if m > SMALL_M { large_operand(format) } else { small_operand(format) }
}

/// The operand of the products that work on weights as they are stored.
pub fn small_operand(format: Format) -> Operand {
    match format {
        Format::F32 | Format::F16 | Format::BF16 => Operand::Rows,
        Format::Q8_0 | Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::IQ4_NL => Operand::Q8,
        Format::Q2_K | Format::Q3_K | Format::Q4_K | Format::Q5_K | Format::Q6_K => Operand::Q8K,
    }
}

/// The operand of the products that bring weights into another layout.
pub fn large_operand(format: Format) -> Operand {
    match format {
        Format::F32 | Format::F16 | Format::BF16 => Operand::Panels,
        Format::Q8_0
        | Format::Q4_0
        | Format::Q4_1
        | Format::Q5_0
        | Format::Q5_1
        | Format::IQ4_NL
        | Format::Q2_K
        | Format::Q3_K
        | Format::Q4_K
        | Format::Q5_K
        | Format::Q6_K => Operand::Q8,
    }
}

/// Makes one panel of an operand from up to `panel_rows` rows, `stride` apart.
#[inline(always)]
pub fn prepare(operand: Operand, x: &[f32], stride: usize, n_rows: usize, k: usize, out: &mut [f32]) {
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

/// `f32`s that [`product`] needs to work in: one decoded row.
pub fn product_scratch_len(_format: Format, _operand: Operand, _n_rows: usize, k: usize, _m: usize) -> usize {
    k
}

/// `out[i, j] = sum over k of w[j, k] x[i, k]`; `out` is `[m, n_rows]`.
///
/// `Rows`: in the order of [`dot_f32`]. `Panels`: one sum in ascending k. Quantized operands: blocks ascending.
pub fn product(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
    let row = &mut scratch[..p.k];
    for j in 0..p.n_rows {
        let w = p.row(j);
        let mut store = |i: usize, y: f32| out[i * p.n_rows + j] = y;
        match p.operand {
            Operand::Rows => {
                p.format.decode_row(w, row);
                (0..p.m).for_each(|i| store(i, dot_f32::<false>(row, p.panel(i))));
            }
            Operand::Q8 => (0..p.m).for_each(|i| store(i, dot_q8(p.format, w, bytemuck::cast_slice(p.panel(i))))),
            Operand::Q8K => (0..p.m).for_each(|i| store(i, dot_q8_k(p.format, w, bytemuck::cast_slice(p.panel(i))))),
            Operand::Panels => {
                p.format.decode_row(w, row);
                for i in (0..p.m).step_by(PANEL_ROWS) {
                    let mut acc = [0.0; PANEL_ROWS];
                    for (w, x) in row.iter().zip(p.panel(i / PANEL_ROWS).as_chunks::<PANEL_ROWS>().0) {
                        for (acc, x) in acc.iter_mut().zip(x) {
                            *acc = fma::<false>(*w, *x, *acc);
                        }
                    }
                    acc.iter().take(p.m - i).enumerate().for_each(|(r, y)| store(i + r, *y));
                }
            }
        }
    }
}

/// A row with quantized activations: `sum over blocks of w.d x.d (levels . x.q) + w.offset x.d sum(x.q)`.
fn dot_q8(format: Format, w: &[u8], x: &[BlockQ8]) -> f32 {
    if format.block_len() == SUPER_BLOCK {
        return dot_super_blocks_q8(format, w, x);
    }
    let mut acc = 0.0;
    for (g, x) in x.iter().enumerate() {
        let Group { levels, scale, offset } = group(format, w, g);
        let dot: i32 = levels.iter().zip(x.q).map(|(w, x)| i32::from(*w) * i32::from(x)).sum();
        acc += scale * x.d * dot as f32;
        acc += offset * (x.d * -x.neg_sum as f32);
    }
    acc
}

/// 32 weights, `scale * level + offset`.
struct Group {
    levels: [i8; SMALL_BLOCK],
    scale: f32,
    offset: f32,
}

/// Weights `32 g .. 32 g + 32` of a row of 32-blocks.
fn group(format: Format, w: &[u8], g: usize) -> Group {
    /// Block `i` of a row.
    fn block<B: bytemuck::Pod>(w: &[u8], i: usize) -> B {
        bytemuck::pod_read_unaligned(&w[i * size_of::<B>()..][..size_of::<B>()])
    }
    let nibble = |qs: &[u8; SMALL_BLOCK / 2], e: usize| (if e < 16 { qs[e % 16] & 15 } else { qs[e % 16] >> 4 }) as i8;
    match format {
        Format::Q8_0 => {
            let b: BlockQ8_0 = block(w, g);
            Group { levels: b.q, scale: b.d.to_f32(), offset: 0.0 }
        }
        Format::Q4_0 => {
            let b: BlockQ4_0 = block(w, g);
            Group { levels: std::array::from_fn(|e| nibble(&b.qs, e) - 8), scale: b.d.to_f32(), offset: 0.0 }
        }
        Format::Q4_1 => {
            let b: BlockQ4_1 = block(w, g);
            Group { levels: std::array::from_fn(|e| nibble(&b.qs, e)), scale: b.d.to_f32(), offset: b.m.to_f32() }
        }
        Format::Q5_0 => {
            let b: BlockQ5_0 = block(w, g);
            Group { levels: b.levels().map(|level| level as i8 - 16), scale: b.d.to_f32(), offset: 0.0 }
        }
        Format::Q5_1 => {
            let b: BlockQ5_1 = block(w, g);
            Group { levels: b.levels().map(|level| level as i8), scale: b.d.to_f32(), offset: b.m.to_f32() }
        }
        Format::IQ4_NL => {
            let b: BlockIQ4_NL = block(w, g);
            let levels = std::array::from_fn(|e| iq4_nl::VALUES[nibble(&b.qs, e) as usize]);
            Group { levels, scale: b.d.to_f32(), offset: 0.0 }
        }
        Format::F32
        | Format::F16
        | Format::BF16
        | Format::Q2_K
        | Format::Q3_K
        | Format::Q4_K
        | Format::Q5_K
        | Format::Q6_K => unreachable!("not in 32-blocks: {format:?}"),
    }
}

/// A block of 256 weights: `d scale level - dmin min`.
struct SuperBlock {
    d: f32,
    dmin: f32,
    sixteens: [Sixteen; SUPER_BLOCK / 16],
}

/// Levels, scale and minimum of 16 weights of a 256-block.
struct Sixteen {
    levels: [i8; 16],
    scale: i8,
    min: u8,
}

impl Sixteen {
    /// `levels . q`.
    fn dot(&self, q: &[i8; 16]) -> i32 {
        self.levels.iter().zip(q).map(|(w, x)| i32::from(*w) * i32::from(*x)).sum()
    }
}

/// The 256-block in these bytes.
fn super_block(format: Format, bytes: &[u8]) -> SuperBlock {
    // Where element 16 j begins in bytes that hold 32 levels of 2 bits on top of each other.
    let place = |j: usize| (32 * (j / 8) + 16 * (j % 2), 2 * (j % 8 / 2));
    let block = |d: F16Bytes, dmin: F16Bytes, sixteen: &dyn Fn(usize) -> Sixteen| SuperBlock {
        d: d.to_f32(),
        dmin: dmin.to_f32(),
        sixteens: std::array::from_fn(sixteen),
    };
    match format {
        Format::Q2_K => {
            let w: BlockQ2_K = bytemuck::pod_read_unaligned(bytes);
            block(w.d, w.dmin, &|j| {
                let (at, shift) = place(j);
                let levels = std::array::from_fn(|e| (w.qs[at + e] >> shift & 3) as i8);
                Sixteen { levels, scale: (w.scales[j] & 15) as i8, min: w.scales[j] >> 4 }
            })
        }
        Format::Q3_K => {
            let w: BlockQ3_K = bytemuck::pod_read_unaligned(bytes);
            block(w.d, F16Bytes::default(), &|j| {
                let (at, shift) = place(j);
                let third = |e: usize| w.hmask[16 * (j % 2) + e] >> (j / 2) & 1;
                let levels = std::array::from_fn(|e| (w.qs[at + e] >> shift & 3 | third(e) << 2) as i8 - 4);
                Sixteen { levels, scale: w.scale(j), min: 0 }
            })
        }
        Format::Q4_K => {
            let w: BlockQ4_K = bytemuck::pod_read_unaligned(bytes);
            block(w.d, w.dmin, &|j| {
                let (scale, min) = w.scale_min(j / 2);
                let low = |e: usize| w.qs[32 * (j / 4) + 16 * (j % 2) + e] >> (4 * (j / 2 % 2)) & 15;
                Sixteen { levels: std::array::from_fn(|e| low(e) as i8), scale: scale as i8, min }
            })
        }
        Format::Q5_K => {
            let w: BlockQ5_K = bytemuck::pod_read_unaligned(bytes);
            block(w.d, w.dmin, &|j| {
                let (scale, min) = w.scale_min(j / 2);
                let low = |e: usize| w.qs[32 * (j / 4) + 16 * (j % 2) + e] >> (4 * (j / 2 % 2)) & 15;
                let fifth = |e: usize| w.qh[16 * (j % 2) + e] >> (j / 2) & 1;
                let levels = std::array::from_fn(|e| (low(e) | fifth(e) << 4) as i8);
                Sixteen { levels, scale: scale as i8, min }
            })
        }
        Format::Q6_K => {
            let w: BlockQ6_K = bytemuck::pod_read_unaligned(bytes);
            block(w.d, F16Bytes::default(), &|j| {
                let (h, k, l) = (j / 8, j % 8 / 2, 16 * (j % 2));
                let low = |e: usize| w.ql[64 * h + 32 * (k % 2) + l + e] >> (4 * (k / 2)) & 15;
                let high = |e: usize| w.qh[32 * h + l + e] >> (2 * k) & 3;
                let levels = std::array::from_fn(|e| (low(e) | high(e) << 4) as i8 - 32);
                Sixteen { levels, scale: w.scales[j], min: 0 }
            })
        }
        Format::F32
        | Format::F16
        | Format::BF16
        | Format::Q8_0
        | Format::Q4_0
        | Format::Q4_1
        | Format::Q5_0
        | Format::Q5_1
        | Format::IQ4_NL => unreachable!("not in 256-blocks: {format:?}"),
    }
}

/// A row of 256-blocks with quantized activations: `sum over sixteens of x.d (w.d scale (level . x.q) - w.dmin min sum(x.q))`.
fn dot_super_blocks_q8(format: Format, w: &[u8], x: &[BlockQ8]) -> f32 {
    let mut acc = 0.0;
    for (w, x) in w.chunks_exact(format.block_bytes()).zip(x.as_chunks::<{ SUPER_BLOCK / SMALL_BLOCK }>().0) {
        let SuperBlock { d, dmin, sixteens } = super_block(format, w);
        for (j, sixteen) in sixteens.iter().enumerate() {
            let (x, h) = (&x[j / 2], j % 2);
            acc += d * f32::from(sixteen.scale) * x.d * sixteen.dot(&x.q.as_chunks().0[h]) as f32;
            acc += dmin * f32::from(sixteen.min) * (x.d * f32::from(x.neg_sums[h]));
        }
    }
    acc
}

/// A row of 256-blocks with quantized activations:
/// `sum over blocks of x.d (w.d sum over j of scale (level . x.q) - w.dmin sum over j of min sum(x.q))`, where the sums over j
/// are integers.
fn dot_q8_k(format: Format, w: &[u8], x: &[BlockQ8_K]) -> f32 {
    let mut acc = 0.0;
    for (w, x) in w.chunks_exact(format.block_bytes()).zip(x) {
        let SuperBlock { d, dmin, sixteens } = super_block(format, w);
        let (mut sum, mut offset) = (0, 0);
        for ((sixteen, q), q_sum) in sixteens.iter().zip(x.q.as_chunks().0).zip(x.sums) {
            sum += i32::from(sixteen.scale) * sixteen.dot(q);
            offset += i32::from(sixteen.min) * i32::from(q_sum);
        }
        acc += x.d * (d * sum as f32 - dmin * offset as f32);
    }
    acc
}

/// `out[i] = sum over keys j in the range of softmax_j(scale q_i . k_j) v_j`; zeros for an empty range.
///
/// Keys are taken in blocks of [`KEY_BLOCK`] with a running maximum; inside a block values are added in ascending order.
/// Source of the method: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax".
pub fn attention(a: &Attention<'_>, out: &mut [f32], scratch: &mut [f32]) {
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
pub fn max_of(x: &[f32]) -> f32 {
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
pub fn exp_sum<const FMA: bool>(x: &mut [f32], max: f32) -> f32 {
    for x in x.iter_mut() {
        *x = math::exp::<FMA>(*x - max);
    }
    sum_by(x, |acc, x| acc + x)
}

/// `y = y / sqrt(mean(y^2) + eps) * w`.
#[inline(always)]
pub fn rms_norm<const FMA: bool>(y: &mut [f32], w: &[f32], eps: f32) {
    let mean = sum_by(y, |acc, x| fma::<FMA>(x, x, acc)) / y.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for (y, w) in y.iter_mut().zip(w) {
        *y = *y * scale * w;
    }
}

/// `y = (y - mean) / sqrt(variance + eps) * w + b`; the variance is that of the whole population, from a second pass.
#[inline(always)]
pub fn layer_norm<const FMA: bool>(y: &mut [f32], w: &[f32], b: &[f32], eps: f32) {
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
pub fn add(y: &mut [f32], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

/// `y *= x`.
#[inline(always)]
pub fn mul(y: &mut [f32], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y *= x;
    }
}

/// `y *= s`.
#[inline(always)]
pub fn scale(y: &mut [f32], s: f32) {
    for y in y {
        *y *= s;
    }
}

/// `y = silu(y)`; see [`math::silu`].
#[inline(always)]
pub fn silu<const FMA: bool>(y: &mut [f32]) {
    for y in y {
        *y = math::silu::<FMA>(*y);
    }
}

/// `y = sigmoid(y)`; see [`math::sigmoid`].
#[inline(always)]
pub fn sigmoid<const FMA: bool>(y: &mut [f32]) {
    for y in y {
        *y = math::sigmoid::<FMA>(*y);
    }
}

/// `y = gelu(y)`, the exact form; see [`math::gelu`].
#[inline(always)]
pub fn gelu<const FMA: bool>(y: &mut [f32]) {
    for y in y {
        *y = math::gelu::<FMA>(*y);
    }
}

/// `y = gelu(y)`, the tanh form; see [`math::gelu_tanh`].
#[inline(always)]
pub fn gelu_tanh<const FMA: bool>(y: &mut [f32]) {
    for y in y {
        *y = math::gelu_tanh::<FMA>(*y);
    }
}

/// `y = max(y, 0)`; NaN stays.
#[inline(always)]
pub fn relu(y: &mut [f32]) {
    for y in y {
        *y = if *y < 0.0 { 0.0 } else { *y };
    }
}

/// `gate = silu(gate) up`.
#[inline(always)]
pub fn silu_mul<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = math::silu::<FMA>(*gate) * up;
    }
}

/// Rotates the pairs `(x[i], x[i + n])`, n = `cos.len()`, by the angle of index i.
#[inline(always)]
pub fn rope_half(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, rest) = x.split_at_mut(cos.len());
    for (((a, b), c), s) in first.iter_mut().zip(rest).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}

/// Rotates the pairs `(x[2 i], x[2 i + 1])` by the angle of index i.
#[inline(always)]
pub fn rope_interleaved(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for (([a, b], c), s) in x.as_chunks_mut().0.iter_mut().zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}
