//! What files say in messages, and files that are not there.

use std::path::{Path, PathBuf};

use engine::gguf::{Gguf, Value};
use serde_json::json;
use tests::draft::Draft;

use crate::run::{Run, clip, fixtures, tympan};

/// What an unfriendly file says: an escape sequence, a turn of direction, and far too much.
fn hostile() -> String {
    format!("\u{1b}[2J\u{202e}{}", "A".repeat(30_000))
}

/// Most characters of a line about a hostile file: paths, 80 of the file's, what is accepted.
const MAX_LINE_CHARS: usize = 600;

/// One line that is not long and steers no terminal.
#[track_caller]
fn check(run: &Run, what: &str) {
    let errors: Vec<&str> = run.err.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{what}: {:.2000}", run.err);
    for line in run.err.lines().chain(run.out.lines()) {
        let steers = |c: char| c.is_control() || c == '\u{202e}';
        assert!(line.chars().count() < MAX_LINE_CHARS && !line.contains(steers), "{what}: {line:.2000}");
    }
}

fn transcribe(model: &Path) -> Run {
    tympan(["transcribe".as_ref(), "-q".as_ref(), "-m".as_ref(), model.as_os_str(), clip("yes.wav").as_os_str()])
}

/// A copy of the files of a small checkpoint.
fn copy(name: &str, dir: &Path) {
    for file in std::fs::read_dir(fixtures().join("golden").join(name)).unwrap().map(|e| e.unwrap().path()) {
        std::fs::copy(&file, dir.join(file.file_name().unwrap())).unwrap();
    }
}

#[test]
fn what_model_files_say_is_cut_and_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good.gguf"), dir.path().join("bad.gguf"));
    let checkpoint = fixtures().join("golden/qwen3_asr");
    tympan([Path::new("convert"), Path::new("-q"), Path::new("--bundle"), &checkpoint, Path::new("-o"), &good])
        .expect(0);
    let draft = Draft::of(&Gguf::open(&good).unwrap());
    let list = |text: String| Value::from(vec![text]);
    let cases = [
        ("general.architecture", Value::from(hostile())),
        ("clip.audio.projector_type", hostile().into()),
        ("tokenizer.ggml.model", hostile().into()),
        ("tokenizer.ggml.pre", hostile().into()),
        ("tokenizer.ggml.merges", list(hostile())),
        ("tokenizer.ggml.merges", list(format!("a {}", hostile()))),
    ];
    for (key, value) in cases {
        let mut draft = draft.clone();
        draft.keys.insert(key.into(), value);
        draft.write(&bad);
        check(&transcribe(&bad).expect(4), key);
        let listing = tympan([Path::new("inspect"), &bad]).expect(0).out;
        assert!(listing.lines().all(|line| line.chars().count() < MAX_LINE_CHARS), "{key}");
        assert!(!listing.contains(['\u{1b}', '\u{202e}']), "{key}");
    }
    let mut named = draft.clone();
    named.tensor("blk.0.attn_q.weight").name = format!("\u{1b}[2J\u{202e}{}", "A".repeat(50));
    named.keys.insert(format!("a\u{1b}{}", "b".repeat(60_000)), Value::U32(1));
    named.write(&bad);
    check(&transcribe(&bad).expect(4), "a name");
    let listing = tympan([Path::new("inspect"), &bad]).expect(0).out;
    assert!(listing.lines().all(|line| line.chars().count() < MAX_LINE_CHARS) && !listing.contains('\u{1b}'));
}

/// What is done to a checkpoint.
type Change<'a> = Box<dyn Fn(&Path) + 'a>;

