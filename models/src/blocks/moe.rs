//! Mixture of experts.

use engine::builder::GraphBuilder;
use engine::op::{Route, Unary};
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use super::ffn::SwiGlu;
use crate::decoder::FeedForward;
use crate::error::Result;
use crate::hparams::Hparams;

/// Sizes of a mixture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MoeShape {
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of an expert.
    pub n_ff: usize,
    /// Number of experts.
    pub n_expert: usize,
}

impl MoeShape {
    /// Reads the number of experts, and of those that a token is sent to.
    ///
    /// Errors: numbers that are missing or do not fit each other.
    pub(crate) fn read(hp: &Hparams<'_>, n_embd: usize, n_ff: usize) -> Result<(Self, u32)> {
        let n_expert = hp.size("expert_count")?;
        let n_used = hp.size("expert_used_count")?;
        if n_used > n_expert {
            return Err(hp.bad("expert_used_count", format!("want at most {n_expert} experts, got {n_used}")));
        }
        Ok((Self { n_embd, n_ff, n_expert }, u32::try_from(n_used).expect("sizes were limited")))
    }
}

/// An expert that every token is sent to, whose result counts as much as a gate says: `sigmoid(gate . x) ffn(x)`.
/// Source: transformers, `Qwen2MoeSparseMoeBlock.forward`.
pub(crate) struct SharedExpert {
    ffn: SwiGlu,
    gate: Option<Weight>, // [1, n_embd]
}

impl SharedExpert {
    /// The weights `{prefix}.ffn_*_shexp`, without a gate.
    pub(crate) fn load(w: &WeightStore, prefix: &str, n_embd: usize, n_ff: usize) -> Result<Self> {
        Ok(Self { ffn: SwiGlu::load_shared(w, prefix, n_embd, n_ff)?, gate: None })
    }

    /// The weights `{prefix}.ffn_*_shexp` and that of the gate.
    pub(crate) fn load_gated(w: &WeightStore, prefix: &str, n_embd: usize, n_ff: usize) -> Result<Self> {
        Ok(Self {
            ffn: SwiGlu::load_shared(w, prefix, n_embd, n_ff)?,
            // Files have it with an extent of 1 and without.
            gate: Some(w.get_squeezed(&format!("{prefix}.ffn_gate_inp_shexp.weight"), [1, n_embd])?),
        })
    }

    fn build(&self, g: &GraphBuilder<'_>, layer: usize, x: Tensor) -> Tensor {
        let y = g.name(self.ffn.build(g, layer, x), ("blk", layer, "shared_expert"));
        let Some(gate) = self.gate else { return y };
        let gate = g.name(g.linear(x, gate), ("blk", layer, "shared_gate"));
        // A sum over one expert.
        let [n_tokens, n_embd] = [0, 1].map(|i| g.shape(y).dim(i));
        g.expert_sum(g.reshape(y, [n_tokens, 1, n_embd]), g.unary(Unary::Sigmoid, gate))
    }
}

/// `sum_e weight_e down_e(silu(gate_e(x)) * up_e(x))` over the experts that the router chooses, and the shared one.
/// Source: transformers, `Lfm2MoeSparseMoeBlock.forward`; Shazeer et al. 2017, "Outrageously large neural networks".
pub(crate) struct Moe {
    router: Weight,              // [n_expert, n_embd]
    expert_bias: Option<Weight>, // [n_expert], for the choice alone
    gate: Weight,                // [n_expert, n_ff, n_embd]
    up: Weight,                  // [n_expert, n_ff, n_embd]
    down: Weight,                // [n_expert, n_embd, n_ff]
    route: Route,
    shared: Option<SharedExpert>,
}

impl Moe {
    /// The weights `{prefix}.ffn_*_exps` and those of the router.
    pub(crate) fn load(w: &WeightStore, prefix: &str, shape: MoeShape, route: Route) -> Result<Self> {
        let MoeShape { n_embd, n_ff, n_expert } = shape;
        let name = |part: &str| format!("{prefix}.{part}.weight");
        Ok(Self {
            router: w.get(&name("ffn_gate_inp"), [n_expert, n_embd])?,
            expert_bias: w.get_optional(&format!("{prefix}.exp_probs_b.bias"), [n_expert])?,
            gate: w.get(&name("ffn_gate_exps"), [n_expert, n_ff, n_embd])?,
            up: w.get(&name("ffn_up_exps"), [n_expert, n_ff, n_embd])?,
            down: w.get(&name("ffn_down_exps"), [n_expert, n_embd, n_ff])?,
            route,
            shared: None,
        })
    }

    /// The same with an expert that every token is sent to.
    pub(crate) fn with_shared(self, shared: SharedExpert) -> Self {
        Self { shared: Some(shared), ..self }
    }
}

impl FeedForward for Moe {
    fn build(&self, g: &GraphBuilder<'_>, layer: usize, x: Tensor) -> Tensor {
        let logits = g.name(g.linear(x, self.router), ("blk", layer, "router.logits"));
        let [ids, weights] = g.route(logits, self.expert_bias, self.route);
        let ids = g.name(ids, ("blk", layer, "router.experts"));
        let weights = g.name(weights, ("blk", layer, "router.weights"));
        let gate = g.expert_linear(x, self.gate, ids);
        let up = g.expert_linear(x, self.up, ids);
        let y = g.expert_linear(g.glu(Unary::Silu, gate, up), self.down, ids);
        let y = g.name(g.expert_sum(y, weights), ("blk", layer, "moe"));
        self.shared.as_ref().map_or(y, |shared| g.add(y, shared.build(g, layer, x)))
    }
}
