//! LFM2-Audio: the projector's keys and tensors. What makes speech is left out, but for what llama.cpp's files carry.
//!
//! Source of names and keys: llama.cpp, `conversion/lfm2.py` and `conversion/gemma.py` (`ConformerAudioModel`). Front end,
//! subsampling and kernel sizes have no keys in that format: they are fixed by it, and a checkpoint with others is refused.

use anyhow::{Result, ensure};
use engine::gguf::Value;
use serde_json::json;

use super::batch_norm::BatchNormPart;
use super::checkpoint::Model;
use super::config::Section;
use super::lfm2::{Lfm2Config, PRE_TOKENIZER};
use super::limits::{MAX_LAYERS, MAX_WIDTH};
use super::parts::{AUDIO, Part, Parts};
use super::plan::{Role, Row, Source};
use super::projector::{Encoder, weight_and_bias, width_and_heads};

/// Side of the stem's kernels.
const KERNEL: usize = 3;
/// Taps of the convolution along time.
const N_TAPS: usize = 9;
/// Frames and mel bands that become one row of the encoder.
const SUBSAMPLING: usize = 8;
/// Rows of zeros where a checkpoint has no audio embedding.
///
/// llama.cpp takes the projector's width from this tensor, which it never reads otherwise, and aborts where a clip has more
/// pairs of mel frames than the tensor has rows. These are 2 minutes: from 60 s on the model's error rate rises, and at 2
/// minutes most words are wrong (audio.cpp, word error rate of LFM2.5-Audio by length of clip).
const N_ZERO_ROWS: usize = 6000;
/// Largest number of audio tokens, of all codebooks.
const MAX_AUDIO_TOKENS: usize = 1 << 24;
/// Tensors that only speech output or training needs.
const IGNORED_PREFIXES: [&str; 5] =
    ["depthformer.", "depth_linear.", "depth_embeddings.", "codebook_offsets", "audio_loss_weights"];
/// How often a batch norm was trained.
const IGNORED_SUFFIX: &str = ".batch_norm.num_batches_tracked";

/// The parts of a checkpoint.
pub(super) fn parts(checkpoint: &Model) -> Result<Parts> {
    let model = Lfm2Audio::read(checkpoint)?;
    let text = Part { architecture: model.text.architecture(), keys: model.text.keys(), rows: model.text_rows };
    let audio = Part { architecture: AUDIO, keys: model.audio_keys, rows: model.audio_rows };
    let parts = Parts::text(model.text.n_vocab, PRE_TOKENIZER, text);
    Ok(Parts { audio: Some(audio), pair_rows: model.output_rows, is_ignored, ..parts })
}

/// Whether a tensor is no part of recognition.
fn is_ignored(name: &str) -> bool {
    IGNORED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || name.ends_with(IGNORED_SUFFIX)
}

/// Keys and tensors of both parts.
struct Lfm2Audio {
    /// The decoder.
    pub text: Lfm2Config,
    /// Tensors of the decoder.
    pub text_rows: Vec<Row>,
    /// Metadata of encoder and adapter.
    pub audio_keys: Vec<(String, Value)>,
    /// Tensors of encoder and adapter.
    pub audio_rows: Vec<Row>,
    /// Tensors of speech output that llama.cpp's projector files carry.
    pub output_rows: Vec<Row>,
}

impl Lfm2Audio {
    /// Reads the configuration of `checkpoint`.
    pub(super) fn read(checkpoint: &Model) -> Result<Self> {
        let root = checkpoint.config();
        let mut text = Lfm2Config::read(&root.section("lfm")?)?;
        // The head of the published file is its embedding, whatever the configuration inside says.
        text.tied = true;
        let audio = AudioConfig::read(&root.section("encoder")?, text.n_embd)?;
        check_front_end(&root.section("preprocessor")?, audio.encoder.n_mels)?;
        Ok(Self {
            text_rows: text.rows("lfm."),
            audio_keys: audio.keys(),
            audio_rows: audio.rows(),
            output_rows: output_rows(checkpoint, text.n_embd)?,
            text,
        })
    }
}

/// Checks that features are made as the format assumes.
fn check_front_end(config: &Section<'_>, n_mels: usize) -> Result<()> {
    for (key, want) in [
        ("sample_rate", json!(16000)),
        ("normalize", json!("per_feature")),
        ("window_size", json!(0.025)),
        ("window_stride", json!(0.01)),
        ("window", json!("hann")),
        ("features", json!(n_mels)),
        ("n_fft", json!(512)),
        ("log", json!(true)),
        ("frame_splicing", json!(1)),
        ("pad_to", json!(0)),
        ("pad_value", json!(0.0)),
    ] {
        config.expect(key, &want)?;
    }
    Ok(())
}

