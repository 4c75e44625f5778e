//! The Qwen3 decoder: its configuration, keys and tensors, alone and inside Qwen3-ASR.
//!
//! Source of names and keys: llama.cpp, `conversion/base.py` (`TextModel.set_gguf_parameters`) and
//! `gguf-py/gguf/tensor_mapping.py`.

use anyhow::{Result, ensure};
use engine::gguf::{Value, shown};

use super::config::{Section, integer};
use super::plan::{Role, Row};

/// Layers of a model. Published ones stay under 100.
pub(super) const MAX_LAYERS: u64 = 1024;
/// Any width of a model. Published ones stay under 2^15.
pub(super) const MAX_WIDTH: u64 = 1 << 20;
/// Heads of a layer.
pub(super) const MAX_HEADS: u64 = 4096;
/// Rows of the embedding.
pub(super) const MAX_VOCAB: u64 = 1 << 24;
/// Largest context that a checkpoint may claim.
pub(super) const MAX_CONTEXT: u64 = 1 << 31;

/// The heads of attention.
pub(super) struct Heads {
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
}

impl Heads {
    /// Reads the numbers of heads. `head_dim`: what the width of one is, by their number.
    pub(super) fn read(config: &Section<'_>, head_dim: impl FnOnce(usize) -> Result<usize>) -> Result<Self> {
        let n_head = config.integer("num_attention_heads", 1..=MAX_HEADS)?;
        let n_head_kv = config.integer("num_key_value_heads", 1..=MAX_HEADS)?;
        ensure!(
            n_head.is_multiple_of(n_head_kv),
            config.error("num_key_value_heads", &format!("want a divisor of {n_head} heads, got {n_head_kv}"))
        );
        let head_dim = head_dim(n_head)?;
        ensure!(head_dim.is_multiple_of(2), config.error("head_dim", &format!("want an even number, got {head_dim}")));
        Ok(Self { n_head, n_head_kv, head_dim })
    }

    /// Elements of a query, and of a key or value.
    pub(super) fn widths(&self) -> (usize, usize) {
        (self.n_head * self.head_dim, self.n_head_kv * self.head_dim)
    }
}

