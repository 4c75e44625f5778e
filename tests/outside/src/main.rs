//! What a program of your own does with tympan: a recording to text while it watches and could stop, a model architecture that
//! tympan does not know, and a graph with inputs of its own.
//!
//! `cargo run --release -- [AUDIO [MODEL]]`; without arguments a clip of the repository and the demonstration model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tympan::engine::builder::{BatchInputs, GraphBuilder};
use tympan::engine::gguf::{Gguf, GgufWriter};
use tympan::engine::key::GraphKey;
use tympan::engine::op::Unary;
use tympan::engine::pass::CompileOptions;
use tympan::engine::session::{Session, SessionOptions};
use tympan::engine::state::States;
use tympan::engine::weights::{Weight, WeightStore};
use tympan::engine::{self, DType, batch::Tokens};
use tympan::{Arch, Device, LoadOptions, Model, Observer, Opening, Program, Request, Transcript, models};

/// Says every finished segment, and stops after a minute.
struct Watcher {
    start: Instant,
    duration_s: f64,
}

impl Observer for Watcher {
    fn is_cancelled(&self) -> bool {
        self.start.elapsed() > Duration::from_secs(60)
    }

    fn segment(&mut self, so_far: &Transcript) {
        if let Some(last) = so_far.segments.last() {
            println!("{:5.1} of {:.1} s: {}", last.end_s, self.duration_s, last.text);
        }
    }
}

/// A recording to text.
fn transcribe(audio: &str, model: &Model) -> tympan::Result<()> {
    let audio = tympan::Audio::of_file(audio.as_ref())?;
    let duration_s = audio.samples.len() as f64 / f64::from(models::transcribe::RATE_HZ);
    let mut watcher = Watcher { start: Instant::now(), duration_s };
    let mut recognizer = model.recognizer(&Device::default())?;
    let found = recognizer.audio(audio, &Request::default(), &mut watcher)?;
    println!("{}", found.transcript.text);
    for loss in found.losses {
        println!("lost: {:.2} to {:.2} s, {}", loss.start_s, loss.end_s, loss.what);
    }
    Ok(())
}

const N_VOCAB: usize = 3;
const N_EMBD: usize = 2;

/// An architecture of one's own: a token's logits are its row of the embedding, without what is negative, times the head.
struct Tiny {
    embedding: Weight,
    head: Weight,
    states: States,
}

impl Tiny {
    fn load(_: &[Gguf], weights: &WeightStore, _: LoadOptions) -> models::Result<Arc<dyn engine::model::Model>> {
        let weight = |name: &str| weights.get(name, [N_VOCAB, N_EMBD]);
        Ok(Arc::new(Self { embedding: weight("embedding")?, head: weight("head")?, states: States::new() }))
    }
}

impl engine::model::Model for Tiny {
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
        let x = g.unary(Unary::Relu, batch.embed(g, self.embedding)); // [n_tokens, N_EMBD]
        let Some(x) = batch.output_rows(g, x) else { return };
        g.output(g.linear(x, self.head));
    }
}

/// Architectures that this program adds.
static OWN: [Arch; 1] = [Arch { name: "tiny", text: "tiny", load: Tiny::load, speech: None }];

/// A model file of that architecture, in memory.
fn tiny_file() -> engine::Result<Gguf> {
    let tensors = [("embedding", [1.0f32, 0.0, 0.0, 1.0, -1.0, 1.0]), ("head", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])];
    let mut file = GgufWriter::in_memory("tiny");
    file.key("general.architecture", "tiny")?;
    for (name, _) in &tensors {
        file.tensor(name, DType::F32, [N_VOCAB, N_EMBD].into())?;
    }
    for (name, values) in &tensors {
        file.begin(name)?;
        file.write(&values.map(f32::to_le_bytes).concat())?;
    }
    file.finish_in_memory()
}

fn own_architecture() -> tympan::Result<()> {
    let options = LoadOptions { architectures: &OWN, ..LoadOptions::default() };
    let Model { loaded, name, .. } = Model::of_files(vec![tiny_file()?], "tiny".into(), options)?;
    let backend = tympan::backends::open("cpu", &tympan::backends::Options::default())?;
    let mut session = Session::open(loaded.model, &loaded.weights, &[backend], SessionOptions::default())?;
    let slot = session.memory_mut().acquire()?;
    let logits = session.feed(slot, Tokens::Ids(&[0, 2]))?;
    println!("{name}: logits {logits:?}");
    assert_eq!(logits, [2.0, 4.0, 6.0]);
    Ok(())
}

/// A graph of one's own: rows of a table, chosen by one input, plus another.
fn own_graph() -> tympan::Result<()> {
    let weights = WeightStore::new([tiny_file()?])?;
    let table = weights.get("head", [N_VOCAB, N_EMBD]).map_err(models::Error::from)?;
    let backend = tympan::backends::open("cpu", &tympan::backends::Options::default())?;
    let mut program = Program::compile(&[backend], &weights, &CompileOptions::default(), |g| {
        let rows = g.get_rows(table, g.integers("rows", [2]));
        g.output(g.name(g.add(rows, g.values("shift", [2, N_EMBD])), "shifted"));
    })?;
    program.set("rows", &[2, 0])?;
    program.set("shift", &[0.5, 0.5, 10.0, 20.0])?;
    program.run()?;
    let shifted = program.values("shifted")?;
    println!("shifted rows: {shifted:?}");
    assert_eq!(shifted, [5.5, 6.5, 11.0, 22.0]);
    Ok(())
}

fn main() -> tympan::Result<()> {
    let clip = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/audio/long_24s.wav");
    let mut arguments = std::env::args().skip(1);
    let audio = arguments.next().unwrap_or_else(|| clip.into());
    let model = match arguments.next() {
        Some(path) => Model::open(path, &Opening::default())?,
        None => Model::demonstration()?,
    };
    transcribe(&audio, &model)?;
    own_architecture()?;
    own_graph()
}
