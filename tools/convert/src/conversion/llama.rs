//! The Llama decoder: its configuration, keys and tensors.
//!
//! Source of names and keys: llama.cpp, `conversion/llama.py`.

use anyhow::{Result, ensure};
use engine::gguf::Value;

use super::HEAD;
use super::checkpoint::Model;
use super::config::{Section, integer};
use super::heads::Heads;
use super::limits::MAX_WIDTH;
use super::parts::{Part, Parts};
use super::plan::{Role, Row, Source};
use super::qwen3::{Projections, TextConfig, rope_with_factors};

/// `general.architecture`.
const ARCHITECTURE: &str = "llama";
/// Pre-tokenizer of Llama 3.
const PRE_TOKENIZER: &str = "llama-bpe";

/// The parts of a checkpoint.
pub(super) fn parts(checkpoint: &Model) -> Result<Parts> {
    let model = LlamaConfig::read(&checkpoint.config())?;
    let (n_vocab, keys) = (model.text.n_vocab, model.keys());
    let rows = model.rows(checkpoint.has(HEAD));
    Ok(Parts::text(n_vocab, PRE_TOKENIZER, Part { architecture: ARCHITECTURE, keys, rows }))
}

/// The numbers of a decoder.
struct LlamaConfig {
    /// What it shares with others.
    pub text: TextConfig,
    head_dim: usize,
    /// What the frequency of every pair is divided by.
    rope_factors: Option<Vec<f32>>,
}

impl LlamaConfig {
    /// Reads `config`. Members of the family that are computed in another way are refused.
    fn read(config: &Section<'_>) -> Result<Self> {
        const WINDOW: &str = "sliding_window";
        config.expect_off("mlp_bias")?;
        ensure!(!config.has(WINDOW), config.error(WINDOW, "sliding windows are not supported"));
        let heads = Heads::of_width(config, config.integer("hidden_size", 1..=MAX_WIDTH)?)?;
        let head_dim = heads.head_dim;
        let has_biases = config.flag("attention_bias", false)?;
        let projections = Projections { has_norms: false, has_biases, has_rotated_pairs: true };
        let (rope_theta, rope_factors) = rope_with_factors(config, head_dim)?;
        let text = TextConfig::read_with(config, heads, projections, rope_theta)?;
        Ok(Self { text, head_dim, rope_factors })
    }

    /// Metadata.
    fn keys(&self) -> Vec<(String, Value)> {
        let mut keys = self.text.keys(ARCHITECTURE);
        keys.push((format!("{ARCHITECTURE}.vocab_size"), integer(self.text.n_vocab)));
        keys.push((format!("{ARCHITECTURE}.rope.dimension_count"), integer(self.head_dim)));
        keys
    }

    /// Tensors. `has_head`: whether the checkpoint has a head.
    fn rows(self, has_head: bool) -> Vec<Row> {
        let factors = self.rope_factors.map(|factors| Row {
            name: "rope_freqs.weight".into(),
            dims: vec![factors.len()],
            role: Role::Full,
            source: Source::Values(factors),
        });
        factors.into_iter().chain(self.text.rows_and_head(has_head)).collect()
    }
}
