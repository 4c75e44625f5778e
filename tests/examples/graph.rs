//! Builds, runs and prints a small graph: a model of two matrices. `cargo run --release -p tests --example graph`
//!
//! A model describes its computation; the session plans memory, compiles, and runs the same graph for every call of a shape.

use std::sync::Arc;

use engine::DType;
use engine::batch::Tokens;
use engine::builder::{BatchInputs, GraphBuilder};
use engine::gguf::{Gguf, GgufWriter};
use engine::key::{GraphKey, Stage};
use engine::model::Model;
use engine::op::Unary;
use engine::session::{Session, SessionOptions};
use engine::state::States;
use engine::weights::{Weight, WeightStore};

const N_VOCAB: usize = 3;
const N_EMBD: usize = 2;

/// `[N_VOCAB, N_EMBD]`, one row for each token.
const EMBEDDING: [f32; N_VOCAB * N_EMBD] = [1.0, 0.0, 0.0, 1.0, -1.0, 1.0];
/// `[N_VOCAB, N_EMBD]`, one row for each logit.
const HEAD: [f32; N_VOCAB * N_EMBD] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

/// The logits of a token are its row of the embedding, without what is negative, times the head.
struct Tiny {
    embedding: Weight,
    head: Weight,
    states: States,
}

impl Model for Tiny {
    fn arch(&self) -> &'static str {
        "tiny"
    }

    fn n_vocab(&self) -> usize {
        N_VOCAB
    }

    fn n_embd(&self) -> usize {
        N_EMBD
    }

    fn states(&self) -> &States {
        &self.states
    }

    fn build(&self, g: &GraphBuilder<'_>, key: &GraphKey) {
        let batch = BatchInputs::new(g, key);
        let x = g.name(batch.embed(g, self.embedding), "embed"); // [n_tokens, N_EMBD]
        let x = g.name(g.unary(Unary::Relu, x), "relu");
        // Only the rows that logits were asked for reach the head.
        let Some(x) = batch.output_rows(g, x) else { return };
        g.output(g.linear(x, self.head));
    }
}

/// A model file in memory; one on the disk is opened with `Gguf::open`.
fn weights() -> engine::Result<Gguf> {
    let mut file = GgufWriter::in_memory("tiny");
    let tensors = [("embedding", EMBEDDING), ("head", HEAD)];
    for (name, _) in &tensors {
        file.tensor(name, DType::F32, [N_VOCAB, N_EMBD].into())?;
    }
    for (name, values) in &tensors {
        file.begin(name)?;
        file.write(&values.map(f32::to_le_bytes).concat())?;
    }
    file.finish_in_memory()
}

fn main() -> anyhow::Result<()> {
    let store = WeightStore::new([weights()?])?;
    let weight = |name: &str| store.get(name, [N_VOCAB, N_EMBD]);
    let model = Tiny { embedding: weight("embedding")?, head: weight("head")?, states: States::new() };
    let backend = backends::open("cpu", &backends::Options::default())?;
    let mut session = Session::open(Arc::new(model), &store, &[backend], SessionOptions::default())?;

    let key = session.key_of(Stage::Tokens, 2, 1)?;
    println!("{}", session.describe(&key)?.graph().dump());

    let slot = session.memory_mut().acquire()?;
    let logits = session.feed(slot, Tokens::Ids(&[0, 2]))?;
    println!("logits of the last token: {logits:?}");
    // The row [-1, 1] becomes [0, 1], which picks the second column of the head.
    assert_eq!(logits, [2.0, 4.0, 6.0]);
    Ok(())
}
