//! Qwen3-Next and Qwen3.5, dense and with experts: gated delta nets and gated attention in turn. Configuration, keys and
//! tensors of the text; a vision tower is left out.
//!
//! Source of names, keys and order: llama.cpp, `conversion/qwen.py` (`Qwen3NextModel`, `_LinearAttentionVReorderBase`,
//! `_QwenMtpMixin`) and `gguf-py/gguf/tensor_mapping.py`.

use anyhow::{Result, ensure};
use engine::gguf::{Array, Value};
use serde_json::json;

use super::HEAD;
use super::arrange::{Change, Piece};
use super::block::Block;
use super::checkpoint::Model;
use super::config::{Section, integer, prefixed};
use super::heads::Heads;
use super::layers;
use super::limits::{MAX_CONTEXT, MAX_EXPERTS, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use super::parts::{Part, Parts};
use super::plan::{Role, Row};
use super::qwen3::{rope_theta, stored_rope_sections};

/// Layers with attention, in `layer_types`.
const ATTENTION: &str = "full_attention";
/// Layers with a gated delta net, in `layer_types`.
const LINEAR: &str = "linear_attention";
/// Every layer of this number is one with attention, where no configuration says otherwise. Source: transformers,
/// `Qwen3NextConfig`.
const USUAL_INTERVAL: usize = 4;
/// Part of a head that is rotated, where no configuration says otherwise. Source: transformers, `Qwen3NextConfig`.
const USUAL_ROTATED: f64 = 0.25;
/// Rotated pairs of each position stream, where no configuration says. Source: llama.cpp, `_Qwen35MRopeMixin`.
const USUAL_SECTIONS: [i32; 3] = [11, 11, 10];
/// Taps of the convolution. Published models have 4.
const MAX_TAPS: u64 = 64;
/// Tensors of the vision tower begin with one of these.
const VISION: [&str; 2] = ["model.visual.", "visual."];
/// Tensors of the blocks that predict the token after the next begin with one of these.
const NEXT_TOKEN: [&str; 2] = ["mtp.", "model.mtp."];

/// The three architectures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Family {
    /// Experts in every layer, projections packed by key head.
    Next,
    /// Qwen3.5 with dense feed-forward layers.
    Dense,
    /// Qwen3.5 with experts in every layer.
    Moe,
}

impl Family {
    /// `general.architecture` of the file.
    pub(super) const fn architecture(self) -> &'static str {
        match self {
            Self::Next => "qwen3next",
            Self::Dense => "qwen35",
            Self::Moe => "qwen35moe",
        }
    }

    /// Name of the pre-tokenizer.
    pub(super) const fn pre_tokenizer(self) -> &'static str {
        match self {
            Self::Next => "qwen2",
            Self::Dense | Self::Moe => "qwen35",
        }
    }
}

/// The parts of a checkpoint.
pub(super) fn parts(checkpoint: &Model, family: Family) -> Result<Parts> {
    let model = Qwen3Next::read(checkpoint, family)?;
    let rows = model.rows(checkpoint);
    let text = Part { architecture: family.architecture(), keys: model.keys(), rows };
    let notices = vision_notice(checkpoint).into_iter().collect();
    Ok(Parts { is_ignored: is_vision, notices, ..Parts::text(model.n_vocab, family.pre_tokenizer(), text) })
}

/// Sizes of a gated delta net.
struct DeltaNet {
    n_key_head: usize,
    n_value_head: usize,
    /// Width of a key and of a value.
    head_dim: usize,
    n_taps: usize,
}

