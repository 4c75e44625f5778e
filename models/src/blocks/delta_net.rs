//! Gated delta net: linear attention whose memory forgets, and replaces what it holds under a key.

use engine::builder::{BatchInputs, GraphBuilder};
use engine::op::{HeadMap, Unary};
use engine::state::{Pending, State, States};
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use super::ssm::{Convolution, SsmShape};
use crate::decoder::Mixer;
use crate::error::Result;
use crate::hparams::Hparams;

/// Added to the sums of squares of queries and keys. Source: transformers, `torch_recurrent_gated_delta_rule`.
const L2_EPS: f32 = 1e-6;

/// Sizes of a gated delta net.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeltaShape {
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Taps of the convolution, the current token's included.
    pub d_conv: usize,
    /// Heads of queries and keys.
    pub n_key: usize,
    /// Heads of values; a multiple of `n_key`.
    pub n_value: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Which key head a value head goes with.
    pub heads: HeadMap,
    /// Added to the mean of squares in the norm of results.
    pub eps: f32,
}

impl DeltaShape {
    /// Reads the keys `ssm.*`.
    ///
    /// Errors: numbers that are missing or do not fit each other.
    pub(crate) fn read(hp: &Hparams<'_>, n_embd: usize, heads: HeadMap, eps: f32) -> Result<Self> {
        let SsmShape { d_conv, d_inner, d_state: head_dim, dt_rank: n_value, n_group: n_key, .. } =
            SsmShape::read(hp, n_embd)?;
        if !n_value.is_multiple_of(n_key) {
            let what = format!("want a multiple of {n_key} key heads, got {n_value}");
            return Err(hp.bad("ssm.time_step_rank", what));
        }
        // Each factor is below 2^24.
        if d_inner != n_value * head_dim {
            let what = format!("want {n_value} heads as wide as keys, {head_dim}, got {d_inner} in all");
            return Err(hp.bad("ssm.inner_size", what));
        }
        Ok(Self { n_embd, d_conv, n_key, n_value, head_dim, heads, eps })
    }

    /// Elements of all queries, and of all keys.
    fn key_width(&self) -> usize {
        self.n_key * self.head_dim
    }

    /// Elements of all values, and of their gates.
    fn value_width(&self) -> usize {
        self.n_value * self.head_dim
    }

    /// Channels of the convolution: queries, keys, values.
    fn channels(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }

    /// Value heads of a key head.
    fn group(&self) -> usize {
        self.n_value / self.n_key
    }
}

/// From the residual stream to queries, keys, values and the gates of results.
enum Projections {
    /// `[channels, n_embd]` and `[value_width, n_embd]`.
    Separate { qkv: Weight, z: Weight },
    /// Of each key head its query, its key, its values and their gates: files of the first converters.
    Packed(Weight),
}

/// From the residual stream to steps and strengths.
enum Steps {
    /// `[n_value, n_embd]` each.
    Separate { a: Weight, b: Weight },
    /// Of each key head the strengths of its values, then their steps: `[2 n_value, n_embd]`.
    Packed(Weight),
}

/// Gated delta net: `out_proj(norm(y) silu(z))` with `y` from [`engine::op::DeltaRule::Gated`] over
/// `[q, k, v] = silu(conv(in_proj(x)))`.
/// Source: transformers, `Qwen3NextGatedDeltaNet.forward`, `Qwen3_5GatedDeltaNet.forward`.
pub(crate) struct DeltaNet {
    /// In the names of taps.
    layer: usize,
    shape: DeltaShape,
    projections: Projections,
    steps: Steps,
    conv: Convolution,
    a: Weight,        // [n_value], -exp(A_log)
    dt_bias: Weight,  // [n_value]
    norm: Weight,     // [head_dim]
    out_proj: Weight, // [n_embd, value_width]
    memory: State,    // per slot and value head: [head_dim, head_dim]
    pending: Pending, // per token: inputs of the convolution, n_value steps and as many strengths
}

