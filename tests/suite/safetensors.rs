//! Checkpoints: against the `safetensors` crate's own reader, laid out by hand, in shards, and damaged.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use convert::safetensors::{Checkpoint, Dtype};
use safetensors::SafeTensors;
use tempfile::TempDir;
use tests::alloc::measure;
use tests::clock::thread_time;
use tests::mutate::mutate;
use tests::rng::Rng;

/// Mutations that are opened.
const N_MUTATIONS: u64 = 2000;
/// Longest time of one processor that any file may take.
const MAX_TIME: Duration = Duration::from_secs(2);
/// Memory above the start that any file may take.
const MAX_PEAK_BYTES: usize = 200 << 20;

const INDEX: &str = "model.safetensors.index.json";

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn put(dir: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    // Some file systems write a file that is cut and filled again to the disk at once.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A file of this header and this much data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend((0..data).map(|i| i as u8));
    out
}

/// A line of a header.
fn line(name: &str, dtype: &str, shape: &str, from: usize, to: usize) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
}

/// A file with one tensor of two f32.
fn one(name: &str) -> Vec<u8> {
    file(&format!("{{{}}}", line(name, "F32", "[2]", 0, 8)), 8)
}

fn sample() -> Vec<u8> {
    let lines = [
        r#""__metadata__":{"format":"pt"}"#.to_owned(),
        line("b", "BF16", "[2,3]", 8, 20),
        line("a", "F32", "[2]", 0, 8),
        line("scalar", "I64", "[]", 20, 28),
        line("none", "F16", "[0,5]", 28, 28),
        line("u8", "U8", "[1,1,3]", 28, 31),
    ];
    file(&format!("{{{}}}   ", lines.join(",")), 31)
}

