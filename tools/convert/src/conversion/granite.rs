//! Granite 4 hybrid: Mamba 2 blocks and attention, feed-forward blocks or experts beside a shared one. Configuration, keys and
//! tensors.
//!
//! Source of names and keys: llama.cpp, `conversion/granite.py`, `GraniteHybridModel`.

use anyhow::{Result, ensure};
use engine::gguf::{Value, quoted};

use super::HEAD;
use super::arrange::Piece;
use super::block::Block;
use super::checkpoint::Model;
use super::config::{Section, integer, prefixed};
use super::heads::Heads;
use super::layers;
use super::limits::{MAX_EXPERTS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use super::parts::{Part, Parts};
use super::plan::{Role, Row};
use super::qwen3::rope_theta;
use super::ssm::{PREFIXED, Ssm};

/// `general.architecture`.
const ARCHITECTURE: &str = "granitehybrid";
/// Pre-tokenizer of Granite 4.
const PRE_TOKENIZER: &str = "dbrx";
/// Context that files claim where no positions are encoded. Source: llama.cpp, `GraniteHybridModel.set_gguf_parameters`.
const N_CTX: usize = 1 << 20;
/// Layers with attention, in `layer_types` of older and newer files.
const ATTENTION: [&str; 2] = ["attention", "full_attention"];
/// Layers with a state-space block, likewise.
const RECURRENT: [&str; 2] = ["mamba", "linear_attention"];

/// The parts of a checkpoint.
pub(super) fn parts(checkpoint: &Model) -> Result<Parts> {
    let model = Granite::read(checkpoint)?;
    let text = Part { architecture: ARCHITECTURE, keys: model.keys(), rows: model.rows() };
    Ok(Parts::text(model.n_vocab, PRE_TOKENIZER, text))
}

/// Experts of every layer.
struct Experts {
    n_expert: usize,
    n_used: usize,
}

/// The numbers of a decoder.
struct Granite {
    n_embd: usize,
    /// Width of an expert.
    n_ff: usize,
    /// Width of the feed-forward block that every token goes through.
    n_ff_shared: usize,
    heads: Heads,
    /// Of every layer, whether it has attention; a state-space block otherwise.
    is_attention: Vec<bool>,
    ssm: Ssm,
    experts: Option<Experts>,
    has_rope: bool,
    rope_theta: f32,
    rms_eps: f32,
    /// Names of constants in the file, and the constants.
    scales: [(&'static str, f32); 4],
    /// Rows of the embedding.
    pub n_vocab: usize,
    /// Whether the head is the embedding.
    tied: bool,
}

impl Granite {
    /// Reads the configuration of `checkpoint`.
    fn read(checkpoint: &Model) -> Result<Self> {
        let config = &checkpoint.config();
        config.expect_off("attention_bias")?;
        config.expect_text("normalization_function", "rmsnorm")?;
        let n_embd = config.integer("hidden_size", 1..=MAX_WIDTH)?;
        let n_expert = config.integer("num_local_experts", 0..=MAX_EXPERTS)?;
        let experts = match n_expert {
            0 => None,
            n => Some(Experts { n_expert: n, n_used: config.integer("num_experts_per_tok", 1..=n as u64)? }),
        };
        let n_ff_shared = config.integer("shared_intermediate_size", 1..=MAX_WIDTH)?;
        Ok(Self {
            n_embd,
            n_ff: config.integer("intermediate_size", 1..=MAX_WIDTH)?,
            n_ff_shared,
            heads: Heads::of_width(config, n_embd)?,
            is_attention: layer_kinds(config)?,
            ssm: Ssm::read_heads(config, &PREFIXED, n_embd)?,
            experts,
            has_rope: has_rope(config)?,
            rope_theta: rope_theta(config)?,
            rms_eps: config.positive("rms_norm_eps")?,
            scales: [
                ("attention.scale", config.positive("attention_multiplier")?),
                ("embedding_scale", config.positive("embedding_multiplier")?),
                ("residual_scale", config.positive("residual_multiplier")?),
                ("logit_scale", config.positive("logits_scaling")?),
            ],
            n_vocab: config.integer("vocab_size", 1..=MAX_VOCAB)?,
            tied: !checkpoint.has(HEAD) && config.flag("tie_word_embeddings", false)?,
        })
    }

    /// Metadata.
    fn keys(&self) -> Vec<(String, Value)> {
        let (n_expert, n_used) = self.experts.as_ref().map_or((0, 0), |e| (e.n_expert, e.n_used));
        let mut keys = vec![
            ("block_count", integer(self.is_attention.len())),
            ("context_length", integer(N_CTX)),
            ("embedding_length", integer(self.n_embd)),
            ("feed_forward_length", integer(self.n_ff)),
            ("attention.head_count", integer(self.heads.n_head)),
            // A layer without heads has a state-space block.
            ("attention.head_count_kv", self.heads.kv_of_layers(self.is_attention.iter().copied())),
            ("attention.layer_norm_rms_epsilon", Value::F32(self.rms_eps)),
            ("rope.freq_base", Value::F32(self.rope_theta)),
            ("rope.dimension_count", integer(self.heads.head_dim)),
            ("rope.scaling.finetuned", Value::Bool(self.has_rope)),
            ("vocab_size", integer(self.n_vocab)),
            ("expert_count", integer(n_expert)),
            ("expert_used_count", integer(n_used)),
            ("expert_shared_feed_forward_length", integer(self.n_ff_shared)),
        ];
        keys.extend(self.scales.map(|(name, scale)| (name, Value::F32(scale))));
        keys.extend(self.ssm.keys());
        prefixed(ARCHITECTURE, keys)
    }

    /// Tensors.
    fn rows(&self) -> Vec<Row> {
        let n_embd = self.n_embd;
        let head = (!self.tied).then_some(HEAD);
        let mut rows = Row::embedding_and_head("model.embed_tokens.weight", head, &[self.n_vocab, n_embd]);
        rows.push(Row::new("output_norm.weight", "model.norm.weight", Role::Full, &[n_embd]));
        for (i, &is_attention) in self.is_attention.iter().enumerate() {
            let mut block = Block::layer(&mut rows, "model.", i);
            block.add("attn_norm", "input_layernorm", Role::Full, &[n_embd]);
            if is_attention {
                block.attention(&self.heads, n_embd, "o_proj", true);
            } else {
                self.ssm.rows_of_heads(&mut block, "mamba");
            }
            block.add("ffn_norm", "post_attention_layernorm", Role::Full, &[n_embd]);
            self.feed_forward(&mut block);
        }
        rows
    }

    fn feed_forward(&self, block: &mut Block<'_>) {
        let (n_embd, suffix) = (self.n_embd, if self.experts.is_some() { "_shexp" } else { "" });
        if let Some(Experts { n_expert, .. }) = self.experts {
            block.add("ffn_gate_inp", "block_sparse_moe.router.layer", Role::Full, &[n_expert, n_embd]);
            self.halves(block, "_exps", "block_sparse_moe.input_linear", &[n_expert], self.n_ff);
            let dims = [n_expert, n_embd, self.n_ff];
            block.add("ffn_down_exps", "block_sparse_moe.output_linear", Role::Matrix, &dims);
        }
        self.halves(block, suffix, "shared_mlp.input_linear", &[], self.n_ff_shared);
        let dims = [n_embd, self.n_ff_shared];
        block.add(&format!("ffn_down{suffix}"), "shared_mlp.output_linear", Role::Matrix, &dims);
    }

    /// Gate and `up`, which are stored in one matrix, gate first, for each of `experts`.
    fn halves(&self, block: &mut Block<'_>, suffix: &str, stored: &str, experts: &[usize], n_ff: usize) {
        let size = n_ff * self.n_embd;
        let dims = |n: usize| [experts, &[n, self.n_embd]].concat();
        for (part, i) in [("gate", 0), ("up", 1)] {
            let half = Piece { start: i * size, loops: experts.iter().map(|&n| (n, 2 * size)).collect(), run: size };
            let row = block.row(&format!("ffn_{part}{suffix}"), stored, Role::Matrix, &dims(2 * n_ff));
            block.rows.push(row.arranged(&dims(n_ff), vec![half]));
        }
    }
}

/// Whether positions are encoded.
fn has_rope(config: &Section<'_>) -> Result<bool> {
    const KEY: &str = "position_embedding_type";
    match config.text_or_none(KEY)? {
        None | Some("nope") => Ok(false),
        Some("rope") => Ok(true),
        Some(other) => Err(config.error(KEY, &format!("want \"nope\" or \"rope\", got {}", quoted(other)))),
    }
}

/// Of every layer, whether it has attention.
fn layer_kinds(config: &Section<'_>) -> Result<Vec<bool>> {
    const KEY: &str = "layer_types";
    let n_layer = config.integer("num_hidden_layers", 1..=MAX_LAYERS)?;
    let kinds = layers::listed(config, n_layer, &ATTENTION, &RECURRENT)?;
    let kinds = kinds.ok_or_else(|| config.error(KEY, "is missing"))?;
    let is_hybrid = kinds.contains(&false);
    ensure!(is_hybrid, config.error(KEY, "attention alone (Granite without state-space blocks) is not supported"));
    Ok(kinds)
}
