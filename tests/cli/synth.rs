//! Models with random weights: `-m synth:SHAPE:TYPE[:SEED]` and `convert synth:SHAPE[:SEED]`.

use std::path::Path;

use serde_json::Value;

use crate::run::{Run, clip, command};

fn run(args: &[&str], cache: &Path) -> Run {
    command(args).env("TYMPAN_CACHE", cache).output().expect("the program starts").into()
}

#[test]
fn what_is_not_published_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let clip = clip("yes.wav");
    let clip = clip.to_str().unwrap();
    for args in [
        &["transcribe", "-m", "synth:qwen3-asr-0.7b:q8_0", clip][..],
        &["generate", "-m", "synth:qwen3-asr-0.7b:q8_0", "-p", "a"],
        &["bench", "-m", "synth:qwen3-asr-0.7b:q8_0"],
        &["bench", "-m", "synth:qwen3-asr-0.7b:q8_0", "--audio", clip],
        &["convert", "synth:qwen3-asr-0.7b", "-o", cache.to_str().unwrap()],
    ] {
        let refused = run(args, &cache).expect(2);
        for part in ["synth:qwen3-asr-0.7b", "did you mean qwen3-asr-0.6b?", "lfm2-audio-1.5b"] {
            assert!(refused.err.contains(part), "{args:?}: {}", refused.err);
        }
        assert_eq!(refused.out, "");
    }
    let refused = run(&["generate", "-m", "synth:lfm2-350m:q9_0:1", "-p", "a"], &cache).expect(2);
    assert!(refused.err.contains("no such type \"q9_0\"") && refused.err.contains("q4_k_m"), "{}", refused.err);
    let refused = run(&["generate", "-m", "synth:lfm2-350m:q8_0:x", "-p", "a"], &cache).expect(2);
    assert!(refused.err.contains("seed \"x\""), "{}", refused.err);
    assert!(!cache.exists());
}

#[test]
fn a_model_is_made_once_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("new/cache");
    const MODEL: &str = "synth:lfm2-350m:q4_0";
    let generate = || run(&["generate", "-m", MODEL, "-p", "Once", "-n", "3", "--token-ids", "--ignore-eos"], &cache);
    let first = generate().expect(0);
    let kept = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
    let kept: Vec<_> = kept.filter(|path| path.extension().is_some_and(|extension| extension == "gguf")).collect();
    let [file] = &kept[..] else { panic!("want one model, got {kept:?}") };
    assert!(first.err.starts_with("making a model with random weights (lfm2-350m, Q4_0, seed 1;"), "{}", first.err);
    assert!(first.err.contains(file.to_str().unwrap()), "{}", first.err);
    let second = generate().expect(0);
    assert_eq!(second.out, first.out);
    assert!(!second.err.contains("making"), "{}", second.err);

    let bench = run(&["bench", "-q", "-m", MODEL, "-p", "4", "-n", "0", "-r", "1", "-o", "jsonl"], &cache).expect(0);
    let row: Value = bench.json_lines().remove(0);
    // As llama-bench describes the published file, and the name as it was given.
    assert_eq!((&row["model_filename"], &row["model_type"]), (&MODEL.into(), &"lfm2 350M Q4_0".into()));
    assert_eq!(row["model_n_params"], 354_483_968);

    // What has the name and is another model, or none, is made anew.
    let good = std::fs::read(file).unwrap();
    let changed = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    let of_seed_2 = {
        let out = dir.path().join("seed2.gguf");
        let convert = ["convert", "-q", "synth:lfm2-350m:2", "--type", "q4_0", "-o", out.to_str().unwrap()];
        run(&convert, &cache).expect(0);
        std::fs::read(out).unwrap()
    };
    let others = [good[..1 << 20].to_vec(), of_seed_2, changed(good.len() - 100)];
    for bytes in others {
        std::fs::write(file, &bytes).unwrap();
        let again = generate().expect(0);
        assert!(
            again.err.contains("not the model that belongs there") && again.err.contains("making"),
            "{}",
            again.err
        );
        assert_eq!(again.out, first.out);
        assert!(std::fs::read(file).unwrap() == good);
    }
    // A copy is compared, and kept.
    std::fs::write(file, &good).unwrap();
    let copied = generate().expect(0);
    assert!(copied.out == first.out && !copied.err.contains("making"), "{}", copied.err);
}

#[test]
fn a_directory_that_cannot_be_made_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let refused = run(&["generate", "-m", "synth:lfm2-350m:q4_0", "-p", "a"], &file).expect(1);
    assert!(refused.err.contains(file.to_str().unwrap()), "{}", refused.err);
}
