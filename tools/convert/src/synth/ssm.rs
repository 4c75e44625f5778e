//! Mamba, Mamba 2, Jamba and Granite 4 hybrid without their weights.

use serde_json::{Value, json};

use super::tensors::{MATRIX, NORM, Scale, TAPS, Tensors};

/// Logarithms of decays: decays up to about 16, most of them above 1.
const DECAY: Scale = Scale(1.5, 0.7);
/// Of the biases of step sizes, whose softplus is 0.001 to 0.1.
const STEP: Scale = Scale(-4.6, 0.8);
/// Of what goes past the state.
const THROUGH: Scale = Scale(1.0, 0.01);
/// Of the biases of a convolution.
const SHIFT: Scale = Scale(0.0, 0.05);

/// Taps of the convolution.
const D_CONV: usize = 4;
/// Channels of a block for each of the residual stream.
const EXPAND: usize = 2;

/// The numbers of a model of nothing but state-space blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mamba {
    /// Width.
    pub(super) n_embd: usize,
    /// Layers.
    pub(super) n_layer: usize,
    /// Elements of the state of a channel.
    pub(super) d_state: usize,
    /// The generation.
    pub(super) generation: Generation,
    /// Rows of the embedding.
    pub(super) n_vocab: usize,
}

/// What differs between generations.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Generation {
    /// Step sizes of every channel, of this rank.
    Channels(usize),
    /// Heads of this width, in one group.
    Heads(usize),
}

/// The numbers of Jamba.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Jamba {
    /// Width.
    pub(super) n_embd: usize,
    /// Layers; one of eight has attention, every second one experts.
    pub(super) n_layer: usize,
    /// Heads of queries.
    pub(super) n_head: usize,
    /// Heads of keys and values.
    pub(super) n_head_kv: usize,
    /// Width of the feed-forward layers and of an expert.
    pub(super) n_ff: usize,
    /// Experts of a layer; a token is sent to two.
    pub(super) n_expert: usize,
    /// Rank of the step sizes.
    pub(super) dt_rank: usize,
}

/// The numbers of Granite 4 hybrid with experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Granite {
    /// Width.
    pub(super) n_embd: usize,
    /// Layers.
    pub(super) n_layer: usize,
    /// Which of them have attention.
    pub(super) attention: &'static [usize],
    /// Heads of queries.
    pub(super) n_head: usize,
    /// Heads of keys and values.
    pub(super) n_head_kv: usize,
    /// Heads of a state-space block, and their width.
    pub(super) n_ssm_head: usize,
    pub(super) ssm_head_dim: usize,
    /// Elements of the state of a channel.
    pub(super) d_state: usize,
    /// Experts of a layer, and those of a token.
    pub(super) n_expert: usize,
    pub(super) n_used: usize,
    /// Width of an expert, and of the shared one.
    pub(super) n_ff: usize,
    pub(super) n_ff_shared: usize,
}

impl Mamba {
    /// `config.json`.
    pub(super) fn config(&self) -> Value {
        let d_inner = EXPAND * self.n_embd;
        let shared = json!({
            "hidden_size": self.n_embd,
            "expand": EXPAND,
            "intermediate_size": d_inner,
            "num_hidden_layers": self.n_layer,
            "state_size": self.d_state,
            "conv_kernel": D_CONV,
            "layer_norm_epsilon": 1e-5,
            "hidden_act": "silu",
            "use_bias": false,
            "use_conv_bias": true,
            "vocab_size": self.n_vocab,
            "tie_word_embeddings": true,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        });
        let own = match self.generation {
            Generation::Channels(dt_rank) => {
                json!({"architectures": ["MambaForCausalLM"], "model_type": "mamba", "time_step_rank": dt_rank})
            }
            Generation::Heads(head_dim) => json!({
                "architectures": ["Mamba2ForCausalLM"],
                "model_type": "mamba2",
                "num_heads": d_inner / head_dim,
                "head_dim": head_dim,
                "n_groups": 1,
            }),
        };
        super::tensors::merged(own, [shared])
    }

    /// The tensors of the checkpoint, in its order.
    pub(super) fn tensors(&self, tensors: &mut Tensors) {
        let n_embd = self.n_embd;
        tensors.add("backbone.embeddings.weight", &[self.n_vocab, n_embd], MATRIX);
        for i in 0..self.n_layer {
            let prefix = format!("backbone.layers.{i}.");
            tensors.add(format!("{prefix}norm.weight"), &[n_embd], NORM);
            let prefix = format!("{prefix}mixer.");
            match self.generation {
                Generation::Channels(dt_rank) => channels(&prefix, n_embd, self.d_state, dt_rank, tensors),
                Generation::Heads(head_dim) => {
                    heads(&prefix, n_embd, EXPAND * n_embd / head_dim, head_dim, self.d_state, tensors);
                }
            }
        }
        tensors.add("backbone.norm_f.weight", &[n_embd], NORM);
    }
}