impl DeltaNet {
    fn read(config: &Section<'_>) -> Result<Self> {
        const VALUE_HEADS: &str = "linear_num_value_heads";
        const VALUE_DIM: &str = "linear_value_head_dim";
        let n_key_head = config.integer("linear_num_key_heads", 1..=MAX_HEADS)?;
        let n_value_head = config.integer(VALUE_HEADS, 1..=MAX_HEADS)?;
        ensure!(
            n_value_head.is_multiple_of(n_key_head),
            config.error(VALUE_HEADS, &format!("want a multiple of {n_key_head} key heads, got {n_value_head}"))
        );
        let head_dim = config.integer("linear_key_head_dim", 1..=MAX_WIDTH)?;
        let value_dim = config.integer(VALUE_DIM, 1..=MAX_WIDTH)?;
        ensure!(
            value_dim == head_dim,
            config
                .error(VALUE_DIM, &format!("want the width of keys, {head_dim}, got {value_dim}: GGUF has one width"))
        );
        Ok(Self { n_key_head, n_value_head, head_dim, n_taps: config.integer("linear_conv_kernel_dim", 2..=MAX_TAPS)? })
    }

    /// Elements of all queries, and of all keys.
    fn key_width(&self) -> usize {
        self.n_key_head * self.head_dim
    }

    /// Elements of all values, and of their gates.
    fn value_width(&self) -> usize {
        self.n_value_head * self.head_dim
    }

    /// Channels of the convolution: queries, keys, values.
    fn channels(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }

    /// Value heads that share a key head.
    fn group(&self) -> usize {
        self.n_value_head / self.n_key_head
    }

    /// Value heads of `size` elements each, from element `start` on, in the file's order: head `i` belongs to key head
    /// `i mod n_key_head`. A checkpoint has those of one key head behind each other.
    fn tiled(&self, start: usize, size: usize) -> Piece {
        let group = self.group();
        Piece { start, loops: vec![(group, size), (self.n_key_head, group * size)], run: size }
    }

    /// Parts `from..to` of what a checkpoint packs for each key head, counted in heads of `width` elements: a query, a key,
    /// its values, their gates.
    fn unpacked(&self, from: usize, to: usize, width: usize) -> Piece {
        let packed = (2 + 2 * self.group()) * width;
        Piece { start: from * width, loops: vec![(self.n_key_head, packed)], run: (to - from) * width }
    }
}

/// The numbers of layers with experts.
struct Experts {
    n_expert: usize,
    n_used: usize,
    n_ff: usize,
    /// Width of the expert that every token is sent to.
    n_ff_shared: usize,
}

impl Experts {
    fn read(config: &Section<'_>) -> Result<Self> {
        // Keys for other values are unknown to llama.cpp's files.
        config.expect("norm_topk_prob", &json!(true))?;
        config.expect("mlp_only_layers", &json!([]))?;
        config.expect("decoder_sparse_step", &json!(1))?;
        let n_expert = config.integer("num_experts", 1..=MAX_EXPERTS)?;
        Ok(Self {
            n_expert,
            n_used: config.integer("num_experts_per_tok", 1..=n_expert as u64)?,
            n_ff: config.integer("moe_intermediate_size", 1..=MAX_WIDTH)?,
            n_ff_shared: config.integer("shared_expert_intermediate_size", 1..=MAX_WIDTH)?,
        })
    }
}

