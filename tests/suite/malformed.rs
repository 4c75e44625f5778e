//! Files of language models and of LFM2-Audio that do not fit together: refused, and the key or tensor is named.

use convert::FileType;
use engine::gguf::{Gguf, Value};
use models::LoadOptions;
use tests::draft::Draft;

use crate::checkpoint::{converted, fixture};

/// A change of a file, and what the message about it contains.
type Case = (Box<dyn Fn(&mut Draft)>, String);

/// A key with a value that is wrong by itself: the message is about the key and contains `what`.
fn bad(key: &'static str, value: impl Into<Value>, what: &str) -> Case {
    unfit(key, value, &about(key, what))
}

/// A key with a value that does not fit something else, which the message names.
fn unfit(key: &'static str, value: impl Into<Value>, message: &str) -> Case {
    let value = value.into();
    let edit = move |draft: &mut Draft| {
        assert!(draft.keys.insert(key.to_owned(), value.clone()).is_some(), "{key} is no key");
    };
    (Box::new(edit), message.to_owned())
}

fn no_key(key: &'static str) -> Case {
    (Box::new(move |draft| assert!(draft.keys.remove(key).is_some(), "{key} is no key")), key.to_owned())
}

fn missing(tensor: &'static str) -> Case {
    (Box::new(move |draft| drop(draft.take(tensor))), tensor.to_owned())
}

/// Other extents of the same product.
fn reshaped(tensor: &'static str, dims: &'static [usize], what: &str) -> Case {
    (Box::new(move |draft| draft.tensor(tensor).dims = dims.to_vec()), about(tensor, what))
}

fn about(name: &str, what: &str) -> String {
    if what.is_empty() { name.to_owned() } else { format!("{name}: {what}") }
}

/// Changes one file after the other and looks for the message.
fn refused(name: &str, cases: Vec<Case>) {
    let draft = Draft::of(&converted(&fixture("golden").join(name), FileType::BF16));
    models::load(vec![draft.in_memory()], LoadOptions::default()).unwrap();
    for (edit, want) in cases {
        let mut bad = draft.clone();
        edit(&mut bad);
        let result = models::load(vec![bad.in_memory()], LoadOptions::default());
        let got = result.err().unwrap_or_else(|| panic!("{name}: no error: want {want}")).to_string();
        assert!(got.contains(&want), "{name}: {got}: want {want}");
        assert!(got.lines().count() == 1 && got.len() < 400, "{got}");
    }
}

