//! Objects of json whose fields keep the order in which they are given.

use serde_json::{Map, Value};

/// These fields.
pub(super) fn object<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
