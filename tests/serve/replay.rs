//! Requests of the official client of OpenAI, recorded once by `tests/fixtures/serve/openai_client.py`, asked again.

use axum::body::Body;
use axum::http::{Request, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::ask::{Answer, Asked, fixtures, loaded, options};

/// Bytes in base64.
pub fn decoded(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap()
}

/// What an event is beside its text and what differs from run to run.
fn shape(event: &Value) -> Value {
    match event {
        Value::Object(map) => map
            .iter()
            .map(|(name, value)| {
                let differs = ["id", "created", "timings", "cached_tokens"].contains(&&**name);
                let is_text = ["delta", "text", "content"].contains(&&**name) && value.is_string();
                (name.clone(), if differs || is_text { Value::Null } else { shape(value) })
            })
            .collect(),
        Value::Array(list) => list.iter().map(shape).collect(),
        value => value.clone(),
    }
}

/// The text of a stream.
fn said(events: &[Value]) -> String {
    let text = |event: &Value| {
        let choice = &event["choices"][0];
        let texts = [&event["delta"], &choice["text"], &choice["delta"]["content"]];
        texts.into_iter().filter_map(Value::as_str).collect::<String>()
    };
    events.iter().map(text).collect()
}

/// A stream is the one that was recorded, in pieces of any size.
fn check_stream(got: &Answer, recorded: &str, name: &str) {
    let recorded = Answer { status: 200, headers: got.headers.clone(), body: recorded.as_bytes().to_vec() };
    let (got_events, want_events) = (got.events(), recorded.events());
    assert_eq!(said(&got_events), said(&want_events), "{name}");
    let shapes = |events: &[Value]| {
        let mut shapes: Vec<Value> = events.iter().map(shape).collect();
        shapes.dedup();
        shapes
    };
    assert_eq!(shapes(&got_events), shapes(&want_events), "{name}");
    let is_done = |answer: &Answer| answer.text().ends_with("data: [DONE]\n\n");
    assert_eq!(is_done(got), is_done(&recorded), "{name}");
}

#[test]
fn requests_of_the_official_client_have_the_answers_that_it_accepted() {
    let model = loaded("models/tiny-lfm2-audio");
    let asked = Asked::open(&model, serve::Options { keys: vec!["sk-test".into()], ..options() });
    let records = std::fs::read_to_string(fixtures().join("serve/openai.jsonl")).unwrap();
    let mut n = 0;
    for line in records.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| record[name].as_str().unwrap();
        let request = Request::builder()
            .method(text("method"))
            .uri(text("path"))
            .header(header::HOST, "127.0.0.1:8123")
            .header(header::CONTENT_TYPE, text("content_type"))
            .header(header::AUTHORIZATION, text("authorization"))
            .body(Body::from(decoded(text("body"))))
            .unwrap();
        let answer = asked.ask(request);
        let name = text("name");
        assert_eq!(u64::from(answer.status), record["status"].as_u64().unwrap(), "{name}: {}", answer.text());
        n += 1;
        if let Some(recorded) = record["answer"].as_str() {
            check_stream(&answer, recorded, name);
        }
        if answer.status >= 400 {
            answer.error();
            continue;
        }
        // What the client found in the answers.
        match name {
            "json" => assert_eq!(answer.json()["text"], "five"),
            "text" => assert_eq!(answer.text(), "five\n"),
            "srt" => assert!(answer.text().contains("\nfive\n")),
            "vtt" => assert!(answer.text().starts_with("WEBVTT") && answer.text().contains("\nfive\n")),
            "verbose_json" => {
                let json = answer.json();
                assert_eq!((&json["text"], &json["segments"][0]["end"]), (&"five".into(), &json["duration"]));
            }
            "transcription stream" => {
                let events = answer.events();
                let text: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
                assert_eq!(text, "five");
                assert_eq!(events.last().unwrap()["type"], "transcript.text.done");
            }
            "models" => assert_eq!(answer.json()["data"][0]["object"], "model"),
            "chat" => {
                let choice = &answer.json()["choices"][0];
                let n_tokens = choice["logprobs"]["content"].as_array().unwrap().len();
                assert!(choice["message"]["content"].is_string() && n_tokens <= 8, "{choice}");
            }
            "spoken chat" => assert_eq!(answer.json()["choices"][0]["message"]["content"], "five"),
            "chat stream" | "spoken chat stream" | "completion stream" => {
                assert!(answer.text().ends_with("data: [DONE]\n\n"));
                let is_end = |event: &Value| event["choices"][0]["finish_reason"].is_string();
                assert_eq!(answer.events().iter().filter(|event| is_end(event)).count(), 1);
            }
            "completion" => {
                let json = answer.json();
                assert_eq!(json["choices"][0]["text"], json["choices"][1]["text"]);
            }
            _ => panic!("{name}: nothing is known of it"),
        }
    }
    assert_eq!(n, 21);
}
