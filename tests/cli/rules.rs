//! Rules of the command line's contract, one by one, where no other file of these tests has them.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::run::{Run, clip, command, fixtures, tympan};

fn path(name: &str) -> String {
    clip(name).to_str().unwrap().to_owned()
}

/// A run of `transcribe` on one clip.
fn transcribe(args: &[&str]) -> Run {
    tympan([&["transcribe", &path("yes.wav")], args].concat())
}

fn checkpoint(name: &str) -> String {
    fixtures().join("models").join(name).to_str().unwrap().to_owned()
}

/// "An unknown or unsupported flag, language, dtype or model is an error that names what was given, what is accepted, and the
/// nearest match."
#[test]
fn unknown_words_are_named_with_the_nearest_that_is_accepted() {
    let clip = path("yes.wav");
    let model = checkpoint("tiny-qwen3-asr");
    for (args, says) in [
        (&["transcribee", &clip][..], &["transcribee", "'transcribe'"][..]),
        (&["transcribe", "--langage", "de", &clip], &["--langage", "'--language'"]),
        (&["transcribe", "-f", "jsn", &clip], &["jsn", "'json'", "vtt"]),
        (&["transcribe", "--device", "cqu", &clip], &["--device cqu", "did you mean cpu?", "auto, cpu, reference"]),
        (&["transcribe", "--language", "Germn", &clip], &["Germn", "did you mean German?", "English en"]),
        (&["transcribe", "--kv-type", "f161", &clip], &["f161", "'f16'", "f32"]),
        (&["transcribe", "--weights", "maped", &clip], &["maped", "'mapped'", "resident"]),
        (&["transcribe", "--audio-attention", "windwed", &clip], &["windwed", "'windowed'", "full"]),
        (&["transcribe", "-m", "synth:lfm2-1.3b:q8_0", &clip], &["lfm2-1.3b", "did you mean lfm2-1.2b?", "qwen3-0.6b"]),
        (&["generate", "-p", "a", "--tmp", "1"], &["--tmp", "'--temp'"]),
        (&["convert", &model, "--type", "q4_k_x"], &["q4_k_x", "'q4_k_", "iq4_nl"]),
        (&["convert", &model, "--tensor-type", "a=q8_1"], &["q8_1", "did you mean q8_0?", "bf16"]),
        (&["quantize", "a.gguf", "b.gguf", "q50"], &["q50", "'q5_0'", "f32"]),
        (&["bench", "--n-promt", "4"], &["--n-promt", "'--n-prompt'"]),
        (&["inspect", "--tensor"], &["--tensor", "'--tensors'"]),
        (&["completions", "bsh"], &["bsh", "'bash'", "zsh"]),
    ] {
        let run = tympan(args).expect(2);
        assert!(run.out.is_empty() && says.iter().all(|s| run.err.contains(s)), "{args:?}, want {says:?}: {}", run.err);
    }
}

/// "Exit codes": for several inputs 3 if none could be read, 1 if some failed, 6 if texts were only cut; a usage error before all.
#[test]
fn several_inputs_have_the_worst_of_their_codes() {
    let (yes, door) = (path("yes.wav"), path("open_door.wav"));
    let missing = "/nowhere/missing.wav";
    // Its last second is gone.
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(clip("digits_eight.wav")).unwrap();
    let cut = dir.path().join("cut.wav").to_str().unwrap().to_owned();
    std::fs::write(&cut, &whole[..whole.len() - 32_000]).unwrap();
    for (args, code) in [
        (&["--max-tokens", "4", &door, &yes][..], 6),
        (&["--max-tokens", "4", &door, missing], 1),
        (&["--max-tokens", "4", missing, missing], 3),
        (&["--max-tokens", "0", missing, &yes], 2),
        (&["--max-tokens", "0", "-m", "/nowhere/model.gguf", &yes], 2),
        (&["--max-tokens", "4", &door, &cut], 1),
        (&["-m", "/nowhere/model.gguf", missing, &yes], 4),
        (&["-q", &yes, &yes], 0),
    ] {
        let run = tympan([&["transcribe"], args].concat()).expect(code);
        let n_errors = run.err.lines().filter(|line| line.starts_with("error: ")).count();
        let has_failed = matches!(code, 1..=4) && !args.contains(&&*cut);
        assert_eq!(n_errors > 0, has_failed, "{args:?}: {}", run.err);
    }
}

