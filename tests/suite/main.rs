//! The integration suite.

mod appendix;
mod audio;
mod boundaries;
mod checkpoint;
mod convert;
mod damaged;
mod fusion;
mod gguf;
mod golden;
mod hybrid;
mod memory;
mod ops;
mod prompt;
mod registry;
mod reuse;
mod safetensors;
mod schedules;
mod tokenizer;
mod vocab;