#[test]
fn bad_lfm2_files_are_named() {
    const HEADS: &str = "lfm2.attention.head_count_kv";
    refused(
        "lfm2",
        vec![
            missing("blk.3.ffn_up.weight"),
            missing("blk.0.shortconv.conv.weight"),
            missing("blk.2.attn_k_norm.weight"),
            missing("token_embd.weight"),
            missing("token_embd_norm.weight"),
            reshaped("blk.0.shortconv.in_proj.weight", &[128, 384], "want [384, 128]"),
            reshaped("blk.1.shortconv.conv.weight", &[3, 128], "want [128, 3]"),
            reshaped("blk.2.attn_k.weight", &[128, 64], "want [64, 128], got [128, 64]"),
            reshaped("token_embd.weight", &[128, 448], "want [128, 128], got [128, 448]"),
            // A missing layer, and one that nothing speaks of.
            unfit("lfm2.block_count", 5u32, "lfm2.attention.head_count_kv: want 5 layers, got 4"),
            unfit("lfm2.block_count", 3u32, "lfm2.attention.head_count_kv: want 3 layers, got 4"),
            bad("lfm2.block_count", 0u32, "want 1 to 16777216, got 0"),
            bad("lfm2.block_count", u32::MAX, "want 1 to"),
            bad(HEADS, vec![0i32, 0, 2], "want 4 layers, got 3"),
            bad(HEADS, vec![0i32, 0, 2, 0, 0], "want 4 layers, got 5"),
            bad(HEADS, Vec::<i32>::new(), "want 4 layers, got 0"),
            bad(HEADS, vec![0i32, 0, -2, 0], ""),
            bad(HEADS, vec![0i32, 0, 3, 0], "want divisors of 4 heads, got 3"),
            bad(HEADS, vec![0i32, 0, i32::MAX, 0], ""),
            bad(HEADS, vec![0.0f32, 0.0, 2.0, 0.0], ""),
            bad(HEADS, "0,0,2,0", ""),
            no_key(HEADS),
            unfit(HEADS, vec![0i32, 0, 4, 0], "blk.2.attn_k.weight: want [128, 128], got [64, 128]"),
            unfit(HEADS, vec![2i32, 0, 2, 0], "blk.0.attn_q.weight"),
            unfit(HEADS, vec![0i32; 4], "blk.2.shortconv.in_proj.weight"),
            unfit(HEADS, 2u32, "blk.0.attn_q.weight"),
            bad("lfm2.embedding_length", 0u32, "want 1 to"),
            unfit("lfm2.embedding_length", 64u32, "token_embd.weight: want [448, 64], got [448, 128]"),
            bad("lfm2.attention.head_count", 0u32, "want 1 to"),
            bad("lfm2.attention.head_count", 3u32, "want a divisor of 128, got 3"),
            bad("lfm2.attention.head_count", 128u32, "want heads of even width, got 1"),
            bad("lfm2.feed_forward_length", 0u32, "want 1 to"),
            bad("lfm2.shortconv.l_cache", 0u32, ""),
            unfit("lfm2.shortconv.l_cache", 4u32, "blk.0.shortconv.conv.weight: want [128, 4], got [128, 3]"),
            bad("lfm2.shortconv.l_cache", u32::MAX, ""),
            bad("lfm2.attention.layer_norm_rms_epsilon", 0.0f32, "want a positive number, got 0"),
            bad("lfm2.rope.freq_base", f32::NAN, "want a positive number, got NaN"),
            unfit("general.architecture", "lfm3", "lfm3"),
        ],
    );
}

/// A tensor that nothing of the architecture reads, of the same values as another.
fn added(name: &'static str, like: &'static str, message: &str) -> Case {
    let edit = move |draft: &mut Draft| {
        let mut tensor = draft.tensor(like).clone();
        tensor.name = name.to_owned();
        draft.tensors.push(tensor);
    };
    (Box::new(edit), message.to_owned())
}

fn new_key(key: &'static str, value: impl Into<Value>, what: &str) -> Case {
    let value = value.into();
    let edit = move |draft: &mut Draft| assert!(draft.keys.insert(key.to_owned(), value.clone()).is_none(), "{key}");
    (Box::new(edit), about(key, what))
}

