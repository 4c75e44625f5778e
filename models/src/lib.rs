//! Architectures, tokenizer and audio front end. Knows no backend.
//!
//! Read [`load`] first: it turns model files into a [`Loaded`] model. The architectures are in [`registry`], one file each, and
//! `transformer` is what to read beside an official module. [`scheduler`] runs many sequences, [`draft`] guesses what they will say, [`transcribe`] and [`generate`]
//! are what users of a model call, [`together`] transcribes several clips at once.

#![warn(unreachable_pub)]

pub mod audio;
mod blocks;
pub mod chat;
pub mod decoder;
pub mod decoding;
pub mod draft;
mod encoder_decoder;
mod error;
mod finite;
pub mod generate;
pub mod granite;
mod hparams;
pub mod jamba;
pub mod languages;
pub mod lfm2;
pub mod lfm2_audio;
pub mod llama;
pub mod mamba;
pub mod qwen3;
pub mod qwen3_asr;
pub mod qwen3_next;
pub mod registry;
pub mod sample;
pub mod scheduler;
pub mod speech;
mod stop;
pub mod together;
pub mod tokenizer;
pub mod transcribe;
pub mod transcription;
mod transformer;

use std::sync::Arc;

use engine::gguf::Gguf;
use engine::model::Model;
use engine::weights::WeightStore;

pub use error::{Error, Result};
pub use registry::{Arch, LoadOptions};

/// A model with its weights.
pub struct Loaded {
    /// The architecture's entry in the registry.
    pub arch: &'static Arch,
    /// The files, text model first.
    pub files: Vec<Gguf>,
    /// Tensors by name.
    pub weights: WeightStore,
    /// The graphs.
    pub model: Arc<dyn Model>,
}

impl Loaded {
    /// Tokens that the model was made for.
    ///
    /// Errors: a length that makes no sense.
    pub fn context_length(&self) -> Result<usize> {
        hparams::context_length(&self.files[0])
    }
}

/// Loads a text file, a text file with its projector, or a bundle; of the latter two also the language model alone
/// ([`LoadOptions::text_only`]).
///
/// Errors: an architecture that is neither in the registry nor among [`LoadOptions::architectures`]; keys or tensors that are missing or do not fit each other;
/// weights that are not finite, where the logits would not show them.
pub fn load(mut files: Vec<Gguf>, options: LoadOptions) -> Result<Loaded> {
    let arch = registry::find(&files, options)?;
    files.sort_by_key(|f| f.get_str("general.architecture").is_ok_and(|a| a == "clip"));
    let weights = WeightStore::new(files.iter().cloned())?;
    let model = arch.load(&files, &weights, options)?;
    files.iter().try_for_each(finite::check)?;
    Ok(Loaded { arch, files, weights, model })
}
