//! LFM2, LFM2-MoE and LFM2-Audio: our files against lists of what llama.cpp's converter wrote (`fixtures/llama_cpp`), and
//! what that converter does not do.

use convert::{FileType, to_memory};
use engine::DType;
use models::LoadOptions;
use safetensors::Dtype;
use serde_json::json;

use crate::checkpoint::{
    Edit, Stored, bundle, convert, copy_of, edit_config, edit_tensors, fixture, keys, named, pair, refused, set, spoil,
    stored, tensors, values,
};
use crate::llama_cpp::{compare, compare_all};

/// Names of the audio embedding in a projector's file, with a width of 64.
const POSITIONS: &str = "a.position_embd.weight";

#[test]
fn text_models_are_those_of_llama_cpps_converter() {
    let types = [FileType::BF16, FileType::F16, FileType::Q8_0];
    compare_all(&["lfm2", "lfm2_moe", "lfm2_audio"], types, |_| false);
    let files = convert(&fixture("models/tiny-lfm2-audio"), pair(FileType::Q8_0)).unwrap();
    compare(&files[0], "tiny-lfm2-audio-q8_0.txt", |_| false);
}

#[test]
fn projectors_are_those_of_llama_cpps_converter_and_have_zeros_for_the_audio_embedding() {
    // The zeros count as parameters; keys of our own are passed over by llama.cpp.
    let passed_over =
        |line: &str| line.contains(POSITIONS) || line.contains("general.size_label") || line.starts_with("key tympan.");
    for file_type in [FileType::BF16, FileType::F16, FileType::Q8_0] {
        let files = convert(&fixture("golden/lfm2_audio"), pair(file_type)).unwrap();
        let theirs = format!("mmproj-lfm2_audio-{}.txt", file_type.dtype().name().to_lowercase());
        compare(&files[1], &theirs, passed_over);
        let zeros = files[1].tensor(POSITIONS).unwrap();
        assert_eq!((zeros.dtype, zeros.shape.dims()), (DType::F32, &[6000, 64][..]));
        assert!(zeros.bytes.iter().all(|&b| b == 0));
    }
    let files = convert(&fixture("models/tiny-lfm2-audio"), pair(FileType::Q8_0)).unwrap();
    compare(&files[1], "mmproj-tiny-lfm2-audio-q8_0.txt", passed_over);
}

#[test]
fn batch_norms_are_folded() {
    let folder = fixture("golden/lfm2_audio");
    let source = stored(&folder);
    let files = convert(&folder, pair(FileType::Q8_0)).unwrap();
    for i in 0..2 {
        let part = |part: &str| &source[&format!("conformer.layers.{i}.conv.batch_norm.{part}")].1;
        let ours = |part: &str| {
            let t = files[1].tensor(&format!("a.blk.{i}.conv_norm.{part}")).unwrap();
            values(t.dtype, t.bytes)
        };
        let (scale, shift) = (ours("weight"), ours("bias"));
        assert_eq!(scale.len(), 64);
        for c in 0..64 {
            let [weight, bias, mean, var] =
                ["weight", "bias", "running_mean", "running_var"].map(|name| f64::from(part(name)[c]));
            let want = weight / (var + 1e-5).sqrt();
            // Sum, root and quotient are rounded, then product and difference.
            assert!((f64::from(scale[c]) / want - 1.0).abs() < 2e-7, "{i} {c}");
            let room = 3e-7 * (bias.abs() + (mean * want).abs());
            assert!((f64::from(shift[c]) - (bias - mean * want)).abs() <= room, "{i} {c}");
        }
    }
}

