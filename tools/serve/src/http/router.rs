//! [`router`]: the endpoints, and what holds for all of them. [`ENDPOINTS`] is the list.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{MethodFilter, on};

use super::exchange::{Asked, json};
use super::guard::{LocalAddress, check_host, check_key, check_origin};
use super::log::{Line, Record, logged};
use crate::App;
use crate::api;
use crate::api::error::{ApiError, RETRY_AFTER_S};
use crate::page;

/// Echoed in every answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id of a client's own that is echoed.
const MAX_ID: usize = 64;

/// An endpoint, on one or several paths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Endpoint {
    Page,
    Health,
    Metrics,
    Props,
    Models,
    Slots,
    SlotAction,
    Transcriptions,
    Inference,
    Completion,
    Completions,
    ChatCompletions,
    Tokenize,
    Detokenize,
    ApplyTemplate,
    /// Known elsewhere, not built here.
    NotBuilt,
}

/// Every path with its method and endpoint; what is said of it is for the README.
pub(crate) const ENDPOINTS: &[(&str, &str, Endpoint, &str)] = &[
    ("GET", "/", Endpoint::Page, "the page (off with `--no-page`); needs no key"),
    ("GET", "/page/{file}", Endpoint::Page, ""),
    ("GET", "/health", Endpoint::Health, "whether the server works; needs no key"),
    ("GET", "/v1/health", Endpoint::Health, ""),
    ("GET", "/metrics", Endpoint::Metrics, "counters for Prometheus"),
    ("GET", "/props", Endpoint::Props, "model, context, slots, defaults, chat template"),
    ("GET", "/v1/models", Endpoint::Models, "the model"),
    ("GET", "/models", Endpoint::Models, ""),
    ("GET", "/slots", Endpoint::Slots, "what the slots do (off with `--no-slots`)"),
    (
        "POST",
        "/slots/{id}",
        Endpoint::SlotAction,
        "saves, restores or erases what a slot keeps (`?action=save`; on with `--slot-save-path`)",
    ),
    ("POST", "/v1/audio/transcriptions", Endpoint::Transcriptions, "speech to text, as OpenAI's"),
    ("POST", "/audio/transcriptions", Endpoint::Transcriptions, ""),
    ("POST", "/inference", Endpoint::Inference, "speech to text, as whisper.cpp's server"),
    ("POST", "/v1/chat/completions", Endpoint::ChatCompletions, "conversations, as OpenAI's"),
    ("POST", "/chat/completions", Endpoint::ChatCompletions, ""),
    ("POST", "/v1/completions", Endpoint::Completions, "texts that are continued, as OpenAI's"),
    ("POST", "/completion", Endpoint::Completion, "texts that are continued, as llama.cpp's server"),
    ("POST", "/completions", Endpoint::Completion, ""),
    ("POST", "/tokenize", Endpoint::Tokenize, "text to tokens"),
    ("POST", "/detokenize", Endpoint::Detokenize, "tokens to text"),
    ("POST", "/apply-template", Endpoint::ApplyTemplate, "a conversation as the model's template writes it"),
    ("POST", "/v1/audio/translations", Endpoint::NotBuilt, ""),
    ("POST", "/v1/audio/speech", Endpoint::NotBuilt, ""),
    ("POST", "/props", Endpoint::NotBuilt, ""),
    ("POST", "/embedding", Endpoint::NotBuilt, ""),
    ("POST", "/embeddings", Endpoint::NotBuilt, ""),
    ("POST", "/v1/embeddings", Endpoint::NotBuilt, ""),
    ("POST", "/rerank", Endpoint::NotBuilt, ""),
    ("POST", "/reranking", Endpoint::NotBuilt, ""),
    ("POST", "/v1/rerank", Endpoint::NotBuilt, ""),
    ("POST", "/v1/reranking", Endpoint::NotBuilt, ""),
    ("POST", "/v1/responses", Endpoint::NotBuilt, ""),
    ("POST", "/v1/messages", Endpoint::NotBuilt, ""),
    ("POST", "/infill", Endpoint::NotBuilt, ""),
    ("GET", "/lora-adapters", Endpoint::NotBuilt, ""),
    ("POST", "/lora-adapters", Endpoint::NotBuilt, ""),
];

type Answered = Result<Response<Body>, ApiError>;

