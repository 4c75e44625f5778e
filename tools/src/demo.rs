//! The built-in demonstration model: the small trained checkpoint of the tests, converted when the program starts.
//!
//! Its weights are under CC BY-SA 4.0: see `tests/fixtures/models/tiny-qwen3-asr/MODEL_CARD.md`.

use engine::gguf::Gguf;

use crate::convert::{Files, to_memory};

/// A file of the checkpoint with its name.
macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../tests/fixtures/models/tiny-qwen3-asr/", $name)).as_slice())
    };
}

/// The checkpoint.
const FILES: Files = Files::Embedded {
    name: "tiny-qwen3-asr",
    files: &[
        file!("config.json"),
        file!("generation_config.json"),
        file!("model.safetensors"),
        file!("tokenizer.json"),
        file!("tokenizer_config.json"),
    ],
};

/// Converts the model in memory.
pub fn open() -> anyhow::Result<Gguf> {
    to_memory(FILES)
}
