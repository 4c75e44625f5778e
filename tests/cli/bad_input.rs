//! Damaged files through the program: success, or one line with the file and the right exit code.

use std::path::Path;

use tests::mutate::mutate;
use tests::rng::Rng;

use crate::run::{Run, clip, fixtures, tympan};

/// Damaged copies of each file.
const N_MUTATIONS: u64 = 100;
/// Bytes at the front of a model file in which most changes fall: keys and tensor table.
const MODEL_HEADER: usize = 24_000;
/// The same for a checkpoint.
const CHECKPOINT_HEADER: usize = 8_000;
/// The same for a WAV file.
const WAV_HEADER: usize = 64;
/// The same for an MP3 file: its tags and the first frames.
const MP3_HEADER: usize = 4_000;

/// Success, a text cut at the limit, or one line about `file` and `code`.
#[track_caller]
fn check(run: &Run, code: i32, file: &str, what: &str) {
    assert!(!run.err.contains("panicked"), "{what}: {}", run.err);
    if run.code == 0 || run.code == 6 {
        return;
    }
    assert_eq!(run.code, code, "{what}: {}", run.err);
    let errors: Vec<&str> = run.err.lines().filter(|l| l.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains(file), "{what}: {}", run.err);
    assert!(run.out.is_empty(), "{what}: {}", run.out);
}

/// Runs `program` on damaged copies of `original`, written to `path` one after the other.
fn damaged(original: &Path, path: &Path, header: usize, code: i32, program: impl Fn() -> Run) {
    let bytes = std::fs::read(original).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let mut failed = 0;
    for seed in 0..N_MUTATIONS {
        std::fs::write(path, mutate(&bytes, header, &mut Rng::new(seed))).unwrap();
        let run = program();
        check(&run, code, name, &format!("{name}, seed {seed}"));
        failed += usize::from(run.code == code);
    }
    assert!(failed > 0, "no copy of {name} was damaged enough");
}

fn convert(checkpoint: &Path, out: &Path) -> Run {
    tympan([Path::new("convert"), Path::new("-q"), Path::new("--bundle"), checkpoint, Path::new("-o"), out])
}

fn transcribe(model: Option<&Path>, input: &Path) -> Run {
    let model = model.map(|m| [Path::new("-m"), m]);
    let fixed = ["transcribe", "--max-tokens", "2"].map(Path::new);
    tympan(fixed.into_iter().chain(model.into_iter().flatten()).chain([input]))
}

#[test]
fn damaged_models() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good.gguf"), dir.path().join("bad.gguf"));
    convert(&fixtures().join("golden/qwen3_asr"), &good).expect(0);
    damaged(&good, &bad, MODEL_HEADER, 4, || transcribe(Some(&bad), &clip("yes.wav")));
}

#[test]
fn damaged_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixtures().join("golden/qwen3_asr");
    for file in std::fs::read_dir(&source).unwrap().map(|e| e.unwrap().path()) {
        std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    let out = tempfile::tempdir().unwrap();
    let weights = dir.path().join("model.safetensors");
    let run = || convert(dir.path(), &out.path().join("out.gguf"));
    damaged(&source.join("model.safetensors"), &weights, CHECKPOINT_HEADER, 4, run);
    let left: Vec<String> =
        std::fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| name == "out.gguf"), "temporary files are left: {left:?}");
}

#[test]
fn damaged_wav_files() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.wav");
    damaged(&clip("yes.wav"), &bad, WAV_HEADER, 3, || transcribe(None, &bad));
}

#[test]
fn damaged_mp3_files() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.mp3");
    damaged(&fixtures().join("formats/mp3.mp3"), &bad, MP3_HEADER, 3, || transcribe(None, &bad));
}

#[test]
fn truncated_empty_and_mistaken_files() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let wav = std::fs::read(clip("yes.wav")).unwrap();
    for (name, bytes) in [("empty.wav", &wav[..0]), ("header.wav", &wav[..20]), ("no_samples.wav", &wav[..44])] {
        let path = write(name, bytes);
        check(&transcribe(None, &path).expect(3), 3, name, name);
    }
    let folder = fixtures().join("golden/qwen3_asr");
    check(&transcribe(None, &folder.join("config.json")).expect(3), 3, "config.json", "a text as audio");
    check(&transcribe(Some(&clip("yes.wav")), &clip("yes.wav")).expect(4), 4, "yes.wav", "audio as a model");
    check(&convert(&clip("yes.wav"), &dir.path().join("x.gguf")).expect(4), 4, "yes.wav", "audio as a checkpoint");
    check(
        &convert(dir.path(), &dir.path().join("x.gguf")).expect(4),
        4,
        "config.json",
        "a directory without a checkpoint",
    );
}
