//! Granite 4 hybrid: Mamba 2 blocks with a layer of attention now and then, feed-forward blocks or experts beside a shared
//! one, and constants on every way into and out of the residual stream.
//! Source: transformers, `models/granitemoehybrid/modeling_granitemoehybrid.py`.

use engine::gguf::Gguf;
use engine::op::{Gating, RopePairs, Route};
use engine::state::States;
use engine::weights::WeightStore;

use crate::blocks::attention::{Attention, AttentionOptions, AttentionShape};
use crate::blocks::ffn::SwiGlu;
use crate::blocks::moe::{Moe, MoeShape, SharedExpert};
use crate::blocks::rows_of;
use crate::blocks::ssm::{Mamba2, SsmShape};
use crate::decoder::{Decoder, FeedForward, Layer, Mixer, Parts, Scales, embedding};
use crate::error::Result;
use crate::hparams::Hparams;

/// `general.architecture`.
const ARCH: &str = "granitehybrid";
/// Base of the rotary frequencies where the metadata name none. Source: llama.cpp, `llama_model_base::load_hparams`.
const ROPE_THETA: f32 = 10_000.0;

/// A decoder of architecture `granitehybrid`. A layer without heads has a state-space block, one without a router no experts.
///
/// Errors: keys or tensors that are missing or do not fit each other.
pub fn load(files: &[Gguf], w: &WeightStore) -> Result<Decoder> {
    let hp = Hparams::new(files, ARCH);
    let n_embd = hp.size("embedding_length")?;
    let ssm = SsmShape::read_heads(&hp, n_embd)?;
    let eps = hp.positive("attention.layer_norm_rms_epsilon")?;
    let attention = AttentionShape::of_layers(&hp, n_embd)?;
    let embed_tokens = embedding(w, n_embd)?;
    let mut states = States::new();
    let layers = attention.into_iter().enumerate().map(|(i, attention)| {
        let prefix = format!("blk.{i}");
        let norm = |name: &str| w.get(&format!("{prefix}.{name}.weight"), [n_embd]);
        let mixer: Box<dyn Mixer> = match attention {
            Some(shape) => {
                let options = attention_options(&hp, &shape)?;
                Box::new(Attention::load(w, &prefix, shape, options, &mut states, i)?)
            }
            None => Box::new(Mamba2::load(w, &prefix, ssm, eps, &mut states, i)?),
        };
        let ffn = feed_forward(&hp, w, &prefix, n_embd)?;
        Ok(Layer { norm: norm("attn_norm")?, mixer, ffn: Some((norm("ffn_norm")?, ffn)) })
    });
    let layers = layers.collect::<Result<_>>()?;
    let norm = w.get("output_norm.weight", [n_embd])?;
    Decoder::load(w, Parts { arch: ARCH, embed_tokens, eps, scales: scales(&hp)?, states, layers, norm })
}

/// The constants. Absent or 0, they are 1: llama.cpp writes and reads them so.
fn scales(hp: &Hparams<'_>) -> Result<Scales> {
    Ok(Scales {
        embedding: hp.factor_or("embedding_scale", 1.0)?,
        residual: hp.factor_or("residual_scale", 1.0)?,
        logits: 1.0 / hp.factor_or("logit_scale", 1.0)?,
    })
}

/// Without rotation, unless the file says that the model was trained with it. Source: llama.cpp, `rope_finetuned` in
/// `src/models/granite-hybrid.cpp`.
fn attention_options(hp: &Hparams<'_>, shape: &AttentionShape) -> Result<AttentionOptions> {
    let rope = match hp.flag_or("rope.scaling.finetuned", true)? {
        true => Some(shape.rope(hp.positive_or("rope.freq_base", ROPE_THETA)?, RopePairs::Interleaved)),
        false => None,
    };
    Ok(AttentionOptions {
        qk_norm_eps: None,
        rope,
        rope_factors: None,
        scale: hp.factor_or("attention.scale", shape.scale())?,
        is_gated: false,
    })
}

/// Experts beside a shared one where there is a router; else a feed-forward block.
fn feed_forward(hp: &Hparams<'_>, w: &WeightStore, prefix: &str, n_embd: usize) -> Result<Box<dyn FeedForward>> {
    let n_ff = hp.size("feed_forward_length")?;
    if !w.contains(&format!("{prefix}.ffn_gate_inp.weight")) {
        let n_ff = rows_of(w, &format!("{prefix}.ffn_gate.weight"))?;
        return Ok(Box::new(SwiGlu::load(w, prefix, n_embd, n_ff)?));
    }
    let (shape, n_used) = MoeShape::read(hp, n_embd, n_ff)?;
    let route = Route { n_used, gating: Gating::Softmax, bias: false, normalize: true, norm_eps: 0.0, scale: 1.0 };
    let moe = Moe::load(w, prefix, shape, route)?;
    Ok(Box::new(match hp.count_or("expert_shared_feed_forward_length", 0)? {
        0 => moe,
        n_ff => moe.with_shared(SharedExpert::load(w, prefix, n_embd, n_ff)?),
    }))
}