/// The numbers of a decoder, and where its tensors are.
struct Qwen3Next {
    family: Family,
    n_ctx: usize,
    n_embd: usize,
    /// Width of dense feed-forward layers. Qwen3-Next names one, though none of its layers is dense.
    n_ff: Option<usize>,
    heads: Heads,
    n_rotated: usize,
    rope_theta: f32,
    /// Rotated pairs of each position stream.
    rope_sections: Option<Vec<i32>>,
    rms_eps: f32,
    delta: DeltaNet,
    experts: Option<Experts>,
    /// Of every layer, whether it has attention; a gated delta net otherwise.
    is_attention: Vec<bool>,
    interval: usize,
    /// Rows of the embedding.
    pub n_vocab: usize,
    /// What stands before `embed_tokens`.
    prefix: &'static str,
    /// What stands before the blocks that predict the token after the next, and how many there are.
    next_token: Option<(&'static str, usize)>,
    /// Whether the head is the embedding.
    tied: bool,
}

impl Qwen3Next {
    /// Reads the configuration of `checkpoint`; that of a model with a vision tower has the text's inside.
    fn read(checkpoint: &Model, family: Family) -> Result<Self> {
        let root = checkpoint.config();
        let nested = root.section_or_none("text_config")?;
        let config = nested.as_ref().unwrap_or(&root);
        config.expect_text("hidden_act", "silu")?;
        config.expect_off("attention_bias")?;
        config.expect("attn_output_gate", &json!(true))?;
        let heads = Heads::read(config, |_| config.integer("head_dim", 2..=MAX_WIDTH))?;
        let n_rotated = rotated(config, heads.head_dim)?;
        let sections = match family {
            Family::Next => None,
            Family::Dense | Family::Moe => {
                Some(stored_rope_sections(config, n_rotated / 2)?.unwrap_or_else(|| USUAL_SECTIONS.to_vec()))
            }
        };
        let (is_attention, interval) = layer_kinds(config)?;
        let prefixes = ["model.language_model.", "model."];
        let is_nested = checkpoint.has_prefix(prefixes[0]);
        let named_width = || config.integer("intermediate_size", 1..=MAX_WIDTH);
        let next_token = NEXT_TOKEN.into_iter().find(|prefix| checkpoint.has_prefix(prefix));
        Ok(Self {
            family,
            n_ctx: config.integer("max_position_embeddings", 1..=MAX_CONTEXT)?,
            n_embd: config.integer("hidden_size", 1..=MAX_WIDTH)?,
            n_ff: match family {
                Family::Dense => Some(named_width()?),
                Family::Next | Family::Moe if config.has("intermediate_size") => Some(named_width()?),
                Family::Next | Family::Moe => None,
            },
            heads,
            n_rotated,
            rope_theta: rope_theta(config)?,
            rope_sections: sections.map(four),
            rms_eps: config.positive("rms_norm_eps")?,
            delta: DeltaNet::read(config)?,
            experts: match family {
                Family::Dense => None,
                Family::Next | Family::Moe => Some(Experts::read(config)?),
            },
            is_attention,
            interval,
            n_vocab: config.integer("vocab_size", 1..=MAX_VOCAB)?,
            prefix: if is_nested { prefixes[0] } else { prefixes[1] },
            next_token: next_token.map(|prefix| (prefix, n_next_token(checkpoint, prefix))),
            tied: !checkpoint.has(HEAD)
                && root.flag("tie_word_embeddings", config.flag("tie_word_embeddings", false)?)?,
        })
    }

    /// Layers and the blocks behind them that predict the token after the next.
    fn n_block(&self) -> usize {
        self.is_attention.len() + self.next_token.map_or(0, |(_, n)| n)
    }

    /// Metadata.
    fn keys(&self) -> Vec<(String, Value)> {
        let delta = &self.delta;
        let mut is_recurrent: Vec<bool> = self.is_attention.iter().map(|is_attention| !is_attention).collect();
        is_recurrent.resize(self.n_block(), false);
        let mut keys = vec![
            ("block_count", integer(self.n_block())),
            ("context_length", integer(self.n_ctx)),
            ("embedding_length", integer(self.n_embd)),
            ("attention.head_count", integer(self.heads.n_head)),
            ("attention.head_count_kv", integer(self.heads.n_head_kv)),
            ("attention.key_length", integer(self.heads.head_dim)),
            ("attention.value_length", integer(self.heads.head_dim)),
            ("attention.layer_norm_rms_epsilon", Value::F32(self.rms_eps)),
            ("rope.freq_base", Value::F32(self.rope_theta)),
            ("rope.dimension_count", integer(self.n_rotated)),
            ("ssm.conv_kernel", integer(delta.n_taps)),
            ("ssm.state_size", integer(delta.head_dim)),
            ("ssm.group_count", integer(delta.n_key_head)),
            ("ssm.time_step_rank", integer(delta.n_value_head)),
            ("ssm.inner_size", integer(delta.value_width())),
            ("full_attention_interval", integer(self.interval)),
            ("attention.recurrent_layers", Value::Array(Array::Bool(is_recurrent))),
        ];
        keys.extend(self.n_ff.map(|n_ff| ("feed_forward_length", integer(n_ff))));
        keys.extend(self.rope_sections.clone().map(|sections| ("rope.dimension_sections", sections.into())));
        if let Some(experts) = &self.experts {
            keys.extend([
                ("expert_count", integer(experts.n_expert)),
                ("expert_used_count", integer(experts.n_used)),
                ("expert_feed_forward_length", integer(experts.n_ff)),
                ("expert_shared_feed_forward_length", integer(experts.n_ff_shared)),
            ]);
        }
        keys.extend(self.next_token.map(|(_, n)| ("nextn_predict_layers", integer(n))));
        prefixed(self.family.architecture(), keys)
    }

