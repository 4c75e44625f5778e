//! Conversations about a clip: `input_audio` parts of `/v1/chat/completions`.

use std::sync::OnceLock;

use axum::http::Method;
use models::Loaded;
use serde_json::{Value, json};

use crate::ask::{Asked, clip, encoded, fixtures, loaded, options, request, speech};

/// The other speech model: its system text says what is asked.
fn lfm2() -> &'static Loaded {
    static MODEL: OnceLock<Loaded> = OnceLock::new();
    MODEL.get_or_init(|| loaded("models/tiny-lfm2-audio"))
}

fn part(bytes: &[u8]) -> Value {
    json!({"type": "input_audio", "input_audio": {"data": encoded(bytes), "format": "wav"}})
}

/// A conversation that ends with these parts, behind a system text.
fn conversation(system: Option<&str>, parts: Value) -> Value {
    let system = system.map(|text| json!({"role": "system", "content": text}));
    json!({"messages": system.into_iter().chain([json!({"role": "user", "content": parts})]).collect::<Vec<_>>()})
}

fn with(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

const CHAT: &str = "/v1/chat/completions";

#[test]
fn a_conversation_about_a_clip_is_its_transcription() {
    let text = |text: &str| json!({"type": "text", "text": text});
    for (model, name, fields, system, beside) in [
        (speech(), "digits_eight.wav", vec![], None, None),
        (speech(), "long_24s.wav", vec![], Some(""), None),
        (speech(), "digits_short.wav", vec![("prompt", "five seven")], Some("five seven"), None),
        // What is written beside the clip is nothing that this model reads.
        (speech(), "open_door.wav", vec![], None, Some("What is said?")),
        (lfm2(), "fsdd/single_5_george_2.wav", vec![], None, None),
        (lfm2(), "fsdd/single_5_george_2.wav", vec![], Some("Perform ASR."), Some(" ")),
        (lfm2(), "fsdd/single_5_george_2.wav", vec![("language", "ja")], Some("Perform ASR in japanese."), None),
    ] {
        let asked = Asked::open(model, options());
        let bytes = clip(name);
        let want = asked.transcribe(&fields, Some(&bytes)).expect(200).json();
        let parts: Vec<Value> = beside.map(text).into_iter().chain([part(&bytes)]).collect();
        let body = conversation(system, json!(parts));
        let got = asked.post(CHAT, &body).expect(200).json();
        assert_eq!(got["object"], "chat.completion");
        let choice = &got["choices"][0];
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&want["text"], &json!("stop")),
            "{name}"
        );
        assert!(!want["text"].as_str().unwrap().contains("language"), "{want}");
        let usage = &got["usage"];
        for (mine, its) in [("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")] {
            assert_eq!(usage[mine], want["usage"][its], "{name}: {got}");
        }
        let n_audio = &usage["prompt_tokens_details"]["audio_tokens"];
        assert_eq!(*n_audio, want["usage"]["input_token_details"]["audio_tokens"]);
        assert!(n_audio.as_u64().unwrap() > 0);

        let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
        let answer = asked.post(CHAT, &with(body, streamed)).expect(200);
        assert!(answer.text().ends_with("data: [DONE]\n\n"));
        let events = answer.events();
        assert!(
            events.iter().all(|event| event["object"] == "chat.completion.chunk" && event["id"] == events[0]["id"])
        );
        assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
        let joined: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(json!(joined), want["text"]);
        let reasons: Vec<&Value> = events.iter().map(|e| &e["choices"][0]["finish_reason"]).collect();
        assert_eq!(reasons.iter().filter(|reason| reason.is_string()).count(), 1);
        assert_eq!(events.last().unwrap()["usage"], *usage);
    }
}

#[test]
fn the_limit_of_tokens_holds_for_all_segments_together() {
    let asked = Asked::speech();
    let bytes = clip("long_24s.wav");
    let verbose = asked.transcribe(&[("response_format", "verbose_json")], Some(&bytes)).expect(200).json();
    let segments = verbose["segments"].as_array().unwrap();
    let first = segments[0]["tokens"].as_array().unwrap().len();
    assert!(segments.len() > 2);
    // Within the first segment, at its end, within the second, and more than there is.
    for (limit, n_tokens, reason) in
        [(3, 3, "length"), (first, first, "length"), (first + 3, first + 3, "length"), (1500, 0, "stop")]
    {
        let body = with(conversation(None, json!([part(&bytes)])), json!({"max_tokens": limit}));
        let got = asked.post(CHAT, &body).expect(200).json();
        assert_eq!(got["choices"][0]["finish_reason"], reason, "{limit}: {got}");
        let text = got["choices"][0]["message"]["content"].as_str().unwrap();
        let whole = verbose["text"].as_str().unwrap();
        if reason == "length" {
            assert_eq!(got["usage"]["completion_tokens"], n_tokens, "{limit}");
            assert!(whole.starts_with(text.trim_end()) && text.len() < whole.len(), "{limit}: {text}");
        } else {
            assert_eq!(text, whole);
        }
    }
    let body = with(conversation(None, json!([part(&bytes)])), json!({"max_tokens": 12, "ignore_eos": true}));
    assert_eq!(asked.post(CHAT, &body).expect(200).json()["usage"]["completion_tokens"], 12);
}

