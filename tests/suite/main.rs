//! The integration suite.

mod audio;
mod gguf;
mod tokenizer;
