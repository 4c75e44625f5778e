//! GGUF files against bytes laid out by hand after the specification, damaged files, and limits.

use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::error::Chain;
use engine::gguf::{Array, Gguf, GgufWriter, KeyError, TENSOR_ALIGNMENT, Value};
use engine::weights::{WeightError, WeightStore};
use engine::{DType, Result, Shape};
use tempfile::TempDir;
use tests::alloc::{Usage, measure};
use tests::clock::thread_time;
use tests::mutate::mutate;
use tests::rng::Rng;

/// Mutations that are opened.
const N_MUTATIONS: u64 = 2000;
/// Longest time of one processor that any file may take.
const MAX_TIME: Duration = Duration::from_secs(2);
/// Memory above the start that any file may take.
const MAX_PEAK_BYTES: usize = 200 << 20;

// Ids of the specification.
const U8: u32 = 0;
const U16: u32 = 2;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;

/// A GGUF file laid out by hand, right or wrong.
#[derive(Clone)]
struct Layout {
    magic: [u8; 4],
    version: u32,
    n_tensors: Option<u64>,
    n_keys: Option<u64>,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    alignment: usize,
    data: Vec<u8>,
}

impl Layout {
    fn new() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            n_tensors: None,
            n_keys: None,
            keys: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: Vec::new(),
        }
    }

    fn key(mut self, name: impl AsRef<[u8]>, ty: u32, value: impl AsRef<[u8]>) -> Self {
        self.keys.push([&text(name)[..], &ty.to_le_bytes(), value.as_ref()].concat());
        self
    }

    fn array(self, name: &str, ty: u32, n: u64, elements: impl AsRef<[u8]>) -> Self {
        self.key(name, ARRAY, [&ty.to_le_bytes()[..], &n.to_le_bytes(), elements.as_ref()].concat())
    }

    /// `extents`: innermost first, as in the file.
    fn tensor(mut self, name: impl AsRef<[u8]>, extents: &[u64], ty: u32, offset: u64) -> Self {
        let mut line = text(name);
        line.extend((extents.len() as u32).to_le_bytes());
        extents.iter().for_each(|n| line.extend(n.to_le_bytes()));
        line.extend(ty.to_le_bytes());
        line.extend(offset.to_le_bytes());
        self.tensors.push(line);
        self
    }

    fn data(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.data.extend_from_slice(bytes.as_ref());
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        out.extend(self.tensors.concat());
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }
}

