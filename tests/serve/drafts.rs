//! Drafts: answers are what they are without them, and what came of them is told.

use std::sync::atomic::AtomicBool;

use axum::body::Body;
use axum::http::{Method, Request};
use convert::{Conversion, FileType, Options};
use engine::DType;
use engine::gguf::Gguf;
use models::draft::{Drafters, Kind, NgramSizes, Parameters, Shared};
use models::scheduler::Rollback;
use models::{LoadOptions, Loaded};
use serde_json::{Value, json};
use serve::{Computing, Memory};

use crate::ask::{Answer, Asked, clip, computing, fixtures, form, options, request, speech};

const N_TOKENS: usize = 48;

/// A text model with weights in blocks of 32, whose logits are the same bits whoever else is in a step.
fn quantized(checkpoint: &str) -> Loaded {
    let options = |_| Options { bundle: true, ..Options::new(FileType::Q8_0) };
    let conversion = Conversion::open(&fixtures().join(checkpoint), options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle.gguf");
    conversion.write(std::slice::from_ref(&path), &AtomicBool::new(false)).unwrap();
    models::load(vec![Gguf::open(&path).unwrap()], LoadOptions::default()).unwrap()
}

/// One token that came before is enough for a guess of three: many are wrong.
fn drafting(kind: Kind) -> Computing {
    let sizes = NgramSizes { n: 1, m: 3, min_hits: 1 };
    let parameters =
        Parameters { kinds: vec![kind], map_k: sizes, suffix: sizes, adapts: false, ..Parameters::default() };
    Computing { drafters: Some(Drafters::new(parameters, Shared::default()).unwrap()), ..computing() }
}

/// A prompt of tokens that repeat.
fn prompt(i: u32) -> Value {
    json!((0..30).map(|at| 20 + (at % 5) * (i + 1) % 11).collect::<Vec<u32>>())
}

fn completion(i: u32, sampling: &Value) -> Request<Body> {
    // A prompt that is read from where a slot has it is read in other pieces, and its sums are in another order.
    let mut body = json!({"prompt": prompt(i), "n_predict": N_TOKENS, "ignore_eos": true, "return_tokens": true,
        "cache_prompt": false});
    sampling.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    request(Method::POST, "/completion", "application/json", body.to_string())
}

/// A counter of `/metrics`.
fn counter(asked: &Asked, name: &str) -> u64 {
    let text = asked.get("/metrics").expect(200).text().to_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("tympan:{name} ")));
    line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
}

/// Tokens of drafts that were right, by their place in the draft.
fn accepted_at(asked: &Asked) -> Vec<u64> {
    let text = asked.get("/metrics").expect(200).text().to_owned();
    let prefix = "tympan:spec_decode_num_accepted_tokens_per_pos_total{position=\"";
    let lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
    let numbers = lines.enumerate().map(|(i, line)| {
        let (position, n) = line.split_once("\"} ").unwrap();
        assert_eq!(position, i.to_string());
        n.parse().unwrap()
    });
    numbers.collect()
}

/// Tokens and rejected drafts of some answers.
fn told(answers: Vec<Answer>) -> (Vec<Value>, [u64; 2]) {
    let mut sums = [0; 2];
    let ids = answers.into_iter().map(|answer| {
        let json = answer.expect(200).json();
        let timings = &json["timings"];
        sums[0] += timings["draft_n"].as_u64().unwrap_or_default();
        sums[1] += timings["draft_n_accepted"].as_u64().unwrap_or_default();
        json["tokens"].clone()
    });
    (ids.collect(), sums)
}

