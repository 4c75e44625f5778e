//! `tympan inspect`: files as they are stored, statistics, graphs, plans, and files that are none.

use engine::gguf::GgufWriter;
use engine::{DType, Shape};
use serde_json::{Value, json};

use crate::run::{fixtures, tympan};

fn fixture(path: &str) -> String {
    fixtures().join(path).display().to_string()
}

fn document(args: &[&str]) -> Value {
    serde_json::from_str(&tympan([&["inspect", "--json"], args].concat()).expect(0).out).unwrap()
}

/// A file with one tensor of each kind and values known from arithmetic.
fn small_file(path: &std::path::Path) {
    let mut file = GgufWriter::create(path).unwrap();
    file.key("general.architecture", "small").unwrap();
    file.key("small.list", (0..20u32).collect::<Vec<_>>()).unwrap();
    file.key("small.words", vec!["a\nb", "c"]).unwrap();
    file.key("small.eps", 1e-6f32).unwrap();
    file.key("small.large", u64::MAX).unwrap();
    file.tensor("plain", DType::F32, Shape::from([2, 3])).unwrap();
    file.tensor("blocks", DType::Q8_0, Shape::from([2, 64])).unwrap();
    file.begin("plain").unwrap();
    let plain: Vec<u8> =
        [1.0f32, -3.0, 2.0, f32::NAN, 4.0, f32::INFINITY].iter().flat_map(|v| v.to_le_bytes()).collect();
    file.write(&plain).unwrap();
    file.begin("blocks").unwrap();
    // Scale 0.5 and values 1 to 32. Source of the layout: ggml, `block_q8_0`.
    let mut block = vec![0x00, 0x38];
    block.extend(1..=32u8);
    file.write(&block.repeat(4)).unwrap();
    file.finish().unwrap();
}