async fn answer(endpoint: Endpoint, asked: Asked) -> Answered {
    match endpoint {
        Endpoint::Page => {
            let path = asked.request.uri().path();
            let file = page::file(path).filter(|_| asked.app.options.has_page);
            file.ok_or_else(|| ApiError::not_found(format!("no such page: {path}")))
        }
        Endpoint::Health => api::server::health(&asked.app),
        Endpoint::Metrics => Ok(api::server::metrics(&asked.app)),
        Endpoint::Props => Ok(api::server::props(&asked.app)),
        Endpoint::Models => Ok(api::server::models(&asked.app)),
        Endpoint::Slots => api::slots::slots(&asked.app, &asked.request),
        Endpoint::SlotAction => api::slots::act(asked).await,
        Endpoint::Transcriptions => api::transcription::transcriptions(asked).await,
        Endpoint::Inference => api::transcription::inference(asked).await,
        Endpoint::Completion => api::completion::completion(asked).await,
        Endpoint::Completions => api::completion::completions(asked).await,
        Endpoint::ChatCompletions => api::completion::chat_completions(asked).await,
        Endpoint::Tokenize => api::tokens::tokenize(asked).await,
        Endpoint::Detokenize => api::tokens::detokenize(asked).await,
        Endpoint::ApplyTemplate => api::completion::apply_template(asked).await,
        Endpoint::NotBuilt => {
            let (method, path) = (asked.request.method(), asked.request.uri().path());
            Err(ApiError::unsupported(format_args!("{method} {path}")))
        }
    }
}

/// All endpoints, with what holds for all of them.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let mut router = Router::new();
    for &(method, path, endpoint, _) in ENDPOINTS {
        let filter = if method == "GET" { MethodFilter::GET } else { MethodFilter::POST };
        let handler = move |State(app): State<Arc<App>>, request: Request| async move {
            let record = record_of(&request);
            let asked = Asked { app, request, record: record.clone() };
            answer(endpoint, asked).await.unwrap_or_else(|error| refusal(&error, &record))
        };
        router = router.route(path, on(filter, handler));
    }
    layered(app, router)
}

/// What holds for all endpoints, around these.
fn layered(app: &Arc<App>, router: Router<Arc<App>>) -> Router {
    let missing = |request: Request| async move {
        let error = ApiError::not_found(format!("no such endpoint: {}", request.uri().path()));
        refusal(&error, &record_of(&request))
    };
    let wrong_method = |request: Request| async move {
        let error = ApiError::method(request.method().as_str(), request.uri().path());
        refusal(&error, &record_of(&request))
    };
    router
        .fallback(missing)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(app), around))
        .with_state(Arc::clone(app))
}

fn record_of(request: &Request) -> Record {
    let record = request.extensions().get::<Record>();
    record.cloned().unwrap_or_else(|| Record::new(String::new(), String::new(), None))
}

