//! `tympan generate`: ids and logits of the official code, sampling, refusals.

use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;

use crate::run::{Run, fixtures, tympan};

/// Tokens that end a text in the built-in model.
const BUILT_IN_STOP: [u32; 2] = [699, 697];

fn generate(args: &[&str]) -> Run {
    tympan([&["generate"], args].concat())
}

fn ids_of(text: &str) -> Vec<u32> {
    text.trim_end().split(',').map(|id| id.parse().expect("an id")).collect()
}

fn joined(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// A golden checkpoint of a text model.
struct Golden {
    checkpoint: String,
    bytes: Vec<u8>,
    /// How far logits may be from the official ones.
    tolerance: f64,
}

impl Golden {
    fn open(arch: &str) -> Self {
        let folder = fixtures().join("golden").join(arch);
        let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        let tensors = manifest["tensors"].as_array().unwrap();
        let logits = tensors.iter().find(|t| t["name"] == "prompt.logits").unwrap();
        let number = |field: &str| logits[field].as_f64().unwrap();
        Self {
            checkpoint: folder.to_str().unwrap().to_owned(),
            bytes: std::fs::read(folder.join("golden.safetensors")).unwrap(),
            tolerance: 20.0 * number("f32_error") + 1e-6 * number("max_abs"),
        }
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        tensor.data().as_chunks().0.iter().map(|&b| u32::try_from(i32::from_le_bytes(b)).unwrap()).collect()
    }

    fn logits(&self) -> Vec<f32> {
        logits(&self.bytes, "prompt.logits").1
    }
}

/// A tensor of a file, with its shape.
fn logits(file: &[u8], name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let values = tensor.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    (tensor.shape().to_vec(), values)
}

/// Ids and logits of a golden checkpoint from the command line, for the prompt as it is and as the beginning of a longer
/// one.
fn check_golden(arch: &str) {
    let golden = Golden::open(arch);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/logits.safetensors");
    let prompt = golden.ids("prompt.ids");
    let run = |prompt: &[u32], n: &str| {
        let args = ["-q", "-m", &golden.checkpoint, "--prompt-ids", &joined(prompt), "-n", n, "--temp", "0"];
        let options = ["--ignore-eos", "--token-ids", "--kv-type", "f32", "--logits-out", out.to_str().unwrap()];
        let run = generate(&[&args[..], &options].concat()).expect(0);
        assert_eq!(run.err, "");
        let (shape, got) = logits(&std::fs::read(&out).unwrap(), "logits");
        let want = golden.logits();
        assert_eq!(shape, [prompt.len(), want.len() / golden.ids("prompt.ids").len()]);
        for (i, (a, b)) in got.iter().zip(&want).enumerate() {
            assert!(f64::from((a - b).abs()) <= golden.tolerance, "{arch}: logit {i}: want {b}, got {a}");
        }
        ids_of(&run.out)
    };
    assert_eq!(run(&prompt, "16"), golden.ids("decode.ids"), "{arch}");
    // More tokens than one call takes: the prompt goes in pieces.
    let long: Vec<u32> = prompt.iter().copied().cycle().take(1100).collect();
    assert_eq!(run(&long, "3").len(), 3);
}

#[test]
fn qwen3_continues_as_the_official_code_does() {
    check_golden("qwen3");
}

#[test]
fn llama_continues_as_the_official_code_does() {
    check_golden("llama");
}

#[test]
fn llama3_continues_as_the_official_code_does() {
    check_golden("llama3");
}

#[test]
fn lfm2_continues_as_the_official_code_does() {
    check_golden("lfm2");
}

#[test]
fn lfm2_moe_continues_as_the_official_code_does() {
    check_golden("lfm2_moe");
}

#[test]
fn lfm2_texts_begin_with_their_token() {
    let model = fixtures().join("models/tiny-lfm2-audio");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("logits.safetensors");
    let first_logits = |prompt: &[&str]| {
        let args = ["-q", "-m", model.to_str().unwrap(), "-n", "1", "--logits-out", out.to_str().unwrap()];
        generate(&[&args[..], prompt].concat()).expect(0);
        logits(&std::fs::read(&out).unwrap(), "logits")
    };
    let text = first_logits(&["-p", "<|im_start|>"]);
    assert_eq!(text.0, [2, 896]);
    assert_eq!(first_logits(&["--prompt-ids", "1,6"]), text);
    assert_eq!(first_logits(&["-p", "<|startoftext|><|im_start|>"]), text);
}

#[test]
fn standard_output_is_the_text_and_nothing_else() {
    let text = ["-p", "please open the", "-n", "6", "--ignore-eos"];
    let run = generate(&text).expect(0);
    assert!(run.out.ends_with('\n') && !run.out.contains("please open the"), "{}", run.out);
    let lines: Vec<&str> = run.err.lines().collect();
    assert!(lines[0].contains("built-in demonstration model"), "{}", run.err);
    assert!(lines[1].starts_with("load ") && lines[1].contains("| decode "), "{}", run.err);
    assert_eq!(lines.len(), 2, "{}", run.err);
    let quiet = generate(&[&text[..], &["-q"]].concat()).expect(0);
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), (run.out.as_str(), ""));
    let ids = generate(&[&text[..], &["-q", "--token-ids"]].concat()).expect(0);
    assert_eq!(ids_of(&ids.out).len(), 6);
}

