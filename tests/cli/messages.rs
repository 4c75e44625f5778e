//! What users type and what is said about it: names, numbers, variables.

use crate::run::{Run, clip, command, fixtures, tympan};

/// A small trained checkpoint.
fn checkpoint() -> String {
    fixtures().join("models/tiny-qwen3-asr").to_str().unwrap().to_owned()
}

fn convert(args: &[&str]) -> Run {
    tympan([&["convert", &checkpoint(), "--dry-run"], args].concat())
}

/// The only clip that these need.
fn yes() -> String {
    clip("yes.wav").to_str().unwrap().to_owned()
}

#[test]
fn short_names_of_types_are_their_mixes_in_any_case() {
    // The aliases of llama-quantize; files are named after the mix.
    for (short, mix) in [("q3_k", "q3_k_m"), ("Q4_K", "q4_k_m"), ("q5_K", "Q5_K_M")] {
        let list = convert(&["--type", short]).expect(0).out;
        assert_eq!(list, convert(&["--type", mix]).expect(0).out);
        assert!(list.contains(&format!("{}.gguf", mix.to_uppercase())), "{list}");
    }
    convert(&["--audio-type", "q5_k"]).expect(0);
    let near = convert(&["--type", "q4km"]).expect(2);
    assert!(near.err.contains("q4_k_m") && near.err.contains("iq4_nl"), "{}", near.err);
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("a.gguf").to_str().unwrap().to_owned();
    tympan(["convert", "-q", &checkpoint(), "--bundle", "-o", &model]).expect(0);
    let quantize = |name: &str| tympan(["quantize", &model, "b.gguf", name, "--dry-run"]);
    assert_eq!(quantize("Q4_k").expect(0).out, quantize("q4_k_m").expect(0).out);
    quantize("q7_k").expect(2);
    assert_eq!(tympan(["transcribe", "-q", "-f", "txt", &yes()]).expect(0).out, "yes\n");
}

#[test]
fn expressions_for_tensors_are_taken_as_they_are() {
    let line = |list: &str, name: &str| list.lines().find(|line| line.contains(name)).unwrap().to_owned();
    // An equals sign is part of the expression unless it is the last.
    let list = convert(&["--tensor-type", "blk.0.attn_(?=q)q.weight=Q8_0"]).expect(0).out;
    assert!(line(&list, "blk.0.attn_q.weight").contains("Q8_0"), "{list}");
    assert!(line(&list, "blk.0.attn_k.weight").contains("BF16"), "{list}");
    let any = convert(&["--tensor-type", r"^blk\S+attn_q=q8_0"]).expect(0).out;
    assert!(line(&any, "blk.0.attn_q.weight").contains("Q8_0"), "{any}");
    for (given, says) in [
        ("BLK.0.ATTN_Q=q8_0", "BLK.0.ATTN_Q: no tensor whose type can be chosen has such a name"),
        ("attn_q=q80", "q80 is no type of tensors; did you mean q8_0?"),
        ("attn_q=", "want one of f32"),
        ("attn_(q=q8_0", "not a regular expression"),
        ("attn_q", "want REGEX=TYPE"),
    ] {
        let run = convert(&["--tensor-type", given]).expect(2);
        assert!(run.out.is_empty() && run.err.contains("--tensor-type") && run.err.contains(says), "{}", run.err);
    }
}

