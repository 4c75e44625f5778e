//! Standard streams that are closed, full or slow: what every subcommand makes of them.
//!
//! Pairs of conditions are covered; `TYMPAN_TEST_ALL=1` takes all combinations.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{PipeReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::run::{clip, command, fixtures};
use crate::signals::long_recording;

/// Whether every combination is to be run.
pub fn takes_all() -> bool {
    std::env::var_os("TYMPAN_TEST_ALL").is_some_and(|value| !value.is_empty())
}

/// How standard output is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Out {
    Open,
    /// A reader that takes one byte at a time.
    Slow,
    /// A reader that has gone.
    Gone,
    /// No descriptor.
    Closed,
    Full,
}

/// How standard error is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Err {
    Open,
    Gone,
    Closed,
    Full,
}

/// How standard input is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum In {
    Empty,
    Closed,
}

/// Arguments of a run that succeeds; `OUT` stands for a file in a folder of its own.
const RUNS: &[&[&str]] = &[
    &["transcribe", "CLIP"],
    &["transcribe", "-f", "jsonl", "CLIP", "CLIP"],
    &["transcribe", "--timestamps", "segment", "CLIP"],
    &["transcribe", "--help"],
    &["convert", "MODEL", "--dry-run", "-o", "OUT"],
    &["convert", "MODEL", "-o", "OUT"],
    &["convert", "MODEL", "--verify", "-v", "-o", "OUT"],
    &["quantize", "GGUF", "OUT", "q4_0", "--allow-requantize"],
    &["generate", "-v", "--prompt-ids", "1,2,3", "-n", "3", "--ignore-eos"],
    &["bench", "-p", "8", "-n", "1", "-r", "1", "--progress"],
    &["bench", "--list-devices"],
    &["inspect", "GGUF"],
    &["inspect", "--devices"],
    &["completions", "bash"],
    &["man"],
    &["-V", "-v"],
    &["--help"],
];

/// The arguments with files in place of their names.
fn arguments(run: &[&str], folder: &Path) -> Vec<OsString> {
    let file = |name: &&str| match *name {
        "CLIP" => clip("yes.wav").into(),
        "MODEL" => fixtures().join("golden/lfm2").into(),
        "GGUF" => fixtures().join("quant/model.gguf").into(),
        "OUT" => folder.join("out.gguf").into(),
        other => other.into(),
    };
    run.iter().map(file).collect()
}

/// A command whose standard streams are so, and the pipe of its standard output where there is a reader. A shell does what
/// is in `before` first.
pub fn with_streams(
    before: &str,
    arguments: &[OsString],
    out: Out,
    err: Err,
    input: In,
) -> (Command, Option<PipeReader>) {
    let program = command(arguments);
    // Only a shell can leave a descriptor closed.
    let mut script = format!("{before}exec \"$0\" \"$@\"");
    let mut close = |is_closed: bool, how: &str| script.push_str(if is_closed { how } else { "" });
    close(out == Out::Closed, " >&-");
    close(err == Err::Closed, " 2>&-");
    close(input == In::Closed, " <&-");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).arg(program.get_program()).args(program.get_args());
    shell.current_dir(program.get_current_dir().unwrap()).stdin(Stdio::null());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    match out {
        Out::Full => shell.stdout(full()),
        Out::Open | Out::Slow | Out::Gone | Out::Closed => shell.stdout(writer),
    };
    let reader = matches!(out, Out::Open | Out::Slow).then_some(reader);
    match err {
        Err::Open => shell.stderr(Stdio::piped()),
        Err::Full => shell.stderr(full()),
        Err::Gone | Err::Closed => shell.stderr(std::io::pipe().unwrap().1),
    };
    (shell, reader)
}

/// All that comes out of a pipe, read one byte at a time where standard output is slow.
pub fn read(mut pipe: PipeReader, out: Out) -> String {
    let mut bytes = Vec::new();
    if out == Out::Slow {
        let mut byte = [0];
        while pipe.read(&mut byte).unwrap() > 0 {
            bytes.push(byte[0]);
            std::thread::yield_now();
        }
    } else {
        pipe.read_to_end(&mut bytes).unwrap();
    }
    String::from_utf8(bytes).unwrap()
}

/// Numbers and the name of a folder differ from run to run.
pub fn without_numbers(text: &str, folder: &Path) -> String {
    text.replace(folder.to_str().unwrap(), "").chars().filter(|c| !c.is_ascii_digit() && *c != ' ').collect()
}