#[test]
fn metadata_tensors_totals_and_statistics_are_those_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.gguf");
    small_file(&path);
    let path = path.display().to_string();
    let got = document(&[&path, "--tensors"]);
    assert_eq!((got["format"].as_str(), got["version"].as_u64()), (Some("gguf"), Some(3)));
    let list = json!({"type": "u32", "length": 20, "first": [0, 1, 2, 3, 4, 5, 6, 7]});
    assert_eq!(got["metadata"]["small.list"], list);
    assert_eq!(got["metadata"]["small.words"], json!(["a\nb", "c"]));
    assert_eq!(got["metadata"]["small.eps"].as_f64(), Some(1e-6));
    assert_eq!(got["metadata"]["small.large"].as_u64(), Some(u64::MAX));
    let full = document(&[&path, "-v"]);
    assert_eq!(full["metadata"]["small.list"].as_array().unwrap().len(), 20);
    assert!(full["tensors"][0].get("min").is_none());
    let [plain, blocks] = &got["tensors"].as_array().unwrap()[..] else { panic!("{got}") };
    assert_eq!((&plain["name"], &plain["shape"], &plain["bytes"]), (&json!("plain"), &json!([2, 3]), &json!(24)));
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap();
    assert_eq!((number(plain, "min"), number(plain, "max"), plain["non_finite"].as_u64()), (-3.0, 4.0, Some(2)));
    assert_eq!((number(plain, "mean"), number(plain, "rms")), (1.0, 7.5f64.sqrt()));
    assert_eq!((number(blocks, "min"), number(blocks, "max"), number(blocks, "mean")), (0.5, 16.0, 8.25));
    assert_eq!(got["total"]["elements"], 134);
    // 24 bytes of f32, and four blocks of 34.
    assert_eq!(got["total"]["bytes"], 24 + 4 * 34);
    assert_eq!(
        got["types"][1],
        json!({"type": "Q8_0", "tensors": 1, "elements": 128, "bytes": 136, "bits_per_weight": 8.5})
    );
    let text = tympan(["inspect", &path, "--tensors"]).expect(0).out;
    for part in ["gguf version 3", "20: 0, 1, 2, 3, 4, 5, 6, 7, ...", "\"a\\nb\"", "bits per weight", "8.500", "1e-6"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn checkpoints_are_shown_as_they_are_stored() {
    let got = document(&[&fixture("golden/lfm2")]);
    assert_eq!((got["format"].as_str(), got["metadata"]["model_type"].as_str()), (Some("safetensors"), Some("lfm2")));
    // Source: the fixture's own header, as Python's safetensors reads it.
    assert_eq!(got["total"]["elements"], 551_232);
    let file = document(&[&fixture("golden/lfm2/model.safetensors"), "--tensors"]);
    assert_eq!(file["tensors"].as_array().unwrap().len(), got["tensors"].as_array().unwrap().len());
    assert!(file["tensors"].as_array().unwrap().iter().all(|t| t["non_finite"] == 0 && t["rms"].as_f64() > Some(0.0)));
    let built_in = tympan(["inspect"]).expect(0);
    assert!(built_in.out.contains("general.architecture") && built_in.err.contains("built-in"), "{}", built_in.err);
}

#[test]
fn graphs_name_backends_fused_ops_weights_and_states() {
    let model = fixture("golden/lfm2");
    let text = tympan(["inspect", &model, "--graph", "step:16:2"]).expect(0).out;
    for part in [
        "2 sequences of 16 tokens",
        "fused: ",
        "linear_glu",
        "cached_attention",
        "token_embd.weight BF16[448, 128]",
        "inputs of layer 0 F32",
        "keys of layer",
        "cpu",
        "tokens I32[32]",
        "(act: Silu)",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let reference = tympan(["inspect", &model, "--graph", "decode", "--device", "reference"]).expect(0).out;
    assert!(reference.contains("reference  ") && !reference.contains("cpu"), "{reference}");
    let encoder = tympan(["inspect", "--graph", "encode:150", "--plan"]).expect(0).out;
    for part in ["audio encoder, 200 frames", "conv2d", "arena: ", "scratch memory of", "in place of t", "end"] {
        assert!(encoder.contains(part), "{part}: {encoder}");
    }
}

/// Everything in a plan lies inside of the arena, and the arena is no larger than it would be without any reuse.
#[test]
fn plans_say_where_everything_lies() {
    let text = tympan(["inspect", &fixture("golden/lfm2"), "--plan"]).expect(0).out;
    let first = text.lines().find(|line| line.starts_with("arena: ")).unwrap();
    let arena: usize = first.split(['(', ' ']).find_map(|word| word.parse().ok()).unwrap();
    let rows: Vec<[usize; 2]> = text
        .lines()
        .skip_while(|line| !line.starts_with("----"))
        .skip(1)
        .map(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            [cells[2], cells[3]].map(|cell| cell.parse().unwrap())
        })
        .collect();
    assert!(rows.len() > 20, "{text}");
    assert!(rows.iter().all(|[offset, bytes]| offset + bytes <= arena), "{arena}: {text}");
    assert!(rows.iter().map(|[_, bytes]| bytes).sum::<usize>() > arena, "{text}");
}

#[test]
fn devices_are_listed_with_their_instructions() {
    let out = tympan(["inspect", "--devices", "-t", "2"]).expect(0).out;
    assert!(out.contains("cpu ") && out.contains("reference ") && out.contains(" 2  "), "{out}");
}

#[test]
fn what_cannot_be_shown_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("golden/lfm2");
    let path = dir.path().join("small.gguf");
    small_file(&path);
    let small = path.display().to_string();
    let cases: [(&[&str], i32, &str); 9] = [
        (&["/nowhere/x.gguf"], 4, "/nowhere/x.gguf"),
        (&[&fixture("audio/transcripts.tsv")], 4, "transcripts.tsv"),
        (&[&dir.path().join("none").display().to_string()], 4, "none"),
        (&[&small, "--graph", "decode"], 4, "small"),
        (&[&model, "--graph", "encode:100"], 2, "no audio encoder"),
        (&[&model, "--graph", "decode:0"], 2, "--graph"),
        (&[&model, "--graph", "sideways:1"], 2, "want decode:SEQUENCES"),
        (&[&model, "--graph", "decode:1", "--json"], 2, "--json"),
        (&["--devices", "--device", "abacus"], 2, "abacus"),
    ];
    for (args, code, named) in cases {
        let run = tympan([&["inspect"], args].concat()).expect(code);
        assert!(run.err.contains(named) && run.out.is_empty(), "{args:?}: {}", run.err);
    }
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.gguf");
    small_file(&path);
    let whole = std::fs::read(&path).unwrap();
    let damaged = dir.path().join("damaged.gguf");
    let check = |bytes: &[u8], what: &str| {
        std::fs::write(&damaged, bytes).unwrap();
        let run = tympan(["inspect", &damaged.display().to_string(), "--tensors"]);
        let run = if run.code == 0 { run } else { run.expect(4) };
        assert!(run.code == 0 || run.err.contains("damaged.gguf"), "{what}: {}", run.err);
        run.code
    };
    // Behind the last tensor is padding.
    for len in (0..whole.len() - 32).step_by(37) {
        assert_eq!(check(&whole[..len], "cut"), 4, "cut at {len}");
    }
    for at in (0..whole.len().min(400)).step_by(11) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        check(&bytes, "flipped");
    }
}
