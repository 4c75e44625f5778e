//! The Qwen3 decoder: its configuration, keys and tensors, alone and inside Qwen3-ASR; and what Llama has of it.
//!
//! Source of names and keys: llama.cpp, `conversion/base.py` (`TextModel.set_gguf_parameters`) and
//! `gguf-py/gguf/tensor_mapping.py`.

use anyhow::{Result, bail, ensure};
use engine::gguf::{Value, quoted, shown};

use super::HEAD;
use super::checkpoint::Model;
use super::config::{Section, integer, prefixed};
use super::heads::{HEAD_DIM, Heads};
use super::limits::{MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use super::parts::{Part, Parts};
use super::plan::{Role, Row};

/// Pre-tokenizer of all Qwen models from Qwen2 on.
pub(super) const PRE_TOKENIZER: &str = "qwen2";
/// `general.architecture`.
const ARCHITECTURE: &str = "qwen3";

/// The parts of a checkpoint.
pub(super) fn parts(checkpoint: &Model) -> Result<Parts> {
    let model = TextConfig::read(&checkpoint.config())?;
    let (n_vocab, keys) = (model.n_vocab, model.keys(ARCHITECTURE));
    let rows = model.rows_and_head(checkpoint.has(HEAD));
    Ok(Parts::text(n_vocab, PRE_TOKENIZER, Part { architecture: ARCHITECTURE, keys, rows }))
}

/// What projections of attention have that others lack.
#[derive(Clone, Copy)]
pub(super) struct Projections {
    /// Norms of queries and keys.
    pub has_norms: bool,
    /// Biases.
    pub has_biases: bool,
    /// Rows of queries and keys in another order than in the checkpoint; see [`Row::with_rotated_pairs`].
    pub has_rotated_pairs: bool,
}

/// The numbers of a decoder.
pub(super) struct TextConfig {
    n_layer: usize,
    n_ctx: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    n_ff: usize,
    heads: Heads,
    projections: Projections,
    /// Whether the configuration names `head_dim`.
    names_head_dim: bool,
    rms_eps: f32,
    rope_theta: f32,
    /// Rows of the embedding.
    pub n_vocab: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
}

impl TextConfig {
    /// Reads `config`, a Qwen3 configuration or `text_config`.
    pub(super) fn read(config: &Section<'_>) -> Result<Self> {
        config.expect_off("attention_bias")?;
        config.expect_off("use_sliding_window")?;
        let heads = Heads::read(config, |_| config.integer(HEAD_DIM, 2..=MAX_WIDTH))?;
        let projections = Projections { has_norms: true, has_biases: false, has_rotated_pairs: false };
        Self::read_with(config, heads, projections, rope_theta(config)?)
    }

    /// The numbers of a decoder whose layers differ from Qwen3's in their projections.
    pub(super) fn read_with(
        config: &Section<'_>,
        heads: Heads,
        projections: Projections,
        rope_theta: f32,
    ) -> Result<Self> {
        config.expect_text("hidden_act", "silu")?;
        Ok(Self {
            n_layer: config.integer("num_hidden_layers", 1..=MAX_LAYERS)?,
            n_ctx: config.integer("max_position_embeddings", 1..=MAX_CONTEXT)?,
            n_embd: config.integer("hidden_size", 1..=MAX_WIDTH)?,
            n_ff: config.integer("intermediate_size", 1..=MAX_WIDTH)?,
            heads,
            projections,
            names_head_dim: config.has(HEAD_DIM),
            rms_eps: config.positive("rms_norm_eps")?,
            rope_theta,
            n_vocab: config.integer("vocab_size", 1..=MAX_VOCAB)?,
            tied: config.flag("tie_word_embeddings", false)?,
        })
    }

    /// Metadata, under the prefix `architecture`.
    pub(super) fn keys(&self, architecture: &str) -> Vec<(String, Value)> {
        let mut keys = vec![
            ("block_count", integer(self.n_layer)),
            ("context_length", integer(self.n_ctx)),
            ("embedding_length", integer(self.n_embd)),
            ("feed_forward_length", integer(self.n_ff)),
            ("attention.head_count", integer(self.heads.n_head)),
            ("attention.head_count_kv", integer(self.heads.n_head_kv)),
            ("rope.freq_base", Value::F32(self.rope_theta)),
            ("attention.layer_norm_rms_epsilon", Value::F32(self.rms_eps)),
        ];
        if self.names_head_dim {
            keys.push(("attention.key_length", integer(self.heads.head_dim)));
            keys.push(("attention.value_length", integer(self.heads.head_dim)));
        }
        prefixed(architecture, keys)
    }

    /// How many of the rotated pairs follow which position stream: time, height, width, none.
    ///
    /// `config`: `text_config`. The `-hf` layout leaves the sections out, and llama.cpp wants them. All streams of a
    /// text with audio are equal, so that any cut gives the same numbers: it is that of the published models.
    pub(super) fn rope_sections(&self, config: &Section<'_>) -> Result<Vec<i32>> {
        let pairs = self.heads.head_dim / 2;
        let usual = || {
            let (pairs, side) = (word(pairs), word(pairs * 5 / 16));
            vec![pairs - 2 * side, side, side]
        };
        let mut sections = stored_rope_sections(config, pairs)?.unwrap_or_else(usual);
        sections.resize(4, 0);
        Ok(sections)
    }

    /// Tensors but the head. `prefix` stands before `embed_tokens` in the checkpoint.
    pub(super) fn rows(&self, prefix: &str) -> Vec<Row> {
        let (n_embd, n_ff) = (self.n_embd, self.n_ff);
        let (n_q, n_kv) = self.heads.widths();
        let mut rows = vec![Row::new(
            "token_embd.weight",
            format!("{prefix}embed_tokens.weight"),
            // A tied embedding is the head as well.
            if self.tied { Role::Head } else { Role::Matrix },
            &[self.n_vocab, n_embd],
        )];
        for i in 0..self.n_layer {
            let row = |name: &str, stored: &str, role, dims: &[usize]| {
                Row::new(format!("blk.{i}.{name}"), format!("{prefix}layers.{i}.{stored}"), role, dims)
            };
            let full = |name: &str, stored: &str, n| {
                row(&format!("{name}.weight"), &format!("{stored}.weight"), Role::Full, &[n])
            };
            let matrix = |name: &str, stored: &str, n_out, n_in| {
                row(&format!("{name}.weight"), &format!("{stored}.weight"), Role::Matrix, &[n_out, n_in])
            };
            let bias =
                |name: &str, stored: &str, n| row(&format!("{name}.bias"), &format!("{stored}.bias"), Role::Full, &[n]);
            let turned = |row: Row| {
                if self.projections.has_rotated_pairs { row.with_rotated_pairs(self.heads.head_dim) } else { row }
            };
            rows.push(full("attn_norm", "input_layernorm", n_embd));
            rows.push(turned(matrix("attn_q", "self_attn.q_proj", n_q, n_embd)));
            rows.push(turned(matrix("attn_k", "self_attn.k_proj", n_kv, n_embd)));
            rows.push(matrix("attn_v", "self_attn.v_proj", n_kv, n_embd));
            rows.push(matrix("attn_output", "self_attn.o_proj", n_embd, n_q));
            if self.projections.has_biases {
                rows.push(turned(bias("attn_q", "self_attn.q_proj", n_q)));
                rows.push(turned(bias("attn_k", "self_attn.k_proj", n_kv)));
                rows.push(bias("attn_v", "self_attn.v_proj", n_kv));
                rows.push(bias("attn_output", "self_attn.o_proj", n_embd));
            }
            if self.projections.has_norms {
                rows.push(full("attn_q_norm", "self_attn.q_norm", self.heads.head_dim));
                rows.push(full("attn_k_norm", "self_attn.k_norm", self.heads.head_dim));
            }
            rows.push(full("ffn_norm", "post_attention_layernorm", n_embd));
            rows.push(matrix("ffn_gate", "mlp.gate_proj", n_ff, n_embd));
            rows.push(matrix("ffn_up", "mlp.up_proj", n_ff, n_embd));
            rows.push(matrix("ffn_down", "mlp.down_proj", n_embd, n_ff));
        }
        rows.push(Row::new("output_norm.weight", format!("{prefix}norm.weight"), Role::Full, &[n_embd]));
        rows
    }

    /// All tensors of a text model, in the layout of transformers. `has_head`: whether the checkpoint has a head.
    pub(super) fn rows_and_head(mut self, has_head: bool) -> Vec<Row> {
        let has_head = has_head || !self.tied;
        self.tied = !has_head;
        let mut rows = self.rows("model.");
        rows.extend(has_head.then(|| self.head(super::HEAD)));
        rows
    }

    /// The head, from the checkpoint's tensor `stored`.
    pub(super) fn head(&self, stored: &str) -> Row {
        Row::new("output.weight", stored, Role::Head, &[self.n_vocab, self.n_embd])
    }
}

/// What the frequency of every pair of a head is divided by, where the configuration scales them as Llama 3.1 does, beside
/// their base.
///
/// Long waves are stretched by `factor`, short ones stay, and those in between go over. In f32, as llama.cpp's converter.
/// Source: transformers, `_compute_llama3_parameters`; llama.cpp, `LlamaModel.generate_extra_tensors`.
pub(super) fn rope_with_factors(config: &Section<'_>, head_dim: usize) -> Result<(f32, Option<Vec<f32>>)> {
    const LLAMA3: &str = "llama3";
    const THETA: &str = "rope_theta";
    let Some(rope) = rope_section(config)? else { return Ok((rope_theta(config)?, None)) };
    let key = if rope.has("rope_type") { "rope_type" } else { "type" };
    match rope.text_or_none(key)? {
        Some(LLAMA3) => {}
        None | Some("default") => return Ok((rope_theta(config)?, None)),
        Some(other) => {
            bail!(rope.error(key, &format!("want \"default\" or {LLAMA3:?}, got {}", quoted(other))))
        }
    }
    let base = if rope.has(THETA) { rope.positive(THETA)? } else { config.positive(THETA)? };
    let factor = rope.positive("factor")?;
    let (low, high) = (rope.positive("low_freq_factor")?, rope.positive("high_freq_factor")?);
    ensure!(low < high, rope.error("high_freq_factor", &format!("want more than {low}, got {high}")));
    let n_ctx = rope.integer("original_max_position_embeddings", 1..=MAX_CONTEXT)? as f32;
    let of_pair = |i: usize| {
        let frequency = 1.0 / f64::from(base).powf(f64::from((2 * i) as f32 / head_dim as f32)) as f32;
        // PyTorch divides a number by a tensor as it multiplies with the reciprocal.
        let wavelength = frequency.recip() * std::f32::consts::TAU;
        if wavelength < n_ctx / high {
            1.0
        } else if wavelength > n_ctx / low {
            factor
        } else {
            let smooth = (wavelength.recip() * n_ctx - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Ok((base, Some((0..head_dim / 2).map(of_pair).collect())))
}

/// The rotary parameters: `rope_parameters` since transformers 5, `rope_scaling` before.
fn rope_section<'a>(config: &Section<'a>) -> Result<Option<Section<'a>>> {
    Ok(match config.section_or_none("rope_parameters")? {
        Some(rope) => Some(rope),
        None => config.section_or_none("rope_scaling")?,
    })
}

/// How many of the rotated `pairs` follow which position stream, where the configuration says so.
pub(super) fn stored_rope_sections(config: &Section<'_>, pairs: usize) -> Result<Option<Vec<i32>>> {
    const KEY: &str = "mrope_section";
    let Some(rope) = rope_section(config)? else { return Ok(None) };
    let Some(list) = rope.integers_or_none(KEY, 0..=MAX_WIDTH)? else { return Ok(None) };
    let total: u64 = list.iter().sum();
    ensure!(
        list.len() <= 4 && total == pairs as u64,
        rope.error(KEY, &format!("want at most 4 numbers that add up to {pairs}, got {}", shown(&format!("{list:?}"))))
    );
    Ok(Some(list.into_iter().map(|n| word(n as usize)).collect()))
}

/// A number of pairs as metadata.
fn word(n: usize) -> i32 {
    i32::try_from(n).expect("at most the width of a head")
}

/// The base of the rotary frequencies, which must not be scaled.
pub(super) fn rope_theta(config: &Section<'_>) -> Result<f32> {
    const KEY: &str = "rope_theta";
    let Some(rope) = rope_section(config)? else { return config.positive(KEY) };
    rope.expect_text("rope_type", "default")?;
    rope.expect_text("type", "default")?;
    if rope.has(KEY) { rope.positive(KEY) } else { config.positive(KEY) }
}