#[test]
fn the_text_ends_at_a_stop_token() {
    let mut stopped = 0;
    for seed in 0..20 {
        let args = ["-q", "-p", "please open", "-n", "12", "--token-ids", "--temp", "1", "--seed", &seed.to_string()];
        let on = ids_of(&generate(&[&args[..], &["--ignore-eos"]].concat()).expect(0).out);
        assert_eq!(on.len(), 12);
        let end = on.iter().position(|id| BUILT_IN_STOP.contains(id));
        stopped += usize::from(end.is_some());
        assert_eq!(generate(&args).expect(0).out, format!("{}\n", joined(&on[..end.unwrap_or(12)])), "seed {seed}");
    }
    assert!((1..20).contains(&stopped), "{stopped} of 20 texts ended");
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let text = |seed: &str, more: &[&str]| {
        let args = ["-q", "-p", "turn the", "-n", "20", "--ignore-eos", "--temp", "1.5", "--seed", seed];
        generate(&[&args[..], more].concat()).expect(0).out
    };
    assert_eq!(text("7", &[]), text("7", &[]));
    assert_eq!(text("7", &[]), text("7", &["-t", "3"]));
    assert_ne!(text("7", &[]), text("8", &[]));
    assert_ne!(text("7", &[]), text("7", &["--top-k", "2"]));
    // One candidate leaves nothing to chance.
    assert_eq!(text("7", &["--top-k", "1"]), text("8", &["--top-k", "1"]));
    assert_eq!(text("7", &["--top-p", "1e-9"]), text("8", &["--top-k", "1"]));
}

#[test]
fn every_sampler_gives_the_same_text_at_any_thread_count() {
    let all = ["--temp", "1.3", "--top-k", "40", "--top-p", "0.95", "--min-p", "0.01"];
    let penalties = ["--repeat-penalty", "1.2", "--presence-penalty", "0.5"];
    let text = |more: &[&str]| {
        let args = ["-q", "-p", "turn the", "-n", "24", "--ignore-eos", "--seed", "3"];
        generate(&[&args[..], more].concat()).expect(0).out
    };
    let whole = [&all[..], &penalties].concat();
    let want = text(&[&whole[..], &["-t", "1"]].concat());
    for threads in ["2", "3"] {
        assert_eq!(text(&[&whole[..], &["-t", threads]].concat()), want);
    }
    assert_ne!(text(&all), want);
    // Only the most likely token is as likely as itself.
    assert_eq!(text(&["--temp", "1", "--min-p", "1"]), text(&[]));
    // Nothing is said twice where that costs everything.
    let ids = text(&["--presence-penalty", "100", "--token-ids"]);
    let mut ids = ids_of(&ids);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 24);
}

/// The template of the built-in model, written out.
#[test]
fn a_chat_is_the_template_of_the_file() {
    let end = ["-q", "-n", "12", "--token-ids"];
    let raw = |text: &str| generate(&[&end[..], &["-p", text]].concat()).expect(0).out;
    let chat = |args: &[&str]| generate(&[&end[..], &["--chat"], args].concat()).expect(0).out;
    let user = "<|im_start|>user\nplease open the door<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(chat(&["-p", "please open the door"]), raw(user));
    let system = "<|im_start|>system\nBe brief.<|im_end|>\n";
    let with_system = chat(&["-p", "please open the door", "--system", "Be brief."]);
    assert_eq!(with_system, raw(&format!("{system}{user}")));
    let golden = fixtures().join("golden/qwen3");
    let run = generate(&["-m", golden.to_str().unwrap(), "--chat", "-p", "a"]).expect(4);
    assert!(run.out.is_empty() && run.err.contains("the model has no chat template"), "{}", run.err);
}