#[test]
fn what_checkpoints_say_is_cut_and_escaped() {
    let set = |dir: &Path, file: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let path = dir.join(file);
        let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(path, value.to_string()).unwrap();
    };
    let config = |dir: &Path, key: &str, value: serde_json::Value| {
        set(dir, "config.json", &|config| config[key] = value.clone());
    };
    let weights = |dir: &Path, header: String| {
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(dir.join("model.safetensors"), [&length[..], header.as_bytes(), &[0; 4]].concat()).unwrap();
    };
    let index = |dir: &Path, value: serde_json::Value| {
        std::fs::remove_file(dir.join("model.safetensors")).unwrap();
        std::fs::write(dir.join("model.safetensors.index.json"), value.to_string()).unwrap();
    };
    let tensor = |name: &str, dtype: &str, shape: serde_json::Value| {
        json!({ name: { "dtype": dtype, "shape": shape, "data_offsets": [0, 4] } }).to_string()
    };
    let changes: [(&str, Change<'_>); 11] = [
        ("model_type", Box::new(|dir| config(dir, "model_type", hostile().into()))),
        ("hidden_size", Box::new(|dir| config(dir, "hidden_size", hostile().into()))),
        ("layer_types", Box::new(|dir| config(dir, "layer_types", vec![hostile(); 4].into()))),
        (
            "architectures",
            Box::new(|dir| {
                config(dir, "model_type", serde_json::Value::Null);
                config(dir, "architectures", vec![hostile(); 1000].into());
            }),
        ),
        ("dtype", Box::new(|dir| weights(dir, tensor("a", &hostile(), json!([1]))))),
        ("name", Box::new(|dir| weights(dir, tensor(&hostile(), "F32", json!([2]))))),
        ("shape", Box::new(|dir| weights(dir, tensor("a", "F32", json!(vec![1; 20_000]))))),
        ("another tensor", Box::new(|dir| weights(dir, tensor(&hostile(), "F32", json!([1]))))),
        ("shard", Box::new(|dir| index(dir, json!({"weight_map": {"a": hostile()}})))),
        ("path", Box::new(|dir| index(dir, json!({"weight_map": {"a": format!("../{}", hostile())}})))),
        ("weight_map", Box::new(|dir| index(dir, json!({"weight_map": hostile()})))),
    ];
    for (what, change) in changes {
        let dir = tempfile::tempdir().unwrap();
        copy("lfm2", dir.path());
        change(dir.path());
        let generate = ["generate", "-q", "-p", "a", "-m", dir.path().to_str().unwrap()];
        check(&tympan(generate).expect(4), what);
        check(&tympan(["convert", dir.path().to_str().unwrap(), "--dry-run"]).expect(4), what);
    }
}

#[test]
fn a_missing_part_of_a_split_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let checkpoint = fixtures().join("golden/lfm2");
    let split = ["convert", "-q", checkpoint.to_str().unwrap(), "-o", out, "--split-max-size", "200K"];
    tympan(split).expect(0);
    let mut parts: Vec<PathBuf> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    parts.sort();
    let n = parts.len();
    assert!(n > 2, "{parts:?}");
    let generate = || tympan(["generate", "-q", "-n", "1", "-p", "a", "-m", parts[0].to_str().unwrap()]);
    generate().expect(0);
    std::fs::remove_file(&parts[1]).unwrap();
    let missing = parts[1].file_name().unwrap().to_str().unwrap();
    let inspect = tympan(["inspect", parts[0].to_str().unwrap()]);
    let quantize = tympan(["quantize", parts[0].to_str().unwrap(), "x.gguf", "q8_0", "--dry-run"]);
    for run in [generate(), inspect, quantize] {
        let err = run.expect(4).err;
        let says = [format!("{n} files"), format!("{missing} is missing"), "fetch all of them".into()];
        assert!(err.lines().count() == 1 && says.iter().all(|s| err.contains(&**s)), "{err}");
    }
    std::fs::remove_file(&parts[2]).unwrap();
    let err = generate().expect(4).err;
    assert!(err.contains(&format!("{missing} and 1 more are missing")), "{err}");
}

#[test]
fn a_missing_shard_of_a_checkpoint_is_named() {
    let dir = tempfile::tempdir().unwrap();
    copy("lfm2", dir.path());
    let place = |name: &str| dir.path().join(name);
    let shard = |i: usize| format!("model-{i:05}-of-00003.safetensors");
    let index = json!({"weight_map": {"a": shard(1), "b": shard(2), "c": shard(3)}});
    std::fs::rename(place("model.safetensors"), place(&shard(1))).unwrap();
    std::fs::copy(place(&shard(1)), place(&shard(3))).unwrap();
    let checkpoint = dir.path().to_str().unwrap();
    let runs = || {
        let generate = tympan(["generate", "-q", "-p", "a", "-m", checkpoint]).expect(4);
        [generate, tympan(["convert", checkpoint, "--dry-run"]).expect(4), tympan(["inspect", checkpoint]).expect(4)]
    };
    for run in runs() {
        assert!(run.err.contains("fetch the index of the shards"), "{}", run.err);
    }
    std::fs::write(place("model.safetensors.index.json"), index.to_string()).unwrap();
    for run in runs() {
        let says = ["3 files", "model-00002-of-00003.safetensors is missing", "fetch all of them"];
        assert!(run.err.lines().count() == 1 && says.iter().all(|s| run.err.contains(s)), "{}", run.err);
    }
}
