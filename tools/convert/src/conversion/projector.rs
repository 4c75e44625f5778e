//! [`Encoder`]: what the projector files of both speech models have in common.

use anyhow::{Result, ensure};
use engine::gguf::Value;

use super::config::{Section, integer};
use super::limits::{MAX_HEADS, MAX_WIDTH};
use super::plan::{Role, Row};

/// Epsilon of the encoders' norms: PyTorch's default, which no configuration names.
const LAYER_NORM_EPS: f32 = 1e-5;

/// The numbers of an audio encoder that its file names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoder {
    /// Layers.
    pub n_layer: usize,
    /// Width.
    pub n_embd: usize,
    /// Width of the feed-forward layers.
    pub n_ff: usize,
    /// Heads.
    pub n_head: usize,
    /// Mel bands.
    pub n_mels: usize,
    /// Width of what the decoder takes.
    pub n_out: usize,
}

impl Encoder {
    /// Metadata without the name of the projector, for which the formats have two keys.
    pub(super) fn keys(&self) -> Vec<(String, Value)> {
        [
            ("clip.has_audio_encoder", Value::Bool(true)),
            ("clip.audio.projection_dim", integer(self.n_out)),
            ("clip.audio.embedding_length", integer(self.n_embd)),
            ("clip.audio.feed_forward_length", integer(self.n_ff)),
            ("clip.audio.block_count", integer(self.n_layer)),
            ("clip.audio.attention.head_count", integer(self.n_head)),
            ("clip.audio.num_mel_bins", integer(self.n_mels)),
            ("clip.audio.attention.layer_norm_epsilon", Value::F32(LAYER_NORM_EPS)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }
}

/// Width and heads of an encoder; `heads` is the name of the latter.
///
/// Errors: a width that heads do not divide, or that sines and cosines do not share.
pub(super) fn width_and_heads(config: &Section<'_>, heads: &str) -> Result<(usize, usize)> {
    let n_embd: usize = config.integer("d_model", 4..=MAX_WIDTH)?;
    let n_head: usize = config.integer(heads, 1..=MAX_HEADS)?;
    ensure!(
        n_embd.is_multiple_of(2) && n_embd.is_multiple_of(n_head),
        config.error("d_model", &format!("want an even multiple of {n_head} heads, got {n_embd}"))
    );
    Ok((n_embd, n_head))
}

/// A tensor and the bias of its first extent.
pub(super) fn weight_and_bias(name: &str, stored: &str, role: Role, dims: &[usize]) -> [Row; 2] {
    let weight = Row::new(format!("{name}.weight"), format!("{stored}.weight"), role, dims);
    [weight, Row::new(format!("{name}.bias"), format!("{stored}.bias"), Role::Full, &dims[..1])]
}
