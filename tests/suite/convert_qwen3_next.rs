//! Qwen3-Next and Qwen3.5: our files against lists of what llama.cpp's converter wrote (`fixtures/llama_cpp`), and what we
//! refuse.

use convert::{Conversion, FileType, to_memory};
use engine::DType;
use models::LoadOptions;
use serde_json::{Value as Json, json};

use crate::checkpoint::{
    Edit, Stored, convert, copy_of, edit_config, edit_tensors, fixture, keys, named, pair, refused, set, spoil, tensors,
};
use crate::llama_cpp::{compare, compare_all, decays_are_exponentials};

const NAMES: [&str; 3] = ["qwen3_next", "qwen3_5", "qwen3_5_moe"];

#[test]
fn files_are_those_of_llama_cpps_converter() {
    compare_all(&NAMES, [FileType::F32, FileType::BF16, FileType::Q8_0], |_| false);
}

/// Projections of delta nets count as values of attention, as in llama-quantize.
#[test]
fn mixes_are_those_of_llama_quantize() {
    for name in NAMES {
        let files = convert(&fixture("golden").join(name), pair(FileType::Q4_K_M)).unwrap();
        // It leaves an outer extent of 1 out.
        compare(&files[0], &format!("{name}-q4_k_m.txt"), |line| line.contains("ffn_gate_inp_shexp"));
    }
}

#[test]
fn without_next_token_prediction_there_is_no_block_for_it() {
    let dir = copy_of("golden/qwen3_next");
    edit_tensors(&dir, |all| all.retain(|(name, _)| !name.starts_with("mtp.")));
    let files = convert(dir.path(), pair(FileType::F32)).unwrap();
    // Names are those of the folder.
    compare(&files[0], "qwen3_next-without-mtp-f32.txt", |line| line.starts_with("key general."));
}

#[test]
fn decay_rates_are_exponentials() {
    for (name, prefix) in [("qwen3_next", "model."), ("qwen3_5", "model.language_model.")] {
        // Qwen3.5's heads are in another order.
        decays_are_exponentials(name, &format!("{prefix}layers.0.linear_attn.A_log"), name == "qwen3_next");
    }
}

#[test]
fn the_text_of_a_model_may_stand_alone() {
    for (name, kind) in [("qwen3_5", "qwen3_5_text"), ("qwen3_5_moe", "qwen3_5_moe_text")] {
        let dir = copy_of(&format!("golden/{name}"));
        edit_config(&dir, |config| {
            let tied = config["tie_word_embeddings"].clone();
            *config = config["text_config"].take();
            config["model_type"] = json!(kind);
            config["tie_word_embeddings"] = tied;
        });
        edit_tensors(&dir, |all| {
            all.iter_mut().for_each(|(name, _)| *name = name.replace("model.language_model.", "model."));
        });
        let want = convert(&fixture("golden").join(name), pair(FileType::BF16)).unwrap();
        let files = convert(dir.path(), pair(FileType::BF16)).unwrap();
        assert_eq!(tensors(&files), tensors(&want));
    }
}

#[test]
fn older_configurations_have_only_the_interval_of_layers_with_attention() {
    for interval in [json!(2), json!(null)] {
        let dir = copy_of("golden/qwen3_5");
        edit_config(&dir, |config| {
            config["text_config"]["layer_types"] = json!(null);
            config["text_config"]["full_attention_interval"] = interval.clone();
        });
        let converted = convert(dir.path(), pair(FileType::BF16));
        if interval.is_null() {
            // Every fourth layer, and the fixture has attention in its second.
            let message = converted.unwrap_err().to_string();
            assert!(message.contains("layers.1.linear_attn.in_proj_qkv.weight is missing"), "{message}");
        } else {
            let want = convert(&fixture("golden/qwen3_5"), pair(FileType::BF16)).unwrap();
            assert_eq!(tensors(&converted.unwrap()), tensors(&want));
        }
    }
}

#[test]
fn a_vision_tower_is_left_out_and_said() {
    let dir = copy_of("golden/qwen3_5");
    edit_tensors(&dir, |all| all.push(("model.visual.patch_embed.proj.weight".into(), Stored::bf16(&[8, 4], |_| 1.0))));
    let conversion = Conversion::open(dir.path(), |_| pair(FileType::BF16)).unwrap();
    assert_eq!(conversion.notices(), ["the vision tower is left out: images are not supported, the text model is"]);
    let want = convert(&fixture("golden/qwen3_5"), pair(FileType::BF16)).unwrap();
    assert_eq!(tensors(&convert(dir.path(), pair(FileType::BF16)).unwrap()), tensors(&want));
}