fn text(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

/// The keys of [`Sample`]: every type, once plain and once as an array, with the values that are easily lost.
fn sample_keys() -> Vec<(&'static str, Value)> {
    let nan = f32::from_bits(0x7fc0_1234);
    vec![
        ("general.architecture", "sample".into()),
        ("s.u8", 250u8.into()),
        ("s.i8", (-7i8).into()),
        ("s.u16", 65_000u16.into()),
        ("s.i16", (-30_000i16).into()),
        ("s.u32", u32::MAX.into()),
        ("s.i32", i32::MIN.into()),
        ("s.f32", 1e-6f32.into()),
        ("s.nan", nan.into()),
        ("s.bool", true.into()),
        ("s.text", "a\u{0}\u{1F600}".into()),
        ("s.not_utf8", Value::String(vec![0xff, b'a', 0xc0])),
        ("s.empty", "".into()),
        ("s.u64", u64::MAX.into()),
        ("s.i64", i64::MIN.into()),
        ("s.f64", f64::NEG_INFINITY.into()),
        ("s.u8s", vec![0u8, 255].into()),
        ("s.i8s", vec![i8::MIN, 1].into()),
        ("s.u16s", vec![1u16, u16::MAX].into()),
        ("s.i16s", vec![i16::MIN].into()),
        ("s.u32s", vec![7u32, u32::MAX].into()),
        ("s.i32s", vec![24i32, 20, 20, 0].into()),
        ("s.f32s", vec![f32::INFINITY, nan, -0.0].into()),
        ("s.bools", vec![true, false, true].into()),
        ("s.texts", vec!["", "b", "\u{e9}"].into()),
        ("s.bytes", Value::Array(Array::String(vec![vec![0x80], vec![]]))),
        ("s.u64s", vec![1u64 << 53 | 1].into()),
        ("s.i64s", vec![-(1i64 << 53) - 1].into()),
        ("s.f64s", vec![0.1f64].into()),
        ("s.none", Vec::<u32>::new().into()),
        ("tokenizer.ggml.tokens", vec!["x", "y", "zz"].into()),
        ("tokenizer.ggml.token_type", vec![1i32, 1, 3].into()),
    ]
}

/// The same keys as bytes: name, type id, value.
fn sample_layout() -> Layout {
    let nan = 0x7fc0_1234u32.to_le_bytes();
    Layout::new()
        .key("general.architecture", STRING, text("sample"))
        .key("s.u8", 0, [250])
        .key("s.i8", 1, [0xf9])
        .key("s.u16", 2, [0xe8, 0xfd])
        .key("s.i16", 3, [0xd0, 0x8a])
        .key("s.u32", 4, [0xff; 4])
        .key("s.i32", 5, [0, 0, 0, 0x80])
        .key("s.f32", 6, [0xbd, 0x37, 0x86, 0x35])
        .key("s.nan", 6, nan)
        .key("s.bool", 7, [1])
        .key("s.text", 8, text(b"a\0\xf0\x9f\x98\x80"))
        .key("s.not_utf8", 8, text(b"\xffa\xc0"))
        .key("s.empty", 8, [0; 8])
        .key("s.u64", 10, [0xff; 8])
        .key("s.i64", 11, [0, 0, 0, 0, 0, 0, 0, 0x80])
        .key("s.f64", 12, [0, 0, 0, 0, 0, 0, 0xf0, 0xff])
        .array("s.u8s", 0, 2, [0, 255])
        .array("s.i8s", 1, 2, [0x80, 1])
        .array("s.u16s", 2, 2, [1, 0, 255, 255])
        .array("s.i16s", 3, 1, [0, 0x80])
        .array("s.u32s", 4, 2, [7, 0, 0, 0, 255, 255, 255, 255])
        .array("s.i32s", 5, 4, [24, 0, 0, 0, 20, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0])
        .array("s.f32s", 6, 3, [&[0, 0, 0x80, 0x7f][..], &nan, &[0, 0, 0, 0x80]].concat())
        .array("s.bools", 7, 3, [1, 0, 1])
        .array("s.texts", 8, 3, [text(""), text("b"), text(b"\xc3\xa9")].concat())
        .array("s.bytes", 8, 2, [text(b"\x80"), text("")].concat())
        .array("s.u64s", 10, 1, [1, 0, 0, 0, 0, 0, 0x20, 0])
        .array("s.i64s", 11, 1, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xdf, 0xff])
        .array("s.f64s", 12, 1, [0x9a, 0x99, 0x99, 0x99, 0x99, 0x99, 0xb9, 0x3f])
        .array("s.none", 4, 0, [])
        .array("tokenizer.ggml.tokens", 8, 3, [text("x"), text("y"), text("zz")].concat())
        .array("tokenizer.ggml.token_type", 5, 3, [1, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0])
}

/// Tensors of every format: name, type id of the specification, block length and bytes, innermost extent.
const FORMATS: [(&str, DType, u32, usize, usize, usize); 15] = [
    ("f32", DType::F32, 0, 1, 4, 3),
    ("f16", DType::F16, 1, 1, 2, 5),
    ("q4_0", DType::Q4_0, 2, 32, 18, 64),
    ("q4_1", DType::Q4_1, 3, 32, 20, 32),
    ("q5_0", DType::Q5_0, 6, 32, 22, 32),
    ("q5_1", DType::Q5_1, 7, 32, 24, 32),
    ("q8_0", DType::Q8_0, 8, 32, 34, 96),
    ("q2_k", DType::Q2_K, 10, 256, 84, 256),
    ("q3_k", DType::Q3_K, 11, 256, 110, 256),
    ("q4_k", DType::Q4_K, 12, 256, 144, 512),
    ("q5_k", DType::Q5_K, 13, 256, 176, 256),
    ("q6_k", DType::Q6_K, 14, 256, 210, 256),
    ("iq4_nl", DType::IQ4_NL, 20, 32, 18, 64),
    ("i32", DType::I32, 26, 1, 4, 1),
    ("bf16", DType::BF16, 30, 1, 2, 7),
];

/// Rows of the tensors of [`FORMATS`].
const ROWS: u64 = 3;

/// The bytes of tensor `i` of [`FORMATS`].
fn format_bytes(i: usize) -> Vec<u8> {
    let (_, _, _, len, bytes, n) = FORMATS[i];
    Rng::new(i as u64).bytes(ROWS as usize * n / len * bytes)
}

