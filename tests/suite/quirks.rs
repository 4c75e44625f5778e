//! Files of LFM2, LFM2-Audio, Qwen3-Next and Qwen3.5 as other programs write them: what differs in form from ours gives the same
//! logits.

use std::sync::Arc;

use convert::FileType;
use engine::DType;
use engine::backend::Backend;
use engine::batch::{Features, Tokens};
use engine::gguf::{Gguf, Value};
use engine::session::{Session, SessionOptions};
use models::LoadOptions;
use tests::draft::{Draft, DraftTensor};
use tests::rng::Rng;
use tests::sessions::session_options;

use crate::checkpoint::{converted, fixture};

/// Normalised squared error of logits that activations of 8 bits may leave in a model of random numbers. Rounding the same
/// weights to 4 bits, which is not allowed to show here, moves the logits three times as far.
const QUANTIZED_NMSE: f64 = 3e-3;

/// A difference in form. `base` gives our file the values that the changed one has, where it cannot have ours.
struct Quirk {
    name: &'static str,
    base: fn(&mut Draft),
    edit: fn(&mut Draft),
    is_quantized: bool,
}

const fn quirk(name: &'static str, edit: fn(&mut Draft)) -> Quirk {
    Quirk { name, base: |_| (), edit, is_quantized: false }
}

/// Kernels that llama-quantize stores in F16.
const KERNELS: [&str; 2] = ["a.conv1d.", ".conv_dw"];
/// Matrices that our files have in F32.
const POINTWISE: [&str; 2] = [".conv_pw1", ".conv_pw2"];

const TEXT: [Quirk; 5] = [
    quirk("fused attn_qkv", |draft| {
        for i in (0..).take_while(|i| *i < 4) {
            if !draft.tensors.iter().any(|t| t.name == format!("blk.{i}.attn_q.weight")) {
                continue;
            }
            let mut fused = draft.take(&format!("blk.{i}.attn_q.weight"));
            for part in ["k", "v"] {
                let rows = draft.take(&format!("blk.{i}.attn_{part}.weight"));
                fused.dims[0] += rows.dims[0];
                fused.bytes.extend(rows.bytes);
            }
            fused.name = format!("blk.{i}.attn_qkv.weight");
            draft.tensors.push(fused);
        }
        assert!(draft.tensors.iter().any(|t| t.name.contains("attn_qkv")));
    }),
    quirk("the last norm called output_norm", |draft| {
        draft.tensor("token_embd_norm.weight").name = "output_norm.weight".into();
    }),
    quirk("a width that is not that of the tensors", |draft| {
        let key = draft.keys.keys().find(|key| key.ends_with(".feed_forward_length")).unwrap().clone();
        draft.keys.insert(key, Value::U32(12288));
    }),
    quirk("a head of its own", |draft| {
        let head = DraftTensor { name: "output.weight".into(), ..draft.tensor("token_embd.weight").clone() };
        draft.tensors.push(head);
    }),
    quirk("tensors in the order of their names", |draft| draft.tensors.sort_by(|a, b| a.name.cmp(&b.name))),
];

