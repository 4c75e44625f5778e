//! What an endpoint is given, [`Asked`], and the plain forms of what it gives back.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Response, header};
use serde_json::Value;

use super::log::Record;
use crate::App;

/// What an endpoint is given.
pub(crate) struct Asked {
    pub app: Arc<App>,
    pub request: Request,
    pub record: Record,
}

/// A reply in JSON.
pub(crate) fn json(value: &Value) -> Response<Body> {
    typed("application/json", value.to_string())
}

/// A reply of this type.
pub(crate) fn typed(content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
