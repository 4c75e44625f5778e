//! Mamba and Mamba 2: nothing but state-space blocks.
//! Source: transformers, `models/mamba/modeling_mamba.py`, `models/mamba2/modeling_mamba2.py`.

use engine::gguf::Gguf;
use engine::state::States;
use engine::weights::WeightStore;

use crate::blocks::ssm::{Mamba, Mamba2, SsmShape};
use crate::decoder::{Decoder, Layer, Mixer, Parts, Scales, embedding};
use crate::error::Result;
use crate::hparams::Hparams;

/// Finds the weights of a block.
type LoadBlock<'a> = &'a dyn Fn(&str, &mut States, usize) -> Result<Box<dyn Mixer>>;

/// A decoder of architecture `mamba`.
///
/// Errors: keys or tensors that are missing or do not fit each other; norms without weights (Falcon Mamba).
pub fn load(files: &[Gguf], w: &WeightStore) -> Result<Decoder> {
    const INNER_NORMS: &str = "ssm.dt_b_c_rms";
    let hp = Hparams::new(files, "mamba");
    if hp.flag_or(INNER_NORMS, false)? {
        return Err(hp.bad(INNER_NORMS, "norms of step sizes, B and C (Falcon Mamba) are not supported".into()));
    }
    let (shape, eps) = (SsmShape::read(&hp, hp.size("embedding_length")?)?, eps(&hp)?);
    let block: LoadBlock<'_> =
        &|prefix, states, layer| Ok(Box::new(Mamba::load(w, prefix, shape, eps, states, layer)?));
    stack("mamba", &hp, w, shape, block)
}

/// A decoder of architecture `mamba2`.
///
/// Errors: keys or tensors that are missing or do not fit each other.
pub fn load_mamba2(files: &[Gguf], w: &WeightStore) -> Result<Decoder> {
    let hp = Hparams::new(files, "mamba2");
    let (shape, eps) = (SsmShape::read_heads(&hp, hp.size("embedding_length")?)?, eps(&hp)?);
    let block: LoadBlock<'_> =
        &|prefix, states, layer| Ok(Box::new(Mamba2::load(w, prefix, shape, eps, states, layer)?));
    stack("mamba2", &hp, w, shape, block)
}

fn eps(hp: &Hparams<'_>) -> Result<f32> {
    hp.positive("attention.layer_norm_rms_epsilon")
}

/// `x += block(norm(x))` in every layer.
fn stack(
    arch: &'static str,
    hp: &Hparams<'_>,
    w: &WeightStore,
    shape: SsmShape,
    block: LoadBlock<'_>,
) -> Result<Decoder> {
    let embed_tokens = embedding(w, shape.n_embd)?;
    let mut states = States::new();
    let layers = (0..hp.size("block_count")?).map(|i| {
        let prefix = format!("blk.{i}");
        let norm = w.get(&format!("{prefix}.attn_norm.weight"), [shape.n_embd])?;
        Ok(Layer { norm, mixer: block(&prefix, &mut states, i)?, ffn: None })
    });
    let layers = layers.collect::<Result<_>>()?;
    let norm = w.get("output_norm.weight", [shape.n_embd])?;
    let parts = Parts { arch, embed_tokens, eps: eps(hp)?, scales: Scales::default(), states, layers, norm };
    Decoder::load(w, parts)
}