/// Attention alone, and with every kind of recurrent state: greedy and drawn, one answer at a time and four at once.
#[test]
fn answers_are_those_without_drafts() {
    let options = || serve::Options { n_ctx: 256, n_slots: 4, ..options() };
    let mut n_accepted = 0;
    for (model, kind) in [
        ("golden/qwen3", Kind::Suffix),
        ("golden/lfm2", Kind::NgramMapK),
        ("golden/granitemoehybrid", Kind::Suffix),
        ("golden/qwen3_next", Kind::NgramMapK),
    ] {
        let loaded = quantized(model);
        let plain = Asked::open(&loaded, options());
        let drafting = Asked::with(&loaded, &drafting(kind), options());
        for sampling in [json!({"temperature": 0}), json!({"temperature": 0.7, "top_k": 4, "seed": 9})] {
            let ask = |i: u32| completion(i, &sampling);
            let (want, none) = told((0..6).map(|i| plain.ask(ask(i))).collect());
            assert_eq!(none, [0, 0], "no drafts were asked for");
            let (alone, one) = told((0..6).map(|i| drafting.ask(ask(i))).collect());
            let (together, many) = told(drafting.all((0..6).map(ask).collect()));
            assert_eq!(alone, want, "{model}, {sampling}");
            // Routers are in f32, whose sums are in another order where the prompts of others are read in the same call.
            let is_the_same_in_company = model != "golden/qwen3_next";
            assert!(together == want || !is_the_same_in_company, "{model}, {sampling}: {together:?} for {want:?}");
            for [verified, accepted] in [one, many] {
                assert!(verified >= 20 && accepted < verified, "{model}, {sampling}: {accepted} of {verified}");
            }
        }
        let accepted = counter(&drafting, "spec_decode_num_accepted_tokens_total");
        let verified = counter(&drafting, "spec_decode_num_draft_tokens_total");
        let drafts = counter(&drafting, "spec_decode_num_drafts_total");
        assert!(accepted < verified && (1..=verified).contains(&drafts), "{accepted} of {verified} in {drafts}");
        let at = accepted_at(&drafting);
        assert!(at.len() <= 3 && at.is_sorted_by(|a, b| a >= b) && at.iter().sum::<u64>() == accepted, "{at:?}");
        assert!(at.iter().all(|&n| n <= drafts), "{at:?} of {drafts}");
        n_accepted += accepted;
        let lines = drafting.lines.lock().unwrap();
        let of_lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let sum = |name: &str| of_lines.iter().filter_map(|line| line[name].as_u64()).sum::<u64>();
        assert_eq!((sum("draft_tokens"), sum("accepted_tokens")), (verified, accepted), "as the log has them");
        assert_eq!(counter(&plain, "spec_decode_num_drafts_total"), 0);
    }
    assert!(n_accepted > 0);
}

/// Where wrong guesses are followed by pauses, what drafters knew meanwhile is told and counted.
#[test]
fn what_drafts_would_have_had_right_is_told() {
    let loaded = quantized("golden/granitemoehybrid");
    let rollback = Rollback::Checkpoint { n_tries: 0 };
    let asked = Asked::with(&loaded, &Computing { rollback, ..drafting(Kind::NgramCache) }, options());
    let mut sums = [0; 2];
    // The same text again and again: what follows is known, but for where it is ambiguous.
    for _ in 0..6 {
        let timings = asked.ask(completion(1, &json!({"temperature": 0}))).expect(200).json()["timings"].clone();
        for (sum, name) in sums.iter_mut().zip(["draft_n_accepted", "draft_n_missed"]) {
            *sum += timings[name].as_u64().unwrap_or_default();
        }
    }
    let [accepted, missed] = sums;
    assert!(accepted > 0 && missed > 0, "{sums:?}");
    assert_eq!(counter(&asked, "spec_decode_num_missed_tokens_total"), missed);
    assert_eq!(accepted_at(&asked).iter().sum::<u64>(), accepted);
}

/// Audio is followed by text like any other.
#[test]
fn transcripts_are_those_without_drafts() {
    let plain = Asked::speech();
    let drafting = Asked::with(speech(), &drafting(Kind::Suffix), options());
    let mut n_drafts = 0;
    for name in ["long_9s.wav", "digits_short.wav", "yes.wav"] {
        let ask = || {
            let (content_type, body) = form(&[("response_format", "verbose_json")], Some(&clip(name)));
            request(Method::POST, "/v1/audio/transcriptions", &content_type, body)
        };
        let [want, got] = [&plain, &drafting].map(|asked| asked.ask(ask()).expect(200).json());
        assert_eq!(got["text"], want["text"], "{name}");
        assert_eq!(want["timings"]["draft_n"], Value::Null);
        n_drafts += got["timings"]["draft_n"].as_u64().unwrap_or_default();
    }
    assert!(n_drafts > 0);
    assert_eq!(counter(&drafting, "spec_decode_num_draft_tokens_total"), n_drafts);
}

/// What a server will need has the inputs that are kept of recurrent states: as many as memory gives them.
#[test]
fn memory_has_what_drafts_need() {
    let loaded = quantized("golden/granitemoehybrid");
    let options = serve::Options { n_ctx: 256, ..options() };
    let [plain, drafting] =
        [computing(), drafting(Kind::Suffix)].map(|computing| Memory::of(&loaded, &computing, &options).unwrap());
    assert_eq!((plain.rings, plain.draft_weights), (0, 0));
    assert_eq!(drafting.states - plain.states, drafting.rings);
    // Inputs of the convolution and steps, of three tokens in f32.
    let states = loaded.model.states();
    let layout = |n_pending| {
        let options =
            engine::state::StateOptions { n_slots: 1, n_ctx: 256, kv_dtype: DType::F16, n_pending, two_rows: false };
        states.layout(&options).unwrap().specs().iter().map(|spec| spec.bytes()).sum::<usize>()
    };
    assert_eq!(drafting.rings, layout(3) - layout(0));
    assert!(drafting.rings > 0);
}