/// [`sample_layout`] with the tensors of [`FORMATS`].
fn full_layout() -> Layout {
    let mut layout = sample_layout();
    for (i, &(name, _, id, _, _, n)) in FORMATS.iter().enumerate() {
        let offset = layout.data.len() as u64;
        layout = layout.tensor(name, &[n as u64, ROWS], id, offset).data(format_bytes(i));
        let padded = layout.data.len().next_multiple_of(32);
        layout.data.resize(padded, 0);
    }
    layout
}

fn write_full(path: &Path) -> Result<()> {
    let mut writer = GgufWriter::create(path)?;
    for (name, value) in sample_keys() {
        writer.key(name, value)?;
    }
    for (name, dtype, _, _, _, n) in FORMATS {
        writer.tensor(name, dtype, Shape::from([ROWS as usize, n]))?;
    }
    for (i, (name, ..)) in FORMATS.iter().enumerate() {
        writer.begin(name)?;
        for piece in format_bytes(i).chunks(11) {
            writer.write(piece)?;
        }
    }
    writer.finish()
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn put(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    // Some file systems write a file that is cut and filled again to the disk at once.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn open_bytes(dir: &TempDir, bytes: &[u8]) -> Result<Gguf> {
    Gguf::open(&put(dir, "file.gguf", bytes))
}

/// Values as text in which NaNs with equal bits are equal.
fn exact(value: &Value) -> String {
    match value {
        Value::F32(v) => format!("f32 bits {:x}", v.to_bits()),
        Value::Array(Array::F32(v)) => format!("f32 bits {:x?}", v.iter().map(|v| v.to_bits()).collect::<Vec<_>>()),
        other => format!("{other:?}"),
    }
}

#[test]
fn hand_made_file_reads_exactly() {
    let dir = folder();
    let gguf = open_bytes(&dir, &full_layout().bytes()).unwrap();
    let got: Vec<(&str, String)> = gguf.metadata().map(|(key, value)| (key, exact(&value))).collect();
    let want: Vec<(&str, String)> = sample_keys().iter().map(|(key, value)| (*key, exact(value))).collect();
    assert_eq!(got, want);
    assert_eq!(gguf.n_tensors(), FORMATS.len());
    for (i, (tensor, (name, dtype, _, _, _, n))) in gguf.tensors().zip(FORMATS).enumerate() {
        assert_eq!((tensor.name, tensor.dtype, tensor.shape), (name, dtype, Shape::from([ROWS as usize, n])));
        assert_eq!(tensor.bytes, format_bytes(i), "{name}");
        assert!(tensor.bytes.as_ptr().addr().is_multiple_of(TENSOR_ALIGNMENT));
    }
}

#[test]
fn writer_makes_the_bytes_of_the_specification() {
    let dir = folder();
    let path = dir.path().join("out.gguf");
    write_full(&path).unwrap();
    assert!(std::fs::read(&path).unwrap() == full_layout().bytes());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the temporary file is gone");
}

#[test]
fn writer_of_no_tensor_makes_a_readable_file() {
    let dir = folder();
    let path = dir.path().join("vocabulary.gguf");
    let mut writer = GgufWriter::create(&path).unwrap();
    writer.key("a", 1u8).unwrap();
    writer.finish().unwrap();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!((gguf.n_tensors(), gguf.get_u32("a").unwrap()), (0, 1));
}

#[test]
fn dropped_writer_leaves_the_old_file_and_nothing_else() {
    let dir = folder();
    let path = put(&dir, "out.gguf", b"old");
    let mut writer = GgufWriter::create(&path).unwrap();
    writer.tensor("t", DType::F32, Shape::from([2])).unwrap();
    writer.begin("t").unwrap();
    writer.write(&[0; 4]).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    drop(writer);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
}

#[test]
fn writer_refuses_wrong_order_and_sizes() {
    let dir = folder();
    let path = dir.path().join("out.gguf");
    let mut writer = GgufWriter::create(&path).unwrap();
    writer.key("k", 1u32).unwrap();
    let says = |result: Result<()>, want: &str| {
        let got = result.unwrap_err().to_string();
        assert!(got.contains(want), "{got}: want {want}");
    };
    says(writer.key("k", 2u32), "metadata key k is there twice");
    says(writer.key("general.alignment", 64u32), "general.alignment: want 32");
    says(writer.write(&[0]), "after the tensor's name");
    says(writer.tensor("q", DType::Q8_0, Shape::from([2, 33])), "rows of a multiple of 32, got [2, 33]");
    says(writer.tensor(&"n".repeat(64), DType::F32, Shape::from([1])), "a name of 1 to 63 bytes");
    writer.tensor("a", DType::F32, Shape::from([2])).unwrap();
    says(writer.tensor("a", DType::F32, Shape::from([2])), "tensor a is there twice");
    writer.tensor("b", DType::BF16, Shape::from([1])).unwrap();
    says(writer.begin("b"), "want the bytes of a, got those of b");
    writer.begin("a").unwrap();
    says(writer.key("late", 1u32), "comes after tensor bytes");
    says(writer.write(&[0; 9]), "8 bytes are missing, got 9");
    writer.write(&[0; 7]).unwrap();
    says(writer.begin("b"), "tensor a: want 8 bytes, got 7");
    writer.write(&[0; 1]).unwrap();
    says(writer.finish(), "tensor b has no bytes");
    assert!(!path.exists());
}

#[test]
fn accessors_convert_what_fits_and_name_what_does_not() {
    let dir = folder();
    let gguf = open_bytes(&dir, &sample_layout().bytes()).unwrap();
    assert_eq!(gguf.get_u32("s.u8").unwrap(), 250);
    assert_eq!(gguf.get_i32("s.i16").unwrap(), -30_000);
    assert_eq!(gguf.get_u64("s.u64").unwrap(), u64::MAX);
    assert_eq!(gguf.get_f32("s.f32").unwrap(), 1e-6);
    assert_eq!(gguf.get_f32("s.f64").unwrap(), f32::NEG_INFINITY);
    assert!(gguf.get_f32("s.nan").unwrap().is_nan());
    assert!(gguf.get_bool("s.bool").unwrap());
    assert_eq!(gguf.get_str("s.text").unwrap(), "a\u{0}\u{1F600}");
    assert_eq!(gguf.get_str_array("s.texts").unwrap(), ["", "b", "\u{e9}"]);
    assert_eq!(gguf.get_i32_array("s.i32s").unwrap(), [24, 20, 20, 0]);
    assert_eq!(gguf.get_u32_array("s.i32s").unwrap(), [24, 20, 20, 0]);
    assert_eq!(gguf.get_f32_array("s.f64s").unwrap(), [0.1]);
    assert!(gguf.get_u32_array("s.none").unwrap().is_empty());
    assert_eq!(gguf.get_u32_or("absent", 5).unwrap(), 5);
    assert_eq!(gguf.get_str_or("absent", "x").unwrap(), "x");
    let says = |error: Option<KeyError>, want: &str| assert_eq!(error.unwrap().to_string(), want);
    says(gguf.get_u32("absent").err(), "metadata key absent is missing");
    says(gguf.get_u32("s.i8").err(), "metadata key s.i8: want u32, got i8 -7");
    says(gguf.get_u32_or("s.i8", 5).err(), "metadata key s.i8: want u32, got i8 -7");
    says(gguf.get_i32("s.u32").err(), "metadata key s.u32: want i32, got u32 4294967295");
    says(gguf.get_u32("s.bool").err(), "metadata key s.bool: want u32, got bool true");
    says(gguf.get_bool("s.u8").err(), "metadata key s.u8: want bool, got u8 250");
    says(gguf.get_f32("s.u8").err(), "metadata key s.u8: want f32, got u8 250");
    says(gguf.get_f32("s.f32s").err(), "metadata key s.f32s: want f32, got array of 3 f32");
    says(gguf.get_str("s.u8").err(), "metadata key s.u8: want string, got u8 250");
    says(gguf.get_str("s.not_utf8").err(), "metadata key s.not_utf8: want string in UTF-8, got string");
    says(
        gguf.get_str_array("s.bytes").err(),
        "metadata key s.bytes: want array of string in UTF-8, got array of 2 string",
    );
    says(gguf.get_i32_array("s.u32s").err(), "metadata key s.u32s: want array of i32, got array of 2 u32");
    says(gguf.get_i32_array("s.texts").err(), "metadata key s.texts: want array of i32, got array of 3 string");
}

/// A part of a split model with one tensor.
fn part(no: u16, count: u16, n_tensors: i32, name: &str) -> Layout {
    Layout::new()
        .key("split.no", U16, no.to_le_bytes())
        .key("split.count", U16, count.to_le_bytes())
        .key("split.tensors.count", I32, n_tensors.to_le_bytes())
        .tensor(name, &[2], 0, 0)
        .data([no as u8; 32])
}

fn part_name(i: usize) -> String {
    format!("m-{i:05}-of-00003.gguf")
}

#[test]
fn split_model_opens_by_its_first_part() {
    let dir = folder();
    for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
        put(&dir, &part_name(i + 1), &part(i as u16, 3, 3, name).key("x", U8, [i as u8]).bytes());
    }
    let gguf = Gguf::open(&dir.path().join(part_name(1))).unwrap();
    let tensors: Vec<(&str, u8)> = gguf.tensors().map(|tensor| (tensor.name, tensor.bytes[7])).collect();
    assert_eq!(tensors, [("a", 0), ("b", 1), ("c", 2)]);
    assert_eq!(gguf.get_u32("x").unwrap(), 0, "metadata are the first part's");
    assert_eq!(gguf.tensor("c").unwrap().bytes, [2; 8]);

    let fails = |want: &str| {
        let got = Chain(&Gguf::open(&dir.path().join(part_name(1))).unwrap_err()).to_string();
        assert!(got.contains(want), "{got}: want {want}");
    };
    let second = Gguf::open(&dir.path().join(part_name(2))).unwrap_err().to_string();
    assert!(second.ends_with("split.no: want 0, got 1; a split model is opened by its first part"), "{second}");
    put(&dir, &part_name(3), &part(1, 3, 3, "c").bytes());
    fails("m-00003-of-00003.gguf: split.no: want 2, got 1");
    put(&dir, &part_name(3), &part(2, 4, 3, "c").bytes());
    fails("m-00003-of-00003.gguf: split.count: want 3, got 4");
    put(&dir, &part_name(3), &part(2, 3, 3, "b").bytes());
    fails("m-00003-of-00003.gguf: tensor b is in two parts");
    std::fs::remove_file(dir.path().join(part_name(3))).unwrap();
    fails("m-00001-of-00003.gguf: a model in 3 files, of which m-00003-of-00003.gguf is missing; fetch");
    std::fs::rename(dir.path().join(part_name(2)), dir.path().join("2")).unwrap();
    fails("of which m-00002-of-00003.gguf and 1 more are missing");
    std::fs::rename(dir.path().join("2"), dir.path().join(part_name(2))).unwrap();
    put(&dir, &part_name(3), &part(2, 3, 3, "c").bytes());
    put(&dir, &part_name(1), &part(0, 3, 4, "a").bytes());
    fails("split.tensors.count: want 4, got 3 tensors in 3 parts");
    put(&dir, &part_name(1), &part(0, 60_000, 3, "a").bytes());
    fails("split.count: want at most 1024, got 60000");
    let renamed = Gguf::open(&put(&dir, "other.gguf", &part(0, 3, 3, "a").bytes())).unwrap_err().to_string();
    assert!(renamed.ends_with("the first of 3 parts wants a name that ends in -00001-of-00003.gguf"), "{renamed}");
}

