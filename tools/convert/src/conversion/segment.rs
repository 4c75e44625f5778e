//! The length near which long audio is cut for a speech model, where its checkpoint states one: a key of our own, which
//! llama.cpp passes over.

use anyhow::Result;
use engine::gguf::Value;
use models::speech::{SEGMENT_KEY, SEGMENT_RANGE};

use super::checkpoint::Model;

/// Names of the field; the first that a file has counts.
const FIELDS: [&str; 2] = ["segment_seconds", SEGMENT_KEY];

/// The key and its value: of `preprocessor_config.json`, else of `config.json`.
///
/// Errors: a value that is no number of [`SEGMENT_RANGE`].
pub(super) fn key(checkpoint: &Model) -> Result<Option<(String, Value)>> {
    let mut files = checkpoint.preprocessor().into_iter().chain([checkpoint.config()]);
    let stated = files.find_map(|file| FIELDS.into_iter().find(|field| file.has(field)).map(|field| (file, field)));
    let Some((file, field)) = stated else { return Ok(None) };
    let seconds = file.number(field, SEGMENT_RANGE)?;
    Ok(Some((SEGMENT_KEY.to_owned(), Value::F32(seconds))))
}
