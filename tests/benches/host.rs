//! What a call costs besides the arithmetic: `cargo bench -p tests --bench host`.
//!
//! The model is an LFM2 of 16 layers in the order of the published ones, but only 64 wide: width does not change what it
//! costs to find a graph, to feed it and to read from it. With a vocabulary of 256 all of that stays in the caches from step
//! to step; with the published 65536, 8 MB of weights pass through them in between. Contexts take turns step by step, so that
//! a noisy machine is noisy for all of them; medians and both tenths are of all rounds.
//!
//! - host: from entering `step` to the first claimed chunk, plus from the last chunk to the return
//! - dispatch: from a step's last chunk to the first chunk of the next one, per step of the list
//! - tasks: two empty tasks given to the threads of a backend
//! - miss: a graph built, fused, planned and lowered
//!
//! `-- miss` as argument measures that alone, `-- families` the same of every architecture in its published depth, a few
//! channels wide ([`synth::Shape::narrow`]), or of those whose names contain the next argument: one sequence at every context and four at different ones.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backends::cpu::{CpuBackend, CpuOptions};
use convert::Files;
use convert::synth::{self, Synthetic};
use engine::backend::Backend as _;
use engine::batch::{Batch, Rows, Sequence, Tokens};
use engine::gguf::{Gguf, GgufWriter};
use engine::key::Stage;
use engine::memory::Slot;
use engine::session::{Reuse, Session, SessionOptions};
use engine::{DType, Shape};
use models::LoadOptions;

const VOCABULARIES: [usize; 2] = [256, 65536];
const N_EMBD: usize = 64;
const N_HEAD: usize = 2;
const N_HEAD_KV: usize = 1;
const HEAD_DIM: usize = N_EMBD / N_HEAD;
const N_FF: usize = 128;
const D_CONV: usize = 3;
const N_LAYER: usize = 16;
/// Layers with attention. Source: the configurations of LFM2-350M to LFM2-1.2B.
const ATTENTION: [usize; 6] = [2, 5, 8, 10, 12, 14];
const CONTEXTS: [usize; 4] = [64, 512, 2048, 8192];
/// Measured steps at every context.
const STEPS: usize = 400;
/// Steps before them.
const WARM_UP: usize = 50;
/// Times a graph is built.
const BUILDS: usize = 300;
/// Tokens of the sequences of a ragged step.
const RAGGED: [usize; 8] = [1, 2, 1, 1, 3, 1, 1, 2];
/// Most tokens that a sequence is fed with in a step.
const MAX_NEXT: usize = 3;
/// Times tasks are given to threads.
const CALLS: usize = 1000;

fn model_file(n_vocab: usize) -> Gguf {
    let kv: Vec<u32> = (0..N_LAYER).map(|i| if ATTENTION.contains(&i) { N_HEAD_KV as u32 } else { 0 }).collect();
    let mut tensors: Vec<(String, Vec<usize>)> =
        vec![("token_embd.weight".into(), vec![n_vocab, N_EMBD]), ("token_embd_norm.weight".into(), vec![N_EMBD])];
    for i in 0..N_LAYER {
        let mixer: &[(&str, &[usize])] = if ATTENTION.contains(&i) {
            &[
                ("attn_q", &[N_EMBD, N_EMBD]),
                ("attn_k", &[N_HEAD_KV * HEAD_DIM, N_EMBD]),
                ("attn_v", &[N_HEAD_KV * HEAD_DIM, N_EMBD]),
                ("attn_output", &[N_EMBD, N_EMBD]),
                ("attn_q_norm", &[HEAD_DIM]),
                ("attn_k_norm", &[HEAD_DIM]),
            ]
        } else {
            &[
                ("shortconv.in_proj", &[3 * N_EMBD, N_EMBD]),
                ("shortconv.conv", &[N_EMBD, D_CONV]),
                ("shortconv.out_proj", &[N_EMBD, N_EMBD]),
            ]
        };
        let rest: [(&str, &[usize]); 5] = [
            ("attn_norm", &[N_EMBD]),
            ("ffn_norm", &[N_EMBD]),
            ("ffn_gate", &[N_FF, N_EMBD]),
            ("ffn_up", &[N_FF, N_EMBD]),
            ("ffn_down", &[N_EMBD, N_FF]),
        ];
        let all = mixer.iter().chain(&rest);
        tensors.extend(all.map(|(name, shape)| (format!("blk.{i}.{name}.weight"), shape.to_vec())));
    }
    let mut file = GgufWriter::in_memory("lfm2-16-layers");
    let mut key = |name: &str, value: u32| file.key(&format!("lfm2.{name}"), value).expect("a new key");
    key("embedding_length", N_EMBD as u32);
    key("block_count", N_LAYER as u32);
    key("attention.head_count", N_HEAD as u32);
    key("feed_forward_length", N_FF as u32);
    key("shortconv.l_cache", D_CONV as u32);
    file.key("lfm2.attention.head_count_kv", kv).expect("a new key");
    file.key("lfm2.attention.layer_norm_rms_epsilon", 1e-5f32).expect("a new key");
    file.key("lfm2.rope.freq_base", 1e6f32).expect("a new key");
    let dtype = |shape: &[usize]| if shape.len() == 2 && shape[1] == N_EMBD { DType::F16 } else { DType::F32 };
    for (name, shape) in &tensors {
        file.tensor(name, dtype(shape), Shape::new(shape).expect("a small shape")).expect("a new tensor");
    }
    for (name, shape) in &tensors {
        let n = shape.iter().product::<usize>();
        file.begin(name).expect("tensors come in order");
        // Norms are 1, everything else is small: no value matters.
        let bytes =
            if shape.len() == 1 { 1.0f32.to_le_bytes().repeat(n) } else { vec![0x11; dtype(shape).row_bytes(n)] };
        file.write(&bytes).expect("memory suffices");
    }
    file.finish_in_memory().expect("a whole file")
}

