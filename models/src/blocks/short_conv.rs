//! LFM2's gated short convolution.

use engine::builder::{BatchInputs, GraphBuilder};
use engine::state::{Pending, State, States};
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
    pending: Pending, // per token: its input of the convolution
}

impl ShortConv {
    /// The weights `{prefix}.shortconv.*`.
    pub(crate) fn load(
        w: &WeightStore,
        prefix: &str,
        [n_embd, d_conv]: [usize; 2],
        states: &mut States,
        layer: usize,
    ) -> Result<Self> {
        let name = |part: &str| format!("{prefix}.shortconv.{part}.weight");
        Ok(Self {
            in_proj: w.get(&name("in_proj"), [3 * n_embd, n_embd])?,
            conv: w.get(&name("conv"), [n_embd, d_conv])?,
            out_proj: w.get(&name("out_proj"), [n_embd, n_embd])?,
            state: states.conv(layer, d_conv, n_embd),
            pending: states.pending(layer, n_embd),
        })
    }
}

impl Mixer for ShortConv {
    fn build(&self, g: &GraphBuilder<'_>, batch: &BatchInputs, x: Tensor) -> Tensor {
        let [b, c, u] = g.chunk(g.linear(x, self.in_proj));
        let [inputs] = g.join_pending([g.mul(b, u)], self.pending, batch);
        let y = g.new_rows(g.causal_conv1d(inputs, self.conv, None, self.state, batch), batch);
        g.linear(g.mul(c, y), self.out_proj)
    }
}
