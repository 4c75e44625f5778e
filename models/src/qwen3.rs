//! Qwen3, text: a causal transformer with grouped-query attention and norms of queries and keys.
//! Source: transformers, `models/qwen3/modeling_qwen3.py`.

use engine::builder::{BatchInputs, GraphBuilder};
use engine::gguf::Gguf;
use engine::key::GraphKey;
use engine::model::Model;
use engine::op::{Rope, RopePairs};
use engine::state::States;
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use crate::blocks::attention::{Attention, AttentionShape};
use crate::blocks::ffn::SwiGlu;
use crate::error::Result;
use crate::hparams::Hparams;

/// Parameters of a Qwen3 decoder.
#[derive(Clone, Copy, Debug)]
struct Qwen3Params {
    /// Rows of the embedding.
    n_vocab: usize,
    /// Number of layers.
    n_layer: usize,
    /// Sizes of attention.
    attention: AttentionShape,
    /// Width of the feed-forward block.
    n_ff: usize,
    /// Added to the mean of squares in every norm.
    eps: f32,
    /// Base of the rotary frequencies.
    rope_theta: f32,
}

impl Qwen3Params {
    /// Reads `{arch}.*`; the size of the vocabulary is that of the embedding.
    fn read(files: &[Gguf], arch: &str, w: &WeightStore) -> Result<Self> {
        let hp = Hparams::new(files, arch);
        let n_embd = hp.size("embedding_length")?;
        let attention = AttentionShape {
            n_embd,
            n_head: hp.size("attention.head_count")?,
            n_head_kv: hp.size("attention.head_count_kv")?,
            head_dim: hp.size("attention.key_length")?,
        };
        if hp.size("attention.value_length")? != attention.head_dim {
            return Err(hp.bad("attention.value_length", format!("want the key length {}", attention.head_dim)));
        }
        if !attention.n_head.is_multiple_of(attention.n_head_kv) {
            let what = format!("want a divisor of {} heads, got {}", attention.n_head, attention.n_head_kv);
            return Err(hp.bad("attention.head_count_kv", what));
        }
        if !attention.head_dim.is_multiple_of(2) {
            return Err(hp.bad("attention.key_length", format!("want an even number, got {}", attention.head_dim)));
        }
        let name = "token_embd.weight";
        let (_, embedding) = w.find(name).ok_or_else(|| w.missing(name))?;
        Ok(Self {
            n_vocab: embedding.shape.dims().first().map_or(0, |&d| d as usize),
            n_layer: hp.size("block_count")?,
            attention,
            n_ff: hp.size("feed_forward_length")?,
            eps: hp.positive("attention.layer_norm_rms_epsilon")?,
            rope_theta: hp.positive("rope.freq_base")?,
        })
    }
}

struct Layer {
    input_layernorm: Weight, // [n_embd]
    self_attn: Attention,
    post_attention_layernorm: Weight, // [n_embd]
    mlp: SwiGlu,
}

/// The decoder of Qwen3 and of every model built on it.
pub struct Qwen3 {
    arch: &'static str,
    hp: Qwen3Params,
    states: States,
    embed_tokens: Weight, // [n_vocab, n_embd]
    layers: Vec<Layer>,
    norm: Weight,    // [n_embd]
    lm_head: Weight, // [n_vocab, n_embd]; the embedding where the file has none
}

impl Qwen3 {
    /// A decoder whose metadata begin with `arch`.
    ///
    /// Errors: keys or tensors that are missing or do not fit each other.
    pub fn load(files: &[Gguf], arch: &'static str, w: &WeightStore) -> Result<Self> {
        let hp = Qwen3Params::read(files, arch, w)?;
        let n_embd = hp.attention.n_embd;
        let rope = Rope {
            n_rot: u32::try_from(hp.attention.head_dim).expect("sizes were limited"),
            theta_base: hp.rope_theta,
            pairs: RopePairs::Halves,
        };
        let mut states = States::new();
        let layers = (0..hp.n_layer).map(|i| {
            let prefix = format!("blk.{i}");
            let cache = states.kv(i, hp.attention.n_head_kv, hp.attention.head_dim);
            Ok(Layer {
                input_layernorm: w.get(&format!("{prefix}.attn_norm.weight"), [n_embd])?,
                self_attn: Attention::load(w, &prefix, hp.attention, rope, hp.eps, cache)?,
                post_attention_layernorm: w.get(&format!("{prefix}.ffn_norm.weight"), [n_embd])?,
                mlp: SwiGlu::load(w, &prefix, n_embd, hp.n_ff)?,
            })
        });
        let embed_tokens = w.get("token_embd.weight", [hp.n_vocab, n_embd])?;
        Ok(Self {
            arch,
            layers: layers.collect::<Result<_>>()?,
            states,
            norm: w.get("output_norm.weight", [n_embd])?,
            lm_head: w.get_optional("output.weight", [hp.n_vocab, n_embd])?.unwrap_or(embed_tokens),
            embed_tokens,
            hp,
        })
    }
}

impl Model for Qwen3 {
    fn arch(&self) -> &'static str {
        self.arch
    }

    fn n_vocab(&self) -> usize {
        self.hp.n_vocab
    }

    fn n_embd(&self) -> usize {
        self.hp.attention.n_embd
    }

    fn states(&self) -> &States {
        &self.states
    }

    fn build(&self, g: &GraphBuilder<'_>, key: &GraphKey) {
        let batch = BatchInputs::new(g, key);
        let mut x: Tensor = g.name(batch.embed(g, self.embed_tokens), "embed");
        for (i, layer) in self.layers.iter().enumerate() {
            g.layer(i);
            let h = g.rms_norm(x, layer.input_layernorm, self.hp.eps);
            let h = g.name(layer.self_attn.build(g, &batch, h), ("blk", i, "mixer"));
            x = g.add(x, h);
            let h = g.rms_norm(x, layer.post_attention_layernorm, self.hp.eps);
            let h = g.name(layer.mlp.build(g, h), ("blk", i, "ffn"));
            x = g.name(g.add(x, h), ("blk", i, "out"));
        }
        g.layer(None);
        let Some(x) = batch.output_rows(g, x) else { return };
        let x = g.name(g.rms_norm(x, self.norm, self.hp.eps), "norm");
        g.output(g.linear(x, self.lm_head));
    }
}