/// "Never a panic, a backtrace, a bare `os error`, a cause said twice, a temporary name."
#[test]
fn failures_are_one_line_without_the_system_s_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let clip = path("yes.wav");
    for args in [
        &["transcribe", "/nowhere/a.wav"][..],
        &["transcribe", folder],
        &["transcribe", "-m", folder, &clip],
        &["transcribe", "-m", "/dev/null", &clip],
        &["transcribe", "-o", "/dev/null/out", &clip],
        &["transcribe", "--dump", "/dev/null/out", &clip],
        &["generate", "-m", "/nowhere/a.gguf", "-p", "a"],
        &["generate", "-p", "a", "--logits-out", "/dev/null/x"],
        &["convert", "/nowhere"],
        &["convert", folder],
        &["quantize", "/nowhere/a.gguf", "b.gguf", "q8_0"],
        &["inspect", "/nowhere/a.gguf"],
        &["inspect", folder],
        &["bench", "-m", "/nowhere/a.gguf"],
        &["bench", "--audio", "/nowhere/a.wav"],
        &["bench", "--baseline", "/nowhere/a.jsonl"],
    ] {
        let run = tympan(args);
        if run.code == 0 {
            // A superuser may make any folder.
            continue;
        }
        let errors: Vec<&str> = run.err.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && matches!(run.code, 1..=4), "{args:?}: {}: {}", run.code, run.err);
        for bad in ["os error", "panicked", "backtrace", ".part"] {
            assert!(!run.err.contains(bad), "{args:?}: {}", run.err);
        }
        let causes: Vec<&str> = errors[0].split(": ").collect();
        assert!(causes.windows(2).all(|pair| pair[0] != pair[1]), "{args:?}: {}", run.err);
    }
}

/// "Standard output carries the result and nothing else"; "`-q` [is] honoured".
#[test]
fn quiet_runs_say_nothing_but_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let model = checkpoint("tiny-lfm2-audio");
    let file = dir.path().join("a.gguf");
    let file = file.to_str().unwrap();
    for args in [
        &["transcribe", "-q", &path("yes.wav")][..],
        &["generate", "-q", "-p", "one", "-n", "2"],
        &["convert", "-q", &model, "--bundle", "-o", file],
        &["quantize", "-q", file, &format!("{out}/b.gguf"), "f16"],
        &["inspect", "-q"],
        &["inspect", "-q", "--graph", "decode:1"],
        &["bench", "-q", "-p", "2", "-n", "0", "-r", "1"],
    ] {
        let run = tympan(args).expect(0);
        assert!(run.err.is_empty() && !run.out.is_empty(), "{args:?}: {}", run.err);
    }
    transcribe(&["-q", "-v"]).expect(2);
}

/// "Threads: all available cores by default (respecting affinity and cgroup limits), `-t N` to set".
#[test]
fn threads_are_those_of_the_process_unless_told() {
    let threads = |run: Run| run.json_lines()[0]["threads"].clone();
    let n = std::thread::available_parallelism().unwrap().get();
    assert_eq!(threads(transcribe(&["-f", "jsonl"]).expect(0)), n);
    assert_eq!(threads(transcribe(&["-q", "-f", "jsonl", "-t", "3"]).expect(0)), 3);
    if Command::new("taskset").arg("--version").output().is_err() {
        eprintln!("skipped in part: taskset of util-linux is not installed");
        return;
    }
    let program = command([""; 0]).get_program().to_owned();
    let mut pinned = Command::new("taskset");
    let first = String::from_utf8(
        Command::new("taskset").args(["-cp", &std::process::id().to_string()]).output().unwrap().stdout,
    );
    let first = first.unwrap().rsplit(": ").next().unwrap().trim().split([',', '-']).next().unwrap().to_owned();
    pinned.args(["-c", &first]).arg(program).args(["transcribe", "-q", "-f", "jsonl", &path("yes.wav")]);
    assert_eq!(threads(Run::from(pinned.output().unwrap()).expect(0)), 1);
}

