//! What is bounded, and what becomes of requests that are one too many, slow, or broken off.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, header};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::ask::{Asked, clip, encoded, form, n_busy, options, request, speech, wait_for};

/// A body that never ends and never comes.
struct Never;

impl http_body::Body for Never {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Pending
    }
}

/// A request that takes a while: many tokens, and nobody wants the end.
fn long() -> Value {
    json!({"prompt": "one two three", "n_predict": 1500, "ignore_eos": true, "temperature": 0})
}

#[test]
fn a_queue_that_is_full_says_when_to_come_again() {
    let asked = Asked::open(speech(), serve::Options { n_slots: 1, max_queue: 1, ..options() });
    let posts = (0..4).map(|_| request(Method::POST, "/completion", "application/json", long().to_string()));
    let answers = asked.all(posts.collect());
    let (done, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
    assert_eq!((done.len(), refused.len()), (2, 2));
    for answer in refused {
        assert_eq!(answer.headers[header::RETRY_AFTER], "1");
        assert_eq!(answer.expect(429).error().0, "rate_limit_error");
    }
    assert_eq!(asked.get("/metrics").text().matches("status=\"429\"} 2").count(), 1);
}

#[test]
fn a_client_that_goes_frees_its_slot() {
    let asked = Asked::speech();
    let mut streamed = long();
    streamed["stream"] = json!(true);
    for body in [long(), streamed] {
        let request = request(Method::POST, "/completion", "application/json", body.to_string());
        let task = asked.runtime.spawn(asked.router.clone().oneshot(request));
        wait_for(|| n_busy(&asked) == 1);
        // A stream has begun by now, or will never be read; the other has no answer yet.
        task.abort();
        drop(asked.runtime.block_on(task));
        wait_for(|| n_busy(&asked) == 0);
    }
    assert!(asked.lines.lock().unwrap().iter().any(|line| line.contains("\"outcome\":\"disconnected\"")));
}

#[test]
fn a_client_that_does_not_read_is_cancelled() {
    let stall = Duration::from_millis(50);
    let asked = Asked::open(speech(), serve::Options { stall, n_ctx: 4096, ..options() });
    // Whatever comes at such a temperature is text.
    let body = json!({
        "prompt": "one", "n_predict": 4000, "ignore_eos": true, "stream": true, "temperature": 100, "top_k": 0,
        "samplers": ["temperature"], "seed": 7,
    });
    let request = request(Method::POST, "/completion", "application/json", body.to_string());
    // Its head is read, and nothing else.
    let response = asked.runtime.block_on(asked.router.clone().oneshot(request)).unwrap();
    assert_eq!(response.status(), 200);
    wait_for(|| n_busy(&asked) == 0);
    let rest = asked.runtime.block_on(http_body_util::BodyExt::collect(response.into_body())).unwrap().to_bytes();
    let rest = String::from_utf8_lossy(&rest);
    let end = rest.trim_end().rsplit_once("\n\n").map_or(&*rest, |(_, last)| last);
    assert!(end.contains("\"error\""), "{end}");
}

#[test]
fn slow_bodies_and_late_answers_are_given_up() {
    let short = Duration::from_millis(50);
    let asked = Asked::open(speech(), serve::Options { body_time: short, timeout: short, n_ctx: 4096, ..options() });
    for (path, content_type) in
        [("/completion", "application/json"), ("/v1/audio/transcriptions", "multipart/form-data; boundary=x")]
    {
        asked.ask(request(Method::POST, path, content_type, Body::new(Never))).expect(408);
    }
    let mut body = long();
    body["n_predict"] = json!(4000);
    assert_eq!(asked.post("/completion", &body).expect(504).error().0, "server_error");
    wait_for(|| n_busy(&asked) == 0);
}

#[test]
fn what_requests_hold_together_is_bounded() {
    let asked = Asked::open(speech(), serve::Options { max_held_bytes: 300_000, ..options() });
    // 24 s as a file fit; as samples beside it they do not.
    assert_eq!(asked.transcribe(&[], Some(&clip("long_24s.wav"))).expect(429).error().0, "rate_limit_error");
    // What was refused holds nothing.
    for _ in 0..4 {
        asked.transcribe(&[], Some(&clip("yes.wav"))).expect(200);
    }
    let asked = Asked::open(speech(), serve::Options { max_upload_bytes: 1000, ..options() });
    let body = json!({"content": "x".repeat(2000)});
    asked.post("/tokenize", &body).expect(413);
}

#[test]
fn states_are_promised_before_they_are_used() {
    let memory = serve::Memory::of(speech(), &crate::ask::computing(), &options()).unwrap();
    // Room for one request of 1,000 tokens of 2,048, not for two.
    let most = memory.states * 6 / 10;
    let asked = Asked::open(speech(), serve::Options { max_state_bytes: Some(most), ..options() });
    let body = json!({"prompt": "one", "n_predict": 1000, "ignore_eos": true});
    let posts: Vec<_> =
        (0..3).map(|_| request(Method::POST, "/completion", "application/json", body.to_string())).collect();
    let router = asked.router.clone();
    let tasks: Vec<_> =
        posts.into_iter().map(|post| asked.runtime.spawn(crate::ask::answer(router.clone(), post))).collect();
    wait_for(|| n_busy(&asked) == 1);
    while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
        assert!(n_busy(&asked) <= 1);
    }
    for task in tasks {
        asked.runtime.block_on(task).unwrap().expect(200);
    }
    let mut body = body;
    body["n_predict"] = json!(1900);
    asked.post("/completion", &body).expect(413);
}

