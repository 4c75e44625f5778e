//! Ops with a state of fixed extent, each alone in a model: where a sequence is cut into calls changes no bit, and f32 stays
//! close to f64 however long the sequence is.

use std::sync::Arc;

use engine::backend::Backend;
use engine::batch::{Batch, Rows, Sequence, Tokens};
use engine::builder::{BatchInputs, GraphBuilder, SsmScan};
use engine::gguf::GgufWriter;
use engine::key::GraphKey;
use engine::model::Model;
use engine::op::{HeadMap, ScanDecay};
use engine::session::{Reuse, Session, SessionOptions};
use engine::state::{State, States};
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};
use engine::{DType, Shape};
use tests::rng::Rng;
use tests::sessions::session_options;

use crate::hybrid::backends;

const N_HEAD: usize = 4;
const HEAD_DIM: usize = 8;
const N_GROUP: usize = 2;
const D_STATE: usize = 16;
const D_CONV: usize = 4;
/// Channels: what the op gives for a token, and the number of different tokens.
const WIDTH: usize = N_HEAD * HEAD_DIM;
/// Lengths around those of blocks and chunks.
const LENGTHS: [usize; 7] = [1, 2, 63, 64, 65, 197, 512];

/// Largest difference between f32 and f64, of the largest result, and of the largest element of a state.
const MAX_OFF: [f64; 2] = [2e-6, 1e-5];

/// What is tested.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Conv,
    Scan(ScanDecay),
    Delta,
}

const KINDS: [Kind; 4] = [Kind::Conv, Kind::Scan(ScanDecay::Channel), Kind::Scan(ScanDecay::Head), Kind::Delta];

/// Tables that a token has a row of each in: names, widths, and ranges of what is in them.
fn tables(kind: Kind) -> Vec<(&'static str, usize, [f32; 2])> {
    // Step sizes from 1e-6 to 30, when they have gone through a softplus.
    const STEP: [f32; 2] = [-14.0, 30.0];
    const UNIT: [f32; 2] = [-1.0, 1.0];
    match kind {
        Kind::Conv => vec![("x", WIDTH, UNIT)],
        Kind::Scan(decay) => {
            let n_steps = if decay == ScanDecay::Head { N_HEAD } else { WIDTH };
            let group = N_GROUP * D_STATE;
            vec![("x", WIDTH, UNIT), ("dt", n_steps, STEP), ("b", group, UNIT), ("c", group, UNIT)]
        }
        Kind::Delta => {
            let keys = N_GROUP * HEAD_DIM;
            let (q, k, v) = (("q", keys, UNIT), ("k", keys, UNIT), ("v", WIDTH, UNIT));
            vec![q, k, v, ("a", N_HEAD, [-8.0, 8.0]), ("b", N_HEAD, [-6.0, 6.0])]
        }
    }
}

/// Weights of the op.
fn weights(kind: Kind) -> Vec<(&'static str, Vec<usize>, [f32; 2])> {
    match kind {
        Kind::Conv => vec![("w", vec![WIDTH, D_CONV], [-1.0, 1.0])],
        Kind::Scan(ScanDecay::Channel) => {
            let a = ("scale", vec![WIDTH, D_STATE], [-64.0, -1e-4]);
            vec![("bias", vec![WIDTH], [0.0, 0.1]), a, ("d", vec![WIDTH], [-1.0, 1.0])]
        }
        Kind::Scan(ScanDecay::Head) => {
            let a = ("scale", vec![N_HEAD], [-64.0, -1e-4]);
            vec![("bias", vec![N_HEAD], [0.0, 0.1]), a, ("d", vec![N_HEAD], [-1.0, 1.0])]
        }
        Kind::Delta => vec![("scale", vec![N_HEAD], [-4.0, -1e-4]), ("bias", vec![N_HEAD], [-1.0, 1.0])],
    }
}

/// A model whose logits are the results of one op.
struct Single {
    kind: Kind,
    tables: Vec<Weight>,
    weights: Vec<Weight>,
    states: States,
    state: State,
}

