//! Chat templates against transformers, and what is refused.

use std::path::Path;

use models::chat::{Content, DateTime, Message, Rendering, SpecialTokens, Template, Value};
use serde_json::Value as Json;

use crate::checkpoint::fixture;
use crate::tokenizer::llama_cpp_folder;

/// 2026-11-30 09:05:07, the clock of `make.py`.
const NOW: i64 = 1_796_029_507;

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::None,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(n) => n.as_i64().map_or_else(|| Value::Float(n.as_f64().unwrap()), Value::Integer),
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(list) => Value::List(list.iter().map(value).collect()),
        Json::Object(map) => Value::Map(map.iter().map(|(name, v)| (name.clone(), value(v))).collect()),
    }
}

fn message(json: &Json) -> Message {
    let content = match &json["content"] {
        Json::Null => Content::None,
        Json::String(text) => Content::Text(text.clone()),
        Json::Array(parts) => Content::Parts(parts.iter().map(value).collect()),
        other => panic!("{other}"),
    };
    let others = json.as_object().unwrap().iter().filter(|(name, _)| !matches!(&***name, "role" | "content"));
    let more = others.map(|(name, v)| (name.clone(), value(v))).collect();
    Message { role: json["role"].as_str().unwrap().into(), content, more }
}

fn tokens() -> SpecialTokens {
    SpecialTokens { bos: Some("<s>".into()), eos: Some("</s>".into()), padding: None }
}

/// Messages of Python itself, which has others than we have.
const OF_PYTHON: [&str; 2] = ["can only concatenate str", "has no attribute"];

fn check(folder: &Path, renderings: &str, at_least: usize) {
    let cases: Json = serde_json::from_slice(&std::fs::read(fixture("templates").join(renderings)).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= at_least);
    let mut wrong = Vec::new();
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let source = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
        let template = Template::new(&source, tokens()).unwrap();
        let messages: Vec<Message> = case["messages"].as_array().unwrap().iter().map(message).collect();
        let variables = case["variables"].as_object().unwrap();
        let variables: Vec<(String, Value)> = variables.iter().map(|(name, v)| (name.clone(), value(v))).collect();
        let rendering = Rendering {
            add_generation_prompt: case["prompt"].as_bool().unwrap(),
            now: DateTime::from_unix(NOW),
            variables: &variables,
        };
        let got = template.render(&messages, &rendering).map_err(|e| e.to_string());
        let is_right = match (case["rendered"].as_str(), case["error"].as_str()) {
            (Some(want), _) => got.as_deref() == Ok(want),
            (None, Some(want)) => got.as_ref().is_err_and(|message| {
                OF_PYTHON.iter().any(|part| want.contains(part)) || *message == format!("chat template: {want}")
            }),
            (None, None) => panic!("{case}"),
        };
        if !is_right {
            wrong.push(format!("{name}, {}: want {case}\ngot {got:?}", case["name"]));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn templates_of_our_own_are_written_as_transformers_does() {
    check(&fixture("templates"), "own.json", 120);
}

#[test]
fn templates_of_llama_cpp_are_written_as_transformers_does() {
    let Some(folder) = llama_cpp_folder() else { return };
    check(&folder.join("models/templates"), "published.json", 140);
}

/// Another crate of this program makes serde_json keep numbers as texts. Values of templates do not go through serde.
#[test]
fn a_template_adds_one_to_a_number_that_json_had() {
    let json: Json = serde_json::from_str(r#"{"n": 41, "x": 0.5}"#).unwrap();
    let template = Template::new("{{ v.n + 1 }} {{ v.x + 1 }} {{ [v.n, v.x] | tojson }}", tokens()).unwrap();
    let variables = [("v".to_owned(), value(&json))];
    let rendering = Rendering { add_generation_prompt: true, now: DateTime::from_unix(NOW), variables: &variables };
    assert_eq!(template.render(&[], &rendering).unwrap(), "42 1.5 [41, 0.5]");
}

#[test]
fn messages_are_texts_or_parts_as_the_template_wants() {
    let written = |name: &str| {
        let source = std::fs::read_to_string(fixture("templates").join(format!("{name}.jinja"))).unwrap();
        let template = Template::new(&source, tokens()).unwrap();
        let messages = [template.message("system", "Be brief."), template.message("user", "Hi")];
        let rendering = Rendering { add_generation_prompt: false, now: DateTime::from_unix(NOW), variables: &[] };
        template.render(&messages, &rendering).unwrap()
    };
    assert_eq!(written("parts"), "[SYSTEM] Be brief.\n[USER] Hi");
    assert_eq!(written("thinking"), "S: Be brief.\nU: Hi\n");
}

#[test]
fn templates_that_make_no_sense_are_errors_in_one_line() {
    let rendering = Rendering { add_generation_prompt: true, now: DateTime::from_unix(NOW), variables: &[] };
    for (source, want) in [
        ("{% if %}", "line 1: syntax error"),
        ("a\n{% nonsense %}", "line 2: "),
        ("{{ messages[0].content.nothing.more }}", "line 1: undefined value"),
        ("{{ raise_exception('no\n\nway') }}", "no\n\nway"),
        ("{{ messages | unheard_of }}", "unknown filter"),
        ("{{ [1] | tojson(indent=99) }}", "want an indentation of at most 16"),
        ("{{ [1] | tojson(separators=['a']) }}", "want two separators"),
        ("{% for a in range(100000) %}{% for b in range(100000) %}{{ a }}{% endfor %}{% endfor %}", "fuel"),
        ("{% set x = 'a' * 50000000 %}{{ x }}{{ x }}", "prints more than"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", ""),
    ] {
        let template = Template::new(source, tokens());
        let result = template.and_then(|template| {
            let message = template.message("user", "a");
            template.render(&[message], &rendering)
        });
        let message = result.expect_err(source).to_string();
        assert!(message.starts_with("chat template: ") && message.contains(want), "{source}: {message}");
    }
}
