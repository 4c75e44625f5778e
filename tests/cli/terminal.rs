//! What is shown on a terminal. `script` of util-linux is one; without it the tests say so.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::run::{clip, command, fixtures};

/// The arguments of a run over two recordings.
fn arguments(flags: &[&str]) -> Vec<String> {
    let clips = ["long_24s.wav", "yes.wav"].map(|name| clip(name).display().to_string());
    let flags = ["transcribe"].iter().chain(flags).map(|&flag| flag.to_owned());
    flags.chain(clips).collect()
}

/// What such a run shows on the terminal; a shell redirects what goes elsewhere. `None` where there is no terminal.
fn shown(flags: &[&str], redirected: &str) -> Option<String> {
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("skipped: `script` of util-linux is not installed");
        return None;
    }
    let program = env!("CARGO_BIN_EXE_tympan");
    let line = format!("'{program}' '{}' {redirected}", arguments(flags).join("' '"));
    let mut terminal = Command::new("script");
    let run = terminal.args(["-qefc", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let screen = String::from_utf8(run.stdout).unwrap().replace("\r\n", "\n");
    assert!(run.status.success(), "{screen}");
    Some(screen)
}

/// What the run prints into a pipe.
fn printed(flags: &[&str]) -> String {
    String::from_utf8(command(arguments(flags)).output().unwrap().stdout).unwrap()
}

#[test]
fn texts_on_a_terminal_have_the_names_of_their_files() {
    let [long, yes] = ["long_24s.wav", "yes.wav"].map(|name| clip(name).display().to_string());
    let Some(screen) = shown(&["-q"], "") else { return };
    let transcripts = std::fs::read_to_string(fixtures().join("audio/transcripts.tsv")).unwrap();
    let text = transcripts.lines().find_map(|line| line.strip_prefix("long_24s.wav\t")).unwrap();
    let text = text.split('\t').next().unwrap();
    let rest = screen.strip_prefix(&format!("==> {long} <==\n")).unwrap_or_else(|| panic!("{screen}"));
    let (first, second) = rest.split_once(&format!("\n==> {yes} <==\n")).unwrap_or_else(|| panic!("{screen}"));
    assert_eq!(first.split_whitespace().next(), text.split_whitespace().next());
    assert_eq!(second, "yes\n");
    // A pipe gets the texts alone.
    assert_eq!(printed(&["-q"]), format!("{first}\nyes\n"));
}

/// Where words appear as they are decoded, what is wrong with the next file does not come into the middle of them.
#[test]
fn a_file_that_cannot_be_read_is_said_in_its_place_on_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.wav");
    std::fs::write(&broken, b"RIFF\x10\0\0\0WAVEfmt ").unwrap();
    let [long, yes] = ["long_24s.wav", "yes.wav"].map(clip);
    let files = [&long, &broken, &yes].map(|path| format!("'{}'", path.display())).join(" ");
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("skipped: `script` of util-linux is not installed");
        return;
    }
    let line = format!("NO_COLOR=1 '{}' transcribe -q {files}", env!("CARGO_BIN_EXE_tympan"));
    let run = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let screen = String::from_utf8(run.stdout).unwrap().replace("\r\n", "\n");
    assert_eq!(run.status.code(), Some(1), "{screen}");
    let (texts, rest) = screen.split_once(&format!("error: {}: ", broken.display())).unwrap();
    assert_eq!(texts.lines().count(), 2, "{screen}");
    assert!(texts.ends_with("friday morning\n"), "{screen}");
    assert!(rest.ends_with(&format!("\n==> {} <==\nyes\n", yes.display())), "{screen}");
}