#[test]
fn an_engine_that_ends_answers_nobody_else() {
    let asked = Asked::speech();
    let (content_type, body) = form(&[], Some(&clip("yes.wav")));
    let router = asked.router.clone();
    let runtime = Arc::new(asked.runtime);
    assert!(asked.server.close());
    let ask = |request| runtime.block_on(crate::ask::answer(router.clone(), request));
    ask(request(Method::POST, "/v1/audio/transcriptions", &content_type, body)).expect(503);
    ask(request(Method::POST, "/completion", "application/json", long().to_string())).expect(503);
}

/// Silence at 16 kHz as a FLAC file of so many frames of 65,535 samples each, of which every one says that all of its samples are
/// 0. Source: RFC 9639.
fn flac_of_silence(n_frames: u32) -> Vec<u8> {
    const BLOCK: u16 = 65_535;
    let rate_channels_bits: u64 = 16_000 << 44 | 15 << 36;
    let mut file = b"fLaC\x80\0\0\x22".to_vec();
    file.extend_from_slice(&[BLOCK.to_be_bytes(), BLOCK.to_be_bytes()].concat());
    file.extend_from_slice(&[0; 6]);
    file.extend_from_slice(&rate_channels_bits.to_be_bytes());
    file.extend_from_slice(&[0; 16]);
    let crc = |bytes: &[u8], polynomial: u32, n_bits: u32| {
        bytes.iter().fold(0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte) << (n_bits - 8), |crc, _| {
                let top = crc >> (n_bits - 1) & 1;
                ((crc << 1) ^ (top * polynomial)) & ((1 << n_bits) - 1)
            })
        })
    };
    for i in 0..n_frames {
        // Length in 16 bits at the end of the header, rate as above, one channel, 16 bits.
        let mut frame = vec![0xff, 0xf8, 0x70, 0x08];
        let number = char::from_u32(i).expect("few enough for what characters can be");
        frame.extend_from_slice(number.encode_utf8(&mut [0; 4]).as_bytes());
        frame.extend_from_slice(&(BLOCK - 1).to_be_bytes());
        frame.push(crc(&frame, 0x07, 8) as u8);
        // A constant.
        frame.extend_from_slice(&[0, 0, 0]);
        let check = crc(&frame, 0x8005, 16) as u16;
        frame.extend_from_slice(&check.to_be_bytes());
        file.extend_from_slice(&frame);
    }
    file
}

#[test]
fn small_files_of_many_hours_are_too_long() {
    let asked = Asked::open(speech(), serve::Options { max_audio_s: 600, ..options() });
    let short = flac_of_silence(2);
    let answer = asked.transcribe(&[], Some(&short)).expect(200);
    assert!(answer.json()["usage"]["input_token_details"]["audio_tokens"].as_u64().unwrap() > 90, "{}", answer.text());
    let long = flac_of_silence(8790);
    assert!(long.len() < 1 << 20 && 8790 * 65_535 / 16_000 > 10 * 3600);
    let error = asked.transcribe(&[], Some(&long)).expect(413).error();
    assert_eq!(error.0, "invalid_request_error");
    let part = json!({"type": "input_audio", "input_audio": {"data": encoded(&long), "format": "flac"}});
    let body = json!({"messages": [{"role": "user", "content": [part]}]});
    assert_eq!(asked.post("/v1/chat/completions", &body).expect(413).error(), error);
    // Nothing of it is held any more.
    let small = Asked::open(speech(), serve::Options { max_audio_s: 600, max_held_bytes: 1 << 20, ..options() });
    for _ in 0..3 {
        small.transcribe(&[], Some(&long)).expect(413);
        small.transcribe(&[], Some(&clip("yes.wav"))).expect(200);
    }
}

#[test]
fn prompts_of_a_megabyte_are_read_and_refused() {
    let asked = Asked::speech();
    let text = "a".repeat(1 << 20);
    let tokens = asked.post("/tokenize", &json!({"content": text})).expect(200).json()["tokens"].take();
    let n = tokens.as_array().unwrap().len();
    assert!(n > 2048, "{n}");
    let messages = json!([{"role": "user", "content": text}]);
    for (path, body) in [
        ("/completion", json!({"prompt": text})),
        ("/v1/completions", json!({"prompt": tokens})),
        ("/v1/chat/completions", json!({"messages": messages})),
    ] {
        let answer = asked.post(path, &body).expect(400);
        assert_eq!(answer.error().0, "exceed_context_size_error");
        assert!(answer.json()["error"]["n_prompt_tokens"].as_u64().unwrap() >= n as u64, "{path}");
    }
    let fields = [("prompt", &*"a".repeat(1 << 19))];
    let answer = asked.transcribe(&fields, Some(&clip("yes.wav"))).expect(400);
    assert_eq!(answer.error().0, "exceed_context_size_error");
}
