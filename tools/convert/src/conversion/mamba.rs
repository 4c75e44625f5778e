//! Mamba and Mamba 2: configuration, keys and tensors.
//!
//! Source of names and keys: llama.cpp, `conversion/mamba.py`.

use anyhow::Result;
use engine::gguf::Value;

use super::HEAD;
use super::block::Block;
use super::checkpoint::Model;
use super::config::{integer, prefixed};
use super::limits::{MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use super::parts::{Part, Parts};
use super::plan::{Role, Row};
use super::ssm::{PLAIN, Ssm};

/// Pre-tokenizer of GPT-NeoX, with which published models were trained.
const PRE_TOKENIZER: &str = "olmo";
/// Context that files claim: state-space models have no limit of their own. Source: llama.cpp, `MambaModel`.
const N_CTX: usize = 1 << 20;

/// The parts of a checkpoint.
pub(super) fn parts(checkpoint: &Model, generation: Generation) -> Result<Parts> {
    let model = Mamba::read(checkpoint, generation)?;
    let text = Part { architecture: model.architecture(), keys: model.keys(), rows: model.rows() };
    // Some exports store a tied head as well.
    let is_ignored: fn(&str) -> bool = if model.tied { |name| name == HEAD } else { |_| false };
    Ok(Parts { is_ignored, ..Parts::text(model.n_vocab, PRE_TOKENIZER, text) })
}

/// The two generations.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Generation {
    First,
    Second,
}

/// The numbers of a decoder.
struct Mamba {
    generation: Generation,
    n_layer: usize,
    n_embd: usize,
    rms_eps: f32,
    ssm: Ssm,
    /// What stands before `embeddings` in the checkpoint.
    prefix: &'static str,
    /// Rows of the embedding.
    pub n_vocab: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
}

impl Mamba {
    /// Reads the configuration of `checkpoint`.
    fn read(checkpoint: &Model, generation: Generation) -> Result<Self> {
        let config = checkpoint.config();
        let n_embd = config.integer("hidden_size", 1..=MAX_WIDTH)?;
        // transformers ties the head of the first generation unless told otherwise.
        let usually_tied = generation == Generation::First;
        let prefixes = ["model.backbone.", "backbone."];
        Ok(Self {
            generation,
            n_layer: config.integer("num_hidden_layers", 1..=MAX_LAYERS)?,
            n_embd,
            rms_eps: config.positive("layer_norm_epsilon")?,
            ssm: match generation {
                Generation::First => Ssm::read(&config, &PLAIN, n_embd)?,
                Generation::Second => Ssm::read_heads(&config, &PLAIN, n_embd)?,
            },
            prefix: if checkpoint.has_prefix(prefixes[0]) { prefixes[0] } else { prefixes[1] },
            n_vocab: config.integer("vocab_size", 1..=MAX_VOCAB)?,
            tied: config.flag("tie_word_embeddings", usually_tied)?,
        })
    }

    /// `general.architecture` of the file.
    fn architecture(&self) -> &'static str {
        match self.generation {
            Generation::First => "mamba",
            Generation::Second => "mamba2",
        }
    }

    /// Metadata.
    fn keys(&self) -> Vec<(String, Value)> {
        let mut keys = vec![
            ("context_length", integer(N_CTX)),
            ("embedding_length", integer(self.n_embd)),
            // Not used, and llama.cpp wants them.
            ("feed_forward_length", integer(0)),
            ("attention.head_count", integer(0)),
            ("block_count", integer(self.n_layer)),
            ("attention.layer_norm_rms_epsilon", Value::F32(self.rms_eps)),
        ];
        keys.extend(self.ssm.keys());
        if self.generation == Generation::First {
            keys.push(("ssm.dt_b_c_rms", Value::Bool(false)));
        }
        prefixed(self.architecture(), keys)
    }

    /// Tensors, with the head if it is not the embedding.
    fn rows(&self) -> Vec<Row> {
        let (n_embd, prefix) = (self.n_embd, self.prefix);
        // A tied embedding is the head as well.
        let role = if self.tied { Role::Head } else { Role::Matrix };
        let embedding = [self.n_vocab, n_embd];
        let mut rows = vec![Row::new("token_embd.weight", format!("{prefix}embeddings.weight"), role, &embedding)];
        for i in 0..self.n_layer {
            let mut block = Block::layer(&mut rows, prefix, i);
            block.add("attn_norm", "norm", Role::Full, &[n_embd]);
            match self.generation {
                Generation::First => self.ssm.rows(&mut block, "mixer", false),
                Generation::Second => self.ssm.rows_of_heads(&mut block, "mixer"),
            }
        }
        rows.push(Row::new("output_norm.weight", format!("{prefix}norm_f.weight"), Role::Full, &[n_embd]));
        if !self.tied {
            let stored = format!("{}lm_head.weight", prefix.trim_end_matches("backbone."));
            rows.push(Row::new("output.weight", stored, Role::Head, &embedding));
        }
        rows
    }
}
