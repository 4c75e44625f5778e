//! The length of segments that a model states: from a checkpoint's field into its files, and from there into transcription.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use convert::quantize::Quantization;
use convert::quantize::overrides::Overrides;
use convert::{FileType, Options, to_memory};
use engine::DType;
use engine::gguf::{Gguf, Value};
use models::LoadOptions;
use models::speech::SEGMENT_KEY;
use models::transcribe::Transcriber;
use serde_json::json;

use crate::checkpoint::{Edit, bundle, convert, copy_of, edit_config, fixture, keys, pair, put, refused, set, tensors};

/// Checkpoints of both kinds that state no length, and the length of their kind.
const SPEECH: [(&str, f64); 2] = [("golden/qwen3_asr", 60.0), ("golden/lfm2_audio", 30.0)];

fn open(files: Vec<Gguf>) -> models::Result<Transcriber> {
    let loaded = models::load(files, LoadOptions::default())?;
    let backend = backends::open("cpu", &backends::Options::default()).unwrap();
    Transcriber::open(&loaded, &[Arc::clone(&backend)], DType::F16)
}

fn segment_s(files: Vec<Gguf>) -> f64 {
    open(files).unwrap().segment_s()
}

fn stated(file: &Gguf) -> Option<Value> {
    file.value(SEGMENT_KEY)
}

#[test]
fn a_stated_length_is_one_key_more_and_where_long_audio_is_cut() {
    assert_eq!(SEGMENT_KEY, "tympan.segment_seconds");
    for (name, of_its_kind) in SPEECH {
        let dir = copy_of(name);
        let without = convert(dir.path(), pair(FileType::Q8_0)).unwrap();
        edit_config(&dir, |config| config["segment_seconds"] = json!(12.5));
        let with = convert(dir.path(), pair(FileType::Q8_0)).unwrap();
        assert_eq!(tensors(&with), tensors(&without));
        assert_eq!(keys(&with[0]), keys(&without[0]));
        let mut want = keys(&without[1]);
        want.insert(SEGMENT_KEY.to_owned(), Value::F32(12.5));
        assert_eq!(keys(&with[1]), want);
        assert_eq!((segment_s(without), segment_s(with)), (of_its_kind, 12.5), "{name}");

        let one = convert(dir.path(), bundle(FileType::F16)).unwrap();
        assert_eq!(stated(&one[0]), Some(Value::F32(12.5)));
        assert_eq!(segment_s(vec![to_memory(dir.path()).unwrap()]), 12.5);
        let path = dir.path().join("quantized.gguf");
        let plan = Quantization::plan(one[0].clone(), FileType::Q8_0, None, &Overrides::default(), false).unwrap();
        plan.write(&path, &AtomicBool::new(false)).unwrap();
        assert_eq!(segment_s(vec![Gguf::open(&path).unwrap()]), 12.5);
        assert_eq!(segment_s(one), 12.5);

        let overrides = Overrides::parse(&[], &[format!("{SEGMENT_KEY}=float:20")]).unwrap();
        assert_eq!(segment_s(convert(dir.path(), Options { overrides, ..pair(FileType::Q8_0) }).unwrap()), 20.0);
    }
}

#[test]
fn the_preprocessors_length_counts_before_the_configurations() {
    let name = SPEECH[0].0;
    let at = |edits: &[Edit]| {
        let dir = copy_of(name);
        edits.iter().for_each(|edit| edit(&dir));
        stated(&convert(dir.path(), pair(FileType::Q8_0)).unwrap()[1])
    };
    let preprocessor = |text: &'static str| put("preprocessor_config.json", text.as_bytes());
    let length = |seconds: f32| Some(Value::F32(seconds));
    assert_eq!(at(&[preprocessor(r#"{"segment_seconds": 9}"#), set("/segment_seconds", json!(30))]), length(9.0));
    assert_eq!(at(&[preprocessor(r#"{"segment_seconds": null}"#), set("/segment_seconds", json!(30))]), length(30.0));
    assert_eq!(at(&[preprocessor("{}"), set("/segment_seconds", json!(2))]), length(2.0));
    // The key's whole name says the same.
    assert_eq!(at(&[preprocessor(r#"{"tympan.segment_seconds": 3600}"#)]), length(3600.0));
    assert_eq!(at(&[set("/tympan.segment_seconds", json!(8.25))]), length(8.25));
    assert_eq!(at(&[]), None);
}

#[test]
fn the_small_trained_models_state_8_seconds() {
    for name in ["models/tiny-qwen3-asr", "models/tiny-lfm2-audio"] {
        assert_eq!(segment_s(vec![to_memory(&fixture(name)).unwrap()]), 8.0, "{name}");
    }
}

#[test]
fn a_text_model_states_no_length() {
    let dir = copy_of("golden/qwen3");
    edit_config(&dir, |config| config["segment_seconds"] = json!(1));
    assert_eq!(stated(&convert(dir.path(), pair(FileType::Q8_0)).unwrap()[0]), None);
}

#[test]
fn lengths_that_make_no_sense_are_refused() {
    const CONFIG: &str = "config.json: segment_seconds: want a number from 2 to 3600, got ";
    let of_config = |value, got: &'static str| (set("/segment_seconds", value), got);
    let mut cases = vec![
        of_config(json!(1.999), "got 1.999"),
        of_config(json!(3600.5), "got 3600.5"),
        of_config(json!(0), "got 0"),
        of_config(json!(-8), "got -8"),
        of_config(json!(1e300), "got 1e+300"),
        of_config(json!("8"), "got \"8\""),
        of_config(json!([8]), "got [8]"),
        of_config(json!(true), CONFIG),
    ];
    let preprocessor = |text: &'static str| put("preprocessor_config.json", text.as_bytes());
    cases.extend([
        (
            preprocessor(r#"{"segment_seconds": 1}"#),
            "preprocessor_config.json: segment_seconds: want a number from 2 to 3600, got 1",
        ),
        (
            preprocessor(r#"{"tympan.segment_seconds": 1}"#),
            "tympan.segment_seconds: want a number from 2 to 3600, got 1",
        ),
        (preprocessor("{"), "preprocessor_config.json: not JSON"),
    ]);
    refused(SPEECH[1].0, cases);
}

#[test]
fn files_that_state_lengths_that_make_no_sense_do_not_load() {
    let error_of = |value: &str| {
        let overrides = Overrides::parse(&[], &[format!("{SEGMENT_KEY}={value}")]).unwrap();
        let files = convert(Path::new(&fixture(SPEECH[0].0)), Options { overrides, ..bundle(FileType::Q8_0) }).unwrap();
        let path = files[0].path().display().to_string();
        let error = open(files).err().unwrap().to_string();
        assert!(error.starts_with(&path), "{error}");
        error
    };
    for (value, got) in [("1.9", "1.9"), ("3601", "3601"), ("0", "0"), ("-8", "-8")] {
        let error = error_of(&format!("float:{value}"));
        assert!(error.ends_with(&format!("metadata key {SEGMENT_KEY}: want 2 to 3600, got {got}")), "{error}");
    }
    let error = error_of("int:8");
    assert!(error.contains(SEGMENT_KEY) && error.contains("f32"), "{error}");
}