/// The numbers of encoder and adapter.
struct AudioConfig {
    encoder: Encoder,
    n_channels: usize,
}

impl AudioConfig {
    /// `n_out`: width of the decoder.
    fn read(config: &Section<'_>, n_out: usize) -> Result<Self> {
        for (key, want) in [
            ("feat_out", json!(-1)),
            ("subsampling", json!("dw_striding")),
            ("subsampling_factor", json!(SUBSAMPLING)),
            ("causal_downsampling", json!(false)),
            ("reduction", json!(null)),
            ("self_attention_model", json!("rel_pos")),
            ("att_context_size", json!([-1, -1])),
            ("xscaling", json!(false)),
            ("untie_biases", json!(true)),
            ("conv_kernel_size", json!(N_TAPS)),
            ("conv_norm_type", json!("batch_norm")),
            ("conv_context_size", json!(null)),
        ] {
            config.expect(key, &want)?;
        }
        let (n_embd, n_head) = width_and_heads(config, "n_heads")?;
        let n_mels = config.integer("feat_in", 1..=MAX_WIDTH)?;
        ensure!(
            n_mels.is_multiple_of(SUBSAMPLING),
            config.error("feat_in", &format!("want a multiple of {SUBSAMPLING}, got {n_mels}"))
        );
        let encoder = Encoder {
            n_layer: config.integer("n_layers", 1..=MAX_LAYERS)?,
            n_embd,
            n_ff: n_embd * config.integer("ff_expansion_factor", 1..=MAX_WIDTH / n_embd as u64)?,
            n_head,
            n_mels,
            n_out,
        };
        Ok(Self { encoder, n_channels: config.integer("subsampling_conv_channels", 1..=MAX_WIDTH)? })
    }

    fn keys(&self) -> Vec<(String, Value)> {
        // llama.cpp's converter writes the width for `n_ff`; readers take the real one from the tensors.
        let written = Encoder { n_ff: self.encoder.n_embd, ..self.encoder };
        let mut keys = written.keys();
        keys.insert(1, ("clip.projector_type".to_owned(), "lfm2a".into()));
        keys
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        self.stem(&mut rows);
        let Encoder { n_layer, n_embd, n_out, .. } = self.encoder;
        for i in 0..n_layer {
            self.layer(i, &mut rows);
        }
        let adapter = |i: usize| (format!("mm.a.mlp.{i}"), format!("audio_adapter.model.{i}"));
        for (i, role, dims) in
            [(0, Role::Full, &[n_embd][..]), (1, Role::Matrix, &[n_out, n_embd]), (3, Role::Matrix, &[n_out, n_out])]
        {
            let (name, stored) = adapter(i);
            rows.extend(weight_and_bias(&name, &stored, role, dims));
        }
        rows
    }

    /// Convolutions that make one row of eight frames.
    fn stem(&self, rows: &mut Vec<Row>) {
        let n = self.n_channels;
        for (i, n_in, kernel) in [(0, 1, KERNEL), (2, 1, KERNEL), (3, n, 1), (5, 1, KERNEL), (6, n, 1)] {
            let (name, stored) = (format!("a.conv1d.{i}"), format!("conformer.pre_encode.conv.{i}"));
            let [weight, bias] = weight_and_bias(&name, &stored, Role::Full, &[n, n_in, kernel, kernel]);
            // llama.cpp adds it to `[n_channels, time, mel]`.
            rows.extend([weight, Row { dims: vec![n, 1, 1], ..bias }]);
        }
        let dims = [self.encoder.n_embd, n * (self.encoder.n_mels / SUBSAMPLING)];
        rows.extend(weight_and_bias("a.pre_encode.out", "conformer.pre_encode.out", Role::Matrix, &dims));
    }

