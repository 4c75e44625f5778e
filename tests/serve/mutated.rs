//! Requests that are no requests any more: whatever comes, there is an answer, and no panic.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, header};
use serde_json::{Value, json};
use tests::rng::Rng;

use crate::ask::{Asked, answer, clip, encoded, fixtures, form, options, request, speech};
use crate::soak::n_rounds;

/// Requests that are asked at once.
const N_CLIENTS: usize = 4;
/// Bodies of more bytes say nothing more about reading them.
const MAX_BODY: usize = 20_000;
/// What has a meaning in JSON, in forms and in text.
const SIGNS: &[u8] = b"\"{}[]:,0-e\\\r\n\xff";

/// A request that makes sense.
struct Seed {
    path: String,
    content_type: String,
    body: Vec<u8>,
}

/// Requests of the official client, and some of every other kind.
fn seeds() -> Vec<Seed> {
    let records = std::fs::read_to_string(fixtures().join("serve/openai.jsonl")).unwrap();
    let recorded = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| record[name].as_str().unwrap().to_owned();
        let body = crate::replay::decoded(&text("body"));
        Seed { path: text("path"), content_type: text("content_type"), body }
    };
    let bytes = clip("fsdd/single_5_george_2.wav");
    let part = json!({"type": "input_audio", "input_audio": {"data": encoded(&bytes), "format": "wav"}});
    let written = [
        (
            "/completion",
            json!({"prompt": [1, "a", 2], "n_predict": 2, "stop": ["x"], "logit_bias": [[5, -1]], "n_probs": 2}),
        ),
        ("/tokenize", json!({"content": "one two", "add_special": true, "with_pieces": true})),
        ("/detokenize", json!({"tokens": [1, 2, 3]})),
        (
            "/apply-template",
            json!({"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"a": [1]}}),
        ),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": [part]}], "max_tokens": 3})),
    ];
    let written = written.map(|(path, body)| {
        let (path, content_type) = (path.to_owned(), "application/json".to_owned());
        Seed { path, content_type, body: body.to_string().into_bytes() }
    });
    let (content_type, body) = form(&[("language", "en"), ("response_format", "srt")], Some(&bytes));
    let inference = Seed { path: "/inference".to_owned(), content_type, body };
    let all = records.lines().map(recorded).chain(written).chain([inference]);
    all.filter(|seed| seed.body.len() < MAX_BODY).collect()
}

/// One of them with some bytes that are others, more, or gone.
fn mutated(seed: &Seed, rng: &mut Rng) -> Request<Body> {
    let mut body = seed.body.clone();
    for _ in 0..=rng.below(4) {
        let at = rng.below(body.len().max(1)).min(body.len());
        match rng.below(5) {
            0 if at < body.len() => body[at] = rng.below(256) as u8,
            1 => body.insert(at, *rng.pick(SIGNS)),
            2 => body.truncate(at),
            3 => {
                let end = (at + rng.below(20)).min(body.len());
                body.drain(at..end);
            }
            _ => {
                let piece = body[at..(at + rng.below(30)).min(body.len())].to_vec();
                body.splice(at..at, piece);
            }
        }
    }
    let mut request = request(Method::POST, &seed.path, &seed.content_type, body);
    if rng.below(20) == 0 {
        let value: Vec<u8> = (0..rng.below(40)).map(|_| b' ' + rng.below(95) as u8).collect();
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_bytes(&value).unwrap());
    }
    request
}

#[test]
fn mutated_requests_are_answered() {
    // Answers that take long say nothing about reading requests.
    let limits = serve::Options { max_upload_bytes: 1 << 20, n_ctx: 128, max_queue: 1000, ..options() };
    let asked = Asked::open(speech(), limits);
    let seeds = Arc::new(seeds());
    assert!(seeds.len() > 20, "{}", seeds.len());
    let n = n_rounds(1_000_000, 200).div_ceil(N_CLIENTS);
    let clients = (0..N_CLIENTS).map(|i_client| {
        let (seeds, router) = (Arc::clone(&seeds), asked.router.clone());
        asked.runtime.spawn(async move {
            let mut rng = Rng::named(&format!("mutated {i_client}"));
            let mut n_good = 0;
            for i in 0..n {
                let seed = rng.pick(&seeds);
                let got = answer(router.clone(), mutated(seed, &mut rng)).await;
                let known = [200, 400, 401, 404, 405, 408, 413, 415, 501].contains(&got.status);
                assert!(
                    known,
                    "{i_client}, {i}: {}: {} {:?}",
                    seed.path,
                    got.status,
                    got.body.escape_ascii().to_string()
                );
                n_good += usize::from(got.status == 200);
                if got.status >= 400 {
                    got.error();
                }
            }
            n_good
        })
    });
    let clients: Vec<_> = clients.collect();
    let n_good: usize = clients.into_iter().map(|client| asked.runtime.block_on(client).unwrap()).sum();
    println!("{} requests, {n_good} of them answered with 200", n * N_CLIENTS);
    assert!(n_good > n / 10, "{n_good}");
    asked.get("/health").expect(200);
}
