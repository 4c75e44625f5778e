//! Which architecture files stand for, by their metadata alone.

use std::collections::BTreeSet;

use convert::FileType;
use engine::gguf::{Gguf, GgufWriter};
use models::LoadOptions;
use models::registry::{ARCHITECTURES, find, needs_projector};

use crate::checkpoint::{converted, fixture};

const TYPE: &str = "clip.projector_type";
const AUDIO_TYPE: &str = "clip.audio.projector_type";

/// A file of these keys.
fn file(keys: &[(&str, &str)]) -> Gguf {
    let mut out = GgufWriter::in_memory("keys");
    for &(key, value) in keys {
        out.key(key, value).unwrap();
    }
    out.finish_in_memory().unwrap()
}

fn text(architecture: &str) -> Gguf {
    file(&[("general.architecture", architecture)])
}

fn projector(key: &str, kind: &str) -> Gguf {
    file(&[("general.architecture", "clip"), (key, kind)])
}

fn bundle(architecture: &str, key: &str, kind: &str) -> Gguf {
    file(&[("general.architecture", architecture), (key, kind)])
}

#[test]
fn files_stand_for_an_architecture_in_any_order_and_under_either_key() {
    for key in [TYPE, AUDIO_TYPE] {
        for (architecture, kind, want) in [("qwen3vl", "qwen3a", "qwen3-asr"), ("lfm2", "lfm2a", "lfm2-audio")] {
            for files in [
                vec![text(architecture), projector(key, kind)],
                vec![projector(key, kind), text(architecture)],
                vec![bundle(architecture, key, kind)],
            ] {
                let arch = find(&files, false).unwrap();
                assert_eq!(arch.name, want, "{key}");
                assert!(arch.speech.is_some());
            }
        }
    }
    for (architecture, want) in [("qwen3", "qwen3"), ("lfm2", "lfm2"), ("lfm2moe", "lfm2-moe")] {
        let files = [text(architecture)];
        let arch = find(&files, false).unwrap();
        assert_eq!((arch.name, arch.speech.is_none()), (want, true));
    }
}

/// Values of the official code are kept for each, so that one that was forgotten here or in the converter is missed.
#[test]
fn every_architecture_has_a_checkpoint_that_loads() {
    let folders = std::fs::read_dir(fixture("golden")).unwrap().map(|entry| entry.unwrap().path());
    let loaded = folders.filter(|path| path.join("config.json").exists()).map(|path| {
        let file = converted(&path, FileType::F32);
        models::load(vec![file], LoadOptions::default()).unwrap().arch.name
    });
    assert_eq!(loaded.collect::<BTreeSet<_>>(), ARCHITECTURES.iter().map(|arch| arch.name).collect());
}

#[test]
fn the_language_model_of_a_speech_model_is_found_without_its_projector() {
    for (files, want) in [
        (vec![text("qwen3vl")], "qwen3-asr"),
        (vec![bundle("qwen3vl", AUDIO_TYPE, "qwen3a")], "qwen3-asr"),
        (vec![text("lfm2")], "lfm2"),
        (vec![text("lfm2"), projector(TYPE, "lfm2a")], "lfm2"),
        (vec![bundle("lfm2", TYPE, "of another kind")], "lfm2"),
        (vec![text("qwen3")], "qwen3"),
    ] {
        assert_eq!(find(&files, true).unwrap().name, want);
    }
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    for (files, says) in [
        (vec![text("qwen3vl")], "needs its qwen3a projector (mmproj) file beside it, or --mmproj"),
        (vec![projector(TYPE, "lfm2a")], "a projector (mmproj) without its text model"),
        (vec![text("lfm2"), projector(AUDIO_TYPE, "qwen3a")], "lfm2 with projector qwen3a"),
        (vec![text("qwen3vl"), projector(TYPE, "lfm2a")], "qwen3vl with projector lfm2a"),
        (vec![text("qwen3"), projector(TYPE, "lfm2a")], "qwen3 with projector lfm2a"),
        (vec![text("gpt2")], "gpt2"),
    ] {
        let message = find(&files, false).err().unwrap().to_string();
        assert!(message.contains(says), "{message}");
    }
    assert!(find(&[projector(TYPE, "lfm2a")], true).is_err());
    assert!(find(&[text("gpt2")], true).is_err());
}

#[test]
fn text_files_of_speech_models_look_for_a_projector() {
    for (file, want) in [
        (text("qwen3vl"), true),
        (text("lfm2"), true),
        (text("lfm2moe"), false),
        (text("qwen3"), false),
        (bundle("lfm2", TYPE, "lfm2a"), false),
        (bundle("qwen3vl", AUDIO_TYPE, "qwen3a"), false),
        (projector(TYPE, "lfm2a"), false),
    ] {
        assert_eq!(needs_projector(&file), want);
    }
}
