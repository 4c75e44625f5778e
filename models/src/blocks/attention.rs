//! Grouped-query attention with a cache.

use engine::builder::{BatchInputs, GraphBuilder};
use engine::op::Rope;
use engine::state::KvCache;
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use crate::error::Result;

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

/// Norms of queries and keys over the width of a head, before the rotation.
pub(crate) struct QkNorm {
    q: Weight, // [head_dim]
    k: Weight, // [head_dim]
    eps: f32,
}

/// From the residual stream to queries, keys and values.
enum Projections {
    /// `[n_head * head_dim, n_embd]`, and twice `[n_head_kv * head_dim, n_embd]`.
    Separate([Weight; 3]),
    /// The rows of all three in one matrix.
    Fused(Weight),
}

/// Causal grouped-query attention: `softmax(q k^T / sqrt(head_dim)) v`, query head `h` on key head `h n_head_kv / n_head`.
/// Source: transformers, `Qwen3Attention.forward`.
pub(crate) struct Attention {
    shape: AttentionShape,
    qkv: Projections,
    output: Weight, // [n_embd, n_head * head_dim]
    qk_norm: QkNorm,
    rope: Rope,
    cache: KvCache,
}

impl Attention {
    /// The weights `{prefix}.attn_*`; queries, keys and values in one matrix where there is an `attn_qkv`.
    pub(crate) fn load(
        w: &WeightStore,
        prefix: &str,
        shape: AttentionShape,
        rope: Rope,
        eps: f32,
        cache: KvCache,
    ) -> Result<Self> {
        let AttentionShape { n_embd, n_head, n_head_kv, head_dim } = shape;
        let (n_q, n_kv) = (n_head * head_dim, n_head_kv * head_dim);
        let name = |part: &str| format!("{prefix}.{part}.weight");
        let qkv = match w.get_optional(&name("attn_qkv"), [n_q + 2 * n_kv, n_embd])? {
            Some(fused) => Projections::Fused(fused),
            None => Projections::Separate([
                w.get(&name("attn_q"), [n_q, n_embd])?,
                w.get(&name("attn_k"), [n_kv, n_embd])?,
                w.get(&name("attn_v"), [n_kv, n_embd])?,
            ]),
        };
        Ok(Self {
            qkv,
            output: w.get(&name("attn_output"), [n_embd, n_q])?,
            qk_norm: QkNorm {
                q: w.get(&name("attn_q_norm"), [head_dim])?,
                k: w.get(&name("attn_k_norm"), [head_dim])?,
                eps,
            },
            shape,
            rope,
            cache,
        })
    }

    /// `x` and the result: `[n_tokens, n_embd]`.
    pub(crate) fn build(&self, g: &GraphBuilder<'_>, batch: &BatchInputs, x: Tensor) -> Tensor {
        let [q, k, v] = self.project(g, x);
        let QkNorm { q: q_norm, k: k_norm, eps } = self.qk_norm;
        let q = g.rope(g.rms_norm(q, q_norm, eps), batch, self.rope);
        let k = g.rope(g.rms_norm(k, k_norm, eps), batch, self.rope);
        let kv = g.kv_write(self.cache, k, v, batch);
        // Head widths are small integers, exact in f32.
        let scale = 1.0 / (self.shape.head_dim as f32).sqrt();
        let y = g.cached_attention(q, kv, batch, scale);
        g.linear(g.merge_heads(y), self.output)
    }

    /// `[n_tokens, heads, head_dim]` each.
    fn project(&self, g: &GraphBuilder<'_>, x: Tensor) -> [Tensor; 3] {
        let AttentionShape { n_head, n_head_kv, head_dim, .. } = self.shape;
        let heads = [n_head, n_head_kv, n_head_kv];
        let parts = match self.qkv {
            Projections::Separate(weights) => weights.map(|w| g.linear(x, w)),
            Projections::Fused(w) => {
                let y = g.linear(x, w);
                let starts = [0, n_head, n_head + n_head_kv];
                std::array::from_fn(|i| g.slice(y, 1, starts[i] * head_dim, heads[i] * head_dim))
            }
        };
        std::array::from_fn(|i| g.split_heads(parts[i], heads[i]))
    }
}
