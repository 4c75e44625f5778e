//! One file, checked by itself. [`Part`] is a whole model or a part of a split one.

use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::aligned::AlignedBytes;
use super::metadata::{Array, Value, ValueType};
use super::scan::{self, ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Header, Kind, TensorEntry};
use super::{TENSOR_ALIGNMENT, bad, parse, shown};
use crate::dtype::DType;
use crate::error::Result;
use crate::mapping::Mapping;
use crate::parallel::Parallel;
use crate::shape::Shape;

/// Parts of a split model. Published ones have a few dozen.
const MAX_PARTS: u64 = 1024;

/// Keys of a split model. Source: llama.cpp, `LLM_KV_SPLIT_*`.
const SPLIT_NO: &str = "split.no";
pub(super) const SPLIT_COUNT: &str = "split.count";
pub(super) const SPLIT_TENSORS: &str = "split.tensors.count";

/// The bytes of a file.
#[derive(Clone)]
pub(super) enum Bytes {
    Mapped(Arc<Mapping>),
    Static(&'static [u8]),
    Owned(Arc<AlignedBytes>),
}

impl Bytes {
    /// Copies what is mapped, unless somebody else looks at it.
    pub(super) fn make_resident(&mut self, threads: &dyn Parallel) -> Result<()> {
        let mapped = std::mem::replace(self, Self::Static(&[]));
        *self = match mapped {
            Self::Mapped(map) => Self::Mapped(match Arc::try_unwrap(map) {
                Ok(map) => Arc::new(map.into_resident(threads)?),
                Err(shared) => shared,
            }),
            other @ (Self::Static(_) | Self::Owned(_)) => other,
        };
        Ok(())
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// A tensor and its place.
pub(super) struct Stored {
    pub name: String,
    pub dtype: DType,
    pub shape: Shape,
    pub part: usize,
    pub range: Range<usize>,
}

/// One file, checked by itself.
pub(super) struct Part {
    pub path: PathBuf,
    pub bytes: Bytes,
    pub version: u32,
    pub keys: Vec<scan::Key>,
    pub tensors: Vec<Stored>,
}

impl Part {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::read(path, Bytes::Mapped(Arc::new(Mapping::open(path)?)))
    }

    pub(super) fn read(path: &Path, bytes: Bytes) -> Result<Self> {
        let header = scan::scan(path, &bytes)?;
        let alignment = alignment_of(path, &header, &bytes)?;
        parse::parse(path, &bytes, &header)?;
        let data = (header.end as u64).next_multiple_of(alignment);
        let mut tensors = Vec::with_capacity(header.tensors.len());
        for entry in header.tensors {
            tensors.push(place(path, entry, data, alignment, bytes.len() as u64)?);
        }
        check_overlap(path, &tensors)?;
        Ok(Self { path: path.to_owned(), bytes, version: header.version, keys: header.keys, tensors })
    }

    /// The value of one of the `split.` keys.
    pub(super) fn split(&self, key: &str) -> Result<Option<u64>> {
        let Some(found) = self.keys.iter().find(|k| k.name == key) else { return Ok(None) };
        let value = if let Kind::One(_) = found.kind { decode(found, &self.bytes).as_integer() } else { None };
        match value.and_then(|v| u64::try_from(v).ok()) {
            Some(v) => Ok(Some(v)),
            None => Err(bad(&self.path, format!("{key}: want a count, got {}", found.kind))),
        }
    }

    /// Checks that this is part `i`, counted from 0, of `n_parts`.
    pub(crate) fn check_place(&self, i: u64, n_parts: u64) -> Result<()> {
        let (no, count) = (self.split(SPLIT_NO)?, self.split(SPLIT_COUNT)?);
        if count != Some(n_parts) || n_parts > MAX_PARTS {
            let got = count.map_or("none".into(), |n| n.to_string());
            let want = if n_parts > MAX_PARTS { format!("at most {MAX_PARTS}") } else { n_parts.to_string() };
            return Err(bad(&self.path, format!("{SPLIT_COUNT}: want {want}, got {got}")));
        }
        if no != Some(i) {
            let got = no.map_or("none".into(), |n| n.to_string());
            let hint = if i == 0 { "; a split model is opened by its first part" } else { "" };
            return Err(bad(&self.path, format!("{SPLIT_NO}: want {i}, got {got}{hint}")));
        }
        Ok(())
    }
}

/// The value of a key of `file`.
pub(super) fn decode(key: &scan::Key, file: &[u8]) -> Value {
    let bytes = &file[key.value.clone()];
    match key.kind {
        Kind::One(ty) => Value::decode(ty, bytes),
        Kind::Many(ty, _) => Value::Array(Array::decode(ty, bytes)),
    }
}

fn alignment_of(path: &Path, header: &Header, file: &[u8]) -> Result<u64> {
    let Some(key) = header.keys.iter().find(|key| key.name == ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    let found = match key.kind {
        Kind::One(ValueType::U32) => decode(key, file).as_integer().and_then(|v| u64::try_from(v).ok()),
        kind => return Err(bad(path, format!("{ALIGNMENT_KEY}: want u32, got {kind}"))),
    };
    found.filter(|v| v.is_power_of_two() && *v >= TENSOR_ALIGNMENT as u64).ok_or_else(|| {
        let got = found.map_or("none".into(), |v| v.to_string());
        bad(path, format!("{ALIGNMENT_KEY}: want a power of two of at least {TENSOR_ALIGNMENT}, got {got}"))
    })
}

/// Finds the bytes of a line of the tensor table. `data`: where tensor data starts.
fn place(path: &Path, entry: TensorEntry, data: u64, alignment: u64, file_bytes: u64) -> Result<Stored> {
    let TensorEntry { name, dtype, shape, offset } = entry;
    let fail = |what: String| bad(path, format!("tensor {}: {what}", shown(&name)));
    if !offset.is_multiple_of(alignment) {
        return Err(fail(format!("want an offset that is a multiple of {alignment}, got {offset}")));
    }
    // Below 2^32 elements of at most 4 bytes: no overflow.
    let bytes = shape.rows() as u64 * dtype.row_bytes(shape.last()) as u64;
    let start = data.checked_add(offset);
    let end = start.and_then(|start| start.checked_add(bytes));
    let (Some(start), Some(end)) = (start, end) else {
        return Err(fail(format!("offset {offset} is beyond any file")));
    };
    if end > file_bytes {
        return Err(fail(format!("ends at byte {end}, but the file has {file_bytes}: it is cut short")));
    }
    let range = usize::try_from(start).and_then(|start| Ok(start..usize::try_from(end)?));
    let range = range.map_err(|_| fail("is beyond the address space".into()))?;
    Ok(Stored { name, dtype, shape, part: 0, range })
}

fn check_overlap(path: &Path, tensors: &[Stored]) -> Result<()> {
    let mut order: Vec<&Stored> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.range.start);
    match order.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        Some([a, b]) => Err(bad(path, format!("tensors {} and {} overlap", shown(&a.name), shown(&b.name)))),
        _ => Ok(()),
    }
}

/// Checks that the other parts are beside the first.
///
/// Errors: how many are missing, of how many, and the first of them.
pub(super) fn check_all_there(first: &Path, n_parts: u64) -> Result<()> {
    let mut missing = Vec::new();
    for i in 1..n_parts {
        let path = part_path(first, i, n_parts)?;
        if std::fs::metadata(&path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            missing.push(path);
        }
    }
    let Some(path) = missing.first() else { return Ok(()) };
    let name = path.file_name().unwrap_or_default().display();
    let missing = match missing.len() {
        1 => format!("{name} is missing"),
        n => format!("{name} and {} more are missing", n - 1),
    };
    Err(bad(first, format!("a model in {n_parts} files, of which {missing}; fetch all of them into this folder")))
}

/// The path of part `i`, counted from 0, beside the first.
pub(super) fn part_path(first: &Path, i: u64, n_parts: u64) -> Result<PathBuf> {
    let suffix = |i: u64| format!("-{:05}-of-{n_parts:05}.gguf", i + 1);
    let name = first.file_name().and_then(|name| name.to_str());
    match name.and_then(|name| name.strip_suffix(&suffix(0))) {
        Some(stem) => Ok(first.with_file_name(format!("{stem}{}", suffix(i)))),
        None => Err(bad(first, format!("the first of {n_parts} parts wants a name that ends in {}", suffix(0)))),
    }
}
