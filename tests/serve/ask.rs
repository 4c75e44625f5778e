//! Asking a server.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use convert::to_memory;
use engine::DType;
use engine::session::Reuse;
use http_body_util::BodyExt;
use models::scheduler::Rollback;
use models::{LoadOptions, Loaded};
use serde_json::Value;
use serve::{Computing, Log, Options, Server};
use tokio::runtime::Runtime;
use tower::ServiceExt;

/// The repository's fixtures.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// A clip of the fixtures.
pub fn clip(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join("audio").join(name)).unwrap()
}

/// Bytes in base64.
pub fn encoded(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// A checkpoint of the fixtures, loaded.
pub fn loaded(checkpoint: &str) -> Loaded {
    let file = to_memory(&*fixtures().join(checkpoint)).unwrap();
    models::load(vec![file], LoadOptions::default()).unwrap()
}

/// The small trained speech model.
pub fn speech() -> &'static Loaded {
    static MODEL: OnceLock<Loaded> = OnceLock::new();
    MODEL.get_or_init(|| loaded("models/tiny-qwen3-asr"))
}

pub fn computing() -> Computing {
    let options = backends::Options { threads: std::num::NonZeroUsize::new(2) };
    let backend = backends::open("cpu", &options).unwrap();
    Computing {
        backends: vec![backend],
        kv_dtype: DType::F16,
        reuse: Reuse::Verified,
        drafters: None,
        rollback: Rollback::Ring,
    }
}

pub fn options() -> Options {
    Options { alias: "tiny".into(), n_ctx: 2048, ..Options::default() }
}

/// A server with what it has logged.
pub struct Asked {
    pub server: Server,
    pub router: Router,
    pub lines: Arc<Mutex<Vec<String>>>,
    pub runtime: Runtime,
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// The error's type and field.
    pub fn error(&self) -> (String, Value) {
        let json = self.json();
        let error = &json["error"];
        assert_eq!(error["code"], self.status);
        assert!(!error["message"].as_str().unwrap().is_empty());
        (error["type"].as_str().unwrap().to_owned(), error["param"].clone())
    }

    /// The documents of an event stream.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.headers[header::CONTENT_TYPE], "text/event-stream");
        let blocks = self.text().split("\n\n").filter(|block| !block.is_empty() && *block != "data: [DONE]");
        blocks.map(|block| serde_json::from_str(block.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

/// Fields of a form and a file, as a body with its type.
pub fn form(fields: &[(&str, &str)], file: Option<&[u8]>) -> (String, Vec<u8>) {
    const BOUNDARY: &str = "b0undary-b0undary";
    let mut body = Vec::new();
    for (name, value) in fields {
        let part = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        body.extend_from_slice(part.as_bytes());
    }
    if let Some(file) = file {
        let head = "Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav";
        body.extend_from_slice(format!("--{BOUNDARY}\r\n{head}\r\n\r\n").as_bytes());
        body.extend_from_slice(file);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={BOUNDARY}"), body)
}

/// A request to an own name of the server.
pub fn request(method: Method, path: &str, content_type: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost:8080");
    request.header(header::CONTENT_TYPE, content_type).body(body.into()).unwrap()
}

/// A number of `/metrics`.
pub fn metric(asked: &Asked, name: &str) -> usize {
    let metrics = asked.get("/metrics").expect(200);
    let line =
        metrics.text().lines().find_map(|line| line.strip_prefix(&format!("tympan:{name} "))).unwrap().to_owned();
    line.parse().unwrap()
}

/// Slots that have a request.
pub fn n_busy(asked: &Asked) -> usize {
    let slots = asked.get("/slots").expect(200).json();
    slots.as_array().unwrap().iter().filter(|slot| slot["is_processing"] == true).count()
}

/// Waits for what will come soon.
pub fn wait_for(mut is_there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < Duration::from_secs(60), "it never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Asked {
    pub fn open(loaded: &Loaded, options: Options) -> Self {
        Self::with(loaded, &computing(), options)
    }

    pub fn with(loaded: &Loaded, computing: &Computing, options: Options) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let log: Log = {
            let lines = Arc::clone(&lines);
            Arc::new(move |line: &str| lines.lock().unwrap().push(line.to_owned()))
        };
        let server = Server::open(loaded, computing, options, log).unwrap();
        let router = server.router();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { server, router, lines, runtime }
    }

    /// With the speech model.
    pub fn speech() -> Self {
        Self::open(speech(), options())
    }

    pub fn ask(&self, request: Request<Body>) -> Answer {
        self.runtime.block_on(answer(self.router.clone(), request))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask(request(Method::GET, path, "", Body::empty()))
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask(request(Method::POST, path, "application/json", body.to_string()))
    }

    pub fn transcribe(&self, fields: &[(&str, &str)], file: Option<&[u8]>) -> Answer {
        let (content_type, body) = form(fields, file);
        self.ask(request(Method::POST, "/v1/audio/transcriptions", &content_type, body))
    }

    /// Requests at once.
    pub fn all(&self, requests: Vec<Request<Body>>) -> Vec<Answer> {
        self.runtime.block_on(async {
            let tasks: Vec<_> =
                requests.into_iter().map(|request| tokio::spawn(answer(self.router.clone(), request))).collect();
            let mut answers = Vec::new();
            for task in tasks {
                answers.push(task.await.unwrap());
            }
            answers
        })
    }
}

/// Asks and reads the whole answer.
pub async fn answer(router: Router, request: Request<Body>) -> Answer {
    let response = router.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes().to_vec();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}
