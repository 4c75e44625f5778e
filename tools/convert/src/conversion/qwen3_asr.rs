//! Qwen3-ASR: the two published layouts, the projector's keys and tensors.
//!
//! Source of names and keys: llama.cpp, `conversion/qwen3vl.py` and `conversion/qwenvl.py`. Front end and chunk size have
//! no keys in that format: they are fixed by it, and a checkpoint with others is refused. The attention window is fixed
//! there too; one that is not that of the releases has a key of our own, which llama.cpp passes over.

use std::ops::RangeInclusive;

use anyhow::{Result, bail, ensure};
use engine::gguf::Value;

use super::checkpoint::Model;
use super::config::Section;
use super::limits::{MAX_LAYERS, MAX_WIDTH};
use super::parts::{AUDIO, Part, Parts};
use super::plan::{Role, Row, Source};
use super::positions::N_POSITIONS;
use super::projector::{Encoder, weight_and_bias, width_and_heads};
use super::qwen3::{PRE_TOKENIZER, TextConfig};

/// `general.architecture` of the text file.
const ARCHITECTURE: &str = "qwen3vl";
/// Half a chunk, in frames.
const N_WINDOW: u64 = 50;
/// Attention windows, in frames: at least a chunk, at most what a size in metadata may be.
const N_WINDOW_INFER: RangeInclusive<u64> = 2 * N_WINDOW..=1 << 24;
/// The attention window that the format takes for granted.
const USUAL_N_WINDOW_INFER: usize = 800;
/// Our key for another one.
const WINDOW_FRAMES_KEY: &str = "tympan.audio.window_frames";
/// Side of the stem's kernels.
const KERNEL: usize = 3;
/// Convolutions of the stem; each halves the mel axis.
const N_CONVOLUTIONS: usize = 3;

/// The parts of a checkpoint.
pub(super) fn parts(checkpoint: &Model) -> Result<Parts> {
    let model = Qwen3Asr::read(checkpoint)?;
    let text = Part { architecture: ARCHITECTURE, keys: model.text_keys, rows: model.text_rows };
    let audio = Part { architecture: AUDIO, keys: model.audio_keys, rows: model.audio_rows };
    let parts = Parts::text(model.n_vocab, PRE_TOKENIZER, text);
    Ok(Parts { has_plain_chatml: true, audio: Some(audio), ..parts })
}

/// Where a checkpoint keeps its parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Layout {
    /// `thinker.*`, with a nested configuration.
    Original,
    /// Transformers 5: `model.language_model.*`, with a flat configuration.
    Hf,
}

impl Layout {
    /// The layout, by the prefix of tensor names.
    pub(super) fn of(checkpoint: &Model) -> Result<Self> {
        if checkpoint.has_prefix("thinker.") {
            Ok(Self::Original)
        } else if checkpoint.has_prefix("model.language_model.") {
            Ok(Self::Hf)
        } else {
            bail!("{}: want tensors thinker.* or model.language_model.*, got neither", checkpoint.folder().display())
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Original => "thinker.model.",
            Self::Hf => "model.language_model.",
        }
    }

    const fn head(self) -> &'static str {
        match self {
            Self::Original => "thinker.lm_head.weight",
            Self::Hf => "lm_head.weight",
        }
    }

    const fn audio(self) -> &'static str {
        match self {
            Self::Original => "thinker.audio_tower.",
            Self::Hf => "model.audio_tower.",
        }
    }

    const fn projector(self) -> [&'static str; 2] {
        match self {
            Self::Original => ["thinker.audio_tower.proj1", "thinker.audio_tower.proj2"],
            Self::Hf => ["model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"],
        }
    }
}

/// Keys and tensors of both parts.
struct Qwen3Asr {
    /// Rows of the embedding.
    pub n_vocab: usize,
    /// Metadata of the decoder.
    pub text_keys: Vec<(String, Value)>,
    /// Tensors of the decoder.
    pub text_rows: Vec<Row>,
    /// Metadata of encoder and projector.
    pub audio_keys: Vec<(String, Value)>,
    /// Tensors of encoder and projector.
    pub audio_rows: Vec<Row>,
}

impl Qwen3Asr {
    /// Reads the configuration of `checkpoint`.
    pub(super) fn read(checkpoint: &Model) -> Result<Self> {
        let root = checkpoint.config();
        let layout = Layout::of(checkpoint)?;
        let inner = match layout {
            Layout::Original => root.section("thinker_config")?,
            Layout::Hf => checkpoint.config(),
        };
        refuse_aligner(checkpoint, &inner)?;
        let section = inner.section("text_config")?;
        let mut text = TextConfig::read(&section)?;
        text.tied |= inner.flag("tie_word_embeddings", false)?;
        let audio = AudioConfig::read(&inner.section("audio_config")?, text.n_embd)?;

        let mut text_keys = text.keys(ARCHITECTURE);
        text_keys.push((format!("{ARCHITECTURE}.rope.dimension_sections"), text.rope_sections(&section)?.into()));
        text_keys.push((format!("{ARCHITECTURE}.n_deepstack_layers"), Value::U32(0)));

        // The -hf layout drops the tied head that the original layout stores as a copy of the embedding: both layouts
        // give the same file.
        let embedding = format!("{}embed_tokens.weight", layout.text());
        let head = if text.tied && !checkpoint.has(layout.head()) { &embedding } else { layout.head() };
        let head = text.head(head);
        text.tied = false;
        let mut text_rows = text.rows(layout.text());
        text_rows.push(head);
        Ok(Self {
            n_vocab: text.n_vocab,
            text_keys,
            text_rows,
            audio_keys: audio.keys(),
            audio_rows: audio.rows(layout),
        })
    }
}