#[test]
fn every_type_holds_the_same_values() {
    for name in ["lfm2", "lfm2_moe", "lfm2_audio"] {
        let folder = fixture("golden").join(name);
        let exact = tensors(&convert(&folder, pair(FileType::F32)).unwrap());
        assert!(exact.values().all(|(dtype, _, _)| *dtype == DType::F32));
        for file_type in [FileType::F32, FileType::F16, FileType::BF16, FileType::Q8_0, FileType::Q4_0] {
            let files = convert(&folder, pair(file_type)).unwrap();
            let all = tensors(&files);
            assert_eq!(all.len(), exact.len());
            for (name, (dtype, dims, bytes)) in all {
                let (_, want_dims, want) = &exact[&name];
                assert_eq!(&dims, want_dims, "{name}");
                let want = values(DType::F32, want);
                for (got, want) in values(dtype, &bytes).chunks(32).zip(want.chunks(32)) {
                    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
                    // Half a step of the format, and what rounding its scale to f16 adds.
                    let off = match dtype {
                        DType::Q8_0 => largest / 127.0 * 0.5 + largest * 2f32.powi(-11),
                        DType::Q4_0 => largest / 8.0 + largest * 2f32.powi(-11),
                        DType::F16 | DType::BF16 => largest * 2f32.powi(-8),
                        _ => 0.0,
                    };
                    let is_near = got.iter().zip(want).all(|(a, b)| (a - b).abs() <= off);
                    assert!(is_near, "{name} {file_type:?}: {got:?} for {want:?}");
                }
            }
            models::load(files, LoadOptions::default()).unwrap();
        }
    }
}

#[test]
fn q4_0_keeps_the_tied_head_at_8_bits_and_kernels_and_routers_whole() {
    let files = convert(&fixture("golden/lfm2_moe"), pair(FileType::Q4_0)).unwrap();
    for (name, want) in [
        ("token_embd.weight", DType::Q8_0),
        ("blk.0.shortconv.in_proj.weight", DType::Q4_0),
        ("blk.0.shortconv.conv.weight", DType::F32),
        ("blk.1.attn_v.weight", DType::Q4_0),
        ("blk.1.ffn_gate_inp.weight", DType::F32),
        ("blk.1.ffn_gate_exps.weight", DType::Q4_0),
        // 48 elements are no whole blocks.
        ("blk.1.ffn_down_exps.weight", DType::F16),
    ] {
        assert_eq!(files[0].tensor(name).unwrap().dtype, want, "{name}");
    }
}

#[test]
fn experts_are_stacked_in_order() {
    let folder = fixture("golden/lfm2_moe");
    let source = stored(&folder);
    let files = convert(&folder, pair(FileType::F32)).unwrap();
    for (name, part) in [("gate", "w1"), ("up", "w3"), ("down", "w2")] {
        let stack = files[0].tensor(&format!("blk.2.ffn_{name}_exps.weight")).unwrap();
        let want: Vec<f32> = (0..6)
            .flat_map(|e| source[&format!("model.layers.2.feed_forward.experts.{e}.{part}.weight")].1.clone())
            .collect();
        assert_eq!(values(stack.dtype, stack.bytes), want, "{name}");
    }
}

/// Adds what the published checkpoint has for speech output, in other sizes.
fn with_speech_output(name: &str) -> tempfile::TempDir {
    let dir = copy_of(name);
    edit_tensors(&dir, |all| {
        let mut add = |name: &str, dims: &[usize]| {
            let mut salt = name.len() as f32;
            let tensor = Stored::bf16(dims, |_| {
                salt = (salt * 1.7 + 0.3) % 2.0;
                salt - 1.0
            });
            all.push((name.to_owned(), tensor));
        };
        add("audio_embedding.embedding.weight", &[40, 64]);
        add("audio_embedding.embedding_norm.weight", &[64]);
        add("audio_embedding.to_logits.weight", &[40, 64]);
        add("audio_loss_weights", &[8]);
        add("depth_linear.weight", &[128, 64]);
        add("depth_linear.bias", &[128]);
        add("depth_embeddings.7.to_logits.weight", &[5, 16]);
        add("depthformer.layers.0.operator.bounded_attention.q_layernorm.weight", &[8]);
        all.push(("codebook_offsets".to_owned(), Stored { dtype: Dtype::I64, dims: vec![2], bytes: vec![0; 16] }));
    });
    dir
}

