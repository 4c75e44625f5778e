//! A model with one attention layer and one convolution layer, built here with the public interface alone: sequences of
//! unequal length in any slots, with attention and recurrent states side by side.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use engine::backend::Backend;
use engine::batch::{Batch, Rows, Sequence, Tokens};
use engine::builder::{BatchInputs, GraphBuilder};
use engine::gguf::GgufWriter;
use engine::key::GraphKey;
use engine::memory::Slot;
use engine::model::Model;
use engine::op::{Rope, RopePairs};
use engine::pass::CompileOptions;
use engine::session::{Reuse, Session, SessionOptions};
use engine::state::{KvCache, State, States};
use engine::stats::{BuildReason, Stats};
use engine::weights::{Weight, WeightStore};
use engine::{DType, Error, Shape};
use tests::rng::Rng;
use tests::sessions::session_options;

pub const N_VOCAB: usize = 40;
pub const N_EMBD: usize = 32;
const N_HEAD: usize = 4;
const N_HEAD_KV: usize = 2;
const HEAD_DIM: usize = 8;
const D_CONV: usize = 3;
pub const N_SLOTS: usize = 6;
const EPS: f32 = 1e-5;
/// Relative difference of logits between ways to compute them that sum in another order.
const CLOSE: f32 = 1e-4;

/// `x + conv(x)`, then `x + attention(x)`, norm and head.
struct Hybrid {
    embed: Weight,
    conv: Weight,
    q: Weight,
    k: Weight,
    v: Weight,
    output: Weight,
    norm: Weight,
    states: States,
    cache: KvCache,
    /// The inputs of the convolution; without it the model has no recurrent state.
    inputs: Option<State>,
    /// Bits of the factor of attention's scores, so that a test can change what the model is.
    scale: AtomicU32,
}

const WEIGHTS: [(&str, &[usize]); 7] = [
    ("embed", &[N_VOCAB, N_EMBD]),
    ("conv", &[N_EMBD, D_CONV]),
    ("q", &[N_HEAD * HEAD_DIM, N_EMBD]),
    ("k", &[N_HEAD_KV * HEAD_DIM, N_EMBD]),
    ("v", &[N_HEAD_KV * HEAD_DIM, N_EMBD]),
    ("output", &[N_EMBD, N_HEAD * HEAD_DIM]),
    ("norm", &[N_EMBD]),
];