fn open(backend: &Arc<CpuBackend>, file: &Gguf, reuse: Reuse) -> Session {
    let loaded = models::load(vec![file.clone()], LoadOptions { text_only: true, ..LoadOptions::default() });
    let loaded = loaded.expect("the file is complete");
    let n_ctx = CONTEXTS[CONTEXTS.len() - 1] + WARM_UP + STEPS;
    let options = SessionOptions { n_slots: RAGGED.len(), n_ctx, reuse, ..SessionOptions::default() };
    Session::open(loaded.model, &loaded.weights, &[Arc::clone(backend) as _], options).expect("memory suffices")
}

/// Median and both tenths.
struct Spread([f64; 3]);

impl Spread {
    fn of(samples: &mut [f64]) -> Self {
        samples.sort_by(f64::total_cmp);
        Self([5, 1, 9].map(|tenth| samples[(samples.len() - 1) * tenth / 10]))
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [median, low, high] = self.0;
        write!(f, "{median:.2} | {low:.2} | {high:.2}")
    }
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn row(what: &str, mut samples: Vec<f64>) {
    println!("| {what} | {} |", Spread::of(&mut samples));
}

/// The next tokens of a sequence.
fn next(slot: Slot, n: usize) -> Sequence<'static> {
    Sequence { slot, tokens: Tokens::Ids(&[17; MAX_NEXT][..n]), rows: Rows::Last }
}