/// The numbers of a decoder.
pub(super) struct TextConfig {
    n_layer: usize,
    n_ctx: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    n_ff: usize,
    heads: Heads,
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
        config.expect_text("hidden_act", "silu")?;
        config.expect_off("attention_bias")?;
        config.expect_off("use_sliding_window")?;
        let heads = Heads::read(config, |_| config.integer("head_dim", 2..=MAX_WIDTH))?;
        Ok(Self {
            n_layer: config.integer("num_hidden_layers", 1..=MAX_LAYERS)?,
            n_ctx: config.integer("max_position_embeddings", 1..=MAX_CONTEXT)?,
            n_embd: config.integer("hidden_size", 1..=MAX_WIDTH)?,
            n_ff: config.integer("intermediate_size", 1..=MAX_WIDTH)?,
            heads,
            rms_eps: config.positive("rms_norm_eps")?,
            rope_theta: rope_theta(config)?,
            n_vocab: config.integer("vocab_size", 1..=MAX_VOCAB)?,
            tied: config.flag("tie_word_embeddings", false)?,
        })
    }

    /// Metadata, under the prefix `architecture`.
    pub(super) fn keys(&self, architecture: &str) -> Vec<(String, Value)> {
        [
            ("block_count", integer(self.n_layer)),
            ("context_length", integer(self.n_ctx)),
            ("embedding_length", integer(self.n_embd)),
            ("feed_forward_length", integer(self.n_ff)),
            ("attention.head_count", integer(self.heads.n_head)),
            ("attention.head_count_kv", integer(self.heads.n_head_kv)),
            ("rope.freq_base", Value::F32(self.rope_theta)),
            ("attention.layer_norm_rms_epsilon", Value::F32(self.rms_eps)),
            ("attention.key_length", integer(self.heads.head_dim)),
            ("attention.value_length", integer(self.heads.head_dim)),
        ]
        .map(|(key, value)| (format!("{architecture}.{key}"), value))
        .into()
    }

    /// How many of the rotated pairs follow which position stream: time, height, width, none.
    ///
    /// `config`: `text_config`. The `-hf` layout leaves the sections out, and llama.cpp wants them. All streams of a
    /// text with audio are equal, so that any cut gives the same numbers: it is that of the published models.
    pub(super) fn rope_sections(&self, config: &Section<'_>) -> Result<Vec<i32>> {
        const KEY: &str = "mrope_section";
        let pairs = self.heads.head_dim / 2;
        let stored = match rope_section(config)? {
            Some(rope) => rope.integers_or_none(KEY, 0..=MAX_WIDTH)?.map(|list| (rope, list)),
            None => None,
        };
        let mut sections: Vec<usize> = match stored {
            Some((rope, list)) => {
                let total: u64 = list.iter().sum();
                ensure!(
                    list.len() <= 4 && total == pairs as u64,
                    rope.error(
                        KEY,
                        &format!("want at most 4 numbers that add up to {pairs}, got {}", shown(&format!("{list:?}")))
                    )
                );
                list.into_iter().map(|n| n as usize).collect()
            }
            None => {
                let side = pairs * 5 / 16;
                vec![pairs - 2 * side, side, side]
            }
        };
        sections.resize(4, 0);
        Ok(sections.into_iter().map(|n| i32::try_from(n).expect("at most the width of a head")).collect())
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
            let mut add = |name: &str, stored: &str, role, dims: &[usize]| {
                let stored = format!("{prefix}layers.{i}.{stored}.weight");
                rows.push(Row::new(format!("blk.{i}.{name}.weight"), stored, role, dims));
            };
            add("attn_norm", "input_layernorm", Role::Full, &[n_embd]);
            add("attn_q", "self_attn.q_proj", Role::Matrix, &[n_q, n_embd]);
            add("attn_k", "self_attn.k_proj", Role::Matrix, &[n_kv, n_embd]);
            add("attn_v", "self_attn.v_proj", Role::Matrix, &[n_kv, n_embd]);
            add("attn_output", "self_attn.o_proj", Role::Matrix, &[n_embd, n_q]);
            add("attn_q_norm", "self_attn.q_norm", Role::Full, &[self.heads.head_dim]);
            add("attn_k_norm", "self_attn.k_norm", Role::Full, &[self.heads.head_dim]);
            add("ffn_norm", "post_attention_layernorm", Role::Full, &[n_embd]);
            add("ffn_gate", "mlp.gate_proj", Role::Matrix, &[n_ff, n_embd]);
            add("ffn_up", "mlp.up_proj", Role::Matrix, &[n_ff, n_embd]);
            add("ffn_down", "mlp.down_proj", Role::Matrix, &[n_embd, n_ff]);
        }
        rows.push(Row::new("output_norm.weight", format!("{prefix}norm.weight"), Role::Full, &[n_embd]));
        rows
    }

    /// The head, from the checkpoint's tensor `stored`.
    pub(super) fn head(&self, stored: &str) -> Row {
        Row::new("output.weight", stored, Role::Head, &[self.n_vocab, self.n_embd])
    }
}

/// The rotary parameters: `rope_parameters` since transformers 5, `rope_scaling` before.
fn rope_section<'a>(config: &Section<'a>) -> Result<Option<Section<'a>>> {
    Ok(match config.section_or_none("rope_parameters")? {
        Some(rope) => Some(rope),
        None => config.section_or_none("rope_scaling")?,
    })
}

/// The base of the rotary frequencies, which must not be scaled.
pub(super) fn rope_theta(config: &Section<'_>) -> Result<f32> {
    const KEY: &str = "rope_theta";
    let Some(rope) = rope_section(config)? else { return config.positive(KEY) };
    rope.expect_text("rope_type", "default")?;
    rope.expect_text("type", "default")?;
    if rope.has(KEY) { rope.positive(KEY) } else { config.positive(KEY) }
}