    /// Tensors.
    fn rows(&self, checkpoint: &Model) -> Vec<Row> {
        let (n_embd, prefix) = (self.n_embd, self.prefix);
        let (stored, head) = (format!("{prefix}embed_tokens.weight"), (!self.tied).then_some(HEAD));
        let mut rows = Row::embedding_and_head(stored, head, &[self.n_vocab, n_embd]);
        let norm = Row::new("output_norm.weight", format!("{prefix}norm.weight"), Role::Full, &[n_embd]);
        rows.push(norm.changed(Change::PlusOne));
        for (i, &is_attention) in self.is_attention.iter().enumerate() {
            let mut block = Block::layer(&mut rows, prefix, i);
            self.layer(&mut block, is_attention, checkpoint);
        }
        for (prefix, i) in self.next_token.into_iter().flat_map(|(prefix, n)| (0..n).map(move |i| (prefix, i))) {
            let name = format!("blk.{}", self.is_attention.len() + i);
            let mut block = Block { rows: &mut rows, name, stored: format!("{prefix}layers.{i}") };
            self.layer(&mut block, true, checkpoint);
            if i == 0 {
                block.stored = prefix.trim_end_matches('.').to_owned();
                block.add("nextn.eh_proj", "fc", Role::Matrix, &[n_embd, 2 * n_embd]);
                block.norm("nextn.enorm", "pre_fc_norm_embedding", n_embd);
                block.norm("nextn.hnorm", "pre_fc_norm_hidden", n_embd);
                block.norm("nextn.shared_head_norm", "norm", n_embd);
            }
        }
        rows
    }

    fn layer(&self, block: &mut Block<'_>, is_attention: bool, checkpoint: &Model) {
        block.norm("attn_norm", "input_layernorm", self.n_embd);
        if is_attention {
            self.attention(block);
        } else {
            self.delta_net(block);
        }
        block.norm("post_attention_norm", "post_attention_layernorm", self.n_embd);
        match (&self.experts, self.n_ff) {
            (Some(experts), _) => experts.rows(block, self.n_embd, checkpoint),
            (None, n_ff) => block.swiglu("", "mlp", self.n_embd, n_ff.expect("dense layers have a width")),
        }
    }

    fn attention(&self, block: &mut Block<'_>) {
        let (n_q, n_kv) = self.heads.widths();
        // Of every head the query, then its gate.
        block.add("attn_q", "self_attn.q_proj", Role::Matrix, &[2 * n_q, self.n_embd]);
        block.add("attn_k", "self_attn.k_proj", Role::Matrix, &[n_kv, self.n_embd]);
        block.add("attn_v", "self_attn.v_proj", Role::Matrix, &[n_kv, self.n_embd]);
        block.add("attn_output", "self_attn.o_proj", Role::Matrix, &[self.n_embd, n_q]);
        block.norm("attn_q_norm", "self_attn.q_norm", self.heads.head_dim);
        block.norm("attn_k_norm", "self_attn.k_norm", self.heads.head_dim);
    }

