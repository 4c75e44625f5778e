//! Texts and token ids of every clip against what the official implementations answer
//! (`fixtures/audio/reference.json`).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::run::{Run, clip, fixtures, tympan};

/// Clips on which weights and cache of fewer bits may change words: longer than what the model was trained for.
const LONG: [&str; 2] = ["long_9s.wav", "long_24s.wav"];
/// Words that may differ on them together.
const LONG_WORDS: usize = 4;

/// What one implementation answers, by clip.
fn reference(implementation: &str) -> BTreeMap<String, Value> {
    let file = std::fs::File::open(fixtures().join("audio/reference.json")).unwrap();
    let all: Value = serde_json::from_reader(std::io::BufReader::new(file)).unwrap();
    let clips = all["tiny-qwen3-asr"][implementation]["clips"].as_object().unwrap();
    assert_eq!(clips.len(), 29);
    clips.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// The clip as the official loader resamples it, where it is not 16 kHz mono already.
fn at_16k(name: &str) -> PathBuf {
    let path = Path::new(name);
    let resampled = clip(&path.parent().unwrap().join("at16k").join(path.file_name().unwrap()).display().to_string());
    if resampled.is_file() { resampled } else { clip(name) }
}

/// Transcribes clips in one run, documents in their order.
fn transcribe(paths: impl IntoIterator<Item = PathBuf>, options: &[&str]) -> Vec<Value> {
    let mut args: Vec<OsString> =
        ["transcribe", "-q", "-f", "jsonl", "--segment", "0", "--token-ids"].map(Into::into).into();
    args.extend(options.iter().map(Into::into));
    args.extend(paths.into_iter().map(PathBuf::into_os_string));
    let run: Run = tympan(args).expect(0);
    run.json_lines()
}

fn check_exact(implementation: &str, options: &[&str]) {
    let reference = reference(implementation);
    let options = [&["--kv-type", "f32"], options].concat();
    let documents = transcribe(reference.keys().map(|name| at_16k(name)), &options);
    for ((name, want), got) in reference.iter().zip(&documents) {
        assert_eq!(got["text"], want["text"], "{name} with {options:?}");
        assert_eq!(got["segments"][0]["token_ids"], want["token_ids"], "{name} with {options:?}");
        let language = want["language"].as_str().filter(|l| !l.is_empty());
        assert_eq!(got["language"].as_str(), language, "{name} with {options:?}");
    }
}

/// The tiny checkpoint converted: the model to give to `-m`.
fn converted(dir: &Path, flags: &[&str]) -> String {
    let checkpoint = fixtures().join("models/tiny-qwen3-asr");
    let mut args: Vec<OsString> = vec!["convert".into(), "-q".into(), checkpoint.into(), "-o".into(), dir.into()];
    args.extend(flags.iter().map(Into::into));
    tympan(args).expect(0);
    dir.display().to_string()
}

#[test]
fn the_built_in_model_answers_like_transformers() {
    check_exact("transformers", &[]);
}

#[test]
fn the_built_in_model_answers_like_the_official_package_with_full_attention() {
    check_exact("official", &["--audio-attention", "full"]);
}

#[test]
fn converted_files_answer_like_the_official_code() {
    for flags in
        [&["--type", "f32"][..], &["--type", "f32", "--bundle"], &["--type", "bf16"], &["--type", "bf16", "--bundle"]]
    {
        let dir = tempfile::tempdir().unwrap();
        let model = converted(dir.path(), flags);
        check_exact("transformers", &["-m", &model]);
        check_exact("official", &["-m", &model, "--audio-attention", "full"]);
    }
}

#[test]
fn our_resampler_gives_the_same_text() {
    let reference = reference("transformers");
    let documents = transcribe(reference.keys().map(|name| clip(name)), &["--kv-type", "f32"]);
    for ((name, want), got) in reference.iter().zip(&documents) {
        assert_eq!(got["text"], want["text"], "{name}");
    }
}

#[test]
fn eight_bit_weights_and_a_half_precision_cache_keep_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let model = converted(dir.path(), &["--type", "q8_0"]);
    let reference = reference("transformers");
    let documents = transcribe(reference.keys().map(|name| at_16k(name)), &["-m", &model]);
    let mut different = 0;
    for ((name, want), got) in reference.iter().zip(&documents) {
        let (want, got) = (want["text"].as_str().unwrap(), got["text"].as_str().unwrap());
        if LONG.contains(&name.as_str()) {
            different += word_errors(want, got);
        } else {
            assert_eq!(got, want, "{name}");
        }
    }
    assert!(different <= LONG_WORDS, "{different} words differ on {LONG:?}");
}

/// Fewest words to insert, delete or replace.
fn word_errors(want: &str, got: &str) -> usize {
    let got: Vec<&str> = got.split_whitespace().collect();
    let mut row: Vec<usize> = (0..=got.len()).collect();
    for (i, w) in want.split_whitespace().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, g) in got.iter().enumerate() {
            let replaced = diagonal + usize::from(w != *g);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[got.len()]
}
