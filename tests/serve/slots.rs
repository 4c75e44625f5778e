//! Slots keep the sequence of their last request, for prompts that begin as it did.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::ask::{Asked, loaded, options};

/// Hybrid, with a template.
fn talking(options: serve::Options) -> Asked {
    Asked::open(&loaded("models/tiny-lfm2-audio"), options)
}

/// Tokens of a reply's prompt, those of them that were in memory, and what was said.
fn turn(asked: &Asked, messages: &[Value], more: &Value) -> (u64, u64, String) {
    let mut body = json!({"messages": messages, "max_tokens": 6, "temperature": 0, "ignore_eos": true});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let reply = asked.post("/v1/chat/completions", &body).expect(200).json();
    let (usage, timings) = (&reply["usage"], &reply["timings"]);
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert_eq!((timings["cache_n"].as_u64(), timings["prompt_n"].as_u64()), (Some(cached), Some(prompt - cached)));
    (prompt, cached, reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned())
}

fn n_tokens(asked: &Asked, messages: &[Value], more: &Value) -> u64 {
    let mut body = json!({"messages": messages, "add_generation_prompt": false});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let text = asked.post("/apply-template", &body).expect(200).json()["prompt"].clone();
    asked.post("/tokenize", &json!({"content": text})).expect(200).json()["tokens"].as_array().unwrap().len() as u64
}

