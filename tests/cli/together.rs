//! Several segments at once (`--parallel`): nothing but the time tells it from one by one.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;

use crate::run::{Run, clip, command, fixtures, tympan};

/// Segments at once.
const N_PARALLEL: [&str; 4] = ["1", "2", "4", "8"];

/// Documents without what differs from run to run.
fn documents(run: &Run) -> Vec<Value> {
    let mut documents = run.json_lines();
    documents.iter_mut().for_each(|document| {
        let timings = document.as_object_mut().unwrap().remove("timings").unwrap();
        // Shared calls are divided: no file is charged for another's.
        let ms = |name: &str| timings[name].as_f64().unwrap();
        let stages = ["decode_audio_ms", "resample_ms", "mel_ms", "encode_ms", "prefill_ms", "decode_ms"].map(ms);
        assert!(ms("total_ms") + 0.01 >= stages.iter().sum(), "{timings}");
    });
    documents
}

/// A folder of clips, one of which is broken.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str, to: &str| std::fs::copy(clip(name), folder.path().join(to)).unwrap();
    copy("yes.wav", "a.wav");
    copy("long_24s.wav", "b.wav");
    std::fs::write(folder.path().join("c.wav"), b"RIFF\x10\0\0\0WAVEfmt ").unwrap();
    copy("digits_eight.wav", "d.wav");
    copy("yes.wav", "e.wav");
    folder
}

/// The program on this folder, so many segments at once.
fn transcribe(n_parallel: &str, args: &[&str], folder: &Path) -> Run {
    let args = [&["transcribe", "--parallel", n_parallel], args].concat();
    tympan(args.into_iter().map(Path::new).chain([folder]))
}

#[test]
fn documents_of_a_folder_and_of_a_long_file_are_those_of_one_by_one() {
    let [audio, talk] = ["audio", "talk/talk.ogg"].map(|name| fixtures().join(name));
    let run = |n_parallel: &str| {
        let args = ["transcribe", "-q", "-f", "jsonl", "--token-ids", "--parallel", n_parallel].map(Path::new);
        documents(&tympan(args.into_iter().chain([&*talk, &*audio])).expect(0))
    };
    let want = run("1");
    assert!(want.len() > 29 && want[0]["segments"].as_array().unwrap().len() > 16);
    for n_parallel in &N_PARALLEL[1..] {
        assert_eq!(run(n_parallel), want, "{n_parallel} at once");
    }
}

#[test]
fn a_broken_file_costs_nothing_but_itself_and_texts_stay_in_order() {
    let folder = folder();
    let want = transcribe("1", &["-v"], folder.path()).expect(1);
    let (words, _) = want.out.split_once('\n').unwrap();
    assert_eq!((words, want.out.lines().count()), ("yes", 4));
    for n_parallel in &N_PARALLEL[1..] {
        let run = transcribe(n_parallel, &["-v"], folder.path()).expect(1);
        assert_eq!(run.out, want.out, "{n_parallel} at once");
        assert!(
            run.err.contains("c.wav: cannot be read") && run.err.ends_with("\n4 done, 0 skipped, 1 failed\n"),
            "{}",
            run.err
        );
        // Every file is summed up once, in their order.
        let places: Vec<_> = ["a", "b", "d", "e"].map(|name| run.err.find(&format!("/{name}.wav: audio"))).into();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{}", run.err);
    }
}

/// Files of a folder with their contents, without times in documents.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| {
        let mut bytes = std::fs::read(&path).unwrap();
        if path.extension().is_some_and(|ending| ending == "jsonl") {
            let mut document: Value = serde_json::from_slice(&bytes).unwrap();
            document["timings"].take();
            bytes = document.to_string().into_bytes();
        }
        (path.strip_prefix(folder).unwrap().to_owned(), bytes)
    };
    let mut all: Vec<(PathBuf, Vec<u8>)> = paths.map(read).collect();
    all.sort();
    all
}

#[test]
fn outputs_and_dumps_of_files_are_those_of_one_by_one() {
    let folder = folder();
    let write = |n_parallel: &str| {
        let out = tempfile::tempdir().unwrap();
        let path = out.path().to_str().unwrap();
        let run =
            transcribe(n_parallel, &["-o", path, "-f", "text,srt,jsonl", "--dump", path], folder.path()).expect(1);
        assert_eq!(run.out, "");
        contents(out.path())
    };
    let want = write("1");
    // No journal stays.
    assert_eq!(want.len(), 4 * 4);
    for n_parallel in &N_PARALLEL[1..] {
        assert!(write(n_parallel) == want, "{n_parallel} at once");
    }
}

#[test]
fn a_file_does_not_wait_for_standard_input_behind_it() {
    let yes = clip("yes.wav");
    let mut program = command(["transcribe".as_ref(), "-q".as_ref(), yes.as_os_str(), "-".as_ref()]);
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    out.read_line(&mut first).unwrap();
    assert_eq!(first, "yes\n");
    child.stdin.take().unwrap().write_all(&std::fs::read(yes).unwrap()).unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("yes\n", Some(0)));
}

#[test]
fn numbers_of_segments_that_make_no_sense_are_refused() {
    for wrong in ["0", "65", "some"] {
        let run = transcribe(wrong, &[], &clip("yes.wav")).expect(2);
        assert!(run.err.contains("--parallel"), "{}", run.err);
    }
}
