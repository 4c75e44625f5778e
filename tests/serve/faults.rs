//! What breaks within: a step of a backend, the engine's thread, numbers that are none.

use std::net::TcpListener;
use std::ops::ControlFlow;
use std::sync::Arc;

use axum::http::Method;
use engine::DType;
use models::generate::{Generator, Request};
use models::sample::Sampling;
use models::{LoadOptions, Loaded};
use serde_json::json;
use serve::{Computing, Server, Stopped};
use tests::draft::Draft;
use tests::faulty::{Fault, Faulty};

use crate::ask::{Answer, Asked, answer, clip, computing, fixtures, form, n_busy, options, request, speech, wait_for};
use crate::streams::{ENDPOINTS, Frames};

/// A backend that fails when it is told to.
fn faulty() -> (Arc<Faulty>, Computing) {
    let own = computing();
    let backend = Faulty::new(Arc::clone(&own.backends[0]), |_| false);
    (Arc::clone(&backend), Computing { backends: vec![backend], ..own })
}

/// Completions that are all in one step for a while.
fn long(i: usize) -> axum::http::Request<axum::body::Body> {
    let body = json!({"prompt": format!("count {i}"), "n_predict": 1500, "ignore_eos": true, "temperature": 0});
    request(Method::POST, "/completion", "application/json", body.to_string())
}

fn short(asked: &Asked) -> Answer {
    asked.post("/completion", &json!({"prompt": "one two", "n_predict": 8, "temperature": 0, "ignore_eos": true}))
}

#[test]
fn a_step_that_fails_ends_those_that_are_in_it_and_nobody_else() {
    for fault in [Fault::BeforeRun, Fault::AfterRun] {
        let (backend, computing) = faulty();
        let asked = Asked::with(speech(), &computing, options());
        let want = short(&asked).expect(200).json()["content"].clone();
        let text = asked.transcribe(&[], Some(&clip("yes.wav"))).expect(200).json()["text"].clone();
        let tasks: Vec<_> = (0..3).map(|i| asked.runtime.spawn(answer(asked.router.clone(), long(i)))).collect();
        wait_for(|| n_busy(&asked) == 3);
        backend.fail(fault);
        for task in tasks {
            assert_eq!(asked.runtime.block_on(task).unwrap().expect(500).error().0, "server_error");
        }
        wait_for(|| n_busy(&asked) == 0);
        // A step of the encoder is one of its own.
        backend.fail(fault);
        assert_eq!(asked.transcribe(&[], Some(&clip("digits_short.wav"))).expect(500).error().0, "server_error");
        wait_for(|| n_busy(&asked) == 0);
        assert_eq!(short(&asked).expect(200).json()["content"], want);
        assert_eq!(asked.transcribe(&[], Some(&clip("yes.wav"))).expect(200).json()["text"], text);
        asked.get("/health").expect(200);
    }
}

#[test]
fn streams_that_have_begun_end_with_the_error() {
    let (backend, computing) = faulty();
    let asked = Asked::with(speech(), &computing, options());
    for endpoint in &ENDPOINTS {
        let (whole, _) = Frames::begin(&asked, endpoint).read(&asked, usize::MAX);
        // Behind the encoder, the prompt and some tokens.
        for n_before in [8, 11] {
            backend.fail_later(Fault::BeforeRun, n_before);
            let (text, _) = Frames::begin(&asked, endpoint).read(&asked, usize::MAX);
            let (before, last) = text.trim_end().rsplit_once("\n\n").unwrap();
            let event: serde_json::Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
            let error = &event["error"];
            assert_eq!((&error["code"], &error["type"]), (&json!(500), &json!("server_error")), "{}", endpoint.path);
            let said = endpoint.said(before);
            assert!(!said.is_empty() && endpoint.said(&whole).starts_with(&said), "{}: {before}", endpoint.path);
            assert!(!text.contains("[DONE]"));
            wait_for(|| n_busy(&asked) == 0);
        }
    }
    let lines = asked.lines.lock().unwrap();
    assert_eq!(lines.iter().filter(|line| line.contains("\"outcome\":\"failed\"")).count(), 2 * ENDPOINTS.len());
}

#[test]
fn when_the_engine_dies_health_says_so_and_nobody_waits() {
    let (backend, computing) = faulty();
    let asked = Asked::with(speech(), &computing, options());
    let waiting = asked.runtime.spawn(answer(asked.router.clone(), long(0)));
    let body = json!({"prompt": "one", "n_predict": 1500, "ignore_eos": true, "stream": true});
    let streamed = request(Method::POST, "/completion", "application/json", body.to_string());
    let (_, stream) = Frames::of(&asked, streamed).read(&asked, 1);
    backend.fail(Fault::Panic);
    asked.runtime.block_on(waiting).unwrap().expect(500);
    assert!(stream.unwrap().read(&asked, usize::MAX).0.contains("the engine has stopped"));
    let health = asked.get("/health").expect(503);
    assert_eq!(health.error().0, "unavailable_error");
    short(&asked).expect(503);
    asked.transcribe(&[], Some(&clip("yes.wav"))).expect(503);
    assert!(!asked.server.close());
}