/// "`-m PATH` takes a GGUF file, a directory with one model in it, or a checkpoint directory"; "a bundled single file needs
/// neither [projector nor --mmproj]".
#[test]
fn a_model_is_a_file_a_folder_or_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint("tiny-qwen3-asr");
    let [pair, bundle] = ["pair", "bundle"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    tympan(["convert", "-q", &checkpoint, "-o", &pair]).expect(0);
    std::fs::create_dir(&bundle).unwrap();
    let file = format!("{bundle}/one.gguf");
    tympan(["convert", "-q", &checkpoint, "--bundle", "-o", &file]).expect(0);
    for model in [&checkpoint, &pair, &bundle, &file] {
        assert_eq!(transcribe(&["-q", "-m", model]).expect(0).out, "yes\n", "{model}");
    }
    std::fs::copy(&file, format!("{bundle}/two.gguf")).unwrap();
    let several = transcribe(&["-m", &bundle]).expect(4);
    assert!(["several models", "one.gguf", "two.gguf"].iter().all(|s| several.err.contains(s)), "{}", several.err);
    let alone = transcribe(&["--mmproj", &file]).expect(2);
    assert!(alone.err.contains("--model"), "{}", alone.err);
}

/// The table of `tympan transcribe`: flags that other tests leave out.
#[test]
fn flags_of_transcribe_do_what_the_table_says() {
    let document = |args: &[&str]| transcribe(&[&["-q", "-f", "json"], args].concat()).expect(0);
    let parsed = |args: &[&str]| serde_json::from_str::<Value>(&document(args).out).unwrap();
    // --timestamps
    let timed = transcribe(&["-q", "--timestamps", "segment"]).expect(0).out;
    assert!(timed.starts_with("[00:00:00.000 --> 00:00:0") && timed.ends_with("] yes\n"), "{timed}");
    let untimed = parsed(&["--timestamps", "none"]);
    assert_eq!((&untimed["segments"][0]["start"], &untimed["segments"][0]["end"]), (&Value::Null, &Value::Null));
    // --token-ids: null where not asked for; the stop token last.
    let plain = parsed(&[]);
    assert_eq!(plain["segments"][0]["token_ids"], Value::Null);
    let ids = parsed(&["--token-ids"])["segments"][0]["token_ids"].clone();
    assert_eq!(ids.as_array().unwrap().len(), plain["timings"]["generated_tokens"].as_u64().unwrap() as usize);
    // --context, --kv-type, --audio-attention, --weights, --device: other ways to the same word.
    for args in [
        &["--context", "names"][..],
        &["--kv-type", "f32"],
        &["--audio-attention", "full"],
        &["--weights", "resident"],
        &["--segment", "0"],
        &["--device", "reference"],
        &["--language", "auto"],
        &["--language", "AUTO"],
    ] {
        let document = parsed(args);
        assert_eq!(document["text"], "yes", "{args:?}");
        let device = if args.contains(&"reference") { "reference" } else { "cpu" };
        assert_eq!(document["device"], device);
    }
    // --timings: a line of every stage.
    let timings = transcribe(&["--timings"]).expect(0).err;
    for stage in ["load", "decode audio", "resample", "mel", "encode", "prefill", "decode", "total"] {
        assert!(timings.lines().any(|line| line.trim_start().starts_with(stage) && line.contains(" ms")), "{timings}");
    }
    // Several formats want a folder; standard input is one input.
    transcribe(&["-f", "text,srt"]).expect(2);
    tympan(["transcribe", "-", "-"]).expect(2);
}

/// "Fields never disappear; unknown is `null`", also where nothing was said.
#[test]
fn json_of_silence_has_all_fields() {
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let document =
        |clip: &str| tympan(["transcribe", "-q", "-f", "jsonl", &path(clip)]).expect(0).json_lines().remove(0);
    let (spoken, silent) = (document("yes.wav"), document("silence.wav"));
    assert_eq!(keys(&spoken), keys(&silent));
    assert_eq!(keys(&spoken["timings"]), keys(&silent["timings"]));
    assert_eq!((&silent["text"], &silent["words"], &silent["damaged"]), (&json!(""), &Value::Null, &json!([])));
}

/// "`TYMPAN_ISA`: at most this instruction set".
#[test]
fn the_instruction_set_is_at_most_what_the_variable_says() {
    let listed =
        |isa: &str| -> Run { command(["inspect", "--devices"]).env("TYMPAN_ISA", isa).output().unwrap().into() };
    let scalar = listed("scalar").expect(0).out;
    let line = scalar.lines().find(|line| line.starts_with("cpu ")).unwrap();
    assert!(line.split_whitespace().nth(2) == Some("scalar"), "{scalar}");
    listed("avx512").expect(0);
    let verbose: Run =
        command(["transcribe", "-v", &path("yes.wav")]).env("TYMPAN_ISA", "scalar").output().unwrap().into();
    assert!(verbose.expect(0).err.contains("device: cpu (scalar, "));
}

