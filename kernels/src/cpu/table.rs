//! One table of function pointers per instruction set, and [`Kernels`], the handle to call them through.

#![allow(unsafe_code, reason = "the one place where kernels of an instruction set are called")]

use half::f16;

use super::attention::{self, Attention};
use super::formats::{FormatKernels, Formats};
use super::isa::{Isa, UnknownIsa};
use super::product::{Operand, Product};
use super::scalar;
use super::scan::{self, ChannelDecay, HeadToken, ScanToken};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::quant::Format;

/// See [`Kernels::two_products`].
type TwoProducts = unsafe fn(&[f32], &[f32], &[f32], &mut [f32], &mut [f32]);
/// See [`Kernels::decay_add_outer`].
type DecayAddOuter = unsafe fn(&mut [f32], &[f32], &[f32], &[f32]);

/// The kernels of one instruction set. Calling an entry is sound on a CPU that has `isa`.
#[derive(Clone, Copy)]
pub(super) struct Table {
    pub isa: Isa,
    pub formats: &'static Formats,
    pub prepare: unsafe fn(Operand, &[f32], usize, usize, usize, &mut [f32]),
    pub attention: unsafe fn(&Attention<'_>, &mut [f32], &mut [f32]),
    pub dot_f32: unsafe fn(&[f32], &[f32]) -> f32,
    pub dot_f16: unsafe fn(&[f16], &[f32]) -> f32,
    pub axpy_f32: unsafe fn(&mut [f32], f32, &[f32]),
    pub add_product: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub axpy_f16: unsafe fn(&mut [f32], f32, &[f16]),
    pub f16_to_f32: unsafe fn(&[f16], &mut [f32]),
    pub f32_to_f16: unsafe fn(&[f32], &mut [f16]),
    pub max_of: unsafe fn(&[f32]) -> f32,
    pub exp_sum: unsafe fn(&mut [f32], f32) -> f32,
    pub rms_norm: unsafe fn(&mut [f32], &[f32], f32),
    pub layer_norm: unsafe fn(&mut [f32], &[f32], &[f32], f32),
    pub add: unsafe fn(&mut [f32], &[f32]),
    pub mul: unsafe fn(&mut [f32], &[f32]),
    pub scale: unsafe fn(&mut [f32], f32),
    pub silu: unsafe fn(&mut [f32]),
    pub sigmoid: unsafe fn(&mut [f32]),
    pub softplus: unsafe fn(&mut [f32]),
    pub gelu: unsafe fn(&mut [f32]),
    pub gelu_tanh: unsafe fn(&mut [f32]),
    pub relu: unsafe fn(&mut [f32]),
    pub silu_mul: unsafe fn(&mut [f32], &[f32]),
    pub scan_head: unsafe fn(&mut [f32], &mut [HeadToken<'_>]),
    pub scan_channels: unsafe fn(&mut [f32], &ChannelDecay<'_>, &ScanToken<'_>, &mut [f32]),
    pub two_products: TwoProducts,
    pub decay_add_outer: DecayAddOuter,
    pub rope_half: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub rope_interleaved: unsafe fn(&mut [f32], &[f32], &[f32]),
}

/// Every kernel in plain Rust.
static SCALAR: Table = Table {
    isa: Isa::Scalar,
    formats: &scalar::FORMATS,
    prepare: scalar::prepare,
    attention: scalar::attention,
    dot_f32: scalar::dot_f32::<false>,
    dot_f16: scalar::dot_f16,
    axpy_f32: scalar::axpy_f32::<false>,
    add_product: scalar::add_product::<false>,
    axpy_f16: scalar::axpy_f16,
    f16_to_f32: scalar::f16_to_f32,
    f32_to_f16: scalar::f32_to_f16,
    max_of: scalar::max_of,
    exp_sum: scalar::exp_sum::<false>,
    rms_norm: scalar::rms_norm::<false>,
    layer_norm: scalar::layer_norm::<false>,
    add: scalar::add,
    mul: scalar::mul,
    scale: scalar::scale,
    silu: scalar::silu::<false>,
    sigmoid: scalar::sigmoid::<false>,
    softplus: scalar::softplus::<false>,
    gelu: scalar::gelu::<false>,
    gelu_tanh: scalar::gelu_tanh::<false>,
    relu: scalar::relu,
    silu_mul: scalar::silu_mul::<false>,
    scan_head: scan::scan_head::<false>,
    scan_channels: scan::scan_channels::<false>,
    two_products: scalar::two_products::<false>,
    decay_add_outer: scalar::decay_add_outer::<false>,
    rope_half: scalar::rope_half,
    rope_interleaved: scalar::rope_interleaved,
};

/// The kernels of an instruction set whose module has them all.
#[cfg(target_arch = "x86_64")]
macro_rules! table_of {
    ($isa:expr, $module:ident) => {
        Table {
            isa: $isa,
            formats: &$module::FORMATS,
            prepare: $module::prepare,
            attention: $module::attention,
            dot_f32: $module::dot_f32,
            dot_f16: $module::dot_f16,
            axpy_f32: $module::axpy_f32,
            add_product: $module::add_product,
            axpy_f16: $module::axpy_f16,
            f16_to_f32: $module::f16_to_f32,
            f32_to_f16: $module::f32_to_f16,
            max_of: $module::max_of,
            exp_sum: $module::exp_sum,
            rms_norm: $module::rms_norm,
            layer_norm: $module::layer_norm,
            add: $module::add,
            mul: $module::mul,
            scale: $module::scale,
            silu: $module::silu,
            sigmoid: $module::sigmoid,
            softplus: $module::softplus,
            gelu: $module::gelu,
            gelu_tanh: $module::gelu_tanh,
            relu: $module::relu,
            silu_mul: $module::silu_mul,
            scan_head: $module::scan_head,
            scan_channels: $module::scan_channels,
            two_products: $module::two_products,
            decay_add_outer: $module::decay_add_outer,
            rope_half: $module::rope_half,
            rope_interleaved: $module::rope_interleaved,
        }
    };
}

/// AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
static AVX2: Table = table_of!(Isa::Avx2, avx2);

/// AVX-512 F, BW, VL, DQ and VNNI.
#[cfg(target_arch = "x86_64")]
static AVX512: Table = table_of!(Isa::Avx512, avx512);

/// Kernels of one instruction set that this CPU has.
///
/// Lengths that do not fit together panic. A kernel with one `&mut` row works in place.
#[derive(Clone, Copy)]
pub struct Kernels(&'static Table);

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels({})", self.isa())
    }
}

impl Kernels {
    /// The best kernels of this CPU, or those that `TYMPAN_ISA` caps it to.
    ///
    /// Errors: the variable names no instruction set.
    pub fn detect() -> Result<Self, UnknownIsa> {
        Isa::detect().map(Self::new)
    }

    /// Every set of kernels that this CPU can run, scalar first.
    pub fn available() -> impl Iterator<Item = Self> {
        Isa::ALL.into_iter().filter(|isa| isa.is_supported()).map(Self::new)
    }

    /// `isa` is one that this CPU has.
    fn new(isa: Isa) -> Self {
        assert!(isa.is_supported(), "kernels for a detected instruction set");
        match isa {
            Isa::Scalar => Self(&SCALAR),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self(&AVX2),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Self(&AVX512),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => unreachable!("never detected here"),
        }
    }

    /// The instruction set of these kernels.
    pub fn isa(self) -> Isa {
        self.0.isa
    }

    fn of(self, format: Format) -> &'static FormatKernels {
        &self.0.formats[format as usize]
    }

    /// Decodes one row of weights; exact. `bytes` is the row of `out.len()` elements.
    pub fn decode_row(self, format: Format, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), format.row_bytes(out.len()), "bytes of a row");
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.of(format).decode_row)(bytes, out) }
    }

    /// Encodes one row of weights; exact. `out` is the row of `x.len()` elements.
    ///
    /// With an importance for each column, finite and not negative, squared errors are weighed by it, in formats that
    /// [use it](Format::uses_importance); Q4_0, Q4_1, Q5_0 and Q5_1 then look at the whole row, so that it is encoded in one
    /// piece. What does not fit a format: see [`Format::encode_row`].
    pub fn encode_row(self, format: Format, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.of(format).encode_row)(x, importance, out) }
    }

    /// The layout in which a product of these weights with `m` rows wants its activations; see [`Operand::of`].
    pub fn operand(self, format: Format, m: usize) -> Operand {
        Operand::of(format, m, false)
    }

    /// Makes one panel of an operand from `n_rows` rows of `k` activations, `stride` apart in `x`.
    ///
    /// `n_rows` is `operand.panel_rows()`, less only in the last panel; `out` takes `operand.panel_len(k)`.
    pub fn prepare(self, operand: Operand, x: &[f32], stride: usize, n_rows: usize, k: usize, out: &mut [f32]) {
        assert!((1..=operand.panel_rows()).contains(&n_rows), "rows of a panel");
        assert!(n_rows == 1 || stride >= k, "rows apart");
        assert!(x.len() >= (n_rows - 1) * stride + k, "rows of activations");
        assert_eq!(out.len(), operand.panel_len(k), "a panel");
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.prepare)(operand, x, stride, n_rows, k, out) }
    }

    /// `f32`s that [`product`](Self::product) needs to work in, for calls of up to `n_rows` rows of weights.
    pub fn product_scratch_len(self, format: Format, operand: Operand, n_rows: usize, k: usize, m: usize) -> usize {
        (self.of(format).product(operand).scratch_len)(n_rows, k, m)
    }

    /// `out[i, j] = sum over k of w[j, k] x[i, k]`; `out` is `[m, n_rows]`. What `scratch` holds does not matter.
    ///
    /// The value of an element does not depend on which other rows are in the call, on either side.
    pub fn product(self, p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
        assert_eq!(p.w.len(), p.n_rows * p.format.row_bytes(p.k), "rows of weights");
        assert_eq!(p.x.len(), p.operand.len(p.m, p.k), "activations");
        assert_eq!(out.len(), p.m * p.n_rows, "out is [m, n_rows]");
        let kernel = self.of(p.format).product(p.operand);
        let len = (kernel.scratch_len)(p.n_rows, p.k, p.m);
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (kernel.run)(p, out, &mut scratch[..len]) }
    }

    /// `f32`s that [`attention`](Self::attention) needs to work in.
    pub fn attention_scratch_len(self, n_q: usize, head_dim: usize) -> usize {
        attention::scratch_len(n_q, head_dim)
    }

    /// `out[i] = sum over keys j in range i of softmax_j(scale q_i . k_j) v_j`; `out` is `[n_q, head_dim]`.
    ///
    /// A query with an empty range gives zeros. A query's result does not depend on the other queries, nor on how many heads
    /// a call has. Those of several heads must be at most [`QUERY_GROUP`](attention::QUERY_GROUP).
    pub fn attention(self, a: &Attention<'_>, out: &mut [f32], scratch: &mut [f32]) {
        let n_q = a.ranges.len();
        assert_eq!(out.len(), n_q * a.head_dim, "out is [n_q, head_dim]");
        assert!(a.head_dim > 0, "heads have elements");
        assert!(n_q == 0 || a.q.len() >= (n_q - 1) * a.q_stride + a.head_dim, "queries");
        assert!(a.n_head > 0 && n_q.is_multiple_of(a.n_head), "every head has as many queries");
        assert!(a.n_head == 1 || n_q <= attention::QUERY_GROUP, "queries of several heads");
        let n_keys = a.ranges.iter().map(|r| r[1] as usize).max().unwrap_or(0);
        let row_len = a.n_head * a.head_dim;
        assert!(a.k.holds(n_keys, row_len) && a.v.holds(n_keys, row_len), "keys and values");
        let len = self.attention_scratch_len(n_q, a.head_dim);
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.attention)(a, out, &mut scratch[..len]) }
    }

    /// `sum a_i b_i`, close.
    pub fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.dot_f32)(a, b) }
    }

    /// `sum a_i b_i` with `a` widened, close.
    pub fn dot_f16(self, a: &[f16], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.dot_f16)(a, b) }
    }

    /// `y += s x`.
    pub fn axpy_f32(self, y: &mut [f32], s: f32, x: &[f32]) {
        assert_eq!(y.len(), x.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.axpy_f32)(y, s, x) }
    }

    /// `y += a b`, element by element.
    pub fn add_product(self, y: &mut [f32], a: &[f32], b: &[f32]) {
        assert_eq!(y.len(), a.len());
        assert_eq!(y.len(), b.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.add_product)(y, a, b) }
    }

    /// `y += s x` with `x` widened.
    pub fn axpy_f16(self, y: &mut [f32], s: f32, x: &[f16]) {
        assert_eq!(y.len(), x.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.axpy_f16)(y, s, x) }
    }

    /// Widens `x` into `y`; exact.
    pub fn f16_to_f32(self, x: &[f16], y: &mut [f32]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.f16_to_f32)(x, y) }
    }

    /// Rounds `x` to halves, ties to even, into `y`; exact but for the payload of NaN.
    pub fn f32_to_f16(self, x: &[f32], y: &mut [f16]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.f32_to_f16)(x, y) }
    }

    /// The largest element, NaN ignored; minus infinity of nothing.
    pub fn max_of(self, x: &[f32]) -> f32 {
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.max_of)(x) }
    }

    /// `x_i = e^(x_i - max)`; returns their sum.
    pub fn exp_sum(self, x: &mut [f32], max: f32) -> f32 {
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.exp_sum)(x, max) }
    }

    /// `x = softmax(x)`.
    pub fn softmax(self, x: &mut [f32]) {
        let max = self.max_of(x);
        let sum = self.exp_sum(x, max);
        self.scale(x, 1.0 / sum);
    }

    /// `y = y / sqrt(mean(y^2) + eps) * w`.
    pub fn rms_norm(self, y: &mut [f32], w: &[f32], eps: f32) {
        assert_eq!(y.len(), w.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.rms_norm)(y, w, eps) }
    }

    /// `y = (y - mean) / sqrt(variance + eps) * w + b`.
    pub fn layer_norm(self, y: &mut [f32], w: &[f32], b: &[f32], eps: f32) {
        assert_eq!(y.len(), w.len());
        assert_eq!(y.len(), b.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.layer_norm)(y, w, b, eps) }
    }

    /// `y += x`.
    pub fn add(self, y: &mut [f32], x: &[f32]) {
        assert_eq!(y.len(), x.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.add)(y, x) }
    }

    /// `y *= x`.
    pub fn mul(self, y: &mut [f32], x: &[f32]) {
        assert_eq!(y.len(), x.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.mul)(y, x) }
    }

    /// `y *= s`.
    pub fn scale(self, y: &mut [f32], s: f32) {
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.scale)(y, s) }
    }

    /// `y = y * sigmoid(y)`; error as [`crate::math::silu`].
    pub fn silu(self, y: &mut [f32]) {
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.silu)(y) }
    }

    /// `y = 1 / (1 + e^-y)`; error as [`crate::math::sigmoid`].
    pub fn sigmoid(self, y: &mut [f32]) {
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.sigmoid)(y) }
    }

    /// `y = ln(1 + e^y)`; error as [`crate::math::softplus`].
    pub fn softplus(self, y: &mut [f32]) {
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.softplus)(y) }
    }

    /// Tokens of a selective scan with one decay each, in their order: `s[n, p] = decay s[n, p] + b[n] dx[p]`, then
    /// `y[p] += sum_n c[n] s[n, p]`. `state` is `[d_state, head_dim]`, each `y [head_dim]`. Results do not depend on how many
    /// tokens come in a call; [`SCAN_TOKENS`](crate::cpu::SCAN_TOKENS) at a time take the least of it.
    pub fn scan_head(self, state: &mut [f32], tokens: &mut [HeadToken<'_>]) {
        let width = tokens.first().map_or(0, |token| token.y.len());
        for HeadToken { token, y, .. } in tokens.iter() {
            token.check(state.len(), y.len());
            assert_eq!(y.len(), width, "channels of every token");
        }
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.scan_head)(state, tokens) }
    }

    /// As [`scan_head`](Self::scan_head) for one token with a decay for every element of the state.
    pub fn scan_channels(self, state: &mut [f32], decay: &ChannelDecay<'_>, token: &ScanToken<'_>, y: &mut [f32]) {
        token.check(state.len(), y.len());
        assert_eq!([decay.a.len(), decay.step.len()], [state.len(), y.len()], "decays and steps of a head");
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.scan_channels)(state, decay, token, y) }
    }

    /// The exact GELU; error as [`crate::math::gelu`].
    pub fn gelu(self, y: &mut [f32]) {
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.gelu)(y) }
    }

    /// The tanh form of GELU; error as [`crate::math::gelu_tanh`].
    pub fn gelu_tanh(self, y: &mut [f32]) {
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.gelu_tanh)(y) }
    }

    /// `y = max(y, 0)`; NaN stays.
    pub fn relu(self, y: &mut [f32]) {
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.relu)(y) }
    }

    /// `gate = silu(gate) * up`.
    pub fn silu_mul(self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.silu_mul)(gate, up) }
    }

    /// `ya = a . s` and `yb = b . s`, close, for a matrix `s [a.len(), ya.len()]`. A column's sums do not depend on the others.
    pub fn two_products(self, s: &[f32], a: &[f32], b: &[f32], ya: &mut [f32], yb: &mut [f32]) {
        assert_eq!(a.len(), b.len());
        assert_eq!(ya.len(), yb.len());
        assert!(!ya.is_empty() && s.len() == a.len() * ya.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.two_products)(s, a, b, ya, yb) }
    }

    /// `s = diag(w) s + a y^T` for a matrix `s [a.len(), y.len()]`.
    pub fn decay_add_outer(self, s: &mut [f32], w: &[f32], a: &[f32], y: &[f32]) {
        assert_eq!(w.len(), a.len());
        assert!(!y.is_empty() && s.len() == a.len() * y.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.decay_add_outer)(s, w, a, y) }
    }

    /// Half-split rotary embedding: turns the pairs `(x[i], x[i + n])`, n = `cos.len()`; what follows stays.
    pub fn rope_half(self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert_eq!(cos.len(), sin.len());
        assert!(x.len() >= 2 * cos.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.rope_half)(x, cos, sin) }
    }

    /// Interleaved rotary embedding: turns the pairs `(x[2 i], x[2 i + 1])`; what follows stays.
    pub fn rope_interleaved(self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert_eq!(cos.len(), sin.len());
        assert!(x.len() >= 2 * cos.len());
        // SAFETY: `Kernels` exists only for instruction sets that this CPU has.
        unsafe { (self.0.rope_interleaved)(x, cos, sin) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kernels` with plain code for every format, as a format has that is only in the list.
    fn with_plain_code(kernels: Kernels) -> Kernels {
        let formats: &'static Formats = match kernels.isa() {
            Isa::Scalar => &scalar::FORMATS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::PLAIN_CODE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::PLAIN_CODE,
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => unreachable!("never detected here"),
        };
        Kernels(Box::leak(Box::new(Table { formats, ..*kernels.0 })))
    }

    fn floats(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919) % 1013) as f32 / 506.5 - 1.0).collect()
    }

    /// Results of `m` rows, and the rows of weights that they are of.
    fn product(kernels: Kernels, format: Format, operand: Operand, m: usize) -> (Vec<f32>, Vec<f32>) {
        let (k, n_rows) = (512, 9);
        let x = floats(m * k);
        let mut prepared = vec![f32::NAN; operand.len(m, k)];
        for (i, panel) in prepared.chunks_exact_mut(operand.panel_len(k)).enumerate() {
            let first = i * operand.panel_rows();
            kernels.prepare(operand, &x[first * k..], k, operand.panel_rows().min(m - first), k, panel);
        }
        let mut w = vec![0; n_rows * format.row_bytes(k)];
        let mut decoded = vec![f32::NAN; n_rows * k];
        let values = floats(3 * n_rows * k);
        for ((w, x), y) in
            w.chunks_exact_mut(format.row_bytes(k)).zip(values.chunks_exact(3 * k)).zip(decoded.chunks_exact_mut(k))
        {
            kernels.encode_row(format, &x[..k], None, w);
            kernels.decode_row(format, w, y);
        }
        let mut out = vec![f32::NAN; m * n_rows];
        let mut scratch = vec![f32::NAN; kernels.product_scratch_len(format, operand, n_rows, k, m)];
        kernels.product(&Product { format, w: &w, n_rows, k, operand, x: &prepared, m }, &mut out, &mut scratch);
        (out, decoded)
    }

    #[test]
    fn formats_without_kernels_of_their_own_run_everywhere() {
        for kernels in Kernels::available() {
            for format in Format::ALL {
                for (m, precise) in [(1, false), (5, false), (21, false), (21, true)] {
                    let operand = Operand::of(format, m, precise);
                    let (want, weights) = product(kernels, format, operand, m);
                    let (got, plain_weights) = product(with_plain_code(kernels), format, operand, m);
                    let what = format!("{format:?} {operand:?} {kernels:?} m={m}");
                    assert!(weights.iter().zip(&plain_weights).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}");
                    // Sums of 512 products below 1 in another order.
                    assert!(want.iter().zip(&got).all(|(a, b)| (a - b).abs() <= 1e-3), "{what}: {want:?} {got:?}");
                }
            }
        }
    }
}
