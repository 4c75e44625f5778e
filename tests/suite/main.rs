//! The integration suite.

mod audio;
mod gguf;
mod safetensors;
mod tokenizer;
