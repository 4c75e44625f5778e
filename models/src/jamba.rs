//! Jamba: state-space blocks with a layer of attention now and then, and experts in every other layer.
//! Source: transformers, `models/jamba/modeling_jamba.py`; Lieber et al. 2024, "Jamba".

use engine::gguf::Gguf;
use engine::op::{Gating, Route};
use engine::state::States;
use engine::weights::WeightStore;

use crate::blocks::attention::{Attention, AttentionOptions, AttentionShape};
use crate::blocks::ffn::SwiGlu;
use crate::blocks::moe::{Moe, MoeShape};
use crate::blocks::ssm::{Mamba, SsmShape};
use crate::decoder::{Decoder, FeedForward, Layer, Mixer, Parts, Scales, embedding};
use crate::error::Result;
use crate::hparams::Hparams;

/// `general.architecture`.
const ARCH: &str = "jamba";

/// A decoder of architecture `jamba`. A layer without heads has a state-space block, one without a router no experts.
///
/// Errors: keys or tensors that are missing or do not fit each other.
pub fn load(files: &[Gguf], w: &WeightStore) -> Result<Decoder> {
    let hp = Hparams::new(files, ARCH);
    let n_embd = hp.size("embedding_length")?;
    let ssm = SsmShape::read(&hp, n_embd)?;
    let eps = hp.positive("attention.layer_norm_rms_epsilon")?;
    let n_ff = hp.size("feed_forward_length")?;
    let attention = AttentionShape::of_layers(&hp, n_embd)?;
    let embed_tokens = embedding(w, n_embd)?;
    let mut states = States::new();
    let layers = attention.into_iter().enumerate().map(|(i, attention)| {
        let prefix = format!("blk.{i}");
        let norm = |name: &str| w.get(&format!("{prefix}.{name}.weight"), [n_embd]);
        let mixer: Box<dyn Mixer> = match attention {
            Some(shape) => {
                let options = AttentionOptions {
                    qk_norm_eps: None,
                    rope: None,
                    rope_factors: None,
                    scale: shape.scale(),
                    is_gated: false,
                };
                Box::new(Attention::load(w, &prefix, shape, options, &mut states, i)?)
            }
            None => Box::new(Mamba::load(w, &prefix, ssm, eps, &mut states, i)?),
        };
        let ffn: Box<dyn FeedForward> = if w.contains(&format!("{prefix}.ffn_gate_inp.weight")) {
            // The scores of the chosen experts are their weights.
            let (shape, n_used) = MoeShape::read(&hp, n_embd, n_ff)?;
            let gating = Gating::Softmax;
            let route = Route { n_used, gating, bias: false, normalize: false, norm_eps: 0.0, scale: 1.0 };
            Box::new(Moe::load(w, &prefix, shape, route)?)
        } else {
            Box::new(SwiGlu::load(w, &prefix, n_embd, n_ff)?)
        };
        Ok(Layer { norm: norm("attn_norm")?, mixer, ffn: Some((norm("ffn_norm")?, ffn)) })
    });
    let layers = layers.collect::<Result<_>>()?;
    let norm = w.get("output_norm.weight", [n_embd])?;
    Decoder::load(w, Parts { arch: ARCH, embed_tokens, eps, scales: Scales::default(), states, layers, norm })
}