fn weights(seed: u64) -> WeightStore {
    let mut rng = Rng::new(seed);
    let mut uniform = || (rng.next_u64() >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
    let mut file = GgufWriter::in_memory("hybrid");
    for (name, shape) in WEIGHTS {
        file.tensor(name, DType::F32, Shape::new(shape).unwrap()).unwrap();
    }
    for (name, shape) in WEIGHTS {
        let n: usize = shape.iter().product();
        file.begin(name).unwrap();
        file.write(&(0..n).flat_map(|_| uniform().to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    }
    WeightStore::new([file.finish_in_memory().unwrap()]).unwrap()
}

impl Hybrid {
    fn new(w: &WeightStore, is_hybrid: bool) -> Self {
        let mut states = States::new();
        let cache = states.kv(1, N_HEAD_KV, HEAD_DIM);
        Self {
            cache,
            inputs: is_hybrid.then(|| states.conv(0, D_CONV, N_EMBD)),
            states,
            embed: w.get("embed", [N_VOCAB, N_EMBD]).unwrap(),
            conv: w.get("conv", [N_EMBD, D_CONV]).unwrap(),
            q: w.get("q", [N_HEAD * HEAD_DIM, N_EMBD]).unwrap(),
            k: w.get("k", [N_HEAD_KV * HEAD_DIM, N_EMBD]).unwrap(),
            v: w.get("v", [N_HEAD_KV * HEAD_DIM, N_EMBD]).unwrap(),
            output: w.get("output", [N_EMBD, N_HEAD * HEAD_DIM]).unwrap(),
            norm: w.get("norm", [N_EMBD]).unwrap(),
            scale: AtomicU32::new(0.3f32.to_bits()),
        }
    }
}

impl Model for Hybrid {
    fn arch(&self) -> &'static str {
        "hybrid"
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
        let x = batch.embed(g, self.embed);
        let x = match self.inputs {
            Some(inputs) => g.add(x, g.causal_conv1d(x, self.conv, None, inputs, &batch)),
            None => x,
        };
        let rope = Rope { n_rot: 8, theta_base: 1e4, pairs: RopePairs::Halves };
        let q = g.rope(g.split_heads(g.linear(x, self.q), N_HEAD), &batch, rope);
        let k = g.rope(g.split_heads(g.linear(x, self.k), N_HEAD_KV), &batch, rope);
        let v = g.split_heads(g.linear(x, self.v), N_HEAD_KV);
        let kv = g.kv_write(self.cache, k, v, &batch);
        let y = g.cached_attention(q, kv, &batch, f32::from_bits(self.scale.load(Ordering::Relaxed)));
        let x = g.add(x, g.linear(g.merge_heads(y), self.output));
        let Some(x) = batch.output_rows(g, x) else { return };
        g.output(g.linear(g.rms_norm(x, self.norm, EPS), self.embed));
    }
}

/// Six slots of 64 positions; dead and fresh memory is NaN.
pub fn options() -> SessionOptions {
    SessionOptions {
        n_slots: N_SLOTS,
        n_ctx: 64,
        kv_dtype: DType::F32,
        compile: CompileOptions { poison: true, ..CompileOptions::default() },
        ..session_options()
    }
}

/// A session of the model whose weights have this seed.
pub fn open_model(seed: u64, backends: &[Arc<dyn Backend>], options: SessionOptions) -> Session {
    let weights = weights(seed);
    Session::open(Arc::new(Hybrid::new(&weights, true)), &weights, backends, options).unwrap()
}

/// A session of a model that is no function of the key, and what changes the factor of its scores.
pub fn open_changing(backend: Arc<dyn Backend>) -> (Session, impl Fn(f32)) {
    let weights = weights(SEED);
    let model = Arc::new(Hybrid::new(&weights, true));
    let session = Session::open(Arc::clone(&model) as _, &weights, &[backend], options()).unwrap();
    (session, move |scale: f32| model.scale.store(scale.to_bits(), Ordering::Relaxed))
}

/// A session of the model without its convolution.
pub fn open_attention_only(backends: &[Arc<dyn Backend>]) -> Session {
    open_attention_only_with(backends, options())
}

/// The same with other options.
pub fn open_attention_only_with(backends: &[Arc<dyn Backend>], options: SessionOptions) -> Session {
    let weights = weights(SEED);
    Session::open(Arc::new(Hybrid::new(&weights, false)), &weights, backends, options).unwrap()
}

/// Seed of the weights where it does not matter.
pub const SEED: u64 = 7;

fn open(backend: &Arc<dyn Backend>, reuse: Reuse) -> Session {
    open_model(SEED, std::slice::from_ref(backend), SessionOptions { reuse, ..options() })
}

/// Every backend.
pub fn backends() -> Vec<Arc<dyn Backend>> {
    tests::sessions::backends()
}

/// Random token ids.
pub fn tokens(seed: u64, n: usize) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| u32::try_from(rng.below(N_VOCAB)).unwrap()).collect()
}

/// Logits of the last token of every sequence.
pub fn step(s: &mut Session, seqs: &[(Slot, &[u32])]) -> Vec<Vec<f32>> {
    try_step(s, seqs).unwrap()
}

/// The same, of a call that may fail.
pub fn try_step(s: &mut Session, seqs: &[(Slot, &[u32])]) -> Result<Vec<Vec<f32>>, Error> {
    let last = |&(slot, ids)| Sequence { slot, tokens: Tokens::Ids(ids), rows: Rows::Last };
    let seqs: Vec<Sequence<'_>> = seqs.iter().map(last).collect();
    let logits = s.step(&Batch { seqs: &seqs })?;
    Ok((0..seqs.len()).map(|i| logits.last(i).to_vec()).collect())
}

