//! GGUF files in other types.

pub mod mix;
