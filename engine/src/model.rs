//! [`Model`]: what an architecture implements. It describes; it sees no memory, no batch and no backend.

use crate::builder::GraphBuilder;
use crate::key::GraphKey;
use crate::state::States;

/// Geometry of an audio encoder: how the session lays clips in a line of frames, and where their tokens are then.
#[derive(Clone, Copy, Debug)]
pub struct EncoderSpec {
    /// Feature bands per frame.
    pub n_mels: usize,
    /// A clip begins at a multiple of this many frames.
    pub clip_frames: usize,
    /// Frames of zeros that two clips have between them at least: the border that convolutions see.
    pub gap_frames: usize,
    /// The line is padded with zeros to a multiple of this, so that calls of similar length share a graph. A multiple of
    /// `clip_frames`.
    pub line_frames: usize,
    /// Frames that are heard by themselves, where the encoder hears no further: a clip that is encoded in pieces of so many has
    /// the vectors that it has as a whole. A multiple of `clip_frames`.
    pub window_frames: Option<usize>,
    /// Number of audio tokens that belong to a clip of so many frames; of a multiple of `clip_frames` also the number of
    /// rows that the encoder makes of them.
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
