//! LFM2, text: gated short convolutions and grouped-query attention in turn, dense or with mixtures of experts.
//! Source: transformers, `models/lfm2/modeling_lfm2.py`, `models/lfm2_moe/modeling_lfm2_moe.py`.

use engine::gguf::Gguf;
use engine::op::{Gating, RopePairs, Route};
use engine::state::States;
use engine::weights::WeightStore;

use crate::blocks::attention::{Attention, AttentionOptions, AttentionShape};
use crate::blocks::ffn::SwiGlu;
use crate::blocks::moe::{Moe, MoeShape};
use crate::blocks::rows_of;
use crate::blocks::short_conv::ShortConv;
use crate::decoder::{Decoder, FeedForward, Layer, Mixer, Parts, Scales, embedding};
use crate::error::Result;
use crate::hparams::Hparams;

/// `expert_gating_func` of the sigmoid. Source: llama.cpp, `enum llama_expert_gating_func_type`.
const GATING_SIGMOID: usize = 2;
/// Added to the sum of the experts' weights. Source: transformers, `Lfm2MoeSparseMoeBlock.route_tokens_to_experts`.
const ROUTE_NORM_EPS: f32 = 1e-6;
/// Widest convolution: far above every published model's 3.
const MAX_CONV: usize = 64;

/// Parameters of an LFM2 decoder.
#[derive(Clone, Debug)]
struct Lfm2Params {
    /// Width of the residual stream.
    n_embd: usize,
    /// Attention of every layer; none for a layer with a convolution.
    attention: Vec<Option<AttentionShape>>,
    /// Taps of the convolutions, the current token's included.
    d_conv: usize,
    /// Added to the mean of squares in every norm.
    eps: f32,
    /// Base of the rotary frequencies.
    rope_theta: f32,
    /// Mixtures of experts, where there are some.
    moe: Option<MoeParams>,
}

/// Parameters of the layers with experts.
#[derive(Clone, Copy, Debug)]
struct MoeParams {
    /// Sizes.
    shape: MoeShape,
    /// Experts that a token is sent to.
    n_used: u32,
    /// Layers before the first mixture.
    n_dense: usize,
}

impl Lfm2Params {
    fn read(hp: &Hparams<'_>, has_experts: bool) -> Result<Self> {
        let n_embd = hp.size("embedding_length")?;
        let attention = AttentionShape::of_layers(hp, n_embd)?;
        let d_conv = hp.size("shortconv.l_cache")?;
        if !(2..=MAX_CONV).contains(&d_conv) {
            return Err(hp.bad("shortconv.l_cache", format!("want 2 to {MAX_CONV}, got {d_conv}")));
        }
        if hp.count_or("attention.sliding_window", 0)? > 0 {
            return Err(hp.bad("attention.sliding_window", "sliding windows are not supported".into()));
        }
        if !hp.flag_or("attention.causal", true)? {
            return Err(hp.bad("attention.causal", "models that look ahead are not supported".into()));
        }
        Ok(Self {
            n_embd,
            d_conv,
            eps: hp.positive("attention.layer_norm_rms_epsilon")?,
            rope_theta: hp.positive("rope.freq_base")?,
            moe: if has_experts { Some(MoeParams::read(hp, n_embd, attention.len())?) } else { None },
            attention,
        })
    }

    fn attention_options(&self, shape: &AttentionShape) -> AttentionOptions {
        AttentionOptions {
            qk_norm_eps: Some(self.eps),
            rope: Some(shape.rope(self.rope_theta, RopePairs::Halves)),
            rope_factors: None,
            scale: shape.scale(),
            is_gated: false,
        }
    }
}

impl MoeParams {
    fn read(hp: &Hparams<'_>, n_embd: usize, n_layer: usize) -> Result<Self> {
        let (shape, n_used) = MoeShape::read(hp, n_embd, hp.size("expert_feed_forward_length")?)?;
        let gating = hp.count_or("expert_gating_func", GATING_SIGMOID)?;
        if gating != GATING_SIGMOID {
            return Err(hp.bad("expert_gating_func", format!("want {GATING_SIGMOID} (sigmoid), got {gating}")));
        }
        let n_dense = hp.count_or("leading_dense_block_count", 0)?;
        if n_dense > n_layer {
            return Err(hp.bad("leading_dense_block_count", format!("want at most {n_layer} layers, got {n_dense}")));
        }
        Ok(Self { shape, n_used, n_dense })
    }

    fn route(&self) -> Route {
        Route {
            n_used: self.n_used,
            gating: Gating::Sigmoid,
            bias: false,
            normalize: true,
            norm_eps: ROUTE_NORM_EPS,
            scale: 1.0,
        }
    }
}

/// A decoder of architecture `lfm2`.
///
/// Errors: keys or tensors that are missing or do not fit each other.
pub fn load(files: &[Gguf], w: &WeightStore) -> Result<Decoder> {
    read(files, "lfm2", w, false)
}

/// A decoder of architecture `lfm2moe`.
///
/// Errors: as [`load`].
pub(crate) fn load_moe(files: &[Gguf], w: &WeightStore) -> Result<Decoder> {
    read(files, "lfm2moe", w, true)
}

fn read(files: &[Gguf], arch: &'static str, w: &WeightStore, has_experts: bool) -> Result<Decoder> {
    let params = Hparams::new(files, arch);
    let hp = Lfm2Params::read(&params, has_experts)?;
    // Files are about that say another width than their tensors have; it is an error only where it is no width.
    params.size("feed_forward_length")?;
    let n_embd = hp.n_embd;
    let embed_tokens = embedding(w, n_embd)?;
    let mut states = States::new();
    let layers = hp.attention.iter().enumerate().map(|(i, attention)| {
        let prefix = format!("blk.{i}");
        let mixer: Box<dyn Mixer> = match *attention {
            None => Box::new(ShortConv::load(w, &prefix, [n_embd, hp.d_conv], &mut states, i)?),
            Some(shape) => Box::new(Attention::load(w, &prefix, shape, hp.attention_options(&shape), &mut states, i)?),
        };
        let ffn: Box<dyn FeedForward> = match &hp.moe {
            Some(moe) if i >= moe.n_dense => Box::new(Moe::load(w, &prefix, moe.shape, moe.route())?),
            _ => {
                let n_ff = rows_of(w, &format!("{prefix}.ffn_gate.weight"))?;
                Box::new(SwiGlu::load(w, &prefix, n_embd, n_ff)?)
            }
        };
        Ok(Layer {
            norm: w.get(&format!("{prefix}.attn_norm.weight"), [n_embd])?, // operator_norm
            mixer,
            ffn: Some((w.get(&format!("{prefix}.ffn_norm.weight"), [n_embd])?, ffn)),
        })
    });
    let layers = layers.collect::<Result<_>>()?;
    // The norm after the last layer, whatever its name says.
    let alias = w.get_optional("output_norm.weight", [n_embd])?;
    let norm = w.get_optional("token_embd_norm.weight", [n_embd])?.or(alias);
    let norm = norm.ok_or_else(|| w.missing("token_embd_norm.weight"))?;
    Decoder::load(w, Parts { arch, embed_tokens, eps: hp.eps, scales: Scales::default(), states, layers, norm })
}