/// Stacked and separate experts are the same experts.
#[test]
fn experts_may_be_stored_either_way() {
    let folder = fixture("golden/qwen3_5_moe");
    let dir = copy_of("golden/qwen3_5_moe");
    edit_tensors(&dir, |all| {
        let stacks: Vec<_> = all.iter().filter(|(name, _)| name.contains(".experts.")).cloned().collect();
        all.retain(|(name, _)| !name.contains(".experts."));
        for (name, stack) in stacks {
            let (prefix, kind) = name.rsplit_once('.').unwrap();
            let [n, rows, columns] = stack.dims[..] else { panic!("want a stack") };
            let parts: &[&str] = if kind == "down_proj" { &["down_proj"] } else { &["gate_proj", "up_proj"] };
            let rows = rows / parts.len();
            let pieces = stack.bytes.chunks_exact(rows * columns * 2);
            assert_eq!(pieces.len(), n * parts.len());
            for (i, bytes) in pieces.enumerate() {
                let part = Stored { dims: vec![rows, columns], bytes: bytes.to_vec(), ..stack.clone() };
                all.push((format!("{prefix}.{}.{}.weight", i / parts.len(), parts[i % parts.len()]), part));
            }
        }
    });
    let want = convert(&folder, pair(FileType::BF16)).unwrap();
    assert_eq!(tensors(&convert(dir.path(), pair(FileType::BF16)).unwrap()), tensors(&want));
}

#[test]
fn files_from_memory_are_those_on_the_disk() {
    for name in NAMES {
        let folder = fixture("golden").join(name);
        let file = convert(&folder, pair(FileType::BF16)).unwrap();
        let memory = [to_memory(&folder).unwrap()];
        assert_eq!((tensors(&memory), keys(&memory[0])), (tensors(&file), keys(&file[0])));
        models::load(memory.into(), LoadOptions::default()).unwrap();
    }
}

#[test]
fn small_matrices_of_quantized_files_keep_what_llama_quantize_keeps() {
    let files = convert(&fixture("golden/qwen3_5_moe"), pair(FileType::Q4_0)).unwrap();
    for (name, want) in [
        ("blk.0.attn_qkv.weight", DType::Q4_0),
        ("blk.0.ssm_beta.weight", DType::Q4_0),
        ("blk.0.ssm_conv1d.weight", DType::F32),
        ("blk.0.ffn_gate_inp.weight", DType::F32),
        ("blk.0.ffn_gate_inp_shexp.weight", DType::F32),
        ("blk.2.attn_q.weight", DType::Q4_0),
    ] {
        assert_eq!(files[0].tensor(name).unwrap().dtype, want, "{name}");
    }
}

/// Takes the tensors away whose names contain `part`.
fn without(part: &'static str) -> Edit {
    spoil(move |all| all.retain(|(name, _)| !name.contains(part)))
}

fn text(key: &str, value: Json) -> Edit {
    let key = key.to_owned();
    Box::new(move |dir| edit_config(dir, |config| config["text_config"][&key] = value.clone()))
}

