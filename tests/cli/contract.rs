//! The command line's contract: formats, exit codes, inputs, refusals.

use std::path::Path;

use serde_json::{Value, json};

use crate::run::{Run, clip, command, fixtures, tympan, tympan_with_input};

/// Text of `open_door.wav`.
const OPEN_DOOR: &str = "please open the door";

fn transcribe(args: &[&str], inputs: &[&Path]) -> crate::run::Run {
    let mut all: Vec<std::ffi::OsString> = vec!["transcribe".into()];
    all.extend(args.iter().map(Into::into));
    all.extend(inputs.iter().map(|p| p.as_os_str().to_owned()));
    tympan(all)
}

#[test]
fn standard_output_is_the_text_and_nothing_else() {
    let run = transcribe(&[], &[&clip("open_door.wav")]).expect(0);
    assert_eq!(run.out, format!("{OPEN_DOOR}\n"));
    let lines: Vec<&str> = run.err.lines().collect();
    assert!(lines[0].contains("built-in demonstration model") && lines[0].contains("-m MODEL.gguf"), "{}", run.err);
    assert!(lines[1].starts_with("audio 1.9 s | load ") && lines[1].contains("| RTF "), "{}", run.err);
    assert_eq!(lines.len(), 2, "{}", run.err);
    let quiet = transcribe(&["-q"], &[&clip("open_door.wav")]).expect(0);
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), (run.out.as_str(), ""));
}

#[test]
fn json_has_every_field_of_the_contract() {
    let run = transcribe(&["-f", "json"], &[&clip("open_door.wav")]).expect(0);
    let document: Value = serde_json::from_str(&run.out).unwrap();
    let schema = json!({
        "file": "string", "duration": "number", "language": "string", "text": "string",
        "segments": [{"id": "number", "start": "number", "end": "number", "timing": "string", "text": "string", "language": "string",
                      "truncated": "boolean", "guard": "null", "suspect": "null", "cut": "string", "token_ids": "null"}],
        "words": "null", "truncated": "boolean", "damaged": [], "skipped": [], "track": "null",
        "model": {"architecture": "string", "file": "string", "dtype": "string"}, "device": "string", "threads": "number",
        "timings": {"load_ms": "number", "decode_audio_ms": "number", "resample_ms": "number", "mel_ms": "number",
                    "encode_ms": "number", "prefill_ms": "number", "decode_ms": "number", "total_ms": "number",
                    "audio_tokens": "number", "prompt_tokens": "number", "generated_tokens": "number", "rtf": "number",
                    "peak_rss_bytes": if cfg!(target_os = "linux") { "number" } else { "null" }},
    });
    assert_eq!(types(&document), schema);
    assert_eq!(document["text"], OPEN_DOOR);
    assert_eq!(document["segments"][0]["end"], document["duration"]);
    assert_eq!(document["model"]["architecture"], "qwen3-asr");
    assert_eq!(document["model"]["dtype"], "BF16");
    assert_eq!(document["timings"]["audio_tokens"], 25);
}

#[test]
fn segments_say_why_they_end() {
    let run = transcribe(&["-f", "json", "--segment", "8"], &[&clip("long_24s.wav")]).expect(0);
    let document: Value = serde_json::from_str(&run.out).unwrap();
    let cuts: Vec<&str> = document["segments"].as_array().unwrap().iter().map(|s| s["cut"].as_str().unwrap()).collect();
    let (last, before) = cuts.split_last().unwrap();
    assert!(*last == "end" && before.len() > 1 && before.iter().all(|cut| *cut == "quiet"), "{cuts:?}");
}

#[test]
fn graph_reuse_is_switched_by_flag_and_environment() {
    let run = |flag: &[&str], variables: &[(&str, &str)]| -> Run {
        let clip = clip("open_door.wav");
        let mut all = vec!["transcribe", "--timings"];
        all.extend(flag);
        all.push(clip.to_str().unwrap());
        command(&all).envs(variables.iter().copied()).output().unwrap().into()
    };
    let reused = |run: &Run| run.err.contains("graphs built (first 1") && !run.err.contains(", 0 reused");
    let on = run(&[], &[]).expect(0);
    assert!(reused(&on) && !on.err.contains("reuse off"), "{}", on.err);
    for (flag, variables) in [(&["--graph-reuse", "off"][..], &[][..]), (&[], &[("TYMPAN_GRAPH_REUSE", "off")])] {
        let off = run(flag, variables).expect(0);
        assert!(off.err.contains("(reuse off ") && off.err.contains(", 0 reused"), "{}", off.err);
        assert_eq!(off.out, on.out);
    }
    let both = run(&["--graph-reuse", "on"], &[("TYMPAN_GRAPH_REUSE", "off"), ("TYMPAN_GRAPH_VERIFY", "0")]).expect(0);
    assert!(reused(&both), "{}", both.err);
    run(&["--graph-reuse", "maybe"], &[]).expect(2);
    for (name, value) in [("TYMPAN_GRAPH_REUSE", "yes"), ("TYMPAN_GRAPH_VERIFY", "true")] {
        let bad = run(&[], &[(name, value)]).expect(2);
        assert!(bad.err.contains(name) && bad.err.contains(value), "{}", bad.err);
    }
}

