//! The Llama decoder: its configuration, keys and tensors.
//!
//! Source of names and keys: llama.cpp, `conversion/llama.py`.

use anyhow::{Result, ensure};
use engine::gguf::Value;

use super::config::{Section, integer};
use super::qwen3::{Heads, MAX_WIDTH, Projections, TextConfig, rope_theta};

/// `general.architecture`.
pub(super) const ARCHITECTURE: &str = "llama";
/// Pre-tokenizer of Llama 3.
pub(super) const PRE_TOKENIZER: &str = "llama-bpe";

/// The numbers of a decoder.
pub(super) struct LlamaConfig {
    /// What it shares with others.
    pub text: TextConfig,
    head_dim: usize,
}

impl LlamaConfig {
    /// Reads `config`. Members of the family that are computed in another way are refused.
    pub(super) fn read(config: &Section<'_>) -> Result<Self> {
        const WINDOW: &str = "sliding_window";
        config.expect_off("mlp_bias")?;
        ensure!(!config.has(WINDOW), config.error(WINDOW, "sliding windows are not supported"));
        let heads = Heads::of_width(config, config.integer("hidden_size", 1..=MAX_WIDTH)?)?;
        let head_dim = heads.head_dim;
        let has_biases = config.flag("attention_bias", false)?;
        let projections = Projections { has_norms: false, has_biases, has_rotated_pairs: true };
        Ok(Self { text: TextConfig::read_with(config, heads, projections, rope_theta(config)?)?, head_dim })
    }

    /// Metadata.
    pub(super) fn keys(&self) -> Vec<(String, Value)> {
        let mut keys = self.text.keys(ARCHITECTURE);
        keys.push((format!("{ARCHITECTURE}.vocab_size"), integer(self.text.n_vocab)));
        keys.push((format!("{ARCHITECTURE}.rope.dimension_count"), integer(self.head_dim)));
        keys
    }
}