/// "Default output: `<name>-<TYPE>.gguf` and `mmproj-<name>-<TYPE>.gguf`"; "OUT is never IN"; the audio tower has the text's
/// type, "but q8_0 when that is below 8 bits".
#[test]
fn converted_files_are_named_after_model_and_type() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint("tiny-qwen3-asr");
    let convert = |ty: &str| -> Vec<String> {
        let mut run = command(["convert", &checkpoint, "--type", ty]);
        let run: Run = run.current_dir(dir.path()).output().unwrap().into();
        let names = run.expect(0).out;
        let exist = names.lines().all(|name| dir.path().join(name).is_file());
        assert!(exist, "{names}");
        names.lines().map(str::to_owned).collect()
    };
    assert_eq!(convert("f16"), ["tiny-qwen3-asr-F16.gguf", "mmproj-tiny-qwen3-asr-F16.gguf"]);
    assert_eq!(convert("q4_k"), ["tiny-qwen3-asr-Q4_K_M.gguf", "mmproj-tiny-qwen3-asr-Q8_0.gguf"]);
    let file: PathBuf = dir.path().join("tiny-qwen3-asr-F16.gguf");
    let bytes = std::fs::read(&file).unwrap();
    let onto_itself: [&Path; 4] = [Path::new("quantize"), &file, &file, Path::new("q8_0")];
    tympan(onto_itself).expect(2);
    assert!(std::fs::read(&file).unwrap() == bytes);
}

/// "Exit codes: [...] 5 the memory budget does not suffice", here that of the system for one process.
#[cfg(target_os = "linux")]
#[test]
fn memory_that_does_not_suffice_is_exit_5() {
    let program = command(["bench", "-p", "1", "-n", "0", "-d", "131000", "-ctk", "f32", "-r", "1", "--no-warmup"]);
    let mut shell = Command::new("sh");
    // KiB; the context alone takes 128 MiB.
    shell.args(["-c", "ulimit -v 200000; exec \"$0\" \"$@\""]).arg(program.get_program()).args(program.get_args());
    let run = Run::from(shell.output().unwrap()).expect(5);
    assert!(run.err.contains("error: pp1 @ d131000 of ") && run.err.contains(" bytes"), "{}", run.err);
}

/// "A flag is obeyed or refused": those that have nothing to act on.
#[test]
fn flags_without_anything_to_act_on_are_refused() {
    let clip = path("yes.wav");
    let lm = fixtures().join("golden/lfm2");
    let lm = lm.to_str().unwrap();
    for (args, says) in [
        (&["transcribe", "--token-ids", &clip][..], &["--token-ids", "json"][..]),
        (&["transcribe", "--token-ids", "-f", "srt", &clip], &["--token-ids", "json"]),
        (&["transcribe", "--overwrite", &clip], &["--overwrite", "--output DIR"]),
        (&["transcribe", "--skip-existing", "-f", "json", &clip], &["--skip-existing", "--dump DIR"]),
        (&["transcribe", "--mmproj", "a.gguf", &clip], &["--model"]),
        (&["convert", lm, "--audio-type", "f16", "--dry-run"], &["--audio-type f16", "no audio tower"]),
        (&["bench", "--warmup", "2", "-p", "2"], &["--warmup", "--audio"]),
        (&["bench", "--warmup", "2", "--no-warmup", "--audio", &clip], &["--warmup", "--no-warmup"]),
        (&["bench", "--reference", "a.tsv", "-p", "2"], &["--reference", "--audio"]),
        (&["bench", "--mmproj", "a.gguf", "-d", "2"], &["--mmproj", "--audio"]),
        (&["bench", "--max-regress", "5"], &["--baseline"]),
        (&["bench", "--profile", "-o", "csv"], &["--profile", "csv", "jsonl"]),
        (&["bench", "-p", "131073"], &["pp131073", "at most 131072", "got 131073"]),
        (&["inspect", lm, "--mmproj", "a.gguf"], &["--graph", "--plan"]),
        (&["inspect", lm, "--device", "reference"], &["--graph", "--plan", "--devices"]),
        (&["inspect", "--devices", "--json"], &["--json"]),
        (&["generate", "-p", "a", "--prompt-ids", "1"], &["--prompt-ids"]),
    ] {
        let run = tympan(args).expect(2);
        assert!(run.out.is_empty() && says.iter().all(|s| run.err.contains(s)), "{args:?}, want {says:?}: {}", run.err);
    }
}