#[test]
fn bad_llama_files_are_named() {
    const HEADS: &str = "llama.attention.head_count_kv";
    const NORM: &str = "blk.0.attn_norm.weight";
    refused(
        "llama",
        vec![
            missing("blk.2.ffn_up.weight"),
            missing("blk.1.attn_q.weight"),
            missing("output_norm.weight"),
            missing("token_embd.weight"),
            reshaped("blk.0.attn_k.weight", &[128, 64], "want [64, 128], got [128, 64]"),
            reshaped("output.weight", &[128, 320], "want [320, 128], got [128, 320]"),
            unfit("llama.block_count", 4u32, "blk.3.attn_norm.weight"),
            bad("llama.block_count", 0u32, "want 1 to"),
            bad(HEADS, 3u32, "want a divisor of 4 heads, got 3"),
            bad(HEADS, 0u32, "want 1 to"),
            bad(HEADS, vec![2i32; 3], ""),
            no_key(HEADS),
            no_key("llama.attention.head_count"),
            bad("llama.attention.key_length", 33u32, "want heads of even width, got 33"),
            bad("llama.attention.value_length", 16u32, "want the key length 32"),
            unfit("llama.feed_forward_length", 96u32, "blk.0.ffn_gate.weight: want [96, 128], got [192, 128]"),
            bad("llama.rope.dimension_count", 34u32, "want an even number up to the key length 32, got 34"),
            bad("llama.rope.dimension_count", 31u32, "want an even number up to the key length 32, got 31"),
            bad("llama.rope.freq_base", -1.0f32, "want a positive number, got -1"),
            bad("llama.attention.layer_norm_rms_epsilon", f32::INFINITY, "want a positive number, got inf"),
            new_key("llama.attention.scale", f32::NAN, "want a positive number, got NaN"),
            new_key("llama.expert_count", 8u32, "mixtures of experts (Mixtral) are not supported"),
            new_key("llama.attention.causal", false, "models that look ahead are not supported"),
            new_key("llama.rope.scaling.type", "yarn", "want none, got \"yarn\""),
            added("blk.0.attn_q_norm.weight", NORM, "blk.0.attn_q_norm.weight: norms of queries and keys are not supp"),
            added("blk.2.ffn_up.bias", NORM, "feed-forward blocks with biases (mlp_bias) are not supported"),
            added("rope_freqs.weight", NORM, "rope_freqs.weight: want [16], got [128]"),
            added("rope_factors_long.weight", NORM, "frequencies with factors by length (LongRoPE) are not supported"),
            added("blk.1.attn_k.bias", NORM, "blk.1.attn_k.bias: want [64], got [128]"),
        ],
    );
}