    fn delta_net(&self, block: &mut Block<'_>) {
        let (delta, n_embd) = (&self.delta, self.n_embd);
        let (key_width, value_width, channels) = (delta.key_width(), delta.value_width(), delta.channels());
        let (n_head, head_dim, group) = (delta.n_value_head, delta.head_dim, delta.group());
        let is_packed = self.family == Family::Next;
        // Rows of queries and keys, which stay, before those of values.
        let reordered = |row_len: usize| {
            let kept = 2 * key_width * row_len;
            vec![Piece::of(0..kept), delta.tiled(kept, head_dim * row_len)]
        };
        // As stored where files keep the order of heads.
        let arranged = |row: Row, pieces: Vec<Piece>| {
            let dims = row.dims.clone();
            if is_packed { row } else { row.arranged(&dims, pieces) }
        };
        if is_packed {
            let packed = block.row("", "linear_attn.in_proj_qkvz", Role::Matrix, &[channels + value_width, n_embd]);
            let part = |name: &str, rows: usize, heads: &[(usize, usize)]| {
                let pieces = heads.iter().map(|&(from, to)| delta.unpacked(from, to, head_dim * n_embd)).collect();
                Row { name: block.weight(name), ..packed.clone() }.arranged(&[rows, n_embd], pieces)
            };
            let rows = [
                part("attn_qkv", channels, &[(0, 1), (1, 2), (2, 2 + group)]),
                part("attn_gate", value_width, &[(2 + group, 2 + 2 * group)]),
            ];
            block.rows.extend(rows);
            block.add("ssm_ba", "linear_attn.in_proj_ba", Role::Matrix, &[2 * n_head, n_embd]);
        } else {
            let mut add = |name: &str, stored: &str, rows: usize, pieces: Vec<Piece>| {
                let row = block.row(name, &format!("linear_attn.{stored}"), Role::Matrix, &[rows, n_embd]);
                block.rows.push(arranged(row, pieces));
            };
            add("attn_qkv", "in_proj_qkv", channels, reordered(n_embd));
            add("attn_gate", "in_proj_z", value_width, vec![delta.tiled(0, head_dim * n_embd)]);
            add("ssm_beta", "in_proj_b", n_head, vec![delta.tiled(0, n_embd)]);
            add("ssm_alpha", "in_proj_a", n_head, vec![delta.tiled(0, n_embd)]);
        }
        let taps = block.row("ssm_conv1d", "linear_attn.conv1d", Role::Full, &[channels, 1, delta.n_taps]);
        block.rows.push(arranged(taps.shaped(&[channels, delta.n_taps]), reordered(delta.n_taps)));
        let per_head = |name: &str, stored: &str| {
            let stored = format!("{}.linear_attn.{stored}", block.stored);
            arranged(Row::new(format!("{}.{name}", block.name), stored, Role::Full, &[n_head]), vec![delta.tiled(0, 1)])
        };
        let rows = [per_head("ssm_a", "A_log").changed(Change::NegativeExp), per_head("ssm_dt.bias", "dt_bias")];
        block.rows.extend(rows);
        // The one norm whose weights are stored as they are.
        block.add("ssm_norm", "linear_attn.norm", Role::Full, &[head_dim]);
        let out = block.row("ssm_out", "linear_attn.out_proj", Role::Matrix, &[n_embd, value_width]);
        let mut columns = delta.tiled(0, head_dim);
        columns.loops.insert(0, (n_embd, value_width));
        block.rows.push(arranged(out, vec![columns]));
    }
}

impl Experts {
    fn rows(&self, block: &mut Block<'_>, n_embd: usize, checkpoint: &Model) {
        block.add("ffn_gate_inp", "mlp.gate", Role::Full, &[self.n_expert, n_embd]);
        let n_ff = self.n_ff;
        let stacked = format!("{}.mlp.experts.", block.stored);
        if checkpoint.has_prefix(&format!("{stacked}gate_up_proj")) {
            // Both matrices of an expert behind each other.
            let part = [("gate", 0), ("up", 1)].map(|(part, i)| {
                let size = n_ff * n_embd;
                let halves = Piece { start: i * size, loops: vec![(self.n_expert, 2 * size)], run: size };
                let name = block.weight(&format!("ffn_{part}_exps"));
                Row::new(name, format!("{stacked}gate_up_proj"), Role::Matrix, &[self.n_expert, 2 * n_ff, n_embd])
                    .arranged(&[self.n_expert, n_ff, n_embd], vec![halves])
            });
            block.rows.extend(part);
            let dims = [self.n_expert, n_embd, n_ff];
            block.rows.push(Row::new(
                block.weight("ffn_down_exps"),
                format!("{stacked}down_proj"),
                Role::Matrix,
                &dims,
            ));
        } else {
            block.experts("mlp", n_embd, n_ff, self.n_expert);
        }
        block.add("ffn_gate_inp_shexp", "mlp.shared_expert_gate", Role::Full, &[1, n_embd]);
        block.swiglu("_shexp", "mlp.shared_expert", n_embd, self.n_ff_shared);
    }
}

impl Block<'_> {
    /// The weights of a norm, which are stored around 0.
    fn norm(&mut self, name: &str, stored: &str, n: usize) {
        let row = self.row(name, stored, Role::Full, &[n]).changed(Change::PlusOne);
        self.rows.push(row);
    }
}

