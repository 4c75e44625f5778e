//! `--dump`: intermediate tensors as safetensors, for comparing with other implementations.

use anyhow::Context;
use models::transcribe::Tensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::output::Destination;

/// Tensors of one segment: name, type, shape and little-endian bytes.
pub(super) struct Dumped(Vec<(String, Dtype, Vec<usize>, Vec<u8>)>);

impl Dumped {
    /// Copies the tensors; with several segments the names begin with `segment.N.`.
    pub(super) fn new(segment: usize, n_segments: usize, t: &Tensors<'_>) -> Self {
        let name = |n: &str| if n_segments > 1 { format!("segment.{segment}.{n}") } else { n.to_owned() };
        let floats = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let ids: Vec<u8> = t.prompt_ids.iter().flat_map(|x| x.to_le_bytes()).collect();
        let n_tokens = t.audio_embeddings.len() / t.n_embd;
        Self(vec![
            (name("mel"), Dtype::F32, vec![t.mel.n_mels, t.mel.n_frames], floats(&t.mel.values)),
            (name("audio_embeddings"), Dtype::F32, vec![n_tokens, t.n_embd], floats(t.audio_embeddings)),
            (name("prompt_ids"), Dtype::I32, vec![t.prompt_ids.len()], ids),
            (name("first_logits"), Dtype::F32, vec![t.first_logits.len()], floats(t.first_logits)),
        ])
    }
}

/// Writes the tensors of all segments.
///
/// Errors: the file cannot be written.
pub(super) fn write(place: &Destination, segments: &[Dumped]) -> anyhow::Result<()> {
    let views = segments.iter().flat_map(|s| &s.0).map(|(name, dtype, shape, bytes)| {
        TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.clone(), view)).context("dump")
    });
    let views = views.collect::<anyhow::Result<Vec<_>>>()?;
    place.write(&safetensors::serialize(views, None).context("dump")?)
}