const AUDIO: [Quirk; 7] = [
    Quirk {
        name: "kernels in f16",
        base: |draft| {
            for t in draft.weights(&KERNELS) {
                t.encode(DType::F16);
                t.encode(DType::F32);
            }
        },
        edit: |draft| draft.weights(&KERNELS).into_iter().for_each(|t| t.encode(DType::F16)),
        is_quantized: false,
    },
    Quirk {
        name: "pointwise convolutions in q8_0",
        base: |draft| {
            for t in draft.weights(&POINTWISE) {
                t.encode(DType::Q8_0);
                t.encode(DType::F32);
            }
        },
        edit: |draft| draft.weights(&POINTWISE).into_iter().for_each(|t| t.encode(DType::Q8_0)),
        is_quantized: true,
    },
    Quirk {
        name: "pointwise convolutions in q4_0",
        base: |draft| {
            for t in draft.weights(&POINTWISE) {
                t.encode(DType::Q4_0);
                t.encode(DType::F32);
            }
        },
        edit: |draft| draft.weights(&POINTWISE).into_iter().for_each(|t| t.encode(DType::Q4_0)),
        is_quantized: true,
    },
    quirk("speech output", |draft| {
        let vector = DraftTensor {
            name: "a.position_embd_norm.weight".into(),
            ..draft.tensor("token_embd_norm.weight").clone()
        };
        let matrix = draft.tensor("token_embd.weight").clone();
        draft.tensors.push(vector);
        draft.tensors.push(DraftTensor { name: "a.position_embd.weight".into(), ..matrix.clone() });
        draft.tensors.push(DraftTensor { name: "a.embd_to_logits.weight".into(), ..matrix });
    }),
    quirk("the projector named for audio alone", |draft| {
        let kind = draft.keys.remove("clip.projector_type").unwrap();
        draft.keys.insert("clip.audio.projector_type".into(), kind);
    }),
    quirk("biases of one extent", |draft| {
        for i in [0, 2, 3, 5, 6] {
            let bias = draft.tensor(&format!("a.conv1d.{i}.bias"));
            assert_eq!(bias.dims, [8, 1, 1]);
            bias.dims = vec![8];
        }
    }),
    quirk("the true width of the encoder", |draft| {
        draft.keys.insert("clip.audio.feed_forward_length".into(), Value::U32(128));
    }),
];

fn logits(backend: &Arc<dyn Backend>, files: Vec<Gguf>) -> Vec<f32> {
    let loaded = models::load(files, LoadOptions::default()).unwrap();
    let has_encoder = loaded.model.encoder().is_some();
    let options = SessionOptions { n_ctx: 64, kv_dtype: DType::F32, ..session_options() };
    let mut s = Session::open(loaded.model, &loaded.weights, std::slice::from_ref(backend), options).unwrap();
    let slot = s.memory_mut().acquire().unwrap();
    let mut ids = vec![1, 6, 200, 17, 41, 300];
    let mut embeddings = Vec::new();
    if has_encoder {
        let mut rng = Rng::named("quirks");
        let mel: Vec<f32> = (0..128 * 61).map(|_| rng.uniform([-2.0, 2.0])).collect();
        embeddings = s.encode(&[Features { n_mels: 128, n_frames: 61, values: &mel }]).unwrap().clip(0).to_vec();
        ids.extend([-1; 8]);
    }
    let tokens = Tokens::Mixed { ids: &ids, embeddings: &embeddings };
    let mut all = s.feed(slot, tokens).unwrap().to_vec();
    for id in [7, 99] {
        all.extend_from_slice(s.feed(slot, Tokens::Ids(&[id])).unwrap());
    }
    assert!(all.iter().all(|x| x.is_finite()));
    all
}