#[test]
fn progress_on_a_terminal_says_file_position_speed_and_remaining_time() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let to_file = |out: &Path| format!("> '{}'", out.display());
    let Some(screen) = shown(&["-f", "jsonl", "--segment", "6"], &to_file(&out)) else { return };
    assert_eq!(std::fs::read_to_string(out).unwrap().lines().count(), 2);
    let name = clip("long_24s.wav").display().to_string();
    // The name is cut where the line is full.
    let name = &name[..name.len().min(20)];
    assert!(screen.contains(&format!("1 of 2 | 0:00 of 0:24 | {name}")), "{screen:?}");
    assert!(screen.contains("2 of 2 | 0:00 of 0:01 | "), "{screen:?}");
    let lines = screen.split(['\r', '\n']).filter(|line| line.contains("1 of 2") && line.contains(" left | "));
    let positions: Vec<&str> = lines.map(|line| line.split(" | ").nth(1).unwrap()).collect();
    assert!(positions.len() >= 2 && positions.is_sorted(), "{positions:?} in {screen:?}");
    // The last line is the count of files, after all progress has gone.
    assert!(screen.ends_with("2 done, 0 skipped, 0 failed\n"), "{screen:?}");
    assert_eq!(shown(&["-q", "-f", "jsonl"], "> /dev/null").unwrap(), "");
}

#[test]
fn text_on_a_terminal_is_not_disturbed_by_progress() {
    let Some(screen) = shown(&[], "") else { return };
    assert!(screen.contains("==> ") && screen.contains("2 done") && !screen.contains("1 of 2"), "{screen:?}");
    assert!(!screen.contains('\u{1b}'), "{screen:?}");
}

#[test]
fn a_bar_of_work_is_shown_on_terminals_alone_and_not_with_q() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = fixtures().join("models/tiny-qwen3-asr").display().to_string();
    let arguments = |name: &str| {
        let out = folder.path().join(name).display().to_string();
        ["convert".to_owned(), checkpoint.clone(), "--bundle".to_owned(), "-o".to_owned(), out]
    };
    let on_terminal = |name: &str, flag: &str| {
        let line = format!("'{}' '{}' {flag}", env!("CARGO_BIN_EXE_tympan"), arguments(name).join("' '"));
        let mut terminal = Command::new("script");
        let run = terminal.args(["-qefc", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
        String::from_utf8(run.stdout).unwrap()
    };
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("skipped: `script` of util-linux is not installed");
        return;
    }
    assert!(on_terminal("a.gguf", "").contains("% "), "{:?}", on_terminal("a.gguf", ""));
    let quiet = on_terminal("b.gguf", "-q");
    assert!(quiet.ends_with("b.gguf\r\n") && quiet.lines().count() == 1, "{quiet:?}");
    let piped = command(arguments("c.gguf")).output().unwrap();
    assert_eq!(String::from_utf8(piped.stderr).unwrap(), "");
}

#[test]
fn lines_on_a_terminal_are_a_conversation() {
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("skipped: `script` of util-linux is not installed");
        return;
    }
    let program = env!("CARGO_BIN_EXE_tympan");
    let ask = |args: &[&str]| {
        let out = command([&["generate", "-q", "-n", "12", "--chat"], args].concat()).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    let first = ask(&["--system", "s", "-p", "please open the door"]);
    let line = format!("'{program}' generate -q -n 12 --system s");
    let mut terminal = Command::new("script");
    let mut terminal = terminal.args(["-qefc", &line, "/dev/null"]);
    terminal = terminal.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut run = terminal.spawn().unwrap();
    let mut keys = run.stdin.take().unwrap();
    // An empty line is no turn; the end of the input ends the conversation.
    std::io::Write::write_all(&mut keys, b"please open the door\n\nclose it\n\x04").unwrap();
    let run = run.wait_with_output().unwrap();
    drop(keys);
    let screen = String::from_utf8(run.stdout).unwrap().replace("\r\n", "\n");
    assert!(run.status.success(), "{screen}");
    assert!(screen.contains(&format!("> {first}> ")), "{screen:?}, want {first:?}");
    assert_eq!(screen.matches("> ").count(), 4, "{screen:?}");
}
