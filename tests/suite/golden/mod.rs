//! Whole models against the official implementations: tiny checkpoints with the values that the official code computes
//! from them. Values of the fixtures are f64 results rounded to f32, see `fixtures/golden/README.md`.

mod lfm2;
mod qwen3;
mod qwen3_next;
mod synthetic;
mod text;
mod trained;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use convert::FileType;
use engine::DType;
use engine::backend::Backend;
use engine::batch::{Batch, Rows, Sequence, Tokens};
use engine::memory::Slot;
use engine::pass::CompileOptions;
use engine::session::{Session, SessionOptions};
use models::LoadOptions;
use models::qwen3_asr::AudioAttention;
use models::sample::greedy;
use safetensors::SafeTensors;
use serde_json::Value;
use tests::sessions::session_options;

use crate::checkpoint::converted;

/// Normalised squared error that f64 arithmetic may leave: values are stored as f32, states too.
const REFERENCE_NMSE: f64 = 1e-13;

/// What a rounding to f32 is off by at most, relative.
const HALF_UNIT: f64 = 1.0 / (1 << 24) as f64;

/// A fixture: checkpoint, expected tensors, and how far the official code is off in f32.
struct Golden {
    dir: PathBuf,
    bytes: Vec<u8>,
    manifest: Value,
}

/// An expected tensor.
struct Expected {
    shape: Vec<usize>,
    values: Vec<f32>,
    /// Largest difference that an f32 engine may show.
    tolerance: f64,
    /// Normalised squared error that f64 arithmetic may leave.
    reference_nmse: f64,
}

impl Golden {
    fn open(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden").join(name);
        let bytes = std::fs::read(dir.join("golden.safetensors")).unwrap();
        let manifest = serde_json::from_slice(&std::fs::read(dir.join("manifest.json")).unwrap()).unwrap();
        Self { dir, bytes, manifest }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    fn expected(&self, name: &str) -> Expected {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap();
        let entry = self.manifest["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap();
        let number = |key: &str| entry[key].as_f64().unwrap();
        Expected {
            shape: view.shape().to_vec(),
            values: view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            tolerance: 20.0 * number("f32_error") + 1e-6 * number("max_abs"),
            reference_nmse: REFERENCE_NMSE + if name.contains("logits") { 0.0 } else { self.state_nmse() },
        }
    }

    /// States of recurrences are rounded to f32 behind every row, in every layer that has one: what a layer sums over is off
    /// by as much.
    fn state_nmse(&self) -> f64 {
        let n_layer = self.names().filter(|name| name.starts_with("state.prompt.") && name.ends_with(".ssm")).count();
        let n_rounded = if n_layer == 0 { 0 } else { self.ids("prompt.ids").len() * n_layer };
        n_rounded as f64 * HALF_UNIT * HALF_UNIT / 3.0
    }

    /// Names of the expected tensors.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.manifest["tensors"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap())
    }

    fn ids(&self, name: &str) -> Vec<i32> {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap();
        view.data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// The first `n` samples of the waveform.
    fn waveform(&self, n: usize) -> Vec<f32> {
        let tensors = self.tensors();
        let view = tensors.tensor("waveform").unwrap();
        let samples =
            view.data().chunks_exact(2).map(|b| f32::from(i16::from_le_bytes(b.try_into().unwrap())) / 32768.0);
        samples.take(n).collect()
    }

    fn session(&self, backend: &Arc<dyn Backend>, attention: AudioAttention, taps: &[&str]) -> Session {
        let files = vec![converted(&self.dir, FileType::F32)];
        let loaded = models::load(files, LoadOptions { audio_attention: attention, ..LoadOptions::default() }).unwrap();
        let options = SessionOptions {
            n_ctx: 512,
            kv_dtype: DType::F32,
            compile: CompileOptions {
                poison: true,
                taps: taps.iter().map(|&t| t.to_owned()).collect(),
                ..CompileOptions::default()
            },
            ..session_options()
        };
        Session::open(loaded.model, &loaded.weights, std::slice::from_ref(backend), options).unwrap()
    }
}

/// Compares with the tolerance of the backend; `got` may have more rows than expected at its front.
fn compare(what: &str, backend: &dyn Backend, got: &[f32], want: &Expected) {
    let got = &got[got.len() - want.values.len()..];
    let error = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).abs();
    if backend.name() == "reference" {
        let noise: f64 = got.iter().zip(&want.values).map(|p| error(p).powi(2)).sum();
        let signal: f64 = want.values.iter().map(|b| f64::from(*b).powi(2)).sum();
        assert!(noise <= want.reference_nmse * signal, "{what} on reference: nmse {:e}", noise / signal);
    } else {
        let worst = got.iter().zip(&want.values).map(error).fold(0.0, f64::max);
        assert!(worst <= want.tolerance, "{what} on {}: {worst:e} > {:e}", backend.name(), want.tolerance);
    }
    assert!(got.iter().all(|x| x.is_finite()), "{what}: not finite");
}

fn backends() -> Vec<Arc<dyn Backend>> {
    tests::sessions::backends()
}

fn tap(session: &Session, name: &str) -> Vec<f32> {
    session.tap(name).unwrap().unwrap_or_else(|| panic!("no tap {name}")).0
}

/// Feeds a prompt and returns the logits of every position.
fn all_logits(session: &mut Session, slot: Slot, tokens: Tokens<'_>) -> Vec<f32> {
    let n = tokens.len();
    let logits = session.step(&Batch { seqs: &[Sequence { slot, tokens, rows: Rows::All }] }).unwrap();
    (0..n).flat_map(|t| logits.row(0, t).to_vec()).collect()
}

/// Greedy continuation: ids, and the logits that chose each. The last id is not fed.
fn decode(session: &mut Session, slot: Slot, first: &[f32], n: usize) -> (Vec<i32>, Vec<f32>) {
    let mut logits = first.to_vec();
    let (mut ids, mut rows) = (Vec::new(), Vec::new());
    for _ in 0..n {
        let next = u32::try_from(greedy(&logits).unwrap()).unwrap();
        ids.push(next.cast_signed());
        rows.extend_from_slice(&logits);
        if ids.len() < n {
            logits = session.feed(slot, Tokens::Ids(&[next])).unwrap().to_vec();
        }
    }
    (ids, rows)
}
