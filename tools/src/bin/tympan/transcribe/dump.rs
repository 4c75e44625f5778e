//! `--dump`: intermediate tensors as safetensors, for comparing with other implementations.

use anyhow::Context;
use models::transcribe::Tensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::output::Destination;

/// Tensors of one segment: name, type, shape and little-endian bytes.
pub(super) struct Dumped([(&'static str, Dtype, Vec<usize>, Vec<u8>); 4]);

impl Dumped {
    /// Copies the tensors.
    pub(super) fn new(t: &Tensors<'_>) -> Self {
        let floats = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let ids: Vec<u8> = t.prompt_ids.iter().flat_map(|x| x.to_le_bytes()).collect();
        let n_tokens = t.audio_embeddings.len() / t.n_embd;
        Self([
            ("mel", Dtype::F32, vec![t.mel.n_mels, t.mel.n_frames], floats(&t.mel.values)),
            ("audio_embeddings", Dtype::F32, vec![n_tokens, t.n_embd], floats(t.audio_embeddings)),
            ("prompt_ids", Dtype::I32, vec![t.prompt_ids.len()], ids),
            ("first_logits", Dtype::F32, vec![t.first_logits.len()], floats(t.first_logits)),
        ])
    }
}

/// Writes the tensors of all segments; of several the names begin with `segment.N.`.
///
/// Errors: the file cannot be written.
pub(super) fn write(place: &Destination, segments: &[Dumped]) -> anyhow::Result<()> {
    let full_name = |i: usize, name: &str| if segments.len() > 1 { format!("segment.{i}.{name}") } else { name.into() };
    let all = segments.iter().enumerate().flat_map(|(i, segment)| segment.0.iter().map(move |tensor| (i, tensor)));
    let views = all.map(|(i, (name, dtype, shape, bytes))| {
        TensorView::new(*dtype, shape.clone(), bytes).map(|view| (full_name(i, name), view)).context("dump")
    });
    let views = views.collect::<anyhow::Result<Vec<_>>>()?;
    place.write(&safetensors::serialize(views, None).context("dump")?)
}
