//! The integration suite.

mod appendix;
mod audio;
mod boundaries;
mod checkpoint;
mod convert;
mod gguf;
mod golden;
mod hybrid;
mod prompt;
mod reuse;
mod ops;
mod safetensors;
mod tokenizer;
mod vocab;
