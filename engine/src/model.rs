//! [`Model`]: what an architecture implements. It describes; it sees no memory, no batch and no backend.

use crate::builder::GraphBuilder;
use crate::key::GraphKey;
use crate::state::States;

/// Geometry of an audio encoder: what the session needs to shape its input.
#[derive(Clone, Copy, Debug)]
pub struct EncoderSpec {
    /// Feature bands per frame.
    pub n_mels: usize,
    /// Frames are padded with 0.0 to a multiple of this.
    pub chunk_frames: usize,
    /// Number of audio tokens that belong to a clip of so many frames.
    pub tokens: fn(usize) -> usize,
}

/// An architecture with its parameters.
pub trait Model: Send + Sync {
    /// The name of the architecture.
    fn arch(&self) -> &'static str;

    /// Rows of the output head.
    fn n_vocab(&self) -> usize;

    /// Width of the residual stream, and of the vectors that [`crate::key::Stage::Embeddings`] takes.
    fn n_embd(&self) -> usize;

    /// What the model remembers of a sequence, as it declared when it was loaded.
    fn states(&self) -> &States;

    /// The audio encoder, where the model has one.
    fn encoder(&self) -> Option<EncoderSpec> {
        None
    }

    /// Describes the computation for calls of this shape. Equal keys must give equal graphs.
    fn build(&self, g: &GraphBuilder<'_>, key: &GraphKey);
}
