//! Every type of file runs: logits of quantized models against those of the same weights unpacked to f32, in f64
//! arithmetic.

use std::sync::Arc;

use convert::FileType;
use engine::DType;
use engine::backend::Backend;
use engine::batch::{Batch, Rows, Sequence, Tokens};
use engine::gguf::Gguf;
use engine::session::{Session, SessionOptions};
use models::LoadOptions;
use tests::compare::nmse;
use tests::draft::Draft;
use tests::rng::Rng;
use tests::sessions::session_options;

use crate::checkpoint::{converted, fixture};

/// Normalised squared error where both do f64 arithmetic on the same weights.
const MAX_REFERENCE_NMSE: f64 = 1e-13;
/// The same where activations are f32.
const MAX_NMSE: f64 = 1e-10;
/// The same where kernels round activations to 8 bits. The largest of 32 normal values is about 2.2 times their root mean
/// square, so that a step of `max / 127` leaves `(2.2 / 127)^2 / 12 = 2.5e-5` per product. These models have 15 to 40
/// products one after the other, some of them multiplied with each other; an error of layout or scale leaves 0.1 or more.
const MAX_ROUNDED_NMSE: f64 = 5e-3;
/// Tokens of the prompt.
const N_PROMPT: usize = 20;

/// Logits of every token of a prompt and of some tokens one by one.
fn logits(file: &Gguf, backend: &str) -> Vec<Vec<f32>> {
    let backend: Arc<dyn Backend> = backends::open(backend, &backends::Options::default()).unwrap();
    let loaded = models::load(vec![file.clone()], LoadOptions::default()).unwrap();
    let n_vocab = loaded.model.n_vocab();
    let options = SessionOptions { n_ctx: 64, kv_dtype: DType::F32, ..session_options() };
    let mut s = Session::open(loaded.model, &loaded.weights, &[backend], options).unwrap();
    let slot = s.memory_mut().acquire().unwrap();
    let mut rng = Rng::named("prompt of every type");
    let ids: Vec<u32> = (0..N_PROMPT + 4).map(|_| u32::try_from(rng.below(n_vocab)).unwrap()).collect();
    let (prompt, rest) = ids.split_at(N_PROMPT);
    let mut out = Vec::new();
    for tokens in std::iter::once(prompt).chain(rest.chunks(1)) {
        let seqs = [Sequence { slot, tokens: Tokens::Ids(tokens), rows: Rows::All }];
        let found = s.step(&Batch { seqs: &seqs }).unwrap();
        out.extend((0..tokens.len()).map(|t| found.row(0, t).to_vec()));
    }
    out
}

/// The median over tokens of the error of their logits: where a router is near a tie, rounding gives a token to another
/// expert, and its logits to another sum.
fn median_nmse(got: &[Vec<f32>], want: &[Vec<f32>]) -> f64 {
    assert_eq!(got.len(), want.len());
    let mut errors: Vec<f64> = got.iter().zip(want).map(|(got, want)| nmse(got, want)).collect();
    errors.sort_by(f64::total_cmp);
    errors[errors.len() / 2]
}

#[test]
fn logits_of_every_type_are_those_of_its_weights() {
    // The first has rows of 256, the others rows that fall back.
    for name in [
        "qwen3",
        "llama",
        "lfm2",
        "lfm2_moe",
        "mamba2",
        "granitemoehybrid",
        "jamba",
        "qwen3_5",
        "qwen3_next",
        "qwen3_5_moe",
    ] {
        let checkpoint = &format!("golden/{name}");
        // A token that goes to another expert stays in the memory of a recurrence: no median passes it over.
        let keeps_flips = ["qwen3_next", "qwen3_5_moe", "jamba"].contains(&name);
        for file_type in FileType::ALL.into_iter().filter(|t| !(keeps_flips && t.is_quantized())) {
            let file = converted(&fixture(checkpoint), file_type);
            let mut unpacked = Draft::of(&file);
            unpacked.tensors.iter_mut().for_each(|t| t.encode(DType::F32));
            let want = logits(&unpacked.in_memory(), "reference");
            let max = if file_type.is_quantized() { MAX_ROUNDED_NMSE } else { MAX_NMSE };
            for (backend, max) in [("reference", MAX_REFERENCE_NMSE), ("cpu", max)] {
                let error = median_nmse(&logits(&file, backend), &want);
                assert!(error <= max, "{checkpoint} in {file_type} on {backend}: {error:e}");
            }
        }
    }
}