/// The aligner has another head and other rules of use.
fn refuse_aligner(checkpoint: &Model, config: &Section<'_>) -> Result<()> {
    let is_aligner = config.text_or_none("model_type")? == Some("qwen3_forced_aligner")
        || config.has("classify_num")
        || checkpoint.has("score.weight");
    ensure!(!is_aligner, "{}: forced aligners are not supported (supported: ASR)", checkpoint.folder().display());
    Ok(())
}

/// The numbers of encoder and projector.
struct AudioConfig {
    encoder: Encoder,
    n_channels: usize,
    /// Frames that attend to each other.
    n_window_infer: usize,
}

impl AudioConfig {
    /// `n_out`: width of the decoder.
    fn read(config: &Section<'_>, n_out: usize) -> Result<Self> {
        config.expect_text("activation_function", "gelu")?;
        config.expect_off("scale_embedding")?;
        config.integer("n_window", N_WINDOW..=N_WINDOW)?;
        let n_window_infer = config.integer("n_window_infer", N_WINDOW_INFER)?;
        config.integer("output_dim", n_out as u64..=n_out as u64)?;
        let (n_embd, n_head) = width_and_heads(config, "encoder_attention_heads")?;
        let encoder = Encoder {
            n_layer: config.integer("encoder_layers", 1..=MAX_LAYERS)?,
            n_embd,
            n_ff: config.integer("encoder_ffn_dim", 1..=MAX_WIDTH)?,
            n_head,
            n_mels: config.integer("num_mel_bins", 1..=MAX_WIDTH)?,
            n_out,
        };
        Ok(Self { encoder, n_channels: config.integer("downsample_hidden_size", 1..=MAX_WIDTH)?, n_window_infer })
    }

    fn keys(&self) -> Vec<(String, Value)> {
        let mut keys = self.encoder.keys();
        keys.push(("clip.audio.projector_type".to_owned(), "qwen3a".into()));
        if self.n_window_infer != USUAL_N_WINDOW_INFER {
            let n_frames = u32::try_from(self.n_window_infer).expect("the limit is far below");
            keys.push((WINDOW_FRAMES_KEY.to_owned(), n_frames.into()));
        }
        keys
    }

    fn rows(&self, layout: Layout) -> Vec<Row> {
        let prefix = layout.audio();
        let (n_channels, Encoder { n_embd, n_ff, n_layer, n_mels, n_out, .. }) = (self.n_channels, self.encoder);
        let mut rows = vec![Row {
            name: "a.position_embd.weight".into(),
            dims: vec![N_POSITIONS, n_embd],
            role: Role::Full,
            source: Source::Positions,
        }];
        for i in 1..=N_CONVOLUTIONS {
            let n_in = if i == 1 { 1 } else { n_channels };
            let (name, stored) = (format!("a.conv2d.{i}"), format!("{prefix}conv2d{i}"));
            let dims = [n_channels, n_in, KERNEL, KERNEL];
            let [weight, bias] = weight_and_bias(&name, &stored, Role::Convolution, &dims);
            // llama.cpp adds it to `[n_channels, height, width]`.
            rows.extend([weight, Row { dims: vec![n_channels, 1, 1], ..bias }]);
        }
        let mels_left = (0..N_CONVOLUTIONS).fold(n_mels, |n, _| n.div_ceil(2));
        let stored = format!("{prefix}conv_out.weight");
        rows.push(Row::new("a.conv_out.weight", stored, Role::Convolution, &[n_embd, n_channels * mels_left]));

        let mut pair = |name: &str, stored: &str, role, dims: &[usize]| {
            rows.extend(weight_and_bias(name, stored, role, dims));
        };
        for i in 0..n_layer {
            let mut layer = |name: &str, stored: &str, role, dims: &[usize]| {
                pair(&format!("a.blk.{i}.{name}"), &format!("{prefix}layers.{i}.{stored}"), role, dims);
            };
            layer("ln1", "self_attn_layer_norm", Role::Full, &[n_embd]);
            for part in ["q", "k", "v", "out"] {
                let stored = format!("self_attn.{part}_proj");
                layer(&format!("attn_{part}"), &stored, Role::Matrix, &[n_embd, n_embd]);
            }
            layer("ln2", "final_layer_norm", Role::Full, &[n_embd]);
            layer("ffn_up", "fc1", Role::Matrix, &[n_ff, n_embd]);
            layer("ffn_down", "fc2", Role::Matrix, &[n_embd, n_ff]);
        }
        pair("a.post_ln", &format!("{prefix}ln_post"), Role::Full, &[n_embd]);
        let [first, second] = layout.projector();
        pair("mm.a.mlp.1", first, Role::Matrix, &[n_embd, n_embd]);
        pair("mm.a.mlp.2", second, Role::Matrix, &[n_out, n_embd]);
        rows
    }
}
