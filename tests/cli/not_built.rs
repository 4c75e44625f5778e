//! What the contract names and this version does not have: refused by name, and offered nowhere.

use crate::run::{Run, clip, command, tympan};

const SAYS: &str = "not in this version";

/// Flags and values, and the subcommand that will have them. Formats of subtitles and their flags are elsewhere.
const FLAGS: [(&str, &[&str]); 38] = [
    ("transcribe", &["--timestamps", "word"]),
    ("transcribe", &["--aligner", "a.gguf"]),
    ("transcribe", &["--raw-words"]),
    ("transcribe", &["--vad", "off"]),
    ("transcribe", &["--vad", "cut"]),
    ("transcribe", &["--vad", "skip"]),
    ("transcribe", &["--loop-retry", "split"]),
    ("transcribe", &["--loop-retry", "penalty"]),
    ("transcribe", &["--loop-retry", "none"]),
    ("transcribe", &["--drop-suspect"]),
    ("transcribe", &["--track", "1"]),
    ("transcribe", &["--from", "1:30"]),
    ("transcribe", &["--to", "0:01:30.5"]),
    ("transcribe", &["--resume"]),
    ("transcribe", &["--no-resume"]),
    ("transcribe", &["--device", "cuda"]),
    ("transcribe", &["--device", "cuda:0"]),
    ("transcribe", &["--gpu-layers", "all"]),
    ("transcribe", &["--memory-budget", "1G"]),
    ("generate", &["--device", "cuda"]),
    ("generate", &["--gpu-layers", "7"]),
    ("generate", &["--memory-budget", "1G"]),
    ("generate", &["--ctx-checkpoints", "16"]),
    ("generate", &["--spec-draft-hf", "a/b"]),
    ("generate", &["--spec-synth-len", "3"]),
    ("bench", &["--spec-draft-hf", "a/b"]),
    ("bench", &["--spec-synth-len", "3"]),
    ("bench", &["--ctx-checkpoints", "16"]),
    ("bench", &["--device", "cuda"]),
    ("bench", &["--gpu-layers", "all"]),
    ("bench", &["--memory-budget", "1G"]),
    ("inspect", &["--devices", "--device", "cuda:1"]),
    ("inspect", &["--devices", "--gpu-layers", "7"]),
    ("inspect", &["--devices", "--memory-budget", "1G"]),
    ("serve", &["--spec-draft-hf", "a/b"]),
    ("serve", &["--cache-ram", "16"]),
    ("serve", &["--device", "cuda"]),
    ("serve", &["--gpu-layers", "7"]),
];

/// Subcommands with arguments that they will take.
const SUBCOMMANDS: [&[&str]; 4] =
    [&["live"], &["live", "-"], &["live", "--mic"], &["live", "--raw", "s16le:16000:1", "-f", "jsonl"]];

#[track_caller]
fn check(run: Run, named: &str) {
    let run = run.expect(2);
    assert!(run.out.is_empty() && run.err.lines().count() == 1, "{named}: {}", run.err);
    assert!(run.err.contains(SAYS) && run.err.contains(named), "{named}: {}", run.err);
}

/// What a subcommand needs besides flags.
fn needs(subcommand: &str) -> Vec<String> {
    match subcommand {
        "transcribe" => vec![clip("yes.wav").to_str().unwrap().to_owned()],
        "generate" => vec!["-p".into(), "one".into()],
        _ => Vec::new(),
    }
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    for (subcommand, flag) in FLAGS {
        let needs = needs(subcommand);
        let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        let named = flag.iter().find(|word| word.starts_with("--") && **word != "--devices").unwrap();
        check(tympan([&[subcommand], &needs[..], flag].concat()), named);
    }
    for args in SUBCOMMANDS {
        check(tympan(args), args[0]);
    }
    for short in ["-hfd", "-ngld", "-devd", "-ctkd", "-ctvd", "-td"] {
        check(tympan(["bench", short, "1"]), short);
        check(tympan(["serve", short, "1"]), short);
        check(tympan(["generate", "-p", "one", short, "1"]), short);
    }
    for subcommand in ["transcribe", "generate", "bench", "inspect"] {
        let args = [vec![subcommand.to_owned()], needs(subcommand)].concat();
        check(command(args).env("TYMPAN_KERNELS", "/kernels").output().unwrap().into(), "TYMPAN_KERNELS");
    }
    let empty: Run = command(["inspect", "--devices"]).env("TYMPAN_KERNELS", "").output().unwrap().into();
    empty.expect(0);
}

#[test]
fn what_is_not_built_is_not_what_somebody_meant() {
    for args in
        [["transcribe", "--aligne", "x"], ["generate", "--spec-synth-le", "0.1"], ["bench", "--memory-budge", "1G"]]
    {
        let run = tympan(args).expect(2);
        assert!(run.err.contains(args[1]) && !run.err.contains("similar"), "{}", run.err);
    }
}

#[test]
fn what_is_not_built_is_offered_nowhere() {
    let shells = ["bash", "zsh", "fish", "elvish", "powershell"];
    for (subcommand, flag) in FLAGS {
        let pages = [tympan([subcommand, "--help"]).expect(0).out, tympan(["man", subcommand]).expect(0).out];
        let name = flag.iter().find(|word| word.starts_with("--") && **word != "--devices").unwrap();
        // Those that have other values.
        if matches!(*name, "--timestamps" | "--device") {
            let value = flag[flag.len() - 1];
            assert!(!pages.iter().any(|page| page.contains(value)), "{subcommand} {flag:?}");
            continue;
        }
        let whole =
            |page: &str| page.replace("\\-", "-").split(|c: char| !c.is_alphanumeric() && c != '-').any(|w| w == *name);
        assert!(pages.iter().all(|page| !whole(page)), "{subcommand} {name}");
    }
    let texts = shells.map(|shell| tympan(["completions", shell]).expect(0).out);
    let texts = texts.into_iter().chain([tympan(["--help"]).expect(0).out, tympan(["man"]).expect(0).out]);
    for text in texts {
        let has = |word: &str| text.split(|c: char| !c.is_alphanumeric() && c != '-').any(|found| found == word);
        for word in ["live", "vad", "--vad", "loop-retry", "aligner", "--aligner", "drop-suspect", "cuda"] {
            assert!(!has(word), "{word}");
        }
    }
}