#[test]
fn files_in_memory_must_be_aligned() {
    let bytes = full_layout().bytes();
    let mut block = vec![0u8; bytes.len() + 2 * TENSOR_ALIGNMENT];
    let shift = TENSOR_ALIGNMENT - block.as_ptr().addr() % TENSOR_ALIGNMENT;
    block[shift..shift + bytes.len()].copy_from_slice(&bytes);
    let block: &'static [u8] = block.leak();
    let gguf = Gguf::from_static(&block[shift..shift + bytes.len()], "built in").unwrap();
    assert_eq!((gguf.n_tensors(), gguf.path()), (FORMATS.len(), Path::new("built in")));
    assert_eq!(gguf.tensor("q6_k").unwrap().bytes, format_bytes(11));
    let error = Gguf::from_static(&block[shift + 1..], "built in").unwrap_err().to_string();
    assert_eq!(error, "built in: the bytes in memory are not aligned to 32");
}

/// Malformed files, and what the message must contain.
fn malformed() -> Vec<(Layout, &'static str)> {
    let new = Layout::new;
    let aligned = |n: u32| new().key("general.alignment", U32, n.to_le_bytes());
    let f32s = |name: &str, offset| new().tensor(name, &[4], 0, offset).data([0; 64]);
    vec![
        (Layout { magic: *b"GGML", ..new() }, "does not begin with \"GGUF\""),
        (Layout { version: 1, ..new() }, "want GGUF version 2 or 3, got 1"),
        (Layout { version: 4, ..new() }, "want GGUF version 2 or 3, got 4"),
        (Layout { version: 3u32.swap_bytes(), ..new() }, "big-endian"),
        (Layout { n_keys: Some(u64::MAX), ..new() }, "metadata keys, got 18446744073709551615"),
        (Layout { n_tensors: Some(u64::MAX), ..new() }, "tensors, got 18446744073709551615"),
        (
            Layout { n_keys: Some(2), alignment: 1, ..new().key("a", U8, [1]) },
            "wants 8 bytes at byte 38, but the file has 38",
        ),
        (Layout { n_tensors: Some(2), ..f32s("a", 0) }, "want a tensor name of 1 to 256 bytes, got 0"),
        (new().key("", U8, [1]), "want a metadata key of 1 to 65535 bytes, got 0"),
        (new().key("k".repeat(65_536), U8, [1]), "want a metadata key of 1 to 65535 bytes, got 65536"),
        (new().key(b"k\xff", U8, [1]), "want a metadata key in UTF-8"),
        (new().key("a", U8, [1]).key("a", U8, [1]), "metadata key a is there twice"),
        (new().key("line\nbreak", 13, [1]), "metadata key line\\nbreak: value type 13 is not known"),
        (new().key("a", BOOL, [2]), "metadata key a: want bool 0 or 1, got 2"),
        (new().array("a", BOOL, 2, [1, 7]), "metadata key a: want bool 0 or 1, got 7"),
        (new().key("a", STRING, u64::MAX.to_le_bytes()), "wants 18446744073709551615 bytes"),
        (new().key("a", STRING, (1u64 << 30).to_le_bytes()), "wants 1073741824 bytes"),
        (new().array("a", U64, u64::MAX, []), "array elements outside tokenizer. keys, at most"),
        (new().array("tokenizer.a", U64, u64::MAX, []), "array elements under tokenizer. keys, at most"),
        (new().array("a", U64, 1000, [0; 100]), "wants 8000 bytes"),
        (new().array("a", STRING, 1000, [0; 100]), "wants 8 bytes"),
        (new().array("a", ARRAY, 1, [0; 20]), "metadata key a: arrays of arrays are not supported"),
        (new().array("a", 99, 1, [0; 20]), "metadata key a: value type 99 is not known"),
        (aligned(0), "want a power of two of at least 32, got 0"),
        (aligned(8), "want a power of two of at least 32, got 8"),
        (aligned(48), "want a power of two of at least 32, got 48"),
        (new().key("general.alignment", U64, 32u64.to_le_bytes()), "general.alignment: want u32, got u64"),
        (new().key("general.alignment", F32, 32f32.to_le_bytes()), "general.alignment: want u32, got f32"),
        (new().key("split.count", STRING, text("3")), "split.count: want a count, got string"),
        (new().key("split.count", I32, (-3i32).to_le_bytes()), "split.count: want a count, got i32"),
        (f32s("", 0), "want a tensor name of 1 to 256 bytes, got 0"),
        (f32s(&"n".repeat(257), 0), "want a tensor name of 1 to 256 bytes, got 257"),
        (f32s("a", 0).tensor("a", &[4], 0, 32), "tensor a is there twice"),
        (f32s("a", 0).tensor("b", &[4], 0, 0), "tensors a and b overlap"),
        (f32s("a", 3), "tensor a: want an offset that is a multiple of 32, got 3"),
        (f32s("a", 64), "tensor a: ends at byte 144, but the file has 128: it is cut short"),
        (f32s("a", u64::MAX - 31), "tensor a: offset 18446744073709551584 is beyond any file"),
        (Layout { alignment: 64, ..aligned(64) }.tensor("a", &[4], 0, 32).data([0; 64]), "multiple of 64, got 32"),
        (new().tensor("a", &[], 0, 0).data([0; 32]), "tensor a: want 1 to 4 dimensions, got 0"),
        (new().tensor("a", &[1; 5], 0, 0).data([0; 32]), "tensor a: want 1 to 4 dimensions, got 5"),
        (new().tensor("a", &[4, 0], 0, 0).data([0; 32]), "tensor a: want extents above 0, got [0, 4]"),
        (new().tensor("a", &[1 << 32], 0, 0), "[4294967296] are more elements than are supported"),
        (new().tensor("a", &[1 << 62, 4], 0, 0), "are more elements than are supported"),
        (new().tensor("a", &[u64::MAX; 4], 0, 0), "are more elements than are supported"),
        (new().tensor("a", &[33], 8, 0).data([0; 64]), "tensor a: Q8_0 wants rows of a multiple of 32, got 33"),
        (new().tensor("a", &[32, 8], 12, 0).data([0; 160]), "tensor a: Q4_K wants rows of a multiple of 256, got 32"),
        (new().tensor("a", &[32], 4, 0).data([0; 64]), "tensor a: type id 4, is not supported"),
        // No formats of weights: these will not be supported one day.
        (new().tensor("a", &[32], 15, 0).data([0; 64]), "tensor a: type Q8_K, id 15, is not supported"),
        (new().tensor("a", &[32], 28, 0).data([0; 256]), "tensor a: type F64, id 28, is not supported"),
        (new().tensor("a", &[32], u32::MAX, 0).data([0; 64]), "tensor a: type id 4294967295, is not supported"),
    ]
}

