//! Llama checkpoints to GGUF: order of rows, keys, and what is refused.

use convert::FileType;
use engine::DType;
use engine::gguf::Value;
use models::LoadOptions;
use serde_json::json;

use crate::checkpoint::{
    Stored, convert, copy_of, edit_config, edit_tensors, fixture, keys, pair, read_tensors, refused, set, spoil,
    stored, tensors, values,
};
use crate::llama_cpp::compare;

/// Rows of a head, and their number in queries, and in keys and values.
const HEAD_DIM: usize = 32;

/// Rows in the order of `LlamaModel.permute` of llama.cpp's converter: heads seen as `[n_head, 2, head_dim / 2, row]`, the
/// two axes in the middle exchanged.
fn permuted(x: &[f32], row: usize) -> Vec<f32> {
    let half = HEAD_DIM / 2;
    let n_head = x.len() / (HEAD_DIM * row);
    let mut out = Vec::new();
    for head in 0..n_head {
        for i in 0..half {
            for j in 0..2 {
                let at = ((head * 2 + j) * half + i) * row;
                out.extend_from_slice(&x[at..at + row]);
            }
        }
    }
    out
}

#[test]
fn rows_of_queries_and_keys_are_in_the_order_of_the_rotation() {
    let folder = fixture("golden/llama");
    let source = stored(&folder);
    for file_type in [FileType::F32, FileType::BF16, FileType::Q8_0] {
        let all = tensors(&convert(&folder, pair(file_type)).unwrap());
        assert_eq!(all.len(), source.len());
        for i in 0..3 {
            for (name, stored) in [("attn_q", "q_proj"), ("attn_k", "k_proj"), ("attn_v", "v_proj")] {
                let (dims, plain) = &source[&format!("model.layers.{i}.self_attn.{stored}.weight")];
                let want = if name == "attn_v" { plain.clone() } else { permuted(plain, dims[1]) };
                let (dtype, _, bytes) = &all[&format!("blk.{i}.{name}.weight")];
                let got = values(*dtype, bytes);
                let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
                // Half a step of a block with the largest of all, and what rounding the scale to f16 adds.
                let off = if *dtype == DType::Q8_0 { largest * (0.5 / 127.0 + 2f32.powi(-11)) } else { 0.0 };
                let differ = got.iter().zip(&want).position(|(a, b)| (a - b).abs() > off);
                assert!(got.len() == want.len() && differ.is_none(), "{name} {file_type:?}: element {differ:?}");
            }
        }
    }
}

/// Many rows, so that several threads take parts of one, and biases.
#[test]
fn biases_are_in_the_same_order_as_rows() {
    const N_HEAD: usize = 64;
    let dir = copy_of("golden/llama");
    edit_config(&dir, |config| {
        config["attention_bias"] = json!(true);
        config["num_attention_heads"] = json!(N_HEAD);
        config["num_key_value_heads"] = json!(N_HEAD);
        config["num_hidden_layers"] = json!(1);
    });
    let n = N_HEAD * HEAD_DIM;
    // Equal neighbours would hide a wrong order.
    let value = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as f32 % 251.0 - 125.0;
    edit_tensors(&dir, |all| {
        all.retain(|(name, _)| !name.contains("self_attn") && !name.contains("layers.1") && !name.contains("layers.2"));
        for part in ["q_proj", "k_proj", "v_proj"] {
            all.push((format!("model.layers.0.self_attn.{part}.weight"), Stored::bf16(&[n, 128], value)));
            all.push((format!("model.layers.0.self_attn.{part}.bias"), Stored::bf16(&[n], value)));
        }
        all.push(("model.layers.0.self_attn.o_proj.weight".into(), Stored::bf16(&[128, n], value)));
        all.push(("model.layers.0.self_attn.o_proj.bias".into(), Stored::bf16(&[128], value)));
    });
    let files = convert(dir.path(), pair(FileType::BF16)).unwrap();
    let all = tensors(&files);
    let got = |name: &str| values(all[name].0, &all[name].2);
    let plain = |n: usize| (0..n).map(value).collect::<Vec<_>>();
    for part in ["attn_q", "attn_k"] {
        assert_eq!(got(&format!("blk.0.{part}.bias")), permuted(&plain(n), 1));
        assert!(got(&format!("blk.0.{part}.weight")) == permuted(&plain(n * 128), 128), "{part}");
    }
    assert_eq!(got("blk.0.attn_v.bias"), plain(n));
    assert_eq!(got("blk.0.attn_output.bias"), plain(128));
    models::load(files, LoadOptions::default()).unwrap();
}

#[test]
fn files_are_those_of_llama_cpps_converter() {
    for name in ["llama", "llama3"] {
        for (file_type, label) in [(FileType::F32, "f32"), (FileType::BF16, "bf16"), (FileType::Q8_0, "q8_0")] {
            let files = convert(&fixture("golden").join(name), pair(file_type)).unwrap();
            compare(&files[0], &format!("{name}-{label}.txt"), |_| false);
        }
    }
}

