//! Llama: a `transformer` as it was first, with rotated pairs of neighbours in its files.
//! Source: transformers, `models/llama/modeling_llama.py`; llama.cpp, `src/models/llama.cpp`.

use engine::gguf::Gguf;
use engine::op::RopePairs;
use engine::weights::WeightStore;

use crate::blocks::attention::AttentionOptions;
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::hparams::Hparams;
use crate::transformer::{self, TransformerShape};

/// `general.architecture`.
const ARCH: &str = "llama";
/// Base of the rotary frequencies where the metadata name none. Source: llama.cpp, `llama_model_base::load_hparams`.
const ROPE_THETA: f32 = 10_000.0;

/// A dense decoder of architecture `llama`.
///
/// Errors: keys or tensors that are missing or do not fit each other; what no builder here computes.
pub fn load(files: &[Gguf], w: &WeightStore) -> Result<Decoder> {
    let hp = Hparams::new(files, ARCH);
    refuse_others(&hp, w)?;
    let shape = TransformerShape::read(&hp)?;
    let theta_base = hp.positive_or("rope.freq_base", ROPE_THETA)?;
    // The converter puts the two of a pair beside each other.
    let rope = shape.attention.read_rope(&hp, theta_base, RopePairs::Interleaved)?;
    let attention = AttentionOptions {
        qk_norm_eps: None,
        rope: Some(rope),
        rope_factors: w.get_optional("rope_freqs.weight", [rope.n_rot as usize / 2])?,
        scale: hp.positive_or("attention.scale", shape.attention.scale())?,
        is_gated: false,
    };
    transformer::load(ARCH, w, shape, attention)
}

/// Tensors of members of the family that are computed in another way, and what they are.
const OTHERS: [(&str, &str); 4] = [
    ("ffn_gate_inp.weight", "mixtures of experts (Mixtral)"),
    ("attn_q_norm.weight", "norms of queries and keys"),
    ("ffn_up.bias", "feed-forward blocks with biases (mlp_bias)"),
    ("rope_factors_long.weight", "frequencies with factors by length (LongRoPE)"),
];

/// The error for a member of the family that is computed in another way.
fn refuse_others(hp: &Hparams<'_>, w: &WeightStore) -> Result<()> {
    if hp.count_or("expert_count", 0)? > 0 {
        return Err(hp.bad("expert_count", "mixtures of experts (Mixtral) are not supported".into()));
    }
    if !hp.flag_or("attention.causal", true)? {
        return Err(hp.bad("attention.causal", "models that look ahead are not supported".into()));
    }
    hp.expect_text("rope.scaling.type", &["none"])?;
    for (id, desc) in w.iter() {
        let kind = OTHERS.iter().find(|(part, _)| {
            desc.name.strip_suffix(part).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        });
        if let Some((_, what)) = kind {
            let what = format!("{what} are not supported");
            return Err(Error::BadWeight { path: w.path(id).to_owned(), name: desc.name.clone(), what });
        }
    }
    Ok(())
}