#[test]
fn limits_are_told_before_any_work() {
    let clip = yes();
    let transcribe = |args: &[&str]| tympan([&["transcribe", &clip], args].concat());
    let generate = |args: &[&str]| tympan([&["generate", "-p", "one"], args].concat());
    let huge = "99999999999999999999999";
    for (run, says) in [
        (transcribe(&["-t", "0"]), &["--threads", "want 1 to 1024"][..]),
        (transcribe(&["-t", "1025"]), &["want 1 to 1024"]),
        (transcribe(&["-t", huge]), &["want 1 to 1024"]),
        (transcribe(&["-t", "-1"]), &["-1"]),
        (transcribe(&["-t", ""]), &["--threads"]),
        (transcribe(&["--max-tokens", huge]), &["--max-tokens"]),
        (transcribe(&["--max-tokens", "131073"]), &["--max-tokens", "1..=131072"]),
        // The context of the demonstration model has 4096 tokens.
        (transcribe(&["--max-tokens", "4096"]), &["--max-tokens 4096", "holds 4096 tokens"]),
        (transcribe(&["--segment", "1e999"]), &["--segment"]),
        (transcribe(&["--segment", huge]), &["--segment"]),
        (transcribe(&["--segment", ""]), &["--segment"]),
        (generate(&["-n", huge]), &["--max-tokens"]),
        (generate(&["-n", "4096"]), &["-n 4096", "holds 4096 tokens"]),
        (generate(&["--seed", huge]), &["--seed"]),
        (generate(&["--top-k", huge]), &["--top-k"]),
        (generate(&["--top-p", "1e99"]), &["--top-p"]),
        (generate(&["--temp", "1e99"]), &["--temp"]),
        (generate(&["-p", ""]), &["--prompt"]),
        (tympan(["generate", "--prompt-ids", huge]), &["--prompt-ids"]),
        (tympan(["generate", "--prompt-ids", "768"]), &["token 768 is outside the vocabulary of 768"]),
        (convert(&["-t", "0"]), &["want 1 to 1024"]),
        (convert(&["--split-max-size", "99999999999999999G"]), &["--split-max-size"]),
        (convert(&["--override-kv", "a.b=int:99999999999"]), &["--override-kv"]),
        (tympan(["inspect", "--graph", "prompt:99999999999999999999"]), &["--graph"]),
        (tympan(["inspect", "-t", "0"]), &["want 1 to 1024"]),
        (tympan(["bench", "-t", "0"]), &["-t 0", "want 1 to 1024"]),
        (tympan(["bench", "-p", huge]), &["-p"]),
        (tympan(["bench", "-r", huge]), &["--repetitions"]),
        (tympan(["bench", "--delay", huge]), &["--delay"]),
    ] {
        let run = run.expect(2);
        assert!(run.out.is_empty() && says.iter().all(|s| run.err.contains(s)), "want {says:?}: {}", run.err);
        assert!(!run.err.contains("| RTF "), "{}", run.err);
    }
    assert_eq!(transcribe(&["-q", "--max-tokens", "4095"]).expect(0).out, "yes\n");
}

#[test]
fn more_threads_than_cores_are_said_in_one_line() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let line = format!("-t {}: there ", cores + 1);
    let more = (cores + 1).to_string();
    let said = |run: Run| run.err.lines().filter(|l| l.starts_with(&line) && l.contains("core")).count();
    let checkpoint = checkpoint();
    for args in [
        &["transcribe", &yes()][..],
        &["generate", "-p", "one", "-n", "1"],
        &["inspect"],
        &["bench", "-p", "2", "-n", "0", "-r", "1"],
    ] {
        assert_eq!(said(tympan([args, &["-t", &more]].concat()).expect(0)), 1, "{args:?}");
        assert_eq!(said(tympan([args, &["-q", "-t", &more]].concat()).expect(0)), 0, "{args:?}");
        assert_eq!(said(tympan([args, &["-t", &cores.to_string()]].concat()).expect(0)), 0, "{args:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let written = tympan(["convert", &checkpoint, "-o", dir.path().to_str().unwrap(), "-t", &more]);
    assert_eq!(said(written.expect(0)), 1);
}

#[test]
fn an_empty_variable_counts_as_unset() {
    for name in ["TYMPAN_ISA", "TYMPAN_GRAPH_REUSE", "TYMPAN_GRAPH_VERIFY", "TYMPAN_CACHE", "NO_COLOR"] {
        let run: Run = command(["transcribe", &yes()]).env(name, "").output().unwrap().into();
        assert_eq!(run.expect(0).out, "yes\n", "{name}");
    }
}
