//! Grouped-query attention with a cache.

use engine::builder::{BatchInputs, GraphBuilder};
use engine::op::{Rope, RopePairs, Unary};
use engine::state::{KvCache, States};
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use super::affine::Linear;
use crate::decoder::Mixer;
use crate::error::Result;
use crate::hparams::Hparams;

/// Sizes of an attention block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Reads the numbers of heads, and the width of one, which is `n_embd / n_head` where the metadata do not say.
    ///
    /// Errors: numbers that are missing or do not fit each other.
    pub(crate) fn read(hp: &Hparams<'_>, n_embd: usize) -> Result<Self> {
        let n_head = hp.size("attention.head_count")?;
        let n_head_kv = hp.size("attention.head_count_kv")?;
        if !n_head.is_multiple_of(n_head_kv) {
            let what = format!("want a divisor of {n_head} heads, got {n_head_kv}");
            return Err(hp.bad("attention.head_count_kv", what));
        }
        Ok(Self { n_embd, n_head, n_head_kv, head_dim: head_dim(hp, n_embd, n_head)? })
    }

    /// Sizes of attention in every layer that has some: the others have no heads of keys and values.
    ///
    /// Errors: as [`AttentionShape::read`].
    pub(crate) fn of_layers(hp: &Hparams<'_>, n_embd: usize) -> Result<Vec<Option<Self>>> {
        const KV_HEADS: &str = "attention.head_count_kv";
        let n_head = hp.size("attention.head_count")?;
        let head_dim = head_dim(hp, n_embd, n_head)?;
        let shape = |n_head_kv: usize| match n_head_kv {
            0 => Ok(None),
            n if n_head.is_multiple_of(n) => Ok(Some(Self { n_embd, n_head, n_head_kv: n, head_dim })),
            odd => Err(hp.bad(KV_HEADS, format!("want divisors of {n_head} heads, got {odd}"))),
        };
        hp.sizes_of_layers(KV_HEADS, hp.size("block_count")?)?.into_iter().map(shape).collect()
    }

    /// Rotation of whole heads.
    pub(crate) fn rope(&self, theta_base: f32, pairs: RopePairs) -> Rope {
        Rope { n_rot: u32::try_from(self.head_dim).expect("sizes were limited"), theta_base, pairs }
    }

    /// Rotation of the first `rope.dimension_count` elements of heads, of whole heads where the metadata do not say.
    ///
    /// Errors: a number that is odd or wider than a head.
    pub(crate) fn read_rope(&self, hp: &Hparams<'_>, theta_base: f32, pairs: RopePairs) -> Result<Rope> {
        const WIDTH: &str = "rope.dimension_count";
        let head_dim = self.head_dim;
        let n_rot = hp.size_or(WIDTH, head_dim)?;
        if n_rot > head_dim || !n_rot.is_multiple_of(2) {
            return Err(hp.bad(WIDTH, format!("want an even number up to the key length {head_dim}, got {n_rot}")));
        }
        Ok(Rope { n_rot: u32::try_from(n_rot).expect("sizes were limited"), theta_base, pairs })
    }

    /// `1 / sqrt(head_dim)`.
    pub(crate) fn scale(&self) -> f32 {
        // Head widths are small integers, exact in f32.
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Width of one of `n_head` heads: `attention.key_length`, else `n_embd / n_head`.
///
/// Errors: a width that is odd or that values do not have too.
pub(crate) fn head_dim(hp: &Hparams<'_>, n_embd: usize, n_head: usize) -> Result<usize> {
    let key = if hp.contains("attention.key_length") { "attention.key_length" } else { "attention.head_count" };
    if key == "attention.head_count" && !n_embd.is_multiple_of(n_head) {
        return Err(hp.bad(key, format!("want a divisor of {n_embd}, got {n_head}")));
    }
    let head_dim = hp.size_or("attention.key_length", n_embd / n_head)?;
    if !head_dim.is_multiple_of(2) {
        return Err(hp.bad(key, format!("want heads of even width, got {head_dim}")));
    }
    if hp.size_or("attention.value_length", head_dim)? != head_dim {
        return Err(hp.bad("attention.value_length", format!("want the key length {head_dim}")));
    }
    Ok(head_dim)
}

/// What architectures do differently.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionOptions {
    /// Whether queries and keys are normed over the width of a head, and what is added to the mean of squares.
    pub qk_norm_eps: Option<f32>,
    /// How queries and keys are rotated, where they are.
    pub rope: Option<Rope>,
    /// What the frequency of every pair is divided by, `[n_rot / 2]`, where the file says.
    pub rope_factors: Option<Weight>,
    /// Factor of the scores.
    pub scale: f32,
    /// Whether what a head gives is multiplied with the sigmoid of a gate, which the projection of queries has behind the
    /// query of each head.
    pub is_gated: bool,
}