/// Three sequences of unequal length: prompts of 5, 1 and 7 tokens, then steps of 1, 1, 1 and of 3, 1, 2 tokens.
fn schedule(s: &mut Session, slots: [usize; 3]) -> Vec<Vec<f32>> {
    let slots = slots.map(|i| s.memory_mut().acquire_at(i).unwrap());
    let mut all = Vec::new();
    for (round, lengths) in [[5, 1, 7], [1, 1, 1], [3, 1, 2], [1, 1, 1]].into_iter().enumerate() {
        let ids: Vec<Vec<u32>> = (0..3).map(|i| tokens((10 * round + i) as u64, lengths[i])).collect();
        let seqs: Vec<(Slot, &[u32])> = slots.iter().copied().zip(ids.iter().map(Vec::as_slice)).collect();
        all.extend(step(s, &seqs));
    }
    all
}

/// Fails unless the two differ only by the order of sums.
#[track_caller]
pub fn close(what: &str, got: &[f32], want: &[f32]) {
    let largest = want.iter().fold(1.0f32, |a, b| a.max(b.abs()));
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(got.len() == want.len() && worst <= CLOSE * largest, "{what}: {worst}");
}

#[test]
fn reuse_on_and_off_give_the_same_bits() {
    for backend in backends() {
        let (mut on, mut off) = (open(&backend, Reuse::Verified), open(&backend, Reuse::Off));
        assert_eq!(schedule(&mut on, [4, 0, 3]), schedule(&mut off, [4, 0, 3]), "{}", backend.name());
        // Keys: 7 tokens, 1 token, 3 tokens.
        assert_eq!((on.stats().builds, on.stats().hits), (3, 1));
        assert_eq!((off.stats().builds, off.stats().hits), (4, 0));
    }
}

#[test]
fn a_model_that_is_no_function_of_the_key_is_found_out() {
    let (mut s, change) = open_changing(backends().remove(0));
    let slot = s.memory_mut().acquire().unwrap();
    let mut next =
        || s.step(&Batch { seqs: &[Sequence { slot, tokens: Tokens::Ids(&[1]), rows: Rows::Last }] }).map(|_| ());
    next().unwrap();
    next().unwrap();
    change(0.4);
    let message = next().unwrap_err().to_string();
    assert!(message.contains("CachedAttention { scale: 0.3 }"), "{message}");
    assert!(message.contains("CachedAttention { scale: 0.4 }"), "{message}");
    change(0.3);
    next().unwrap();
    assert_eq!(s.memory().n_past(slot).unwrap(), 3, "the refused call changed nothing");
}

#[test]
fn every_build_has_its_reason() {
    let backend = backends().remove(0);
    let options = SessionOptions { cached_graphs: 3, ..options() };
    let mut s = open_model(SEED, &[backend], options);
    let [a, b] = [(); 2].map(|()| s.memory_mut().acquire().unwrap());
    let mut last = Stats::default();
    let mut reason = |s: &Session| {
        let stats = s.stats();
        let reasons: Vec<BuildReason> =
            BuildReason::ALL.into_iter().filter(|&r| stats.builds_for(r) > last.builds_for(r)).collect();
        assert_eq!(reasons.len() as u64, stats.builds - last.builds);
        last = stats;
        reasons.first().copied()
    };
    step(&mut s, &[(a, &[1, 2, 3])]);
    assert_eq!(reason(&s), Some(BuildReason::First));
    step(&mut s, &[(a, &[1])]);
    assert_eq!(reason(&s), Some(BuildReason::Tokens));
    step(&mut s, &[(a, &[2])]);
    assert_eq!(reason(&s), None);
    step(&mut s, &[(a, &[2]), (b, &[1])]);
    assert_eq!(reason(&s), Some(BuildReason::Tokens));
    s.step(&Batch { seqs: &[Sequence { slot: b, tokens: Tokens::Ids(&[1]), rows: Rows::None }] }).unwrap();
    assert_eq!(reason(&s), Some(BuildReason::Rows));
    // The first graph was the one used longest ago.
    step(&mut s, &[(a, &[1, 2, 3])]);
    assert_eq!(reason(&s), Some(BuildReason::Dropped));
    assert_eq!(s.stats().evictions, 2);
    s.reserve_context(100).unwrap();
    step(&mut s, &[(a, &[1, 2, 3])]);
    assert_eq!(reason(&s), None, "a larger context is the same graph");
    let mixed = Tokens::Mixed { ids: &[-1, 3], embeddings: &[0.5; N_EMBD] };
    s.step(&Batch { seqs: &[Sequence { slot: a, tokens: mixed, rows: Rows::Last }] }).unwrap();
    assert_eq!(reason(&s), Some(BuildReason::Stage));
    s.set_reuse(Reuse::Off);
    step(&mut s, &[(a, &[1, 2, 3])]);
    assert_eq!(reason(&s), Some(BuildReason::ReuseOff));
}

