//! An LFM2-Audio whose every weight is a value of one formula, with what the official code computes from it in f64: the
//! encoder of `liquid-audio` and the decoder of `transformers`, both of a few thousand parameters.

use std::sync::Arc;

use engine::DType;
use engine::backend::Backend;
use engine::batch::{Features, Tokens};
use engine::gguf::{Array, Gguf, GgufWriter, Value};
use engine::memory::Slot;
use engine::pass::CompileOptions;
use engine::session::{Session, SessionOptions};
use models::LoadOptions;
use tests::sessions::session_options;

use super::{all_logits, backends, tap};

/// Width of the residual streams of encoder and decoder.
const D: usize = 16;
/// Channels of the stem.
const CHANNELS: usize = 4;
/// Hidden width of the encoder's feed-forward modules.
const FF: usize = 64;
/// Mel bands.
const N_MELS: usize = 16;
/// Frames of the input.
const N_FRAMES: usize = 20;

/// `0.2 sin(1 + 0.37 i + 2.1 k)`: element `i` of parameter `k`.
fn fill(k: usize, n: usize, plus: f64) -> Vec<f64> {
    (0..n).map(|i| 0.2 * (1.0 + 0.37 * i as f64 + 2.1 * k as f64).sin() + plus).collect()
}

/// Tensors of a file in the making: name, extents and values.
#[derive(Default)]
struct File {
    tensors: Vec<(String, Vec<usize>, Vec<f64>)>,
    k: usize,
}

impl File {
    /// The next parameter of the formula, under the name that it has in files.
    fn next(&mut self, name: &str, dims: &[usize], plus: f64) {
        let values = self.parameter(dims.iter().product(), plus);
        self.tensors.push((name.to_owned(), dims.to_vec(), values));
    }

    fn parameter(&mut self, n: usize, plus: f64) -> Vec<f64> {
        self.k += 1;
        fill(self.k - 1, n, plus)
    }

    fn layer(&mut self, name: &str, n_out: usize, n_in: usize) {
        self.next(&format!("{name}.weight"), &[n_out, n_in], 0.0);
        self.next(&format!("{name}.bias"), &[n_out], 0.0);
    }

    fn norm(&mut self, name: &str) {
        self.next(&format!("{name}.weight"), &[D], 1.0);
        self.next(&format!("{name}.bias"), &[D], 0.0);
    }