/// Around every request: its id, who may ask, panics, the line in the log.
async fn around(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response<Body> {
    let id = own_id(&request).unwrap_or_else(|| format!("req-{:012x}", app.next_id()));
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let path = path.and_then(|path| ENDPOINTS.iter().find(|e| e.1 == path)).map(|e| e.1);
    let record = Record::new(id.clone(), method_name(request.method()).to_owned(), path);
    let line = Line::begin(&app, &record);
    let local = request.extensions().get::<LocalAddress>().copied();
    let (mut response, origin) = match admit(&app, &request, path, local) {
        Err(error) => (refusal(&error, &record), None),
        Ok(origin) => {
            let origin = origin.map(str::to_owned);
            let response = if request.method() == Method::OPTIONS && origin.is_some() {
                preflight()
            } else {
                request.extensions_mut().insert(record.clone());
                let answer = CatchPanic(Box::pin(next.run(request))).await;
                answer.unwrap_or_else(|_| refusal(&ApiError::server("the server stumbled over this request"), &record))
            };
            (response, origin)
        }
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = origin.and_then(|origin| HeaderValue::from_str(&origin).ok()) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    }
    let status = response.status();
    record.lock().status = status.as_u16();
    if response.headers().get(header::CONTENT_TYPE).is_none_or(|t| t != "text/event-stream") {
        record.end(if status.is_success() { "done" } else { "refused" });
    }
    response.map(|body| logged(body, line))
}

/// The id that a client gave its request, where it can be echoed.
fn own_id(request: &Request) -> Option<String> {
    let id = request.headers().get(REQUEST_ID)?.to_str().ok()?;
    let is_plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
    (!id.is_empty() && id.len() <= MAX_ID && is_plain).then(|| id.to_owned())
}

/// A method that is known, or none.
fn method_name(method: &Method) -> &str {
    const KNOWN: [Method; 5] = [Method::GET, Method::POST, Method::HEAD, Method::OPTIONS, Method::PUT];
    if KNOWN.contains(method) { method.as_str() } else { "other" }
}

/// Who may ask. Returns the foreign origin that may read the answer, where there is one.
fn admit<'o>(
    app: &'o App,
    request: &Request,
    path: Option<&str>,
    local: Option<LocalAddress>,
) -> Result<Option<&'o str>, ApiError> {
    let (headers, options) = (request.headers(), &app.options);
    check_host(headers, options, local)?;
    let origin = check_origin(request.method(), headers, options, local)?;
    let is_open = path.is_some_and(|path| is_open(path, request.method()));
    let is_preflight = request.method() == Method::OPTIONS && origin.is_some();
    if !is_open && !is_preflight {
        check_key(headers, options)?;
        if app.is_draining.load(Ordering::SeqCst) {
            return Err(ApiError::unavailable("the server is about to end"));
        }
    }
    Ok(origin)
}

/// Paths that need no key and are answered to the end: health, and the page.
fn is_open(path: &str, method: &Method) -> bool {
    let is = |endpoint: Endpoint| matches!(endpoint, Endpoint::Health | Endpoint::Page);
    matches!(*method, Method::GET | Method::HEAD)
        && ENDPOINTS.iter().any(|&(_, other, endpoint, _)| other == path && is(endpoint))
}

/// The answer to a browser that asks whether it may ask.
fn preflight() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("Authorization, Content-Type, X-Request-Id"),
    );
    response
}

/// The answer that says why there is none.
fn refusal(error: &ApiError, record: &Record) -> Response<Body> {
    record.set("error", error.kind);
    let mut response = json(&error.body());
    *response.status_mut() = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if error.status == 429 {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
    }
    if error.status == 401 {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// A future whose panic is its result.
struct CatchPanic<T>(Pin<Box<dyn Future<Output = T> + Send>>);

impl<T> Future for CatchPanic<T> {
    type Output = Result<T, Box<dyn Any + Send>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // After a panic it is not polled again.
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use engine::DType;
    use engine::session::Reuse;
    use tower::ServiceExt;

    use super::*;
    use crate::{Computing, Options, Server};

    #[test]
    fn a_handler_that_panics_is_an_answer() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/qwen3");
        let file = convert::to_memory(&*path).unwrap();
        let loaded = models::load(vec![file], models::LoadOptions::default()).unwrap();
        let backends = vec![backends::open("cpu", &backends::Options::default()).unwrap()];
        let rollback = models::scheduler::Rollback::Ring;
        let computing = Computing { backends, kv_dtype: DType::F16, reuse: Reuse::On, drafters: None, rollback };
        let options = Options { n_ctx: 256, ..Options::default() };
        let server = Server::open(&loaded, &computing, options, Arc::new(|_| ())).unwrap();
        async fn panics() -> Response<Body> {
            panic!("told to panic")
        }
        async fn goes_well() -> &'static str {
            "well"
        }
        let routes = Router::new().route("/panics", get(panics)).route("/well", get(goes_well));
        let router = layered(&server.app, routes);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for (path, status) in [("/panics", 500), ("/well", 200), ("/panics", 500), ("/other", 404)] {
            let request = Request::builder().uri(path).header(header::HOST, "localhost").body(Body::empty()).unwrap();
            let response = runtime.block_on(router.clone().oneshot(request)).unwrap();
            assert_eq!(response.status(), status, "{path}");
            let is_json = response.headers()[header::CONTENT_TYPE] == "application/json";
            assert!(response.headers().contains_key(REQUEST_ID) && is_json == (status != 200));
        }
        // Each was counted as over.
        assert_eq!(server.app.open_requests.load(Ordering::SeqCst), 0);
        assert!(server.close());
    }
}