fn check(run: &[&str], want: &str, (out, err, input): (Out, Err, In)) {
    let what = format!("{run:?}, {out:?}, {err:?}, {input:?}");
    let folder = tempfile::tempdir().unwrap();
    let arguments = arguments(run, folder.path());
    let (mut shell, reader) = with_streams("", &arguments, out, err, input);
    let child = shell.spawn().unwrap();
    // The command keeps the writer's end.
    drop(shell);
    let text = reader.map(|pipe| read(pipe, out));
    let finished = child.wait_with_output().unwrap();
    let said = String::from_utf8(finished.stderr).unwrap();
    assert!(!said.contains("panicked") && !said.contains("os error"), "{what}: {said}");
    let code = if out == Out::Full { 1 } else { 0 };
    assert_eq!(finished.status.code(), Some(code), "{what}: {said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    let full = ["error: standard output cannot be written: no space left on device"];
    assert_eq!(errors, if out == Out::Full && err == Err::Open { &full[..] } else { &[] }, "{what}");
    if let Some(text) = text {
        assert_eq!(without_numbers(&text, folder.path()), want, "{what}");
    }
    let mut left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.retain(|name| name != "out.gguf");
    assert!(left.is_empty(), "{what}: {left:?}");
    let writes = run.contains(&"OUT") && !run.contains(&"--dry-run");
    assert_eq!(folder.path().join("out.gguf").exists(), writes, "{what}: work is not lost with a stream");
}

#[cfg(target_os = "linux")]
#[test]
fn streams_cost_nothing_but_what_would_have_been_on_them() {
    let all = takes_all();
    let mut covered = BTreeSet::new();
    for (i, run) in RUNS.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let undisturbed = command(arguments(run, folder.path())).output().unwrap();
        let want = without_numbers(&String::from_utf8(undisturbed.stdout).unwrap(), folder.path());
        assert!(!want.is_empty(), "{run:?}");
        for (out, err, input) in conditions() {
            let pairs = [format!("{i} {out:?}"), format!("{i} {err:?}"), format!("{i} {input:?}")];
            let others = [format!("{out:?} {err:?}"), format!("{out:?} {input:?}"), format!("{err:?} {input:?}")];
            let n_before = covered.len();
            covered.extend(pairs.into_iter().chain(others));
            if all || covered.len() > n_before {
                check(run, &want, (out, err, input));
            }
        }
    }
}

/// All conditions of the streams; neighbours differ in as much as possible, so that few of them cover all pairs.
fn conditions() -> Vec<(Out, Err, In)> {
    let outs = [Out::Open, Out::Slow, Out::Gone, Out::Closed, Out::Full];
    let errs = [Err::Open, Err::Gone, Err::Closed, Err::Full];
    let inputs = [In::Empty, In::Closed];
    let n = outs.len() * errs.len() * inputs.len();
    (0..n).map(|i| (outs[i % outs.len()], errs[i % errs.len()], inputs[i / 20])).collect()
}

#[test]
fn text_is_flushed_per_segment_into_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let long = long_recording(folder.path());
    let run = |flags: &[&str]| {
        let mut command = command(["transcribe", "-q", "--segment", "6"]);
        command.args(flags).arg(&long).stdout(Stdio::piped());
        command
    };
    let document: Value = serde_json::from_slice(&run(&["-f", "json"]).output().unwrap().stdout).unwrap();
    let n_spoken = document["segments"].as_array().unwrap().iter().filter(|s| s["text"] != "").count();
    for flags in [&[][..], &["--timestamps", "segment"]] {
        let mut child = run(flags).spawn().unwrap();
        let (mut out, mut buffer, mut n_reads) = (child.stdout.take().unwrap(), [0; 1 << 16], 0);
        while out.read(&mut buffer).unwrap() > 0 {
            n_reads += 1;
        }
        assert!(child.wait().unwrap().success());
        // A reader that is late finds several at once.
        assert!(n_reads > n_spoken / 2 && n_reads < 2 * n_spoken, "{n_reads} reads, {n_spoken} segments");
    }
}

/// On a terminal, for every segment. `script` is a terminal; without it the test says so.
#[cfg(target_os = "linux")]
#[test]
fn text_appears_as_it_is_decoded_on_a_terminal() {
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("skipped: `script` of util-linux is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let long = long_recording(folder.path());
    let program = command(["transcribe", "-q", "--segment", "6"]);
    let text = String::from_utf8(command(["transcribe", "-q", "--segment", "6"]).arg(&long).output().unwrap().stdout);
    let text = text.unwrap();
    let line = format!("{} transcribe -q --segment 6 {}", program.get_program().display(), long.display());
    let mut terminal = Command::new("script");
    terminal.args(["-qefc", &line, "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = terminal.spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let (mut shown, mut buffer, mut n_reads) = (Vec::new(), [0; 1 << 16], 0);
    loop {
        let n = out.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        shown.extend_from_slice(&buffer[..n]);
        n_reads += 1;
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(String::from_utf8(shown).unwrap().replace('\r', ""), text);
    // More often than once a segment, of which there are about eighty. On a busy machine many words come with one read.
    const N_SEGMENTS: usize = 80;
    assert!(n_reads > 2 * N_SEGMENTS, "{n_reads} reads, {} words", text.split_whitespace().count());
}
