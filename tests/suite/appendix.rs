//! Qwen3-ASR with weights and sound made by formulas, against figures computed with transformers 5.23 in f32.
//!
//! Weights are splitmix64 streams seeded with the FNV-1a hash of the tensor's name, the sound is two tones with noise. Every
//! stage is checked, from the features to the tokens, with attention in windows and over the whole clip.

use std::path::Path;
use std::sync::Arc;

use convert::FileType;
use engine::DType;
use engine::backend::Backend;
use engine::batch::{Batch, Features, Rows, Sequence, Tokens};
use engine::gguf::Gguf;
use engine::parallel::Serial;
use engine::pass::CompileOptions;
use engine::session::{Session, SessionOptions};
use models::LoadOptions;
use models::audio::MelSpectrogram;
use models::qwen3_asr::{AudioAttention, mel_params};
use models::sample::greedy;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use tests::sessions::session_options;

use crate::checkpoint::converted;

/// Largest difference of features.
const MEL_TOLERANCE: f64 = 2e-5;
/// Largest difference of encoder and decoder activations.
const ENCODER_TOLERANCE: f64 = 2e-4;
/// Largest difference of logits.
const LOGITS_TOLERANCE: f64 = 2e-3;

/// Values in -1 to 1 for the tensor called `name`.
fn stream(name: &str, n: usize) -> Vec<f32> {
    let fnv = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    (1..=n as u64)
        .map(|i| {
            let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(i));
            let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

fn weights(name: &str, n: usize) -> Vec<f32> {
    let scaled = |a: f32, b: f32| stream(name, n).into_iter().map(|u| a + b * u).collect();
    if name.ends_with("norm.weight") || name.ends_with("ln_post.weight") {
        scaled(1.0, 0.125)
    } else if name.contains("embed_tokens") || name.contains("lm_head") {
        scaled(0.0, 1.0)
    } else if name.ends_with("conv2d1.weight") {
        scaled(0.0, 0.5)
    } else {
        scaled(0.0, 0.125)
    }
}

/// Every tensor of the checkpoint: name and shape.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
    let audio = "thinker.audio_tower";
    for (i, c_in) in [(1, 1), (2, 16), (3, 16)] {
        add(format!("{audio}.conv2d{i}.weight"), &[16, c_in, 3, 3]);
        add(format!("{audio}.conv2d{i}.bias"), &[16]);
    }
    add(format!("{audio}.conv_out.weight"), &[128, 256]);
    let mut linear = |name: String, n_out: usize, n_in: usize| {
        add(format!("{name}.weight"), &[n_out, n_in]);
        add(format!("{name}.bias"), &[n_out]);
    };
    for i in 0..2 {
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            linear(format!("{audio}.layers.{i}.self_attn.{part}"), 128, 128);
        }
        linear(format!("{audio}.layers.{i}.fc1"), 256, 128);
        linear(format!("{audio}.layers.{i}.fc2"), 128, 256);
    }
    linear(format!("{audio}.proj1"), 128, 128);
    linear(format!("{audio}.proj2"), 64, 128);
    let norms = (0..2).flat_map(|i| ["self_attn_layer_norm", "final_layer_norm"].map(|n| format!("layers.{i}.{n}")));
    for norm in norms.chain(["ln_post".to_owned()]) {
        add(format!("{audio}.{norm}.weight"), &[128]);
        add(format!("{audio}.{norm}.bias"), &[128]);
    }
    for i in 0..2 {
        let layer = format!("thinker.model.layers.{i}");
        for (part, shape) in [
            ("self_attn.q_proj", &[128, 64][..]),
            ("self_attn.k_proj", &[64, 64]),
            ("self_attn.v_proj", &[64, 64]),
            ("self_attn.o_proj", &[64, 128]),
            ("self_attn.q_norm", &[32]),
            ("self_attn.k_norm", &[32]),
            ("mlp.gate_proj", &[128, 64]),
            ("mlp.up_proj", &[128, 64]),
            ("mlp.down_proj", &[64, 128]),
            ("input_layernorm", &[64]),
            ("post_attention_layernorm", &[64]),
        ] {
            add(format!("{layer}.{part}.weight"), shape);
        }
    }
    add("thinker.model.norm.weight".into(), &[64]);
    add("thinker.model.embed_tokens.weight".into(), &[512, 64]);
    add("thinker.lm_head.weight".into(), &[512, 64]);
    all
}

