//! Damaged files through the program: success, or one line with the file and the right exit code.

use std::path::Path;

use engine::gguf::{Gguf, Value};
use tests::draft::Draft;
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

/// Success, a text cut at the limit or of what is left of the sound, or one line about `file` and `code`.
#[track_caller]
fn check(run: &Run, code: i32, file: &str, what: &str) {
    assert!(!run.err.contains("panicked"), "{what}: {}", run.err);
    if run.code == 0 || run.code == 6 {
        return;
    }
    if run.code == 1 {
        assert!(!run.out.is_empty() && run.err.contains("damaged: "), "{what}: {}", run.err);
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

/// A model, what is done to it, and what the message names.
type BadModel = (&'static str, fn(&mut Draft), &'static str);

#[test]
fn models_that_do_not_fit_together_are_refused_by_name() {
    let cases: [BadModel; 8] = [
        ("lfm2", |d| drop(d.take("blk.3.ffn_up.weight")), "blk.3.ffn_up.weight"),
        ("lfm2", |d| d.tensor("blk.2.attn_k.weight").dims.reverse(), "blk.2.attn_k.weight"),
        (
            "lfm2",
            |d| drop(d.keys.insert("lfm2.attention.head_count_kv".into(), vec![0i32, 0, 2].into())),
            "lfm2.attention.head_count_kv",
        ),
        (
            "lfm2",
            |d| drop(d.keys.insert("lfm2.attention.head_count_kv".into(), vec![0i32, 0, -2, 0].into())),
            "lfm2.attention.head_count_kv",
        ),
        ("lfm2", |d| drop(d.keys.insert("lfm2.embedding_length".into(), Value::U32(0))), "lfm2.embedding_length"),
        ("lfm2_moe", |d| drop(d.take("blk.1.ffn_down_exps.weight")), "blk.1.ffn_down_exps.weight"),
        ("lfm2_audio", |d| drop(d.take("a.blk.1.conv_dw.weight")), "a.blk.1.conv_dw.weight"),
        (
            "lfm2_audio",
            |d| drop(d.keys.insert("clip.audio.block_count".into(), Value::U32(0))),
            "clip.audio.block_count",
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good.gguf"), dir.path().join("bad.gguf"));
    for (name, edit, want) in cases {
        convert(&fixtures().join("golden").join(name), &good).expect(0);
        let mut draft = Draft::of(&Gguf::open(&good).unwrap());
        edit(&mut draft);
        draft.write(&bad);
        let run = match name {
            "lfm2_audio" => transcribe(Some(&bad), &clip("yes.wav")),
            _ => tympan(["generate", "-m", bad.to_str().unwrap(), "-p", "a", "-n", "1"]),
        };
        let run = run.expect(4);
        check(&run, 4, want, name);
        assert!(run.err.contains("bad.gguf"), "{}", run.err);
    }
}

#[test]
fn checkpoints_that_do_not_fit_together_are_refused_by_name() {
    let cases = [
        ("lfm2", "\"conv_L_cache\": 3", "\"conv_L_cache\": 5", "model.layers.0.conv.conv.weight"),
        ("lfm2", "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "num_key_value_heads"),
        ("lfm2", "\"hidden_size\": 128", "\"hidden_size\": 0", "hidden_size"),
        ("lfm2_moe", "\"num_experts\": 6", "\"num_experts\": 7", "model.layers.1.feed_forward.gate.weight"),
        ("lfm2_audio", "\"n_layers\": 2", "\"n_layers\": 3", "conformer.layers.2.norm_feed_forward1.weight"),
        ("lfm2_audio", "Lfm2AudioForConditionalGeneration", "Lfm3", "architectures"),
    ];
    for (name, from, to, want) in cases {
        let dir = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(fixtures().join("golden").join(name)).unwrap().map(|e| e.unwrap().path()) {
            std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
        }
        let path = dir.path().join("config.json");
        let config = std::fs::read_to_string(&path).unwrap();
        assert!(config.contains(from), "{from} in {config}");
        std::fs::write(&path, config.replacen(from, to, 1)).unwrap();
        let out = tempfile::tempdir().unwrap();
        check(&convert(dir.path(), &out.path().join("out.gguf")).expect(4), 4, want, name);
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
        check(&transcribe(Some(dir.path()), &clip("yes.wav")).expect(4), 4, want, name);
    }
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

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good.gguf"), dir.path().join("bad.gguf"));
    convert(&fixtures().join("golden/qwen3_asr"), &good).expect(0);
    // One that is found when the model is loaded, and one that only the logits show.
    let step = "sequence 0, step 0: logits that are not finite";
    for (tensor, bits, step) in [("blk.1.attn_norm.weight", 0xff80_0000, ""), ("output.weight", 0x7f80_7f80, step)] {
        let mut draft = Draft::of(&Gguf::open(&good).unwrap());
        draft.tensor(tensor).bytes[8..12].copy_from_slice(&u32::to_le_bytes(bits));
        draft.write(&bad);
        let generate = ["generate", "--prompt-ids", "1,2", "-n", "2", "-m", bad.to_str().unwrap()];
        for run in [transcribe(Some(&bad), &clip("yes.wav")), tympan(generate)] {
            let run = run.expect(4);
            check(&run, 4, "bad.gguf", tensor);
            assert!(run.err.contains(tensor) && run.err.contains("values are not finite"), "{}", run.err);
            assert!(run.err.contains(step), "{}", run.err);
        }
    }
}
