//! Text to tokens and back.

use axum::body::Body;
use axum::http::Response;
use models::tokenizer::Special;
use serde_json::{Value, json};

use super::completion::fields;
use super::error::ApiError;
use crate::http::exchange::{Asked, json};

/// The tokens of a text. Source: llama.cpp, `tools/server/README.md`, `/tokenize`.
pub(crate) async fn tokenize(asked: Asked) -> Result<Response<Body>, ApiError> {
    let Asked { app, request, .. } = asked;
    let fields = fields(&app, request).await?;
    let content = fields.text("content")?.ok_or_else(|| ApiError::field("content", "content: want a text"))?.to_owned();
    let adds_special = fields.flag("add_special")?.unwrap_or(false);
    let special = if fields.flag("parse_special")?.unwrap_or(true) { Special::Parse } else { Special::AsText };
    let with_pieces = fields.flag("with_pieces")?.unwrap_or(false);
    let tokens = tokio::task::spawn_blocking(move || {
        let tokenizer = app.model.writer.tokenizer();
        let mut ids = tokenizer.encode(&content, special);
        let bos = tokenizer.bos().filter(|bos| adds_special && tokenizer.add_bos() && ids.first() != Some(bos));
        ids.splice(0..0, bos);
        let piece = |&id: &u32| {
            let bytes = tokenizer.token_bytes(id);
            let piece = std::str::from_utf8(bytes).map_or_else(|_| json!(bytes), Value::from);
            json!({"id": id, "piece": piece})
        };
        if with_pieces { ids.iter().map(piece).collect() } else { json!(ids) }
    });
    let tokens = tokens.await.map_err(|_| ApiError::server("the text could not be tokenized"))?;
    Ok(json(&json!({"tokens": tokens})))
}

/// The text of tokens. Source: llama.cpp, `tools/server/README.md`, `/detokenize`.
pub(crate) async fn detokenize(asked: Asked) -> Result<Response<Body>, ApiError> {
    let Asked { app, request, .. } = asked;
    let fields = fields(&app, request).await?;
    let tokenizer = app.model.writer.tokenizer();
    let n_vocab = app.model.n_vocab;
    let wrong = || ApiError::field("tokens", format!("tokens: want a list of tokens below {n_vocab}"));
    let list = fields.get("tokens").and_then(Value::as_array).ok_or_else(wrong)?;
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.filter(|&id| (id as usize) < n_vocab).ok_or_else(wrong)
    };
    let ids = list.iter().map(id).collect::<Result<Vec<u32>, _>>()?;
    Ok(json(&json!({"content": tokenizer.decode(&ids, false)})))
}