#[test]
fn a_text_ends_before_a_stop_text() {
    let args = ["-q", "--chat", "-p", "please open the door", "-n", "12"];
    let text = generate(&args).expect(0).out;
    let text = text.trim_end_matches('\n');
    assert!(text.len() > 12 && text.is_ascii(), "{text:?}");
    for (from, to) in [(0, 1), (0, 4), (3, 5), (5, 12), (text.len() - 1, text.len())] {
        let stop = &text[from..to];
        let run = generate(&[&args[..], &["--stop", "not in it", "--stop", stop]].concat()).expect(0);
        assert_eq!(run.out, format!("{}\n", &text[..text.find(stop).unwrap()]), "{stop:?}");
    }
    let run = generate(&[&args[..], &["--stop", "not in it"]].concat()).expect(0);
    assert_eq!(run.out.trim_end_matches('\n'), text);
}

#[test]
fn json_lines_are_pieces_and_an_end() {
    let args = ["-q", "--chat", "-p", "please open the door"];
    let text = generate(&args).expect(0).out;
    let text = text.trim_end_matches('\n');
    for (more, finish, whole, stop) in [
        (&[][..], "stop_token", text, Value::Null),
        (&["-n", "1"], "length", "language", Value::Null),
        (&["--stop", "glish"], "stop_text", &text[..text.find("glish").unwrap()], "glish".into()),
    ] {
        let format = ["--format", "jsonl", "--token-ids"];
        let run = generate(&[&args[..], more, &format].concat()).expect(0);
        let lines = run.json_lines();
        let (end, pieces) = lines.split_last().unwrap();
        let joined: String = pieces.iter().map(|line| line["text"].as_str().unwrap()).collect();
        assert_eq!((joined.as_str(), end["text"].as_str().unwrap()), (whole, whole));
        assert!(pieces.iter().all(|line| line["type"] == "text"));
        let n_ids: usize = pieces.iter().map(|line| line["token_ids"].as_array().unwrap().len()).sum();
        assert_eq!(end["generated_tokens"], n_ids);
        assert_eq!((&end["type"], &end["finish"], &end["stop"]), (&"end".into(), &finish.into(), &stop), "{end}");
        assert!(end["prompt_tokens"].as_u64().unwrap() > 5 && end["decode_s"].is_number());
    }
    let run = generate(&[&args[..], &["-f", "jsonl"]].concat()).expect(0);
    assert!(run.json_lines().iter().filter(|line| line["type"] == "text").all(|line| line["token_ids"].is_null()));
}

#[test]
fn control_tokens_of_the_prompt_are_parsed() {
    let n_tokens = |prompt: &str| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("logits.safetensors");
        generate(&["-q", "-p", prompt, "-n", "1", "--logits-out", out.to_str().unwrap()]).expect(0);
        logits(&std::fs::read(out).unwrap(), "logits").0[0]
    };
    assert_eq!(n_tokens("<|im_start|>"), 1);
    assert_eq!(n_tokens("<|im_start|><|im_end|><|im_start|>"), 3);
}

