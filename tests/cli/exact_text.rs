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

/// The small trained checkpoints.
const QWEN3_ASR: &str = "tiny-qwen3-asr";
const LFM2_AUDIO: &str = "tiny-lfm2-audio";

/// What one implementation answers with a checkpoint, by clip.
fn reference(checkpoint: &str, implementation: &str) -> BTreeMap<String, Value> {
    let file = std::fs::File::open(fixtures().join("audio/reference.json")).unwrap();
    let all: Value = serde_json::from_reader(std::io::BufReader::new(file)).unwrap();
    let clips = all[checkpoint][implementation]["clips"].as_object().unwrap();
    assert_eq!(clips.len(), 29);
    clips.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// The clip as the official loader resamples it, where it is not 16 kHz mono already.
fn at_16k(name: &str) -> PathBuf {
    let path = Path::new(name);
    let resampled = path.with_file_name("at16k").join(path.file_name().unwrap()).with_extension("flac");
    let resampled = clip(&resampled.display().to_string());
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

fn check_exact(checkpoint: &str, implementation: &str, options: &[&str]) {
    let reference = reference(checkpoint, implementation);
    let options = [&["--kv-type", "f32"], options].concat();
    let documents = transcribe(reference.keys().map(|name| at_16k(name)), &options);
    for ((name, want), got) in reference.iter().zip(&documents) {
        assert_eq!(got["text"], want["text"], "{name} with {options:?}");
        assert_eq!(got["segments"][0]["token_ids"], want["token_ids"], "{name} with {options:?}");
        let language = want["language"].as_str().filter(|l| !l.is_empty());
        assert_eq!(got["language"].as_str(), language, "{name} with {options:?}");
        if let Some(n) = want["prompt_tokens"].as_u64() {
            assert_eq!(got["timings"]["prompt_tokens"], n, "{name} with {options:?}");
        }
    }
}

/// A checkpoint converted: the model to give to `-m`.
fn converted(checkpoint: &str, dir: &Path, flags: &[&str]) -> String {
    let checkpoint = fixtures().join("models").join(checkpoint);
    let mut args: Vec<OsString> = vec!["convert".into(), "-q".into(), checkpoint.into(), "-o".into(), dir.into()];
    args.extend(flags.iter().map(Into::into));
    tympan(args).expect(0);
    dir.display().to_string()
}

#[test]
fn the_built_in_model_answers_like_transformers() {
    check_exact(QWEN3_ASR, "transformers", &[]);
}

#[test]
fn the_built_in_model_answers_like_the_official_package_with_full_attention() {
    check_exact(QWEN3_ASR, "official", &["--audio-attention", "full"]);
}

/// Types and layouts that keep every id.
const EXACT_FILES: [&[&str]; 4] =
    [&["--type", "f32"], &["--type", "f32", "--bundle"], &["--type", "bf16"], &["--type", "bf16", "--bundle"]];

#[test]
fn converted_files_answer_like_the_official_code() {
    for flags in EXACT_FILES {
        let dir = tempfile::tempdir().unwrap();
        let model = converted(QWEN3_ASR, dir.path(), flags);
        check_exact(QWEN3_ASR, "transformers", &["-m", &model]);
        check_exact(QWEN3_ASR, "official", &["-m", &model, "--audio-attention", "full"]);
    }
}

#[test]
fn converted_files_of_lfm2_audio_answer_like_the_official_code() {
    for flags in EXACT_FILES {
        let dir = tempfile::tempdir().unwrap();
        check_exact(LFM2_AUDIO, "official", &["-m", &converted(LFM2_AUDIO, dir.path(), flags)]);
    }
}

#[test]
fn our_resampler_gives_the_same_text() {
    let reference = reference(QWEN3_ASR, "transformers");
    let documents = transcribe(reference.keys().map(|name| clip(name)), &["--kv-type", "f32"]);
    for ((name, want), got) in reference.iter().zip(&documents) {
        assert_eq!(got["text"], want["text"], "{name}");
    }
}

#[test]
fn our_resampler_gives_the_same_text_with_lfm2_audio() {
    let reference = reference(LFM2_AUDIO, "official");
    let checkpoint = fixtures().join("models").join(LFM2_AUDIO);
    let options = ["--kv-type", "f32", "-m", checkpoint.to_str().unwrap()];
    let documents = transcribe(reference.keys().map(|name| clip(name)), &options);
    let texts = reference.iter().zip(&documents).map(|((name, want), got)| (name, &want["text"], &got["text"]));
    let different: Vec<_> = texts.filter(|(_, want, got)| want != got).collect();
    assert!(different.len() <= 1, "{different:?}");
}

#[test]
fn eight_bit_weights_and_a_half_precision_cache_keep_the_text() {
    check_eight_bits(QWEN3_ASR, "transformers");
}

#[test]
fn eight_bit_weights_and_a_half_precision_cache_keep_the_text_of_lfm2_audio() {
    check_eight_bits(LFM2_AUDIO, "official");
}

fn check_eight_bits(checkpoint: &str, implementation: &str) {
    let dir = tempfile::tempdir().unwrap();
    let model = converted(checkpoint, dir.path(), &["--type", "q8_0"]);
    let reference = reference(checkpoint, implementation);
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
pub fn word_errors(want: &str, got: &str) -> usize {
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
