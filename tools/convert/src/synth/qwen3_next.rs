//! Qwen3-Next and Qwen3.5 without their weights.

use serde_json::{Value, json};

use super::tensors::{MATRIX, NORM, Scale, TAPS, Tensors, merged};

/// Weights of norms that are stored around 0.
const CENTRED_NORM: Scale = Scale(0.0, 0.01);
/// Logarithms of decay rates: of rates up to 16, most of them above 1.
const RATE: Scale = Scale(1.5, 0.8);
/// Of the biases of steps.
const STEP: Scale = Scale(1.0, 0.1);

/// Width of an attention head.
const HEAD_DIM: usize = 256;
/// Width of a head of a delta net, and its key heads.
const DELTA_DIM: usize = 128;
const N_KEY: usize = 16;
/// Taps of the convolution.
const D_CONV: usize = 4;
/// Every layer of this number has attention.
const INTERVAL: usize = 4;

/// The numbers of a model that differ between sizes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Qwen3Next {
    /// Width.
    pub(super) n_embd: usize,
    /// Layers.
    pub(super) n_layer: usize,
    /// Heads of queries and of keys and values.
    pub(super) n_head: usize,
    pub(super) n_head_kv: usize,
    /// Value heads of a delta net.
    pub(super) n_value: usize,
    /// Rows of the embedding.
    pub(super) n_vocab: usize,
    /// What works on every token by itself.
    pub(super) ffn: FeedForward,
}

/// Feed-forward layers: those of a generation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FeedForward {
    /// Qwen3.5: dense, of this width, with a tied head.
    Dense(usize),
    /// Qwen3-Next: experts and one more for all tokens, each of this width.
    Experts {
        /// Experts of a layer.
        n_expert: usize,
        /// Experts of a token.
        n_used: usize,
        /// Width of an expert.
        n_ff: usize,
    },
}

impl Qwen3Next {
    /// Channels of the convolution of a delta net, and elements of its values.
    fn widths(&self) -> (usize, usize) {
        let value_width = self.n_value * DELTA_DIM;
        (2 * N_KEY * DELTA_DIM + value_width, value_width)
    }

    /// `config.json`.
    pub(super) fn config(&self) -> Value {
        let shared = json!({
            "hidden_size": self.n_embd,
            "num_hidden_layers": self.n_layer,
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_head_kv,
            "head_dim": HEAD_DIM,
            "full_attention_interval": INTERVAL,
            "linear_conv_kernel_dim": D_CONV,
            "linear_key_head_dim": DELTA_DIM,
            "linear_value_head_dim": DELTA_DIM,
            "linear_num_key_heads": N_KEY,
            "linear_num_value_heads": self.n_value,
            "vocab_size": self.n_vocab,
            "max_position_embeddings": 262_144,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "attention_bias": false,
        });
        match self.ffn {
            FeedForward::Dense(n_ff) => {
                let rope = json!({
                    "rope_type": "default", "rope_theta": 10_000_000, "partial_rotary_factor": 0.25,
                    "mrope_section": [11, 11, 10], "mrope_interleaved": true,
                });
                let text = json!({"model_type": "qwen3_5_text", "intermediate_size": n_ff, "rope_parameters": rope});
                json!({
                    "architectures": ["Qwen3_5ForConditionalGeneration"],
                    "model_type": "qwen3_5",
                    "text_config": merged(text, [shared]),
                    "tie_word_embeddings": true,
                })
            }
            FeedForward::Experts { n_expert, n_used, n_ff } => {
                let own = json!({
                    "architectures": ["Qwen3NextForCausalLM"],
                    "model_type": "qwen3_next",
                    "intermediate_size": 5120,
                    "num_experts": n_expert,
                    "num_experts_per_tok": n_used,
                    "moe_intermediate_size": n_ff,
                    "shared_expert_intermediate_size": n_ff,
                    "norm_topk_prob": true,
                    "mlp_only_layers": [],
                    "decoder_sparse_step": 1,
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 10_000_000,
                    "tie_word_embeddings": false,
                });
                merged(own, [shared])
            }
        }
    }