#[test]
fn a_server_whose_engine_died_ends() {
    let (backend, computing) = faulty();
    let server = Server::open(speech(), &computing, options(), Arc::new(|_| ())).unwrap();
    let router = server.router();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let thread = std::thread::spawn(move || server.serve(listener, &|| false).unwrap());
    backend.fail(Fault::Panic);
    runtime.block_on(answer(router, long(0))).expect(500);
    assert_eq!(thread.join().unwrap(), Stopped::Died);
}

/// A model of which one token is no number.
fn poisoned(token: usize) -> Loaded {
    let mut draft = Draft::of(&convert::to_memory(&*fixtures().join("golden/llama")).unwrap());
    let tensor = draft.tensors.iter_mut().find(|tensor| tensor.name == "token_embd.weight").unwrap();
    let row = tensor.bytes.len() / tensor.dims[0];
    // All bits set: no number in any format.
    tensor.bytes[token * row..][..2].fill(0xff);
    models::load(vec![draft.in_memory()], LoadOptions::default()).unwrap()
}

#[test]
fn a_sequence_without_numbers_fails_alone() {
    const TOKEN: u32 = 77;
    let model = poisoned(TOKEN as usize);
    let asked = Asked::with(&model, &computing(), serve::Options { n_ctx: 256, ..options() });
    let ask = |prompt: &[u32]| {
        let bias = json!([[TOKEN, false]]);
        let body = json!({"prompt": prompt, "n_predict": 60, "temperature": 0, "ignore_eos": true, "logit_bias": bias, "return_tokens": true});
        request(Method::POST, "/completion", "application/json", body.to_string())
    };
    let good: [&[u32]; 3] = [&[1, 5, 9], &[1, 20, 30, 40], &[1, 60]];
    let want: Vec<_> = good.iter().map(|prompt| asked.ask(ask(prompt)).expect(200).json()["tokens"].clone()).collect();
    for _ in 0..5 {
        let requests = vec![ask(good[0]), ask(&[1, 5, TOKEN]), ask(good[1]), ask(good[2])];
        let mut answers = asked.all(requests);
        assert_eq!(answers.remove(1).expect(500).error().0, "server_error");
        let got: Vec<_> = answers.into_iter().map(|answer| answer.expect(200).json()["tokens"].clone()).collect();
        assert_eq!(got, want);
    }
    // The library says the same of the prompt alone.
    let mut generator = Generator::open(&model, &computing().backends, DType::F16).unwrap();
    let request = Request {
        prompt: &[1, 5, TOKEN],
        max_tokens: 1,
        sampling: Sampling::default(),
        ignore_stop: true,
        stop: &[],
        prompt_logits: false,
    };
    let error = generator.generate(&request, &mut |_, _| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, models::Error::NotFinite { .. }), "{error}");
}

/// 32-bit floating point samples at 16 kHz as a WAV file. Source: Microsoft, "Multimedia Programming Interface and Data
/// Specifications 1.0", RIFF WAVE.
fn float_wav(samples: &[f32]) -> Vec<u8> {
    let n_bytes = u32::try_from(size_of_val(samples)).unwrap();
    let mut file = Vec::new();
    let words: [&[u8]; 12] = [
        b"RIFF",
        &(36 + n_bytes).to_le_bytes(),
        b"WAVEfmt ",
        &16u32.to_le_bytes(),
        &3u16.to_le_bytes(),
        &1u16.to_le_bytes(),
        &16_000u32.to_le_bytes(),
        &64_000u32.to_le_bytes(),
        &4u16.to_le_bytes(),
        &32u16.to_le_bytes(),
        b"data",
        &n_bytes.to_le_bytes(),
    ];
    words.into_iter().for_each(|word| file.extend_from_slice(word));
    samples.iter().for_each(|sample| file.extend_from_slice(&sample.to_le_bytes()));
    file
}

#[test]
fn a_clip_without_numbers_fails_alone() {
    let asked = Asked::speech();
    let names = ["yes.wav", "digits_short.wav", "open_door.wav"];
    let want: Vec<_> =
        names.map(|name| asked.transcribe(&[], Some(&clip(name))).expect(200).json()["text"].clone()).into();
    let ask = |bytes: &[u8]| {
        let (content_type, body) = form(&[], Some(bytes));
        request(Method::POST, "/v1/audio/transcriptions", &content_type, body)
    };
    let none = float_wav(&[f32::NAN; 16_000]);
    let mut some = vec![0.1; 16_000];
    some[..400].fill(f32::INFINITY);
    let mut requests: Vec<_> = names.iter().map(|name| ask(&clip(name))).collect();
    requests.insert(1, ask(&none));
    requests.push(ask(&float_wav(&some)));
    let mut answers = asked.all(requests);
    // The samples that are none are silence, and said to be lost.
    let lost = answers.pop().unwrap().expect(200).json();
    assert_eq!(lost["damaged"][0]["end"], 0.025, "{lost}");
    assert_eq!(answers.remove(1).expect(400).error().1, "file");
    let got: Vec<_> = answers.into_iter().map(|answer| answer.expect(200).json()["text"].clone()).collect();
    assert_eq!(got, want);
}