impl Single {
    fn new(kind: Kind) -> (Self, WeightStore) {
        let mut rng = Rng::named(&format!("{kind:?}"));
        let mut file = GgufWriter::in_memory("single");
        let tables = tables(kind).into_iter().map(|(name, n, range)| (format!("table.{name}"), vec![WIDTH, n], range));
        let own = weights(kind).into_iter().map(|(name, dims, range)| (name.to_owned(), dims, range));
        let all: Vec<(String, Vec<usize>, [f32; 2])> = tables.chain(own).collect();
        for (name, dims, _) in &all {
            file.tensor(name, DType::F32, Shape::new(dims).unwrap()).unwrap();
        }
        for (name, dims, range) in &all {
            file.begin(name).unwrap();
            let values = rng.floats(dims.iter().product(), *range);
            file.write(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
        }
        let store = WeightStore::new([file.finish_in_memory().unwrap()]).unwrap();
        let get = |name: &str, dims: &[usize]| match *dims {
            [n] => store.get(name, [n]).unwrap(),
            [n, m] => store.get(name, [n, m]).unwrap(),
            _ => unreachable!("vectors and matrices"),
        };
        let found: Vec<Weight> = all.iter().map(|(name, dims, _)| get(name, dims)).collect();
        let (tables, weights) = found.split_at(all.iter().filter(|(name, ..)| name.starts_with("table.")).count());
        let mut states = States::new();
        let state = match kind {
            Kind::Conv => states.conv(0, D_CONV, WIDTH),
            Kind::Scan(_) => states.ssm(0, N_HEAD, D_STATE, HEAD_DIM),
            Kind::Delta => states.delta(0, N_HEAD, HEAD_DIM, HEAD_DIM),
        };
        (Self { kind, tables: tables.to_vec(), weights: weights.to_vec(), states, state }, store)
    }

    fn results(&self, g: &GraphBuilder<'_>, batch: &BatchInputs) -> Tensor {
        let inputs: Vec<Tensor> = self.tables.iter().map(|&table| batch.embed(g, table)).collect();
        let heads = |x: Tensor, n: usize| g.split_heads(x, n);
        match (self.kind, &inputs[..], &self.weights[..]) {
            (Kind::Conv, &[x], &[w]) => g.causal_conv1d(x, w, None, self.state, batch),
            (Kind::Scan(decay), &[x, dt, b, c], &[dt_bias, a, d]) => {
                let dt = if decay == ScanDecay::Head { dt } else { heads(dt, N_HEAD) };
                let (x, b, c) = (heads(x, N_HEAD), heads(b, N_GROUP), heads(c, N_GROUP));
                g.merge_heads(g.ssm_scan(SsmScan { x, dt, b, c, dt_bias, a, d, decay }, self.state, batch))
            }
            (Kind::Delta, &[q, k, v, a, b], &[scale, bias]) => {
                let qkv = [heads(q, N_GROUP), heads(k, N_GROUP), heads(v, N_HEAD)];
                let map = (HeadMap::Interleaved, 1e-6);
                g.merge_heads(g.gated_delta(qkv, [a, b], [scale, bias], map, self.state, batch))
            }
            _ => unreachable!("tables and weights are those of the kind"),
        }
    }
}

impl Model for Single {
    fn arch(&self) -> &'static str {
        "single"
    }

    fn n_vocab(&self) -> usize {
        WIDTH
    }

    fn n_embd(&self) -> usize {
        WIDTH
    }

    fn states(&self) -> &States {
        &self.states
    }

    fn build(&self, g: &GraphBuilder<'_>, key: &GraphKey) {
        let batch = BatchInputs::new(g, key);
        let y = self.results(g, &batch);
        if let Some(y) = batch.output_rows(g, y) {
            g.output(g.copy(y));
        }
    }
}