#[test]
fn bad_qwen3_next_files_are_named() {
    const RECURRENT: &str = "qwen3next.attention.recurrent_layers";
    refused(
        "qwen3_next",
        vec![
            missing("blk.0.ssm_a"),
            missing("blk.1.ssm_dt.bias"),
            missing("blk.2.ssm_conv1d.weight"),
            missing("blk.3.attn_q_norm.weight"),
            missing("blk.1.post_attention_norm.weight"),
            missing("blk.0.attn_qkv.weight"),
            missing("blk.0.attn_gate.weight"),
            missing("blk.0.ffn_gate_inp_shexp.weight"),
            missing("blk.0.ffn_up_shexp.weight"),
            missing("blk.3.ffn_down_exps.weight"),
            missing("output_norm.weight"),
            // Then there are strengths and steps apart.
            (Box::new(|draft| drop(draft.take("blk.0.ssm_ba.weight"))), "blk.0.ssm_alpha.weight".into()),
            reshaped("blk.0.ssm_ba.weight", &[96, 8], "want [8, 96], got [96, 8]"),
            reshaped("blk.0.attn_qkv.weight", &[96, 256], "want [256, 96], got [96, 256]"),
            reshaped("blk.1.ssm_conv1d.weight", &[4, 256], "want [256, 4], got [4, 256]"),
            reshaped("blk.2.ssm_norm.weight", &[4, 8], "want [32], got [4, 8]"),
            reshaped("blk.3.attn_q.weight", &[96, 256], "want [256, 96], got [96, 256]"),
            reshaped("blk.0.ffn_gate_inp_shexp.weight", &[2, 48], "want [1, 96], got [2, 48]"),
            bad("qwen3next.block_count", 0u32, "want 1 to"),
            unfit("qwen3next.block_count", 6u32, "recurrent_layers: want 6 layers, got 5"),
            bad("qwen3next.nextn_predict_layers", 5u32, "want less than 5 blocks, got 5"),
            bad("qwen3next.nextn_predict_layers", u32::MAX, "want at most"),
            bad(RECURRENT, vec![true, true, true, false], "want 5 layers, got 4"),
            bad(RECURRENT, vec![1i32, 1, 1, 0, 0], "want array of bool, got array of 5 i32"),
            bad(RECURRENT, true, "want array of bool, got bool"),
            unfit(RECURRENT, vec![true; 5], "blk.3.attn_qkv.weight"),
            unfit(RECURRENT, vec![false; 5], "blk.0.attn_qkv.weight: want [384, 96], got [256, 96]"),
            bad("qwen3next.full_attention_interval", 0u32, "want 1 to"),
            bad("qwen3next.ssm.conv_kernel", 1u32, "want 2 to 64, got 1"),
            unfit("qwen3next.ssm.conv_kernel", 3u32, "blk.0.ssm_conv1d.weight: want [256, 3], got [256, 4]"),
            unfit("qwen3next.ssm.group_count", 3u32, "time_step_rank: want a multiple of 3 key heads, got 4"),
            bad("qwen3next.ssm.group_count", 0u32, "want 1 to"),
            bad("qwen3next.ssm.time_step_rank", 3u32, "want a multiple of 2 key heads, got 3"),
            unfit("qwen3next.ssm.time_step_rank", 8u32, "inner_size: want 8 heads as wide as keys, 32, got 128 in all"),
            unfit("qwen3next.ssm.state_size", 16u32, "inner_size: want 4 heads as wide as keys, 16, got 128 in all"),
            bad("qwen3next.ssm.inner_size", 1u32 << 24, "want 4 heads as wide as keys, 32, got 16777216 in all"),
            no_key("qwen3next.ssm.inner_size"),
            bad("qwen3next.attention.head_count_kv", 3u32, "want a divisor of 4 heads, got 3"),
            bad("qwen3next.attention.head_count_kv", vec![0i32, 0, 0, 2, 2], ""),
            unfit("qwen3next.attention.value_length", 16u32, "want the key length 32"),
            bad("qwen3next.rope.dimension_count", 34u32, "want an even number up to the key length 32, got 34"),
            bad("qwen3next.rope.dimension_count", 7u32, "want an even number up to the key length 32, got 7"),
            bad("qwen3next.rope.freq_base", f32::NAN, "want a positive number, got NaN"),
            new_key("qwen3next.rope.scaling.type", "yarn", "want none, got \"yarn\""),
            bad("qwen3next.expert_count", 0u32, "want 1 to"),
            unfit("qwen3next.expert_count", 9u32, "blk.0.ffn_gate_inp.weight: want [9, 96], got [8, 96]"),
            bad("qwen3next.expert_used_count", 9u32, "want at most 8 experts, got 9"),
            new_key("qwen3next.expert_gating_func", 2u32, "want 1 (softmax), got 2"),
            unfit(
                "qwen3next.expert_shared_feed_forward_length",
                32u32,
                "blk.0.ffn_gate_shexp.weight: want [32, 96], got [48, 96]",
            ),
            no_key("qwen3next.expert_count"),
            unfit("general.architecture", "qwen4exp", "qwen4exp"),
        ],
    );
}

#[test]
fn bad_qwen3_5_files_are_named() {
    refused(
        "qwen3_5",
        vec![
            missing("blk.0.ssm_alpha.weight"),
            missing("blk.2.ssm_beta.weight"),
            missing("blk.3.ffn_gate.weight"),
            reshaped("blk.0.ssm_beta.weight", &[128, 6], "want [6, 128], got [128, 6]"),
            bad("qwen35.feed_forward_length", 0u32, "want 1 to"),
            unfit("qwen35.feed_forward_length", 96u32, "blk.0.ffn_gate.weight: want [96, 128], got [160, 128]"),
            no_key("qwen35.feed_forward_length"),
            unfit("general.architecture", "qwen35moe", "qwen35moe.embedding_length"),
        ],
    );
    refused(
        "qwen3_5_moe",
        vec![
            missing("blk.2.ffn_gate_exps.weight"),
            reshaped("blk.0.ffn_up_exps.weight", &[6, 96, 48], "want [6, 48, 96], got [6, 96, 48]"),
            unfit(
                "qwen35moe.expert_feed_forward_length",
                64u32,
                "blk.0.ffn_gate_exps.weight: want [6, 64, 96], got [6, 48, 96]",
            ),
        ],
    );
}

