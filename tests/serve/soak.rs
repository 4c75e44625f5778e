//! Many clients for a while: every reply belongs to its request, whatever the others do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, header};
use serde_json::{Value, json};

use crate::ask::{Asked, answer, clip, fixtures, form, options, request, speech};

/// Set to anything: all of it, by hand. Otherwise a fiftieth.
const WHOLE: &str = "TYMPAN_SOAK";
const N_CLIENTS: usize = 32;
const CLIPS: [&str; 4] = ["yes.wav", "digits_short.wav", "open_door.wav", "long_9s.wav"];

fn n_rounds(whole: usize) -> usize {
    if std::env::var_os(WHOLE).is_some() { whole } else { whole.div_ceil(50) }
}

/// Resident memory in bytes, where the system tells.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok().map(|kilobytes| kilobytes << 10)
}

/// Numbers that look random.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

fn transcription(name: &str) -> Request<Body> {
    let (content_type, body) = form(&[], Some(&clip(name)));
    request(Method::POST, "/v1/audio/transcriptions", &content_type, body)
}

fn completion(i: usize) -> Request<Body> {
    let body = json!({"prompt": format!("count {i}"), "n_predict": 4 + i, "temperature": 0, "ignore_eos": true});
    request(Method::POST, "/completion", "application/json", body.to_string())
}

#[test]
fn every_reply_belongs_to_its_request() {
    let asked = Asked::open(speech(), serve::Options { max_queue: 64, max_upload_bytes: 1 << 20, ..options() });
    let texts: Vec<Value> =
        CLIPS.iter().map(|name| asked.ask(transcription(name)).expect(200).json()["text"].clone()).collect();
    let continued: Vec<Value> =
        (0..8).map(|i| asked.ask(completion(i)).expect(200).json()["content"].clone()).collect();
    let n = n_rounds(1000);
    let n_answers = Arc::new(AtomicUsize::new(0));
    let early = Arc::new(AtomicUsize::new(0));
    asked.runtime.block_on(async {
        let clients = (0..N_CLIENTS).map(|i_client| {
            let (router, texts, continued) = (asked.router.clone(), texts.clone(), continued.clone());
            let (n_answers, early) = (Arc::clone(&n_answers), Arc::clone(&early));
            tokio::spawn(async move {
                let mut rng = Rng(0x5eed + i_client as u64);
                for _ in 0..n {
                    let i = rng.below(8);
                    match rng.below(9) {
                        0..=2 => {
                            let i = i % CLIPS.len();
                            let got = answer(router.clone(), transcription(CLIPS[i])).await;
                            assert!(got.status == 429 || got.json()["text"] == texts[i], "{got:?}");
                        }
                        3..=5 => {
                            let got = answer(router.clone(), completion(i)).await;
                            assert!(got.status == 429 || got.json()["content"] == continued[i], "{got:?}");
                        }
                        6 => {
                            // Goes before there is an answer.
                            let pending = answer(router.clone(), completion(i));
                            let _ = tokio::time::timeout(Duration::from_micros(300 * i as u64), pending).await;
                        }
                        7 => {
                            let broken = request(Method::POST, "/completion", "application/json", "{\"prompt\":");
                            answer(router.clone(), broken).await.expect(400);
                        }
                        _ => {
                            let large = "x".repeat(2 << 20);
                            let large = request(Method::POST, "/completion", "application/json", large);
                            answer(router.clone(), large).await.expect(413);
                        }
                    }
                    if n_answers.fetch_add(1, Ordering::SeqCst) + 1 == 1000 {
                        early.store(resident().unwrap_or_default(), Ordering::SeqCst);
                    }
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
    });
    assert_eq!(n_answers.load(Ordering::SeqCst), N_CLIENTS * n);
    let (early, late) = (early.load(Ordering::SeqCst), resident().unwrap_or_default());
    if early > 0 {
        println!("resident after 1,000 requests: {early}, at the end: {late}");
        assert!(late <= early + early / 20, "{early} bytes after 1,000 requests, {late} at the end");
    }
}

#[test]
fn mutated_requests_are_answered() {
    let asked = Asked::open(speech(), serve::Options { keys: Vec::new(), max_upload_bytes: 1 << 20, ..options() });
    let records = std::fs::read_to_string(fixtures().join("serve/openai.jsonl")).unwrap();
    let mut seeds: Vec<(String, String, Vec<u8>)> = Vec::new();
    for line in records.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| record[name].as_str().unwrap().to_owned();
        seeds.push((text("path"), text("content_type"), crate::replay::decoded(&text("body"))));
    }
    let bodies = [
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
    ];
    seeds.extend(
        bodies.map(|(path, body)| (path.to_owned(), "application/json".to_owned(), body.to_string().into_bytes())),
    );
    // Answers that take long say nothing about parsing.
    seeds.retain(|(_, _, body)| body.len() < 20_000);
    let mut rng = Rng(99);
    let n = n_rounds(100_000);
    for i in 0..n {
        let (path, content_type, mut body) = seeds[rng.below(seeds.len())].clone();
        for _ in 0..=rng.below(4) {
            let at = rng.below(body.len().max(1)).min(body.len());
            match rng.below(5) {
                0 if at < body.len() => body[at] = rng.below(256) as u8,
                1 => body.insert(at, b"\"{}[]:,0-e\\\r\n\xff"[rng.below(14)]),
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
        let mut one = request(Method::POST, "/", &content_type, body.clone());
        // Tokens cost more than parsing does.
        *one.uri_mut() = path.parse().unwrap();
        if rng.below(20) == 0 {
            let value: Vec<u8> = (0..rng.below(40)).map(|_| b' ' + rng.below(95) as u8).collect();
            one.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_bytes(&value).unwrap());
        }
        let got = asked.ask(one);
        assert!(got.status != 500 && got.status != 0, "{i}: {path}: {} for {}", got.text(), body.escape_ascii());
        if got.status >= 400 {
            got.error();
        }
    }
    asked.get("/health").expect(200);
}