#[test]
fn malformed_files_are_named() {
    let dir = folder();
    for (layout, want) in malformed() {
        let got = open_bytes(&dir, &layout.bytes()).unwrap_err().to_string();
        assert!(got.contains(want), "{got}: want {want}");
        assert!(got.contains("file.gguf: ") && got.lines().count() == 1 && got.len() < 400, "{got}");
    }
    let error = open_bytes(&dir, b"").unwrap_err().to_string();
    assert!(error.ends_with("file.gguf: the file is empty"), "{error}");
    let error = Chain(&Gguf::open(dir.path()).unwrap_err()).to_string();
    assert!(error.ends_with("is a directory"), "{error}");
}

#[test]
fn older_version_and_wider_alignment_open() {
    let dir = folder();
    let layout = Layout { version: 2, alignment: 128, ..Layout::new() }
        .key("general.alignment", U32, 128u32.to_le_bytes())
        .tensor("a", &[1, 2], 0, 128)
        .data([0; 128])
        .data([5; 8]);
    let gguf = open_bytes(&dir, &layout.bytes()).unwrap();
    let tensor = gguf.tensor("a").unwrap();
    assert_eq!((gguf.version(), tensor.bytes, tensor.shape), (2, &[5; 8][..], Shape::from([2, 1])));
}