#[test]
fn bad_state_space_files_are_named() {
    refused(
        "mamba",
        vec![
            missing("blk.1.ssm_a"),
            missing("blk.2.ssm_dt.bias"),
            reshaped("blk.0.ssm_a", &[16, 128], "want [128, 16], got [16, 128]"),
            reshaped("blk.0.ssm_conv1d.weight", &[4, 128], "want [128, 4], got [4, 128]"),
            bad("mamba.ssm.conv_kernel", 1u32, "want 2 to 64, got 1"),
            bad("mamba.ssm.inner_size", 0u32, "want 1 to"),
            unfit("mamba.ssm.inner_size", 127u32, "blk.0.ssm_in.weight: want [254, 64], got [256, 64]"),
            unfit("mamba.ssm.state_size", 8u32, "blk.0.ssm_x.weight: want [20, 128], got [36, 128]"),
            unfit("mamba.ssm.time_step_rank", 5u32, "blk.0.ssm_x.weight: want [37, 128], got [36, 128]"),
            no_key("mamba.ssm.state_size"),
            unfit("mamba.block_count", 4u32, "blk.3.attn_norm.weight"),
            bad("mamba.ssm.dt_b_c_rms", true, "norms of step sizes, B and C (Falcon Mamba) are not supported"),
            added("blk.0.ssm_dt_norm.weight", "blk.0.attn_norm.weight", "blk.0.ssm_dt_norm.weight: want [4], got [64]"),
        ],
    );
    refused(
        "mamba2",
        vec![
            missing("blk.0.ssm_in.weight"),
            reshaped("blk.0.ssm_norm.weight", &[256], "want [2, 128], got [256]"),
            bad("mamba2.ssm.time_step_rank", 7u32, "want a divisor of 256 channels, got 7"),
            bad("mamba2.ssm.group_count", 3u32, "want a divisor of 8 heads, got 3"),
            unfit("mamba2.ssm.group_count", 4u32, "blk.0.ssm_in.weight: want [776, 128], got [648, 128]"),
            bad("mamba2.attention.layer_norm_rms_epsilon", 0.0f32, "want a positive number, got 0"),
        ],
    );
    refused(
        "jamba",
        vec![
            missing("blk.2.attn_v.weight"),
            missing("blk.0.ssm_b_norm.weight"),
            missing("blk.1.ffn_up_exps.weight"),
            bad("jamba.attention.head_count_kv", vec![0i32, 0, 2, 0], "want divisors of 3 heads, got 2"),
            unfit("jamba.attention.head_count_kv", vec![0i32, 1, 1, 0], "blk.1.attn_q.weight"),
            bad("jamba.expert_used_count", 5u32, "want at most 4 experts, got 5"),
            bad("jamba.expert_count", 0u32, "want 1 to"),
        ],
    );
    refused(
        "granitemoehybrid_moe",
        vec![
            missing("blk.0.ffn_up_shexp.weight"),
            missing("blk.0.ssm_d"),
            bad("granitehybrid.attention.head_count_kv", vec![0i32, 1], "want 3 layers, got 2"),
            bad("granitehybrid.logit_scale", f32::NAN, "want a positive number, got NaN"),
            bad("granitehybrid.residual_scale", -1.0f32, "want a positive number, got -1"),
            unfit(
                "granitehybrid.expert_shared_feed_forward_length",
                48u32,
                "blk.0.ffn_gate_shexp.weight: want [48, 96], got [96, 96]",
            ),
        ],
    );
}