    /// Parameters in the order of the official module.
    fn encoder(&mut self) {
        for (i, c_in) in [(0, 1), (2, 1), (3, CHANNELS), (5, 1), (6, CHANNELS)] {
            let kernel = if matches!(i, 3 | 6) { 1 } else { 3 };
            self.next(&format!("a.conv1d.{i}.weight"), &[CHANNELS, c_in, kernel, kernel], 0.0);
            self.next(&format!("a.conv1d.{i}.bias"), &[CHANNELS, 1, 1], 0.0);
        }
        self.layer("a.pre_encode.out", D, CHANNELS * N_MELS / 8);
        let block = |part: &str| format!("a.blk.0.{part}");
        self.norm(&block("ffn_norm"));
        self.layer(&block("ffn_up"), FF, D);
        self.layer(&block("ffn_down"), D, FF);
        self.norm(&block("ln1"));
        for part in ["attn_q", "attn_k", "attn_v"] {
            self.layer(&block(part), D, D);
        }
        self.next(&block("linear_pos.weight"), &[D, D], 0.0);
        self.next(&block("pos_bias_u"), &[2, D / 2], 0.0);
        self.next(&block("pos_bias_v"), &[2, D / 2], 0.0);
        self.layer(&block("attn_out"), D, D);
        self.norm(&block("norm_conv"));
        self.layer(&block("conv_pw1"), 2 * D, D);
        self.layer(&block("conv_dw"), D, 9);
        let [gamma, beta, mean, variance] = [1.0, 0.0, 0.0, 1.5].map(|plus| self.parameter(D, plus));
        let scale: Vec<f64> = gamma.iter().zip(&variance).map(|(g, v)| g / (v + 1e-5).sqrt()).collect();
        let shift = beta.iter().zip(&mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
        self.tensors.push((block("conv_norm.weight"), vec![D], scale));
        self.tensors.push((block("conv_norm.bias"), vec![D], shift));
        self.layer(&block("conv_pw2"), D, D);
        self.norm(&block("ffn_norm_1"));
        self.layer(&block("ffn_up_1"), FF, D);
        self.layer(&block("ffn_down_1"), D, FF);
        self.norm(&block("ln2"));
        assert_eq!(self.k, 51);
        self.norm("mm.a.mlp.0");
        self.layer("mm.a.mlp.1", D, D);
        self.layer("mm.a.mlp.3", D, D);
    }

    fn decoder(&mut self) {
        self.k = 0;
        self.next("token_embd.weight", &[32, D], 0.0);
        self.next("token_embd_norm.weight", &[D], 1.0);
        for i in 0..3 {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            self.next(&name("attn_norm"), &[D], 1.0);
            if i == 1 {
                self.next(&name("attn_q"), &[D, D], 0.0);
                self.next(&name("attn_k"), &[D / 2, D], 0.0);
                self.next(&name("attn_v"), &[D / 2, D], 0.0);
                self.next(&name("attn_q_norm"), &[D / 2], 1.0);
                self.next(&name("attn_k_norm"), &[D / 2], 1.0);
                self.next(&name("attn_output"), &[D, D], 0.0);
            } else {
                self.next(&name("shortconv.in_proj"), &[3 * D, D], 0.0);
                self.next(&name("shortconv.conv"), &[D, 3], 0.0);
                self.next(&name("shortconv.out_proj"), &[D, D], 0.0);
            }
            self.next(&name("ffn_norm"), &[D], 1.0);
            self.next(&name("ffn_gate"), &[D, D], 0.0);
            self.next(&name("ffn_up"), &[D, D], 0.0);
            self.next(&name("ffn_down"), &[D, D], 0.0);
        }
        assert_eq!(self.k, 29);
    }

    fn written(&self) -> Gguf {
        let mut out = GgufWriter::in_memory("synthetic");
        let keys: [(&str, Value); 18] = [
            ("general.architecture", "lfm2".into()),
            ("lfm2.embedding_length", 16u32.into()),
            ("lfm2.block_count", 3u32.into()),
            ("lfm2.feed_forward_length", 16u32.into()),
            ("lfm2.attention.head_count", 2u32.into()),
            ("lfm2.attention.head_count_kv", Value::Array(Array::I32(vec![0, 1, 0]))),
            ("lfm2.attention.layer_norm_rms_epsilon", 1e-5f32.into()),
            ("lfm2.rope.freq_base", 1e6f32.into()),
            ("lfm2.shortconv.l_cache", 3u32.into()),
            ("lfm2.context_length", 64u32.into()),
            ("clip.projector_type", "lfm2a".into()),
            ("clip.audio.embedding_length", 16u32.into()),
            ("clip.audio.feed_forward_length", 16u32.into()),
            ("clip.audio.block_count", 1u32.into()),
            ("clip.audio.attention.head_count", 2u32.into()),
            ("clip.audio.num_mel_bins", 16u32.into()),
            ("clip.audio.attention.layer_norm_epsilon", 1e-5f32.into()),
            ("clip.audio.projection_dim", 16u32.into()),
        ];
        for (key, value) in keys {
            out.key(key, value).unwrap();
        }
        for (name, dims, _) in &self.tensors {
            out.tensor(name, DType::F32, engine::Shape::new(dims).unwrap()).unwrap();
        }
        for (name, _, values) in &self.tensors {
            out.begin(name).unwrap();
            out.write(&values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect::<Vec<_>>()).unwrap();
        }
        out.finish_in_memory().unwrap()
    }
}

fn session(backend: &Arc<dyn Backend>) -> Session {
    let mut file = File::default();
    file.encoder();
    file.decoder();
    let loaded = models::load(vec![file.written()], LoadOptions::default()).unwrap();
    let taps = ["enc.stem", "enc.blk.0.ff1", "enc.blk.0.attn", "enc.blk.0.conv", "enc.blk.0.out", "norm"];
    let compile = CompileOptions { poison: true, taps: taps.map(str::to_owned).to_vec(), ..CompileOptions::default() };
    let options = SessionOptions { n_slots: 2, n_ctx: 16, kv_dtype: DType::F32, compile, ..session_options() };
    Session::open(loaded.model, &loaded.weights, std::slice::from_ref(backend), options).unwrap()
}

/// Largest difference from published digits.
fn tolerance(backend: &dyn Backend, digits: f64) -> f64 {
    if backend.name() == "reference" { digits } else { 1e-4 }
}

#[track_caller]
fn close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    for (got, want) in got.iter().zip(want) {
        assert!((f64::from(*got) - want).abs() <= tolerance, "{what}: {got} instead of {want}");
    }
}