/// Writes the checkpoint; the tokenizer is that of another fixture, whose tokens are not used.
fn write_checkpoint(dir: &Path) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/qwen3_asr");
    for file in ["vocab.json", "merges.txt", "tokenizer_config.json", "preprocessor_config.json"] {
        std::fs::copy(fixture.join(file), dir.join(file)).unwrap();
    }
    let config = json!({
        "architectures": ["Qwen3ASRForConditionalGeneration"], "model_type": "qwen3_asr", "support_languages": ["English"],
        "thinker_config": {
            "model_type": "qwen3_asr", "audio_token_id": 500, "audio_start_token_id": 501, "audio_end_token_id": 502,
            "audio_config": {
                "num_mel_bins": 128, "d_model": 128, "encoder_layers": 2, "num_hidden_layers": 2, "encoder_attention_heads": 2,
                "encoder_ffn_dim": 256, "activation_function": "gelu", "n_window": 50, "n_window_infer": 800,
                "downsample_hidden_size": 16, "output_dim": 64, "scale_embedding": false, "max_source_positions": 1500,
                "conv_chunksize": 500, "model_type": "qwen3_asr_audio_encoder"
            },
            "text_config": {
                "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
                "max_position_embeddings": 4096, "head_dim": 32, "intermediate_size": 128, "rms_norm_eps": 1e-6,
                "rope_theta": 1_000_000.0, "hidden_act": "silu", "tie_word_embeddings": false, "attention_bias": false,
                "model_type": "qwen3", "rope_scaling": {
                    "mrope_section": [6, 5, 5], "mrope_interleaved": true, "interleaved": true, "rope_type": "default",
                    "type": "default"
                }
            }
        }
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors()
        .into_iter()
        .map(|(name, shape)| {
            let values = weights(&name, shape.iter().product());
            (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views: Vec<_> =
        data.iter().map(|(n, s, b)| (n.as_str(), TensorView::new(Dtype::F32, s.clone(), b).unwrap())).collect();
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

fn model() -> Gguf {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path());
    converted(dir.path(), FileType::F32)
}

fn sound(n: usize) -> Vec<f32> {
    use std::f64::consts::TAU;
    let mut v = 12345u32;
    (0..n)
        .map(|i| {
            v = v.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = f64::from(v >> 8) / 8_388_608.0 - 1.0;
            let t = i as f64 / 16_000.0;
            let tone = 0.3 * (TAU * 220.0 * t).sin() * (0.6 + 0.4 * (TAU * 3.0 * t).sin());
            (tone + 0.1 * (TAU * 1760.0 * t + 0.5).sin() + 0.01 * noise) as f32
        })
        .collect()
}

/// What transformers computes for one clip.
struct Clip {
    n_samples: usize,
    n_tokens: usize,
    mel_sum: f64,
    /// Sum, and sum of absolute values, of the audio embeddings.
    embeddings: (f64, f64),
    first_token: [f64; 4],
    /// Some other tokens: index and first values.
    tokens: &'static [(usize, [f64; 4])],
    logits: [f64; 5],
    decoded: [i32; 10],
}

const CLIPS: [Clip; 4] = [
    Clip {
        n_samples: 57_637,
        n_tokens: 47,
        mel_sum: 3923.24098,
        embeddings: (203.12409, 904.48040),
        first_token: [-0.17811, 0.12729, -0.2839, 0.40387],
        tokens: &[
            (12, [-0.08267, 0.17829, 0.18627, 0.20056]),
            (13, [-0.18186, 0.13225, -0.27606, 0.40226]),
            (46, [-0.00929, 0.00763, 0.13106, 0.36465]),
        ],
        logits: [-6.13349, -5.16871, 10.03962, 2.60921, 4.49457],
        decoded: [117, 102, 123, 72, 423, 335, 182, 37, 423, 335],
    },
    Clip {
        n_samples: 176_000,
        n_tokens: 143,
        mel_sum: 11948.66213,
        embeddings: (636.10125, 2745.19914),
        first_token: [-0.1877, 0.13049, -0.26972, 0.42722],
        tokens: &[
            (103, [-0.09686, 0.17024, 0.20609, 0.22198]),
            (104, [-0.1827, 0.13019, -0.26331, 0.42371]),
            (142, [-0.10083, 0.17379, 0.21359, 0.22214]),
        ],
        logits: [-5.93343, -5.58696, 10.53377, 3.51276, 3.64289],
        decoded: [117, 102, 123, 72, 423, 335, 182, 182, 182, 182],
    },
    Clip {
        n_samples: 12_000,
        n_tokens: 10,
        mel_sum: 858.64550,
        embeddings: (38.71936, 195.28094),
        first_token: [-0.18571, 0.1566, -0.3127, 0.36206],
        tokens: &[(9, [-0.13913, 0.35819, 0.18848, 0.26668])],
        logits: [-5.63641, -1.63653, 10.65055, 3.12104, 5.97919],
        decoded: [361, 365, 8, 123, 72, 423, 335, 406, 237, 351],
    },
    // Padded with silence to half a second.
    Clip {
        n_samples: 4800,
        n_tokens: 7,
        mel_sum: -1211.9658,
        embeddings: (22.70154, 141.30751),
        first_token: [-0.12969, 0.05578, -0.38531, 0.22052],
        tokens: &[(6, [0.16238, -0.06162, -0.05755, 0.24249])],
        logits: [-4.19255, -0.49661, 10.29812, 2.12187, 6.17905],
        decoded: [361, 365, 194, 373, 432, 361, 365, 194, 373, 432],
    },
];

fn session(file: &Gguf, backend: &Arc<dyn Backend>, attention: AudioAttention, taps: &[&str]) -> Session {
    let loaded =
        models::load(vec![file.clone()], LoadOptions { audio_attention: attention, ..LoadOptions::default() }).unwrap();
    let compile = CompileOptions {
        poison: true,
        taps: taps.iter().map(|&t| t.to_owned()).collect(),
        ..CompileOptions::default()
    };
    let options = SessionOptions { n_ctx: 256, kv_dtype: DType::F32, compile, ..session_options() };
    Session::open(loaded.model, &loaded.weights, std::slice::from_ref(backend), options).unwrap()
}

fn backends() -> Vec<Arc<dyn Backend>> {
    tests::sessions::backends()
}

fn mel(samples: &[f32]) -> models::audio::Features {
    MelSpectrogram::new(mel_params(128)).unwrap().compute(samples, &Serial).unwrap()
}

#[track_caller]
fn near(what: &str, got: f32, want: f64, tolerance: f64) {
    assert!((f64::from(got) - want).abs() <= tolerance, "{what}: {got} is not {want}");
}

/// Sum and sum of absolute values; each element may be off by a tenth of the tolerance on average.
#[track_caller]
fn sums(what: &str, values: &[f32], want: (f64, f64), tolerance: f64) {
    let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
    let abs: f64 = values.iter().map(|&v| f64::from(v).abs()).sum();
    let allowed = tolerance * 0.1 * (values.len() as f64).sqrt().max(10.0) + 1e-6 * want.1;
    assert!(
        (sum - want.0).abs() <= allowed && (abs - want.1).abs() <= allowed,
        "{what}: ({sum}, {abs}) is not {want:?}"
    );
}

#[test]
fn formulas_give_the_published_weights() {
    let u = stream("thinker.audio_tower.conv2d1.weight", 3);
    for (got, want) in u.iter().zip([-0.658_426_28, -0.294_985_89, 0.701_623_44]) {
        near("conv2d1", *got, want, 1e-7);
    }
    for (got, want) in stream("thinker.lm_head.weight", 3).iter().zip([0.531_663_06, 0.817_463_64, 0.519_807_10]) {
        near("lm_head", *got, want, 1e-7);
    }
    for (got, want) in
        sound(5).iter().zip([0.038_350_608_2, 0.098_754_294_2, 0.127_046_317, 0.102_745_511, 0.057_095_076_9])
    {
        near("sound", *got, want, 1e-7);
    }
    near("sound", sound(1001)[1000], -0.244_315_326, 1e-7);
}

#[test]
fn clips_match_transformers_from_samples_to_tokens() {
    let file = model();
    for backend in backends() {
        let mut s = session(&file, &backend, AudioAttention::Windowed, &[]);
        for clip in &CLIPS {
            check_clip(&mut s, clip, backend.name());
        }
    }
}

fn check_clip(s: &mut Session, clip: &Clip, backend: &str) {
    let at = format!("{} samples on {backend}", clip.n_samples);
    let features = mel(&sound(clip.n_samples));
    let sum: f64 = features.values.iter().map(|&v| f64::from(v)).sum();
    assert!((sum - clip.mel_sum).abs() <= MEL_TOLERANCE * 100.0 + 1e-6 * clip.mel_sum.abs(), "{at}: mel {sum}");
    let input = Features { n_mels: features.n_mels, n_frames: features.n_frames, values: &features.values };
    let embeddings = s.encode(&[input]).unwrap().clip(0).to_vec();
    assert_eq!(embeddings.len(), clip.n_tokens * 64, "{at}");
    sums(&at, &embeddings, clip.embeddings, ENCODER_TOLERANCE);
    for (token, want) in std::iter::once(&(0, clip.first_token)).chain(clip.tokens) {
        for (got, want) in embeddings[token * 64..].iter().zip(want) {
            near(&at, *got, *want, ENCODER_TOLERANCE);
        }
    }
    let slot = s.memory_mut().acquire().unwrap();
    let prompt = prompt(clip.n_tokens);
    let mut logits = s.feed(slot, Tokens::Mixed { ids: &prompt, embeddings: &embeddings }).unwrap().to_vec();
    for (got, want) in logits.iter().zip(clip.logits) {
        near(&at, *got, want, LOGITS_TOLERANCE);
    }
    let mut decoded = Vec::new();
    for _ in 0..10 {
        let next = u32::try_from(greedy(&logits).unwrap()).unwrap();
        decoded.push(next.cast_signed());
        logits = s.feed(slot, Tokens::Ids(&[next])).unwrap().to_vec();
    }
    assert_eq!(decoded, clip.decoded, "{at}");
    s.memory_mut().release(slot);
}

fn prompt(n_tokens: usize) -> Vec<i32> {
    [&[1, 2, 3, 4][..], &vec![-1; n_tokens], &[5, 6, 7]].concat()
}

#[test]
fn features_match_transformers() {
    let features = mel(&sound(57_637));
    let value = |band: usize, frame: usize| features.values[band * features.n_frames + frame];
    for (band, frame, want) in [
        (127, 359, 0.017188),
        (5, 359, 0.460594),
        (0, 0, 0.859271),
        (0, 1, 0.347117),
        (10, 0, 0.951537),
        (40, 7, 0.050602),
        (64, 20, 0.917453),
    ] {
        near("mel", value(band, frame), want, MEL_TOLERANCE);
    }
    let max = features.values.iter().fold(f32::MIN, |a, &b| a.max(b));
    let min = features.values.iter().fold(f32::MAX, |a, &b| a.min(b));
    near("max", max, 1.327_469_23, MEL_TOLERANCE);
    near("min", min, -0.672_530_77, MEL_TOLERANCE);
}

#[test]
fn full_attention_differs_as_published() {
    let file = model();
    let features = mel(&sound(176_000));
    let input = Features { n_mels: features.n_mels, n_frames: features.n_frames, values: &features.values };
    for backend in backends() {
        let full = session(&file, &backend, AudioAttention::Full, &[]).encode(&[input]).unwrap().clip(0).to_vec();
        let windowed =
            session(&file, &backend, AudioAttention::Windowed, &[]).encode(&[input]).unwrap().clip(0).to_vec();
        sums("full", &full, (636.10084, 2745.18627), ENCODER_TOLERANCE);
        for (token, want) in [(103, [-0.09678, 0.17012, 0.2062, 0.2222]), (104, [-0.1839, 0.13073, -0.26302, 0.42318])]
        {
            for (got, want) in full[token * 64..].iter().zip(want) {
                near("full", *got, want, ENCODER_TOLERANCE);
            }
        }
        let largest = full.iter().zip(&windowed).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        near("difference", largest, 0.003_167, ENCODER_TOLERANCE);
    }
}

/// A tensor of the encoder or decoder: our name, sums over all or over valid rows, and samples by flat index.
type Stage = (&'static str, (f64, f64), &'static [(usize, f64)]);

const ENCODER_STAGES: [Stage; 6] = [
    (
        "enc.blk.0.ln1",
        (22.448366, 5461.179913),
        &[(0, -0.820193), (13 * 128 + 1, -0.890712), (46 * 128 + 2, -2.491274)],
    ),
    (
        "enc.blk.0.attn",
        (319.440446, 2508.584061),
        &[(0, 0.596415), (13 * 128 + 1, -0.562241), (46 * 128 + 2, 0.099794)],
    ),
    (
        "enc.blk.0.out",
        (2985.476279, 5180.207426),
        &[(0, 0.905745), (13 * 128 + 1, -0.110871), (46 * 128 + 2, -0.175839)],
    ),
    (
        "enc.blk.1.out",
        (2809.603190, 7036.944855),
        &[(0, 0.867089), (13 * 128 + 1, 0.553245), (46 * 128 + 2, -1.136176)],
    ),
    ("enc.ln_post", (-79.064057, 4875.613433), &[(0, 0.200037), (13 * 128 + 1, -0.080827), (46 * 128 + 2, -1.140516)]),
    ("enc.proj1", (-908.608596, 4095.160762), &[(0, 1.507931), (13 * 128 + 1, 0.486988), (46 * 128 + 2, -0.374337)]),
];

/// `[chunks, mel, time, channels]`: extents, and samples by the official index `[chunk, channel, mel, time]`.
type Image = (&'static str, [usize; 2], (f64, f64), [([usize; 4], f64); 4]);

const IMAGES: [Image; 3] = [
    (
        "enc.gelu1.0",
        [64, 50],
        (7790.591137, 17342.764337),
        [([0, 0, 0, 0], 0.027839), ([0, 3, 5, 7], 0.665823), ([3, 15, 63, 2], -0.066018), ([3, 2, 1, 49], -0.029469)],
    ),
    (
        "enc.gelu2.0",
        [32, 25],
        (773.386325, 3017.856480),
        [([0, 0, 0, 0], -0.075803), ([0, 3, 5, 7], -0.036882), ([3, 15, 31, 2], 0.100232), ([3, 2, 1, 24], -0.048021)],
    ),
    (
        "enc.gelu3.0",
        [16, 13],
        (76.622233, 494.494393),
        [([0, 0, 0, 0], 0.02865), ([0, 3, 5, 7], 0.009069), ([3, 15, 15, 2], -0.07168), ([3, 2, 1, 12], 0.032515)],
    ),
];

const DECODER_STAGES: [Stage; 5] = [
    ("blk.0.mixer", (-29.323163, 975.970018), &[(0, -0.103327), (5 * 64 + 1, -0.21582), (53 * 64 + 2, -0.336227)]),
    ("blk.0.ffn", (-5.260919, 463.304523), &[(0, 0.168014), (5 * 64 + 1, 0.013354), (53 * 64 + 2, 0.011167)]),
    ("blk.0.out", (146.536421, 1507.695646), &[(0, 0.300614), (5 * 64 + 1, -0.074795), (53 * 64 + 2, -0.813767)]),
    ("blk.1.out", (562.551335, 2026.281983), &[(0, 0.792437), (5 * 64 + 1, -0.15073), (53 * 64 + 2, -0.709796)]),
    ("norm", (746.803695, 2748.338229), &[(0, 1.01496), (5 * 64 + 1, -0.252953), (53 * 64 + 2, -0.928813)]),
];

/// Argmax of the logits at every position of the prompt.
const ARGMAX: [usize; 54] = [
    368, 59, 242, 372, 386, 510, 510, 401, 506, 484, 373, 277, 277, 346, 346, 309, 309, 401, 506, 506, 506, 182, 182,
    182, 182, 182, 346, 346, 182, 182, 182, 506, 506, 506, 506, 182, 182, 182, 182, 182, 182, 309, 182, 182, 506, 506,
    506, 506, 182, 182, 182, 155, 32, 117,
];

#[test]
fn every_stage_matches_transformers() {
    let file = model();
    let features = mel(&sound(57_637));
    let input = Features { n_mels: features.n_mels, n_frames: features.n_frames, values: &features.values };
    let taps: Vec<&str> =
        ENCODER_STAGES.iter().chain(&DECODER_STAGES).map(|s| s.0).chain(IMAGES.map(|i| i.0)).collect();
    for backend in backends() {
        let mut s = session(&file, &backend, AudioAttention::Windowed, &taps);
        let embeddings = s.encode(&[input]).unwrap().clip(0).to_vec();
        let tap = |s: &Session, name: &str| s.tap(name).unwrap().unwrap_or_else(|| panic!("no tap {name}")).0;
        for (name, [mel, time], want, samples) in &IMAGES {
            let values = tap(&s, name);
            sums(name, &values, *want, ENCODER_TOLERANCE);
            for ([chunk, channel, m, t], want) in samples {
                near(name, values[((chunk * mel + m) * time + t) * 16 + channel], *want, ENCODER_TOLERANCE);
            }
        }
        for (name, want, samples) in &ENCODER_STAGES {
            let values = &tap(&s, name)[..47 * 128];
            sums(name, values, *want, ENCODER_TOLERANCE);
            for &(at, want) in *samples {
                near(name, values[at], want, ENCODER_TOLERANCE);
            }
        }
        let slot = s.memory_mut().acquire().unwrap();
        let prompt = prompt(47);
        let tokens = Tokens::Mixed { ids: &prompt, embeddings: &embeddings };
        let logits = s.step(&Batch { seqs: &[Sequence { slot, tokens, rows: Rows::All }] }).unwrap();
        for (i, want) in ARGMAX.iter().enumerate() {
            assert_eq!(greedy(logits.row(0, i)), Ok(*want), "position {i} on {}", backend.name());
        }
        for (row, column, want) in [(0, 0, -16.600239), (4, 1, 1.467843), (53, 511, 2.84147)] {
            near("logits", logits.row(0, row)[column], want, LOGITS_TOLERANCE);
        }
        for (name, want, samples) in &DECODER_STAGES {
            let values = &tap(&s, name)[..54 * 64];
            sums(name, values, *want, ENCODER_TOLERANCE);
            for &(at, want) in *samples {
                near(name, values[at], want, ENCODER_TOLERANCE);
            }
        }
    }
}