#[test]
fn every_truncation_is_an_error() {
    let dir = folder();
    let bytes = full_layout().bytes();
    // The last tensor ends before the file does: its padding may be missing.
    let padding = 32 - (7 * ROWS as usize * 2) % 32;
    for n in 0..bytes.len() - padding {
        assert!(open_bytes(&dir, &bytes[..n]).is_err(), "{n} bytes of {}", bytes.len());
    }
    assert!(open_bytes(&dir, &bytes[..bytes.len() - padding]).is_ok());
}

/// Opens a file and reads all of it, within the bounds that every file has to keep.
fn open_bounded(path: &Path) -> (Result<Gguf>, Usage) {
    let start = thread_time();
    let (result, usage) = measure(|| {
        let gguf = Gguf::open(path)?;
        for (key, value) in gguf.metadata() {
            std::hint::black_box((key, value));
        }
        for tensor in gguf.tensors() {
            std::hint::black_box(tensor.bytes.iter().map(|&b| u64::from(b)).sum::<u64>());
        }
        Ok(gguf)
    });
    let time = thread_time().saturating_sub(start);
    assert!(time < MAX_TIME, "{} took {time:?}", path.display());
    let mapped = std::fs::metadata(path).unwrap().len() as usize;
    assert!(usage.peak_bytes + mapped < MAX_PEAK_BYTES, "{usage:?} and {mapped} bytes mapped");
    (result, usage)
}

