//! The [`Decoder`] that Llama is and that others were built like: attention and a gated feed-forward block in every layer.
//!
//! What architectures do differently is in their own files, as [`crate::llama`] and [`crate::qwen3`].

use engine::state::States;
use engine::weights::WeightStore;

use crate::blocks::attention::{Attention, AttentionOptions, AttentionShape};
use crate::blocks::ffn::SwiGlu;
use crate::decoder::{Decoder, Layer, Parts, Scales, embedding};
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

/// Finds the weights: `x += self_attn(input_layernorm(x))`, `x += mlp(post_attention_layernorm(x))` in every layer.
/// Source: transformers, `LlamaDecoderLayer.forward`.
///
/// Errors: tensors that are missing or do not fit the sizes.
pub(crate) fn load(
    arch: &'static str,
    w: &WeightStore,
    shape: TransformerShape,
    attention: AttentionOptions,
) -> Result<Decoder> {
    let TransformerShape { n_layer, attention: sizes, n_ff, eps } = shape;
    let embed_tokens = embedding(w, sizes.n_embd)?;
    let mut states = States::new();
    let layers = (0..n_layer).map(|i| {
        let prefix = format!("blk.{i}");
        Ok(Layer {
            norm: w.get(&format!("{prefix}.attn_norm.weight"), [sizes.n_embd])?,
            mixer: Box::new(Attention::load(w, &prefix, sizes, attention, &mut states, i)?),
            ffn: Some((
                w.get(&format!("{prefix}.ffn_norm.weight"), [sizes.n_embd])?,
                Box::new(SwiGlu::load(w, &prefix, sizes.n_embd, n_ff)?),
            )),
        })
    });
    let layers = layers.collect::<Result<_>>()?;
    let norm = w.get("output_norm.weight", [sizes.n_embd])?;
    let scales = Scales::default();
    Decoder::load(w, Parts { arch, embed_tokens, eps, scales, states, layers, norm })
}
