//! Fused and unfused graphs of whole models agree, and every rule applies as often as it should.

use std::path::Path;
use std::sync::Arc;

use convert::FileType;
use engine::DType;
use engine::batch::{Features, Tokens};
use engine::key::{GraphKey, Stage};
use engine::op::Op;
use engine::pass::CompileOptions;
use engine::session::{Session, SessionOptions};
use models::LoadOptions;
use tests::rng::Rng;
use tests::sessions::session_options;

use crate::checkpoint::converted;

/// Frames of the clip, and the multiple of 32 that its graph has.
const N_FRAMES: [usize; 2] = [150, 160];

fn open(fuse: bool) -> Session {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/tiny-lfm2-audio");
    let loaded = models::load(vec![converted(&dir, FileType::F32)], LoadOptions::default()).unwrap();
    let backend = backends::open("cpu", &backends::Options::default()).unwrap();
    let compile = CompileOptions { fuse, poison: true, ..CompileOptions::default() };
    let options = SessionOptions { n_ctx: 64, kv_dtype: DType::F32, compile, ..session_options() };
    Session::open(Arc::clone(&loaded.model), &loaded.weights, &[backend], options).unwrap()
}

/// Audio embeddings of noise, and the logits behind them.
fn run(s: &mut Session) -> Vec<f32> {
    let features = Rng::new(1).floats(128 * N_FRAMES[0], [-2.0, 2.0]);
    let input = Features { n_mels: 128, n_frames: N_FRAMES[0], values: &features };
    let embeddings = s.encode(&[input]).unwrap().clip(0).to_vec();
    let slot = s.memory_mut().acquire().unwrap();
    let ids: Vec<i32> = [1, 6].into_iter().chain(embeddings.chunks(s.model().n_embd()).map(|_| -1)).collect();
    let logits = s.feed(slot, Tokens::Mixed { ids: &ids, embeddings: &embeddings }).unwrap().to_vec();
    let next = s.feed(slot, Tokens::Ids(&[7])).unwrap().to_vec();
    [embeddings, logits, next].concat()
}

#[test]
fn fused_and_unfused_graphs_of_lfm2_audio_agree() {
    let (mut fused, mut plain) = (open(true), open(false));
    let (got, want) = (run(&mut fused), run(&mut plain));
    let largest = want.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(got.len() == want.len() && worst <= 1e-5 * largest, "{worst} of {largest}");

    let step = GraphKey { stage: Stage::Tokens, n_seqs: 1, n_tokens: 1, n_kv: 64, n_outputs: 1, n_pending: 0 };
    let encode = GraphKey { stage: Stage::Encode, n_tokens: N_FRAMES[1] as u32, n_kv: 0, ..step };
    let mut counts = |key| fused.graph(key).unwrap().fused().clone().into_iter().collect::<Vec<_>>();
    // Four layers, two with attention: q, k, v together there; gate and up together; every norm with the sum before it,
    // but for the first, which has none.
    assert_eq!(counts(&step), [("add_norm", 8), ("glu_epilogue", 4), ("linear_group", 2)]);
    // Four blocks: the first convolution with its function; both pointwise ones, two feed-forward modules a block and the
    // adapter with theirs; q, k, v together in each, and the positions of all blocks; the norms behind the attention and
    // behind the convolution with their sums.
    let want = [("add_norm", 8), ("conv_act", 1), ("linear_epilogue", 11), ("linear_group", 5)];
    assert_eq!(counts(&encode), want);
    assert!(plain.graph(&step).unwrap().fused().is_empty());
}

#[test]
fn memory_outside_of_the_plan_is_counted() {
    let mut s = open(true);
    assert_eq!((s.stats().graph_bytes, s.stats().weight_bytes), (0, 0));
    let encode =
        GraphKey { stage: Stage::Encode, n_seqs: 1, n_tokens: N_FRAMES[1] as u32, n_kv: 0, n_outputs: 1, n_pending: 0 };
    let graph = s.graph(&encode).unwrap().graph();
    let kernels = graph.nodes.iter().filter(|n| matches!(n.op, Op::Conv2d { .. }));
    let want: usize = kernels.map(|n| graph.tensor(n.args[1]).shape.elements() * size_of::<f32>()).sum();
    assert!(want > 0);
    assert_eq!((s.stats().graph_bytes, s.stats().weight_bytes), (0, want), "kernels with channels innermost");

    // Cosines and sines of half of the rotated elements at every position, one table for all layers.
    let mut tables = 0;
    for n_tokens in [1, 8] {
        let key = GraphKey { stage: Stage::Tokens, n_tokens, n_kv: 64, n_outputs: 1, ..encode };
        let graph = s.graph(&key).unwrap().graph();
        let rotated = |op: &Op| if let Op::Rope(rope) = op { Some(rope.n_rot as usize) } else { None };
        let n_rot = graph.nodes.iter().find_map(|n| rotated(&n.op)).unwrap();
        tables += n_tokens as usize * n_rot * size_of::<f32>();
        // Both graphs have the same convolutions, whose taps are transposed once.
        let convs = graph.nodes.iter().filter(|n| matches!(n.op, Op::CausalConv1d { .. }));
        let taps: usize = convs.map(|n| graph.tensor(n.args[1]).shape.elements() * size_of::<f32>()).sum();
        assert!(taps > 0);
        assert_eq!((s.stats().graph_bytes, s.stats().weight_bytes), (tables, want + taps));
    }
}