#[test]
fn mutations_give_a_file_or_an_error() {
    let dir = folder();
    let bytes = full_layout().bytes();
    let header = bytes.len() - full_layout().data.len();
    let mut opened = 0;
    for seed in 0..N_MUTATIONS {
        let path = put(&dir, "mutation.gguf", &mutate(&bytes, header, &mut Rng::new(seed)));
        match open_bounded(&path).0 {
            Ok(_) => opened += 1,
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("mutation.gguf: ") && text.lines().count() == 1, "seed {seed}: {text}");
            }
        }
    }
    assert!(0 < opened && opened < N_MUTATIONS / 2, "{opened} of {N_MUTATIONS} mutations opened");
}

#[test]
fn hostile_headers_stay_within_bounds() {
    let dir = folder();
    let says = |layout: Layout, want: &str| {
        let path = put(&dir, "hostile.gguf", &layout.bytes());
        let (result, usage) = open_bounded(&path);
        let got = result.err().map_or("opened".into(), |error| error.to_string());
        assert!(got.contains(want), "{got}: want {want}; {usage:?}");
    };
    let mib = |n: usize| n << 20;
    says(Layout::new().array("a", U8, mib(16) as u64, vec![1; mib(16)]), "array elements outside tokenizer. keys");
    says(Layout::new().array("a", U8, 1 << 18, vec![1; 1 << 18]), "opened");
    says(Layout::new().array("tokenizer.a", U8, 1 << 21, vec![1; 1 << 21]), "opened");
    says(Layout::new().array("tokenizer.a", STRING, 1 << 21, vec![0; 8 << 21]), "opened");
    says(Layout::new().key("a", STRING, text(vec![b'a'; mib(9)])), "header bytes outside tokenizer. arrays");
    // All limits together: long names, bytes that grow threefold as text, and a vocabulary.
    let words = Layout::new().array("tokenizer.a", STRING, 1 << 21, text([b'w'; 20]).repeat(1 << 21));
    let words = words.array("a", U8, 1 << 18, vec![255; 1 << 18]).key("b", STRING, text(vec![0xff; mib(7)]));
    says(words, "opened");
    says(Layout::new().array("tokenizer.a", STRING, 1, text(vec![b'a'; mib(65)])), "the header goes past byte");
    let keys = (0..1 << 14).fold(Layout::new(), |layout, i| layout.key(format!("{i}"), U8, [0]));
    says(keys, "opened");
    let many = (0..1 << 16).fold(Layout::new(), |layout, i| layout.tensor(format!("{i}"), &[1], 0, 32 * i));
    says(many.data(vec![0; 32 << 16]), "opened");
}

