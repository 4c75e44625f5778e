//! Gated feed-forward block.

use engine::builder::GraphBuilder;
use engine::op::Unary;
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use crate::decoder::FeedForward;
use crate::error::Result;

/// `down(silu(gate(x)) * up(x))`. Source: transformers, `Qwen3MLP.forward`; Shazeer 2020, "GLU Variants Improve
/// Transformer".
pub(crate) struct SwiGlu {
    gate: Weight, // [n_ff, n_embd]
    up: Weight,   // [n_ff, n_embd]
    down: Weight, // [n_embd, n_ff]
}

impl SwiGlu {
    /// The weights `{prefix}.ffn_*`.
    pub(crate) fn load(w: &WeightStore, prefix: &str, n_embd: usize, n_ff: usize) -> Result<Self> {
        Self::load_called(w, prefix, "", n_embd, n_ff)
    }

    /// The weights `{prefix}.ffn_*_shexp`, those of a shared expert.
    pub(crate) fn load_shared(w: &WeightStore, prefix: &str, n_embd: usize, n_ff: usize) -> Result<Self> {
        Self::load_called(w, prefix, "_shexp", n_embd, n_ff)
    }

    fn load_called(w: &WeightStore, prefix: &str, suffix: &str, n_embd: usize, n_ff: usize) -> Result<Self> {
        let name = |part: &str| format!("{prefix}.{part}{suffix}.weight");
        Ok(Self {
            gate: w.get(&name("ffn_gate"), [n_ff, n_embd])?,
            up: w.get(&name("ffn_up"), [n_ff, n_embd])?,
            down: w.get(&name("ffn_down"), [n_embd, n_ff])?,
        })
    }
}

impl FeedForward for SwiGlu {
    fn build(&self, g: &GraphBuilder<'_>, _layer: usize, x: Tensor) -> Tensor {
        g.linear(g.glu(Unary::Silu, g.linear(x, self.gate), g.linear(x, self.up)), self.down)
    }
}