#[test]
fn speech_output_is_carried_where_llama_cpp_carries_it() {
    let dir = with_speech_output("golden/lfm2_audio");
    let source = stored(dir.path());
    let plain = tensors(&convert(&fixture("golden/lfm2_audio"), pair(FileType::Q8_0)).unwrap());
    let mut files = tensors(&convert(dir.path(), pair(FileType::Q8_0)).unwrap());
    for (name, stored, want) in [
        (POSITIONS, "embedding", DType::F32),
        ("a.position_embd_norm.weight", "embedding_norm", DType::F32),
        ("a.embd_to_logits.weight", "to_logits", DType::Q8_0),
    ] {
        let (dtype, dims, bytes) = files.remove(name).unwrap();
        let (source_dims, values_of) = &source[&format!("audio_embedding.{stored}.weight")];
        assert_eq!(dtype, want);
        assert!(dims.iter().map(|&d| d as usize).eq(source_dims.iter().copied()));
        if dtype == DType::F32 {
            assert_eq!(&values(dtype, &bytes), values_of);
        }
    }
    files.insert(POSITIONS.to_owned(), plain[POSITIONS].clone());
    assert_eq!(files, plain);
    // A bundle has none of it.
    let whole = tensors(&convert(dir.path(), bundle(FileType::Q8_0)).unwrap());
    let mut want = plain;
    want.remove(POSITIONS);
    assert_eq!(whole, want);
}

#[test]
fn bundles_load_from_files_and_from_memory() {
    for name in ["golden/lfm2", "golden/lfm2_moe", "golden/lfm2_audio", "models/tiny-lfm2-audio"] {
        let file = convert(&fixture(name), bundle(FileType::BF16)).unwrap();
        let memory = [to_memory(&fixture(name)).unwrap()];
        assert_eq!((tensors(&memory), keys(&memory[0])), (tensors(&file), keys(&file[0])));
        let loaded = models::load(memory.into(), LoadOptions::default()).unwrap();
        let want = if name.ends_with("moe") { "lfm2moe" } else { "lfm2" };
        assert_eq!(loaded.files[0].get_str("general.architecture").unwrap(), want);
        assert_eq!(loaded.model.encoder().is_some(), name.ends_with("audio"));
    }
}

#[test]
fn older_configurations_list_the_layers_with_attention() {
    let dir = copy_of("golden/lfm2");
    edit_config(&dir, |config| {
        config["layer_types"] = json!(null);
        config["full_attn_idxs"] = json!([2]);
    });
    let want = convert(&fixture("golden/lfm2"), pair(FileType::BF16)).unwrap();
    let files = convert(dir.path(), pair(FileType::BF16)).unwrap();
    assert_eq!(files[0].get_i32_array("lfm2.attention.head_count_kv").unwrap(), [0, 0, 2, 0]);
    assert_eq!(tensors(&files), tensors(&want));
}

/// Published numbers: of LFM2-350M, 700M, 1.2B and 2.6B.
#[test]
fn feed_forward_widths_are_those_of_the_published_models() {
    let folder = copy_of("golden/lfm2");
    for (named, adjusted, want) in [(6656, true, 4608), (10240, true, 6912), (12288, true, 8192), (10752, false, 10752)]
    {
        edit_config(&folder, |config| {
            config["block_ff_dim"] = json!(named);
            config["block_auto_adjust_ff_dim"] = json!(adjusted);
            config["block_multiple_of"] = json!(256);
        });
        // The tensors keep their width: the message has both.
        let message = convert(folder.path(), pair(FileType::BF16)).unwrap_err().to_string();
        assert!(message.contains(&format!("feed_forward.w1.weight: want [{want}, 128], got [160, 128]")), "{message}");
    }
}

/// Takes the tensors away whose names contain `part`.
fn without(part: &'static str) -> Edit {
    spoil(move |all| all.retain(|(name, _)| !name.contains(part)))
}

/// Gives a tensor other extents of the same product.
fn reshaped(name: &'static str, dims: &'static [usize]) -> Edit {
    spoil(move |all| named(all, name).1.dims = dims.to_vec())
}