#[test]
fn weights_are_found_by_name_and_shape() {
    let dir = folder();
    let file = |name: &str, layout: Layout| Gguf::open(&put(&dir, name, &layout.bytes())).unwrap();
    let text = file("text.gguf", Layout::new().tensor("t", &[4, 2], 0, 0).data([1; 32]));
    let bias = Layout::new().tensor("a.bias", &[1, 1, 480], 0, 0).tensor("a.f16", &[3], 1, 1920).data([2; 1952]);
    let store = WeightStore::new([text.clone(), file("mmproj.gguf", bias)]).unwrap();
    assert_eq!(store.len(), 3);

    let t = store.get("t", [2, 4]).unwrap();
    assert_eq!((t.shape(), t.dtype(), store.bytes(t)), (Shape::from([2, 4]), DType::F32, &[1; 32][..]));
    store.release(t);
    assert_eq!(store.bytes(t), [1; 32]);
    let bias = store.get_squeezed("a.bias", [480]).unwrap();
    assert_eq!((bias.shape(), store.desc(bias).shape), (Shape::from([480]), Shape::from([480, 1, 1])));
    assert_eq!(store.bytes(bias), [2; 1920]);
    assert!(store.get_optional("absent", [1]).unwrap().is_none());
    let names: Vec<&str> = store.iter().map(|(_, desc)| &*desc.name).collect();
    assert_eq!(names, ["t", "a.bias", "a.f16"]);

    let says = |error: Option<WeightError>, want: &str| assert_eq!(error.unwrap().to_string(), want);
    says(store.get("absent", [1]).err(), "tensor absent is missing");
    says(store.get("t", [4, 2]).err(), "t: want [4, 2], got [2, 4]");
    says(store.get_optional("t", [8]).err(), "t: want [8], got [2, 4]");
    says(store.get("a.bias", [480]).err(), "a.bias: want [480], got [480, 1, 1]");
    says(store.get_squeezed("a.bias", [240, 2]).err(), "a.bias: want [240, 2], got [480, 1, 1]");
    let zero = models::Error::from(store.get("t", [0, 4]).unwrap_err()).to_string();
    assert!(zero.ends_with("text.gguf: t: want [0, 4], got [2, 4]"), "{zero}");
    let twice = WeightStore::new([text.clone(), text]).unwrap_err().to_string();
    assert!(twice.contains("text.gguf: tensor t is in ") && twice.ends_with("text.gguf too"), "{twice}");
}
