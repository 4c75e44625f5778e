//! LFM2-Audio as a recogniser: a conformer whose vectors stand in the prompt of an LFM2 decoder. The parts that make
//! speech are not read. Source: liquid-audio 1.3.0, `model/lfm2_audio.py`.

mod encoder;
pub mod prompt;

use engine::Result;
use engine::builder::GraphBuilder;
use engine::gguf::Gguf;
use engine::key::{GraphKey, Stage};
use engine::memory::{StateOptions, StateSpec};
use engine::model::{EncoderSpec, Model};
use engine::weights::WeightStore;

pub use encoder::{Encoder, audio_tokens};

use crate::lfm2::Lfm2;

/// Frames of features are padded to a multiple of this, so that clips of similar length share a graph.
const FRAME_MULTIPLE: usize = 32;

/// Conformer and decoder.
pub struct Lfm2Audio {
    encoder: Encoder,
    decoder: Lfm2,
}

impl Lfm2Audio {
    /// A text file `lfm2` with its projector file `lfm2a`, or a bundle of both.
    ///
    /// Errors: keys or tensors that are missing or do not fit each other.
    pub fn load(files: &[Gguf], w: &WeightStore) -> Result<Self> {
        let decoder = Lfm2::load(files, w)?;
        let encoder = Encoder::load(files, w, decoder.n_embd())?;
        Ok(Self { encoder, decoder })
    }
}

impl Model for Lfm2Audio {
    fn arch(&self) -> &'static str {
        "lfm2-audio"
    }

    fn n_vocab(&self) -> usize {
        self.decoder.n_vocab()
    }

    fn n_embd(&self) -> usize {
        self.decoder.n_embd()
    }

    fn states(&self, options: &StateOptions) -> Vec<StateSpec> {
        self.decoder.states(options)
    }

    fn encoder(&self) -> Option<EncoderSpec> {
        Some(EncoderSpec { n_mels: self.encoder.n_mels(), chunk_frames: FRAME_MULTIPLE, tokens: audio_tokens })
    }

    fn build(&self, g: &GraphBuilder<'_>, key: &GraphKey) {
        match key.stage {
            Stage::Encode => self.encoder.build(g, key),
            Stage::Tokens | Stage::Embeddings => self.decoder.build(g, key),
        }
    }
}
