//! Signals: which exit code they give, what is kept, and which of them are left alone.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::run::{clip, command, tympan};

/// The signals that end a run, with their numbers.
const SIGNALS: [(&str, i32); 3] = [("HUP", 1), ("INT", 2), ("TERM", 15)];
/// What is added to the number of a signal for the exit code.
const EXIT: i32 = 128;
/// Length of the segments, in seconds.
const SEGMENT_S: &str = "6";

/// The signals that end a run, and its exit code: without those that these tests were started to ignore, as a shell does
/// with what it runs in the background, for then the program ignores them too.
pub fn signals() -> Vec<(&'static str, i32)> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let is_ignored = |number: i32| mask.unwrap_or(0) >> (number - 1) & 1 == 1;
    let (left_out, all): (Vec<_>, Vec<_>) = SIGNALS.into_iter().partition(|&(_, number)| is_ignored(number));
    left_out.iter().for_each(|(name, _)| eprintln!("skipped: {name} was ignored when the tests were started"));
    assert!(!all.is_empty());
    all.into_iter().map(|(name, number)| (name, EXIT + number)).collect()
}

/// Sends a signal to a process.
pub fn send(signal: &str, child: &Child) {
    let kill = format!("kill -{signal} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// Writes a recording that takes seconds to transcribe: a clip again and again.
pub fn long_recording(folder: &Path) -> PathBuf {
    const HEADER: usize = 44;
    const REPEATS: usize = 20;
    let clip = std::fs::read(clip("long_24s.wav")).unwrap();
    let (header, data) = clip.split_at(HEADER);
    assert_eq!(&header[36..40], b"data");
    let n_bytes = u32::try_from(data.len() * REPEATS).unwrap();
    let mut bytes = header.to_vec();
    bytes[4..8].copy_from_slice(&(n_bytes + 36).to_le_bytes());
    bytes[40..44].copy_from_slice(&n_bytes.to_le_bytes());
    bytes.extend(data.repeat(REPEATS));
    let path = folder.join("long.wav");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A run that prints or says something when it is in the middle of its work.
struct Work {
    arguments: &'static [&'static str],
    /// Whether the sign is on standard output.
    prints: bool,
}

/// Work of the subcommands that have nothing to save.
const WORK: [Work; 4] = [
    Work {
        arguments: &["generate", "-q", "--prompt-ids", "1", "-n", "4000", "--ignore-eos", "--token-ids"],
        prints: true,
    },
    Work { arguments: &["bench", "-p", "512", "-n", "0", "-r", "1000", "--progress"], prints: false },
    // Waits for standard input.
    Work { arguments: &["transcribe", "-"], prints: false },
    Work { arguments: &["transcribe", "--segment", SEGMENT_S, "LONG"], prints: true },
];

#[test]
fn every_signal_has_its_exit_code_in_every_subcommand() {
    let folder = tempfile::tempdir().unwrap();
    let long = long_recording(folder.path());
    for Work { arguments, prints } in WORK {
        for (signal, code) in signals() {
            let arguments = arguments.iter().map(|&name| if name == "LONG" { long.as_os_str() } else { name.as_ref() });
            let mut command = command(arguments);
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let _still_open = child.stdin.take();
            let (mut out, mut err) = (child.stdout.take().unwrap(), BufReader::new(child.stderr.take().unwrap()));
            if prints {
                out.read_exact(&mut [0]).unwrap();
            } else {
                err.read_line(&mut String::new()).unwrap();
            }
            send(signal, &child);
            let reader = std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
            let mut said = String::new();
            err.read_to_string(&mut said).unwrap();
            reader.join().unwrap().unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(code), "{:?}, {signal}: {said}", command.get_args());
            assert!(!said.contains("panicked"), "{said}");
        }
    }
}

#[test]
fn text_that_was_printed_stays_and_its_line_ends() {
    let folder = tempfile::tempdir().unwrap();
    let long = long_recording(folder.path());
    let arguments = ["transcribe".as_ref(), "-q".as_ref(), "--segment".as_ref(), SEGMENT_S.as_ref(), long.as_os_str()];
    let whole = tympan(arguments).expect(0).out;
    let mut child = command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut text = [0; 1];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut text).unwrap();
    send("TERM", &child);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    let kept = String::from_utf8(text.to_vec()).unwrap() + &rest;
    let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    let words = kept.strip_suffix('\n').unwrap();
    assert!(whole.starts_with(words) && words.len() < whole.len() / 2, "{words}");
    assert_eq!(said, format!("error: {}: interrupted\n", long.display()));
}

