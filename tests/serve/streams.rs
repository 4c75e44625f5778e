//! Answers as event streams, of every endpoint that has them.

use axum::body::Body;
use axum::http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::ask::{Asked, clip, encoded, form, n_busy, request, wait_for};

/// An endpoint that streams.
pub struct Endpoint {
    pub path: &'static str,
    request: fn() -> Request<Body>,
    /// What an event adds to the text.
    more: fn(&Value) -> &Value,
    /// How the stream ends.
    end: &'static str,
}

pub const ENDPOINTS: [Endpoint; 6] = [
    Endpoint { path: "/completion", request: completion, more: |event| &event["content"], end: "" },
    Endpoint { path: "/v1/completions", request: completions, more: |event| &event["choices"][0]["text"], end: DONE },
    Endpoint { path: "/v1/chat/completions", request: chat, more: content, end: DONE },
    Endpoint { path: "/v1/chat/completions, a clip", request: spoken, more: content, end: DONE },
    Endpoint { path: "/v1/audio/transcriptions", request: deltas, more: |event| &event["delta"], end: "" },
    Endpoint { path: "/inference", request: tokens, more: |event| &event["token"], end: "" },
];

const DONE: &str = "data: [DONE]\n\n";
const CLIP: &str = "digits_eight.wav";

fn content(event: &Value) -> &Value {
    &event["choices"][0]["delta"]["content"]
}

fn post(path: &str, body: &Value) -> Request<Body> {
    request(Method::POST, path, "application/json", body.to_string())
}

/// Whatever comes at such a temperature is text, and always the same.
fn drawn(path: &str, name: &str, prompt: Value) -> Request<Body> {
    let mut body = json!({
        "max_tokens": 40, "ignore_eos": true, "stream": true, "temperature": 100, "top_k": 0, "samplers": ["temperature"],
        "seed": 3,
    });
    body[name] = prompt;
    post(path, &body)
}

fn completion() -> Request<Body> {
    drawn("/completion", "prompt", json!("one two"))
}

fn completions() -> Request<Body> {
    drawn("/v1/completions", "prompt", json!("one two"))
}

fn chat() -> Request<Body> {
    drawn("/v1/chat/completions", "messages", json!([{"role": "user", "content": "one two"}]))
}

fn spoken() -> Request<Body> {
    let part = json!({"type": "input_audio", "input_audio": {"data": encoded(&clip(CLIP)), "format": "wav"}});
    post("/v1/chat/completions", &json!({"messages": [{"role": "user", "content": [part]}], "stream": true}))
}

fn deltas() -> Request<Body> {
    let (content_type, body) = form(&[("stream", "true")], Some(&clip(CLIP)));
    request(Method::POST, "/v1/audio/transcriptions", &content_type, body)
}

fn tokens() -> Request<Body> {
    let (content_type, body) = form(&[("response_format", "streaming_verbose_json")], Some(&clip(CLIP)));
    request(Method::POST, "/inference", &content_type, body)
}

impl Endpoint {
    /// The text that is in events.
    pub fn said(&self, events: &str) -> String {
        let documents = events.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
        let documents = documents.filter_map(|document| serde_json::from_str::<Value>(document).ok());
        documents.filter_map(|event| (self.more)(&event).as_str().map(str::to_owned)).collect()
    }

    /// All of an answer that came in more than two events. Those that nobody has read become one, so that on a machine that
    /// has other work all of the text may come at once.
    fn in_pieces(&self, asked: &Asked) -> String {
        const N_TRIES: usize = 100;
        let wholes = (0..N_TRIES).map(|_| Frames::begin(asked, self).read(asked, usize::MAX).0);
        let mut wholes = wholes.filter(|whole| whole.matches("data: ").count() > 2);
        wholes.next().unwrap_or_else(|| panic!("{}: never more than two events", self.path))
    }
}

/// The body of an answer, as it comes.
pub struct Frames(Body);

impl Frames {
    /// Of an endpoint.
    pub fn begin(asked: &Asked, endpoint: &Endpoint) -> Self {
        Self::of(asked, (endpoint.request)())
    }

