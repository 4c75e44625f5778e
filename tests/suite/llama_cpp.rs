//! Our files against lists of what llama.cpp's converter wrote (`fixtures/llama_cpp`).

use std::fmt::Write;

use convert::FileType;
use engine::gguf::{Array, Gguf, Value};
use serde_json::json;

use crate::checkpoint::{convert, fixture, pair, stored, values};

/// Lists longer than this are their number and a check sum.
const SHORT: usize = 16;

/// CRC-32 as in zip files.
fn crc32(bytes: impl IntoIterator<Item = u8>) -> u32 {
    let step =
        |crc: u32, byte| (0..8).fold(crc ^ u32::from(byte), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()));
    !bytes.into_iter().fold(!0, step)
}

fn texts<T: ToString>(list: &[T]) -> Vec<String> {
    list.iter().map(T::to_string).collect()
}

fn utf8(text: &[u8]) -> String {
    String::from_utf8(text.to_vec()).unwrap()
}

/// A key as `fixtures/llama_cpp/list.py` writes it.
fn key_line(name: &str, value: &Value) -> String {
    let (kind, text) = match value {
        Value::U32(v) => ("UINT32", v.to_string()),
        Value::F32(v) => ("FLOAT32", format!("{:#010x}", v.to_bits())),
        Value::Bool(v) => ("BOOL", v.to_string()),
        Value::String(v) => ("STRING", json!(utf8(v)).to_string()),
        Value::Array(list) => {
            let (kind, items) = match list {
                Array::I32(list) => ("INT32[]", texts(list)),
                Array::Bool(list) => ("BOOL[]", texts(list)),
                Array::String(list) => ("STRING[]", list.iter().map(|text| utf8(text)).collect()),
                other => panic!("{name}: {other:?}"),
            };
            let is_long = kind == "STRING[]" || items.len() > SHORT;
            let long = || format!("{} {:08x}", items.len(), crc32(items.join("\n").into_bytes()));
            (kind, if is_long { long() } else { items.join(",") })
        }
        other => panic!("{name}: {other:?}"),
    };
    format!("key {name} {kind} {text}")
}

/// A file as `fixtures/llama_cpp/list.py` writes it.
fn list(file: &Gguf) -> Vec<String> {
    let mut lines: Vec<String> = file.metadata().map(|(name, value)| key_line(name, &value)).collect();
    lines.extend(file.tensors().map(|t| {
        let mut line = format!("tensor {} {} {}", t.name, t.dtype, texts(t.shape.dims()).join(","));
        match t.name.contains(".conv_norm.") || t.name.ends_with(".ssm_a") {
            true => line += " -",
            false => write!(line, " {:08x}", crc32(t.bytes.iter().copied())).unwrap(),
        }
        line
    }));
    lines.sort();
    lines
}

/// Our file against llama.cpp's; `passed_over` says which lines only one of them has.
#[track_caller]
pub fn compare(file: &Gguf, theirs: &str, passed_over: fn(&str) -> bool) {
    let theirs = std::fs::read_to_string(fixture("llama_cpp").join(theirs)).unwrap();
    let ours: Vec<String> = list(file).into_iter().filter(|line| !passed_over(line)).collect();
    let theirs: Vec<&str> = theirs.lines().filter(|line| !passed_over(line)).collect();
    assert!(theirs.len() > 20);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.len());
}

/// The text models of golden checkpoints in each of the types: [`compare`].
#[track_caller]
pub fn compare_all(names: &[&str], types: [FileType; 3], passed_over: fn(&str) -> bool) {
    for name in names {
        for file_type in types {
            let files = convert(&fixture("golden").join(name), pair(file_type)).unwrap();
            let theirs = format!("{name}-{}.txt", file_type.dtype().name().to_lowercase());
            compare(&files[0], &theirs, passed_over);
        }
    }
}

/// Checks the one value of files that passes an exponential, of the first layer of a golden checkpoint: `-exp(a_log)` within a
/// unit in the last place. `is_ordered`: the file keeps the checkpoint's order.
#[track_caller]
pub fn decays_are_exponentials(name: &str, a_log: &str, is_ordered: bool) {
    let folder = fixture("golden").join(name);
    let files = convert(&folder, pair(FileType::F32)).unwrap();
    let a = files[0].tensor("blk.0.ssm_a").unwrap();
    let mut got = values(a.dtype, a.bytes);
    let mut want: Vec<f64> = stored(&folder)[a_log].1.iter().map(|&x| -f64::from(x).exp()).collect();
    if !is_ordered {
        got.sort_by(f32::total_cmp);
        want.sort_by(f64::total_cmp);
    }
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((f64::from(*got) / want - 1.0).abs() <= f64::from(f32::EPSILON), "{name}: {got} for {want}");
    }
}