#[test]
fn bad_checkpoints_are_named() {
    refused(
        "golden/qwen3_next",
        vec![
            (
                set("/model_type", json!("qwen4_exp")),
                "model_type: \"qwen4_exp\" is not supported: it adds an attention indexer",
            ),
            (set("/model_type", json!("qwen3_nextgen")), "\"qwen3_nextgen\" is not supported (supported: "),
            (set("/norm_topk_prob", json!(false)), "norm_topk_prob: want true, got false"),
            (set("/mlp_only_layers", json!([1])), "mlp_only_layers: want [], got [1]"),
            (set("/decoder_sparse_step", json!(2)), "decoder_sparse_step: want 1, got 2"),
            (
                set("/linear_value_head_dim", json!(64)),
                "linear_value_head_dim: want the width of keys, 32, got 64: GGUF has one width",
            ),
            (set("/attention_bias", json!(true)), "attention_bias: want false, got true"),
            (
                spoil(|all| all.push(("model.layers.3.self_attn.q_proj.bias".into(), Stored::bf16(&[256], |_| 0.0)))),
                "model.layers.3.self_attn.q_proj.bias: not a tensor of this architecture and configuration",
            ),
            (set("/linear_num_value_heads", json!(5)), "linear_num_value_heads: want a multiple of 2 key heads, got 5"),
            (set("/linear_num_key_heads", json!(0)), "linear_num_key_heads: want an integer from 1 to 4096, got 0"),
            (set("/linear_conv_kernel_dim", json!(1)), "linear_conv_kernel_dim: want an integer from 2 to 64, got 1"),
            (set("/num_experts_per_tok", json!(9)), "num_experts_per_tok: want an integer from 1 to 8, got 9"),
            (set("/num_experts", json!(9)), "layers.0.mlp.gate.weight: want [9, 96], got [8, 96]"),
            (
                set("/partial_rotary_factor", json!(0.1)),
                "partial_rotary_factor: 0.1 of 32 rotates 3 elements of a head",
            ),
            (
                set("/partial_rotary_factor", json!(1e300)),
                "partial_rotary_factor: want a number from 0 to 1, got 1e300",
            ),
            (set("/partial_rotary_factor", json!(0)), "partial_rotary_factor: 0 of 32 rotates 0 elements of a head"),
            (
                set("/rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
                "rope_type: want \"default\", got \"yarn\"",
            ),
            (set("/full_attention_interval", json!(0)), "full_attention_interval: want an integer from 1"),
            (set("/full_attention_interval", json!(2)), "tensor model.layers.1.self_attn.q_proj.weight is missing"),
            (set("/layer_types", json!(["linear_attention"])), "layer_types: want 4 layers (num_hidden_layers), got 1"),
            (
                set("/layer_types", json!(["mamba", "mamba", "mamba", "full_attention"])),
                "layer_types: want \"linear_attention\" or \"full_attention\", got \"mamba\"",
            ),
            (set("/hidden_act", json!("gelu")), "hidden_act: want \"silu\", got \"gelu\""),
            (set("/shared_expert_intermediate_size", json!(null)), "shared_expert_intermediate_size: is missing"),
            (
                without("layers.1.mlp.experts.5.up_proj"),
                "tensor model.layers.1.mlp.experts.5.up_proj.weight is missing",
            ),
            (without("layers.2.linear_attn.dt_bias"), "tensor model.layers.2.linear_attn.dt_bias is missing"),
            (without("mtp.fc"), "tensor mtp.fc.weight is missing"),
            (without("mtp.layers.0"), "tensor mtp.layers.0.input_layernorm.weight is missing"),
            (
                spoil(|all| all.push(("mtp.embed.weight".into(), Stored::bf16(&[4], |_| 0.0)))),
                "mtp.embed.weight: not a tensor of this architecture and configuration",
            ),
            (
                spoil(|all| named(all, "model.layers.1.linear_attn.in_proj_qkvz.weight").1.bytes[2..4].fill(0xff)),
                "model.layers.1.linear_attn.in_proj_qkvz.weight: element 1 is NaN",
            ),
            (
                spoil(|all| {
                    let a = &mut named(all, "model.layers.1.linear_attn.A_log").1;
                    *a = Stored::bf16(&[4], |i| if i == 2 { 100.0 } else { 0.0 });
                }),
                "model.layers.1.linear_attn.A_log: element 2 is -inf",
            ),
        ],
    );
    refused(
        "golden/qwen3_5",
        vec![
            (text("attn_output_gate", json!(false)), "text_config.attn_output_gate: want true, got false"),
            (text("linear_num_value_heads", json!(3)), "linear_num_value_heads: want a multiple of 2 key heads, got 3"),
            (text("intermediate_size", json!(null)), "text_config.intermediate_size: is missing"),
            (
                text("rope_parameters", json!({"rope_type": "default", "rope_theta": 1e7, "mrope_section": [2, 2, 1]})),
                "mrope_section: want at most 4 numbers that add up to 4, got [2, 2, 1]",
            ),
            (without("layers.0.linear_attn.in_proj_z"), "layers.0.linear_attn.in_proj_z.weight is missing"),
        ],
    );
    refused(
        "golden/qwen3_5_moe",
        vec![(
            spoil(|all| named(all, "model.language_model.layers.0.mlp.experts.gate_up_proj").1.dims = vec![6, 48, 192]),
            "mlp.experts.gate_up_proj: want [6, 96, 96], got [6, 48, 192]",
        )],
    );
}
