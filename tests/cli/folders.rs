//! Directories as inputs: what counts as a recording, what one bad entry costs, where outputs go.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::run::{Run, clip, fixtures, tympan};

/// A folder of copies and other files.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.at(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// A clip of one word, under this name.
    fn yes(&self, name: &str) {
        self.write(name, std::fs::read(clip("yes.wav")).unwrap());
    }

    /// The program on the folder with these arguments before it.
    fn transcribe(&self, args: &[&str]) -> Run {
        tympan(["transcribe"].iter().chain(args).map(Path::new).chain([self.0.path()]))
    }
}

/// Paths of all files below a folder, in order.
fn files_below(dir: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

#[test]
fn the_content_of_a_file_decides_and_not_its_name() {
    let folder = Folder::new();
    folder.yes("memo.dat");
    folder.yes("no_ending");
    folder.write("text.wav", "this is not audio");
    folder.write("picture.mp3", b"\xff\xd8\xff\xe0\0\x10JFIF\0");
    folder.write("empty.wav", "");
    folder.write("._memo.dat", b"RIFF\0\0\0\0WAVE");
    folder.write(".hidden/a.wav", b"RIFF\0\0\0\0WAVE");
    let run = folder.transcribe(&["-v"]).expect(0);
    assert_eq!(run.out, "yes\nyes\n");
    assert!(run.err.contains("5 skipped: 2 hidden, 3 not a recording"), "{}", run.err);
    assert!(run.err.contains("text.wav: skipped (not a recording)"), "{}", run.err);
    assert!(run.err.contains("\n2 done, 5 skipped, 0 failed\n"), "{}", run.err);
}

#[test]
fn a_recording_that_cannot_be_decoded_has_failed() {
    let folder = Folder::new();
    folder.yes("a.wav");
    folder.write("b.xyz", b"#!AMR\n\x3c\x91\x17");
    let run = folder.transcribe(&[]).expect(1);
    assert_eq!(run.out, "yes\n");
    assert!(run.err.contains("b.xyz: ") && run.err.contains("1 done, 0 skipped, 1 failed"), "{}", run.err);
    assert_eq!(folder.transcribe(&["-q"]).expect(1).err.lines().count(), 1);
}

#[test]
fn a_directory_without_a_recording_is_an_input_that_cannot_be_read() {
    let folder = Folder::new();
    folder.write("notes.txt", "not audio");
    let run = folder.transcribe(&[]).expect(3);
    assert!(run.err.contains("no recording in this directory (1 skipped"), "{}", run.err);
    folder.yes("a.wav");
    folder.transcribe(&["--exclude", "a.*"]).expect(3);
}

#[cfg(unix)]
#[test]
fn a_bad_entry_costs_nothing_but_itself() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new();
    folder.yes("a.wav");
    folder.yes("sub/b.wav");
    symlink("..", folder.at("sub/around")).unwrap();
    symlink("sub", folder.at("twice")).unwrap();
    symlink("gone.wav", folder.at("dangling.wav")).unwrap();
    let run = folder.transcribe(&[]).expect(1);
    assert_eq!(run.out, "yes\nyes\n");
    assert!(run.err.contains("sub/around: a link to a folder that it is in"), "{}", run.err);
    assert!(run.err.contains("dangling.wav: a link to a file that does not exist"), "{}", run.err);
    assert!(run.err.contains("2 done, 1 skipped, 2 failed"), "{}", run.err);
}

#[test]
fn trees_are_mirrored() {
    let (folder, out) = (Folder::new(), Folder::new());
    folder.yes("a.wav");
    folder.yes("x/a.wav");
    folder.yes("x/y/a.wav");
    folder.yes("x/y/a.flac");
    let run = folder.transcribe(&["-o", out.0.path().to_str().unwrap()]).expect(0);
    assert_eq!(run.out, "");
    assert_eq!(files_below(out.0.path()), ["a.txt", "x/a.txt", "x/y/a.flac.txt", "x/y/a.wav.txt"]);
    let again = folder.transcribe(&["-o", out.0.path().to_str().unwrap(), "--skip-existing"]).expect(0);
    assert_eq!(again.err, "nothing to do: all outputs exist\n");
    folder.yes("x/z.wav");
    let more = folder.transcribe(&["-o", out.0.path().to_str().unwrap(), "--skip-existing"]).expect(0);
    assert!(more.err.contains("1 done, 4 skipped, 0 failed"), "{}", more.err);
}

