//! Help, manual pages and completions: whole, in step with each other, and without what this version does not have.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::run::{Run, clip, command, tympan};

/// Subcommands that compute.
const SUBCOMMANDS: [&str; 7] = ["transcribe", "convert", "bench", "quantize", "generate", "inspect", "serve"];
/// Variables that users may set.
const VARIABLES: [&str; 5] = ["TYMPAN_ISA", "TYMPAN_GRAPH_REUSE", "TYMPAN_GRAPH_VERIFY", "TYMPAN_CACHE", "NO_COLOR"];

fn help(subcommand: &str, flag: &str) -> String {
    let args = [subcommand, flag];
    tympan(args.iter().filter(|arg| !arg.is_empty())).expect(0).out
}

/// The flags of a help text, each with all lines that belong to it.
fn flags(help: &str) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    let options = help.split_once("\nOptions:\n").expect("there are options").1;
    for line in options.lines().take_while(|line| line.is_empty() || line.starts_with(' ')) {
        let name = line.split_whitespace().find(|word| word.starts_with("--"));
        let begins = line.len() - line.trim_start().len() <= 6 && line.trim_start().starts_with('-');
        match (begins, name, all.last_mut()) {
            (true, Some(name), _) => all.push((name.trim_end_matches(',').to_owned(), line.to_owned())),
            (_, _, Some((_, text))) => *text = format!("{text} {}", line.trim()),
            _ => {}
        }
    }
    all.retain(|(name, _)| name != "--help" && name != "--version");
    all
}

#[test]
fn long_help_has_examples_environment_and_exit_codes() {
    for subcommand in SUBCOMMANDS.into_iter().chain([""]) {
        let (short, long) = (help(subcommand, "-h"), help(subcommand, "--help"));
        assert!(short.lines().count() < long.lines().count(), "{subcommand}");
        for part in ["Examples:\n  tympan ", "\nEnvironment:\n", "\nExit codes: 0 done"].into_iter().chain(VARIABLES) {
            assert!(long.contains(part), "{subcommand}: want {part:?} in {long}");
        }
        assert!(long.contains("empty variable counts as unset"), "{long}");
        assert!(!short.contains("Environment:") && !short.contains("Examples:"), "{short}");
    }
}

#[test]
fn every_flag_shows_its_default() {
    for subcommand in SUBCOMMANDS {
        for form in ["-h", "--help"] {
            let flags = flags(&help(subcommand, form));
            assert!(flags.len() > 8, "{subcommand} {form}: {flags:?}");
            for (name, text) in flags {
                assert!(text.contains("[default"), "{subcommand} {form}: {name}: {text}");
            }
        }
    }
}

#[test]
fn every_subcommand_has_a_whole_manual_page() {
    let whole = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "EXAMPLES", "SEE ALSO"];
    for subcommand in SUBCOMMANDS.into_iter().chain([""]) {
        let page = tympan(["man", subcommand].iter().filter(|arg| !arg.is_empty())).expect(0).out;
        let heads: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
        let heads: Vec<&str> =
            heads.iter().map(|head| head.trim_matches('"')).filter(|h| *h != "SUBCOMMANDS").collect();
        assert_eq!(heads, whole, "{subcommand}");
        let title =
            if subcommand.is_empty() { "TYMPAN".to_owned() } else { format!("TYMPAN-{}", subcommand.to_uppercase()) };
        assert_eq!(page.lines().filter(|line| line.starts_with(".TH ")).count(), 1);
        let plain = page.replace("\\-", "-").replace("\\fB", "").replace("\\fR", "").replace("\\fI", "");
        assert!(plain.contains(&format!(".TH {title} 1")), "{page:.300}");
        for variable in VARIABLES {
            assert!(plain.contains(variable), "{subcommand}: {variable}");
        }
        let example = format!("tympan {subcommand}");
        assert!(plain.contains(example.trim_end()), "{subcommand}");
        if subcommand.is_empty() {
            assert!(SUBCOMMANDS.iter().all(|name| plain.contains(&format!("tympan-{name}(1)"))), "{page}");
            continue;
        }
        assert!(plain.contains(&format!("tympan-{subcommand} - ")) && plain.contains("tympan(1)"), "{page:.600}");
        for (name, _) in flags(&help(subcommand, "--help")) {
            assert!(plain.contains(&name), "{subcommand}: {name}");
        }
    }
    for subcommand in ["completions", "man"] {
        assert!(tympan(["man", subcommand]).expect(0).out.contains(".SH SYNOPSIS"));
    }
    let unknown = tympan(["man", "transcrib"]).expect(2);
    assert!(unknown.err.contains("'transcribe'"), "{}", unknown.err);
}

