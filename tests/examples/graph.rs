//! Builds, runs and prints a small graph of two matrices, with inputs of its own. `cargo run --release -p tests --example graph`
//!
//! A graph that belongs to a model, and remembers sequences, is built by an `engine::model::Model`: see `tests/outside`.

use engine::DType;
use engine::gguf::{Gguf, GgufWriter};
use engine::op::Unary;
use engine::pass::CompileOptions;
use engine::program::Program;
use engine::weights::WeightStore;

const N_VOCAB: usize = 3;
const N_EMBD: usize = 2;

/// `[N_VOCAB, N_EMBD]`, one row for each token.
const EMBEDDING: [f32; N_VOCAB * N_EMBD] = [1.0, 0.0, 0.0, 1.0, -1.0, 1.0];
/// `[N_VOCAB, N_EMBD]`, one row for each logit.
const HEAD: [f32; N_VOCAB * N_EMBD] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

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
    let (embedding, head) = (weight("embedding")?, weight("head")?);
    let backend = backends::open("cpu", &backends::Options::default())?;

    // The logits of a token are its row of the embedding, without what is negative, times the head.
    let mut program = Program::compile(&[backend], &store, &CompileOptions::default(), |g| {
        let tokens = g.integers("tokens", [2]);
        let x = g.name(g.get_rows(embedding, tokens), "embed"); // [2, N_EMBD]
        let x = g.name(g.unary(Unary::Relu, x), "relu");
        g.output(g.name(g.linear(x, head), "logits")); // [2, N_VOCAB]
    })?;
    println!("{}", program.planned().graph().dump());

    program.set("tokens", &[0, 2])?;
    program.run()?;
    let logits = program.values("logits")?;
    println!("logits: {logits:?}");
    // The row [-1, 1] becomes [0, 1], which picks the second column of the head.
    assert_eq!(logits, [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
    Ok(())
}