    /// The tensors of the checkpoint, in its order.
    pub(super) fn tensors(&self, tensors: &mut Tensors) {
        let prefix = match self.ffn {
            FeedForward::Dense(_) => "model.language_model.",
            FeedForward::Experts { .. } => "model.",
        };
        tensors.add(format!("{prefix}embed_tokens.weight"), &[self.n_vocab, self.n_embd], MATRIX);
        for i in 0..self.n_layer {
            let prefix = format!("{prefix}layers.{i}.");
            tensors.add(format!("{prefix}input_layernorm.weight"), &[self.n_embd], CENTRED_NORM);
            if (i + 1).is_multiple_of(INTERVAL) {
                self.attention(&format!("{prefix}self_attn."), tensors);
            } else {
                self.delta_net(&format!("{prefix}linear_attn."), tensors);
            }
            tensors.add(format!("{prefix}post_attention_layernorm.weight"), &[self.n_embd], CENTRED_NORM);
            self.feed_forward(&format!("{prefix}mlp."), tensors);
        }
        tensors.add(format!("{prefix}norm.weight"), &[self.n_embd], CENTRED_NORM);
        if let FeedForward::Experts { .. } = self.ffn {
            tensors.add("lm_head.weight", &[self.n_vocab, self.n_embd], MATRIX);
        }
    }

    fn attention(&self, prefix: &str, tensors: &mut Tensors) {
        let (n_q, n_kv) = (self.n_head * HEAD_DIM, self.n_head_kv * HEAD_DIM);
        // Queries and their gates.
        tensors.add(format!("{prefix}q_proj.weight"), &[2 * n_q, self.n_embd], MATRIX);
        tensors.add(format!("{prefix}k_proj.weight"), &[n_kv, self.n_embd], MATRIX);
        tensors.add(format!("{prefix}v_proj.weight"), &[n_kv, self.n_embd], MATRIX);
        tensors.add(format!("{prefix}o_proj.weight"), &[self.n_embd, n_q], MATRIX);
        tensors.add(format!("{prefix}q_norm.weight"), &[HEAD_DIM], CENTRED_NORM);
        tensors.add(format!("{prefix}k_norm.weight"), &[HEAD_DIM], CENTRED_NORM);
    }

    fn delta_net(&self, prefix: &str, tensors: &mut Tensors) {
        let (n_embd, n_value) = (self.n_embd, self.n_value);
        let (channels, value_width) = self.widths();
        let projections: &[(&str, usize)] = match self.ffn {
            FeedForward::Dense(_) => {
                &[("in_proj_qkv", channels), ("in_proj_z", value_width), ("in_proj_b", n_value), ("in_proj_a", n_value)]
            }
            FeedForward::Experts { .. } => &[("in_proj_qkvz", channels + value_width), ("in_proj_ba", 2 * n_value)],
        };
        for (name, rows) in projections {
            tensors.add(format!("{prefix}{name}.weight"), &[*rows, n_embd], MATRIX);
        }
        tensors.add(format!("{prefix}conv1d.weight"), &[channels, 1, D_CONV], TAPS);
        tensors.add(format!("{prefix}A_log"), &[n_value], RATE);
        tensors.add(format!("{prefix}dt_bias"), &[n_value], STEP);
        tensors.add(format!("{prefix}norm.weight"), &[DELTA_DIM], NORM);
        tensors.add(format!("{prefix}out_proj.weight"), &[n_embd, value_width], MATRIX);
    }

    fn feed_forward(&self, prefix: &str, tensors: &mut Tensors) {
        let n_embd = self.n_embd;
        let mut swiglu = |prefix: String, n_ff: usize| {
            tensors.add(format!("{prefix}gate_proj.weight"), &[n_ff, n_embd], MATRIX);
            tensors.add(format!("{prefix}up_proj.weight"), &[n_ff, n_embd], MATRIX);
            tensors.add(format!("{prefix}down_proj.weight"), &[n_embd, n_ff], MATRIX);
        };
        match self.ffn {
            FeedForward::Dense(n_ff) => swiglu(prefix.to_owned(), n_ff),
            FeedForward::Experts { n_expert, n_ff, .. } => {
                (0..n_expert).for_each(|e| swiglu(format!("{prefix}experts.{e}."), n_ff));
                swiglu(format!("{prefix}shared_expert."), n_ff);
                tensors.add(format!("{prefix}gate.weight"), &[n_expert, n_embd], MATRIX);
                tensors.add(format!("{prefix}shared_expert_gate.weight"), &[1, n_embd], MATRIX);
            }
        }
    }
}