impl DeltaNet {
    /// The weights `{prefix}.ssm_*`, `{prefix}.attn_qkv` and `{prefix}.attn_gate`.
    pub(crate) fn load(
        w: &WeightStore,
        prefix: &str,
        shape: DeltaShape,
        states: &mut States,
        layer: usize,
    ) -> Result<Self> {
        let DeltaShape { n_embd, d_conv, n_value, head_dim, .. } = shape;
        let (channels, value_width) = (shape.channels(), shape.value_width());
        let name = |part: &str| format!("{prefix}.{part}");
        let projections = match w.get_optional(&name("ssm_in.weight"), [channels + value_width, n_embd])? {
            Some(packed) => Projections::Packed(packed),
            None => Projections::Separate {
                qkv: w.get(&name("attn_qkv.weight"), [channels, n_embd])?,
                z: w.get(&name("attn_gate.weight"), [value_width, n_embd])?,
            },
        };
        let steps = match w.get_optional(&name("ssm_ba.weight"), [2 * n_value, n_embd])? {
            Some(packed) => Steps::Packed(packed),
            None => Steps::Separate {
                a: w.get(&name("ssm_alpha.weight"), [n_value, n_embd])?,
                b: w.get(&name("ssm_beta.weight"), [n_value, n_embd])?,
            },
        };
        let inputs = states.conv(layer, d_conv, channels);
        Ok(Self {
            conv: Convolution::load(w, prefix, channels, d_conv, inputs)?,
            a: w.get(&name("ssm_a"), [n_value])?,
            dt_bias: w.get(&name("ssm_dt.bias"), [n_value])?,
            norm: w.get(&name("ssm_norm.weight"), [head_dim])?,
            out_proj: w.get(&name("ssm_out.weight"), [n_embd, value_width])?,
            memory: states.delta(layer, n_value, head_dim, head_dim),
            pending: states.pending(layer, channels + 2 * n_value),
            layer,
            shape,
            projections,
            steps,
        })
    }

    /// Queries, keys and values before the convolution, `[n_tokens, channels]`, and gates, `[n_tokens, n_value, head_dim]`.
    fn project(&self, g: &GraphBuilder<'_>, x: Tensor) -> (Tensor, Tensor) {
        match self.projections {
            Projections::Separate { qkv, z } => (g.linear(x, qkv), g.split_heads(g.linear(x, z), self.shape.n_value)),
            Projections::Packed(packed) => self.unpack(g, g.linear(x, packed)),
        }
    }

    /// The same from rows that are packed by key head.
    fn unpack(&self, g: &GraphBuilder<'_>, packed: Tensor) -> (Tensor, Tensor) {
        let DeltaShape { n_key, n_value, head_dim, .. } = self.shape;
        let (n_tokens, group) = (g.shape(packed).dim(0), self.shape.group());
        let parts = g.reshape(packed, [n_tokens, n_key, 2 + 2 * group, head_dim]);
        let part = |first, n| g.slice(parts, 2, first, n);
        // Channels outermost, so that one can come behind the other: [n, n_tokens].
        let channels = |part: Tensor, order: [usize; 4], n| g.reshape(g.copy(g.permute(part, order)), [n, n_tokens]);
        let keys = channels(part(0, 2), [2, 1, 3, 0], 2 * self.shape.key_width());
        let values = channels(part(2, group), [1, 2, 3, 0], self.shape.value_width());
        let qkv = g.copy(g.permute(g.concat(keys, values), [1, 0]));
        (qkv, g.reshape(g.copy(part(2 + group, group)), [n_tokens, n_value, head_dim]))
    }

    /// Queries, keys and values of pending and new rows before the convolution, and their steps and strengths, a value of each for
    /// every value head. `qkv`: those of new rows.
    fn join(&self, g: &GraphBuilder<'_>, batch: &BatchInputs, x: Tensor, qkv: Tensor) -> (Tensor, [Tensor; 2]) {
        match self.steps {
            Steps::Separate { a, b } => {
                let a = g.name(g.linear(x, a), ("blk", self.layer, "delta.a"));
                let b = g.name(g.linear(x, b), ("blk", self.layer, "delta.b"));
                let [qkv, a, b] = g.join_pending([qkv, a, b], self.pending, batch);
                (qkv, [a, b])
            }
            Steps::Packed(packed) => {
                let packed = g.name(g.linear(x, packed), ("blk", self.layer, "delta.ba"));
                let [qkv, packed] = g.join_pending([qkv, packed], self.pending, batch);
                let [b, a] = g.chunk(g.split_heads(packed, self.shape.n_key));
                (qkv, [a, b])
            }
        }
    }
}

impl Mixer for DeltaNet {
    fn build(&self, g: &GraphBuilder<'_>, batch: &BatchInputs, x: Tensor) -> Tensor {
        let DeltaShape { n_key, n_value, heads, eps, .. } = self.shape;
        let tap = |name| ("blk", self.layer, name);
        let (qkv, z) = self.project(g, x);
        let (qkv, steps) = self.join(g, batch, x, qkv);
        let qkv = g.name(self.conv.build(g, batch, qkv), tap("delta.qkv"));
        let (key_width, value_width) = (self.shape.key_width(), self.shape.value_width());
        let part = |start, width, n_head| g.split_heads(g.slice(qkv, 1, start, width), n_head);
        let qkv =
            [part(0, key_width, n_key), part(key_width, key_width, n_key), part(2 * key_width, value_width, n_value)];
        let y = g.gated_delta(qkv, steps, [self.a, self.dt_bias], (heads, L2_EPS), self.memory, batch);
        let y = g.new_rows(y, batch);
        let y = g.rms_norm(g.name(y, tap("delta.core")), self.norm, eps);
        let y = g.name(g.glu(Unary::Silu, z, y), tap("delta.gated"));
        g.linear(g.merge_heads(y), self.out_proj)
    }
}
