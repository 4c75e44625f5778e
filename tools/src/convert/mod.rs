//! Published checkpoints to GGUF.

pub mod vocab;
