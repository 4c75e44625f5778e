//! Llama without its weights.

use serde_json::{Value, json};

use super::shapes::{MATRIX, NORM, Tensors};

/// The numbers of a model that differ between sizes; its head is the embedding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Llama {
    /// Width.
    pub(super) n_embd: usize,
    /// Layers.
    pub(super) n_layer: usize,
    /// Heads of queries.
    pub(super) n_head: usize,
    /// Heads of keys and values.
    pub(super) n_head_kv: usize,
    /// Width of a head.
    pub(super) head_dim: usize,
    /// Width of the feed-forward layers.
    pub(super) n_ff: usize,
    /// Rows of the embedding.
    pub(super) n_vocab: usize,
}

impl Llama {
    /// `config.json`.
    pub(super) fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.n_embd,
            "num_hidden_layers": self.n_layer,
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_head_kv,
            "head_dim": self.head_dim,
            "intermediate_size": self.n_ff,
            "vocab_size": self.n_vocab,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": true,
        })
    }

    /// The tensors of the checkpoint, in its order.
    pub(super) fn tensors(&self, tensors: &mut Tensors) {
        let (n_embd, n_ff) = (self.n_embd, self.n_ff);
        let (n_q, n_kv) = (self.n_head * self.head_dim, self.n_head_kv * self.head_dim);
        tensors.add("model.embed_tokens.weight", &[self.n_vocab, n_embd], MATRIX);
        for i in 0..self.n_layer {
            for (name, dims, scale) in [
                ("input_layernorm", &[n_embd][..], NORM),
                ("mlp.down_proj", &[n_embd, n_ff], MATRIX),
                ("mlp.gate_proj", &[n_ff, n_embd], MATRIX),
                ("mlp.up_proj", &[n_ff, n_embd], MATRIX),
                ("post_attention_layernorm", &[n_embd], NORM),
                ("self_attn.k_proj", &[n_kv, n_embd], MATRIX),
                ("self_attn.o_proj", &[n_embd, n_q], MATRIX),
                ("self_attn.q_proj", &[n_q, n_embd], MATRIX),
                ("self_attn.v_proj", &[n_kv, n_embd], MATRIX),
            ] {
                tensors.add(format!("model.layers.{i}.{name}.weight"), dims, scale);
            }
        }
        tensors.add("model.norm.weight", &[n_embd], NORM);
    }
}