/// The document with the name of its type in place of every value, keys in their order.
fn types(value: &Value) -> Value {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "boolean".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(items) => items.iter().map(types).collect(),
        Value::Object(fields) => Value::Object(fields.iter().map(|(k, v)| (k.clone(), types(v))).collect()),
    }
}

#[test]
fn files_and_formats_go_to_the_output_directory() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/out");
    let inputs = [clip("open_door.wav"), clip("yes.wav")];
    let run = transcribe(
        &["-q", "-f", "txt,json,jsonl,srt,vtt,csv,lrc,tsv", "-o", out.to_str().unwrap()],
        &[&inputs[0], &inputs[1]],
    );
    assert_eq!(run.expect(0).out, "");
    let mut names: Vec<String> =
        std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let want = ["open_door", "yes"]
        .map(|stem| ["csv", "json", "jsonl", "lrc", "srt", "tsv", "txt", "vtt"].map(|e| format!("{stem}.{e}")));
    assert_eq!(names, want.concat());
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    assert_eq!(read("open_door.txt"), format!("{OPEN_DOOR}\n"));
    let srt = read("open_door.srt");
    let [number, times, text, "", ""] = srt.split('\n').collect::<Vec<_>>()[..] else { panic!("one cue: {srt}") };
    assert_eq!((number, text), ("1", OPEN_DOOR));
    let vtt = read("open_door.vtt");
    let (head, body) = vtt.split_once("\n\n00:").unwrap();
    assert!(head.starts_with("WEBVTT\n\nNOTE ") && head.contains("estimated"), "{vtt}");
    assert_eq!(format!("00:{body}"), format!("{}\n{OPEN_DOOR}\n\n", times.replace(',', ".")));
}

#[test]
fn standard_input_is_an_input() {
    let run = tympan_with_input(["transcribe", "-q", "-"], &clip("open_door.wav")).expect(0);
    assert_eq!(run.out, format!("{OPEN_DOOR}\n"));
}

#[test]
fn a_directory_stands_for_its_audio_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("b")).unwrap();
    std::fs::copy(clip("yes.wav"), dir.path().join("b/second.WAV")).unwrap();
    std::fs::copy(clip("open_door.wav"), dir.path().join("a.wav")).unwrap();
    std::fs::write(dir.path().join("notes.txt"), "not audio").unwrap();
    let run = transcribe(&[], &[dir.path()]).expect(0);
    assert_eq!(run.out, format!("{OPEN_DOOR}\nyes\n"));
    assert!(run.err.contains("1 skipped: 1 not a recording"), "{}", run.err);
}

#[test]
fn a_failing_input_does_not_stop_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.wav");
    std::fs::write(&bad, "this is not audio").unwrap();
    let run = transcribe(&[], &[&bad, &clip("open_door.wav")]).expect(1);
    assert_eq!(run.out, format!("{OPEN_DOOR}\n"));
    assert_eq!(run.err.lines().filter(|l| l.starts_with("error: ") && l.contains("bad.wav")).count(), 1, "{}", run.err);
    let alone = transcribe(&[], &[&bad]).expect(3);
    assert_eq!(alone.out, "");
    let missing = dir.path().join("missing.wav");
    let both = transcribe(&[], &[&bad, &missing]).expect(3);
    assert!(both.err.contains("bad.wav") && both.err.contains("missing.wav: no such file"), "{}", both.err);
}

#[test]
fn a_text_cut_at_the_limit_is_said() {
    let run = transcribe(&["-f", "json", "--max-tokens", "5", "--token-ids"], &[&clip("speech_to_text.wav")]).expect(6);
    let document: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(document["truncated"], true);
    assert_eq!(document["segments"][0]["truncated"], true);
    assert_eq!(document["segments"][0]["token_ids"].as_array().unwrap().len(), 5);
    assert!(run.err.contains("--max-tokens"), "{}", run.err);
}