/// A block of the first generation.
fn channels(prefix: &str, n_embd: usize, d_state: usize, dt_rank: usize, tensors: &mut Tensors) {
    let d_inner = EXPAND * n_embd;
    let mut add = |name: &str, dims: &[usize], scale| tensors.add(format!("{prefix}{name}"), dims, scale);
    add("in_proj.weight", &[2 * d_inner, n_embd], MATRIX);
    add("conv1d.weight", &[d_inner, 1, D_CONV], TAPS);
    add("conv1d.bias", &[d_inner], SHIFT);
    add("x_proj.weight", &[dt_rank + 2 * d_state, d_inner], MATRIX);
    add("dt_proj.weight", &[d_inner, dt_rank], MATRIX);
    add("dt_proj.bias", &[d_inner], STEP);
    add("A_log", &[d_inner, d_state], DECAY);
    add("D", &[d_inner], THROUGH);
    add("out_proj.weight", &[n_embd, d_inner], MATRIX);
}

/// A block of the second generation.
fn heads(prefix: &str, n_embd: usize, n_head: usize, head_dim: usize, d_state: usize, tensors: &mut Tensors) {
    let d_inner = n_head * head_dim;
    let width = d_inner + 2 * d_state;
    let mut add = |name: &str, dims: &[usize], scale| tensors.add(format!("{prefix}{name}"), dims, scale);
    add("in_proj.weight", &[d_inner + width + n_head, n_embd], MATRIX);
    add("conv1d.weight", &[width, 1, D_CONV], TAPS);
    add("conv1d.bias", &[width], SHIFT);
    add("dt_bias", &[n_head], STEP);
    add("A_log", &[n_head], DECAY);
    add("D", &[n_head], THROUGH);
    add("norm.weight", &[d_inner], NORM);
    add("out_proj.weight", &[n_embd, d_inner], MATRIX);
}

/// Attention without norms and biases.
fn attention(prefix: &str, n_embd: usize, [n_head, n_head_kv]: [usize; 2], tensors: &mut Tensors) {
    let n_kv = n_head_kv * (n_embd / n_head);
    for (name, dims) in [("q", [n_embd, n_embd]), ("k", [n_kv, n_embd]), ("v", [n_kv, n_embd]), ("o", [n_embd, n_embd])]
    {
        tensors.add(format!("{prefix}{name}_proj.weight"), &dims, MATRIX);
    }
}

impl Jamba {
    const VOCAB: usize = 65_536;
    const D_STATE: usize = 16;
    /// Layers `OFFSET`, `OFFSET + PERIOD` and so on.
    const ATTENTION: [usize; 2] = [8, 4];
    const EXPERTS: [usize; 2] = [2, 1];

    /// Rows of the embedding.
    pub(super) fn n_vocab(&self) -> usize {
        Self::VOCAB
    }

    /// `config.json`.
    pub(super) fn config(&self) -> Value {
        json!({
            "architectures": ["JambaForCausalLM"],
            "model_type": "jamba",
            "hidden_size": self.n_embd,
            "num_hidden_layers": self.n_layer,
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_head_kv,
            "intermediate_size": self.n_ff,
            "num_experts": self.n_expert,
            "num_experts_per_tok": 2,
            "attn_layer_period": Self::ATTENTION[0],
            "attn_layer_offset": Self::ATTENTION[1],
            "expert_layer_period": Self::EXPERTS[0],
            "expert_layer_offset": Self::EXPERTS[1],
            "mamba_d_state": Self::D_STATE,
            "mamba_d_conv": D_CONV,
            "mamba_expand": EXPAND,
            "mamba_dt_rank": self.dt_rank,
            "mamba_conv_bias": true,
            "mamba_proj_bias": false,
            "max_position_embeddings": 262_144,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "vocab_size": Self::VOCAB,
            "tie_word_embeddings": false,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        })
    }