#[test]
fn any_slots_give_the_same_logits() {
    for backend in backends() {
        let want = schedule(&mut open(&backend, Reuse::Verified), [0, 1, 2]);
        for slots in [[2, 1, 0], [5, 0, 3], [1, 4, 2]] {
            assert_eq!(schedule(&mut open(&backend, Reuse::Verified), slots), want, "{slots:?} on {}", backend.name());
        }
    }
}

#[test]
fn a_batch_gives_what_each_sequence_gives_alone() {
    for backend in backends() {
        let together = schedule(&mut open(&backend, Reuse::Verified), [0, 1, 2]);
        for i in 0..3 {
            let mut s = open(&backend, Reuse::Verified);
            let slot = s.memory_mut().acquire().unwrap();
            for (round, lengths) in [[5, 1, 7], [1, 1, 1], [3, 1, 2], [1, 1, 1]].into_iter().enumerate() {
                let ids = tokens((10 * round + i) as u64, lengths[i]);
                let alone = step(&mut s, &[(slot, &ids)]);
                close(
                    &format!("sequence {i} round {round} on {}", backend.name()),
                    &together[3 * round + i],
                    &alone[0],
                );
            }
        }
    }
}

#[test]
fn a_prompt_in_pieces_gives_the_same_logits() {
    let ids = tokens(3, 20);
    for backend in backends() {
        let mut s = open(&backend, Reuse::Verified);
        let (whole, pieces) = (s.memory_mut().acquire().unwrap(), s.memory_mut().acquire().unwrap());
        let want = step(&mut s, &[(whole, &ids)]).remove(0);
        step(&mut s, &[(pieces, &ids[..1])]);
        step(&mut s, &[(pieces, &ids[1..8])]);
        let got = step(&mut s, &[(pieces, &ids[8..])]).remove(0);
        close(backend.name(), &got, &want);
    }
}

/// All states of one slot.
pub fn states(s: &Session, slot: Slot) -> Vec<Vec<u8>> {
    (0..s.memory().specs().len()).map(|i| s.memory().read_state(slot, i).unwrap()).collect()
}

#[test]
fn padding_never_changes_state() {
    for backend in backends() {
        let run = |other: &[u32]| {
            let mut s = open(&backend, Reuse::Verified);
            let slots = [2, 5, 1].map(|i| s.memory_mut().acquire_at(i).unwrap());
            step(&mut s, &[(slots[2], &tokens(9, 4))]);
            let untouched = states(&s, slots[2]);
            // Two real tokens and padding up to the length of the other sequence.
            step(&mut s, &[(slots[0], &[3, 4]), (slots[1], other)]);
            assert_eq!(states(&s, slots[2]), untouched, "a slot outside the batch changed on {}", backend.name());
            states(&s, slots[0])
        };
        assert_eq!(run(&tokens(1, 6)), run(&tokens(2, 6)), "{}", backend.name());
    }
}

