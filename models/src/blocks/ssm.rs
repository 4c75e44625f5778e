//! State-space blocks: [`Mamba`], whose every channel has decays of its own, and [`Mamba2`], whose heads have one each.

use engine::builder::{BatchInputs, GraphBuilder, SsmScan};
use engine::op::{ScanDecay, Unary};
use engine::state::{Pending, State, States};
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use crate::decoder::Mixer;
use crate::error::Result;
use crate::hparams::Hparams;

/// Widest convolution: far above every published model's 4.
const MAX_CONV: usize = 64;
/// Channels of [`Mamba`] that are computed together, at most.
const CHANNELS: usize = 64;

/// Sizes of a state-space block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SsmShape {
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Taps of the convolution, the current token's included.
    pub d_conv: usize,
    /// Channels that have a state.
    pub d_inner: usize,
    /// Elements of the state of a channel.
    pub d_state: usize,
    /// Of [`Mamba`] the rank of the step sizes, of [`Mamba2`] their number: that of heads.
    pub dt_rank: usize,
    /// Groups that share `B` and `C`; of a delta net its key heads.
    pub n_group: usize,
}

impl SsmShape {
    /// Reads the keys `ssm.*`.
    ///
    /// Errors: numbers that are missing or that no block has.
    pub(crate) fn read(hp: &Hparams<'_>, n_embd: usize) -> Result<Self> {
        let d_conv = hp.size("ssm.conv_kernel")?;
        if !(2..=MAX_CONV).contains(&d_conv) {
            return Err(hp.bad("ssm.conv_kernel", format!("want 2 to {MAX_CONV}, got {d_conv}")));
        }
        Ok(Self {
            n_embd,
            d_conv,
            d_inner: hp.size("ssm.inner_size")?,
            d_state: hp.size("ssm.state_size")?,
            dt_rank: hp.size("ssm.time_step_rank")?,
            n_group: hp.size_or("ssm.group_count", 1)?,
        })
    }

    /// As [`SsmShape::read`], for heads.
    ///
    /// Errors: numbers that do not fit each other, too.
    pub(crate) fn read_heads(hp: &Hparams<'_>, n_embd: usize) -> Result<Self> {
        let shape = Self::read(hp, n_embd)?;
        let Self { d_inner, dt_rank: n_head, n_group, .. } = shape;
        if !d_inner.is_multiple_of(n_head) {
            return Err(hp.bad("ssm.time_step_rank", format!("want a divisor of {d_inner} channels, got {n_head}")));
        }
        if !n_head.is_multiple_of(n_group) {
            return Err(hp.bad("ssm.group_count", format!("want a divisor of {n_head} heads, got {n_group}")));
        }
        Ok(shape)
    }
}

/// A causal convolution of every channel with its own past, then `silu`.
pub(super) struct Convolution {
    weight: Weight,       // [width, d_conv], newest tap last
    bias: Option<Weight>, // [width]
    inputs: State,        // per slot: [d_conv - 1, width]
}

impl Convolution {
    /// The weights `{prefix}.ssm_conv1d`, with a bias where the file has one.
    pub(super) fn load(w: &WeightStore, prefix: &str, width: usize, d_conv: usize, inputs: State) -> Result<Self> {
        Ok(Self {
            weight: w.get(&format!("{prefix}.ssm_conv1d.weight"), [width, d_conv])?,
            bias: w.get_optional(&format!("{prefix}.ssm_conv1d.bias"), [width])?,
            inputs,
        })
    }

    /// `x` and the result: `[n_tokens, width]`.
    pub(super) fn build(&self, g: &GraphBuilder<'_>, batch: &BatchInputs, x: Tensor) -> Tensor {
        g.unary(Unary::Silu, g.causal_conv1d(x, self.weight, self.bias, self.inputs, batch))
    }
}

/// Norms of step sizes, `B` and `C`, which Jamba has.
struct InnerNorms {
    dt: Weight, // [dt_rank]
    b: Weight,  // [d_state]
    c: Weight,  // [d_state]
    eps: f32,
}

