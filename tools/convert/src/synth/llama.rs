//! Llama without its weights.

use serde_json::{Value, json};

use super::qwen3::Qwen3;
use super::tensors::{MATRIX, NORM, Tensors};

/// A decoder whose head is the embedding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Llama {
    /// Sizes, which have the names of Qwen3's.
    pub(super) sizes: Qwen3,
    /// Rows of the embedding.
    pub(super) n_vocab: usize,
}

impl Llama {
    /// `config.json`.
    pub(super) fn config(&self) -> Value {
        let Qwen3 { n_embd, n_layer, n_head, n_head_kv, head_dim, n_ff, n_ctx } = self.sizes;
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "hidden_size": n_embd,
            "intermediate_size": n_ff,
            "max_position_embeddings": n_ctx,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": n_head,
            "num_hidden_layers": n_layer,
            "num_key_value_heads": n_head_kv,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3",
            },
            "rope_theta": 500_000.0,
            "tie_word_embeddings": true,
            "vocab_size": self.n_vocab,
        })
    }

    /// The tensors of the checkpoint, in its order.
    pub(super) fn tensors(&self, tensors: &mut Tensors) {
        let Qwen3 { n_embd, n_layer, n_head, n_head_kv, head_dim, n_ff, .. } = self.sizes;
        let (n_q, n_kv) = (n_head * head_dim, n_head_kv * head_dim);
        tensors.add("model.embed_tokens.weight", &[self.n_vocab, n_embd], MATRIX);
        for i in 0..n_layer {
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