#[test]
fn a_new_sequence_never_sees_the_slot_s_last_owner() {
    for backend in backends() {
        let ids = tokens(5, 6);
        let mut fresh = open(&backend, Reuse::Verified);
        let slot = fresh.memory_mut().acquire_at(1).unwrap();
        let want = [step(&mut fresh, &[(slot, &ids)]), step(&mut fresh, &[(slot, &[7])])];

        let mut s = open(&backend, Reuse::Verified);
        let slot = s.memory_mut().acquire_at(1).unwrap();
        let tokens = Tokens::Mixed { ids: &[-1; 9], embeddings: &[f32::NAN; 9 * N_EMBD] };
        s.step(&Batch { seqs: &[Sequence { slot, tokens, rows: Rows::Last }] }).unwrap();
        s.memory_mut().release(slot);
        let slot = s.memory_mut().acquire_at(1).unwrap();
        assert_eq!([step(&mut s, &[(slot, &ids)]), step(&mut s, &[(slot, &[7])])], want, "{}", backend.name());
    }
}

#[test]
fn copies_go_on_like_their_original_and_rewinding_is_exact_or_refused() {
    for backend in backends() {
        let mut s = open(&backend, Reuse::Verified);
        let (a, b) = (s.memory_mut().acquire().unwrap(), s.memory_mut().acquire().unwrap());
        step(&mut s, &[(a, &tokens(1, 9))]);
        s.memory_mut().copy(a, b).unwrap();
        assert_eq!(step(&mut s, &[(a, &[8])]), step(&mut s, &[(b, &[8])]), "{}", backend.name());
        assert!(matches!(s.memory_mut().rewind(a, 4), Err(Error::NotRewindable)));
        let first = step(&mut s, &[(a, &[8])]);
        s.memory_mut().rewind(b, 0).unwrap();
        step(&mut s, &[(b, &tokens(1, 9))]);
        step(&mut s, &[(b, &[8])]);
        assert_eq!(step(&mut s, &[(b, &[8])]), first, "{}", backend.name());
    }
}

#[test]
fn calls_that_make_no_sense_are_refused() {
    let mut s = open(&backends()[0], Reuse::Verified);
    let slot = s.memory_mut().acquire().unwrap();
    let mut refused = |seqs: &[Sequence<'_>]| s.step(&Batch { seqs }).map(|_| ()).unwrap_err();
    let ids = |ids| Sequence { slot, tokens: Tokens::Ids(ids), rows: Rows::Last };
    assert!(matches!(refused(&[]), Error::Batch { .. }));
    assert!(matches!(refused(&[ids(&[])]), Error::Batch { .. }));
    assert!(matches!(refused(&[ids(&[40])]), Error::Batch { .. }));
    assert!(matches!(refused(&[ids(&[1]), ids(&[2])]), Error::Batch { .. }));
    assert!(matches!(refused(&[ids(&[1; 65])]), Error::ContextFull { capacity: 64, wanted: 65 }));
    let tokens = Tokens::Mixed { ids: &[-1, 3], embeddings: &[0.0; 3] };
    assert!(matches!(refused(&[Sequence { slot, tokens, rows: Rows::Last }]), Error::Batch { .. }));
    for n in [0, 3] {
        let two = Sequence { rows: Rows::Tail(n), ..ids(&[1, 2]) };
        assert!(matches!(refused(&[two]), Error::Batch { .. }), "logits of {n} tokens");
    }
    s.memory_mut().release(slot);
    assert!(matches!(s.feed(slot, Tokens::Ids(&[1])), Err(Error::Batch { .. })));
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let with = |threads: usize| {
        let options = backends::Options { threads: NonZeroUsize::new(threads) };
        schedule(&mut open(&backends::open("cpu", &options).unwrap(), Reuse::Verified), [0, 1, 2])
    };
    let one = with(1);
    for threads in [2, 3, 8] {
        assert_eq!(with(threads), one, "{threads} threads");
    }
}