/// "Where several apply: a signal's first".
#[test]
fn a_signal_comes_before_what_failed() {
    let folder = tempfile::tempdir().unwrap();
    let long = long_recording(folder.path());
    for (signal, code) in signals() {
        let mut program = command(["transcribe", "-q", "--segment", SEGMENT_S, "/nowhere/missing.wav"]);
        let mut child = program.arg(&long).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        send(signal, &child);
        let finished = child.wait_with_output().unwrap();
        let said = String::from_utf8(finished.stderr).unwrap();
        assert_eq!(finished.status.code(), Some(code), "{said}");
        assert!(said.contains("missing.wav: no such file") && said.contains("long.wav: interrupted"), "{said}");
    }
}

#[test]
fn a_signal_that_was_ignored_at_the_start_is_ignored() {
    for (signal, _) in SIGNALS {
        let program = command(["transcribe", "-"]);
        let mut shell = Command::new("sh");
        let ignoring = format!("trap '' {signal}; exec \"$0\" \"$@\"");
        shell.args(["-c", &ignoring]).arg(program.get_program()).args(program.get_args());
        let pipes = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().unwrap();
        let mut err = BufReader::new(child.stderr.take().unwrap());
        err.read_line(&mut String::new()).unwrap();
        send(signal, &child);
        let mut recording = std::fs::File::open(clip("yes.wav")).unwrap();
        std::io::copy(&mut recording, &mut child.stdin.take().unwrap()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"yes\n"[..]), "{signal}");
    }
}

#[test]
fn a_second_signal_quits_without_another_word() {
    let [(first, _), .., (second, _)] = signals()[..] else { return };
    let folder = tempfile::tempdir().unwrap();
    let long = long_recording(folder.path());
    // Of several threads one may go on with the first signal before another one gets the second.
    let mut program = command(["transcribe", "-q", "-t", "1", "--segment", SEGMENT_S]);
    let mut child = program.arg(&long).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    // Both are there when it goes on.
    for signal in ["STOP", first, second, "CONT"] {
        send(signal, &child);
    }
    let output = child.wait_with_output().unwrap();
    // Which of the two is the second one is the system's choice.
    assert!(matches!(output.status.code(), Some(129 | 130 | 143)), "{:?}", output.status);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_whose_output_is_not_read_ends_with_the_first_signal() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let mut clips = command(["transcribe", "-q", "-f", "jsonl"]);
    clips.args(vec![clip("yes.wav"); 100]);
    let mut rows = command(["bench", "-q", "-p", "1", "-n", "0", "-r", "1", "-o", "jsonl", "-d", "1-200"]);
    for program in [&mut clips, &mut rows] {
        for (signal, code) in signals() {
            let (reader, writer) = std::io::pipe().unwrap();
            let child = program.stdout(writer.try_clone().unwrap()).stderr(Stdio::piped()).spawn();
            let mut child = child.unwrap();
            let takes_more = || poll(&mut [PollFd::new(&writer, PollFlags::OUT)], Some(&Timespec::default())).unwrap();
            while takes_more() > 0 {
                assert_eq!(child.try_wait().unwrap(), None);
                std::thread::yield_now();
            }
            send(signal, &child);
            let finished = child.wait_with_output().unwrap();
            drop(reader);
            let said = String::from_utf8(finished.stderr).unwrap();
            assert_eq!(finished.status.code(), Some(code), "{:?}, {signal}: {said}", program.get_args());
            assert!(said.lines().filter(|line| line.starts_with("error: ")).count() <= 1, "{said}");
        }
    }
}
