//! Layers on several backends of one session, one of which has memory that nobody else can reach.

use std::num::NonZeroUsize;
use std::sync::Arc;

use convert::FileType;
use engine::DType;
use engine::backend::Backend;
use engine::batch::{Batch, Features, Rows, Sequence, Tokens};
use engine::key::{GraphKey, Stage};
use engine::op::Op;
use engine::pass::CompileOptions;
use engine::plan::verify;
use engine::session::{Session, SessionOptions};
use models::{LoadOptions, Loaded};
use tests::faulty::Faulty;
use tests::private::Private;
use tests::rng::Rng;
use tests::sessions::session_options;

use crate::checkpoint::{converted, fixture};

/// The golden checkpoints.
const MODELS: [&str; 13] = [
    "qwen3",
    "llama",
    "lfm2",
    "lfm2_moe",
    "mamba",
    "mamba2",
    "jamba",
    "granitemoehybrid_moe",
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_asr",
    "lfm2_audio",
];
/// More layers than any of them has.
const MAX_LAYERS: usize = 16;
/// Most nodes that a backend runs as one.
const MAX_GROUP: usize = 6;
/// Random placements of each model.
const N_PLACEMENTS: u64 = 3;

fn cpu() -> Arc<dyn Backend> {
    backends::open("cpu", &backends::Options { threads: NonZeroUsize::new(2) }).unwrap()
}

fn load(name: &str) -> Loaded {
    models::load(vec![converted(&fixture("golden").join(name), FileType::F32)], LoadOptions::default()).unwrap()
}

fn open(loaded: &Loaded, backends: &[Arc<dyn Backend>], placement: Vec<usize>) -> Session {
    let compile = CompileOptions { poison: true, ..CompileOptions::default() };
    let options = SessionOptions { n_slots: 3, kv_dtype: DType::F32, placement, compile, ..session_options() };
    Session::open(Arc::clone(&loaded.model), &loaded.weights, backends, options).unwrap()
}

/// Bit patterns of everything that a model computes: embeddings of a clip, logits of two sequences of unequal length that
/// grow together, and of one that was taken out and put back.
fn run(s: &mut Session) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    let mut add = |values: &[f32]| all.push(values.iter().map(|v| v.to_bits()).collect());
    let mut rng = Rng::new(5);
    if let Some(encoder) = s.model().encoder() {
        let n_frames = 230;
        let values = rng.floats(encoder.n_mels * n_frames, [-1.0, 1.0]);
        add(s.encode(&[Features { n_mels: encoder.n_mels, n_frames, values: &values }]).unwrap().clip(0));
    }
    let n_vocab = s.model().n_vocab();
    let mut ids = |n: usize| -> Vec<u32> { (0..n).map(|_| u32::try_from(rng.below(n_vocab)).unwrap()).collect() };
    let slots = [2, 0].map(|i| s.memory_mut().acquire_at(i).unwrap());
    for lengths in [[19, 5], [1, 1], [1, 1], [3, 2]] {
        let ids = lengths.map(&mut ids);
        let seqs = [0, 1].map(|i| Sequence { slot: slots[i], tokens: Tokens::Ids(&ids[i]), rows: Rows::Last });
        let logits = s.step(&Batch { seqs: &seqs }).unwrap();
        (0..2).for_each(|i| add(logits.last(i)));
    }
    let snapshot = s.snapshot(slots[0]).unwrap();
    s.memory_mut().release(slots[0]);
    let back = s.memory_mut().acquire_at(1).unwrap();
    s.restore(back, &snapshot).unwrap();
    let last = ids(1);
    add(s.feed(back, Tokens::Ids(&last)).unwrap());
    all
}

