//! Endpoints about the server itself.

use axum::body::Body;
use axum::http::Response;
use serde_json::json;

use crate::App;
use crate::api::error::ApiError;
use crate::http::exchange::{json, typed};

/// Whether the server can answer.
///
/// Errors: 503 where the engine thread has died, or the server is about to end.
pub(crate) fn health(app: &App) -> Result<Response<Body>, ApiError> {
    if app.inbox.is_dead() {
        return Err(ApiError::unavailable("the engine has stopped"));
    }
    if app.is_draining.load(std::sync::atomic::Ordering::SeqCst) {
        return Err(ApiError::unavailable("the server is about to end"));
    }
    Ok(json(&json!({"status": "ok"})))
}

/// Counters for Prometheus.
pub(crate) fn metrics(app: &App) -> Response<Body> {
    let text = app.figures.lock().metrics();
    let mut response = typed("text/plain; version=0.0.4; charset=utf-8", text);
    response.headers_mut().insert("process-start-time-unix", app.model.created.into());
    response
}

/// What the model is.
pub(crate) fn models(app: &App) -> Response<Body> {
    let model = &app.model;
    json(&json!({"object": "list", "data": [{
        "id": model.alias, "object": "model", "created": model.created, "owned_by": "tympan", "meta": model.meta,
    }]}))
}

/// What requests can count on.
pub(crate) fn props(app: &App) -> Response<Body> {
    let model = &app.model;
    let hears = model.speech.is_some();
    json(&json!({
        "model_alias": model.alias,
        "model_path": model.alias,
        "total_slots": app.options.n_slots,
        "default_generation_settings": {"n_ctx": model.n_ctx},
        "chat_template": model.template.as_ref().ok().map(models::chat::Template::source),
        "modalities": {"vision": false, "audio": hears},
        "build_info": concat!("tympan ", env!("CARGO_PKG_VERSION")),
    }))
}