    /// Of another request.
    pub fn of(asked: &Asked, request: Request<Body>) -> Self {
        let response = asked.runtime.block_on(asked.router.clone().oneshot(request)).unwrap();
        assert_eq!(response.status(), 200);
        Self(response.into_body())
    }

    /// Reads so many pieces, or all of them. What is left, where something may be.
    pub fn read(mut self, asked: &Asked, n: usize) -> (String, Option<Self>) {
        let mut bytes = Vec::new();
        for _ in 0..n {
            let Some(frame) = asked.runtime.block_on(self.0.frame()) else {
                return (String::from_utf8(bytes).unwrap(), None);
            };
            bytes.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        // A piece is cut at no character.
        (String::from_utf8(bytes).unwrap(), Some(self))
    }
}

#[test]
fn a_client_may_go_at_every_event() {
    let asked = Asked::speech();
    for endpoint in &ENDPOINTS {
        let whole = endpoint.in_pieces(&asked);
        assert!(whole.ends_with(endpoint.end) && !endpoint.said(&whole).is_empty(), "{}: {whole}", endpoint.path);
        let n_events = whole.matches("data: ").count();
        let mut n_cut = 0;
        for n in 0..n_events {
            let (begin, rest) = Frames::begin(&asked, endpoint).read(&asked, n);
            assert!(endpoint.said(&whole).starts_with(&endpoint.said(&begin)), "{}: {begin}", endpoint.path);
            // It may have been written in fewer pieces.
            n_cut += usize::from(rest.is_some());
            drop(rest);
            wait_for(|| n_busy(&asked) == 0);
        }
        assert!(n_cut > 0, "{}", endpoint.path);
        assert_eq!(endpoint.said(&Frames::begin(&asked, endpoint).read(&asked, usize::MAX).0), endpoint.said(&whole));
    }
    let lines = asked.lines.lock().unwrap();
    let outcomes = |outcome: &str| lines.iter().filter(|line| line.contains(outcome)).count();
    assert!(outcomes("\"outcome\":\"disconnected\"") > 0 && outcomes("\"outcome\":\"failed\"") == 0);
}

/// Two tokens that are the two bytes of a character, in whatever order they come.
#[test]
fn stop_texts_are_found_across_the_bytes_of_a_character() {
    let asked = Asked::speech();
    let pieces = asked.post("/tokenize", &json!({"content": "\u{e9}", "with_pieces": true})).expect(200).json();
    let ids: Vec<u64> =
        pieces["tokens"].as_array().unwrap().iter().map(|token| token["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), 2, "the character is one token: {pieces}");
    let bias: Vec<Value> = ids.iter().map(|id| json!([id, 100])).collect();
    let mut n_found = 0;
    for seed in 0..40 {
        let body = |stop: &[&str], is_streamed: bool| {
            json!({
                "prompt": "x", "n_predict": 24, "ignore_eos": true, "temperature": 1, "top_k": 2, "seed": seed,
                "logit_bias": bias, "stop": stop, "stream": is_streamed, "repeat_penalty": 1.0,
            })
        };
        let free = asked.post("/completion", &body(&[], false)).expect(200).json();
        let free = free["content"].as_str().unwrap();
        for stop in [&["\u{e9}"][..], &["\u{e9}\u{e9}"], &["\u{fffd}\u{e9}", "\u{e9}\u{fffd}"]] {
            let at = stop.iter().filter_map(|stop| free.find(stop)).min();
            let want = at.map_or(free, |at| &free[..at]);
            n_found += usize::from(at.is_some());
            let whole = asked.post("/completion", &body(stop, false)).expect(200).json();
            assert_eq!(whole["content"], want, "{free:?} with {stop:?}");
            let reason = if at.is_some() { "word" } else { "limit" };
            assert_eq!(whole["stop_type"], reason, "{free:?} with {stop:?}");
            let events = asked.post("/completion", &body(stop, true)).expect(200).events();
            let streamed: String = events.iter().filter_map(|event| event["content"].as_str()).collect();
            assert_eq!(streamed, want, "{free:?} with {stop:?}");
        }
    }
    assert!(n_found > 40, "{n_found}");
}
