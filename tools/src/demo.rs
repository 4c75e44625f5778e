//! The built-in demonstration model: the small trained checkpoint of the tests, converted when the program starts.
//!
//! Its weights are under CC BY-SA 4.0: see `tests/fixtures/models/tiny-qwen3-asr/MODEL_CARD.md`.

use convert::{Files, to_memory};
use engine::gguf::Gguf;

/// A file of the checkpoint with its name.
macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../tests/fixtures/models/tiny-qwen3-asr/", $name)).as_slice())
    };
}

/// What the checkpoint is called, in messages and in JSON.
pub(crate) const NAME: &str = "tiny-qwen3-asr";

/// The checkpoint.
const FILES: Files = Files::Embedded {
    name: NAME,
    files: &[
        file!("config.json"),
        file!("generation_config.json"),
        file!("model.safetensors"),
        file!("preprocessor_config.json"),
        file!("tokenizer.json"),
        file!("tokenizer_config.json"),
    ],
};

/// Converts the model in memory.
pub(crate) fn open() -> convert::Result<Gguf> {
    to_memory(FILES)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::AtomicBool;

    use convert::{Conversion, FileType, Options};

    use super::*;

    #[test]
    fn the_built_in_model_is_the_fixture_converted() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/tiny-qwen3-asr");
        let bundle = Options { bundle: true, ..Options::new(FileType::BF16) };
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("tiny.gguf");
        let conversion = Conversion::open(&folder, |_| bundle).unwrap();
        conversion.write(std::slice::from_ref(&path), &AtomicBool::new(false)).unwrap();
        let (file, built_in) = (Gguf::open(&path).unwrap(), open().unwrap());
        let keys = |file: &Gguf| -> Vec<_> { file.metadata().map(|(key, value)| (key.to_owned(), value)).collect() };
        assert_eq!(keys(&built_in), keys(&file));
        let tensors = |file: &Gguf| -> Vec<_> {
            file.tensors().map(|t| (t.name.to_owned(), t.dtype, t.shape, t.bytes.to_vec())).collect()
        };
        assert!(tensors(&built_in) == tensors(&file), "not what the converter writes");
    }
}