/// From the residual stream to queries, keys and values.
enum Projections {
    /// `[n_head * head_dim, n_embd]`, twice as many rows with gates, and twice `[n_head_kv * head_dim, n_embd]`.
    Separate([Linear; 3]),
    /// The rows of all three in one matrix.
    Fused(Linear),
}

/// Norms of queries and keys.
struct QkNorm {
    q: Weight, // [head_dim]
    k: Weight, // [head_dim]
    eps: f32,
}

/// Causal grouped-query attention: `softmax(scale q k^T) v`, query head `h` on key head `h n_head_kv / n_head`. Projections
/// have biases where the file has them.
/// Source: transformers, `LlamaAttention.forward`, `Qwen3Attention.forward`, `Qwen3NextAttention.forward`.
pub(crate) struct Attention {
    shape: AttentionShape,
    qkv: Projections,
    output: Linear, // [n_embd, n_head * head_dim]
    qk_norm: Option<QkNorm>,
    rope: Option<Rope>,
    rope_factors: Option<Weight>, // [n_rot / 2]
    scale: f32,
    is_gated: bool,
    cache: KvCache,
}

impl Attention {
    /// The weights `{prefix}.attn_*`; queries, keys and values in one matrix where there is an `attn_qkv`.
    pub(crate) fn load(
        w: &WeightStore,
        prefix: &str,
        shape: AttentionShape,
        options: AttentionOptions,
        states: &mut States,
        layer: usize,
    ) -> Result<Self> {
        let AttentionShape { n_embd, n_head, n_head_kv, head_dim } = shape;
        let (n_q, n_kv) = (n_head * head_dim, n_head_kv * head_dim);
        let linear = |part: &str, n_out, n_in| Linear::load_any(w, &format!("{prefix}.{part}"), n_out, n_in);
        let norm = |part: &str| w.get(&format!("{prefix}.{part}.weight"), [head_dim]);
        let AttentionOptions { qk_norm_eps, rope, rope_factors, scale, is_gated } = options;
        let n_q_rows = if is_gated { 2 * n_q } else { n_q };
        let qkv = if w.contains(&format!("{prefix}.attn_qkv.weight")) {
            Projections::Fused(linear("attn_qkv", n_q_rows + 2 * n_kv, n_embd)?)
        } else {
            Projections::Separate([
                linear("attn_q", n_q_rows, n_embd)?,
                linear("attn_k", n_kv, n_embd)?,
                linear("attn_v", n_kv, n_embd)?,
            ])
        };
        let qk_norm = match qk_norm_eps {
            Some(eps) => Some(QkNorm { q: norm("attn_q_norm")?, k: norm("attn_k_norm")?, eps }),
            None => None,
        };
        Ok(Self {
            qkv,
            output: linear("attn_output", n_embd, n_q)?,
            qk_norm,
            shape,
            rope,
            rope_factors,
            scale,
            is_gated,
            cache: states.kv(layer, n_head_kv, head_dim),
        })
    }

    /// `[n_tokens, heads, head_dim]` each, queries with gates twice as wide.
    fn project(&self, g: &GraphBuilder<'_>, x: Tensor) -> [Tensor; 3] {
        let AttentionShape { n_head, n_head_kv, head_dim, .. } = self.shape;
        let heads = [n_head, n_head_kv, n_head_kv];
        let widths = [if self.is_gated { 2 * head_dim } else { head_dim }, head_dim, head_dim];
        let parts = match &self.qkv {
            Projections::Separate(parts) => parts.each_ref().map(|part| part.build(g, x)),
            Projections::Fused(fused) => {
                let y = fused.build(g, x);
                let mut start = 0;
                std::array::from_fn(|i| {
                    let n = heads[i] * widths[i];
                    start += n;
                    g.slice(y, 1, start - n, n)
                })
            }
        };
        std::array::from_fn(|i| g.split_heads(parts[i], heads[i]))
    }
}

impl Mixer for Attention {
    fn build(&self, g: &GraphBuilder<'_>, batch: &BatchInputs, x: Tensor) -> Tensor {
        let [q, k, v] = self.project(g, x);
        let (q, gate) = if self.is_gated {
            let [q, gate] = g.chunk(q);
            (q, Some(gate))
        } else {
            (q, None)
        };
        let turned = |x: Tensor, norm: fn(&QkNorm) -> Weight| {
            let x = self.qk_norm.as_ref().map_or(x, |qk| g.rms_norm(x, norm(qk), qk.eps));
            match (self.rope, self.rope_factors) {
                (Some(rope), Some(factors)) => g.rope_with_factors(x, batch, rope, factors),
                (Some(rope), None) => g.rope(x, batch, rope),
                (None, _) => x,
            }
        };
        let (q, k) = (turned(q, |qk| qk.q), turned(k, |qk| qk.k));
        let kv = g.kv_write(self.cache, k, v, batch);
        let y = g.cached_attention(q, kv, batch, self.scale);
        let y = gate.map_or(y, |gate| g.glu(Unary::Sigmoid, gate, y));
        self.output.build(g, g.merge_heads(y))
    }
}
