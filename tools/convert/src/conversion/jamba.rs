//! Jamba: state-space blocks with a layer of attention now and then, and experts in every other layer. Configuration, keys
//! and tensors.
//!
//! Source of names and keys: llama.cpp, `conversion/jamba.py`.

use anyhow::Result;
use engine::gguf::Value;

use super::HEAD;
use super::block::Block;
use super::checkpoint::Model;
use super::config::{Section, integer, prefixed};
use super::heads::Heads;
use super::limits::{MAX_CONTEXT, MAX_EXPERTS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use super::parts::{Part, Parts};
use super::plan::{Role, Row};
use super::ssm::{PREFIXED, Ssm};

/// `general.architecture`.
const ARCHITECTURE: &str = "jamba";
/// Pre-tokenizer of a byte-level tokenizer; published models have SentencePiece's.
const PRE_TOKENIZER: &str = "gpt-2";

/// The parts of a checkpoint.
pub(super) fn parts(checkpoint: &Model) -> Result<Parts> {
    let model = Jamba::read(checkpoint)?;
    let text = Part { architecture: ARCHITECTURE, keys: model.keys(), rows: model.rows() };
    Ok(Parts::text(model.n_vocab, PRE_TOKENIZER, text))
}

/// Layers `offset`, `offset + period` and so on.
struct Every {
    period: usize,
    offset: usize,
}

impl Every {
    fn read(config: &Section<'_>, kind: &str) -> Result<Self> {
        let period = config.integer(&format!("{kind}_layer_period"), 1..=MAX_LAYERS)?;
        Ok(Self { period, offset: config.integer(&format!("{kind}_layer_offset"), 0..=MAX_LAYERS)? })
    }

    fn has(&self, i: usize) -> bool {
        i.checked_sub(self.offset).is_some_and(|i| i.is_multiple_of(self.period))
    }
}

/// The numbers of a decoder.
struct Jamba {
    n_layer: usize,
    n_ctx: usize,
    n_embd: usize,
    n_ff: usize,
    heads: Heads,
    attention: Every,
    ssm: Ssm,
    /// Whether there are norms inside of the state-space blocks.
    has_norms: bool,
    experts: Every,
    n_expert: usize,
    n_used: usize,
    rms_eps: f32,
    /// Rows of the embedding.
    pub n_vocab: usize,
    /// Whether the head is the embedding.
    tied: bool,
}

impl Jamba {
    /// Reads the configuration of `checkpoint`.
    fn read(checkpoint: &Model) -> Result<Self> {
        let config = &checkpoint.config();
        let n_embd = config.integer("hidden_size", 1..=MAX_WIDTH)?;
        let n_expert = config.integer("num_experts", 1..=MAX_EXPERTS)?;
        Ok(Self {
            n_layer: config.integer("num_hidden_layers", 1..=MAX_LAYERS)?,
            n_ctx: config.integer("max_position_embeddings", 1..=MAX_CONTEXT)?,
            n_embd,
            n_ff: config.integer("intermediate_size", 1..=MAX_WIDTH)?,
            heads: Heads::of_width(config, n_embd)?,
            attention: Every::read(config, "attn")?,
            ssm: Ssm::read(config, &PREFIXED, n_embd)?,
            has_norms: config.flag("mamba_inner_layernorms", true)?,
            experts: Every::read(config, "expert")?,
            n_expert,
            n_used: config.integer("num_experts_per_tok", 1..=n_expert as u64)?,
            rms_eps: config.positive("rms_norm_eps")?,
            n_vocab: config.integer("vocab_size", 1..=MAX_VOCAB)?,
            tied: !checkpoint.has(HEAD) && config.flag("tie_word_embeddings", false)?,
        })
    }

    /// Metadata.
    fn keys(&self) -> Vec<(String, Value)> {
        let is_attention = (0..self.n_layer).map(|i| self.attention.has(i));
        let mut keys = vec![
            ("block_count", integer(self.n_layer)),
            ("context_length", integer(self.n_ctx)),
            ("embedding_length", integer(self.n_embd)),
            ("feed_forward_length", integer(self.n_ff)),
            ("attention.head_count", integer(self.heads.n_head)),
            // A layer without heads has a state-space block.
            ("attention.head_count_kv", self.heads.kv_of_layers(is_attention)),
            ("attention.layer_norm_rms_epsilon", Value::F32(self.rms_eps)),
            ("expert_count", integer(self.n_expert)),
            ("expert_used_count", integer(self.n_used)),
        ];
        keys.extend(self.ssm.keys());
        prefixed(ARCHITECTURE, keys)
    }

    /// Tensors.
    fn rows(&self) -> Vec<Row> {
        let n_embd = self.n_embd;
        let head = (!self.tied).then_some(HEAD);
        let mut rows = Row::embedding_and_head("model.embed_tokens.weight", head, &[self.n_vocab, n_embd]);
        rows.push(Row::new("output_norm.weight", "model.final_layernorm.weight", Role::Full, &[n_embd]));
        for i in 0..self.n_layer {
            let mut block = Block::layer(&mut rows, "model.", i);
            block.add("attn_norm", "input_layernorm", Role::Full, &[n_embd]);
            if self.attention.has(i) {
                block.attention(&self.heads, n_embd, "o_proj", false);
            } else {
                self.ssm.rows(&mut block, "mamba", self.has_norms);
            }
            block.add("ffn_norm", "pre_ff_layernorm", Role::Full, &[n_embd]);
            self.feed_forward(&mut block, self.experts.has(i) && self.n_expert > 1);
        }
        rows
    }

    fn feed_forward(&self, block: &mut Block<'_>, has_experts: bool) {
        const PART: &str = "feed_forward";
        let (n_embd, n_ff) = (self.n_embd, self.n_ff);
        if !has_experts {
            return block.swiglu("", PART, n_embd, n_ff);
        }
        block.add("ffn_gate_inp", &format!("{PART}.router"), Role::Full, &[self.n_expert, n_embd]);
        block.experts(PART, n_embd, n_ff, self.n_expert);
    }
}
