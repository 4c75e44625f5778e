//! Qwen3, text: a `transformer` with norms of queries and keys.
//! Source: transformers, `models/qwen3/modeling_qwen3.py`.

use engine::gguf::Gguf;
use engine::op::RopePairs;
use engine::weights::WeightStore;

use crate::blocks::attention::AttentionOptions;
use crate::decoder::Decoder;
use crate::error::Result;
use crate::hparams::Hparams;
use crate::transformer::{self, TransformerShape};

/// The decoder of Qwen3 and of every model built on it, whose metadata begin with `arch`.
///
/// Errors: keys or tensors that are missing or do not fit each other.
pub fn load(files: &[Gguf], arch: &'static str, w: &WeightStore) -> Result<Decoder> {
    let hp = Hparams::new(files, arch);
    let shape = TransformerShape::read(&hp)?;
    let attention = AttentionOptions {
        qk_norm_eps: Some(shape.eps),
        rope: Some(shape.attention.rope(hp.positive("rope.freq_base")?, RopePairs::Halves)),
        rope_factors: None,
        scale: shape.attention.scale(),
        is_gated: false,
    };
    transformer::load(arch, w, shape, attention)
}