/// One step: host time and dispatch per step of the list.
fn step(backend: &CpuBackend, s: &mut Session, seqs: &[Sequence<'_>]) -> (f64, f64) {
    let start = Instant::now();
    let logits = s.step(&Batch { seqs }).expect("there is room");
    std::hint::black_box(logits.last(0));
    let end = Instant::now();
    let times = backend.last_run().expect("the backend is traced");
    let host = times.first_chunk.saturating_duration_since(start) + end.saturating_duration_since(times.last_chunk);
    (us(host), us(times.between_steps) / (times.n_steps - 1).max(1) as f64)
}

fn cpu(threads: usize) -> Arc<CpuBackend> {
    let options = CpuOptions { threads: NonZeroUsize::new(threads), isa: None };
    Arc::new(CpuBackend::new(&options).expect("threads start").traced())
}

/// A sequence at every context.
fn sequences(file: &Gguf) -> Vec<Vec<u8>> {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut s = open(&cpu(threads), file, Reuse::On);
    let at = |s: &mut Session, n: usize| {
        let slot = s.memory_mut().acquire().expect("slots are given back");
        s.feed(slot, Tokens::Ids(&vec![5; n])).expect("there is room");
        let bytes = s.snapshot(slot).expect("a sequence");
        s.memory_mut().release(slot);
        bytes
    };
    CONTEXTS.iter().map(|&n| at(&mut s, n)).collect()
}

fn measure_steps(file: &Gguf, sequences: &[Vec<u8>], name: &str, threads: usize) {
    let backend = cpu(threads);
    let mut s = open(&backend, file, Reuse::On);
    let slots: Vec<Slot> = sequences
        .iter()
        .map(|sequence| {
            let slot = s.memory_mut().acquire().expect("one slot per context");
            s.restore(slot, sequence).expect("it is of this model");
            slot
        })
        .collect();
    let (mut host, mut dispatch) = (vec![Vec::new(); CONTEXTS.len()], Vec::new());
    for i in 0..WARM_UP + STEPS {
        for (host, slot) in host.iter_mut().zip(&slots) {
            let (h, d) = step(&backend, &mut s, &[next(*slot, 1)]);
            if i >= WARM_UP {
                host.push(h);
                dispatch.push(d);
            }
        }
    }
    for (context, host) in CONTEXTS.iter().zip(host) {
        row(&format!("host: {name}, context {context}"), host);
    }
    row(&format!("dispatch: {name}, all contexts"), dispatch);
}

/// Steps of sequences of unequal length, each with a context of its own.
fn measure_ragged(file: &Gguf, name: &str, threads: usize) {
    let backend = cpu(threads);
    let mut s = open(&backend, file, Reuse::On);
    let slots = RAGGED.map(|n| {
        let slot = s.memory_mut().acquire().expect("a slot each");
        s.feed(slot, Tokens::Ids(&vec![5; CONTEXTS[0] * n])).expect("there is room");
        slot
    });
    let seqs: Vec<Sequence<'_>> = slots.into_iter().zip(RAGGED).map(|(slot, n)| next(slot, n)).collect();
    let host = (0..WARM_UP + STEPS).map(|_| step(&backend, &mut s, &seqs).0).collect::<Vec<_>>();
    row(&format!("host: {name}, {} ragged sequences", RAGGED.len()), host[WARM_UP..].to_vec());
}

/// One token of each of as many sequences as there are contexts, in one step.
fn measure_four(file: &Gguf, sequences: &[Vec<u8>], name: &str) {
    let backend = cpu(1);
    let mut s = open(&backend, file, Reuse::On);
    let slots = sequences.iter().map(|sequence| {
        let slot = s.memory_mut().acquire().expect("a slot each");
        s.restore(slot, sequence).expect("it is of this model");
        slot
    });
    let seqs: Vec<Sequence<'_>> = slots.collect::<Vec<_>>().into_iter().map(|slot| next(slot, 1)).collect();
    let host = (0..WARM_UP + STEPS).map(|_| step(&backend, &mut s, &seqs).0).collect::<Vec<_>>();
    row(&format!("host: {name}, {} sequences", seqs.len()), host[WARM_UP..].to_vec());
}

fn measure_families(part: &str) {
    let shapes = synth::Shape::ALL.iter().filter(|shape| shape.name.contains(part));
    for shape in shapes.filter_map(synth::Shape::narrow) {
        let file = convert::to_memory(Files::Synthetic(Arc::new(Synthetic::new(&shape, 1)))).expect("a small model");
        let sequences = sequences(&file);
        measure_steps(&file, &sequences, shape.name, 1);
        measure_four(&file, &sequences, shape.name);
        measure_builds(&file);
    }
}

fn measure_tasks() {
    let backend = cpu(2);
    let tasks = (0..CALLS).map(|_| {
        let start = Instant::now();
        backend.parallel().for_each(2, &|i| _ = std::hint::black_box(i));
        us(start.elapsed())
    });
    row("tasks: two empty ones on two threads", tasks.collect());
}

fn measure_builds(file: &Gguf) {
    let mut s = open(&cpu(1), file, Reuse::Off);
    for (what, n_tokens) in [("one token", 1), ("a prompt of 64", 64)] {
        let key = s.key_of(Stage::Tokens, n_tokens, 1).expect("a small call");
        let mut times = Vec::new();
        let mut n_nodes = 0;
        for _ in 0..BUILDS {
            let start = Instant::now();
            n_nodes = s.graph(&key).expect("the graph is valid").graph().nodes.len();
            times.push(us(start.elapsed()));
        }
        row(&format!("miss: {what}, {n_nodes} nodes after fusion"), times);
    }
}

fn main() {
    println!("| microseconds | median | lowest tenth | highest tenth |");
    println!("|---|---|---|---|");
    if std::env::args().any(|arg| arg == "miss") {
        return measure_builds(&model_file(VOCABULARIES[0]));
    }
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "families") {
        let part = args.get(at + 1).filter(|arg| !arg.starts_with('-'));
        return measure_families(part.map_or("", String::as_str));
    }
    for n_vocab in VOCABULARIES {
        let file = model_file(n_vocab);
        let sequences = sequences(&file);
        for threads in [1, 2] {
            let name = format!("vocabulary {n_vocab}, {threads} threads");
            measure_steps(&file, &sequences, &name, threads);
            measure_ragged(&file, &name, threads);
        }
        if n_vocab == VOCABULARIES[0] {
            measure_tasks();
            measure_builds(&file);
        }
    }
}