#[test]
fn random_placements_give_the_bits_of_one_backend() {
    for name in MODELS {
        let loaded = load(name);
        let want = run(&mut open(&loaded, &[cpu()], Vec::new()));
        let layers = loaded.model.states().declarations().iter().map(|d| d.layer as usize).max().unwrap() + 1;
        for seed in 0..N_PLACEMENTS {
            let mut rng = Rng::new(seed);
            let mut placement: Vec<usize> = (0..MAX_LAYERS).map(|_| rng.below(2)).collect();
            // Both have some.
            placement[layers - 1] = 1 - placement[0];
            let private = Private::new(cpu());
            let mut backends: [Arc<dyn Backend>; 2] = [cpu(), Arc::clone(&private) as _];
            if seed % 2 == 1 {
                backends.reverse();
            }
            let mut s = open(&loaded, &backends, placement.clone());
            assert_eq!(run(&mut s), want, "{name} placed {placement:?}");
            let homes: Vec<usize> = s.memory().specs().iter().map(|spec| placement[spec.layer as usize]).collect();
            assert_eq!(s.memory().homes(), homes, "states are where their layers are");
            assert!(homes.contains(&0) && homes.contains(&1) && private.n_compiled() > 2);
        }
        // Nobody else there, and a wall between any two layers.
        let alone: [Arc<dyn Backend>; 1] = [Private::new(cpu())];
        assert_eq!(run(&mut open(&loaded, &alone, Vec::new())), want, "{name} behind a wall");
        let two: [Arc<dyn Backend>; 2] = [Private::new(cpu()), Private::new(cpu())];
        let in_turn = (0..MAX_LAYERS).map(|layer| layer % 2).collect();
        assert_eq!(run(&mut open(&loaded, &two, in_turn)), want, "{name} between two walls");
    }
}

/// A backend that runs several nodes as one: what they read and make stays until all of them have run, as the poison of dead
/// bytes and the plan's check show, and a plan that does not know of it is refused.
#[test]
fn nodes_that_run_as_one_do_not_write_over_each_other() {
    for name in MODELS {
        let loaded = load(name);
        let mut plain = open(&loaded, &[cpu()], Vec::new());
        let want = run(&mut plain);
        let grouping: Arc<dyn Backend> = Private::grouping(cpu(), MAX_GROUP);
        let mut grouped = open(&loaded, &[Arc::clone(&grouping)], Vec::new());
        assert_eq!(run(&mut grouped), want, "{name}");
        let mixed = [cpu(), grouping];
        let in_turn = (0..MAX_LAYERS).map(|layer| layer % 2).collect();
        assert_eq!(run(&mut open(&loaded, &mixed, in_turn)), want, "{name} in turn");
        for n_tokens in [1, 16] {
            let key = GraphKey { stage: Stage::Tokens, n_seqs: 1, n_tokens, n_kv: 64, n_outputs: 1, n_pending: 0 };
            let [plain, grouped] = [&plain, &grouped].map(|session| session.describe(&key).unwrap());
            assert_eq!(plain.graph(), grouped.graph());
            grouped.verify().unwrap();
            let refused = verify(grouped.graph(), grouped.cuts(), 0, plain.plan(0).unwrap()).unwrap_err().0;
            assert!(refused.contains("of its group"), "{name}: {refused}");
        }
    }
}

#[test]
fn states_go_to_the_first_backend_that_runs_what_touches_them() {
    let loaded = load("lfm2");
    let want = run(&mut open(&loaded, &[cpu()], Vec::new()));
    let no_attention: fn(&Op) -> bool = |op| matches!(op, Op::CachedAttention { .. });
    let first: Arc<dyn Backend> = Faulty::new(cpu(), no_attention);
    let private: Arc<dyn Backend> = Private::new(cpu());
    for placement in [Vec::new(), vec![0; MAX_LAYERS]] {
        let mut s = open(&loaded, &[Arc::clone(&first), Arc::clone(&private)], placement);
        assert_eq!(run(&mut s), want);
        let recurrent: Vec<usize> = s.memory().specs().iter().map(|s| usize::from(!s.role.is_recurrent())).collect();
        assert_eq!(s.memory().homes(), recurrent);
    }
    let options = SessionOptions { placement: vec![0, 2], ..session_options() };
    assert!(Session::open(Arc::clone(&loaded.model), &loaded.weights, &[first, private], options).is_err());
}