#[test]
fn long_audio_is_cut_and_keeps_its_offsets() {
    let run = transcribe(&["-q", "-f", "json", "--segment", "8"], &[&clip("long_24s.wav")]).expect(0);
    let document: Value = serde_json::from_str(&run.out).unwrap();
    let segments = document["segments"].as_array().unwrap();
    assert!(segments.len() >= 2, "{document}");
    for (i, pair) in segments.windows(2).enumerate() {
        assert_eq!(pair[0]["end"], pair[1]["start"], "segment {i}");
    }
    assert_eq!(segments[0]["start"], 0.0);
    assert_eq!(segments.last().unwrap()["end"], document["duration"]);
    let joined: Vec<&str> = segments.iter().map(|s| s["text"].as_str().unwrap()).filter(|t| !t.is_empty()).collect();
    assert_eq!(document["text"], joined.join(" "));
}

#[test]
fn segments_are_at_least_half_as_long_as_asked() {
    for seconds in ["2", "2.5", "5"] {
        let run = transcribe(&["-q", "-f", "json", "--segment", seconds], &[&clip("long_9s.wav")]).expect(0);
        let document: Value = serde_json::from_str(&run.out).unwrap();
        let segments = document["segments"].as_array().unwrap();
        assert!(segments.len() >= 2, "{document}");
        let asked: f64 = seconds.parse().unwrap();
        for segment in &segments[..segments.len() - 1] {
            let length = segment["end"].as_f64().unwrap() - segment["start"].as_f64().unwrap();
            // Times have three decimals.
            assert!(length >= asked / 2.0 - 0.001 && length <= asked * 1.5 + 0.001, "{seconds}: {segment}");
        }
    }
}

#[test]
fn a_segment_is_0_or_2_to_3600_seconds() {
    for seconds in ["1", "1.99", "0.001", "-2", "-0.5", "3601", "1e9", "inf", "nan", "8s", ""] {
        let run = transcribe(&["--segment", seconds], &[&clip("yes.wav")]).expect(2);
        let wants = run.err.contains("--segment") && run.err.contains("want 0 (never cut) or 2 to 3600 seconds");
        assert!(run.out.is_empty() && wants, "{seconds}: {}", run.err);
    }
    for seconds in ["0", "2", "3600"] {
        assert_eq!(transcribe(&["-q", "--segment", seconds], &[&clip("yes.wav")]).expect(0).out, "yes\n", "{seconds}");
    }
}

#[test]
fn a_forced_language_is_the_answer_s_language() {
    for name in ["English", "english", "en", "eng", "en-US", "en_GB"] {
        let run = transcribe(&["-q", "-f", "json", "--language", name], &[&clip("open_door.wav")]).expect(0);
        let document: Value = serde_json::from_str(&run.out).unwrap();
        assert_eq!((&document["language"], &document["text"]), (&json!("English"), &json!(OPEN_DOOR)), "{name}");
    }
}

