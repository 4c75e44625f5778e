//! [`Transformer`]: the decoder that Llama is and that others were built like.
//!
//! What architectures do differently is in their own files, as [`crate::llama`] and [`crate::qwen3`].

use engine::builder::{BatchInputs, GraphBuilder};
use engine::key::GraphKey;
use engine::model::Model;
use engine::state::States;
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use crate::blocks::attention::{Attention, AttentionOptions, AttentionShape};
use crate::blocks::ffn::SwiGlu;
use crate::blocks::rows_of;
use crate::error::Result;
use crate::hparams::Hparams;

/// Sizes of a decoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransformerShape {
    /// Number of layers.
    pub n_layer: usize,
    /// Sizes of attention.
    pub attention: AttentionShape,
    /// Width of the feed-forward block.
    pub n_ff: usize,
    /// Added to the mean of squares in every norm.
    pub eps: f32,
}

impl TransformerShape {
    /// Reads the sizes from the metadata.
    ///
    /// Errors: numbers that are missing or do not fit each other.
    pub(crate) fn read(hp: &Hparams<'_>) -> Result<Self> {
        Ok(Self {
            n_layer: hp.size("block_count")?,
            attention: AttentionShape::read(hp, hp.size("embedding_length")?)?,
            n_ff: hp.size("feed_forward_length")?,
            eps: hp.positive("attention.layer_norm_rms_epsilon")?,
        })
    }
}

struct Layer {
    input_layernorm: Weight, // [n_embd]
    self_attn: Attention,
    post_attention_layernorm: Weight, // [n_embd]
    mlp: SwiGlu,
}

/// A causal transformer with norms before attention and feed-forward block:
/// `x += self_attn(input_layernorm(x))`, `x += mlp(post_attention_layernorm(x))` in every layer, then `norm` and `lm_head`.
/// Source: transformers, `LlamaDecoderLayer.forward`, `LlamaForCausalLM.forward`.
pub struct Transformer {
    arch: &'static str,
    n_vocab: usize,
    shape: TransformerShape,
    states: States,
    embed_tokens: Weight, // [n_vocab, n_embd]
    layers: Vec<Layer>,
    norm: Weight,    // [n_embd]
    lm_head: Weight, // [n_vocab, n_embd]; the embedding where the file has none
}

impl Transformer {
    /// Finds the weights. The size of the vocabulary is that of the embedding.
    ///
    /// Errors: tensors that are missing or do not fit the sizes.
    pub(crate) fn load(
        arch: &'static str,
        w: &WeightStore,
        shape: TransformerShape,
        attention: AttentionOptions,
    ) -> Result<Self> {
        let (n_vocab, n_embd) = (rows_of(w, "token_embd.weight")?, shape.attention.n_embd);
        let mut states = States::new();
        let layers = (0..shape.n_layer).map(|i| {
            let prefix = format!("blk.{i}");
            let cache = states.kv(i, shape.attention.n_head_kv, shape.attention.head_dim);
            Ok(Layer {
                input_layernorm: w.get(&format!("{prefix}.attn_norm.weight"), [n_embd])?,
                self_attn: Attention::load(w, &prefix, shape.attention, attention, cache)?,
                post_attention_layernorm: w.get(&format!("{prefix}.ffn_norm.weight"), [n_embd])?,
                mlp: SwiGlu::load(w, &prefix, n_embd, shape.n_ff)?,
            })
        });
        let layers = layers.collect::<Result<_>>()?;
        let embed_tokens = w.get("token_embd.weight", [n_vocab, n_embd])?;
        Ok(Self {
            arch,
            n_vocab,
            shape,
            states,
            layers,
            norm: w.get("output_norm.weight", [n_embd])?,
            lm_head: w.get_optional("output.weight", [n_vocab, n_embd])?.unwrap_or(embed_tokens),
            embed_tokens,
        })
    }
}

impl Model for Transformer {
    fn arch(&self) -> &'static str {
        self.arch
    }

    fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    fn n_embd(&self) -> usize {
        self.shape.attention.n_embd
    }

    fn states(&self) -> &States {
        &self.states
    }

    fn build(&self, g: &GraphBuilder<'_>, key: &GraphKey) {
        let (batch, eps) = (BatchInputs::new(g, key), self.shape.eps);
        let mut x: Tensor = g.name(batch.embed(g, self.embed_tokens), "embed");
        for (i, layer) in self.layers.iter().enumerate() {
            g.layer(i);
            let h = g.rms_norm(x, layer.input_layernorm, eps);
            let h = g.name(layer.self_attn.build(g, &batch, h), ("blk", i, "mixer"));
            x = g.add(x, h);
            let h = g.rms_norm(x, layer.post_attention_layernorm, eps);
            let h = g.name(layer.mlp.build(g, h), ("blk", i, "ffn"));
            x = g.name(g.add(x, h), ("blk", i, "out"));
        }
        g.layer(None);
        let Some(x) = batch.output_rows(g, x) else { return };
        let x = g.name(g.rms_norm(x, self.norm, eps), "norm");
        g.output(g.linear(x, self.lm_head));
    }
}