#[test]
fn bad_text_checkpoints_are_named() {
    refused(
        "golden/lfm2",
        vec![
            (without("layers.3."), "tensor model.layers.3.operator_norm.weight is missing"),
            (without("embedding_norm"), "tensor model.embedding_norm.weight is missing"),
            (set("/num_hidden_layers", json!(3)), "layer_types: want 3 layers (num_hidden_layers), got 4"),
            (set("/num_hidden_layers", json!(0)), "num_hidden_layers: want an integer from 1 to 1024, got 0"),
            (set("/layer_types", json!(["conv", "conv", "attention", "conv"])), "want \"conv\" or \"full_attention\""),
            (set("/layer_types", json!("conv")), "layer_types: want a list of texts, got \"conv\""),
            (set("/layer_types", json!(null)), "layer_types: is missing"),
            (
                set("/layer_types", json!(["conv", "conv", "conv", "conv"])),
                "tensor model.layers.2.conv.in_proj.weight is missing",
            ),
            (set("/num_key_value_heads", json!(3)), "num_key_value_heads: want a divisor of 4 heads, got 3"),
            (set("/num_key_value_heads", json!(0)), "num_key_value_heads: want an integer from 1 to 4096, got 0"),
            (set("/num_key_value_heads", json!(-2)), "num_key_value_heads: want an integer from 1 to 4096, got -2"),
            (set("/num_key_value_heads", json!(4)), "self_attn.k_proj.weight: want [128, 128], got [64, 128]"),
            (set("/num_attention_heads", json!(6)), "hidden_size: want a multiple of 6 heads, got 128"),
            (set("/hidden_size", json!(0)), "hidden_size: want an integer from 1 to 1048576, got 0"),
            (set("/block_ff_dim", json!(0)), "block_ff_dim: want an integer from 1 to 1048576, got 0"),
            (set("/block_multiple_of", json!(0)), "block_multiple_of: want an integer from 1"),
            (set("/block_ffn_dim_multiplier", json!(1e300)), "block_ff_dim: 240 gives no width of 1 to 1048576"),
            (set("/block_ffn_dim_multiplier", json!(-1)), "block_ff_dim: 240 gives no width of 1 to 1048576"),
            (set("/block_auto_adjust_ff_dim", json!(null)), "block_auto_adjust_ff_dim: is missing"),
            (set("/conv_L_cache", json!(4)), "conv.conv.weight: want [128, 1, 4], got [128, 1, 3]"),
            (set("/conv_bias", json!(true)), "conv_bias: want false, got true"),
            (set("/norm_eps", json!(null)), "norm_eps: is missing"),
            (
                reshaped("model.layers.0.conv.in_proj.weight", &[128, 384]),
                "model.layers.0.conv.in_proj.weight: want [384, 128], got [128, 384]",
            ),
            (
                reshaped("model.layers.1.conv.conv.weight", &[128, 3]),
                "model.layers.1.conv.conv.weight: want [128, 1, 3], got [128, 3]",
            ),
            (
                spoil(|all| all.push(("model.layers.0.conv.conv.bias".into(), Stored::bf16(&[128], |_| 0.0)))),
                "model.layers.0.conv.conv.bias: not a tensor of this architecture and configuration",
            ),
        ],
    );
    refused(
        "golden/lfm2_moe",
        vec![
            (
                without("layers.2.feed_forward.experts.5.w3"),
                "tensor model.layers.2.feed_forward.experts.5.w3.weight is missing",
            ),
            (without("layers.1.feed_forward.expert_bias"), "model.layers.1.feed_forward.expert_bias is missing"),
            (set("/num_experts", json!(7)), "feed_forward.gate.weight: want [7, 128], got [6, 128]"),
            (set("/num_experts", json!(0)), "num_experts: want an integer from 1 to 4096, got 0"),
            (set("/num_experts_per_tok", json!(7)), "num_experts_per_tok: want an integer from 1 to 6, got 7"),
            (set("/num_dense_layers", json!(0)), "tensor model.layers.0.feed_forward.gate.weight is missing"),
            (
                set("/moe_intermediate_size", json!(32)),
                "feed_forward.experts.0.w1.weight: want [32, 128], got [48, 128]",
            ),
            (set("/routed_scaling_factor", json!(2.5)), "routed_scaling_factor: want 1.0, got 2.5"),
            (set("/norm_topk_prob", json!(false)), "norm_topk_prob: want true, got false"),
            (
                spoil(|all| named(all, "model.layers.1.feed_forward.experts.3.w1.weight").1.bytes[2..4].fill(0xff)),
                "model.layers.1.feed_forward.experts.3.w1.weight: element 1 is NaN",
            ),
        ],
    );
}