fn nmse(got: &[f32], want: &[f32]) -> f64 {
    let noise: f64 = got.iter().zip(want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    noise / want.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()
}

/// Each quirk alone, and all together.
fn check(name: &str, quirks: &[&Quirk]) {
    let draft = Draft::of(&converted(&fixture("golden").join(name), FileType::F32));
    for backend in tests::sessions::backends() {
        let plain = logits(&backend, vec![draft.in_memory()]);
        for quirk in quirks {
            let (mut base, mut changed) = (draft.clone(), draft.clone());
            (quirk.base)(&mut base);
            (quirk.edit)(&mut changed);
            let want = logits(&backend, vec![base.in_memory()]);
            let got = logits(&backend, vec![changed.in_memory()]);
            let what = format!("{name}, {} on {}", quirk.name, backend.name());
            if quirk.is_quantized && backend.name() != "reference" {
                let error = nmse(&got, &want);
                assert!(error < QUANTIZED_NMSE, "{what}: {error:e}");
                // That the matrices were read at all shows in rounded weights.
                assert!(got != plain, "{what}");
            } else {
                assert!(got == want, "{what}: nmse {:e}", nmse(&got, &want));
            }
        }
    }
}

/// Takes the key that ends so away.
fn without_key(draft: &mut Draft, end: &str) {
    let key = draft.keys.keys().find(|key| key.ends_with(end)).unwrap().clone();
    draft.keys.remove(&key);
}

const DELTA_NETS: [Quirk; 3] = [
    quirk("the interval of layers with attention alone", |draft| without_key(draft, ".attention.recurrent_layers")),
    quirk("no next-token prediction", |draft| {
        // Of the one fixture that has it.
        if draft.tensors.iter().any(|t| t.name.contains(".nextn.")) {
            draft.tensors.retain(|t| !t.name.starts_with("blk.4."));
            without_key(draft, ".attention.recurrent_layers");
            without_key(draft, ".nextn_predict_layers");
            let key = draft.keys.keys().find(|key| key.ends_with(".block_count")).unwrap().clone();
            draft.keys.insert(key, Value::U32(4));
        }
    }),
    quirk("tensors in the order of their names", |draft| draft.tensors.sort_by(|a, b| a.name.cmp(&b.name))),
];

/// Of the fixture with two key heads, each with two value heads of 32 elements.
const PACKED: [Quirk; 2] = [
    quirk("queries, keys, values and gates packed by key head", |draft| {
        for i in 0..3 {
            let qkv = draft.take(&format!("blk.{i}.attn_qkv.weight"));
            let z = draft.take(&format!("blk.{i}.attn_gate.weight"));
            let head = qkv.bytes.len() / qkv.dims[0] * 32;
            let parts: Vec<&[u8]> = qkv.bytes.chunks_exact(head).collect();
            let gates: Vec<&[u8]> = z.bytes.chunks_exact(head).collect();
            assert_eq!((parts.len(), gates.len()), (2 + 2 + 4, 4));
            let of_key = |h: usize| {
                [parts[h], parts[2 + h], parts[4 + 2 * h], parts[5 + 2 * h], gates[2 * h], gates[2 * h + 1]].concat()
            };
            let dims = vec![qkv.dims[0] + z.dims[0], qkv.dims[1]];
            let bytes = [of_key(0), of_key(1)].concat();
            draft.tensors.push(DraftTensor { name: format!("blk.{i}.ssm_in.weight"), dims, bytes, ..qkv });
        }
    }),
    quirk("the gate of the shared expert as a vector", |draft| {
        for t in draft.weights(&["ffn_gate_inp_shexp"]) {
            assert_eq!(t.dims, [1, 96]);
            t.dims = vec![96];
        }
    }),
];

#[test]
fn qwen3_next_files_of_other_programs_give_the_same_logits() {
    check("qwen3_next", &DELTA_NETS.iter().chain(&PACKED).chain(&TEXT[..1]).collect::<Vec<_>>());
}

#[test]
fn qwen3_5_files_of_other_programs_give_the_same_logits() {
    let form = |name: &str| DELTA_NETS.iter().filter(|quirk| quirk.name.contains(name)).collect::<Vec<_>>();
    // Their intervals are not the usual one: they have the key for it.
    check("qwen3_5", &[form("interval"), form("order"), vec![&TEXT[0]]].concat());
    check("qwen3_5_moe", &[form("interval"), form("order"), vec![&TEXT[0]]].concat());
}

#[test]
fn lfm2_files_of_other_programs_give_the_same_logits() {
    check("lfm2", &TEXT.each_ref());
}

#[test]
fn lfm2_moe_files_of_other_programs_give_the_same_logits() {
    check("lfm2_moe", &TEXT.each_ref());
}

#[test]
fn lfm2_audio_files_of_other_programs_give_the_same_logits() {
    check("lfm2_audio", &TEXT.iter().chain(&AUDIO).collect::<Vec<_>>());
}

#[test]
fn a_pair_and_a_bundle_give_the_same_logits() {
    let folder = fixture("golden/lfm2_audio");
    for backend in tests::sessions::backends() {
        for file_type in [FileType::F32, FileType::Q8_0] {
            let pair = crate::checkpoint::convert(&folder, crate::checkpoint::pair(file_type)).unwrap();
            let mut swapped = pair.clone();
            swapped.reverse();
            let want = logits(&backend, vec![converted(&folder, file_type)]);
            assert!(logits(&backend, pair) == want && logits(&backend, swapped) == want, "{}", backend.name());
        }
    }
}
