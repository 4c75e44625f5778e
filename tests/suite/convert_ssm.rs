//! Mamba, Mamba 2, Jamba and Granite hybrid: our files against lists of what llama.cpp's converter wrote
//! (`fixtures/llama_cpp`), and what we refuse.

use convert::FileType;
use models::LoadOptions;
use serde_json::json;

use crate::checkpoint::{
    Stored, convert, copy_of, edit_config, edit_tensors, fixture, keys, pair, refused, set, spoil, tensors,
};
use crate::llama_cpp::{compare_all, decays_are_exponentials};

const NAMES: [&str; 5] = ["mamba", "mamba2", "jamba", "granitemoehybrid", "granitemoehybrid_moe"];

#[test]
fn files_are_those_of_llama_cpps_converter() {
    // Its converter of Jamba takes no byte-level tokenizer, and says so of one that it was made to take.
    let passed_over = |line: &str| line.starts_with("key tokenizer.ggml.add_space_prefix ");
    compare_all(&NAMES, [FileType::F32, FileType::BF16, FileType::Q8_0], passed_over);
}

#[test]
fn decay_rates_are_exponentials() {
    for (name, a_log) in [
        ("mamba", "backbone.layers.0.mixer.A_log"),
        ("mamba2", "backbone.layers.0.mixer.A_log"),
        ("jamba", "model.layers.0.mamba.A_log"),
        ("granitemoehybrid", "model.layers.0.mamba.A_log"),
    ] {
        decays_are_exponentials(name, a_log, true);
    }
}

/// transformers 5 calls the kinds of layers otherwise than the versions before, and published files have infinity as Python
/// writes it or as an object.
#[test]
fn configurations_of_every_version_are_read() {
    let want = tensors(&convert(&fixture("golden/granitemoehybrid"), pair(FileType::BF16)).unwrap());
    let dir = copy_of("golden/granitemoehybrid");
    edit_config(&dir, |config| {
        config["layer_types"] = json!(["linear_attention", "full_attention", "linear_attention"]);
        config["time_step_limit"] = json!([0.0, {"__float__": "Infinity"}]);
    });
    assert_eq!(tensors(&convert(dir.path(), pair(FileType::BF16)).unwrap()), want);
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace(r#"{"__float__":"Infinity"}"#, "Infinity");
    assert!(text.contains("Infinity]"), "{text}");
    std::fs::write(&path, text).unwrap();
    assert_eq!(tensors(&convert(dir.path(), pair(FileType::BF16)).unwrap()), want);

    let dir = copy_of("golden/mamba");
    edit_config(&dir, |config| config["time_step_rank"] = json!("auto"));
    assert_eq!(keys(&convert(dir.path(), pair(FileType::F32)).unwrap()[0])["mamba.ssm.time_step_rank"], 4u32.into());
}

/// Codestral's checkpoint has `model.` before every name; others store the tied head a second time.
#[test]
fn names_of_other_exports_are_read() {
    let want = convert(&fixture("golden/mamba2"), pair(FileType::BF16)).unwrap();
    let dir = copy_of("golden/mamba2");
    edit_tensors(&dir, |all| all.iter_mut().for_each(|(name, _)| *name = format!("model.{name}")));
    assert_eq!(tensors(&convert(dir.path(), pair(FileType::BF16)).unwrap()), tensors(&want));

    let dir = copy_of("golden/mamba");
    edit_tensors(&dir, |all| {
        let head = all.iter().find(|(name, _)| name == "backbone.embeddings.weight").unwrap().1.clone();
        all.push(("lm_head.weight".into(), head));
    });
    let files = convert(dir.path(), pair(FileType::F32)).unwrap();
    assert!(files[0].tensor("output.weight").is_none());
    models::load(files, LoadOptions::default()).unwrap();
}

#[test]
fn bad_checkpoints_are_named() {
    let cut = |name: &'static str| spoil(move |all| all.retain(|(found, _)| found != name));
    refused(
        "golden/mamba",
        vec![
            (cut("backbone.layers.1.mixer.A_log"), "backbone.layers.1.mixer.A_log is missing"),
            (set("/use_bias", json!(true)), "use_bias: want false, got true"),
            (set("/expand", json!(3)), "intermediate_size: want 192, by expand"),
            (set("/state_size", json!(8)), "x_proj.weight: want [20, 128], got [36, 128]"),
            (set("/conv_kernel", json!(1)), "conv_kernel: want an integer from 2 to 64, got 1"),
            (set("/hidden_act", json!("gelu")), "hidden_act: want \"silu\", got \"gelu\""),
            (set("/model_type", json!("falcon_mamba")), "falcon_mamba"),
        ],
    );
    refused(
        "golden/mamba2",
        vec![
            (set("/num_heads", json!(7)), "num_heads: 7 heads of 32: want 256 channels"),
            (set("/n_groups", json!(3)), "n_groups: want a divisor of 8 heads, got 3"),
            (set("/time_step_limit", json!([0.0, 0.1])), "time_step_limit: want [0, Infinity]"),
            (set("/time_step_limit", json!("none")), "time_step_limit: want a list of numbers"),
        ],
    );
    refused(
        "golden/jamba",
        vec![
            (set("/attn_layer_period", json!(0)), "attn_layer_period: want an integer from 1 to 1024, got 0"),
            (set("/attn_layer_offset", json!(1)), "model.layers.1.self_attn.q_proj.weight is missing"),
            (set("/num_experts_per_tok", json!(5)), "num_experts_per_tok: want an integer from 1 to 4, got 5"),
            (set("/mamba_proj_bias", json!(true)), "mamba_proj_bias: want false, got true"),
        ],
    );
    refused(
        "golden/granitemoehybrid",
        vec![
            (
                set("/layer_types", json!(["mamba", "attention"])),
                "layer_types: want 3 layers (num_hidden_layers), got 2",
            ),
            (set("/layer_types", json!(["mamba", "conv", "mamba"])), "want \"mamba\" or \"attention\", got \"conv\""),
            (set("/layer_types", json!(["attention", "attention", "attention"])), "attention alone"),
            (set("/attention_bias", json!(true)), "attention_bias: want false, got true"),
            (set("/position_embedding_type", json!("alibi")), "want \"nope\" or \"rope\", got \"alibi\""),
            (set("/logits_scaling", json!(0.0)), "logits_scaling: want a positive number"),
            (
                spoil(|all| all.push(("model.layers.0.mamba.extra".into(), Stored::bf16(&[16], |_| 1.0)))),
                "extra: not a tensor of this architecture and configuration",
            ),
        ],
    );
}