#[test]
fn bad_audio_checkpoints_are_named() {
    refused(
        "golden/lfm2_audio",
        vec![
            (without("conformer.layers.1."), "tensor conformer.layers.1.norm_feed_forward1.weight is missing"),
            (without("audio_adapter.model.3.bias"), "tensor audio_adapter.model.3.bias is missing"),
            (without("running_var"), "tensor conformer.layers.0.conv.batch_norm.running_var is missing"),
            (without("lfm.embedding_norm"), "tensor lfm.embedding_norm.weight is missing"),
            (set("/architectures", json!(["Lfm2AudioModel"])), "want [\"Lfm2AudioForConditionalGeneration\"]"),
            (set("/architectures", json!(null)), "config.json: model_type: is missing"),
            (set("/encoder", json!(null)), "config.json: encoder: is missing"),
            (set("/lfm/hidden_size", json!(32)), "lfm.embed_tokens.weight: want [428, 32], got [428, 64]"),
            (set("/lfm/num_key_value_heads", json!(0)), "lfm.num_key_value_heads: want an integer from 1"),
            (set("/encoder/n_layers", json!(0)), "encoder.n_layers: want an integer from 1 to 1024, got 0"),
            (set("/encoder/n_layers", json!(3)), "tensor conformer.layers.2.norm_feed_forward1.weight is missing"),
            (set("/encoder/d_model", json!(0)), "encoder.d_model: want an integer from 4"),
            (set("/encoder/n_heads", json!(3)), "encoder.d_model: want an even multiple of 3 heads, got 64"),
            (
                set("/encoder/ff_expansion_factor", json!(1 << 20)),
                "ff_expansion_factor: want an integer from 1 to 16384",
            ),
            (set("/encoder/feat_in", json!(100)), "encoder.feat_in: want a multiple of 8, got 100"),
            (set("/encoder/subsampling_factor", json!(4)), "encoder.subsampling_factor: want 8, got 4"),
            (set("/encoder/conv_kernel_size", json!(31)), "encoder.conv_kernel_size: want 9, got 31"),
            (
                set("/encoder/conv_norm_type", json!("layer_norm")),
                "conv_norm_type: want \"batch_norm\", got \"layer_norm\"",
            ),
            (set("/encoder/att_context_size", json!([70, 13])), "att_context_size: want [-1,-1], got [70,13]"),
            (set("/encoder/conv_context_size", json!("causal")), "conv_context_size: want null, got \"causal\""),
            (set("/preprocessor/sample_rate", json!(24000)), "preprocessor.sample_rate: want 16000, got 24000"),
            (set("/preprocessor/features", json!(80)), "preprocessor.features: want 128, got 80"),
            (
                reshaped("conformer.layers.0.conv.pointwise_conv1.weight", &[64, 128, 1]),
                "conv.pointwise_conv1.weight: want [128, 64, 1], got [64, 128, 1]",
            ),
            (
                reshaped("conformer.pre_encode.conv.3.weight", &[1, 1, 8, 8]),
                "conformer.pre_encode.conv.3.weight: want [8, 8, 1, 1], got [1, 1, 8, 8]",
            ),
            (
                spoil(|all| named(all, "conformer.layers.1.conv.batch_norm.running_var").1.bytes[1] = 0xc0),
                "conformer.layers.1.conv.batch_norm: folded element 0 is NaN",
            ),
            (
                spoil(|all| all.push(("audio_embedding.embedding.weight".into(), Stored::bf16(&[0, 64], |_| 0.0)))),
                "audio_embedding.embedding.weight: want [audio tokens, 64], got [0, 64]",
            ),
            (
                spoil(|all| all.push(("audio_embedding.to_logits.weight".into(), Stored::bf16(&[5, 32], |_| 0.0)))),
                "audio_embedding.to_logits.weight: want [5, 64], got [5, 32]",
            ),
            (
                spoil(|all| all.push(("conformer.layers.0.extra".into(), Stored::bf16(&[5], |_| 0.0)))),
                "conformer.layers.0.extra: not a tensor of this architecture and configuration",
            ),
        ],
    );
}