/// "`-v` adds detail", and "standard output carries the result and nothing else" with and without it.
#[test]
fn detail_goes_to_standard_error_and_changes_no_result() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let model = checkpoint("tiny-lfm2-audio");
    let clip = path("yes.wav");
    tympan(["convert", "-q", &model, "--bundle", "-o", &file("a.gguf")]).expect(0);
    for args in [
        &["transcribe", &clip][..],
        &["transcribe", "--timestamps", "segment", &clip],
        &["generate", "-p", "one", "-n", "2"],
        &["convert", &model, "--bundle", "-o", &file("b.gguf")],
        &["quantize", &file("a.gguf"), &file("c.gguf"), "f16"],
        &["inspect", "--graph", "decode:1", "--plan"],
        &["bench", "-p", "2", "-n", "0", "-r", "1", "-o", "none"],
        &["bench", "--audio", &clip, "-r", "1", "--warmup", "0", "-o", "none"],
    ] {
        let run = |flags: &[&str]| tympan([args, flags].concat()).expect(0);
        let (plain, loud) = (run(&[]), run(&["-v"]));
        assert_eq!(plain.out, loud.out, "{args:?}");
        let n_lines = |run: &Run| run.err.lines().count();
        assert!(n_lines(&loud) > n_lines(&plain), "{args:?}: {}", loud.err);
    }
    let timed = transcribe(&["--timings"]).expect(0);
    assert_eq!(timed.out, "yes\n");
    let followed = tympan(["bench", "-q", "--progress", "-p", "2", "-n", "0", "-r", "1", "-o", "none"]).expect(0);
    assert!(followed.out.is_empty() && followed.err.contains("1/1: pp2"), "{}", followed.err);
}

/// "`--context TEXT`: names and terms to expect (system turn)".
#[test]
fn a_context_is_in_the_prompt() {
    let n_tokens = |args: &[&str]| {
        let run = transcribe(&[&["-q", "-f", "jsonl"], args].concat()).expect(0);
        run.json_lines()[0]["timings"]["prompt_tokens"].as_u64().unwrap()
    };
    let [none, one, many] = [&[][..], &["--context", "a"], &["--context", "a b c d e"]].map(n_tokens);
    assert!(none < one && one < many, "{none}, {one}, {many}");
}

/// "`--max-tokens N`: per segment", by default "`max(64, ceil(16 * seconds) + 32)`". With random weights most texts do not end
/// before; which of them do is not the same on every processor.
#[test]
fn texts_have_a_limit_that_their_length_gives() {
    let clips = ["yes.wav", "light_off.wav", "number_24bit.wav", "speech_to_text.wav", "weather_noisy.wav"].map(path);
    let clips = clips.each_ref().map(String::as_str);
    for model in ["golden/qwen3_asr", "golden/lfm2_audio"].map(|name| fixtures().join(name)) {
        let common =
            ["transcribe", "-q", "-f", "jsonl", "--segment", "0", "--token-ids", "-m", model.to_str().unwrap()];
        let documents = tympan(common.iter().chain(&clips)).expect(6).json_lines();
        let mut n_cut = 0;
        for document in documents {
            let by_length = (16.0 * document["duration"].as_f64().unwrap()).ceil() + 32.0;
            let (limit, segment) = (by_length.max(64.0) as usize, &document["segments"][0]);
            // No stop token is behind a text that was cut.
            let n_ids = segment["token_ids"].as_array().unwrap().len();
            let is_cut = segment["truncated"] == true;
            assert!(if is_cut { n_ids == limit } else { n_ids <= limit + 1 }, "{document}");
            assert_eq!(document["truncated"], is_cut);
            n_cut += usize::from(is_cut && by_length > 64.0);
        }
        assert!(n_cut > 0, "all texts ended before");
    }
    let few = transcribe(&["-q", "-f", "jsonl", "--token-ids", "--max-tokens", "2"]).expect(6);
    assert_eq!(few.json_lines()[0]["segments"][0]["token_ids"].as_array().unwrap().len(), 2);
}