/// Results of every token, and the state behind them, of a sequence that is fed in pieces which end at `ends`.
fn run(kind: Kind, backend: &Arc<dyn Backend>, ids: &[u32], ends: &[usize]) -> [Vec<f32>; 2] {
    let (model, store) = Single::new(kind);
    let options = SessionOptions { n_ctx: 1024, kv_dtype: DType::F32, ..session_options() };
    let mut s = Session::open(Arc::new(model), &store, std::slice::from_ref(backend), options).unwrap();
    let slot = s.memory_mut().acquire().unwrap();
    let (mut results, mut start) = (Vec::new(), 0);
    for &end in ends {
        let tokens = Tokens::Ids(&ids[start..end]);
        let found = s.step(&Batch { seqs: &[Sequence { slot, tokens, rows: Rows::All }] }).unwrap();
        results.extend((0..end - start).flat_map(|t| found.row(0, t).to_vec()));
        start = end;
    }
    let state = s.memory().read_state(slot, 0).unwrap();
    [results, state.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()]
}

fn tokens(n: usize) -> Vec<u32> {
    let mut rng = Rng::named("tokens of recurrences");
    (0..n).map(|_| u32::try_from(rng.below(WIDTH)).unwrap()).collect()
}

#[test]
fn where_a_sequence_is_cut_changes_no_bit() {
    let mut rng = Rng::named("cuts of recurrences");
    for backend in backends() {
        for kind in KINDS {
            for n in LENGTHS {
                let ids = tokens(n);
                let bits = |x: [Vec<f32>; 2]| x.map(|x| x.into_iter().map(f32::to_bits).collect::<Vec<u32>>());
                let whole = bits(run(kind, &backend, &ids, &[n]));
                let random: Vec<usize> = (1..n).filter(|_| rng.below(7) == 0).chain([n]).collect();
                for ends in [(1..=n).collect(), random] {
                    let cut = bits(run(kind, &backend, &ids, &ends));
                    assert!(cut == whole, "{kind:?}, {n} tokens on {}: other bits", backend.name());
                }
            }
        }
    }
}

#[test]
fn single_precision_stays_close_however_long_a_sequence_is() {
    let [reference, cpu] =
        ["reference", "cpu"].map(|name| backends::open(name, &backends::Options::default()).unwrap());
    for kind in KINDS {
        for n in LENGTHS {
            let (want, got) = (run(kind, &reference, &tokens(n), &[n]), run(kind, &cpu, &tokens(n), &[n]));
            for ((want, got), (what, max)) in want.iter().zip(&got).zip(["results", "state"].iter().zip(MAX_OFF)) {
                let largest = want.iter().fold(0.0, |m: f64, v| m.max(f64::from(*v).abs()));
                let off = want.iter().zip(got).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).fold(0.0, f64::max);
                assert!(got.iter().all(|v| v.is_finite()));
                assert!(
                    off <= max * largest,
                    "{kind:?}, {n} tokens, {what}: off by {:e} of the largest",
                    off / largest
                );
            }
        }
    }
}

#[test]
fn a_token_reads_and_writes_every_state_once() {
    let cpu = backends::open("cpu", &backends::Options::default()).unwrap();
    for kind in KINDS {
        let (model, store) = Single::new(kind);
        let mut s = Session::open(Arc::new(model), &store, std::slice::from_ref(&cpu), session_options()).unwrap();
        let bytes = s.memory().specs().iter().map(|spec| spec.bytes() as u64).sum::<u64>();
        // The first token begins with zeros. That graphs are dropped takes nothing from the count.
        for reuse in [Reuse::On, Reuse::Off] {
            let slot = s.memory_mut().acquire().unwrap();
            for (ids, rows) in [(&[1][..], 1), (&[2], 2), (&[3], 2), (&[4, 5, 6], 2)] {
                let before = s.stats().state_traffic;
                s.set_reuse(reuse);
                s.feed(slot, Tokens::Ids(ids)).unwrap();
                assert_eq!(s.stats().state_traffic - before, rows * bytes, "{kind:?} {ids:?} {reuse:?}");
            }
            s.memory_mut().release(slot);
        }
    }
}
