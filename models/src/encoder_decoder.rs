//! [`EncoderDecoder`]: an audio encoder whose vectors stand in the prompt of a language model.

use engine::builder::GraphBuilder;
use engine::key::{GraphKey, Stage};
use engine::model::{EncoderSpec, Model};
use engine::state::States;

/// The half of a speech model that hears.
pub trait AudioEncoder: Send + Sync {
    /// Geometry of its input.
    fn spec(&self) -> EncoderSpec;

    /// Clips in a line, `Features [n_mels, n_frames]`, to `[n_tokens, n_embd]`, vectors of the decoder's width.
    fn build(&self, g: &GraphBuilder<'_>, key: &GraphKey);
}

/// A speech model: each stage is the encoder's or the decoder's.
pub struct EncoderDecoder<E, D> {
    arch: &'static str,
    encoder: E,
    decoder: D,
}

impl<E: AudioEncoder, D: Model> EncoderDecoder<E, D> {
    /// The model that users know as `arch`.
    pub fn new(arch: &'static str, encoder: E, decoder: D) -> Self {
        Self { arch, encoder, decoder }
    }
}

impl<E: AudioEncoder, D: Model> Model for EncoderDecoder<E, D> {
    fn arch(&self) -> &'static str {
        self.arch
    }

    fn n_vocab(&self) -> usize {
        self.decoder.n_vocab()
    }

    fn n_embd(&self) -> usize {
        self.decoder.n_embd()
    }

    fn states(&self) -> &States {
        self.decoder.states()
    }

    fn encoder(&self) -> Option<EncoderSpec> {
        Some(self.encoder.spec())
    }

    fn build(&self, g: &GraphBuilder<'_>, key: &GraphKey) {
        match key.stage {
            Stage::Encode => self.encoder.build(g, key),
            Stage::Tokens | Stage::Embeddings => self.decoder.build(g, key),
        }
    }
}
