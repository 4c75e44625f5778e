//! Which architecture files stand for, by their metadata alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use convert::FileType;
use engine::DType;
use engine::batch::Tokens;
use engine::builder::{BatchInputs, GraphBuilder};
use engine::gguf::{Gguf, GgufWriter};
use engine::key::GraphKey;
use engine::model::Model;
use engine::session::{Session, SessionOptions};
use engine::state::States;
use engine::weights::{Weight, WeightStore};
use models::LoadOptions;
use models::qwen3_asr::AudioAttention;
use models::registry::{ARCHITECTURES, Arch, find, needs_projector};

use crate::checkpoint::{converted, fixture};

/// The language model alone.
const TEXT_ONLY: LoadOptions =
    LoadOptions { audio_attention: AudioAttention::Windowed, text_only: true, architectures: &[] };

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
                let arch = find(&files, LoadOptions::default()).unwrap();
                assert_eq!(arch.name, want, "{key}");
                assert!(arch.speech.is_some());
            }
        }
    }
    for (architecture, want) in [
        ("qwen3", "qwen3"),
        ("lfm2", "lfm2"),
        ("lfm2moe", "lfm2-moe"),
        ("llama", "llama"),
        ("mamba", "mamba"),
        ("granitehybrid", "granite-hybrid"),
    ] {
        let files = [text(architecture)];
        let arch = find(&files, LoadOptions::default()).unwrap();
        assert_eq!((arch.name, arch.speech.is_none()), (want, true));
    }
}

/// Values of the official code are kept for each, so that one that was forgotten here or in the converter is missed.
#[test]
fn every_architecture_has_a_checkpoint_that_loads() {
    let folders = std::fs::read_dir(fixture("golden")).unwrap().map(|entry| entry.unwrap().path());
    let loaded = folders.filter(|path| path.join("golden.safetensors").exists()).map(|path| {
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
        assert_eq!(find(&files, TEXT_ONLY).unwrap().name, want);
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
        let message = find(&files, LoadOptions::default()).err().unwrap().to_string();
        assert!(message.contains(says), "{message}");
    }
    assert!(find(&[projector(TYPE, "lfm2a")], TEXT_ONLY).is_err());
    assert!(find(&[text("gpt2")], TEXT_ONLY).is_err());
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
        assert_eq!(needs_projector(&file, LoadOptions::default()), want);
    }
}

/// An architecture that this crate does not know: its logits are the rows of its embedding.
struct Own {
    embedding: Weight,
    states: States,
}

const N_VOCAB: usize = 4;

impl Model for Own {
    fn arch(&self) -> &'static str {
        "own"
    }

    fn n_vocab(&self) -> usize {
        N_VOCAB
    }

    fn n_embd(&self) -> usize {
        N_VOCAB
    }

    fn states(&self) -> &States {
        &self.states
    }

    fn build(&self, g: &GraphBuilder<'_>, key: &GraphKey) {
        let batch = BatchInputs::new(g, key);
        let x = g.copy(batch.embed(g, self.embedding));
        if let Some(x) = batch.output_rows(g, x) {
            g.output(x);
        }
    }
}

fn load_own(_: &[Gguf], weights: &WeightStore, _: LoadOptions) -> models::Result<Arc<dyn Model>> {
    let embedding = weights.get("token_embd.weight", [N_VOCAB, N_VOCAB])?;
    Ok(Arc::new(Own { embedding, states: States::new() }))
}

/// One that is new, and one in the place of an architecture of ours.
static ARCHITECTURES_OF_OUR_OWN: [Arch; 2] = [
    Arch { name: "own", text: "own", load: load_own, speech: None },
    Arch { name: "own-lfm2", text: "lfm2", load: load_own, speech: None },
];

#[test]
fn a_program_adds_architectures_of_its_own() {
    let options = LoadOptions { architectures: &ARCHITECTURES_OF_OUR_OWN, ..LoadOptions::default() };
    let values: Vec<f32> = (0..N_VOCAB * N_VOCAB).map(|i| i as f32).collect();
    let file = |architecture: &str| {
        let mut out = GgufWriter::in_memory("own");
        out.key("general.architecture", architecture).unwrap();
        out.tensor("token_embd.weight", DType::F32, [N_VOCAB, N_VOCAB].into()).unwrap();
        out.begin("token_embd.weight").unwrap();
        out.write(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
        out.finish_in_memory().unwrap()
    };
    for (architecture, name) in [("own", "own"), ("lfm2", "own-lfm2")] {
        let loaded = models::load(vec![file(architecture)], options).unwrap();
        assert_eq!(loaded.arch.name, name);
        let backend = backends::open("cpu", &backends::Options::default()).unwrap();
        let mut session = Session::open(loaded.model, &loaded.weights, &[backend], SessionOptions::default()).unwrap();
        let slot = session.memory_mut().acquire().unwrap();
        assert_eq!(session.feed(slot, Tokens::Ids(&[0, 2])).unwrap(), &values[8..12]);
    }
    let unknown = models::load(vec![file("other")], options).err().unwrap().to_string();
    assert!(unknown.contains("(supported: own, own-lfm2, qwen3-asr, "), "{unknown}");
    assert!(models::load(vec![file("own")], LoadOptions::default()).is_err());
}