    fn layer(&self, i: usize, rows: &mut Vec<Row>) {
        let Encoder { n_embd, n_ff, n_head, .. } = self.encoder;
        let (prefix, stored_prefix) = (format!("a.blk.{i}"), format!("conformer.layers.{i}"));
        let mut pair = |name: &str, stored: &str, role, dims: &[usize]| {
            rows.extend(weight_and_bias(&format!("{prefix}.{name}"), &format!("{stored_prefix}.{stored}"), role, dims));
        };
        pair("ffn_norm", "norm_feed_forward1", Role::Full, &[n_embd]);
        pair("ffn_up", "feed_forward1.linear1", Role::Matrix, &[n_ff, n_embd]);
        pair("ffn_down", "feed_forward1.linear2", Role::Matrix, &[n_embd, n_ff]);
        pair("ln1", "norm_self_att", Role::Full, &[n_embd]);
        for part in ["q", "k", "v", "out"] {
            pair(&format!("attn_{part}"), &format!("self_attn.linear_{part}"), Role::Matrix, &[n_embd, n_embd]);
        }
        pair("norm_conv", "norm_conv", Role::Full, &[n_embd]);
        pair("ffn_norm_1", "norm_feed_forward2", Role::Full, &[n_embd]);
        pair("ffn_up_1", "feed_forward2.linear1", Role::Matrix, &[n_ff, n_embd]);
        pair("ffn_down_1", "feed_forward2.linear2", Role::Matrix, &[n_embd, n_ff]);
        pair("ln2", "norm_out", Role::Full, &[n_embd]);

        let stored = format!("{stored_prefix}.self_attn.linear_pos.weight");
        rows.push(Row::new(format!("{prefix}.linear_pos.weight"), stored, Role::Matrix, &[n_embd, n_embd]));
        for part in ["pos_bias_u", "pos_bias_v"] {
            let dims = [n_head, n_embd / n_head];
            rows.push(Row::new(
                format!("{prefix}.{part}"),
                format!("{stored_prefix}.self_attn.{part}"),
                Role::Full,
                &dims,
            ));
        }
        // Extents of 1 fall away; llama.cpp's converter keeps all convolutions in F32.
        for (name, stored, dims, kept) in [
            ("conv_pw1", "pointwise_conv1", [2 * n_embd, n_embd, 1], [2 * n_embd, n_embd]),
            ("conv_dw", "depthwise_conv", [n_embd, 1, N_TAPS], [n_embd, N_TAPS]),
            ("conv_pw2", "pointwise_conv2", [n_embd, n_embd, 1], [n_embd, n_embd]),
        ] {
            let (name, stored) = (format!("{prefix}.{name}"), format!("{stored_prefix}.conv.{stored}"));
            let [weight, bias] = weight_and_bias(&name, &stored, Role::Full, &dims);
            rows.extend([Row { dims: kept.into(), ..weight }, bias]);
        }
        for (kind, part) in [("weight", BatchNormPart::Scale), ("bias", BatchNormPart::Shift)] {
            rows.push(Row {
                name: format!("{prefix}.conv_norm.{kind}"),
                dims: vec![n_embd],
                role: Role::Full,
                source: Source::BatchNorm { prefix: format!("{stored_prefix}.conv.batch_norm"), part, n: n_embd },
            });
        }
    }
}

/// What llama.cpp's projector files carry of speech output. The names are upstream's: none of it has to do with positions.
fn output_rows(checkpoint: &Model, n_embd: usize) -> Result<Vec<Row>> {
    const EMBEDDING: &str = "audio_embedding.embedding.weight";
    const NORM: &str = "audio_embedding.embedding_norm.weight";
    const TO_LOGITS: &str = "audio_embedding.to_logits.weight";
    let n_tokens = |name: &str| {
        let found = checkpoint.weight(name)?.dims;
        let n = found.first().copied().filter(|n| (1..=MAX_AUDIO_TOKENS).contains(n));
        n.ok_or_else(|| checkpoint.error(name, format_args!("want [audio tokens, {n_embd}], got {found:?}")))
    };
    let mut rows = Vec::new();
    let name = "a.position_embd.weight";
    if checkpoint.has(EMBEDDING) {
        rows.push(Row::new(name, EMBEDDING, Role::Full, &[n_tokens(EMBEDDING)?, n_embd]));
    } else {
        rows.push(Row { name: name.into(), dims: vec![N_ZERO_ROWS, n_embd], role: Role::Full, source: Source::Zeros });
    }
    if checkpoint.has(NORM) {
        rows.push(Row::new("a.position_embd_norm.weight", NORM, Role::Full, &[n_embd]));
    }
    if checkpoint.has(TO_LOGITS) {
        rows.push(Row::new("a.embd_to_logits.weight", TO_LOGITS, Role::Matrix, &[n_tokens(TO_LOGITS)?, n_embd]));
    }
    Ok(rows)
}