#[test]
fn dump_holds_what_the_first_token_is_computed_from() {
    let dir = tempfile::tempdir().unwrap();
    transcribe(&["-q", "--dump", dir.path().to_str().unwrap()], &[&clip("open_door.wav")]).expect(0);
    let bytes = std::fs::read(dir.path().join("open_door.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("mel"), [128, 191]);
    assert_eq!(shape("audio_embeddings"), [25, 256]);
    assert_eq!(shape("prompt_ids"), [40]);
    assert_eq!(shape("first_logits"), [768]);
    let ids: Vec<i32> = tensors
        .tensor("prompt_ids")
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|b| i32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert_eq!(ids.iter().filter(|&&id| id == -1).count(), 25);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let door = clip("open_door.wav");
    for (args, says) in [
        (&["--language", "Klingon"][..], "Klingon"),
        (&["--language", "Englisch"], "English"),
        (&["-f", "xml"], "xml"),
        (&["-f", "text,json"], "--output"),
        (&["--segment", "-1"], "--segment"),
        (&["--segment", "nan"], "--segment"),
        (&["--max-tokens", "0"], "--max-tokens"),
        (&["-t", "0"], "--threads"),
        (&["--kv-type", "q8_0"], "--kv-type"),
        (&["--audio-attention", "sliding"], "--audio-attention"),
        (&["--device", "tpu"], "tpu"),
        (&["--timestamps", "none", "-f", "srt"], "srt"),
        (&["--timestamps", "none", "-f", "csv"], "csv"),
        (&["-f", "srt", "--max-line", "9"], "10..=500"),
        (&["-f", "srt", "--max-lines", "0"], "1..=10"),
        (&["-f", "vtt", "--max-cue", "0.5"], "1 to 600"),
        (&["-f", "vtt", "--max-cue", "-7"], "1 to 600"),
        (&["-f", "vtt", "--max-cue", "nan"], "1 to 600"),
        (&["--max-line", "42"], "--max-line: text and json have no cues"),
        (&["-f", "json", "--max-lines", "2"], "--max-lines"),
        (&["-f", "jsonl", "--max-cue", "7"], "--max-cue"),
        (&["-q", "-v"], "--verbose"),
        (&["--no-such-flag"], "--no-such-flag"),
    ] {
        let run = transcribe(args, &[&door]).expect(2);
        assert!(run.out.is_empty() && run.err.contains(says), "{args:?}: {}", run.err);
    }
    tympan(["transcribe"]).expect(2);
    tympan(["transscribe"]).expect(2);
    tympan(["--help"]).expect(0);
}

/// The small trained checkpoint of LFM2-Audio.
fn lfm2_audio() -> String {
    fixtures().join("models/tiny-lfm2-audio").to_str().unwrap().to_owned()
}

#[test]
fn lfm2_audio_is_asked_in_its_languages() {
    let model = lfm2_audio();
    for (args, language) in [
        (&[][..], Value::Null),
        (&["--language", "auto"], Value::Null),
        (&["--language", "English"], json!("English")),
        (&["--language", "ja"], json!("Japanese")),
    ] {
        let options = ["-q", "-f", "json", "--token-ids", "-m", &model];
        let run = transcribe(&[&options[..], args].concat(), &[&clip("open_door.wav")]).expect(0);
        let document: Value = serde_json::from_str(&run.out).unwrap();
        assert_eq!(document["language"], language, "{args:?}");
        assert_eq!(document["model"]["architecture"], "lfm2-audio");
        // 24 audio vectors, 12 ids before and 5 after; the Japanese prompt is longer.
        let n_prompt = document["timings"]["prompt_tokens"].as_u64().unwrap();
        assert_eq!(n_prompt > 41, language == "Japanese", "{n_prompt}");
        if language != "Japanese" {
            assert_eq!((n_prompt, &document["text"]), (41, &json!(OPEN_DOOR)));
            assert_eq!(document["segments"][0]["token_ids"], json!([739, 817, 400, 712, 7]));
        }
    }
}

#[test]
fn what_lfm2_audio_has_no_prompt_for_is_refused() {
    let model = lfm2_audio();
    for (args, says) in [
        (&["--language", "German"][..], &["German", "English en, Japanese ja"][..]),
        (&["--language", "Japanse"], &["did you mean Japanese"]),
        (&["--context", "PostgreSQL"], &["--context", "lfm2-audio", "--language"]),
        (&["--audio-attention", "full"], &["--audio-attention", "lfm2-audio", "qwen3-asr"]),
        (&["--audio-attention", "windowed"], &["--audio-attention", "lfm2-audio"]),
    ] {
        let run = transcribe(&[&["-m", &model], args].concat(), &[&clip("open_door.wav")]).expect(2);
        assert!(run.out.is_empty() && says.iter().all(|s| run.err.contains(s)), "{args:?}: {}", run.err);
    }
}

/// A copy of a small trained checkpoint that states no segment length of its own.
fn without_a_length(checkpoint: &str, folder: &Path) -> String {
    let copy = folder.join(checkpoint);
    std::fs::create_dir(&copy).unwrap();
    let mut n_removed = 0;
    for entry in std::fs::read_dir(fixtures().join("models").join(checkpoint)).unwrap().map(|e| e.unwrap().path()) {
        let to = copy.join(entry.file_name().unwrap());
        if ["preprocessor_config.json", "config.json"].iter().any(|name| entry.ends_with(name)) {
            let mut content: Value = serde_json::from_slice(&std::fs::read(&entry).unwrap()).unwrap();
            n_removed += usize::from(content.as_object_mut().unwrap().remove("segment_seconds").is_some());
            std::fs::write(to, content.to_string()).unwrap();
        } else if entry.is_file() {
            std::fs::copy(&entry, to).unwrap();
        }
    }
    assert_eq!(n_removed, 1);
    copy.to_str().unwrap().to_owned()
}

#[test]
fn long_audio_is_cut_at_the_model_s_own_length_else_at_that_of_its_kind() {
    // 24.4 s four times over: cut once after about 60 s, or three times after about 30 s each.
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("long.wav");
    let mut wav = std::fs::read(clip("long_24s.wav")).unwrap();
    let data = wav.windows(4).position(|w| w == b"data").unwrap() + 8;
    let samples = wav[data..].to_vec();
    for _ in 0..3 {
        wav.extend_from_slice(&samples);
    }
    let n_bytes = u32::try_from(wav.len() - data).unwrap();
    wav[data - 4..data].copy_from_slice(&n_bytes.to_le_bytes());
    let n_riff = u32::try_from(wav.len() - 8).unwrap();
    wav[4..8].copy_from_slice(&n_riff.to_le_bytes());
    std::fs::write(&long, wav).unwrap();
    let [qwen3_asr, of_lfm2_audio] =
        ["tiny-qwen3-asr", "tiny-lfm2-audio"].map(|checkpoint| without_a_length(checkpoint, dir.path()));
    for (model, length, off, n) in [
        (Some(qwen3_asr), 60.0, 5.0, 2..=2),
        (Some(of_lfm2_audio), 30.0, 5.0, 4..=4),
        (None, 8.0, 4.0, 8..=24),
        (Some(lfm2_audio()), 8.0, 4.0, 8..=24),
    ] {
        let mut options = vec!["-q", "-f", "json", "--max-tokens", "1"];
        options.extend(model.iter().flat_map(|m| ["-m", m]));
        let document: Value = serde_json::from_str(&transcribe(&options, &[&long]).out).unwrap();
        let segments = document["segments"].as_array().unwrap();
        assert!(n.contains(&segments.len()), "{document}");
        let mut start = 0.0;
        for segment in &segments[..segments.len() - 1] {
            let end = segment["end"].as_f64().unwrap();
            assert!((end - start - length).abs() <= off + 0.001, "{document}");
            start = end;
        }
    }
    let help = tympan(["transcribe", "--help"]).expect(0).out;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("what the model file states, else 60 for Qwen3-ASR, 30 for LFM2-Audio"), "{help}");
}

#[test]
fn a_text_file_without_its_projector_is_exit_code_4() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    tympan(["convert", "-q", &lfm2_audio(), "-o", out, "--type", "f32"]).expect(0);
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    let is_projector = |p: &Path| p.file_name().unwrap().to_str().unwrap().starts_with("mmproj");
    let projector = files.iter().find(|p| is_projector(p)).unwrap();
    let text = files.iter().find(|p| !is_projector(p)).unwrap().to_str().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("projector.gguf");
    std::fs::rename(projector, &moved).unwrap();
    let run = transcribe(&["-m", text], &[&clip("open_door.wav")]).expect(4);
    assert!(run.err.contains("--mmproj") && run.err.contains(text), "{}", run.err);
    let named = ["-q", "-m", text, "--mmproj", moved.to_str().unwrap()];
    assert_eq!(transcribe(&named, &[&clip("open_door.wav")]).expect(0).out, format!("{OPEN_DOOR}\n"));
    // The language model alone works without.
    tympan(["generate", "-q", "-m", text, "-p", "turn the", "-n", "3"]).expect(0);
}

