//! LFM2, alone and in LFM2-Audio, without its weights.

use serde_json::{Value, json};

use super::tensors::{BIAS, KERNEL, MATRIX, N_MELS, NORM, Scale, TAPS, Tensors, merged};

/// Of kernels that only mix channels.
const POINTWISE: Scale = Scale(0.0, 0.06);
/// Rows of the embedding of the first generation of LFM2.
pub(super) const LFM2_VOCAB: usize = 65_536;
/// Taps of a short convolution.
const L_CACHE: usize = 3;
/// Width of LFM2's feed-forward layers is a multiple of this.
const FF_MULTIPLE: usize = 256;

/// The numbers of an LFM2 decoder that differ between sizes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lfm2 {
    /// Width.
    pub(super) n_embd: usize,
    /// Heads of queries; there are 8 of keys and values.
    pub(super) n_head: usize,
    /// Layers.
    pub(super) n_layer: usize,
    /// Which layers have attention.
    pub(super) attention: &'static [usize],
    /// Width of the feed-forward layers, as the configuration names it.
    pub(super) n_ff: usize,
    /// Whether two thirds of that are meant, rounded up to a multiple of 256.
    pub(super) adjusts_ff: bool,
    /// Experts, where there are any.
    pub(super) experts: Option<Experts>,
}

/// Layers with experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Experts {
    /// Experts of a layer.
    pub(super) n_expert: usize,
    /// Experts of a token.
    pub(super) n_used: usize,
    /// Width of an expert.
    pub(super) n_ff: usize,
    /// Layers without experts, all in front.
    pub(super) n_dense: usize,
}

/// The numbers of LFM2-Audio's encoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conformer {
    /// Width.
    pub(super) n_embd: usize,
    /// Layers.
    pub(super) n_layer: usize,
    /// Heads.
    pub(super) n_head: usize,
    /// Channels of the stem.
    pub(super) n_channels: usize,
    /// Taps of the convolution along time.
    pub(super) n_taps: usize,
    /// Audio tokens of all codebooks.
    pub(super) n_audio_tokens: usize,
}

/// Layers with attention of the models with 16 layers.
const ATTENTION_16: &[usize] = &[2, 5, 8, 10, 12, 14];
/// LFM2-1.2B, and inside LFM2-Audio.
pub(super) const LFM2_12B: Lfm2 = Lfm2 {
    n_embd: 2048,
    n_head: 32,
    n_layer: 16,
    attention: ATTENTION_16,
    n_ff: 12_288,
    adjusts_ff: true,
    experts: None,
};

impl Lfm2 {
    /// Heads of keys and values.
    const N_HEAD_KV: usize = 8;

    pub(super) fn config(&self) -> Value {
        let kind = |i| if self.attention.contains(&i) { "full_attention" } else { "conv" };
        let shared = json!({
            "hidden_size": self.n_embd,
            "num_hidden_layers": self.n_layer,
            "layer_types": (0..self.n_layer).map(kind).collect::<Vec<_>>(),
            "num_attention_heads": self.n_head,
            "num_key_value_heads": Self::N_HEAD_KV,
            "intermediate_size": self.n_ff,
            "norm_eps": 1e-5,
            "conv_L_cache": L_CACHE,
            "conv_bias": false,
            "vocab_size": LFM2_VOCAB,
            "rope_theta": 1_000_000.0,
            "max_position_embeddings": 128_000,
            "tie_embedding": true,
            "bos_token_id": 1,
            "eos_token_id": 7,
            "pad_token_id": 0,
        });
        let own = match &self.experts {
            None => json!({
                "architectures": ["Lfm2ForCausalLM"],
                "model_type": "lfm2",
                "block_ff_dim": self.n_ff,
                "block_auto_adjust_ff_dim": self.adjusts_ff,
                "block_ffn_dim_multiplier": 1.0,
                "block_multiple_of": FF_MULTIPLE,
            }),
            Some(experts) => json!({
                "architectures": ["Lfm2MoeForCausalLM"],
                "model_type": "lfm2_moe",
                "num_experts": experts.n_expert,
                "num_experts_per_tok": experts.n_used,
                "moe_intermediate_size": experts.n_ff,
                "num_dense_layers": experts.n_dense,
                "norm_topk_prob": true,
                "use_expert_bias": true,
                "routed_scaling_factor": 1.0,
            }),
        };
        merged(own, [shared])
    }

    pub(super) fn tensors(&self, prefix: &str, tensors: &mut Tensors) {
        let n_embd = self.n_embd;
        tensors.add(format!("{prefix}embed_tokens.weight"), &[LFM2_VOCAB, n_embd], MATRIX);
        for i in 0..self.n_layer {
            let mut add = |name: &str, dims: &[usize], scale| {
                tensors.add(format!("{prefix}layers.{i}.{name}.weight"), dims, scale);
            };
            if self.attention.contains(&i) {
                let head_dim = n_embd / self.n_head;
                let n_kv = Self::N_HEAD_KV * head_dim;
                add("self_attn.q_proj", &[n_embd, n_embd], MATRIX);
                add("self_attn.k_proj", &[n_kv, n_embd], MATRIX);
                add("self_attn.v_proj", &[n_kv, n_embd], MATRIX);
                add("self_attn.out_proj", &[n_embd, n_embd], MATRIX);
                add("self_attn.q_layernorm", &[head_dim], NORM);
                add("self_attn.k_layernorm", &[head_dim], NORM);
            } else {
                add("conv.in_proj", &[3 * n_embd, n_embd], MATRIX);
                add("conv.conv", &[n_embd, 1, L_CACHE], TAPS);
                add("conv.out_proj", &[n_embd, n_embd], MATRIX);
            }
            add("operator_norm", &[n_embd], NORM);
            add("ffn_norm", &[n_embd], NORM);
            match &self.experts {
                Some(experts) if i >= experts.n_dense => {
                    add("feed_forward.gate", &[experts.n_expert, n_embd], MATRIX);
                    for e in 0..experts.n_expert {
                        feed_forward(&mut add, &format!("feed_forward.experts.{e}"), n_embd, experts.n_ff);
                    }
                    let bias = format!("{prefix}layers.{i}.feed_forward.expert_bias");
                    tensors.add(bias, &[experts.n_expert], BIAS);
                }
                _ => feed_forward(&mut add, "feed_forward", n_embd, self.feed_forward_width()),
            }
        }
        tensors.add(format!("{prefix}embedding_norm.weight"), &[n_embd], NORM);
    }

