//! Inputs of recurrent states that are kept so that tokens can be taken back: what they cost, and that steps which verify drafts
//! reuse graphs and allocate nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use convert::FileType;
use engine::DType;
use engine::backend::Backend;
use engine::batch::{Batch, Rows, Sequence, Tokens};
use engine::key::Buckets;
use engine::memory::{Memory, Slot};
use engine::session::{Reuse, Session, SessionOptions};
use engine::state::{StateOptions, States};
use models::LoadOptions;
use tests::alloc::measure;
use tests::rng::Rng;
use tests::sessions::session_options;

use crate::checkpoint::{converted, fixture};

/// Tokens that can be taken back.
const N_PENDING: usize = 48;

fn cpu() -> Arc<dyn Backend> {
    backends::open("cpu", &backends::Options::default()).unwrap()
}

/// Bytes of the states of one sequence.
fn bytes(declare: impl Fn(&mut States), n_pending: usize) -> usize {
    let mut states = States::new();
    declare(&mut states);
    let options = StateOptions { n_slots: 1, n_ctx: 256, kv_dtype: DType::F16, n_pending, two_rows: false };
    let homes = vec![0; states.layout(&options).unwrap().specs().len()];
    let mut memory = Memory::new(&[cpu()], homes, &states, &options).unwrap();
    let slot = memory.acquire().unwrap();
    assert_eq!(memory.bytes(), 0);
    memory.grow(slot, 1).unwrap();
    memory.bytes()
}

/// The recurrent layers of published models. Sources: `config.json` of granite-4.0-h-tiny, Qwen3-Next-80B-A3B and Jamba-mini-1.7.
#[test]
fn inputs_cost_little_beside_states() {
    let granite = |states: &mut States| {
        for layer in 0..36 {
            states.conv(layer, 4, 3072 + 2 * 128);
            states.ssm(layer, 48, 128, 64);
            states.pending(layer, 3072 + 2 * 128 + 48);
        }
    };
    let qwen = |states: &mut States| {
        for layer in 0..36 {
            states.conv(layer, 4, 2 * 16 * 128 + 32 * 128);
            states.delta(layer, 32, 128, 128);
            states.pending(layer, 2 * 16 * 128 + 32 * 128 + 2 * 32);
        }
    };
    let jamba = |states: &mut States| {
        for layer in 0..28 {
            states.conv(layer, 4, 8192);
            states.ssm(layer, 128, 16, 64);
            states.pending(layer, 8192);
            states.pending(layer, 8192 + 2 * 16);
        }
    };
    let of = |declare: &dyn Fn(&mut States)| {
        let (with, without) = (bytes(declare, N_PENDING), bytes(declare, 0));
        (with - without, without)
    };
    let most =
        [("granite-4.0-h-tiny", of(&granite), 25), ("Qwen3-Next", of(&qwen), 58), ("Jamba-mini", of(&jamba), 91)];
    for (name, (inputs, states), megabytes) in most {
        println!("{name}: {inputs} bytes of inputs beside {states} of states");
        assert!(inputs <= megabytes * 1_000_000, "{name}: {inputs}");
        assert!(inputs > (megabytes - 4) * 1_000_000, "{name}: {inputs}");
    }
}

/// A step of sequences `(slot, n_past, n_drafts)`, whose tokens follow from their positions.
fn verify(s: &mut Session, seqs: &[(Slot, usize, usize)]) -> bool {
    let ids: Vec<u32> = (0..64).map(|i| 20 + i % 200).collect();
    let sequence = |&(slot, n_past, n): &(Slot, usize, usize)| {
        let tokens = Tokens::Ids(&ids[n_past % 16..][..n + 1]);
        Sequence { slot, tokens, rows: Rows::Drafts(n) }
    };
    let seqs: Vec<Sequence<'_>> = seqs.iter().map(sequence).collect();
    let builds = s.stats().builds;
    let (result, usage) = measure(|| s.step(&Batch { seqs: &seqs }).map(|_| ()));
    result.unwrap();
    let is_hit = s.stats().builds == builds;
    assert!(!is_hit || usage.calls == 0, "{} allocations in a step", usage.calls);
    is_hit
}

#[test]
fn verification_reuses_graphs_and_allocates_nothing() {
    for name in ["golden/lfm2", "golden/mamba", "golden/granitemoehybrid", "golden/qwen3_next"] {
        let file = converted(&fixture(name), FileType::F32);
        let loaded = models::load(vec![file], LoadOptions::default()).unwrap();
        for n_slots in [1, 4] {
            let options = SessionOptions {
                n_slots,
                n_ctx: 8192,
                n_pending: N_PENDING,
                buckets: Buckets::Coarse,
                reuse: Reuse::On,
                ..session_options()
            };
            let mut s = Session::open(Arc::clone(&loaded.model), &loaded.weights, &[cpu()], options).unwrap();
            let slots: Vec<Slot> = (0..n_slots).map(|_| s.memory_mut().acquire().unwrap()).collect();
            let mut rng = Rng::named(name);
            let mut keys = BTreeSet::new();
            let mut n_pending = vec![0; n_slots];
            for _ in 0..300 {
                let mut seqs = Vec::new();
                for (slot, pending) in slots.iter().zip(&mut n_pending) {
                    // What was accepted of the last guess.
                    let n_past = s.memory().n_past(*slot).unwrap();
                    let taken = rng.below(*pending + 1);
                    s.memory_mut().rewind(*slot, n_past - taken).unwrap();
                    *pending -= taken;
                    seqs.push((*slot, n_past - taken, rng.below(8)));
                }
                let n_rows: usize = seqs.iter().map(|(_, _, n)| n + 1).sum();
                let (n_folded, n_kept): (usize, usize) = (n_pending.iter().sum(), n_rows - n_slots);
                let rows = Buckets::Coarse.tokens(n_rows);
                keys.insert((rows, (n_folded + n_kept > 0).then(|| Buckets::Coarse.pending(n_folded))));
                verify(&mut s, &seqs);
                n_pending.iter_mut().zip(&seqs).for_each(|(pending, (_, _, n))| *pending = *n);
            }
            let stats = s.stats();
            assert_eq!((stats.builds, stats.evictions), (keys.len() as u64, 0), "{name}, {n_slots} slots");
            assert!(stats.hit_rate() >= 0.9, "{name}, {n_slots} slots: {stats:?}");
        }
    }
}
