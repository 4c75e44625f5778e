//! Bounds of the numbers in configurations, far above those of published models: what lies beyond is a damaged file.

/// Layers of a model. Published ones stay under 100.
pub(super) const MAX_LAYERS: u64 = 1024;
/// Any width of a model. Published ones stay under 2^15.
pub(super) const MAX_WIDTH: u64 = 1 << 20;
/// Heads of a layer.
pub(super) const MAX_HEADS: u64 = 4096;
/// Rows of the embedding.
pub(super) const MAX_VOCAB: u64 = 1 << 24;
/// Largest context that a checkpoint may claim.
pub(super) const MAX_CONTEXT: u64 = 1 << 31;
/// Experts of a layer.
pub(super) const MAX_EXPERTS: u64 = 4096;