/// Source: liquid-audio 1.3.0, `ConformerEncoder` in f64.
#[test]
fn the_synthetic_encoder_matches_the_official_digits() {
    let want: [(&str, [f64; 4], [f64; 4]); 5] = [
        ("enc.stem", [-0.354670, 0.049932, -0.215075, 0.151992], [0.066982, -0.260519, -0.009507, -0.367981]),
        ("enc.blk.0.ff1", [-2.942319, 4.603057, 3.834905, -3.783180], [-5.574347, -2.729702, 4.729184, 3.562847]),
        ("enc.blk.0.attn", [-0.241145, 0.093719, 0.415380, 0.681929], [-0.746479, -0.883665, -0.905275, -0.808846]),
        ("enc.blk.0.conv", [0.351443, 0.348892, 0.299847, 0.210786], [-0.164400, -0.039886, 0.090062, 0.208131]),
        ("enc.blk.0.out", [-0.806815, 1.102942, 0.803130, -0.076809], [-2.423616, -1.818983, 0.190626, -0.419666]),
    ];
    let mel: Vec<f32> = (0..N_MELS * N_FRAMES)
        .map(|i| ((i / N_FRAMES) as f64, (i % N_FRAMES) as f64))
        .map(|(m, t)| (0.11 * m * (1.0 + t) / 4.0 + 0.3 * t).sin() as f32)
        .collect();
    for backend in backends() {
        let mut s = session(&backend);
        s.encode(&[Features { n_mels: N_MELS, n_frames: N_FRAMES, values: &mel }]).unwrap();
        let tolerance = tolerance(&*backend, 2e-6);
        for (name, first, last) in want {
            let got = tap(&s, name);
            close(name, &got[..4], &first, tolerance);
            close(name, &got[2 * D + 12..3 * D], &last, tolerance);
        }
        let block = &tap(&s, "enc.blk.0.out")[..3 * D];
        close("row 0", &block[4..8], &[-0.064323, 1.377567, 1.590511, 0.157337], tolerance);
        close("row 1", &block[D..], &[-0.808676, 1.103879, 0.802717, -0.086283], tolerance);
        let sum: f64 = block.iter().map(|&x| f64::from(x)).sum();
        let squares: f64 = block.iter().map(|&x| f64::from(x).powi(2)).sum();
        // 48 values with one rounding of the printed digits each.
        assert!((sum + 3.368597).abs() <= 48.0 * tolerance, "{sum}");
        assert!((squares - 56.014096).abs() <= 96.0 * tolerance, "{squares}");
    }
}

/// Source: transformers, `Lfm2Model` with norms in f32 and all else in f64.
#[test]
fn the_synthetic_decoder_matches_the_official_digits() {
    const IDS: [u32; 6] = [1, 6, 24, 7, 13, 2];
    for backend in backends() {
        let mut s = session(&backend);
        let tolerance = tolerance(&*backend, 1e-5);
        let rows = |s: &mut Session, slot: Slot, ids: &[u32]| {
            let logits = all_logits(s, slot, Tokens::Ids(ids));
            (tap(s, "norm")[..ids.len() * D].to_vec(), logits)
        };
        for pieces in [vec![6], vec![1; 6], vec![3, 3], vec![2, 4]] {
            let slot = s.memory_mut().acquire().unwrap();
            let (mut norm, mut logits, mut start) = (Vec::new(), Vec::new(), 0);
            for n in pieces {
                let (more_norm, more_logits) = rows(&mut s, slot, &IDS[start..start + n]);
                norm.extend(more_norm);
                logits.extend(more_logits);
                start += n;
            }
            s.memory_mut().release(slot);
            close("norm row 0", &norm, &[0.37709, -0.12100, -0.53687, -0.84356], tolerance);
            let row = [1.09246, 0.62316, 0.14090, -0.30030, -0.67571, -0.97628, -1.18941, -1.28690];
            close("norm row 5", &norm[5 * D..], &row, tolerance);
            let row = [0.59168, -0.19332, -0.95310, -1.58854, -2.01674, -2.18184, -2.06229, -1.67370];
            close("logits row 5", &logits[5 * 32..], &row, tolerance);
            assert_eq!(models::sample::greedy(&logits[5 * 32..]), Ok(31));
            assert_eq!(models::sample::greedy(&logits[2 * 32..3 * 32]), Ok(3));
        }
    }
}