#[test]
fn flags_choose_among_the_files_of_a_directory() {
    let folder = Folder::new();
    for name in ["a.wav", "b.wav", "old/a.wav", "new/c.wav"] {
        folder.yes(name);
    }
    for (args, want) in [
        (&["--no-recursive"][..], &["a.wav", "b.wav"][..]),
        (&["--include", "a*"], &["a.wav", "old/a.wav"]),
        (&["--include", "old/*", "--include", "b.wav"], &["b.wav", "old/a.wav"]),
        (&["--exclude", "old"], &["a.wav", "b.wav", "new/c.wav"]),
        (&["--include", "*a*", "--exclude", "**/a.wav"], &["b.wav", "new/c.wav"]),
    ] {
        let run = folder.transcribe(&[&["-f", "jsonl"], args].concat()).expect(0);
        let files: Vec<Value> = run.json_lines().into_iter().map(|mut line| line["file"].take()).collect();
        let want: Vec<String> = want.iter().map(|name| folder.at(name).display().to_string()).collect();
        assert_eq!(files, want, "{args:?}");
    }
    let refused = folder.transcribe(&["--include", "[ab].wav"]).expect(2);
    assert!(refused.err.contains("want a pattern"), "{}", refused.err);
}

#[test]
fn several_inputs_share_standard_output() {
    let folder = Folder::new();
    folder.yes("a.wav");
    folder.yes("b.wav");
    let documents = folder.transcribe(&["-f", "json"]).expect(0).json_lines();
    assert_eq!(documents.len(), 2);
    for format in ["srt", "vtt", "csv", "lrc", "tsv"] {
        let run = folder.transcribe(&["-f", format]).expect(2);
        assert!(run.out.is_empty() && run.err.contains("2 inputs") && run.err.contains("-o DIR"), "{}", run.err);
    }
    // A folder that holds one recording is one input.
    folder.transcribe(&["-f", "srt", "--exclude", "b.wav"]).expect(0);
}

#[test]
fn what_came_in_the_place_of_a_model_is_named() {
    let folder = Folder::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1834426016\n";
    folder.write("pointer.gguf", pointer);
    folder.write("page.gguf", "<!doctype html>\n<title>Sign in</title>");
    folder.write("error.gguf", r#"{"error": "Repository not found"}"#);
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        folder.write(
            &format!("checkpoint/{name}"),
            std::fs::read(fixtures().join("models/tiny-qwen3-asr").join(name)).unwrap(),
        );
    }
    folder.write("checkpoint/model.safetensors", pointer);
    for (name, want) in [
        ("pointer.gguf", "Git LFS pointer"),
        ("page.gguf", "an HTML page"),
        ("error.gguf", "JSON text"),
        ("checkpoint", "model.safetensors: a Git LFS pointer"),
    ] {
        let model = folder.at(name);
        let run = tympan(["transcribe".as_ref(), "-m".as_ref(), &*model, &*clip("yes.wav")]).expect(4);
        assert!(run.err.contains(want), "{}", run.err);
    }
    let run = tympan(["convert".as_ref(), &*folder.at("checkpoint"), "-o".as_ref(), &*folder.at("new.gguf")]).expect(4);
    assert!(run.err.contains("model.safetensors: a Git LFS pointer"), "{}", run.err);
    assert!(!folder.at("new.gguf").exists());
}

#[test]
fn a_projector_is_found_by_the_names_in_use() {
    let models = Folder::new();
    let made = |args: &[&str]| {
        let checkpoint = fixtures().join("models/tiny-qwen3-asr");
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("");
        tympan(
            [Path::new("convert"), &checkpoint, Path::new("-o"), &folder].into_iter().chain(args.iter().map(Path::new)),
        )
        .expect(0);
        let names = files_below(dir.path());
        let of = |projector| {
            std::fs::read(folder.join(names.iter().find(|n| n.starts_with("mmproj") == projector).unwrap()))
        };
        (of(false).unwrap(), of(true).unwrap())
    };
    let (text, projector) = made(&["--type", "q8_0"]);
    for (name, beside) in [
        ("one/A.Q8_0.gguf", &["one/A.mmproj-Q8_0.gguf"][..]),
        ("two/B-Q8_0.GGUF", &["two/MMPROJ-B.GGUF"]),
        ("three/C-Q8_0.gguf", &["three/mmproj-Q8_0.gguf", "three/mmproj-F16.gguf", "three/mmproj-BF16.gguf"]),
    ] {
        models.write(name, &text);
        for other in beside {
            // Only the right one is a projector at all.
            let is_right = *other == beside[0];
            models.write(other, if is_right { &projector[..] } else { b"another" });
        }
        let run = tympan(["transcribe".as_ref(), "-m".as_ref(), &*models.at(name), &*clip("yes.wav")]).expect(0);
        assert_eq!(run.out, "yes\n");
    }
    models.write("three/D-Q4_0.gguf", &text);
    models.write("three/mmproj-D-Q8_0.gguf", "another");
    let several = tympan(["transcribe".as_ref(), "-m".as_ref(), &*models.at("three/D-Q4_0.gguf"), &*clip("yes.wav")]);
    assert!(several.expect(4).err.contains("--mmproj names one"));
}
