//! Published checkpoints to GGUF.

pub mod safetensors;
pub mod vocab;
