//! Qwen3, alone and in Qwen3-ASR, without its weights.

use serde_json::{Value, json};

use super::tensors::{KERNEL, MATRIX, N_MELS, NORM, Tensors};

/// Rows of the embedding of all Qwen3 models.
pub(super) const QWEN_VOCAB: usize = 151_936;
/// Channels of Qwen3-ASR's stem.
const STEM_CHANNELS: usize = 480;

/// The numbers of a Qwen3 decoder that differ between sizes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Qwen3 {
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
    /// Longest context.
    pub(super) n_ctx: usize,
}

/// The numbers of Qwen3-ASR's encoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AudioTower {
    /// Width.
    pub(super) n_embd: usize,
    /// Layers.
    pub(super) n_layer: usize,
    /// Heads.
    pub(super) n_head: usize,
    /// Width of the feed-forward layers.
    pub(super) n_ff: usize,
}

/// Qwen3-0.6B, and inside Qwen3-ASR 0.6B.
pub(super) const QWEN3_06B: Qwen3 =
    Qwen3 { n_embd: 1024, n_layer: 28, n_head: 16, n_head_kv: 8, head_dim: 128, n_ff: 3072, n_ctx: 40_960 };

impl Qwen3 {
    pub(super) fn config(&self) -> Value {
        json!({
            "model_type": "qwen3",
            "hidden_size": self.n_embd,
            "num_hidden_layers": self.n_layer,
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_head_kv,
            "head_dim": self.head_dim,
            "intermediate_size": self.n_ff,
            "vocab_size": QWEN_VOCAB,
            "max_position_embeddings": self.n_ctx,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000,
            "hidden_act": "silu",
            "attention_bias": false,
            "tie_word_embeddings": true,
        })
    }

    pub(super) fn tensors(&self, prefix: &str, tensors: &mut Tensors) {
        let (n_embd, n_ff) = (self.n_embd, self.n_ff);
        let (n_q, n_kv) = (self.n_head * self.head_dim, self.n_head_kv * self.head_dim);
        tensors.add(format!("{prefix}embed_tokens.weight"), &[QWEN_VOCAB, n_embd], MATRIX);
        for i in 0..self.n_layer {
            let mut add = |name: &str, dims: &[usize], scale| {
                tensors.add(format!("{prefix}layers.{i}.{name}.weight"), dims, scale);
            };
            add("input_layernorm", &[n_embd], NORM);
            add("self_attn.q_proj", &[n_q, n_embd], MATRIX);
            add("self_attn.k_proj", &[n_kv, n_embd], MATRIX);
            add("self_attn.v_proj", &[n_kv, n_embd], MATRIX);
            add("self_attn.o_proj", &[n_embd, n_q], MATRIX);
            add("self_attn.q_norm", &[self.head_dim], NORM);
            add("self_attn.k_norm", &[self.head_dim], NORM);
            add("post_attention_layernorm", &[n_embd], NORM);
            add("mlp.gate_proj", &[n_ff, n_embd], MATRIX);
            add("mlp.up_proj", &[n_ff, n_embd], MATRIX);
            add("mlp.down_proj", &[n_embd, n_ff], MATRIX);
        }
        tensors.add(format!("{prefix}norm.weight"), &[n_embd], NORM);
    }
}

impl AudioTower {
    pub(super) fn config(&self, n_out: usize) -> Value {
        json!({
            "model_type": "qwen3_asr_audio_encoder",
            "num_mel_bins": N_MELS,
            "d_model": self.n_embd,
            "encoder_layers": self.n_layer,
            "num_hidden_layers": self.n_layer,
            "encoder_attention_heads": self.n_head,
            "encoder_ffn_dim": self.n_ff,
            "activation_function": "gelu",
            "max_source_positions": 1500,
            "n_window": 50,
            "n_window_infer": 800,
            "conv_chunksize": 500,
            "downsample_hidden_size": STEM_CHANNELS,
            "output_dim": n_out,
            "scale_embedding": false,
        })
    }

    pub(super) fn tensors(&self, n_out: usize, tensors: &mut Tensors) {
        const PREFIX: &str = "thinker.audio_tower.";
        let n_embd = self.n_embd;
        for (i, n_in, scale) in [(1, 1, KERNEL), (2, STEM_CHANNELS, MATRIX), (3, STEM_CHANNELS, MATRIX)] {
            tensors.pair(&format!("{PREFIX}conv2d{i}"), &[STEM_CHANNELS, n_in, 3, 3], scale);
        }
        // Three halvings of the mel axis.
        tensors.add(format!("{PREFIX}conv_out.weight"), &[n_embd, STEM_CHANNELS * N_MELS / 8], MATRIX);
        for i in 0..self.n_layer {
            let mut pair = |name: &str, dims: &[usize], scale| {
                tensors.pair(&format!("{PREFIX}layers.{i}.{name}"), dims, scale);
            };
            for part in ["q", "k", "v", "out"] {
                pair(&format!("self_attn.{part}_proj"), &[n_embd, n_embd], MATRIX);
            }
            pair("self_attn_layer_norm", &[n_embd], NORM);
            pair("final_layer_norm", &[n_embd], NORM);
            pair("fc1", &[self.n_ff, n_embd], MATRIX);
            pair("fc2", &[n_embd, self.n_ff], MATRIX);
        }
        tensors.pair(&format!("{PREFIX}ln_post"), &[n_embd], NORM);
        tensors.pair(&format!("{PREFIX}proj1"), &[n_embd, n_embd], MATRIX);
        tensors.pair(&format!("{PREFIX}proj2"), &[n_out, n_embd], MATRIX);
    }
}