/// Whether a tensor belongs to the vision tower.
fn is_vision(name: &str) -> bool {
    VISION.iter().any(|prefix| name.starts_with(prefix))
}

/// What there is to say about a vision tower, if there is one.
fn vision_notice(checkpoint: &Model) -> Option<String> {
    let has_vision = VISION.iter().any(|prefix| checkpoint.has_prefix(prefix));
    has_vision.then(|| "the vision tower is left out: images are not supported, the text model is".to_owned())
}

/// Blocks that predict the token after the next, numbered from 0.
fn n_next_token(checkpoint: &Model, prefix: &str) -> usize {
    let has_block = |i: &usize| checkpoint.has_prefix(&format!("{prefix}layers.{i}."));
    (0..MAX_LAYERS as usize).take_while(has_block).count().max(1)
}

/// Elements of a head that are rotated.
fn rotated(config: &Section<'_>, head_dim: usize) -> Result<usize> {
    const KEY: &str = "partial_rotary_factor";
    let rope = config.section_or_none("rope_parameters")?;
    let section = rope.as_ref().filter(|rope| rope.has(KEY)).unwrap_or(config);
    let factor = section.decimal_or_none(KEY)?.unwrap_or(USUAL_ROTATED);
    ensure!((0.0..=1.0).contains(&factor), section.error(KEY, &format!("want a number from 0 to 1, got {factor:e}")));
    // Fractions are cut off, as Python's `int` does.
    let n = (head_dim as f64 * factor) as usize;
    ensure!(
        n >= 2 && n.is_multiple_of(2),
        section
            .error(KEY, &format!("{factor} of {head_dim} rotates {n} elements of a head: want an even number of them"))
    );
    Ok(n)
}

/// Position streams as a file has them: four, of which the last are 0.
fn four(mut sections: Vec<i32>) -> Vec<i32> {
    sections.resize(4, 0);
    sections
}

/// Of every layer, whether it has attention, and the distance of those that have where no list says it: `layer_types`, or
/// `full_attention_interval` in older files.
fn layer_kinds(config: &Section<'_>) -> Result<(Vec<bool>, usize)> {
    const INTERVAL: &str = "full_attention_interval";
    let n_layer = config.integer("num_hidden_layers", 1..=MAX_LAYERS)?;
    let interval = if config.has(INTERVAL) { config.integer(INTERVAL, 1..=MAX_LAYERS)? } else { USUAL_INTERVAL };
    let listed = layers::listed(config, n_layer, &[ATTENTION], &[LINEAR])?;
    Ok((listed.unwrap_or_else(|| (1..=n_layer).map(|i| i.is_multiple_of(interval)).collect()), interval))
}
