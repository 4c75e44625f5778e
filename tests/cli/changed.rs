//! Model files that change while they are used.

use std::fs::OpenOptions;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use crate::run::{command, fixtures, tympan};
use crate::signals::long_recording;

/// The demonstration model as a file.
fn model(folder: &Path) -> PathBuf {
    let path = folder.join("model.gguf");
    let checkpoint = fixtures().join("models/tiny-qwen3-asr");
    let arguments = ["convert".as_ref(), checkpoint.as_os_str(), "--bundle".as_ref(), "-o".as_ref(), path.as_os_str()];
    tympan(arguments).expect(0);
    path
}

/// Makes a change to the model when the first output of a run is there. The run's exit code, and what it says.
fn changed_under(subcommand: &[&str], weights: &str, change: fn(&Path)) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let (model, long) = (model(folder.path()), long_recording(folder.path()));
    let arguments = subcommand.iter().map(|&word| if word == "LONG" { long.as_os_str() } else { word.as_ref() });
    let mut command = command(arguments);
    command.args(["-q", "--weights", weights, "-m"]).arg(&model).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0]).unwrap();
    change(&model);
    out.read_to_end(&mut Vec::new()).unwrap();
    let run = child.wait_with_output().unwrap();
    (run.status.code(), String::from_utf8(run.stderr).unwrap())
}

const TRANSCRIBE: &[&str] = &["transcribe", "--segment", "6", "LONG"];
const GENERATE: &[&str] = &["generate", "--prompt-ids", "1,2", "-n", "4000", "--ignore-eos", "--token-ids"];

#[test]
fn a_model_that_shrinks_is_named() {
    let shrink = |path: &Path| OpenOptions::new().write(true).open(path).unwrap().set_len(1000).unwrap();
    for subcommand in [TRANSCRIBE, GENERATE] {
        let (code, said) = changed_under(subcommand, "mapped", shrink);
        assert_eq!(code, Some(4), "{said}");
        assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
        assert!(said.contains("model.gguf: ") && said.contains("was cut short while it was used"), "{said}");
    }
}

#[test]
fn a_model_that_is_written_to_is_named() {
    let touch = |path: &Path| {
        OpenOptions::new().write(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    };
    for subcommand in [TRANSCRIBE, GENERATE] {
        let (code, said) = changed_under(subcommand, "mapped", touch);
        assert_eq!(code, Some(4), "{said}");
        assert!(said.ends_with("model.gguf: has changed while it was used: was written to\n"), "{said}");
    }
}

#[test]
fn a_model_that_was_copied_or_replaced_may_change() {
    let replace = |path: &Path| {
        std::fs::write(path.with_extension("new"), "another model").unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    };
    let shrink = |path: &Path| OpenOptions::new().write(true).open(path).unwrap().set_len(1000).unwrap();
    assert_eq!(changed_under(GENERATE, "mapped", replace), (Some(0), String::new()));
    assert_eq!(changed_under(GENERATE, "resident", shrink), (Some(0), String::new()));
}