/// Selective state space: `out_proj(silu(z) * scan(u))` with `[u, z] = in_proj(x)`, `u = silu(conv(u))`, and step sizes, `B`
/// and `C` from `x_proj(u)`.
/// Source: Gu and Dao 2023, "Mamba", figure 3; transformers, `MambaMixer.slow_forward`, `JambaMambaMixer.slow_forward`.
pub(crate) struct Mamba {
    shape: SsmShape,
    in_proj: Weight, // [2 * d_inner, n_embd]
    conv: Convolution,
    x_proj: Weight,  // [dt_rank + 2 * d_state, d_inner]
    dt_proj: Weight, // [d_inner, dt_rank]
    dt_bias: Weight, // [d_inner]
    norms: Option<InnerNorms>,
    a: Weight,        // [d_inner, d_state], -exp(A_log)
    d: Weight,        // [d_inner]
    out_proj: Weight, // [n_embd, d_inner]
    state: State,     // per slot: [d_inner / n_channels, d_state, n_channels]
    inputs: Pending,  // per token: d_inner channels before the convolution
    steps: Pending,   // per token: d_inner step sizes, B and C
}

impl Mamba {
    /// The weights `{prefix}.ssm_*`, with norms inside where the file has them; `eps` is theirs.
    pub(crate) fn load(
        w: &WeightStore,
        prefix: &str,
        shape: SsmShape,
        eps: f32,
        states: &mut States,
        layer: usize,
    ) -> Result<Self> {
        let SsmShape { n_embd, d_conv, d_inner, d_state, dt_rank, .. } = shape;
        let name = |part: &str| format!("{prefix}.ssm_{part}");
        let inputs = states.conv(layer, d_conv, d_inner);
        let n_channels = channels(d_inner);
        let state = states.ssm(layer, d_inner / n_channels, d_state, n_channels);
        let norms = match w.get_optional(&name("dt_norm.weight"), [dt_rank])? {
            Some(dt) => {
                let [b, c] = ["b_norm.weight", "c_norm.weight"].map(|part| w.get(&name(part), [d_state]));
                Some(InnerNorms { dt, b: b?, c: c?, eps })
            }
            None => None,
        };
        Ok(Self {
            in_proj: w.get(&name("in.weight"), [2 * d_inner, n_embd])?,
            conv: Convolution::load(w, prefix, d_inner, d_conv, inputs)?,
            x_proj: w.get(&name("x.weight"), [dt_rank + 2 * d_state, d_inner])?,
            dt_proj: w.get(&name("dt.weight"), [d_inner, dt_rank])?,
            dt_bias: w.get(&name("dt.bias"), [d_inner])?,
            norms,
            a: w.get(&name("a"), [d_inner, d_state])?,
            d: w.get(&name("d"), [d_inner])?,
            out_proj: w.get(&name("out.weight"), [n_embd, d_inner])?,
            state,
            inputs: states.pending(layer, d_inner),
            steps: states.pending(layer, d_inner + 2 * d_state),
            shape,
        })
    }

    /// Step sizes, `B` and `C` of the inputs: `[n_tokens, dt_rank]` and twice `[n_tokens, d_state]`.
    fn select(&self, g: &GraphBuilder<'_>, u: Tensor) -> [Tensor; 3] {
        let SsmShape { d_state, dt_rank, .. } = self.shape;
        let y = g.linear(u, self.x_proj);
        let [dt, b, c] =
            [(0, dt_rank), (dt_rank, d_state), (dt_rank + d_state, d_state)].map(|(at, n)| g.slice(y, 1, at, n));
        match &self.norms {
            Some(norms) => [(dt, norms.dt), (b, norms.b), (c, norms.c)].map(|(x, w)| g.rms_norm(x, w, norms.eps)),
            None => [dt, b, c],
        }
    }
}

impl Mixer for Mamba {
    fn build(&self, g: &GraphBuilder<'_>, batch: &BatchInputs, x: Tensor) -> Tensor {
        let n_head = self.shape.d_inner / channels(self.shape.d_inner);
        let [u, z] = g.chunk(g.linear(x, self.in_proj));
        let [u] = g.join_pending([u], self.inputs, batch);
        let u = self.conv.build(g, batch, u);
        let [dt, b, c] = self.select(g, g.new_rows(u, batch));
        let [dt, b, c] = g.join_pending([g.linear(dt, self.dt_proj), b, c], self.steps, batch);
        let scan = SsmScan {
            x: g.split_heads(u, n_head),
            dt: g.split_heads(dt, n_head),
            b: g.split_heads(b, 1),
            c: g.split_heads(c, 1),
            dt_bias: self.dt_bias,
            a: self.a,
            d: self.d,
            decay: ScanDecay::Channel,
        };
        let y = g.new_rows(g.merge_heads(g.ssm_scan(scan, self.state, batch)), batch);
        g.linear(g.glu(Unary::Silu, z, y), self.out_proj)
    }
}

