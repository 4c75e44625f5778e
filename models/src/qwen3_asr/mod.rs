//! Qwen3-ASR: an audio tower whose vectors stand in the prompt of a Qwen3 decoder.
//! Source: qwen-asr 0.0.6, `core/transformers_backend/modeling_qwen3_asr.py`; arXiv:2601.21337.

mod encoder;
pub mod parse;
pub mod prompt;

use engine::Result;
use engine::builder::GraphBuilder;
use engine::gguf::Gguf;
use engine::key::{GraphKey, Stage};
use engine::memory::{StateOptions, StateSpec};
use engine::model::{EncoderSpec, Model};
use engine::weights::WeightStore;

pub use encoder::{CHUNK_FRAMES, Encoder, audio_tokens};

use crate::audio::{MelParams, MelRecipe};
use crate::qwen3::Qwen3;

/// Samples per second.
const RATE_HZ: u32 = 16_000;
/// Samples per frame.
const N_FFT: usize = 400;
/// Samples from frame to frame.
const HOP: usize = 160;
/// Shorter clips are padded with silence to this length: half a second, as transformers does.
const MIN_SAMPLES: usize = 8000;

/// What an audio token attends to in the encoder.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum AudioAttention {
    /// Windows of 8 s, as the model was trained.
    #[default]
    Windowed,
    /// The whole clip, as the official package computes it without FlashAttention.
    Full,
}

/// The front end's parameters: those of Whisper, which no file names.
pub fn mel_params(n_mels: usize) -> MelParams {
    MelParams {
        recipe: MelRecipe::Whisper,
        rate_hz: RATE_HZ,
        n_fft: N_FFT,
        win_length: N_FFT,
        hop: HOP,
        n_mels,
        min_samples: MIN_SAMPLES,
    }
}

/// Audio tower and decoder.
pub struct Qwen3Asr {
    encoder: Encoder,
    decoder: Qwen3,
}

impl Qwen3Asr {
    /// A text file `qwen3vl` with its projector file `qwen3a`, or a bundle of both.
    ///
    /// Errors: keys or tensors that are missing or do not fit each other.
    pub fn load(files: &[Gguf], w: &WeightStore, attention: AudioAttention) -> Result<Self> {
        let decoder = Qwen3::load(files, "qwen3vl", w)?;
        let encoder = Encoder::load(files, w, decoder.n_embd(), attention)?;
        Ok(Self { encoder, decoder })
    }
}

impl Model for Qwen3Asr {
    fn arch(&self) -> &'static str {
        "qwen3-asr"
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
        Some(EncoderSpec { n_mels: self.encoder.n_mels(), chunk_frames: CHUNK_FRAMES, tokens: audio_tokens })
    }

    fn build(&self, g: &GraphBuilder<'_>, key: &GraphKey) {
        match key.stage {
            Stage::Encode => self.encoder.build(g, key),
            Stage::Tokens | Stage::Embeddings => self.decoder.build(g, key),
        }
    }
}
