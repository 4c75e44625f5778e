//! LFM2, text: gated short convolutions and grouped-query attention in turn, dense or with mixtures of experts.
//! Source: transformers, `models/lfm2/modeling_lfm2.py`, `models/lfm2_moe/modeling_lfm2_moe.py`.

use engine::builder::{BatchInputs, GraphBuilder};
use engine::gguf::Gguf;
use engine::key::GraphKey;
use engine::model::Model;
use engine::op::{Gating, RopePairs, Route};
use engine::state::{KvCache, States};
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use crate::blocks::attention::{Attention, AttentionOptions, AttentionShape, head_dim};
use crate::blocks::ffn::SwiGlu;
use crate::blocks::moe::{Moe, MoeShape};
use crate::blocks::rows_of;
use crate::blocks::short_conv::ShortConv;
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
    /// Rows of the embedding.
    n_vocab: usize,
    /// Width of the residual stream.
    n_embd: usize,
    /// Query heads of attention layers.
    n_head: usize,
    /// Width of a head.
    head_dim: usize,
    /// Key and value heads of every layer; 0 for a layer with a convolution.
    n_head_kv: Vec<usize>,
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
    n_used: usize,
    /// Layers before the first mixture.
    n_dense: usize,
}

impl Lfm2Params {
    fn read(hp: &Hparams<'_>, w: &WeightStore, has_experts: bool) -> Result<Self> {
        let n_embd = hp.size("embedding_length")?;
        let n_layer = hp.size("block_count")?;
        let n_head = hp.size("attention.head_count")?;
        let head_dim = head_dim(hp, n_embd, n_head)?;
        let n_head_kv = hp.sizes_of_layers("attention.head_count_kv", n_layer)?;
        if let Some(odd) = n_head_kv.iter().find(|&&n| n > 0 && !n_head.is_multiple_of(n)) {
            return Err(hp.bad("attention.head_count_kv", format!("want divisors of {n_head} heads, got {odd}")));
        }
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
            n_vocab: rows_of(w, "token_embd.weight")?,
            n_embd,
            n_head,
            head_dim,
            n_head_kv,
            d_conv,
            eps: hp.positive("attention.layer_norm_rms_epsilon")?,
            rope_theta: hp.positive("rope.freq_base")?,
            moe: if has_experts { Some(MoeParams::read(hp, n_embd, n_layer)?) } else { None },
        })
    }

    fn n_layer(&self) -> usize {
        self.n_head_kv.len()
    }
}

impl MoeParams {
    fn read(hp: &Hparams<'_>, n_embd: usize, n_layer: usize) -> Result<Self> {
        let n_expert = hp.size("expert_count")?;
        let n_used = hp.size("expert_used_count")?;
        if n_used > n_expert {
            return Err(hp.bad("expert_used_count", format!("want at most {n_expert} experts, got {n_used}")));
        }
        let gating = hp.count_or("expert_gating_func", GATING_SIGMOID)?;
        if gating != GATING_SIGMOID {
            return Err(hp.bad("expert_gating_func", format!("want {GATING_SIGMOID} (sigmoid), got {gating}")));
        }
        let n_dense = hp.count_or("leading_dense_block_count", 0)?;
        if n_dense > n_layer {
            return Err(hp.bad("leading_dense_block_count", format!("want at most {n_layer} layers, got {n_dense}")));
        }
        let shape = MoeShape { n_embd, n_ff: hp.size("expert_feed_forward_length")?, n_expert };
        Ok(Self { shape, n_used, n_dense })
    }

    fn route(&self) -> Route {
        Route {
            n_used: u32::try_from(self.n_used).expect("sizes were limited"),
            gating: Gating::Sigmoid,
            bias: false,
            normalize: true,
            norm_eps: ROUTE_NORM_EPS,
            scale: 1.0,
        }
    }
}

/// What mixes tokens in a layer.
enum Mixer {
    Conv(ShortConv),
    Attention(Box<Attention>),
}

/// What works on every token by itself.
enum FeedForward {
    Dense(SwiGlu),
    Moe(Moe),
}

struct Layer {
    operator_norm: Weight, // [n_embd]
    mixer: Mixer,
    ffn_norm: Weight, // [n_embd]
    ffn: FeedForward,
}

/// The decoder of LFM2 and of LFM2-Audio.
pub struct Lfm2 {
    arch: &'static str,
    hp: Lfm2Params,
    states: States,
    embed_tokens: Weight, // [n_vocab, n_embd]
    layers: Vec<Layer>,
    embedding_norm: Weight, // [n_embd]; the norm after the last layer, whatever its name says
    lm_head: Weight,        // [n_vocab, n_embd]; the embedding where the file has none
}

impl Lfm2 {
    /// A decoder of architecture `lfm2`.
    ///
    /// Errors: keys or tensors that are missing or do not fit each other.
    pub fn load(files: &[Gguf], w: &WeightStore) -> Result<Self> {
        Self::read(files, "lfm2", w, false)
    }