#[test]
fn a_conversation_is_read_from_where_it_parts() {
    let asked = talking(options());
    let plain = talking(serve::Options { keeps_prompts: false, ..options() });
    let none = json!({});
    let mut messages = vec![json!({"role": "system", "content": "Be brief and kind to whoever asks."})];
    for i in 0..8 {
        messages.push(json!({"role": "user", "content": format!("What is {i} and {i}?")}));
        let (n_prompt, cached, said) = turn(&asked, &messages, &none);
        let (n_plain, nothing, want) = turn(&plain, &messages, &none);
        assert_eq!((n_prompt, nothing, &said), (n_plain, 0, &want), "turn {i}");
        if i > 0 {
            // All but the last message, which is new, and what the template puts around it.
            let before = n_tokens(&asked, &messages[..messages.len() - 2], &none);
            assert!(cached >= before, "turn {i}: {cached} of {n_prompt}, {before} were there");
        }
        messages.push(json!({"role": "assistant", "content": said}));
    }
    messages.push(json!({"role": "user", "content": "And the first one again?"}));
    messages[1] = json!({"role": "user", "content": "What is nothing at all?"});
    let system = n_tokens(&asked, &messages[..1], &none);
    let (n_prompt, cached, said) = turn(&asked, &messages, &none);
    assert!(cached >= system && cached < n_prompt / 2, "{cached} of {n_prompt}, {system} are the system's");
    assert_eq!(said, turn(&plain, &messages, &none).2);
    let slots = asked.get("/slots").expect(200).json();
    let slot = slots.as_array().unwrap().iter().find(|slot| slot["n_kept"] != 0).unwrap();
    assert_eq!((&slot["prompt"]["n_reused"], &slot["is_processing"]), (&json!(cached), &json!(false)));
    assert!(slot["prompt"]["why"].as_str().unwrap().contains("checkpoint"), "{slot}");
    assert!(slot["checkpoints"].as_array().unwrap().iter().any(|at| at == cached), "{slot}");
    // The same once more: nothing but the beginning of the answer is read.
    let (n_prompt, cached, again) = turn(&asked, &messages, &none);
    assert!(n_prompt - cached < 8 && again == said, "{cached} of {n_prompt}");
    let metrics = asked.get("/metrics").expect(200);
    let value = |name: &str| {
        let line = metrics.text().lines().find(|line| line.starts_with(&format!("tympan:{name} "))).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(value("prompt_tokens_reused_total") > 100.0 && value("ckpt_restored_total") >= 2.0);
    assert!(value("ckpt_bytes") > 0.0);
}

#[test]
fn slots_are_chosen_and_left_alone_as_asked() {
    let asked = talking(options());
    let prompt = "one two three four five six seven eight nine ten ".repeat(8);
    let ask = |more: Value| {
        let mut body = json!({"prompt": prompt, "n_predict": 4, "temperature": 0, "ignore_eos": true});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        let reply = asked.post("/completion", &body).expect(200).json();
        (reply["id_slot"].as_u64().unwrap(), reply["timings"]["cache_n"].as_u64().unwrap(), reply["content"].clone())
    };
    let (slot, cached, said) = ask(json!({"id_slot": 2}));
    assert_eq!((slot, cached), (2, 0));
    // A longer prompt goes where its beginning is.
    let longer = ask(json!({"prompt": format!("{prompt}eleven")}));
    assert!(longer.0 == 2 && longer.1 > 50, "{longer:?}");
    // Another one goes where nothing is.
    assert_eq!(ask(json!({"prompt": "please turn the light off"})).0, 0);
    // Who wants another slot gets it, and who wants nothing of the kind neither uses nor leaves anything.
    assert_eq!(ask(json!({"id_slot": 3})), (3, 0, said.clone()));
    assert_eq!(ask(json!({"id_slot": 3, "cache_prompt": false})), (3, 0, said.clone()));
    assert_eq!(asked.get("/slots").json()[3]["n_kept"], 0);
    let error = asked.post("/completion", &json!({"prompt": prompt, "id_slot": 1, "n": 2})).expect(400).error();
    assert_eq!(error.1, "id_slot");
    // Any number of prompts at once in one slot, one after the other.
    let body = json!({"prompt": vec![&prompt; 5], "n_predict": 4, "temperature": 0, "ignore_eos": true, "id_slot": 1});
    let all = asked.post("/completion", &body).expect(200).json();
    assert!(all.as_array().unwrap().iter().all(|one| one["content"] == said && one["id_slot"] == 1), "{all}");
}

#[test]
fn slots_are_saved_and_restored_in_one_directory() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let with = || serve::Options { slot_save_path: Some(folder.path().to_owned()), ..options() };
    let asked = talking(with());
    let act = |asked: &Asked, slot: usize, action: &str, name: &str, status: u16| {
        asked.post(&format!("/slots/{slot}?action={action}"), &json!({"filename": name})).expect(status)
    };
    let body = json!({"prompt": "one two three four five six", "n_predict": 4, "temperature": 0, "ignore_eos": true,
        "id_slot": 1, "return_tokens": true});
    let said = asked.post("/completion", &body).expect(200).json()["tokens"].clone();
    let saved = act(&asked, 1, "save", "talk.bin", 200).json();
    let n_saved = saved["n_saved"].as_u64().unwrap();
    assert!(n_saved > 6 && saved["timings"]["save_ms"].as_f64().unwrap() >= 0.0, "{saved}");
    assert_eq!(saved["n_written"].as_u64(), Some(std::fs::metadata(at("talk.bin")).unwrap().len()));
    assert_eq!(act(&asked, 1, "erase", "", 200).json()["n_erased"], n_saved);
    assert_eq!(act(&asked, 1, "erase", "", 200).json()["n_erased"], 0);
    assert_eq!(act(&asked, 1, "save", "none.bin", 400).error().1, "id_slot");

    // Another server goes on with it.
    let other = talking(with());
    let restored = act(&other, 0, "restore", "talk.bin", 200).json();
    assert_eq!((&restored["n_restored"], &restored["n_read"]), (&json!(n_saved), &saved["n_written"]));
    let mut longer = body.clone();
    longer["prompt"] = json!([body["prompt"], said[0], said[1], said[2], said[3], " seven"]);
    longer["id_slot"] = json!(0);
    let reply = other.post("/completion", &longer).expect(200).json();
    assert_eq!(reply["timings"]["cache_n"], n_saved, "{reply}");

    // What is no such file changes nothing, and no name leads out of the directory.
    let bytes = std::fs::read(at("talk.bin")).unwrap();
    std::fs::write(at("cut.bin"), &bytes[..bytes.len() / 2]).unwrap();
    let mut flipped = bytes.clone();
    flipped[40] ^= 1;
    std::fs::write(at("flipped.bin"), &flipped).unwrap();
    std::fs::write(at("empty.bin"), b"").unwrap();
    let large = std::fs::File::create(at("large.bin")).unwrap();
    large.set_len(1 << 33).unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    let kept = other.get("/slots").json()[0]["n_kept"].clone();
    for name in ["cut.bin", "flipped.bin", "empty.bin", "large.bin"] {
        assert_eq!(act(&other, 0, "restore", name, 400).error().1, "filename", "{name}");
    }
    assert_eq!(other.get("/slots").json()[0]["n_kept"], kept);
    for name in ["missing.bin", "folder"] {
        act(&other, 0, "restore", name, 404);
    }
    for name in ["", ".", "..", "../talk.bin", "/etc/passwd", "a/b", ".hidden", "a\u{0}b", "ä", &"x".repeat(300)] {
        assert_eq!(act(&other, 0, "restore", name, 400).error().1, "filename", "{name:?}");
        assert_eq!(act(&other, 0, "save", name, 400).error().1, "filename", "{name:?}");
    }
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["cut.bin", "empty.bin", "flipped.bin", "folder", "large.bin", "talk.bin"]);
    assert_eq!(act(&other, 0, "burn", "x", 400).error().1, "action");
    for slot in ["99", "-1", "x"] {
        asked.post(&format!("/slots/{slot}?action=erase"), &json!({})).expect(404);
    }
    // Of another model.
    let text = Asked::open(&loaded("golden/qwen3"), serve::Options { n_ctx: 256, ..with() });
    act(&text, 0, "restore", "talk.bin", 400);
    // Nothing of it without a directory.
    act(&talking(options()), 0, "save", "x", 501);
}

#[test]
fn what_slots_keep_makes_room_for_those_that_run() {
    let model = loaded("models/tiny-lfm2-audio");
    let states = serve::Memory::of(&model, &crate::ask::computing(), &options()).unwrap().states;
    // One sequence of the whole context, or some short ones.
    let asked = Asked::open(&model, serve::Options { max_state_bytes: Some(states), ..options() });
    let ask = |prompt: &str, n: usize| {
        let body = json!({"prompt": prompt, "n_predict": n, "temperature": 0, "ignore_eos": true});
        asked.post("/completion", &body).expect(200).json()
    };
    for prompt in ["one two", "three four", "five six"] {
        ask(prompt, 2);
    }
    let kept = || {
        let slots = asked.get("/slots").expect(200).json();
        slots.as_array().unwrap().iter().filter(|slot| slot["n_kept"] != 0).count()
    };
    assert_eq!(kept(), 3);
    let body = json!({"prompt": "seven", "n_predict": -1, "t_max_predict_ms": 1, "ignore_eos": true});
    asked.post("/completion", &body).expect(200);
    assert_eq!(kept(), 1, "all others made room");
}
