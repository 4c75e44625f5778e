//! Mixture of experts.

use engine::builder::GraphBuilder;
use engine::op::{Route, Unary};
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use crate::decoder::FeedForward;
use crate::error::Result;

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

/// `sum_e weight_e down_e(silu(gate_e(x)) * up_e(x))` over the experts that the router chooses.
/// Source: transformers, `Lfm2MoeSparseMoeBlock.forward`; Shazeer et al. 2017, "Outrageously large neural networks".
pub(crate) struct Moe {
    router: Weight,              // [n_expert, n_embd]
    expert_bias: Option<Weight>, // [n_expert], for the choice alone
    gate: Weight,                // [n_expert, n_ff, n_embd]
    up: Weight,                  // [n_expert, n_ff, n_embd]
    down: Weight,                // [n_expert, n_embd, n_ff]
    route: Route,
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
        })
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
        g.expert_sum(y, weights)
    }
}
