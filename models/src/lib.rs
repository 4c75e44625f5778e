//! Architectures, tokenizer and audio front end.

pub mod audio;
pub mod tokenizer;
