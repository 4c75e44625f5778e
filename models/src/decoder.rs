//! [`Decoder`]: what all decoders here are, layers on a residual stream. What the layers consist of is in the files of the
//! architectures and in `blocks`.

use engine::builder::{BatchInputs, GraphBuilder};
use engine::key::GraphKey;
use engine::model::Model;
use engine::state::States;
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use crate::blocks::rows_of;
use crate::error::Result;

/// What mixes tokens in a layer: attention, a convolution or a recurrence.
pub(crate) trait Mixer: Send + Sync {
    /// `x` and the result: `[n_tokens, n_embd]`.
    fn build(&self, g: &GraphBuilder<'_>, batch: &BatchInputs, x: Tensor) -> Tensor;
}

/// What works on every token by itself.
pub(crate) trait FeedForward: Send + Sync {
    /// `x` and the result: `[n_tokens, n_embd]`. `layer` is in the names of taps.
    fn build(&self, g: &GraphBuilder<'_>, layer: usize, x: Tensor) -> Tensor;
}

/// `x += residual mixer(norm(x))`, then `x += residual feed_forward(norm(x))` where there is one.
pub(crate) struct Layer {
    /// Before the mixer, `[n_embd]`.
    pub norm: Weight,
    /// What mixes tokens.
    pub mixer: Box<dyn Mixer>,
    /// What works on every token, behind its norm `[n_embd]`.
    pub ffn: Option<(Weight, Box<dyn FeedForward>)>,
}

/// Constants that some architectures multiply with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scales {
    /// Of the embedding.
    pub embedding: f32,
    /// Of what a layer adds to the residual stream.
    pub residual: f32,
    /// Of the logits.
    pub logits: f32,
}

impl Default for Scales {
    fn default() -> Self {
        Self { embedding: 1.0, residual: 1.0, logits: 1.0 }
    }
}

/// The parts of a decoder that its architecture decides.
pub(crate) struct Parts {
    /// The architecture.
    pub arch: &'static str,
    /// A row for every token, `[n_vocab, n_embd]`.
    pub embed_tokens: Weight,
    /// Added to the mean of squares in the norms of layers and the last one.
    pub eps: f32,
    /// Constants.
    pub scales: Scales,
    /// What the layers remember.
    pub states: States,
    /// The layers, in order.
    pub layers: Vec<Layer>,
    /// Behind the last layer, `[n_embd]`.
    pub norm: Weight,
}

/// A decoder: `x = embed_tokens[id]`, the layers, then `lm_head norm(x)`.
/// Source: transformers, `LlamaModel.forward`, `GraniteMoeHybridForCausalLM.forward`.
pub struct Decoder {
    parts: Parts,
    lm_head: Weight, // [n_vocab, n_embd]; the embedding where the file has none
}

/// The embedding, whose rows say how large the vocabulary is, of width `n_embd`.
///
/// Errors: the tensor is missing, or of another width.
pub(crate) fn embedding(w: &WeightStore, n_embd: usize) -> Result<Weight> {
    const NAME: &str = "token_embd.weight";
    Ok(w.get(NAME, [rows_of(w, NAME)?, n_embd])?)
}

impl Decoder {
    /// Finds the head.
    ///
    /// Errors: a head that does not fit the embedding.
    pub(crate) fn load(w: &WeightStore, parts: Parts) -> Result<Self> {
        let embedding = parts.embed_tokens;
        let dims = [0, 1].map(|i| embedding.shape().dim(i));
        let lm_head = w.get_optional("output.weight", dims)?.unwrap_or(embedding);
        Ok(Self { parts, lm_head })
    }

    /// `x + residual y`.
    fn add(&self, g: &GraphBuilder<'_>, x: Tensor, y: Tensor) -> Tensor {
        let scale = self.parts.scales.residual;
        if scale == 1.0 { g.add(x, y) } else { g.add_scaled(x, y, scale) }
    }
}

/// `factor x`.
fn scaled(g: &GraphBuilder<'_>, x: Tensor, factor: f32) -> Tensor {
    if factor == 1.0 { x } else { g.scale(x, factor) }
}

impl Model for Decoder {
    fn arch(&self) -> &'static str {
        self.parts.arch
    }

    fn n_vocab(&self) -> usize {
        self.parts.embed_tokens.shape().dim(0)
    }

    fn n_embd(&self) -> usize {
        self.parts.embed_tokens.shape().last()
    }

    fn states(&self) -> &States {
        &self.parts.states
    }

    fn build(&self, g: &GraphBuilder<'_>, key: &GraphKey) {
        let Parts { embed_tokens, eps, scales, layers, norm, .. } = &self.parts;
        let batch = BatchInputs::new(g, key);
        let mut x = g.name(scaled(g, batch.embed(g, *embed_tokens), scales.embedding), "embed");
        for (i, layer) in layers.iter().enumerate() {
            g.layer(i);
            let h = layer.mixer.build(g, &batch, g.rms_norm(x, layer.norm, *eps));
            x = self.add(g, x, g.name(h, ("blk", i, "mixer")));
            if let Some((norm, ffn)) = &layer.ffn {
                let h = ffn.build(g, i, g.rms_norm(x, *norm, *eps));
                x = self.add(g, x, g.name(h, ("blk", i, "ffn")));
            }
            g.name(x, ("blk", i, "out"));
        }
        g.layer(None);
        let Some(x) = batch.output_rows(g, x) else { return };
        let x = g.name(g.rms_norm(x, *norm, *eps), "norm");
        g.output(scaled(g, g.linear(x, self.lm_head), scales.logits));
    }
}