fn error_of(result: Result<Checkpoint>) -> String {
    engine::error::Chain(result.unwrap_err().as_ref()).to_string()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

#[test]
fn hand_made_checkpoint_reads_exactly() {
    let dir = folder();
    put(&dir, "model.safetensors", sample());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let bytes: Vec<u8> = (0..31).collect();
    let want: [(&str, Dtype, &[usize], &[u8]); 5] = [
        ("a", Dtype::F32, &[2], &bytes[..8]),
        ("b", Dtype::BF16, &[2, 3], &bytes[8..20]),
        ("scalar", Dtype::I64, &[], &bytes[20..28]),
        ("none", Dtype::F16, &[0, 5], &[]),
        ("u8", Dtype::U8, &[1, 1, 3], &bytes[28..]),
    ];
    for (name, dtype, shape, bytes) in want {
        let tensor = checkpoint.require(name).unwrap();
        assert_eq!((tensor.dtype, tensor.shape, tensor.bytes), (dtype, shape, bytes), "{name}");
    }
    assert_eq!(checkpoint.len(), want.len());
    let order: Vec<&str> = checkpoint.tensors().map(|tensor| tensor.name).filter(|&name| name != "none").collect();
    assert_eq!(order, ["a", "b", "scalar", "u8"]);
    checkpoint.release("b", 0..usize::MAX);
    assert_eq!(checkpoint.require("b").unwrap().bytes, &bytes[8..20]);
    let missing = format!("{:#}", checkpoint.require("c").unwrap_err());
    assert!(missing.ends_with("model.safetensors: tensor c is missing"), "{missing}");
}

#[test]
fn fixture_reads_as_the_official_reader_does() {
    let dir = fixture("models/tiny-qwen3-asr");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let official = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(checkpoint.len(), official.len());
    for (name, want) in official.iter() {
        let got = checkpoint.require(name).unwrap();
        assert_eq!((got.dtype, got.shape, got.bytes), (want.dtype(), want.shape(), want.data()), "{name}");
    }
}

#[test]
fn shards_join_by_their_index() {
    let dir = folder();
    put(&dir, "s-1.safetensors", one("a"));
    put(&dir, "s-2.safetensors", one("b"));
    let index =
        |pairs: &str| put(&dir, INDEX, format!(r#"{{"metadata":{{"total_size":1.6e1}},"weight_map":{{{pairs}}}}}"#));
    let both = r#""b":"s-2.safetensors","a":"s-1.safetensors""#;
    index(both);
    for path in [dir.path().to_owned(), dir.path().join(INDEX)] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let names: Vec<&str> = checkpoint.tensors().map(|tensor| tensor.name).collect();
        assert_eq!(names, ["a", "b"]);
    }

    let fails = |pairs: &str, want: &str| {
        index(pairs);
        let got = error_of(Checkpoint::open(dir.path()));
        assert!(got.contains(INDEX) && got.contains(want), "{got}: want {want}");
    };
    fails(r#""a":"s-2.safetensors","b":"s-2.safetensors""#, "tensor a is not in s-2.safetensors");
    fails(
        r#""a":"s-2.safetensors","b":"s-1.safetensors""#,
        "tensor a: want it in s-2.safetensors, found it in s-1.saf",
    );
    fails(&format!(r#"{both},"c":"s-2.safetensors""#), "tensor c is not in s-2.safetensors");
    fails(&format!(r#"{both},"a":"s-1.safetensors""#), "tensor a is listed twice");
    fails(&format!(r#"{both},"c":"s-3.safetensors""#), "a checkpoint in 3 files, of which s-3.safetensors is missing");
    fails(r#""a":"../s-1.safetensors""#, "want names of files beside it, got ../s-1.safetensors");
    fails(r#""a":"..""#, "want names of files beside it, got ..");
    fails(r#""a":7"#, "malformed index: invalid type: integer");
    put(
        &dir,
        "s-2.safetensors",
        file(&format!("{{{},{}}}", line("b", "U8", "[1]", 0, 1), line("c", "U8", "[1]", 1, 2)), 2),
    );
    fails(both, "tensor c of s-2.safetensors is not listed");
    put(&dir, "s-2.safetensors", one("a"));
    fails(both, "tensor a is in ");
    put(&dir, "s-2.safetensors", &one("b")[..50]);
    fails(both, "s-2.safetensors: want a header of 54 bytes, got 42: cut short");
    put(&dir, INDEX, "{}");
    let got = error_of(Checkpoint::open(dir.path()));
    assert!(got.contains("malformed index: missing field `weight_map`"), "{got}");
    std::fs::remove_file(dir.path().join(INDEX)).unwrap();
    let got = error_of(Checkpoint::open(dir.path()));
    let says =
        "neither model.safetensors nor model.safetensors.index.json is there, but other *.safetensors: fetch the index";
    assert!(got.contains(says), "{got}");
}

#[test]
fn malformed_files_are_named() {
    let dir = folder();
    let header = |lines: &[String]| format!("{{{}}}", lines.join(","));
    let a = |shape: &str, from, to| line("a", "F32", shape, from, to);
    let long = line(&"n".repeat(500), "F32", "[3]", 0, 8);
    let cases: [(Vec<u8>, &str); 19] = [
        (Vec::new(), "shorter than 8 bytes"),
        (vec![0; 7], "shorter than 8 bytes"),
        (vec![0; 8], "malformed header: EOF while parsing"),
        (u64::MAX.to_le_bytes().to_vec(), "want a header of at most 8388608 bytes, got 18446744073709551615"),
        (100u64.to_le_bytes().to_vec(), "want a header of 100 bytes, got 0: cut short"),
        (file("[]", 0), "malformed header: invalid type: sequence, expected a table of tensors"),
        (file("{} x", 0), "malformed header: trailing characters"),
        (file(&header(&[a("[2]", 0, 8)]), 7), "want 8 bytes of data, got 7: cut short"),
        (file(&header(&[a("[2]", 0, 8)]), 9), "want 8 bytes of data, got 9"),
        (file(&header(&[a("[3]", 0, 8)]), 8), "tensor a: F32 [3] wants 12 bytes, got 8"),
        (file(&header(&[a("[2]", 8, 0)]), 8), "tensor a: ends at 0, before 8"),
        (file(&header(&[a("[2]", 4, 12)]), 12), "tensor a: want it to start at byte 0 of the data, got 4"),
        (file(&header(&[a("[2]", 0, 8), a("[2]", 0, 8)]), 8), "tensor a is there twice"),
        (file(&header(&[a("[2]", 0, 8), a("[2]", 8, 16)]), 16), "tensor a is there twice"),
        (file(&header(&[a("[-1]", 0, 8)]), 8), "malformed header: invalid value: integer `-1`"),
        (file(&header(&[a("[2.5]", 0, 8)]), 8), "malformed header: invalid type: floating point"),
        (file(&header(&[a("[4294967296,4294967296,4]", 0, 8)]), 8), "is not a number of bytes"),
        (file(&header(&[line("a", "Q9", "[2]", 0, 8)]), 8), "malformed header: unknown variant `Q9`"),
        (file(&header(&[long]), 8), "nnn...: F32 [3] wants 12 bytes"),
    ];
    for (bytes, want) in cases {
        let got = error_of(Checkpoint::open(&put(&dir, "x.safetensors", bytes)));
        assert!(got.contains(want), "{got}: want {want}");
        assert!(got.contains("x.safetensors: ") && got.lines().count() == 1 && got.len() < 600, "{got}");
    }
    let got = error_of(Checkpoint::open(&dir.path().join("absent.safetensors")));
    assert!(got.ends_with("absent.safetensors: no such file"), "{got}");
}

/// Opens a checkpoint and reads all of it, within the bounds that every file has to keep.
fn open_bounded(path: &Path) -> Result<Checkpoint> {
    let start = thread_time();
    let (result, usage) = measure(|| {
        let checkpoint = Checkpoint::open(path)?;
        for tensor in checkpoint.tensors() {
            std::hint::black_box(tensor.bytes.iter().map(|&b| u64::from(b)).sum::<u64>());
        }
        Ok(checkpoint)
    });
    let time = thread_time().saturating_sub(start);
    assert!(time < MAX_TIME, "{} took {time:?}", path.display());
    let mapped = std::fs::metadata(path).unwrap().len() as usize;
    assert!(usage.peak_bytes + mapped < MAX_PEAK_BYTES, "{usage:?} and {mapped} bytes mapped");
    result
}

#[test]
fn mutations_give_a_checkpoint_or_an_error() {
    let dir = folder();
    let bytes = sample();
    let mut opened = 0;
    for seed in 0..N_MUTATIONS {
        let path = put(&dir, "mutation.safetensors", mutate(&bytes, bytes.len() - 31, &mut Rng::new(seed)));
        match open_bounded(&path) {
            Ok(_) => opened += 1,
            Err(error) => {
                let text = format!("{error:#}");
                assert!(text.contains("mutation.safetensors: "), "seed {seed}: {text}");
            }
        }
    }
    assert!(0 < opened && opened < N_MUTATIONS / 2, "{opened} of {N_MUTATIONS} mutations opened");
}

#[test]
fn hostile_headers_stay_within_bounds() {
    let dir = folder();
    let says = |header: String, data: usize, want: &str| {
        let path = put(&dir, "hostile.safetensors", file(&header, data));
        let got = open_bounded(&path).map_or_else(|error| format!("{error:#}"), |_| "opened".into());
        assert!(got.contains(want), "{got}: want {want}");
    };
    let n = 8 << 20;
    let nested = "[0],".repeat(n / 4 - 100);
    says(format!(r#"{{"a":{{"dtype":"F32","x":[{nested}0],"shape":[1],"data_offsets":[0,4]}}}}"#), 4, "opened");
    says(format!(r#"{{"__metadata__":{{"x":[{nested}0]}}}}"#), 0, "opened");
    says(format!(r#"{{"a":{{"shape":[{}0]}}}}"#, "0,".repeat(n / 2 - 100)), 0, "missing field `dtype`");
    says(format!(r#"{{"a":{}"#, "[".repeat(n - 100)), 0, "malformed header");
    let scalars = |i| line(&format!("{i}"), "F32", "[0]", 0, 0);
    let many: Vec<String> = (0..n / 70).map(scalars).collect();
    says(format!("{{{}}}", many.join(",")), 0, "opened");
    says(" ".repeat(n + 1), 0, "want a header of at most 8388608 bytes");
}
