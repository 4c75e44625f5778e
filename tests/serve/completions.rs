//! Text to text.

use std::sync::OnceLock;

use axum::http::{Method, header};
use engine::DType;
use models::Loaded;
use models::generate::{Generator, Request};
use models::sample::Sampling;
use serde_json::{Value, json};

use crate::ask::{Asked, computing, loaded, options, request};

/// A text model without training; its tokenizer and its arithmetic are those of its kind.
fn text() -> &'static Loaded {
    static MODEL: OnceLock<Loaded> = OnceLock::new();
    MODEL.get_or_init(|| loaded("golden/qwen3"))
}

fn asked() -> Asked {
    Asked::open(text(), serve::Options { n_ctx: 256, ..options() })
}

/// What the library continues a prompt with, greedily.
fn continued(prompt: &str, n: usize) -> (String, Vec<u32>, usize) {
    let mut generator = Generator::open(text(), &computing().backends, DType::F16).unwrap();
    let ids = generator.writer().prompt(prompt);
    let request = Request {
        prompt: &ids,
        max_tokens: n,
        sampling: Sampling::default(),
        ignore_stop: true,
        stop: &[],
        prompt_logits: false,
    };
    let generated = generator.generate(&request, &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
    (generated.text, generated.ids, ids.len())
}

/// A speech model with a template, whose language model is asked.
fn talking() -> Asked {
    static MODEL: OnceLock<Loaded> = OnceLock::new();
    Asked::open(MODEL.get_or_init(|| loaded("models/tiny-lfm2-audio")), options())
}

const PROMPT: &str = "The quick brown fox";

fn greedy(more: Value) -> Value {
    let mut body = json!({"prompt": PROMPT, "n_predict": 12, "temperature": 0, "ignore_eos": true});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn texts_are_those_of_the_library() {
    let asked = asked();
    let (text, ids, n_prompt) = continued(PROMPT, 12);
    let native = asked.post("/completion", &greedy(json!({"return_tokens": true}))).expect(200).json();
    assert_eq!((&native["content"], &native["tokens"]), (&json!(text), &json!(ids)));
    assert_eq!((&native["stop_type"], &native["tokens_evaluated"]), (&json!("limit"), &json!(n_prompt)));
    let openai = asked.post("/v1/completions", &greedy(json!({}))).expect(200).json();
    assert_eq!(
        (&openai["choices"][0]["text"], &openai["choices"][0]["finish_reason"]),
        (&json!(text), &json!("length"))
    );
    assert_eq!(openai["usage"]["completion_tokens"], 12);
    // As tokens, mixed, and several at once.
    let prompt = asked.post("/tokenize", &json!({"content": PROMPT})).expect(200).json()["tokens"].clone();
    let mixed = json!([prompt[0], asked.post("/detokenize", &json!({"tokens": prompt})).expect(200).json()["content"]]);
    assert!(mixed[1].as_str().unwrap().ends_with(PROMPT));
    for same in [prompt.clone(), json!([prompt]), json!([PROMPT])] {
        let got = asked.post("/completion", &greedy(json!({"prompt": same}))).expect(200).json();
        assert_eq!(got["content"], text, "{same}");
    }
    let several = asked.post("/completion", &greedy(json!({"prompt": [PROMPT, "Another"]}))).expect(200).json();
    assert_eq!((several[0]["content"].as_str(), &several[1]["prompt"]), (Some(&*text), &json!("Another")));
    let twice = asked.post("/v1/completions", &greedy(json!({"n": 2}))).expect(200).json();
    assert_eq!((&twice["choices"][1]["text"], &twice["choices"][1]["index"]), (&json!(text), &json!(1)));
}

#[test]
fn streams_say_what_whole_answers_say() {
    let asked = asked();
    let (text, _, _) = continued(PROMPT, 12);
    for path in ["/completion", "/v1/completions"] {
        let answer =
            asked.post(path, &greedy(json!({"stream": true, "stream_options": {"include_usage": true}}))).expect(200);
        assert_eq!(answer.text().ends_with("data: [DONE]\n\n"), path == "/v1/completions");
        let events = answer.events();
        let piece = |event: &Value| {
            let text = if path == "/completion" { &event["content"] } else { &event["choices"][0]["text"] };
            text.as_str().unwrap_or_default().to_owned()
        };
        assert_eq!(events.iter().map(piece).collect::<String>(), text, "{path}");
        let last = events.last().unwrap();
        if path == "/completion" {
            assert_eq!((&last["stop"], &last["tokens_predicted"]), (&json!(true), &json!(12)));
        } else {
            assert_eq!((&last["usage"]["completion_tokens"], &last["choices"]), (&json!(12), &json!([])));
        }
    }
}

#[test]
fn stop_texts_end_answers_wherever_they_begin() {
    let asked = asked();
    let (text, _, _) = continued(PROMPT, 12);
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    for at in 1..chars.len().min(8) {
        let stop: String = chars[at..].iter().take(2).map(|c| c.1).collect();
        let want = &text[..text.find(&stop).unwrap()];
        let whole = asked.post("/completion", &greedy(json!({"stop": [stop]}))).expect(200).json();
        assert_eq!((&whole["content"], &whole["stop_type"]), (&json!(want), &json!("word")), "{stop:?}");
        let events = asked.post("/completion", &greedy(json!({"stop": stop, "stream": true}))).expect(200).events();
        let streamed: String = events.iter().map(|event| event["content"].as_str().unwrap()).collect();
        assert_eq!(streamed, want, "{stop:?}");
    }
}

#[test]
fn the_seed_decides_and_probabilities_are_told() {
    let asked = asked();
    let draw = |seed: i64| {
        let body = json!({"prompt": PROMPT, "n_predict": 16, "temperature": 1.5, "top_k": 0, "seed": seed, "ignore_eos": true});
        asked.post("/completion", &body).expect(200).json()["content"].clone()
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5), draw(6));
    let told = asked.post("/completion", &greedy(json!({"n_probs": 3}))).expect(200).json();
    let probabilities = told["completion_probabilities"].as_array().unwrap();
    assert_eq!(probabilities.len(), 12);
    for one in probabilities {
        let top = one["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["id"], &top[0]["logprob"]), (3, &one["id"], &one["logprob"]));
    }
    let first = probabilities[0]["id"].as_u64().unwrap();
    let biased =
        asked.post("/completion", &greedy(json!({"n_probs": 1, "logit_bias": [[first, false]]}))).expect(200).json();
    assert_ne!(biased["completion_probabilities"][0]["id"], first);
    assert_eq!(biased["completion_probabilities"][0]["top_logprobs"][0]["id"], first);
}

#[test]
fn conversations_are_written_by_the_models_template() {
    let asked = talking();
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
        {"type": "text", "text": "Good "}, {"type": "text", "text": "day"}]}]);
    let body = json!({"messages": messages, "max_tokens": 8, "temperature": 0});
    let written = asked.post("/apply-template", &body).expect(200).json()["prompt"].clone();
    assert!(written.as_str().unwrap().contains("Good day"), "{written}");
    let template = asked.get("/props").expect(200).json()["chat_template"].clone();
    assert!(template.as_str().unwrap().contains("messages"), "{template}");
    let answer = asked.post("/v1/chat/completions", &body).expect(200).json();
    assert_eq!(answer["object"], "chat.completion");
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["role"], "assistant");
    let n_prompt = asked.post("/tokenize", &json!({"content": written})).json()["tokens"].as_array().unwrap().len();
    assert_eq!(answer["usage"]["prompt_tokens"], n_prompt);
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let events = asked.post("/v1/chat/completions", &streamed).expect(200).events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let joined: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(json!(joined), message["content"]);
    let reasons: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["finish_reason"]).collect();
    assert_eq!(reasons.iter().filter(|reason| !reason.is_null()).count(), 1);
    assert_eq!(*reasons[reasons.len() - 1], answer["choices"][0]["finish_reason"]);
}

