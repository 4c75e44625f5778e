//! The integration suite.

mod appendix;
mod audio;
mod boundaries;
mod checkpoint;
mod clips;
mod convert;
mod convert_lfm2;
mod corrupted;
mod damaged;
mod fusion;
mod gguf;
mod golden;
mod hybrid;
mod malformed;
mod memory;
mod ops;
mod prompt;
mod quantize;
mod quirks;
mod registry;
mod reuse;
mod safetensors;
mod schedules;
mod tokenizer;
mod types;
mod vocab;