    /// A decoder of architecture `lfm2moe`.
    ///
    /// Errors: as [`Self::load`].
    pub(crate) fn load_moe(files: &[Gguf], w: &WeightStore) -> Result<Self> {
        Self::read(files, "lfm2moe", w, true)
    }

    fn read(files: &[Gguf], arch: &'static str, w: &WeightStore, has_experts: bool) -> Result<Self> {
        let params = Hparams::new(files, arch);
        let hp = Lfm2Params::read(&params, w, has_experts)?;
        // Files are about that say another width than their tensors have; it is an error only where it is no width.
        params.size("feed_forward_length")?;
        let mut states = States::new();
        let layers = (0..hp.n_layer()).map(|i| {
            let prefix = format!("blk.{i}");
            let mixer = match hp.n_head_kv[i] {
                0 => {
                    let state = states.conv(i, hp.d_conv, hp.n_embd);
                    Mixer::Conv(ShortConv::load(w, &prefix, hp.n_embd, hp.d_conv, state)?)
                }
                n_head_kv => {
                    let cache = states.kv(i, n_head_kv, hp.head_dim);
                    Mixer::Attention(Box::new(attention(w, &prefix, &hp, n_head_kv, cache)?))
                }
            };
            let ffn = match &hp.moe {
                Some(moe) if i >= moe.n_dense => FeedForward::Moe(Moe::load(w, &prefix, moe.shape, moe.route())?),
                _ => {
                    let n_ff = rows_of(w, &format!("{prefix}.ffn_gate.weight"))?;
                    FeedForward::Dense(SwiGlu::load(w, &prefix, hp.n_embd, n_ff)?)
                }
            };
            Ok(Layer {
                operator_norm: w.get(&format!("{prefix}.attn_norm.weight"), [hp.n_embd])?,
                mixer,
                ffn_norm: w.get(&format!("{prefix}.ffn_norm.weight"), [hp.n_embd])?,
                ffn,
            })
        });
        let embed_tokens = w.get("token_embd.weight", [hp.n_vocab, hp.n_embd])?;
        let alias = w.get_optional("output_norm.weight", [hp.n_embd])?;
        let embedding_norm = w.get_optional("token_embd_norm.weight", [hp.n_embd])?.or(alias);
        Ok(Self {
            arch,
            layers: layers.collect::<Result<_>>()?,
            states,
            embedding_norm: embedding_norm.ok_or_else(|| w.missing("token_embd_norm.weight"))?,
            lm_head: w.get_optional("output.weight", [hp.n_vocab, hp.n_embd])?.unwrap_or(embed_tokens),
            embed_tokens,
            hp,
        })
    }
}

fn attention(w: &WeightStore, prefix: &str, hp: &Lfm2Params, n_head_kv: usize, cache: KvCache) -> Result<Attention> {
    let shape = AttentionShape { n_embd: hp.n_embd, n_head: hp.n_head, n_head_kv, head_dim: hp.head_dim };
    let options = AttentionOptions {
        qk_norm_eps: Some(hp.eps),
        rope: Some(shape.rope(hp.rope_theta, RopePairs::Halves)),
        scale: shape.scale(),
    };
    Attention::load(w, prefix, shape, options, cache)
}

impl Model for Lfm2 {
    fn arch(&self) -> &'static str {
        self.arch
    }

    fn n_vocab(&self) -> usize {
        self.hp.n_vocab
    }

    fn n_embd(&self) -> usize {
        self.hp.n_embd
    }

    fn states(&self) -> &States {
        &self.states
    }

    fn build(&self, g: &GraphBuilder<'_>, key: &GraphKey) {
        let batch = BatchInputs::new(g, key);
        let mut x: Tensor = g.name(batch.embed(g, self.embed_tokens), "embed");
        for (i, layer) in self.layers.iter().enumerate() {
            g.layer(i);
            let h = g.rms_norm(x, layer.operator_norm, self.hp.eps);
            let h = match &layer.mixer {
                Mixer::Conv(conv) => conv.build(g, &batch, h),
                Mixer::Attention(attention) => attention.build(g, &batch, h),
            };
            x = g.add(x, g.name(h, ("blk", i, "mixer")));
            let h = g.rms_norm(x, layer.ffn_norm, self.hp.eps);
            let h = match &layer.ffn {
                FeedForward::Dense(ffn) => ffn.build(g, h),
                FeedForward::Moe(moe) => moe.build(g, i, h),
            };
            x = g.name(g.add(x, g.name(h, ("blk", i, "ffn"))), ("blk", i, "out"));
        }
        g.layer(None);
        let Some(x) = batch.output_rows(g, x) else { return };
        let x = g.name(g.rms_norm(x, self.embedding_norm, self.hp.eps), "norm");
        g.output(g.linear(x, self.lm_head));
    }
}