/// "Times in seconds of the file's own clock, three decimals"; "with several segments the names begin with `segment.N.`".
#[test]
fn segments_have_times_of_three_decimals_and_tensors_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let dump = dir.path().to_str().unwrap();
    let args = [
        "transcribe",
        "-q",
        "-f",
        "json",
        "--segment",
        "7",
        "--dump",
        dump,
        &path("radio_22k_float.wav"),
        &path("long_24s.wav"),
    ];
    let documents = tympan(args).expect(0).json_lines();
    let segments = |i: usize| documents[i]["segments"].as_array().unwrap();
    let times = documents.iter().flat_map(|document| {
        let segments = document["segments"].as_array().unwrap().iter();
        segments.flat_map(|s| [&s["start"], &s["end"]]).chain([&document["duration"]])
    });
    for time in times {
        let decimals = time.to_string().split_once('.').unwrap().1.len();
        assert!(decimals <= 3, "{time}");
    }
    let bytes = std::fs::read(dir.path().join("long_24s.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<&str> = tensors.names();
    names.sort_unstable();
    let mut want: Vec<String> = (0..segments(1).len())
        .flat_map(|i| {
            ["mel", "audio_embeddings", "prompt_ids", "first_logits"].map(|name| format!("segment.{i}.{name}"))
        })
        .collect();
    want.sort_unstable();
    assert!(segments(1).len() > 1 && names == want, "{names:?}");
}

/// "`--type f32|f16|...`": all of them, and "`q3_k`, `q4_k`, `q5_k` are the `_m` mixes".
#[test]
fn the_types_of_convert_are_those_of_the_contract() {
    const TYPES: &str =
        "f32|f16|bf16|q8_0|q4_0|q4_1|q5_0|q5_1|q2_k|q3_k_s|q3_k_m|q3_k_l|q4_k_s|q4_k_m|q5_k_s|q5_k_m|q6_k|iq4_nl";
    let model = checkpoint("tiny-qwen3-asr");
    for name in TYPES.split('|').chain(["q3_k", "q4_k", "q5_k"]) {
        for flag in ["--type", "--audio-type"] {
            tympan(["convert", &model, "--dry-run", flag, name]).expect(0);
        }
    }
    let refused = tympan(["convert", &model, "--dry-run", "--type", "q9"]).expect(2).err;
    let accepted = refused.split_once("[possible values: ").unwrap().1.split_once(']').unwrap().0;
    assert_eq!(accepted.split(", ").collect::<std::collections::BTreeSet<_>>(), TYPES.split('|').collect());
}

/// "`--kv-type f16|f32`: type of the attention cache (`generate` and `bench` too)".
#[test]
fn the_type_of_the_cache_is_a_flag_of_all_that_have_one() {
    tympan(["generate", "-q", "-p", "one", "-n", "2", "--kv-type", "f32"]).expect(0);
    for kv_type in ["f16", "f32"] {
        let args = ["bench", "-q", "-p", "2", "-n", "0", "-r", "1", "-o", "jsonl", "--kv-type", kv_type];
        assert_eq!(tympan(args).expect(0).json_lines()[0]["type_k"], kv_type);
    }
}

/// "Error text: what failed, on which file, expected and found, and a hint when there is one", by its example.
#[test]
fn a_film_without_sound_is_said_to_be_one() {
    let film = fixtures().join("formats/video_only.mp4");
    let run = tympan(["transcribe".as_ref(), "-q".as_ref(), film.as_os_str()]).expect(3);
    assert!(run.err.ends_with("video_only.mp4: no audio track (container mp4; tracks: video h264)\n"), "{}", run.err);
}

/// "With several inputs each line names its file and a last one counts done, skipped, failed."
#[test]
fn the_lines_of_several_inputs_name_them_and_are_counted() {
    let (yes, door) = (path("yes.wav"), path("open_door.wav"));
    let run = tympan(["transcribe", &yes, "/nowhere/missing.wav", &door]).expect(1);
    let lines: Vec<&str> = run.err.lines().skip(1).collect();
    let [first, error, second, count] = lines[..] else { panic!("{}", run.err) };
    assert!(
        first.starts_with(&format!("{yes}: audio ")) && second.starts_with(&format!("{door}: audio ")),
        "{}",
        run.err
    );
    assert!(error.starts_with("error: /nowhere/missing.wav: "), "{}", run.err);
    assert_eq!(count, "2 done, 0 skipped, 1 failed");
    let alone = tympan(["transcribe", &yes]).expect(0);
    assert!(alone.err.lines().nth(1).unwrap().starts_with("audio ") && alone.err.lines().count() == 2, "{}", alone.err);
}
