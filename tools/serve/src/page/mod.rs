//! The page at `/`: files that are built into the program. They ask nothing but this server.

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};

use crate::http::exchange::typed;

/// The page may use itself and nothing else; `blob:` are recordings of its own. Source: W3C, "Content Security Policy Level 3".
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src blob:; \
img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Every file with its type.
const FILES: [(&str, &str, &str); 7] = [
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    ("/page/style.css", "text/css; charset=utf-8", include_str!("style.css")),
    ("/page/main.js", JAVASCRIPT, include_str!("main.js")),
    ("/page/server.js", JAVASCRIPT, include_str!("server.js")),
    ("/page/recorder.js", JAVASCRIPT, include_str!("recorder.js")),
    ("/page/worklet.js", JAVASCRIPT, include_str!("worklet.js")),
    ("/page/formats.js", JAVASCRIPT, include_str!("formats.js")),
];

/// The file of this path.
pub(crate) fn file(path: &str) -> Option<Response<Body>> {
    let (_, content_type, text) = FILES.into_iter().find(|(name, _, _)| *name == path)?;
    let mut response = typed(content_type, text);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Some(response)
}
