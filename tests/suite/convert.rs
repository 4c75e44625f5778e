//! Checkpoints to GGUF: names, types and values, both layouts, shards, and damaged checkpoints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use convert::quantize::Quantization;
use convert::quantize::overrides::Overrides;
use convert::{Conversion, ErrorKind, FileType, Options, to_memory};
use engine::DType;
use engine::gguf::{Gguf, Value};
use half::f16;
use models::LoadOptions;
use serde_json::{Map, Value as Json, json};
use tempfile::TempDir;
use tests::alloc::measure;
use tests::clock::thread_time;
use tests::mutate::mutate;
use tests::rng::Rng;

use crate::checkpoint::{
    Edit, Stored, bundle, convert, copy_of, edit_config, edit_tensors, fixture, keys, named, pair, put, read_tensors,
    refused, remove, set, spoil, stored, tensors, values,
};

/// Mutations of each checkpoint that are converted.
const N_MUTATIONS: u64 = 1000;
/// Longest time of one processor that any checkpoint may take.
const MAX_TIME: Duration = Duration::from_secs(2);
/// Memory above the start that any checkpoint may take.
const MAX_PEAK_BYTES: usize = 200 << 20;

/// The stored name of a tensor of a Qwen3-ASR file in the original layout, after the tables of llama.cpp's converter;
/// `None` for positions.
fn original_name(name: &str) -> Option<String> {
    const TEXT: [(&str, &str); 11] = [
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    const AUDIO: [(&str, &str); 8] = [
        ("ln1", "self_attn_layer_norm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_out", "self_attn.out_proj"),
        ("ln2", "final_layer_norm"),
        ("ffn_up", "fc1"),
        ("ffn_down", "fc2"),
    ];
    let (stem, kind) = name.rsplit_once('.').unwrap();
    let layer = |rest: &str, table: &[(&str, &str)]| {
        let (i, part) = rest.split_once('.').unwrap();
        let (_, stored) = table.iter().find(|(name, _)| *name == part).unwrap();
        format!("layers.{i}.{stored}")
    };
    let stem = match stem {
        "a.position_embd" => return None,
        "token_embd" => "thinker.model.embed_tokens".to_owned(),
        "output_norm" => "thinker.model.norm".to_owned(),
        "output" => "thinker.lm_head".to_owned(),
        "a.conv_out" => "thinker.audio_tower.conv_out".to_owned(),
        "a.post_ln" => "thinker.audio_tower.ln_post".to_owned(),
        "mm.a.mlp.1" => "thinker.audio_tower.proj1".to_owned(),
        "mm.a.mlp.2" => "thinker.audio_tower.proj2".to_owned(),
        stem => {
            if let Some(i) = stem.strip_prefix("a.conv2d.") {
                format!("thinker.audio_tower.conv2d{i}")
            } else if let Some(rest) = stem.strip_prefix("a.blk.") {
                format!("thinker.audio_tower.{}", layer(rest, &AUDIO))
            } else {
                format!("thinker.model.{}", layer(stem.strip_prefix("blk.").unwrap(), &TEXT))
            }
        }
    };
    Some(format!("{stem}.{kind}"))
}

/// The format of a tensor whose rows are whole blocks: llama.cpp's converter, and for q4_0 llama-quantize, whose Q6_K needs
/// longer rows than these.
fn expected_dtype(name: &str, rank: usize, file_type: FileType) -> DType {
    let is_audio = name.starts_with("a.") || name.starts_with("mm.");
    let keeps_8_bits = is_audio || name == "output.weight";
    match file_type {
        _ if rank == 1 || name.ends_with(".bias") => DType::F32,
        FileType::F32 => DType::F32,
        _ if name.starts_with("a.conv") => DType::F16,
        FileType::Q4_0 if keeps_8_bits => DType::Q8_0,
        _ => file_type.dtype(),
    }
}

#[test]
fn every_type_holds_the_checkpoints_values() {
    let folder = fixture("golden/qwen3_asr");
    let source = stored(&folder);
    for file_type in [FileType::F32, FileType::F16, FileType::BF16, FileType::Q8_0, FileType::Q4_0] {
        let files = convert(&folder, pair(file_type)).unwrap();
        let mut left: Vec<&String> = source.keys().collect();
        for (name, (dtype, dims, bytes)) in tensors(&files) {
            let Some(stored) = original_name(&name) else { continue };
            left.retain(|name| **name != stored);
            let (want_dims, want) = &source[&stored];
            let want_dims: Vec<u32> = match (&*name, &want_dims[..]) {
                (name, [n]) if name.starts_with("a.conv2d.") => vec![*n as u32, 1, 1],
                (_, dims) => dims.iter().map(|&d| d as u32).collect(),
            };
            let rank = want_dims.len();
            assert_eq!((dtype, &dims), (expected_dtype(&name, rank, file_type), &want_dims), "{name} {file_type:?}");
            for (at, (got, want)) in values(dtype, &bytes).chunks(32).zip(want.chunks(32)).enumerate() {
                let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
                // Half a step, and what rounding the scale to f16 adds.
                let off = match dtype {
                    DType::Q8_0 => largest / 127.0 * 0.5 + largest * 2f32.powi(-11),
                    DType::Q4_0 => largest / 8.0 * 1.0 + largest * 2f32.powi(-11),
                    _ => 0.0,
                };
                for (got, &want) in got.iter().zip(want) {
                    let want = if dtype == DType::F16 { f16::from_f32(want).to_f32() } else { want };
                    assert!((got - want).abs() <= off, "{name} {file_type:?} block {at}: {got} for {want}");
                }
            }
        }
        assert!(left.is_empty(), "not written: {left:?}");
        models::load(files, LoadOptions::default()).unwrap();
    }
}

#[test]
fn rows_that_are_no_whole_blocks_become_f16() {
    let dir = copy_of("golden/qwen3_asr");
    edit_config(&dir, |config| {
        config["thinker_config"]["audio_config"]["encoder_ffn_dim"] = json!(80);
    });
    edit_tensors(&dir, |tensors| {
        for (name, t) in tensors.iter_mut() {
            let cut = |t: &mut Stored, rows: usize, cols: usize| {
                let old = t.dims[t.dims.len() - 1];
                let cut = t.bytes.chunks(old * 2).take(rows).flat_map(|row| row[..cols * 2].to_vec()).collect();
                *t = Stored { dtype: t.dtype, dims: vec![rows, cols], bytes: cut };
            };
            if name.ends_with("fc1.weight") {
                cut(t, 80, 64);
            } else if name.ends_with("fc2.weight") {
                cut(t, 64, 80);
            } else if name.ends_with("fc1.bias") {
                *t = Stored { dtype: t.dtype, dims: vec![80], bytes: t.bytes[..160].to_vec() };
            }
        }
    });
    let files = convert(dir.path(), pair(FileType::Q8_0)).unwrap();
    assert_eq!(files[1].tensor("a.blk.0.ffn_down.weight").unwrap().dtype, DType::F16);
    assert_eq!(files[1].tensor("a.blk.0.ffn_up.weight").unwrap().dtype, DType::Q8_0);
}

/// What llama.cpp's converter writes for the trained checkpoint in bf16, its tokenizer arrays aside.
#[test]
fn keys_are_those_of_llama_cpps_converter() {
    const PLAIN_CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + \
        message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}\
        {{ '<|im_start|>assistant\\n' }}{% endif %}";
    let files = convert(&fixture("models/tiny-qwen3-asr"), pair(FileType::BF16)).unwrap();
    let u = Value::U32;
    let text: [(&str, Value); 27] = [
        ("general.architecture", "qwen3vl".into()),
        ("general.type", "model".into()),
        ("general.sampling.temp", Value::F32(1.0)),
        ("general.name", "Tiny Qwen3 Asr".into()),
        ("general.size_label", "2.2M".into()),
        ("qwen3vl.block_count", u(3)),
        ("qwen3vl.context_length", u(4096)),
        ("qwen3vl.embedding_length", u(256)),
        ("qwen3vl.feed_forward_length", u(512)),
        ("qwen3vl.attention.head_count", u(4)),
        ("qwen3vl.attention.head_count_kv", u(2)),
        ("qwen3vl.rope.dimension_sections", vec![12i32, 10, 10, 0].into()),
        ("qwen3vl.rope.freq_base", Value::F32(1e6)),
        ("qwen3vl.attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
        ("qwen3vl.attention.key_length", u(64)),
        ("qwen3vl.attention.value_length", u(64)),
        ("qwen3vl.n_deepstack_layers", u(0)),
        ("general.file_type", u(32)),
        ("general.quantization_version", u(2)),
        ("tokenizer.ggml.model", "gpt2".into()),
        ("tokenizer.ggml.pre", "qwen2".into()),
        ("tokenizer.ggml.bos_token_id", u(699)),
        ("tokenizer.ggml.eos_token_id", u(699)),
        ("tokenizer.ggml.padding_token_id", u(697)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.ggml.add_eos_token", Value::Bool(false)),
        ("tokenizer.chat_template", PLAIN_CHATML.into()),
    ];
    let projector: [(&str, Value); 17] = [
        ("general.architecture", "clip".into()),
        ("general.type", "mmproj".into()),
        ("general.sampling.temp", Value::F32(1.0)),
        ("general.name", "Tiny Qwen3 Asr".into()),
        ("general.size_label", "1.7M".into()),
        ("general.file_type", u(32)),
        ("general.quantization_version", u(2)),
        ("clip.has_audio_encoder", Value::Bool(true)),
        ("clip.audio.projector_type", "qwen3a".into()),
        ("clip.audio.projection_dim", u(256)),
        ("clip.audio.embedding_length", u(192)),
        ("clip.audio.feed_forward_length", u(384)),
        ("clip.audio.block_count", u(4)),
        ("clip.audio.attention.head_count", u(3)),
        ("clip.audio.attention.layer_norm_epsilon", Value::F32(1e-5)),
        ("clip.audio.num_mel_bins", u(128)),
        // Ours, which llama.cpp passes over.
        ("tympan.segment_seconds", Value::F32(8.0)),
    ];
    let owned = |list: &[(&str, Value)]| list.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    let arrays = ["tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"];
    let mut got = keys(&files[0]);
    got.retain(|key, _| !arrays.contains(&&**key));
    let want: BTreeMap<String, Value> = owned(&text);
    assert_eq!(got, want);
    assert_eq!(keys(&files[1]), owned(&projector));
    assert_eq!(files[0].get_str_array("tokenizer.ggml.tokens").unwrap().len(), 768);
}

#[test]
fn a_bundle_is_the_pair_in_one_file() {
    let folder = fixture("golden/qwen3_asr");
    let parts = convert(&folder, pair(FileType::Q8_0)).unwrap();
    let whole = convert(&folder, bundle(FileType::Q8_0)).unwrap();
    assert_eq!((parts.len(), whole.len()), (2, 1));
    assert_eq!(tensors(&parts), tensors(&whole));
    let mut want = keys(&parts[0]);
    want.extend(keys(&parts[1]).into_iter().filter(|(key, _)| key.starts_with("clip.")));
    assert_eq!(keys(&whole[0]), want);
}

#[test]
fn a_text_model_becomes_one_file_without_a_head() {
    let files = convert(&fixture("golden/qwen3"), pair(FileType::BF16)).unwrap();
    let [file] = &files[..] else { panic!("{} files", files.len()) };
    assert_eq!(file.get_str("general.architecture").unwrap(), "qwen3");
    assert!(file.tensor("token_embd.weight").is_some() && file.tensor("output.weight").is_none());
    assert!(!file.contains("qwen3.rope.dimension_sections") && !file.contains("qwen3.n_deepstack_layers"));
    models::load(files, LoadOptions::default()).unwrap();
    // A tied embedding is the head, which gets more bits in q4_0.
    let q4 = convert(&fixture("golden/qwen3"), pair(FileType::Q4_0)).unwrap();
    assert_eq!(q4[0].tensor("token_embd.weight").unwrap().dtype, DType::Q6_K);
    assert_eq!(q4[0].tensor("blk.0.ffn_up.weight").unwrap().dtype, DType::Q4_0);
}

/// `qwen3_asr` as transformers' `save_pretrained` writes it: other files, the same tensors but for one, by other names.
fn in_the_layout_of_transformers() -> TempDir {
    let folder = copy_of("golden/qwen3_asr_hf");
    let names = std::fs::read_to_string(folder.path().join("tensors.txt")).unwrap();
    let mut original: BTreeMap<String, Stored> = read_tensors(&fixture("golden/qwen3_asr")).into_iter().collect();
    let named = names.lines().map(|line| line.split_once(' ').unwrap());
    let stored: Vec<_> = named.map(|(theirs, ours)| (theirs, original.remove(ours).unwrap())).collect();
    assert_eq!(original.keys().collect::<Vec<_>>(), ["thinker.lm_head.weight"]);
    safetensors::serialize_to_file(stored, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}

#[test]
fn both_layouts_give_the_same_files() {
    let original = convert(&fixture("golden/qwen3_asr"), pair(FileType::BF16)).unwrap();
    let hf = convert(in_the_layout_of_transformers().path(), pair(FileType::BF16)).unwrap();
    assert_eq!(tensors(&original), tensors(&hf));
    let comparable = |file: &Gguf| {
        let mut keys = keys(file);
        // Names come from those of the folders. Transformers names more special tokens in the tokenizer it writes.
        let special = ["tokenizer.ggml.padding_token_id", "tokenizer.ggml.unknown_token_id"];
        keys.retain(|key, _| !["general.name", "general.finetune"].contains(&&**key) && !special.contains(&&**key));
        keys
    };
    for (a, b) in original.iter().zip(&hf) {
        assert_eq!(comparable(a), comparable(b));
    }
}

#[test]
fn shards_give_the_same_files() {
    let whole = copy_of("golden/qwen3_asr");
    let cut = copy_of("golden/qwen3_asr");
    let all = read_tensors(cut.path());
    std::fs::remove_file(cut.path().join("model.safetensors")).unwrap();
    let mut index = Map::new();
    for (i, part) in all.chunks(all.len().div_ceil(3)).enumerate() {
        let name = format!("model-0000{}-of-00003.safetensors", i + 1);
        index.extend(part.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
        safetensors::serialize_to_file(part.iter().cloned(), None, &cut.path().join(name)).unwrap();
    }
    let index = json!({ "metadata": {}, "weight_map": index });
    std::fs::write(cut.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let files = |dir: &TempDir| convert(dir.path(), pair(FileType::Q8_0)).unwrap();
    let (whole, cut) = (files(&whole), files(&cut));
    assert_eq!(tensors(&whole), tensors(&cut));
}

#[test]
fn in_memory_is_the_bundle_as_stored() {
    for name in ["golden/qwen3_asr", "golden/qwen3"] {
        let file = convert(&fixture(name), bundle(FileType::BF16)).unwrap();
        let memory = [to_memory(&fixture(name)).unwrap()];
        assert_eq!((tensors(&memory), keys(&memory[0])), (tensors(&file), keys(&file[0])));
        models::load(memory.into(), LoadOptions::default()).unwrap();
    }
}

#[test]
fn another_attention_window_is_one_key_more() {
    const KEY: &str = "tympan.audio.window_frames";
    let usual = convert(&fixture("golden/qwen3_asr"), pair(FileType::Q8_0)).unwrap();
    let dir = copy_of("golden/qwen3_asr");
    let n_window = |n: u32| edit_config(&dir, |c| c["thinker_config"]["audio_config"]["n_window_infer"] = json!(n));
    n_window(400);
    let other = convert(dir.path(), pair(FileType::Q8_0)).unwrap();
    assert_eq!(tensors(&other), tensors(&usual));
    // The folder's name is in the keys of both.
    let own = |file: &Gguf| -> Vec<_> {
        let all = file.metadata().map(|(key, value)| (key.to_owned(), value));
        all.filter(|(key, _)| !key.starts_with("general.")).collect()
    };
    assert_eq!(own(&other[0]), own(&usual[0]));
    let mut want = own(&usual[1]);
    assert!(want.iter().all(|(key, _)| key != KEY));
    want.push((KEY.to_owned(), Value::U32(400)));
    assert_eq!(own(&other[1]), want);
    models::load(other, LoadOptions::default()).unwrap();

    let overrides = Overrides::parse(&[], &[format!("{KEY}=int:99")]).unwrap();
    let file = convert(dir.path(), Options { overrides, ..bundle(FileType::Q8_0) }).unwrap();
    let error = models::load(file, LoadOptions::default()).err().unwrap().to_string();
    assert!(error.contains(KEY) && error.contains("want at least 100, got 99"), "{error}");
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let out = tempfile::tempdir().unwrap();
    let conversion = Conversion::open(&fixture("golden/qwen3_asr"), |_| pair(FileType::F32)).unwrap();
    let paths: Vec<PathBuf> = conversion.file_names().iter().map(|name| out.path().join(name)).collect();
    let failure = conversion.write(&paths, &AtomicBool::new(true)).unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::Interrupted);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn a_failed_second_file_leaves_no_first_one() {
    let out = tempfile::tempdir().unwrap();
    let conversion = Conversion::open(&fixture("golden/qwen3_asr"), |_| pair(FileType::BF16)).unwrap();
    let paths = [out.path().join("text.gguf"), out.path().join("no/such/folder/mmproj.gguf")];
    let failure = conversion.write(&paths, &AtomicBool::new(false)).unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::Output);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn bad_checkpoints_are_one_line_with_file_and_cause() {
    const EMBEDDING: &str = "thinker.model.embed_tokens.weight";
    let cases: Vec<(Edit, &str)> = vec![
        (remove(&["config.json"]), "config.json: no such file"),
        (put("config.json", b"{\"model_type\": "), "config.json: not JSON: EOF"),
        (put("config.json", b"[1]"), "config.json: want a JSON object, got [1]"),
        (put("config.json", b"{}"), "config.json: model_type: is missing"),
        (
            put("config.json", br#"{"model_type": "whisper"}"#),
            "model_type: \"whisper\" is not supported (supported: qwen3_asr, qwen3, ",
        ),
        (put("config.json", br#"{"model_type": 3}"#), "model_type: want a text, got 3"),
        (put("config.json", br#"{"model_type": "qwen3_asr"}"#), "config.json: thinker_config: is missing"),
        (
            set("/thinker_config/text_config/hidden_size", json!(0)),
            "config.json: thinker_config.text_config.hidden_size: want an integer from 1 to 1048576, got 0",
        ),
        (set("/thinker_config/text_config/hidden_size", json!(-64)), "want an integer from 1 to 1048576, got -64"),
        (set("/thinker_config/text_config/hidden_size", json!(1e300)), "text_config.hidden_size: want an integer"),
        (set("/thinker_config/text_config/hidden_size", Json::Null), "text_config.hidden_size: is missing"),
        (
            set("/thinker_config/text_config/hidden_size", json!(128)),
            "audio_config.output_dim: want an integer from 128 to 128, got 64",
        ),
        (
            set("/thinker_config/text_config/num_hidden_layers", json!(u64::MAX)),
            "num_hidden_layers: want an integer from 1 to 1024",
        ),
        (
            set("/thinker_config/text_config/num_hidden_layers", json!(3)),
            "tensor thinker.model.layers.2.input_layernorm.weight is missing",
        ),
        (
            set("/thinker_config/text_config/num_hidden_layers", json!(1)),
            "thinker.model.layers.1.input_layernorm.weight: not a tensor of this architecture and configuration",
        ),
        (
            set("/thinker_config/text_config/num_key_value_heads", json!(3)),
            "num_key_value_heads: want a divisor of 4 heads, got 3",
        ),
        (set("/thinker_config/text_config/head_dim", json!(31)), "head_dim: want an even number, got 31"),
        (
            set("/thinker_config/text_config/head_dim", json!(30)),
            "mrope_section: want at most 4 numbers that add up to 15, got [6, 5, 5]",
        ),
        (set("/thinker_config/text_config/rms_norm_eps", json!(0.0)), "rms_norm_eps: want a positive number, got 0.0"),
        (
            set("/thinker_config/text_config/rope_theta", json!("big")),
            "rope_theta: want a positive number, got \"big\"",
        ),
        (set("/thinker_config/text_config/hidden_act", json!("relu")), "hidden_act: want \"silu\", got \"relu\""),
        (set("/thinker_config/text_config/attention_bias", json!(true)), "attention_bias: want false, got true"),
        (
            set("/thinker_config/text_config/rope_scaling", json!({"rope_type": "yarn", "factor": 4})),
            "rope_scaling.rope_type: want \"default\", got \"yarn\"",
        ),
        (
            set("/thinker_config/audio_config/n_window_infer", json!(99)),
            "audio_config.n_window_infer: want an integer from 100 to 16777216, got 99",
        ),
        (
            set("/thinker_config/audio_config/encoder_attention_heads", json!(3)),
            "d_model: want an even multiple of 3 heads, got 64",
        ),
        (
            set("/thinker_config/audio_config/num_mel_bins", json!(80)),
            "thinker.audio_tower.conv_out.weight: want [64, 80], got [64, 128]",
        ),
        (
            Box::new(|dir| edit_config(dir, |c| c["thinker_config"]["classify_num"] = json!(5000))),
            "forced aligners are not supported",
        ),
        (
            put("generation_config.json", b"{\"top_k\": \"a\"}"),
            "generation_config.json: top_k: want an integer of 32 bits, got \"a\"",
        ),
        (remove(&["model.safetensors"]), "neither model.safetensors nor model.safetensors.index.json is there"),
        (put("model.safetensors", b""), "model.safetensors: the file is shorter than 8 bytes"),
        (
            Box::new(|dir| {
                let path = dir.path().join("model.safetensors");
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
            }),
            "cut short",
        ),
        (
            spoil(|t| t.retain(|(name, _)| name != EMBEDDING)),
            "model.safetensors: tensor thinker.model.embed_tokens.weight is missing",
        ),
        (
            spoil(|t| named(t, EMBEDDING).1.dims.reverse()),
            "thinker.model.embed_tokens.weight: want [304, 64], got [64, 304]",
        ),
        (
            spoil(|t| named(t, EMBEDDING).0 = "thinker.model.embed\ntokens".into()),
            "tensor thinker.model.embed_tokens.weight is missing",
        ),
        (
            spoil(|t| t.iter_mut().for_each(|(name, _)| *name = name.replace("thinker.", "other."))),
            "want tensors thinker.* or model.language_model.*, got neither",
        ),
        (
            spoil(|t| named(t, EMBEDDING).1.bytes[20..22].copy_from_slice(&0x7fc0u16.to_le_bytes())),
            "thinker.model.embed_tokens.weight: element 10 is NaN",
        ),
        (
            spoil(|t| named(t, EMBEDDING).1.bytes[22..24].copy_from_slice(&0xff80u16.to_le_bytes())),
            "element 11 is -inf",
        ),
        // 2^17, in a file of f16.
        (
            spoil(|t| named(t, EMBEDDING).1.bytes[4..6].copy_from_slice(&0x4800u16.to_le_bytes())),
            "element 2 is 131072, which is too large for F16",
        ),
        (remove(&["vocab.json", "tokenizer.json"]), "no vocabulary (tokenizer.json, or vocab.json and merges.txt)"),
        (put("tokenizer.json", b"nonsense"), "tokenizer.json: not JSON"),
        (remove(&["merges.txt", "tokenizer.json"]), "merges.txt: "),
    ];
    refused("golden/qwen3_asr", cases);
    let failure = convert(Path::new("/no/such/checkpoint"), pair(FileType::F16)).unwrap_err();
    assert_eq!((failure.kind(), &*format!("{failure:#}")), (ErrorKind::Model, "/no/such/checkpoint: no such file"));
}

/// Opens, converts in memory and builds, within the bounds that every checkpoint has to keep.
fn load_bounded(folder: &Path, seed: u64) -> Result<(), String> {
    let start = thread_time();
    let (result, usage) = measure(|| {
        let file = to_memory(folder).map_err(|e| format!("{e:#}"))?;
        models::load(vec![file], LoadOptions::default()).map_err(|e| e.to_string())?;
        Ok(())
    });
    let time = thread_time().saturating_sub(start);
    assert!(time < MAX_TIME, "seed {seed} took {time:?}");
    assert!(usage.peak_bytes < MAX_PEAK_BYTES, "seed {seed}: {usage:?}");
    result
}

/// `tympan quantize` is compared with llama-quantize elsewhere; the converter starts from the weights as they are stored.
#[test]
fn q4_0_is_what_quantizing_bf16_gives() {
    for name in
        ["golden/qwen3", "golden/llama", "golden/qwen3_asr", "golden/lfm2", "golden/lfm2_moe", "golden/lfm2_audio"]
    {
        let exact = convert(&fixture(name), pair(FileType::BF16)).unwrap().swap_remove(0);
        let plan = Quantization::plan(exact, FileType::Q4_0, None, &Overrides::default(), false).unwrap();
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("q4_0.gguf");
        plan.write(&path, &AtomicBool::new(false)).unwrap();
        let ours = convert(&fixture(name), pair(FileType::Q4_0)).unwrap().swap_remove(0);
        assert!(tensors(&[ours]) == tensors(&[Gguf::open(&path).unwrap()]), "{name}");
    }
}

#[test]
fn mutations_give_a_model_or_an_error() {
    let delta_nets = ["golden/qwen3_next", "golden/qwen3_5", "golden/qwen3_5_moe"];
    for name in
        ["golden/qwen3_asr", "golden/llama", "golden/lfm2_moe", "golden/lfm2_audio"].into_iter().chain(delta_nets)
    {
        check_mutations(name);
    }
}

fn check_mutations(name: &str) {
    let dir = copy_of(name);
    let (weights, config) = (dir.path().join("model.safetensors"), dir.path().join("config.json"));
    let (original_weights, original_config) = (std::fs::read(&weights).unwrap(), std::fs::read(&config).unwrap());
    let header = 8 + u64::from_le_bytes(original_weights[..8].try_into().unwrap()) as usize;
    let replace = |path: &Path, bytes: &[u8]| {
        // Some file systems write a file that is cut and filled again to the disk at once.
        let _ = std::fs::remove_file(path);
        std::fs::write(path, bytes).unwrap();
    };
    let mut loaded = 0;
    for seed in 0..N_MUTATIONS {
        let mut rng = Rng::new(seed);
        // Each third: the header, the configuration as bytes, the configuration as a document.
        match seed % 3 {
            0 => replace(&weights, &mutate(&original_weights, header, &mut rng)),
            1 => replace(&config, &mutate(&original_config, original_config.len(), &mut rng)),
            _ => replace(&config, &mutate_document(&original_config, &mut rng)),
        }
        match load_bounded(dir.path(), seed) {
            Ok(()) => loaded += 1,
            Err(text) => assert!(!text.contains('\n') && text.len() < 1000, "seed {seed}: {text}"),
        }
        replace(&weights, &original_weights);
        replace(&config, &original_config);
    }
    assert!(0 < loaded && loaded < N_MUTATIONS / 2, "{loaded} of {N_MUTATIONS} mutations loaded");
}

/// A configuration with one value replaced by an odd one, or one key removed.
fn mutate_document(config: &[u8], rng: &mut Rng) -> Vec<u8> {
    let odd = [
        json!(0),
        json!(1),
        json!(-1),
        json!(2),
        json!(3),
        json!(63),
        json!(65),
        json!(1 << 20),
        json!(u64::MAX),
        json!(1e308),
        json!(0.5),
        json!(""),
        json!("qwen3"),
        json!([]),
        json!({}),
        json!(true),
        Json::Null,
    ];
    let mut document: Json = serde_json::from_slice(config).unwrap();
    let mut place = &mut document;
    while let Json::Object(map) = place {
        let names: Vec<String> = map.keys().cloned().collect();
        let name = rng.pick(&names).clone();
        let goes_deeper = map[&name].as_object().is_some_and(|inner| !inner.is_empty()) && rng.below(8) > 0;
        if goes_deeper {
            place = place.get_mut(&name).unwrap();
        } else if rng.below(8) == 0 {
            map.remove(&name);
            break;
        } else {
            map.insert(name, rng.pick(&odd).clone());
            break;
        }
    }
    document.to_string().into_bytes()
}
