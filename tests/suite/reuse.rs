//! Compiled graphs are used again, and nothing is allocated while they are.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use convert::FileType;
use engine::DType;
use engine::backend::Backend;
use engine::batch::Tokens;
use engine::gguf::Gguf;
use engine::key::{GraphKey, Stage};
use engine::pass::CompileOptions;
use engine::session::{Reuse, Session, SessionOptions};
use models::LoadOptions;
use models::sample::greedy;
use tests::alloc::measure;
use tests::sessions::session_options;

use crate::checkpoint::converted;

/// Steps after which everything that grows on demand has its size.
const WARM_UP: usize = 8;

fn trained(file_type: FileType) -> Gguf {
    converted(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/tiny-qwen3-asr"), file_type)
}

/// Delta nets and attention, with experts.
fn hybrid(file_type: FileType) -> Gguf {
    converted(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/qwen3_next"), file_type)
}

fn cpu(threads: usize) -> Arc<dyn Backend> {
    let options = backends::Options { threads: NonZeroUsize::new(threads) };
    backends::open("cpu", &options).unwrap()
}

fn open(file: &Gguf, backend: Arc<dyn Backend>, options: SessionOptions) -> Session {
    let loaded = models::load(vec![file.clone()], LoadOptions::default()).unwrap();
    Session::open(loaded.model, &loaded.weights, &[backend], SessionOptions { n_ctx: 512, ..options }).unwrap()
}

fn next(logits: &[f32]) -> u32 {
    u32::try_from(greedy(logits).unwrap()).unwrap()
}

/// Feeds a prompt and generates; returns ids and the logits of the last step.
fn generate(s: &mut Session, prompt: &[u32], n: usize) -> (Vec<u32>, Vec<f32>) {
    let slot = s.memory_mut().acquire().unwrap();
    let mut ids = vec![next(s.feed(slot, Tokens::Ids(prompt)).unwrap())];
    let mut last = Vec::new();
    for _ in 0..n {
        let logits = s.feed(slot, Tokens::Ids(&[ids[ids.len() - 1]])).unwrap();
        ids.push(next(logits));
        last = logits.to_vec();
    }
    s.memory_mut().release(slot);
    (ids, last)
}

const PROMPT: [u32; 13] = [12, 7, 300, 41, 5, 6, 99, 13, 250, 77, 31, 2, 8];

#[test]
fn builds_equal_distinct_keys_over_300_tokens() {
    let file = trained(FileType::BF16);
    let mut s = open(&file, cpu(2), session_options());
    let first = generate(&mut s, &PROMPT, 300);
    assert_eq!((s.stats().builds, s.stats().hits), (2, 299));
    let again = generate(&mut s, &PROMPT, 300);
    assert_eq!((s.stats().builds, s.stats().hits), (2, 600));
    assert_eq!(first, again);
    let mut rebuilt = open(&file, cpu(2), SessionOptions { reuse: Reuse::Off, ..session_options() });
    assert_eq!(generate(&mut rebuilt, &PROMPT, 20).0, first.0[..21]);
    assert_eq!(rebuilt.stats().hits, 0);
}

#[test]
fn equal_keys_give_equal_graphs() {
    let file = trained(FileType::BF16);
    let fingerprints = |stage, n_tokens| {
        let mut s = open(&file, cpu(1), SessionOptions { reuse: Reuse::Off, ..session_options() });
        let key = GraphKey { stage, n_seqs: 1, n_tokens, n_kv: 512, n_outputs: 1, n_pending: 0 };
        [(); 2].map(|()| s.graph(&key).unwrap().graph().fingerprint())
    };
    let mut all = Vec::new();
    for (stage, n_tokens) in [(Stage::Tokens, 1), (Stage::Tokens, 8), (Stage::Embeddings, 8), (Stage::Encode, 300)] {
        let [a, b] = fingerprints(stage, n_tokens);
        assert_eq!(a, b, "{stage:?} {n_tokens}");
        all.push(a);
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 4, "different keys give different graphs");
}

#[test]
fn steps_allocate_nothing() {
    let types = [(FileType::BF16, 1), (FileType::BF16, 2), (FileType::Q8_0, 1), (FileType::Q8_0, 2)];
    for (file_type, threads, file) in types
        .into_iter()
        .flat_map(|(file_type, threads)| [trained(file_type), hybrid(file_type)].map(|file| (file_type, threads, file)))
    {
        let options = SessionOptions { reuse: Reuse::On, ..session_options() };
        let mut s = open(&file, cpu(threads), options);
        let slot = s.memory_mut().acquire().unwrap();
        let mut id = next(s.feed(slot, Tokens::Ids(&PROMPT)).unwrap());
        for _ in 0..WARM_UP {
            id = next(s.feed(slot, Tokens::Ids(&[id])).unwrap());
        }
        let (_, usage) = measure(|| {
            for _ in 0..50 {
                id = next(s.feed(slot, Tokens::Ids(&[id])).unwrap());
            }
        });
        assert_eq!(usage.calls, 0, "{file_type:?} with {threads} threads");
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let types = [FileType::F32, FileType::F16, FileType::BF16, FileType::Q8_0, FileType::Q4_0];
    for (file_type, file) in types.into_iter().flat_map(|t| [(t, trained(t)), (t, hybrid(t))]) {
        let with = |threads| generate(&mut open(&file, cpu(threads), session_options()), &PROMPT, 12);
        let one = with(1);
        for threads in [2, 3, 8] {
            assert_eq!(with(threads), one, "{file_type:?} with {threads} threads");
        }
    }
}

#[test]
fn fused_and_unfused_graphs_agree() {
    let file = trained(FileType::F32);
    let run = |fuse| {
        let compile = CompileOptions { fuse, poison: true, ..CompileOptions::default() };
        let options = SessionOptions { kv_dtype: DType::F32, compile, ..session_options() };
        let mut s = open(&file, cpu(2), options);
        let key = GraphKey { stage: Stage::Tokens, n_seqs: 1, n_tokens: 1, n_kv: 512, n_outputs: 1, n_pending: 0 };
        let counts = s.graph(&key).unwrap().fused().clone();
        (generate(&mut s, &PROMPT, 12), counts)
    };
    let ((fused, fused_logits), counts) = run(true);
    let ((plain, plain_logits), none) = run(false);
    assert_eq!(fused, plain);
    let worst = fused_logits.iter().zip(&plain_logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-3, "{worst}");
    assert!(none.is_empty());
    // Three layers: q, k, v together; gate and up together; every norm with the sum before it, but for the first, which
    // has none.
    let want = [("add_norm", 6), ("glu_epilogue", 3), ("linear_group", 3)];
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), want);
}
