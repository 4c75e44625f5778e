//! LFM2's gated short convolution.

use engine::builder::{BatchInputs, GraphBuilder};
use engine::state::State;
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use crate::decoder::Mixer;
use crate::error::Result;

/// Gated short convolution: `out_proj(c * conv(b * u))` with `[b, c, u] = in_proj(x)`; the state holds the last inputs of
/// the convolution. Source: transformers, `Lfm2ShortConv.forward`.
pub(crate) struct ShortConv {
    in_proj: Weight,  // [3 * n_embd, n_embd]
    conv: Weight,     // [n_embd, d_conv], newest tap last
    out_proj: Weight, // [n_embd, n_embd]
    state: State,     // per slot: [d_conv - 1, n_embd]
}

impl ShortConv {
    /// The weights `{prefix}.shortconv.*`.
    pub(crate) fn load(w: &WeightStore, prefix: &str, n_embd: usize, d_conv: usize, state: State) -> Result<Self> {
        let name = |part: &str| format!("{prefix}.shortconv.{part}.weight");
        Ok(Self {
            in_proj: w.get(&name("in_proj"), [3 * n_embd, n_embd])?,
            conv: w.get(&name("conv"), [n_embd, d_conv])?,
            out_proj: w.get(&name("out_proj"), [n_embd, n_embd])?,
            state,
        })
    }
}

impl Mixer for ShortConv {
    fn build(&self, g: &GraphBuilder<'_>, batch: &BatchInputs, x: Tensor) -> Tensor {
        let [b, c, u] = g.chunk(g.linear(x, self.in_proj));
        let y = g.causal_conv1d(g.mul(b, u), self.conv, None, self.state, batch);
        g.linear(g.mul(c, y), self.out_proj)
    }
}