#[test]
fn a_speech_models_text_file_needs_no_projector() {
    let checkpoint = fixtures().join("models/tiny-qwen3-asr");
    let whole = ["-q", "-m", checkpoint.to_str().unwrap(), "-p", "turn the", "-n", "12", "--ignore-eos"];
    let want = generate(&whole).expect(0).out;
    let dir = tempfile::tempdir().unwrap();
    tympan(["convert", "-q", checkpoint.to_str().unwrap(), "-o", dir.path().to_str().unwrap(), "--type", "bf16"])
        .expect(0);
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    let name = |p: &Path| p.file_name().unwrap().to_str().unwrap().to_owned();
    let projector = files.iter().find(|p| name(p).starts_with("mmproj")).unwrap();
    std::fs::remove_file(projector).unwrap();
    let text = files.iter().find(|p| *p != projector).unwrap().to_str().unwrap();
    let run = generate(&["-q", "-m", text, "-p", "turn the", "-n", "12", "--ignore-eos"]).expect(0);
    assert_eq!(run.out, want);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let golden = fixtures().join("golden/qwen3");
    let golden = golden.to_str().unwrap();
    for (args, says) in [
        (&[][..], "want --prompt or --prompt-ids"),
        (&["--chat"], "want --prompt or --prompt-ids"),
        (&["--chat", "--prompt-ids", "1"], "--prompt-ids"),
        (&["--system", "s", "-p", "a"], "--system goes with --chat"),
        (&["--stop", "", "-p", "a"], "--stop"),
        (&["-f", "srt", "-p", "a"], "srt"),
        (&["-p", "a", "--min-p", "1.5"], "--min-p"),
        (&["-p", "a", "--repeat-penalty", "0"], "--repeat-penalty"),
        (&["-p", "a", "--presence-penalty", "inf"], "--presence-penalty"),
        (&["-p", ""], "--prompt"),
        (&["-p", "a", "--prompt-ids", "1"], "--prompt-ids"),
        (&["-p", "a", "-n", "0"], "--max-tokens"),
        (&["-p", "a", "-n", "-1"], "-1"),
        (&["--prompt-ids", ""], "--prompt-ids"),
        (&["--prompt-ids", "1,,2"], "--prompt-ids"),
        (&["--prompt-ids", "1,a"], "--prompt-ids"),
        (&["--prompt-ids", "1,-1"], "--prompt-ids"),
        (&["--prompt-ids", "1,5000000000"], "--prompt-ids"),
        (&["--prompt-ids", "1,304", "-m", golden], "304"),
        (&["--prompt-ids", "1", "-m", golden, "-n", "4096"], "4097"),
        (&["-p", "a", "--temp", "-1"], "--temp"),
        (&["-p", "a", "--temp", "nan"], "--temp"),
        (&["-p", "a", "--top-p", "0"], "--top-p"),
        (&["-p", "a", "--top-p", "1.5"], "--top-p"),
        (&["-p", "a", "--top-k", "-1"], "-1"),
        (&["-p", "a", "--seed", "x"], "--seed"),
        (&["-p", "a", "--mmproj", "b.gguf"], "--mmproj"),
        (&["-p", "a", "--device", "tpu"], "tpu"),
        (&["-p", "a", "b"], "b"),
    ] {
        let run = generate(args).expect(2);
        assert!(run.out.is_empty() && run.err.contains(says), "{args:?}: {}", run.err);
    }
}

#[cfg(unix)]
#[test]
fn a_prompt_that_is_not_unicode_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let bad = std::ffi::OsStr::from_bytes(b"a\xff");
    let run = tympan([std::ffi::OsStr::new("generate"), "-p".as_ref(), bad]).expect(2);
    assert!(run.out.is_empty() && run.err.contains("UTF-8"), "{}", run.err);
}

#[test]
fn bad_models_are_exit_code_4() {
    let run = generate(&["-m", "missing.gguf", "-p", "a"]).expect(4);
    assert!(run.err.contains("missing.gguf"), "{}", run.err);
}

#[test]
fn weights_in_the_file_and_in_memory_give_the_same_ids() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoint, model) = (fixtures().join("golden/qwen3"), dir.path().join("model.gguf"));
    let paths = [&model, &checkpoint].map(|path| path.to_str().unwrap());
    tympan(["convert", "-q", "--type", "f16", "-o", paths[0], paths[1]]).expect(0);
    let ids = |weights: &str, n: &str| {
        let args = ["-m", paths[0], "--prompt-ids", "1,2,3", "-n", n, "--ignore-eos", "--token-ids", "-v"];
        let run = generate(&[&args[..], &["--weights", weights]].concat());
        let run = run.expect(0);
        (run.out.clone(), run.err.contains("copied to memory"))
    };
    let (mapped, resident, auto) = (ids("mapped", "8"), ids("resident", "8"), ids("auto", "8"));
    assert_eq!((mapped.1, resident.1, auto.1), (false, true, false));
    assert_eq!(mapped.0, resident.0);
    let refused = generate(&["-p", "x", "--weights", "elsewhere"]).expect(2);
    assert!(refused.err.contains("auto, mapped, resident"), "{}", refused.err);
}