/// Channels that are computed together: the largest power of two that divides their number, up to [`CHANNELS`].
fn channels(d_inner: usize) -> usize {
    1 << d_inner.trailing_zeros().min(CHANNELS.trailing_zeros())
}

/// State space duality: `out_proj(norm(silu(z) * scan(u)))` with `[z, u, B, C, dt] = in_proj(x)` and `[u, B, C] =
/// silu(conv([u, B, C]))`. The norm is over the channels of a group.
/// Source: Dao and Gu 2024, "Transformers are SSMs", figure 6; transformers, `Mamba2Mixer.torch_forward`,
/// `GraniteMoeHybridMambaLayer.torch_forward`.
pub(crate) struct Mamba2 {
    shape: SsmShape,
    in_proj: Weight, // [2 * d_inner + 2 * n_group * d_state + n_head, n_embd]
    conv: Convolution,
    dt_bias: Weight,      // [n_head]
    a: Weight,            // [n_head], -exp(A_log)
    d: Weight,            // [n_head]
    norm: Option<Weight>, // [n_group, d_inner / n_group]
    eps: f32,
    out_proj: Weight, // [n_embd, d_inner]
    state: State,     // per slot: [n_head, d_state, d_inner / n_head]
    pending: Pending, // per token: inputs of the convolution and n_head step sizes
}

impl Mamba2 {
    /// The weights `{prefix}.ssm_*`, with the norm where the file has it; `eps` is its.
    pub(crate) fn load(
        w: &WeightStore,
        prefix: &str,
        shape: SsmShape,
        eps: f32,
        states: &mut States,
        layer: usize,
    ) -> Result<Self> {
        let SsmShape { n_embd, d_conv, d_inner, d_state, dt_rank: n_head, n_group } = shape;
        let name = |part: &str| format!("{prefix}.ssm_{part}");
        let width = d_inner + 2 * n_group * d_state;
        let inputs = states.conv(layer, d_conv, width);
        let state = states.ssm(layer, n_head, d_state, d_inner / n_head);
        Ok(Self {
            in_proj: w.get(&name("in.weight"), [d_inner + width + n_head, n_embd])?,
            conv: Convolution::load(w, prefix, width, d_conv, inputs)?,
            dt_bias: w.get(&name("dt.bias"), [n_head])?,
            a: w.get_squeezed(&name("a"), [n_head])?,
            d: w.get_squeezed(&name("d"), [n_head])?,
            norm: w.get_optional(&name("norm.weight"), [n_group, d_inner / n_group])?,
            eps,
            out_proj: w.get(&name("out.weight"), [n_embd, d_inner])?,
            state,
            pending: states.pending(layer, width + n_head),
            shape,
        })
    }
}

impl Mixer for Mamba2 {
    fn build(&self, g: &GraphBuilder<'_>, batch: &BatchInputs, x: Tensor) -> Tensor {
        let SsmShape { d_inner, d_state, dt_rank: n_head, n_group, .. } = self.shape;
        let width = n_group * d_state;
        let projected = g.linear(x, self.in_proj);
        let part = |at: usize, n: usize| g.slice(projected, 1, at, n);
        let (z, inputs, dt) =
            (part(0, d_inner), part(d_inner, d_inner + 2 * width), part(2 * d_inner + 2 * width, n_head));
        let [inputs, dt] = g.join_pending([inputs, dt], self.pending, batch);
        let inputs = self.conv.build(g, batch, inputs);
        let scan = SsmScan {
            x: g.split_heads(g.slice(inputs, 1, 0, d_inner), n_head),
            dt,
            b: g.split_heads(g.slice(inputs, 1, d_inner, width), n_group),
            c: g.split_heads(g.slice(inputs, 1, d_inner + width, width), n_group),
            dt_bias: self.dt_bias,
            a: self.a,
            d: self.d,
            decay: ScanDecay::Head,
        };
        let y = g.new_rows(g.merge_heads(g.ssm_scan(scan, self.state, batch)), batch);
        let y = g.glu(Unary::Silu, z, y);
        let y = match self.norm {
            Some(norm) => g.merge_heads(g.rms_norm(g.split_heads(y, n_group), norm, self.eps)),
            None => y,
        };
        g.linear(y, self.out_proj)
    }
}
