//! Ops with a state of fixed extent, each alone in a model: where a sequence is cut into calls changes no bit, and f32 stays
//! close to f64 however long the sequence is.

use std::collections::BTreeSet;
use std::sync::Arc;

use engine::backend::Backend;
use engine::batch::{Batch, Rows, Sequence, Tokens};
use engine::builder::{BatchInputs, GraphBuilder, SsmScan};
use engine::gguf::GgufWriter;
use engine::key::GraphKey;
use engine::memory::Slot;
use engine::model::Model;
use engine::op::{HeadMap, ScanDecay};
use engine::session::{Reuse, Session, SessionOptions};
use engine::state::{Pending, State, States};
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};
use engine::{DType, Error, Shape};
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
    pending: Pending,
}

impl Single {
    fn new(kind: Kind) -> (Self, WeightStore) {
        Self::with(kind, None)
    }

    /// One of whose tokens all inputs are NaN.
    fn with(kind: Kind, poison: Option<u32>) -> (Self, WeightStore) {
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
            let mut values = rng.floats(dims.iter().product(), *range);
            if let Some(id) = poison.filter(|_| name.starts_with("table.")) {
                values[id as usize * dims[1]..][..dims[1]].fill(f32::NAN);
            }
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
        let width = self::tables(kind).iter().map(|(_, n, _)| n).sum();
        let pending = states.pending(0, width);
        (Self { kind, tables: tables.to_vec(), weights: weights.to_vec(), states, state, pending }, store)
    }