#[test]
fn a_formatter_has_nothing_to_say_about_the_pages() {
    if Command::new("groff").arg("--version").output().is_err() {
        eprintln!("skipped: groff is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for subcommand in SUBCOMMANDS {
        let page = dir.path().join(subcommand);
        std::fs::write(&page, tympan(["man", subcommand]).expect(0).out).unwrap();
        let mut groff = Command::new("groff");
        let said = groff.args(["-man", "-Tutf8", "-ww", "-z"]).arg(&page).stdin(Stdio::null()).output().unwrap();
        assert!(said.status.success() && said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
    }
}

#[test]
fn completions_offer_what_is_accepted_and_nothing_else() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = tympan(["completions", shell]).expect(0).out;
        for flag in ["language", "max-tokens", "tensor-type", "ignore-eos", "n-prompt", "graph-reuse", "spec-type"] {
            assert!(script.contains(flag), "{shell}: {flag}");
        }
        for subcommand in SUBCOMMANDS {
            assert!(script.contains(subcommand), "{shell}: {subcommand}");
        }
        for refused in
            ["gpu-layers\n", "loop-retry", "--vad", "'vad'", "n-cpu-moe", "aligner", "hf-repo", "spec-draft-hf"]
        {
            assert!(!script.contains(refused), "{shell}: {refused}");
        }
    }
    let bash = tympan(["completions", "bash"]).expect(0).out;
    let values = |flag: &str| {
        let at = bash.split(&format!("--{flag})")).nth(1).unwrap_or_default();
        at.lines().find(|line| line.contains("compgen")).unwrap_or_default().to_owned()
    };
    let timestamps = values("timestamps");
    assert!(timestamps.contains("none segment") && !timestamps.contains("word"), "{timestamps}");
    assert!(!bash.contains(" word"), "{bash}");
}

#[test]
fn the_device_and_the_model_are_named() {
    let clip = clip("yes.wav");
    let clip = clip.to_str().unwrap();
    let run = tympan(["transcribe", "-v", "-f", "json", clip]).expect(0);
    let document: Value = serde_json::from_str(&run.out).unwrap();
    // As the checkpoint is called that is built in.
    assert_eq!((&document["model"]["file"], &document["device"]), (&"tiny-qwen3-asr".into(), &"cpu".into()));
    let line =
        |run: &Run, begins: &str| run.err.lines().find(|line| line.starts_with(begins)).unwrap_or_default().to_owned();
    let device = line(&run, "device: cpu (");
    assert!(device.contains("threads: ") && device.contains("auto") && device.contains("GPU"), "{}", run.err);
    let summary = line(&run, "audio ");
    assert!(summary.ends_with(" | cpu") && summary.contains(" MiB") && !summary.contains("RTF 0.00 "), "{summary}");
    let asked = tympan(["transcribe", "-v", "--device", "cpu", clip]).expect(0);
    assert!(line(&asked, "device: cpu (").contains("--device"), "{}", asked.err);
    let generated = tympan(["generate", "-v", "-p", "one", "-n", "1"]).expect(0);
    assert!(line(&generated, "load ").ends_with(" | cpu") && !generated.err.contains(" 0/s"), "{}", generated.err);
    assert!(line(&generated, "device: cpu (").contains("auto"), "{}", generated.err);
}

/// `script` is a terminal; without it the test says so.
#[cfg(target_os = "linux")]
#[test]
fn colours_are_the_same_for_all_errors_and_go_with_no_color() {
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("skipped: `script` of util-linux is not installed");
        return;
    }
    let program = command([""; 0]).get_program().to_str().unwrap().to_owned();
    let on_terminal = |args: &str, variables: &[(&str, &str)]| {
        let mut script = Command::new("script");
        script.args(["-qec", &format!("{program} {args}"), "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
        script.envs(variables.iter().copied()).stdin(Stdio::null());
        String::from_utf8(script.output().unwrap().stdout).unwrap()
    };
    const ERROR: &str = "\u{1b}[1m\u{1b}[31merror:\u{1b}[0m";
    for args in ["transcribe --no-such-flag", "transcribe /nowhere/missing.wav", "transcribe --device tpu x.wav"] {
        for variables in [&[][..], &[("NO_COLOR", "")]] {
            let said = on_terminal(args, variables);
            assert!(said.contains(ERROR), "{args} {variables:?}: {said:?}");
        }
        for variables in [&[("NO_COLOR", "1")], &[("TERM", "dumb")]] {
            let said = on_terminal(args, variables);
            assert!(said.contains("error: ") && !said.contains('\u{1b}'), "{args} {variables:?}: {said:?}");
        }
        let piped = tympan(args.split(' '));
        assert!(piped.err.contains("error: ") && !piped.err.contains('\u{1b}'), "{}", piped.err);
    }
}
