//! Qwen3-Next and Qwen3.5, text: gated delta nets and gated attention in turn, dense or with mixtures of experts.
//! Source: transformers, `models/qwen3_next/modeling_qwen3_next.py`, `models/qwen3_5/modeling_qwen3_5.py`,
//! `models/qwen3_5_moe/modeling_qwen3_5_moe.py`.

use engine::gguf::Gguf;
use engine::op::{Gating, HeadMap, RopePairs, Route};
use engine::state::States;
use engine::weights::WeightStore;

use crate::blocks::attention::{Attention, AttentionOptions, AttentionShape};
use crate::blocks::delta_net::{DeltaNet, DeltaShape};
use crate::blocks::ffn::SwiGlu;
use crate::blocks::moe::{Moe, MoeShape, SharedExpert};
use crate::decoder::{Decoder, FeedForward, Layer, Mixer, Parts, Scales, embedding};
use crate::error::Result;
use crate::hparams::Hparams;

/// `expert_gating_func` of the softmax. Source: llama.cpp, `enum llama_expert_gating_func_type`.
const GATING_SOFTMAX: usize = 1;
/// Every layer of this number has attention where the metadata do not say which. Source: llama.cpp,
/// `llama_model_qwen3next::load_arch_hparams`.
const ATTENTION_INTERVAL: usize = 4;

/// The architectures, as far as they differ.
struct Family {
    arch: &'static str,
    /// In which order files have value heads.
    heads: HeadMap,
    has_experts: bool,
}

/// A decoder of architecture `qwen3next`.
///
/// Errors: keys or tensors that are missing or do not fit each other.
pub fn load(files: &[Gguf], w: &WeightStore) -> Result<Decoder> {
    read(files, w, &Family { arch: "qwen3next", heads: HeadMap::Interleaved, has_experts: true })
}

/// A decoder of architecture `qwen35`.
///
/// Errors: as [`load`].
pub(crate) fn load_dense(files: &[Gguf], w: &WeightStore) -> Result<Decoder> {
    read(files, w, &Family { arch: "qwen35", heads: HeadMap::Tiled, has_experts: false })
}

/// A decoder of architecture `qwen35moe`.
///
/// Errors: as [`load`].
pub(crate) fn load_moe(files: &[Gguf], w: &WeightStore) -> Result<Decoder> {
    read(files, w, &Family { arch: "qwen35moe", heads: HeadMap::Tiled, has_experts: true })
}

/// Sizes of the feed-forward layers.
enum FeedForwardShape {
    /// Width of a dense one.
    Dense(usize),
    Experts {
        shape: MoeShape,
        route: Route,
        /// Width of the expert that every token is sent to.
        n_ff_shared: usize,
    },
}

impl FeedForwardShape {
    fn read(hp: &Hparams<'_>, n_embd: usize, has_experts: bool) -> Result<Self> {
        const WIDTH: &str = "feed_forward_length";
        if !has_experts {
            return Ok(Self::Dense(hp.size(WIDTH)?));
        }
        let (shape, n_used) = MoeShape::read(hp, n_embd, hp.size("expert_feed_forward_length")?)?;
        let gating = hp.count_or("expert_gating_func", GATING_SOFTMAX)?;
        if gating != GATING_SOFTMAX {
            return Err(hp.bad("expert_gating_func", format!("want {GATING_SOFTMAX} (softmax), got {gating}")));
        }
        const SHARED: &str = "expert_shared_feed_forward_length";
        Ok(Self::Experts {
            shape,
            route: Route { n_used, gating: Gating::Softmax, bias: false, normalize: true, norm_eps: 0.0, scale: 1.0 },
            n_ff_shared: if hp.contains(SHARED) { hp.size(SHARED)? } else { hp.size(WIDTH)? },
        })
    }

    fn load(&self, w: &WeightStore, prefix: &str, n_embd: usize) -> Result<Box<dyn FeedForward>> {
        Ok(match *self {
            Self::Dense(n_ff) => Box::new(SwiGlu::load(w, prefix, n_embd, n_ff)?),
            Self::Experts { shape, route, n_ff_shared } => {
                let shared = SharedExpert::load_gated(w, prefix, n_embd, n_ff_shared)?;
                Box::new(Moe::load(w, prefix, shape, route)?.with_shared(shared))
            }
        })
    }
}

/// Of every layer, whether it has a gated delta net; attention otherwise. Blocks behind the layers, which predict the token
/// after the next, are passed over.
fn recurrent_layers(hp: &Hparams<'_>) -> Result<Vec<bool>> {
    const NEXT: &str = "nextn_predict_layers";
    let (n_block, n_next) = (hp.size("block_count")?, hp.count_or(NEXT, 0)?);
    let n_layer = n_block.saturating_sub(n_next);
    if n_layer == 0 {
        return Err(hp.bad(NEXT, format!("want less than {n_block} blocks, got {n_next}")));
    }
    let interval = hp.size_or("full_attention_interval", ATTENTION_INTERVAL)?;
    let listed = hp.flags_of_layers("attention.recurrent_layers", n_block)?;
    let mut is_recurrent = listed.unwrap_or_else(|| (1..=n_block).map(|i| !i.is_multiple_of(interval)).collect());
    is_recurrent.truncate(n_layer);
    Ok(is_recurrent)
}

fn read(files: &[Gguf], w: &WeightStore, family: &Family) -> Result<Decoder> {
    let hp = Hparams::new(files, family.arch);
    let n_embd = hp.size("embedding_length")?;
    let eps = hp.positive("attention.layer_norm_rms_epsilon")?;
    hp.expect_text("rope.scaling.type", &["none"])?;
    let attention = AttentionShape::read(&hp, n_embd)?;
    let options = AttentionOptions {
        qk_norm_eps: Some(eps),
        rope: Some(attention.read_rope(&hp, hp.positive("rope.freq_base")?, RopePairs::Halves)?),
        rope_factors: None,
        scale: attention.scale(),
        is_gated: true,
    };
    let delta = DeltaShape::read(&hp, n_embd, family.heads, eps)?;
    let ffn = FeedForwardShape::read(&hp, n_embd, family.has_experts)?;
    let embed_tokens = embedding(w, n_embd)?;
    let mut states = States::new();
    let layers = recurrent_layers(&hp)?.into_iter().enumerate().map(|(i, is_recurrent)| {
        let prefix = format!("blk.{i}");
        let norm = |name: &str| w.get(&format!("{prefix}.{name}.weight"), [n_embd]);
        let mixer: Box<dyn Mixer> = if is_recurrent {
            Box::new(DeltaNet::load(w, &prefix, delta, &mut states, i)?)
        } else {
            Box::new(Attention::load(w, &prefix, attention, options, &mut states, i)?)
        };
        let ffn = ffn.load(w, &prefix, n_embd)?;
        // The norm before the feed-forward layer, as in the official code.
        Ok(Layer { norm: norm("attn_norm")?, mixer, ffn: Some((norm("post_attention_norm")?, ffn)) })
    });
    let layers = layers.collect::<Result<_>>()?;
    let norm = w.get("output_norm.weight", [n_embd])?;
    Decoder::load(w, Parts { arch: family.arch, embed_tokens, eps, scales: Scales::default(), states, layers, norm })
}