#[test]
fn bad_models_are_exit_code_4_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let empty_dir = dir.path().join("empty");
    std::fs::create_dir(&empty_dir).unwrap();
    let missing = dir.path().join("missing.gguf").to_str().unwrap().to_owned();
    for model in [
        missing,
        write("empty.gguf", b""),
        write("text.gguf", b"GGUX1234567890"),
        empty_dir.to_str().unwrap().to_owned(),
    ] {
        let run = transcribe(&["-m", &model], &[&clip("open_door.wav")]).expect(4);
        assert_eq!(run.err.lines().count(), 1, "{}", run.err);
        assert!(run.err.starts_with("error: ") && run.err.contains(model.rsplit('/').next().unwrap()), "{}", run.err);
    }
}

#[test]
fn more_threads_give_the_same_ids() {
    let ids = |threads: &str| {
        let run = transcribe(&["-q", "-f", "jsonl", "--token-ids", "-t", threads], &[&clip("long_9s.wav")]).expect(0);
        run.json_lines()[0]["segments"][0]["token_ids"].clone()
    };
    assert_eq!(ids("1"), ids("3"));
}

#[test]
fn the_version_names_the_licences() {
    let run = tympan(["--version", "-v"]).expect(0);
    assert!(run.out.contains(env!("CARGO_PKG_VERSION")) && run.out.contains("MIT") && run.out.contains("CC BY-SA 4.0"));
    assert_eq!(tympan(["--version"]).expect(0).out, format!("tympan {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn an_instruction_set_that_does_not_exist_is_named() {
    for args in [["inspect", "--devices"], ["transcribe", "missing.wav"]] {
        let run: Run = command(args).env("TYMPAN_ISA", "abacus").output().unwrap().into();
        let want = "error: cpu: choosing kernels: TYMPAN_ISA: want scalar, avx2 or avx512, got \"abacus\"\n";
        assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (2, "", want));
    }
}