/// What llama.cpp's converter writes besides the tokenizer.
#[test]
fn keys_are_those_of_llama_cpps_converter() {
    let got = |dir: &std::path::Path| keys(&convert(dir, pair(FileType::BF16)).unwrap()[0]);
    let u = Value::U32;
    let want = [
        ("llama.block_count", u(3)),
        ("llama.context_length", u(4096)),
        ("llama.embedding_length", u(128)),
        ("llama.feed_forward_length", u(192)),
        ("llama.attention.head_count", u(4)),
        ("llama.attention.head_count_kv", u(2)),
        ("llama.rope.freq_base", Value::F32(500_000.0)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.attention.key_length", u(32)),
        ("llama.attention.value_length", u(32)),
        ("llama.vocab_size", u(320)),
        ("llama.rope.dimension_count", u(32)),
    ];
    let ours = |dir: &std::path::Path| {
        let mut keys = got(dir);
        keys.retain(|key, _| key.starts_with("llama."));
        keys
    };
    assert_eq!(ours(&fixture("golden/llama")), want.clone().map(|(key, value)| (key.to_owned(), value)).into());
    // Where the configuration does not name the width of a head, neither does the file.
    let dir = copy_of("golden/llama");
    edit_config(&dir, |config| config["head_dim"] = json!(null));
    let named = |key: &str| key.ends_with("key_length") || key.ends_with("value_length");
    let want = want.into_iter().filter(|(key, _)| !named(key)).map(|(key, value)| (key.to_owned(), value)).collect();
    assert_eq!(ours(dir.path()), want);
    let files = convert(dir.path(), pair(FileType::BF16)).unwrap();
    models::load(files, LoadOptions::default()).unwrap();
}

#[test]
fn a_tied_head_is_the_embedding() {
    let dir = copy_of("golden/llama");
    edit_config(&dir, |config| config["tie_word_embeddings"] = json!(true));
    edit_tensors(&dir, |all| all.retain(|(name, _)| name != "lm_head.weight"));
    assert!(read_tensors(dir.path()).iter().all(|(name, _)| name != "lm_head.weight"));
    let files = convert(dir.path(), pair(FileType::BF16)).unwrap();
    assert!(files[0].tensor("output.weight").is_none());
    models::load(files, LoadOptions::default()).unwrap();
}

const FACTORS: [f32; 16] =
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3.292_262_8, 32.0, 32.0, 32.0, 32.0, 32.0, 32.0, 32.0];

/// The factors of Llama 3.2's scaling for heads of 32, as `generate_extra_tensors` of llama.cpp's converter computes them (torch 2.15.0).
#[test]
fn factors_of_the_frequencies_are_those_of_llama_cpps_converter() {
    let dir = copy_of("golden/llama3");
    edit_config(&dir, |config| {
        config["rope_scaling"] = json!({
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
    });
    let files = convert(dir.path(), pair(FileType::BF16)).unwrap();
    let all = tensors(&files);
    let (dtype, dims, bytes) = &all["rope_freqs.weight"];
    assert_eq!((*dtype, &dims[..]), (DType::F32, &[16][..]));
    for (i, (got, want)) in values(*dtype, bytes).iter().zip(FACTORS).enumerate() {
        // The power is of another library.
        assert!((got / want - 1.0).abs() <= 2.0 * f32::EPSILON, "{i}: want {want}, got {got}");
    }
}

#[test]
fn bad_checkpoints_are_named() {
    let cut = |name: &'static str| spoil(move |all| all.retain(|(found, _)| found != name));
    refused(
        "golden/llama",
        vec![
            (cut("model.layers.1.self_attn.k_proj.weight"), "model.layers.1.self_attn.k_proj.weight is missing"),
            (cut("lm_head.weight"), "tensor lm_head.weight is missing"),
            (set("/attention_bias", json!(true)), "tensor model.layers.0.self_attn.q_proj.bias is missing"),
            (set("/mlp_bias", json!(true)), "mlp_bias: want false, got true"),
            (set("/hidden_act", json!("gelu")), "hidden_act: want \"silu\", got \"gelu\""),
            (set("/sliding_window", json!(4096)), "sliding_window: sliding windows are not supported"),
            (
                set("/rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
                "rope_type: want \"default\" or \"llama3\"",
            ),
            (
                set("/rope_scaling", json!({"rope_type": "llama3", "factor": 4.0})),
                "rope_scaling.low_freq_factor: is missing",
            ),
            (
                set(
                    "/rope_scaling",
                    json!({
                        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 8192,
                    }),
                ),
                "rope_scaling.high_freq_factor: want more than 4, got 4",
            ),
            (set("/num_key_value_heads", json!(3)), "num_key_value_heads: want a divisor of 4 heads, got 3"),
            (set("/num_key_value_heads", json!(4)), "k_proj.weight: want [128, 128], got [64, 128]"),
            (set("/head_dim", json!(31)), "head_dim: want an even number, got 31"),
            (set("/rms_norm_eps", json!(0.0)), "rms_norm_eps: want a positive number"),
            (
                spoil(|all| all.push(("model.layers.0.self_attn.extra".into(), Stored::bf16(&[16], |_| 1.0)))),
                "extra: not a tensor of this architecture and configuration",
            ),
        ],
    );
}