    /// The tensors of the checkpoint, in its order.
    pub(super) fn tensors(&self, tensors: &mut Tensors) {
        let (n_embd, n_ff) = (self.n_embd, self.n_ff);
        let has = |[period, offset]: [usize; 2], i: usize| i % period == offset;
        tensors.add("model.embed_tokens.weight", &[Self::VOCAB, n_embd], MATRIX);
        for i in 0..self.n_layer {
            let prefix = format!("model.layers.{i}.");
            tensors.add(format!("{prefix}input_layernorm.weight"), &[n_embd], NORM);
            if has(Self::ATTENTION, i) {
                attention(&format!("{prefix}self_attn."), n_embd, [self.n_head, self.n_head_kv], tensors);
            } else {
                let prefix = format!("{prefix}mamba.");
                channels(&prefix, n_embd, Self::D_STATE, self.dt_rank, tensors);
                for (name, n) in [("dt", self.dt_rank), ("b", Self::D_STATE), ("c", Self::D_STATE)] {
                    tensors.add(format!("{prefix}{name}_layernorm.weight"), &[n], NORM);
                }
            }
            tensors.add(format!("{prefix}pre_ff_layernorm.weight"), &[n_embd], NORM);
            let mut feed_forward = |name: String| {
                for (part, dims) in [("gate", [n_ff, n_embd]), ("up", [n_ff, n_embd]), ("down", [n_embd, n_ff])] {
                    tensors.add(format!("{prefix}feed_forward.{name}{part}_proj.weight"), &dims, MATRIX);
                }
            };
            if has(Self::EXPERTS, i) {
                (0..self.n_expert).for_each(|e| feed_forward(format!("experts.{e}.")));
                tensors.add(format!("{prefix}feed_forward.router.weight"), &[self.n_expert, n_embd], MATRIX);
            } else {
                feed_forward(String::new());
            }
        }
        tensors.add("model.final_layernorm.weight", &[n_embd], NORM);
        tensors.add("lm_head.weight", &[Self::VOCAB, n_embd], MATRIX);
    }
}

impl Granite {
    const VOCAB: usize = 100_352;

    /// Rows of the embedding.
    pub(super) fn n_vocab(&self) -> usize {
        Self::VOCAB
    }

    /// `config.json`.
    pub(super) fn config(&self) -> Value {
        let kind = |i| if self.attention.contains(&i) { "attention" } else { "mamba" };
        json!({
            "architectures": ["GraniteMoeHybridForCausalLM"],
            "model_type": "granitemoehybrid",
            "hidden_size": self.n_embd,
            "num_hidden_layers": self.n_layer,
            "layer_types": (0..self.n_layer).map(kind).collect::<Vec<_>>(),
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_head_kv,
            "intermediate_size": self.n_ff,
            "shared_intermediate_size": self.n_ff_shared,
            "num_local_experts": self.n_expert,
            "num_experts_per_tok": self.n_used,
            "mamba_n_heads": self.n_ssm_head,
            "mamba_d_head": self.ssm_head_dim,
            "mamba_n_groups": 1,
            "mamba_d_state": self.d_state,
            "mamba_d_conv": D_CONV,
            "mamba_expand": EXPAND,
            "mamba_conv_bias": true,
            "mamba_proj_bias": false,
            "position_embedding_type": "nope",
            "rope_theta": 10_000,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "attention_bias": false,
            "normalization_function": "rmsnorm",
            "embedding_multiplier": 12,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0078125,
            "logits_scaling": 6,
            "vocab_size": Self::VOCAB,
            "tie_word_embeddings": true,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        })
    }

    /// The tensors of the checkpoint, in its order.
    pub(super) fn tensors(&self, tensors: &mut Tensors) {
        let n_embd = self.n_embd;
        tensors.add("model.embed_tokens.weight", &[Self::VOCAB, n_embd], MATRIX);
        for i in 0..self.n_layer {
            let prefix = format!("model.layers.{i}.");
            tensors.add(format!("{prefix}input_layernorm.weight"), &[n_embd], NORM);
            if self.attention.contains(&i) {
                attention(&format!("{prefix}self_attn."), n_embd, [self.n_head, self.n_head_kv], tensors);
            } else {
                let prefix = format!("{prefix}mamba.");
                heads(&prefix, n_embd, self.n_ssm_head, self.ssm_head_dim, self.d_state, tensors);
            }
            let mut add =
                |name: &str, dims: &[usize], scale| tensors.add(format!("{prefix}{name}.weight"), dims, scale);
            add("post_attention_layernorm", &[n_embd], NORM);
            add("block_sparse_moe.router.layer", &[self.n_expert, n_embd], MATRIX);
            add("block_sparse_moe.input_linear", &[self.n_expert, 2 * self.n_ff, n_embd], MATRIX);
            add("block_sparse_moe.output_linear", &[self.n_expert, n_embd, self.n_ff], MATRIX);
            add("shared_mlp.input_linear", &[2 * self.n_ff_shared, n_embd], MATRIX);
            add("shared_mlp.output_linear", &[n_embd, self.n_ff_shared], MATRIX);
        }
        tensors.add("model.norm.weight", &[n_embd], NORM);
    }
}