#[test]
fn other_formats_are_heard_by_their_bytes() {
    let asked = Asked::speech();
    for name in ["flac.flac", "mp3.mp3", "vorbis.ogg"] {
        let bytes = std::fs::read(fixtures().join("formats").join(name)).unwrap();
        let want = asked.transcribe(&[], Some(&bytes)).expect(200).json();
        for format in [json!({}), json!({"format": null}), json!({"format": "wav"}), json!({"format": "mp3"})] {
            let audio = with(json!({"data": encoded(&bytes)}), format);
            let body = conversation(None, json!([{"type": "input_audio", "input_audio": audio}]));
            assert_eq!(asked.post(CHAT, &body).expect(200).json()["choices"][0]["message"]["content"], want["text"]);
        }
    }
}

#[test]
fn what_is_no_clip_is_refused_by_name() {
    let asked = Asked::open(speech(), serve::Options { max_audio_s: 20, max_upload_bytes: 1 << 20, ..options() });
    let yes = part(&clip("yes.wav"));
    let audio = |audio: Value| conversation(None, json!([{"type": "input_audio", "input_audio": audio}]));
    let user = |content: Value| json!({"role": "user", "content": content});
    let said = |role: &str| json!({"role": role, "content": "x"});
    for (body, status) in [
        (audio(json!({})), 400),
        (audio(json!(null)), 400),
        (audio(json!({"data": ""})), 400),
        (audio(json!({"data": 5})), 400),
        (audio(json!({"data": "Zm9v", "format": 5})), 400),
        // Not base64; no recording; one that is cut to nothing.
        (audio(json!({"data": "a recording"})), 400),
        (audio(json!({"data": "data:audio/wav;base64,Zm9v"})), 400),
        (audio(json!({"data": encoded(b"not a recording, whatever it says")})), 400),
        (audio(json!({"data": encoded(&clip("yes.wav")[..20])})), 400),
        (json!({"messages": [user(json!([yes])), said("assistant")]}), 501),
        (json!({"messages": [said("user"), user(json!([yes]))]}), 501),
        (json!({"messages": [{"role": "system", "content": [yes]}]}), 400),
        (json!({"messages": [{"role": "system", "content": [yes]}, user(json!([yes]))]}), 501),
        (json!({"messages": [{"content": "x"}, user(json!([yes]))]}), 400),
        (conversation(None, json!([yes, yes])), 501),
        (conversation(None, json!([yes, {"type": "image_url", "image_url": {}}])), 501),
        (conversation(None, json!([yes, {"type": "text"}])), 400),
    ] {
        let answer = asked.post(CHAT, &body).expect(status);
        let param = answer.error().1.as_str().unwrap().to_owned();
        assert!(param.starts_with("messages"), "{param}: {}", answer.text());
    }
    // Too long, and too large.
    let long = conversation(None, json!([part(&clip("long_24s.wav"))]));
    assert_eq!(asked.post(CHAT, &long).expect(413).error().0, "invalid_request_error");
    assert_eq!(asked.post(CHAT, &audio(json!({"data": "A".repeat(2 << 20)}))).expect(413).error().1, Value::Null);
    let body = conversation(None, json!([yes]));
    for (field, value) in [
        ("temperature", json!(0.5)),
        ("n", json!(2)),
        ("stop", json!("x")),
        ("logprobs", json!(true)),
        ("logit_bias", json!({"5": 1})),
        ("repeat_penalty", json!(1.5)),
        ("chat_template_kwargs", json!({"a": 1})),
        ("multimodal_data", json!(["Zm9v"])),
        ("tools", json!([{"type": "function"}])),
    ] {
        let error = asked.post(CHAT, &with(body.clone(), json!({field: value}))).expect(501).error();
        assert_eq!(error, ("not_supported_error".into(), json!(field)));
    }
    let neutral = json!({
        "temperature": 0, "top_p": 0.5, "top_k": 3, "seed": 9, "n": 1, "stop": [], "logprobs": false, "cache_prompt": true,
    });
    asked.post(CHAT, &with(body.clone(), neutral)).expect(200);
    assert_eq!(asked.post(CHAT, &with(body, json!({"max_tokens": 0}))).expect(400).error().1, "max_tokens");

    let other = Asked::open(lfm2(), options());
    for body in [
        conversation(Some("Answer the question."), json!([yes])),
        conversation(None, json!([yes, {"type": "text", "text": "What is said?"}])),
    ] {
        assert_eq!(other.post(CHAT, &body).expect(501).error().1, "messages");
    }
    let deaf = Asked::open(&loaded("golden/qwen3"), options());
    assert_eq!(deaf.post(CHAT, &conversation(None, json!([yes]))).expect(501).error().0, "not_supported_error");
}

#[test]
fn clips_in_conversations_are_held_and_let_go() {
    // The body fits; the file that it stands for does not beside it.
    let asked = Asked::open(speech(), serve::Options { max_held_bytes: 400_000, ..options() });
    let bytes = clip("long_9s.wav");
    let body = conversation(None, json!([part(&bytes)])).to_string();
    assert!(body.len() < 400_000, "{}", body.len());
    let ask = || asked.ask(request(Method::POST, CHAT, "application/json", body.clone()));
    assert_eq!(ask().expect(429).error().0, "rate_limit_error");
    for _ in 0..8 {
        asked.post(CHAT, &conversation(None, json!([part(&clip("yes.wav"))]))).expect(200);
    }
}
