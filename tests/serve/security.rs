//! Who may ask, and what logs say.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, header};
use serde_json::{Value, json};

use crate::ask::{Answer, Asked, clip, form, options, request, speech};

fn ask_with(asked: &Asked, method: Method, path: &str, headers: &[(HeaderName, &str)]) -> Answer {
    let mut request = request(method, path, "application/json", "{}");
    for (name, value) in headers {
        request.headers_mut().insert(name.clone(), HeaderValue::from_str(value).unwrap());
    }
    asked.ask(request)
}

#[test]
fn names_and_pages_of_others_are_refused() {
    let asked = Asked::speech();
    for (_, path, _) in serve::endpoints() {
        let answer = ask_with(&asked, Method::GET, path, &[(header::HOST, "evil.example")]).expect(403);
        assert_eq!(answer.error().0, "permission_error");
        let origin = [(header::ORIGIN, "https://evil.example")];
        let answer = ask_with(&asked, Method::POST, path, &origin).expect(403);
        assert!(!answer.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
    }
    let answer = ask_with(&asked, Method::GET, "/health", &[(header::ORIGIN, "https://evil.example")]).expect(200);
    assert!(!answer.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
    ask_with(&asked, Method::OPTIONS, "/completion", &[(header::ORIGIN, "https://evil.example")]).expect(403);
    ask_with(&asked, Method::POST, "/tokenize", &[(header::ORIGIN, "http://localhost:8080")]).expect(400);
    let allowed = Asked::open(speech(), serve::Options { cors_origin: Some("http://app.lan".into()), ..options() });
    let answer = ask_with(&allowed, Method::OPTIONS, "/completion", &[(header::ORIGIN, "http://app.lan")]).expect(204);
    assert_eq!(answer.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "http://app.lan");
}

#[test]
fn with_a_key_everything_but_health_needs_it() {
    let asked = Asked::open(speech(), serve::Options { keys: vec!["secret".into()], ..options() });
    for (method, path, _) in serve::endpoints() {
        let method: Method = method.parse().unwrap();
        let path = path.replace("{id}", "0");
        let path = path.replace("{file}", "main.js");
        let is_open = path.ends_with("/health") || path == "/" || path.starts_with("/page/");
        for key in ["", "Bearer wrong", "Bearer secre", "Bearer secrett", "secret"] {
            let answer = ask_with(&asked, method.clone(), &path, &[(header::AUTHORIZATION, key)]);
            assert_eq!(answer.status == 401, !is_open, "{path} with {key:?}: {}", answer.status);
        }
        let answer = ask_with(&asked, method, &path, &[(header::AUTHORIZATION, "Bearer secret")]);
        assert_ne!(answer.status, 401, "{path}");
    }
    ask_with(&asked, Method::GET, "/nothing", &[]).expect(401);
}

#[test]
fn every_refusal_has_the_body_that_clients_read() {
    let asked = Asked::speech();
    for (method, path, what) in serve::endpoints() {
        let path = path.replace("{id}", "0").replace("{file}", "main.js");
        let has_both = serve::endpoints().filter(|(_, other, _)| *other == path).count() > 1;
        let wrong = if method == "GET" { Method::POST } else { Method::GET };
        if !has_both && path != "/slots" && path != "/props" && !path.starts_with("/slots/") {
            assert_eq!(ask_with(&asked, wrong, &path, &[]).expect(405).error().0, "invalid_request_error");
        }
        if what.is_empty() && method == "POST" {
            let answer = ask_with(&asked, Method::POST, &path, &[]);
            assert!(answer.status >= 400, "{path}");
            answer.error();
        }
    }
    assert_eq!(asked.get("/nothing").expect(404).error().0, "not_found_error");
    let answer = asked.post("/v1/embeddings", &json!({})).expect(501);
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("POST /v1/embeddings"));
}

#[test]
fn logs_and_slots_say_nothing_of_what_was_said() {
    let asked = Asked::speech();
    let (content_type, body) = form(&[("prompt", "Zanzibar")], Some(&clip("digits_eight.wav")));
    let mut one = request(Method::POST, "/v1/audio/transcriptions", &content_type, body);
    one.headers_mut().insert("x-request-id", HeaderValue::from_static("my-id.7"));
    let answer = asked.ask(one);
    assert_eq!(answer.headers["x-request-id"], "my-id.7");
    asked.post("/completion?x=Zanzibar", &json!({"prompt": "Zanzibar", "n_predict": 4})).expect(200);
    asked.ask(request(Method::GET, "/Zanzibar", "", Body::empty())).expect(404);
    let mut odd = request(Method::GET, "/health", "", Body::empty());
    odd.headers_mut().insert("x-request-id", HeaderValue::from_static("Zanzibar \"x\""));
    assert_ne!(asked.ask(odd).headers["x-request-id"], "Zanzibar \"x\"");
    let lines = asked.lines.lock().unwrap().clone();
    assert_eq!(lines.len(), 4);
    for line in &lines {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = line.to_string();
        assert!(!text.contains("Zanzibar") && !text.contains("three"), "{text}");
        assert!(line["ms"].as_f64().unwrap() >= 0.0 && line["status"].is_u64());
    }
    let first: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!((&first["id"], &first["outcome"], &first["audio_s"]), (&json!("my-id.7"), &json!("done"), &json!(2.77)));
    assert!(first["generated_tokens"].as_u64().unwrap() > 8);
}