#[test]
fn bad_lfm2_moe_files_are_named() {
    refused(
        "lfm2_moe",
        vec![
            missing("blk.1.ffn_down_exps.weight"),
            missing("blk.2.ffn_gate_inp.weight"),
            missing("blk.0.ffn_gate.weight"),
            reshaped("blk.1.ffn_up_exps.weight", &[6, 128, 48], "want [6, 48, 128], got [6, 128, 48]"),
            reshaped("blk.1.exp_probs_b.bias", &[2, 3], "want [6], got [2, 3]"),
            bad("lfm2moe.expert_count", 0u32, "want 1 to"),
            unfit("lfm2moe.expert_count", 7u32, "blk.1.ffn_gate_inp.weight: want [7, 128], got [6, 128]"),
            bad("lfm2moe.expert_used_count", 0u32, "want 1 to"),
            bad("lfm2moe.expert_used_count", 7u32, "want at most 6 experts, got 7"),
            bad("lfm2moe.expert_feed_forward_length", 0u32, "want 1 to"),
            unfit(
                "lfm2moe.expert_feed_forward_length",
                64u32,
                "blk.1.ffn_gate_exps.weight: want [6, 64, 128], got [6, 48, 128]",
            ),
            bad("lfm2moe.expert_gating_func", 1u32, "want 2 (sigmoid), got 1"),
            bad("lfm2moe.leading_dense_block_count", 4u32, "want at most 3"),
            unfit("lfm2moe.leading_dense_block_count", 0u32, "blk.0.ffn_gate_inp.weight"),
            bad("lfm2moe.attention.head_count_kv", vec![0i32, 1], "want 3 layers, got 2"),
            no_key("lfm2moe.expert_count"),
        ],
    );
}

#[test]
fn bad_lfm2_audio_files_are_named() {
    refused(
        "lfm2_audio",
        vec![
            missing("a.blk.1.conv_dw.weight"),
            missing("a.blk.0.pos_bias_u"),
            missing("a.blk.1.conv_norm.bias"),
            missing("a.conv1d.5.bias"),
            missing("a.conv1d.0.weight"),
            missing("mm.a.mlp.3.bias"),
            missing("blk.1.attn_v.weight"),
            reshaped("a.blk.0.conv_pw1.weight", &[64, 128], "want [128, 64], got [64, 128]"),
            reshaped("a.blk.0.pos_bias_v", &[32, 2], "want [2, 32], got [32, 2]"),
            reshaped("a.conv1d.2.weight", &[8, 9, 1, 1], "want [8, 1, 3, 3]"),
            reshaped("a.pre_encode.out.weight", &[128, 64], "want [64, 128], got [128, 64]"),
            bad("clip.audio.block_count", 0u32, "want 1 to"),
            unfit("clip.audio.block_count", 3u32, "a.blk.2."),
            bad("clip.audio.embedding_length", 0u32, "want 1 to"),
            bad("clip.audio.attention.head_count", 0u32, "want 1 to"),
            bad("clip.audio.attention.head_count", 3u32, "want a divisor of the even width 64"),
            unfit("clip.audio.attention.head_count", 4u32, "a.blk.0.pos_bias_u: want [4, 16], got [2, 32]"),
            bad("clip.audio.num_mel_bins", 0u32, "want 1 to"),
            bad("clip.audio.num_mel_bins", 100u32, "want a multiple of 8, got 100"),
            unfit("clip.audio.num_mel_bins", 80u32, "a.pre_encode.out.weight: want [64, 80], got [64, 128]"),
            bad("clip.audio.projection_dim", 32u32, "want the text model's width 64, got 32"),
            bad("clip.audio.attention.layer_norm_epsilon", -1.0f32, ""),
            unfit("clip.projector_type", "lfm2v", "projector lfm2v"),
        ],
    );
}

/// A writer of ours refuses such tensors: the extent is changed in the bytes.
#[test]
fn an_extent_of_zero_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let draft = Draft::of(&converted(&fixture("golden/lfm2"), FileType::BF16));
    for tensor in ["token_embd_norm.weight", "blk.0.shortconv.in_proj.weight"] {
        draft.write(&path);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(tensor.len()).position(|w| w == tensor.as_bytes()).unwrap() + tensor.len();
        // Behind the name: the number of extents in 4 bytes, then the innermost in 8.
        bytes[at + 4..at + 12].fill(0);
        std::fs::write(&path, bytes).unwrap();
        let got = Gguf::open(&path).unwrap_err().to_string();
        assert!(got.contains(tensor) && got.contains("model.gguf"), "{got}");
    }
}
