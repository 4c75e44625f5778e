//! Trained checkpoints against the official implementations: one clip through encoder and decoder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use convert::FileType;
use engine::DType;
use engine::backend::Backend;
use engine::batch::{Features, Tokens};
use engine::pass::CompileOptions;
use engine::session::{Session, SessionOptions};
use models::LoadOptions;
use models::audio::decode_file;
use safetensors::SafeTensors;
use tests::sessions::session_options;

use super::{decode, tap};
use crate::checkpoint::{converted, fixture};

/// Tolerance of a tensor, relative to its largest value.
const TOLERANCE: f64 = 1e-5;
/// Mel bands of all of them.
const N_MELS: usize = 128;

/// What the official implementation computes from a clip.
pub struct Trained {
    dir: PathBuf,
    clip: String,
    bytes: Vec<u8>,
}

impl Trained {
    pub fn open(model: &str, clip: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models").join(model);
        let bytes = std::fs::read(dir.join(format!("golden/{clip}.safetensors"))).unwrap();
        Self { dir, clip: clip.to_owned(), bytes }
    }

    /// What the clip sounds like.
    pub fn samples(&self) -> Vec<f32> {
        decode_file(&fixture(&format!("audio/{}.wav", self.clip))).unwrap().samples
    }

    fn bytes(&self, name: &str) -> &[u8] {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).unwrap().data()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.bytes(name).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<i32> {
        let id = |bytes: &[u8]| i32::try_from(i64::from_le_bytes(bytes.try_into().unwrap())).unwrap();
        self.bytes(name).chunks_exact(8).map(id).collect()
    }

    /// Compares with [`TOLERANCE`]; `got` may have more values than expected at its end.
    pub fn compare(&self, name: &str, backend: &dyn Backend, got: &[f32]) {
        let largest = self.floats(name).iter().fold(0.0f32, |a, b| a.max(b.abs()));
        self.compare_within(name, backend, got, TOLERANCE * f64::from(largest));
    }

    /// Compares with a largest difference; see [`Trained::compare`].
    pub fn compare_within(&self, name: &str, backend: &dyn Backend, got: &[f32], allowed: f64) {
        let (want, clip) = (self.floats(name), &self.clip);
        assert!(got.len() >= want.len(), "{clip} {name}: {} values", got.len());
        let worst = got.iter().zip(&want).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).fold(0.0, f64::max);
        assert!(worst <= allowed, "{clip} {name} on {}: {worst:e} > {allowed:e}", backend.name());
    }

    /// Encodes the clip's features, compares what comes out of the encoder, which `tap` names, and its embeddings, and
    /// returns these with the session.
    pub fn encode(&self, backend: &Arc<dyn Backend>, tap_name: &str) -> (Session, Vec<f32>) {
        let loaded = models::load(vec![converted(&self.dir, FileType::BF16)], LoadOptions::default()).unwrap();
        let compile = CompileOptions { taps: vec![tap_name.into()], ..CompileOptions::default() };
        let options = SessionOptions { n_ctx: 512, kv_dtype: DType::F32, compile, ..session_options() };
        let mut s = Session::open(loaded.model, &loaded.weights, std::slice::from_ref(backend), options).unwrap();
        let values = self.floats("mel");
        let input = Features { n_mels: N_MELS, n_frames: values.len() / N_MELS, values: &values };
        let embeddings = s.encode(&[input]).unwrap().clip(0).to_vec();
        self.compare("encoder", &**backend, &tap(&s, tap_name));
        self.compare("audio_embeds", &**backend, &embeddings);
        (s, embeddings)
    }

    /// Feeds `prompt`, in which -1 stands for the next row of `embeddings`, and compares what follows it.
    pub fn check_decoder(&self, backend: &dyn Backend, mut s: Session, prompt: &[i32], embeddings: &[f32]) {
        let slot = s.memory_mut().acquire().unwrap();
        let first = s.feed(slot, Tokens::Mixed { ids: prompt, embeddings }).unwrap().to_vec();
        self.compare("first_logits", backend, &first);
        let generated = self.ids("generated_ids");
        let (got, rows) = decode(&mut s, slot, &first, generated.len());
        assert_eq!(got, generated, "{} on {}", self.clip, backend.name());
        self.compare("step_logits", backend, &rows);
    }
}