#[test]
fn fields_are_obeyed_or_refused_by_name() {
    let asked = asked();
    for (field, value) in [
        ("tools", json!([])),
        ("grammar", json!("")),
        ("response_format", json!({"type": "text"})),
        ("mirostat", json!(0)),
        ("typical_p", json!(1.0)),
        ("dry_multiplier", json!(0.0)),
        ("unheard", json!("of")),
        ("stop", json!(null)),
        ("cache_prompt", json!(true)),
        ("id_slot", json!(-1)),
        ("samplers", json!(["penalties", "dry", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"])),
    ] {
        asked.post("/completion", &greedy(json!({field: value}))).expect(200);
    }
    for (field, value) in [
        ("tools", json!([{"type": "function"}])),
        ("grammar", json!("root ::= \"a\"")),
        ("json_schema", json!({"type": "object"})),
        ("response_format", json!({"type": "json_object"})),
        ("mirostat", json!(2)),
        ("xtc_probability", json!(0.5)),
        ("typical_p", json!(0.5)),
        ("suffix", json!("x")),
    ] {
        let error = asked.post("/completion", &greedy(json!({field: value}))).expect(501).error();
        assert_eq!(error, ("not_supported_error".into(), json!(field)));
    }
    for (field, value) in [
        ("prompt", json!([])),
        ("prompt", json!({})),
        ("prompt", json!([1, {}])),
        ("prompt", json!([99_999_999])),
        ("temperature", json!("hot")),
        ("temperature", json!(-1)),
        ("top_p", json!(2)),
        ("stop", json!([""])),
        ("stop", json!(vec!["x"; 17])),
        ("n", json!(5)),
        ("max_tokens", json!(0)),
        ("logit_bias", json!([[1]])),
        ("samplers", json!(["top_k", "top_k"])),
        ("stream", json!("yes")),
        ("id_slot", json!(99)),
    ] {
        let error = asked.post("/completion", &greedy(json!({field: value}))).expect(400).error();
        assert_eq!(error, ("invalid_request_error".into(), json!(field)), "{value}");
    }
    let long = asked.post("/completion", &greedy(json!({"prompt": vec![1; 300]}))).expect(400);
    assert_eq!((long.error().0, &long.json()["error"]["n_ctx"]), ("exceed_context_size_error".into(), &json!(256)));
    for body in ["", "[]", "{", "\u{1f}"] {
        asked.ask(request(Method::POST, "/completion", "application/json", body)).expect(400);
    }
    let bytes = b"{\"prompt\": \"\xff\"}".to_vec();
    asked.ask(request(Method::POST, "/completion", "application/json", bytes)).expect(400);
    // A file without a template.
    asked.post("/v1/chat/completions", &json!({"messages": [{"role": "user", "content": "x"}]})).expect(501);
    let talking = talking();
    for messages in [json!([]), json!("hi"), json!([{"content": "x"}]), json!([{"role": "user", "content": 5}])] {
        let error = talking.post("/v1/chat/completions", &json!({"messages": messages})).expect(400).error();
        assert_eq!(error.1, "messages");
    }
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]);
    talking.post("/v1/chat/completions", &json!({"messages": image})).expect(501);
    let answer = asked.get("/completion").expect(405);
    assert_eq!(answer.headers[header::CONTENT_TYPE], "application/json");
}