    fn results(&self, g: &GraphBuilder<'_>, batch: &BatchInputs) -> Tensor {
        let inputs: Vec<Tensor> = self.tables.iter().map(|&table| batch.embed(g, table)).collect();
        let heads = |x: Tensor, n: usize| g.split_heads(x, n);
        match (self.kind, &inputs[..], &self.weights[..]) {
            (Kind::Conv, &[x], &[w]) => {
                let [x] = g.join_pending([x], self.pending, batch);
                g.new_rows(g.causal_conv1d(x, w, None, self.state, batch), batch)
            }
            (Kind::Scan(decay), &[x, dt, b, c], &[dt_bias, a, d]) => {
                let [x, dt, b, c] = g.join_pending([x, dt, b, c], self.pending, batch);
                let dt = if decay == ScanDecay::Head { dt } else { heads(dt, N_HEAD) };
                let (x, b, c) = (heads(x, N_HEAD), heads(b, N_GROUP), heads(c, N_GROUP));
                let y = g.ssm_scan(SsmScan { x, dt, b, c, dt_bias, a, d, decay }, self.state, batch);
                g.merge_heads(g.new_rows(y, batch))
            }
            (Kind::Delta, &[q, k, v, a, b], &[scale, bias]) => {
                let [q, k, v, a, b] = g.join_pending([q, k, v, a, b], self.pending, batch);
                let qkv = [heads(q, N_GROUP), heads(k, N_GROUP), heads(v, N_HEAD)];
                let map = (HeadMap::Interleaved, 1e-6);
                g.merge_heads(g.new_rows(g.gated_delta(qkv, [a, b], [scale, bias], map, self.state, batch), batch))
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

/// Schedules of every op.
const N_SCHEDULES: usize = 2000;
/// Steps of a schedule.
const N_STEPS: usize = 20;
/// Slots that sequences are in, and one more whose sequences are NaN.
const N_SLOTS: usize = 3;
/// Tokens that can be taken back.
const N_PENDING: usize = 5;
/// The token whose inputs are NaN.
const POISON: u32 = 0;
/// Longest sequence.
const MAX_LEN: usize = 40;

fn open_single(kind: Kind, backend: &Arc<dyn Backend>, n_slots: usize, n_pending: usize) -> Session {
    let (model, store) = Single::with(kind, Some(POISON));
    let options = SessionOptions { n_slots, n_ctx: 64, n_pending, kv_dtype: DType::F32, ..session_options() };
    Session::open(Arc::new(model), &store, std::slice::from_ref(backend), options).unwrap()
}

/// What a sequence is, token by token: the results of every token.
struct Alone {
    session: Session,
    slot: Slot,
    /// Tokens in the slot.
    fed: Vec<u32>,
}

impl Alone {
    fn open(kind: Kind, backend: &Arc<dyn Backend>) -> Self {
        let mut session = open_single(kind, backend, 1, 0);
        let slot = session.memory_mut().acquire().unwrap();
        Self { session, slot, fed: Vec::new() }
    }

    /// Bits of the results of the tokens from `from` on.
    fn results(&mut self, ids: &[u32], from: usize) -> Vec<u32> {
        let Self { session, slot, fed } = self;
        if fed[..] != ids[..from] {
            session.memory_mut().rewind(*slot, 0).unwrap();
            if from > 0 {
                session.feed(*slot, Tokens::Ids(&ids[..from])).unwrap();
            }
        }
        *fed = ids.to_vec();
        let mut results = Vec::new();
        for id in &ids[from..] {
            results.extend(session.feed(*slot, Tokens::Ids(&[*id])).unwrap().iter().map(|x| x.to_bits()));
        }
        results
    }

    /// The state behind the tokens that were fed last.
    fn state(&self) -> Vec<u8> {
        self.session.memory().read_state(self.slot, 0).unwrap()
    }
}

/// A sequence of a schedule.
#[derive(Clone, Default)]
struct Tracked {
    ids: Vec<u32>,
    n_pending: usize,
    checkpoints: BTreeSet<usize>,
}

impl Tracked {
    /// Whether it can be rewound to a position.
    fn reaches(&self, at: usize) -> bool {
        at == 0 || at + self.n_pending >= self.ids.len() || self.checkpoints.contains(&at)
    }

    /// The same in another slot: checkpoints stay where they were made.
    fn elsewhere(&self) -> Self {
        Self { checkpoints: BTreeSet::new(), ..self.clone() }
    }
}

/// Feeds, accepts, rewinds, makes checkpoints, copies, snapshots, restores and releases in any order, beside a sequence of NaN.
fn run_schedule(rng: &mut Rng, s: &mut Session, alone: &mut Alone) -> [usize; 4] {
    let mut slots: Vec<Slot> = (0..=N_SLOTS).map(|i| s.memory_mut().acquire_at(i).unwrap()).collect();
    let mut seqs = vec![Tracked::default(); N_SLOTS];
    let mut kept: Option<(Vec<u8>, Tracked)> = None;
    let mut counts = [0; 4];
    for _ in 0..N_STEPS {
        let i = rng.below(N_SLOTS);
        match rng.below(14) {
            0..5 => counts[0] += feed(rng, s, alone, &slots, &mut seqs),
            5 | 6 => {
                // Anywhere: exact among pending tokens, at checkpoints and at 0, refused elsewhere.
                let seq = &mut seqs[i];
                let n = seq.ids.len();
                let to = match rng.below(4) {
                    0 => rng.below(n + 1),
                    1 => seq.checkpoints.iter().nth(rng.below(2)).copied().unwrap_or(n),
                    _ => n - rng.below(seq.n_pending + 1),
                };
                let first = n - seq.n_pending;
                assert_eq!(s.memory().rewindable(slots[i]).unwrap(), first);
                let reachable = (0..=to).rev().find(|&at| seq.reaches(at)).unwrap();
                assert_eq!(s.memory().reachable(slots[i], to).unwrap(), reachable);
                match s.memory_mut().rewind(slots[i], to) {
                    Ok(()) => {
                        assert!(seq.reaches(to));
                        counts[1] += usize::from(to >= first && to < n);
                        counts[3] += usize::from(to > 0 && to < first);
                        seq.n_pending = to.saturating_sub(first);
                        seq.ids.truncate(to);
                        seq.checkpoints.retain(|&at| at <= to);
                    }
                    Err(error) => assert!(matches!(error, Error::NotRewindable) && !seq.reaches(to)),
                }
            }
            10..14 => {
                s.memory_mut().checkpoint(slots[i]).unwrap();
                let first = seqs[i].ids.len() - seqs[i].n_pending;
                seqs[i].checkpoints.extend(Some(first).filter(|&at| at > 0));
                if rng.below(4) == 0 {
                    let dropped = seqs[i].checkpoints.pop_last();
                    s.memory_mut().keep_checkpoints(slots[i], |at| Some(at) != dropped).unwrap();
                }
                assert!(s.memory().checkpoints(slots[i]).unwrap().eq(seqs[i].checkpoints.iter().copied()));
            }
            7 => {
                let to = rng.below(N_SLOTS);
                s.memory_mut().copy(slots[i], slots[to]).unwrap();
                if to != i {
                    seqs[to] = seqs[i].elsewhere();
                }
            }
            8 => {
                match kept.take() {
                    Some((bytes, seq)) => {
                        s.restore(slots[i], &bytes).unwrap();
                        seqs[i] = seq;
                    }
                    None => kept = Some((s.snapshot(slots[i]).unwrap(), seqs[i].elsewhere())),
                }
                counts[2] += usize::from(seqs[i].n_pending > 0);
            }
            _ => {
                s.memory_mut().release(slots[i]);
                slots[i] = s.memory_mut().acquire_at(i).unwrap();
                seqs[i] = Tracked::default();
            }
        }
    }
    // One more token folds all that is pending.
    for (slot, seq) in slots.iter().zip(&seqs) {
        let ids = [&seq.ids[..], &[1 + u32::try_from(rng.below(WIDTH - 1)).unwrap()]].concat();
        let got: Vec<u32> =
            s.feed(*slot, Tokens::Ids(&ids[seq.ids.len()..])).unwrap().iter().map(|x| x.to_bits()).collect();
        assert_eq!(got, alone.results(&ids, seq.ids.len()));
        assert!(s.memory().read_state(*slot, 0).unwrap() == alone.state(), "another state");
    }
    slots.into_iter().for_each(|slot| s.memory_mut().release(slot));
    counts
}

/// A step of some of the sequences, some with drafts, and of the one of NaN. Returns how many had something pending.
fn feed(rng: &mut Rng, s: &mut Session, alone: &mut Alone, slots: &[Slot], seqs: &mut [Tracked]) -> usize {
    let mut new = Vec::new();
    for (i, seq) in seqs.iter().enumerate() {
        let n = 1 + rng.below(N_PENDING + 2);
        if rng.below(3) > 0 && seq.ids.len() + n <= MAX_LEN {
            let ids: Vec<u32> = (0..n).map(|_| 1 + u32::try_from(rng.below(WIDTH - 1)).unwrap()).collect();
            new.push((i, ids, if rng.below(4) == 0 { 0 } else { rng.below(n.min(N_PENDING + 1)) }));
        }
    }
    let nan = [POISON; 3];
    let mut batch: Vec<Sequence<'_>> = new
        .iter()
        .map(|(i, ids, n)| Sequence {
            slot: slots[*i],
            tokens: Tokens::Ids(ids),
            rows: if *n > 0 { Rows::Drafts(*n) } else { Rows::All },
        })
        .collect();
    if rng.below(2) == 0 {
        s.memory_mut().rewind(slots[N_SLOTS], 0).unwrap();
        let nan = Sequence { slot: slots[N_SLOTS], tokens: Tokens::Ids(&nan), rows: Rows::Drafts(2) };
        batch.insert(rng.below(batch.len() + 1), nan);
    }
    if batch.is_empty() {
        return 0;
    }
    let logits = s.step(&Batch { seqs: &batch }).unwrap();
    let mut n_pending = 0;
    for (at, sequence) in batch.iter().enumerate() {
        let Some((i, ids, n_drafts)) = new.iter().find(|(i, ..)| slots[*i] == sequence.slot) else {
            assert!(logits.rows(at).iter().any(|x| x.is_nan()));
            continue;
        };
        let seq = &mut seqs[*i];
        n_pending += usize::from(seq.n_pending > 0);
        seq.ids.extend(ids);
        seq.n_pending = *n_drafts;
        let got: Vec<u32> = logits.rows(at).iter().map(|x| x.to_bits()).collect();
        assert!(got == alone.results(&seq.ids, seq.ids.len() - got.len() / WIDTH), "other results");
    }
    n_pending
}

#[test]
fn what_is_pending_is_folded_as_if_it_had_come_alone() {
    let cpu = backends::open("cpu", &backends::Options::default()).unwrap();
    let reference = backends::open("reference", &backends::Options::default()).unwrap();
    for (backend, n_schedules) in [(cpu, N_SCHEDULES), (reference, N_SCHEDULES / 40)] {
        for kind in KINDS {
            let mut rng = Rng::named(&format!("schedules of {kind:?}"));
            let mut s = open_single(kind, &backend, N_SLOTS + 1, N_PENDING);
            let mut alone = Alone::open(kind, &backend);
            let mut counts = [0; 4];
            for _ in 0..n_schedules {
                let more = run_schedule(&mut rng, &mut s, &mut alone);
                counts.iter_mut().zip(more).for_each(|(n, more)| *n += more);
            }
            assert!(counts.iter().all(|&n| n > n_schedules / 20 || n_schedules < N_SCHEDULES), "{kind:?}: {counts:?}");
            let stats = s.stats();
            assert!(stats.hit_rate() > 0.9, "{kind:?}: {stats:?}");
        }
    }
}

#[test]
fn pending_rows_need_room_where_they_are_restored() {
    let cpu = backends::open("cpu", &backends::Options::default()).unwrap();
    for kind in KINDS {
        let mut s = open_single(kind, &cpu, 1, 3);
        let slot = s.memory_mut().acquire().unwrap();
        let four = Sequence { slot, tokens: Tokens::Ids(&[1, 2, 3, 4]), rows: Rows::Drafts(3) };
        s.step(&Batch { seqs: &[four] }).unwrap();
        let snapshot = s.snapshot(slot).unwrap();
        let mut small = open_single(kind, &cpu, 1, 2);
        let to = small.memory_mut().acquire().unwrap();
        assert!(matches!(small.restore(to, &snapshot), Err(Error::Snapshot { .. })));
        assert_eq!(small.memory().n_past(to).unwrap(), 0);
        let mut large = open_single(kind, &cpu, 1, 9);
        let to = large.memory_mut().acquire().unwrap();
        large.restore(to, &snapshot).unwrap();
        large.memory_mut().rewind(to, 2).unwrap();
        let got = large.feed(to, Tokens::Ids(&[5])).unwrap().to_vec();
        assert_eq!(got.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), Alone::open(kind, &cpu).results(&[1, 2, 5], 2));
        // Without anything pending a snapshot fits everywhere.
        s.memory_mut().rewind(slot, 1).unwrap();
        let mut none = open_single(kind, &cpu, 1, 0);
        let to = none.memory_mut().acquire().unwrap();
        none.restore(to, &s.snapshot(slot).unwrap()).unwrap();
        // And nothing is taken back where nothing was asked for.
        let two = Sequence { slot: to, tokens: Tokens::Ids(&[1, 2]), rows: Rows::Drafts(1) };
        assert!(none.step(&Batch { seqs: &[two] }).unwrap_err().to_string().contains("takes back 0"));
    }
}
