//! The integration suite.

mod gguf;
mod tokenizer;
