//! The LFM2 decoder, dense and with experts: its configuration, keys and tensors, alone and inside LFM2-Audio.
//!
//! Source of names and keys: llama.cpp, `conversion/lfm2.py` and `gguf-py/gguf/tensor_mapping.py`.

use anyhow::Result;
use engine::gguf::Value;
use serde_json::json;

use super::HEAD;
use super::block::Block;
use super::checkpoint::Model;
use super::config::{Section, integer, prefixed};
use super::heads::{HEAD_DIM, Heads};
use super::layers;
use super::limits::{MAX_CONTEXT, MAX_EXPERTS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use super::parts::{Part, Parts};
use super::plan::{Role, Row, Source};
use super::qwen3::rope_theta;

/// Pre-tokenizer of all LFM2 models.
pub(super) const PRE_TOKENIZER: &str = "lfm2";
/// Layers with attention, in `layer_types`.
const ATTENTION: &str = "full_attention";
/// Layers with a short convolution, in `layer_types`.
const CONVOLUTION: &str = "conv";
/// Taps of a short convolution. Published models have 3.
const MAX_TAPS: u64 = 64;
/// `expert_gating_func` of the sigmoid. Source: gguf-py, `ExpertGatingFuncType`.
const GATING_SIGMOID: u32 = 2;

/// The parts of a checkpoint.
pub(super) fn parts(checkpoint: &Model, read: fn(&Section<'_>) -> Result<Lfm2Config>) -> Result<Parts> {
    let mut model = read(&checkpoint.config())?;
    let has_head = checkpoint.has(HEAD) || !model.tied;
    model.tied = !has_head;
    let mut rows = model.rows("model.");
    rows.extend(has_head.then(|| model.head(HEAD)));
    let text = Part { architecture: model.architecture(), keys: model.keys(), rows };
    Ok(Parts::text(model.n_vocab, PRE_TOKENIZER, text))
}

/// The numbers of a decoder.
pub(super) struct Lfm2Config {
    n_ctx: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    n_ff: usize,
    heads: Heads,
    /// Whether the configuration names `head_dim`.
    names_head_dim: bool,
    /// Of every layer, whether it has attention; a short convolution otherwise.
    is_attention: Vec<bool>,
    rms_eps: f32,
    rope_theta: f32,
    /// Rows of the embedding.
    pub n_vocab: usize,
    n_taps: usize,
    experts: Option<Experts>,
    /// Whether the head is the embedding.
    pub tied: bool,
}

/// The numbers of layers with experts.
struct Experts {
    n_expert: usize,
    n_used: usize,
    n_ff: usize,
    /// Layers without experts, all of them in front.
    n_dense: usize,
}

impl Lfm2Config {
    /// Reads `config`: that of a dense model, or the object `lfm` of LFM2-Audio.
    pub(super) fn read(config: &Section<'_>) -> Result<Self> {
        let n_ff = feed_forward_width(config)?;
        Self::read_with(config, n_ff, None)
    }

    /// Reads the configuration of a model with experts.
    pub(super) fn read_moe(config: &Section<'_>) -> Result<Self> {
        // Keys for other values are unknown to llama.cpp's files.
        config.expect("norm_topk_prob", &json!(true))?;
        config.expect("use_expert_bias", &json!(true))?;
        config.expect("routed_scaling_factor", &json!(1.0))?;
        let n_expert = config.integer("num_experts", 1..=MAX_EXPERTS)?;
        let experts = Experts {
            n_expert,
            n_used: config.integer("num_experts_per_tok", 1..=n_expert as u64)?,
            n_ff: config.integer("moe_intermediate_size", 1..=MAX_WIDTH)?,
            n_dense: config.integer("num_dense_layers", 0..=MAX_LAYERS)?,
        };
        let n_ff = config.integer("intermediate_size", 1..=MAX_WIDTH)?;
        Self::read_with(config, n_ff, Some(experts))
    }

    fn read_with(config: &Section<'_>, n_ff: usize, experts: Option<Experts>) -> Result<Self> {
        config.expect("conv_bias", &json!(false))?;
        let n_embd = config.integer("hidden_size", 1..=MAX_WIDTH)?;
        let heads = Heads::of_width(config, n_embd)?;
        Ok(Self {
            n_ctx: config.integer("max_position_embeddings", 1..=MAX_CONTEXT)?,
            n_embd,
            n_ff,
            heads,
            names_head_dim: config.has(HEAD_DIM),
            is_attention: layer_kinds(config)?,
            rms_eps: config.positive("norm_eps")?,
            rope_theta: rope_theta(config)?,
            n_vocab: config.integer("vocab_size", 1..=MAX_VOCAB)?,
            n_taps: config.integer("conv_L_cache", 2..=MAX_TAPS)?,
            experts,
            tied: config.flag("tie_embedding", config.flag("tie_word_embeddings", true)?)?,
        })
    }

    /// `general.architecture` of the file.
    pub(super) fn architecture(&self) -> &'static str {
        if self.experts.is_some() { "lfm2moe" } else { "lfm2" }
    }

    /// Metadata.
    pub(super) fn keys(&self) -> Vec<(String, Value)> {
        let mut keys = vec![
            ("block_count", integer(self.is_attention.len())),
            ("context_length", integer(self.n_ctx)),
            ("embedding_length", integer(self.n_embd)),
            ("feed_forward_length", integer(self.n_ff)),
            ("attention.head_count", integer(self.heads.n_head)),
            // A layer without heads has a short convolution.
            ("attention.head_count_kv", self.heads.kv_of_layers(self.is_attention.iter().copied())),
            ("rope.freq_base", Value::F32(self.rope_theta)),
            ("attention.layer_norm_rms_epsilon", Value::F32(self.rms_eps)),
            ("vocab_size", integer(self.n_vocab)),
            ("shortconv.l_cache", integer(self.n_taps)),
        ];
        if self.names_head_dim {
            keys.push(("attention.key_length", integer(self.heads.head_dim)));
            keys.push(("attention.value_length", integer(self.heads.head_dim)));
        }
        if let Some(experts) = &self.experts {
            keys.extend([
                ("expert_count", integer(experts.n_expert)),
                ("expert_used_count", integer(experts.n_used)),
                ("expert_feed_forward_length", integer(experts.n_ff)),
                ("leading_dense_block_count", integer(experts.n_dense)),
                ("expert_gating_func", Value::U32(GATING_SIGMOID)),
            ]);
        }
        prefixed(self.architecture(), keys)
    }

    /// Tensors but the head. `prefix` stands before `embed_tokens` in the checkpoint.
    pub(super) fn rows(&self, prefix: &str) -> Vec<Row> {
        let n_embd = self.n_embd;
        // A tied embedding is the head as well.
        let role = if self.tied { Role::Head } else { Role::Matrix };
        let stored = format!("{prefix}embed_tokens.weight");
        let mut rows = vec![Row::new("token_embd.weight", stored, role, &[self.n_vocab, n_embd])];
        for (i, &is_attention) in self.is_attention.iter().enumerate() {
            let mut layer = Block::layer(&mut rows, prefix, i);
            layer.add("attn_norm", "operator_norm", Role::Full, &[n_embd]);
            if is_attention {
                self.attention(&mut layer);
            } else {
                layer.add("shortconv.in_proj", "conv.in_proj", Role::Matrix, &[3 * n_embd, n_embd]);
                layer.add("shortconv.out_proj", "conv.out_proj", Role::Matrix, &[n_embd, n_embd]);
                let taps = layer.row("shortconv.conv", "conv.conv", Role::Full, &[n_embd, 1, self.n_taps]);
                layer.rows.push(Row { dims: vec![n_embd, self.n_taps], ..taps });
            }
            layer.add("ffn_norm", "ffn_norm", Role::Full, &[n_embd]);
            match &self.experts {
                Some(experts) if i >= experts.n_dense => experts.rows(&mut layer, n_embd),
                _ => {
                    layer.add("ffn_gate", "feed_forward.w1", Role::Matrix, &[self.n_ff, n_embd]);
                    layer.add("ffn_up", "feed_forward.w3", Role::Matrix, &[self.n_ff, n_embd]);
                    layer.add("ffn_down", "feed_forward.w2", Role::Matrix, &[n_embd, self.n_ff]);
                }
            }
        }
        // The norm behind the last layer, whatever its name in the file says.
        let stored = format!("{prefix}embedding_norm.weight");
        rows.push(Row::new("token_embd_norm.weight", stored, Role::Full, &[n_embd]));
        rows
    }

    fn attention(&self, layer: &mut Block<'_>) {
        layer.attention(&self.heads, self.n_embd, "out_proj", false);
        layer.add("attn_q_norm", "self_attn.q_layernorm", Role::Full, &[self.heads.head_dim]);
        layer.add("attn_k_norm", "self_attn.k_layernorm", Role::Full, &[self.heads.head_dim]);
    }

    /// The head, from the checkpoint's tensor `stored`.
    pub(super) fn head(&self, stored: &str) -> Row {
        Row::new("output.weight", stored, Role::Head, &[self.n_vocab, self.n_embd])
    }
}

impl Experts {
    fn rows(&self, layer: &mut Block<'_>, n_embd: usize) {
        layer.add("ffn_gate_inp", "feed_forward.gate", Role::Full, &[self.n_expert, n_embd]);
        let bias = format!("{}.feed_forward.expert_bias", layer.stored);
        layer.rows.push(Row::new(format!("{}.exp_probs_b.bias", layer.name), bias, Role::Full, &[self.n_expert]));
        for (name, stored, dims) in [
            ("ffn_gate_exps", "w1", [self.n_ff, n_embd]),
            ("ffn_up_exps", "w3", [self.n_ff, n_embd]),
            ("ffn_down_exps", "w2", [n_embd, self.n_ff]),
        ] {
            layer.rows.push(Row {
                name: format!("{}.{name}.weight", layer.name),
                dims: vec![self.n_expert, dims[0], dims[1]],
                role: Role::Matrix,
                source: Source::Experts {
                    prefix: format!("{}.feed_forward.experts.", layer.stored),
                    suffix: format!(".{stored}.weight"),
                    n: self.n_expert,
                    dims: dims.into(),
                },
            });
        }
    }
}

/// Width of the feed-forward layers. Source: transformers, `Lfm2MLP.__init__`.
fn feed_forward_width(config: &Section<'_>) -> Result<usize> {
    let key = if config.has("block_ff_dim") { "block_ff_dim" } else { "intermediate_size" };
    let named = config.integer(key, 1..=MAX_WIDTH)?;
    if !config.required_flag("block_auto_adjust_ff_dim")? {
        return Ok(named);
    }
    let multiple = config.integer("block_multiple_of", 1..=MAX_WIDTH)?;
    let two_thirds = 2 * named / 3;
    let width = match config.decimal_or_none("block_ffn_dim_multiplier")? {
        // A conversion to an integer cuts the fraction off and stays in range: what is too large is refused below.
        Some(factor) => (factor * two_thirds as f64) as usize,
        None => two_thirds,
    };
    let width = width.checked_next_multiple_of(multiple).filter(|n| (1..=MAX_WIDTH as usize).contains(n));
    width.ok_or_else(|| config.error(key, &format!("{named} gives no width of 1 to {MAX_WIDTH}")))
}

/// Of every layer, whether it has attention: `layer_types`, or `full_attn_idxs` in older files.
fn layer_kinds(config: &Section<'_>) -> Result<Vec<bool>> {
    let n_layer = config.integer("num_hidden_layers", 1..=MAX_LAYERS)?;
    if let Some(kinds) = layers::listed(config, n_layer, &[ATTENTION], &[CONVOLUTION])? {
        return Ok(kinds);
    }
    let indices = config.integers_or_none("full_attn_idxs", 0..=n_layer as u64 - 1)?;
    let indices = indices.ok_or_else(|| config.error("layer_types", "is missing"))?;
    Ok((0..n_layer as u64).map(|i| indices.contains(&i)).collect())
}