    fn feed_forward_width(&self) -> usize {
        if self.adjusts_ff { (2 * self.n_ff / 3).next_multiple_of(FF_MULTIPLE) } else { self.n_ff }
    }
}

/// The three matrices of a feed-forward layer.
fn feed_forward(add: &mut impl FnMut(&str, &[usize], Scale), name: &str, n_embd: usize, n_ff: usize) {
    add(&format!("{name}.w1"), &[n_ff, n_embd], MATRIX);
    add(&format!("{name}.w2"), &[n_embd, n_ff], MATRIX);
    add(&format!("{name}.w3"), &[n_ff, n_embd], MATRIX);
}

impl Conformer {
    /// Width of the feed-forward layers, in widths.
    const EXPANSION: usize = 4;

    pub(super) fn config(&self) -> Value {
        json!({
            "feat_in": N_MELS,
            "feat_out": -1,
            "n_layers": self.n_layer,
            "d_model": self.n_embd,
            "n_heads": self.n_head,
            "ff_expansion_factor": Self::EXPANSION,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": self.n_channels,
            "causal_downsampling": false,
            "reduction": null,
            "self_attention_model": "rel_pos",
            "att_context_size": [-1, -1],
            "xscaling": false,
            "untie_biases": true,
            "pos_emb_max_len": 5000,
            "conv_kernel_size": self.n_taps,
            "conv_norm_type": "batch_norm",
            "conv_context_size": null,
        })
    }

    /// `n_out`: width of the decoder.
    pub(super) fn tensors(&self, n_out: usize, tensors: &mut Tensors) {
        let (n, n_embd) = (self.n_channels, self.n_embd);
        for (i, n_in, side, scale) in
            [(0, 1, 3, KERNEL), (2, 1, 3, KERNEL), (3, n, 1, POINTWISE), (5, 1, 3, KERNEL), (6, n, 1, POINTWISE)]
        {
            tensors.pair(&format!("conformer.pre_encode.conv.{i}"), &[n, n_in, side, side], scale);
        }
        tensors.pair("conformer.pre_encode.out", &[n_embd, n * N_MELS / 8], MATRIX);
        for i in 0..self.n_layer {
            self.layer(&format!("conformer.layers.{i}"), tensors);
        }
        tensors.pair("audio_adapter.model.0", &[n_embd], NORM);
        tensors.pair("audio_adapter.model.1", &[n_out, n_embd], MATRIX);
        tensors.pair("audio_adapter.model.3", &[n_out, n_out], MATRIX);
        tensors.add("audio_embedding.embedding.weight", &[self.n_audio_tokens, n_out], MATRIX);
        tensors.add("audio_embedding.embedding_norm.weight", &[n_out], NORM);
        tensors.add("audio_embedding.to_logits.weight", &[self.n_audio_tokens, n_out], MATRIX);
    }

    fn layer(&self, prefix: &str, tensors: &mut Tensors) {
        let (n_embd, n_ff) = (self.n_embd, Self::EXPANSION * self.n_embd);
        let mut pair = |name: &str, dims: &[usize], scale| tensors.pair(&format!("{prefix}.{name}"), dims, scale);
        for norm in ["norm_feed_forward1", "norm_self_att", "norm_conv", "norm_feed_forward2", "norm_out"] {
            pair(norm, &[n_embd], NORM);
        }
        for part in ["feed_forward1", "feed_forward2"] {
            pair(&format!("{part}.linear1"), &[n_ff, n_embd], MATRIX);
            pair(&format!("{part}.linear2"), &[n_embd, n_ff], MATRIX);
        }
        for part in ["q", "k", "v", "out"] {
            pair(&format!("self_attn.linear_{part}"), &[n_embd, n_embd], MATRIX);
        }
        pair("conv.pointwise_conv1", &[2 * n_embd, n_embd, 1], MATRIX);
        pair("conv.depthwise_conv", &[n_embd, 1, self.n_taps], KERNEL);
        pair("conv.pointwise_conv2", &[n_embd, n_embd, 1], MATRIX);
        pair("conv.batch_norm", &[n_embd], NORM);
        tensors.add(format!("{prefix}.conv.batch_norm.running_mean"), &[n_embd], BIAS);
        tensors.add(format!("{prefix}.conv.batch_norm.running_var"), &[n_embd], NORM);
        tensors.add(format!("{prefix}.self_attn.linear_pos.weight"), &[n_embd, n_embd], MATRIX);
        for part in ["pos_bias_u", "pos_bias_v"] {
            tensors.add(format!("{prefix}.self_attn.{part}"), &[self.n_head, n_embd / self.n_head], BIAS);
        }
    }
}
