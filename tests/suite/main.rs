//! The integration suite.

mod appendix;
mod audio;
mod checkpoint;
mod convert;
mod gguf;
mod golden;
mod safetensors;
mod tokenizer;
