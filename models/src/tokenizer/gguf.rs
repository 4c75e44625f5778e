//! Vocabularies in model files: the keys `tokenizer.ggml.*`.

use engine::gguf::Gguf;

use super::{BYTE_LEVEL, SENTENCE_PIECE, Tokenizer, Vocabulary};
use crate::error::Result;

impl Vocabulary {
    /// Reads `tokenizer.ggml.*`.
    ///
    /// Errors: `Key`; what the values mean is checked by [`Tokenizer::new`].
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let texts = |name: &str| -> Result<Vec<String>> {
            Ok(file.get_str_array(&key(name))?.into_iter().map(str::to_owned).collect())
        };
        let id = |name: &str| {
            let key = key(name);
            if file.contains(&key) { file.get_u32(&key).map(Some) } else { Ok(None) }
        };
        let flag = |name: &str| {
            let key = key(name);
            if file.contains(&key) { file.get_bool(&key).map(Some) } else { Ok(None) }
        };
        let model = file.get_str(&key("model"))?.to_owned();
        let (mut pre, mut merges, mut scores) = Default::default();
        match &*model {
            BYTE_LEVEL => (pre, merges) = (file.get_str(&key("pre"))?.to_owned(), texts("merges")?),
            SENTENCE_PIECE => scores = file.get_f32_array(&key("scores"))?,
            // Refused by what is made of the vocabulary.
            _ => {}
        }
        Ok(Self {
            model,
            pre,
            merges,
            scores,
            tokens: texts("tokens")?,
            token_types: file.get_i32_array(&key("token_type"))?,
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            unknown: id("unknown_token_id")?,
            padding: id("padding_token_id")?,
            add_bos: flag("add_bos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
        })
    }
}

impl Tokenizer {
    /// The tokenizer of a text model's file.
    ///
    /// Errors: keys that are missing or of another type, and vocabularies that [`Tokenizer::new`] refuses.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        Self::new(Vocabulary::from_gguf(file)?).map_err(|e| e.of_vocabulary(file.path()))
    }
}
