//! GGUF files: typed metadata and a table of mapped tensors.
//!
//! A header is read twice. Our own `scan` goes first: it bounds the work, refuses what gguf-rs would panic on, let
//! pass or blow up, and keeps every value exact. Then gguf-rs parses the header, and `parse` compares the two.
//! What is left is checked in `part`: alignment, extents, and where tensors lie. After [`Gguf::open`] succeeds, a lookup
//! can fail only by name or type.
//!
//! gguf-rs switches on serde_json's `arbitrary_precision` for the whole program: floats in untagged, internally tagged
//! or flattened serde types do not deserialize there.
//!
//! Writing is [`GgufWriter`]'s, in the places of a [`GgufLayout`]. Read [`Gguf`] first.

mod aligned;
mod key;
mod layout;
mod metadata;
mod parse;
mod part;
mod scan;
mod write;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use key::KeyError;
pub use layout::{GgufLayout, PlacedTensor};
pub use metadata::{Array, Value, ValueType};
pub use write::GgufWriter;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::parallel::Parallel;
use crate::shape::Shape;
use part::{Bytes, Part, SPLIT_COUNT, SPLIT_TENSORS, Stored};
use scan::Kind;

/// Alignment in bytes of every tensor's bytes in memory: what the vector kernels want of a borrowed weight.
pub const TENSOR_ALIGNMENT: usize = 32;
/// Characters of a name from a file that a message repeats.
const MAX_SHOWN_CHARS: usize = 80;

/// An open model file, or all parts of a split one. Clones share it.
#[derive(Clone)]
pub struct Gguf(Arc<Opened>);

struct Opened {
    path: PathBuf,
    parts: Vec<Bytes>,
    version: u32,
    keys: Vec<scan::Key>,
    key_at: HashMap<String, usize>,
    tensors: Vec<Stored>,
    tensor_at: HashMap<String, usize>,
}

/// A tensor of a file.
#[derive(Clone, Copy)]
pub struct GgufTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element format.
    pub dtype: DType,
    /// Its extents, outermost first.
    pub shape: Shape,
    /// Its bytes in memory, aligned to [`TENSOR_ALIGNMENT`].
    pub bytes: &'a [u8],
}

impl Gguf {
    /// Opens a file, and with the first part of a split model (`x-00001-of-00003.gguf`) the other parts beside it.
    ///
    /// Errors: `Io` where a file cannot be read; `Gguf` where it is malformed, uses what the engine does not know, or
    /// passes a limit, and where a part is missing or does not belong to the others.
    pub fn open(path: &Path) -> Result<Self> {
        let first = Part::open(path)?;
        let n_parts = first.split(SPLIT_COUNT)?.unwrap_or(0).max(1);
        let mut parts = vec![first];
        if n_parts > 1 {
            parts[0].check_place(0, n_parts)?;
            part::check_all_there(path, n_parts)?;
            for i in 1..n_parts {
                let part = Part::open(&part::part_path(path, i, n_parts)?)?;
                part.check_place(i, n_parts)?;
                parts.push(part);
            }
        }
        Self::join(parts)
    }

    /// The file with all bytes copied to memory by these threads: it may change or vanish from then on, and reading is faster
    /// where its pages in memory are small. What others hold too stays where it is.
    ///
    /// Errors: `OutOfMemory`.
    pub fn into_resident(self, threads: &dyn Parallel) -> Result<Self> {
        let mut opened = self.0;
        if let Some(opened) = Arc::get_mut(&mut opened) {
            opened.parts.iter_mut().try_for_each(|part| part.make_resident(threads))?;
        }
        Ok(Self(opened))
    }

    /// Reads a file from memory; `name` stands for its path in messages.
    ///
    /// Errors: as for [`Gguf::open`]; `Gguf` also where `bytes` are not aligned to [`TENSOR_ALIGNMENT`] or are a part
    /// of a split model.
    pub fn from_static(bytes: &'static [u8], name: &str) -> Result<Self> {
        let path = Path::new(name);
        if !bytes.as_ptr().addr().is_multiple_of(TENSOR_ALIGNMENT) {
            return Err(bad(path, format!("the bytes in memory are not aligned to {TENSOR_ALIGNMENT}")));
        }
        Self::from_bytes(path, Bytes::Static(bytes))
    }

    fn from_bytes(path: &Path, bytes: Bytes) -> Result<Self> {
        let part = Part::read(path, bytes)?;
        if part.split(SPLIT_COUNT)?.is_some_and(|n| n > 1) {
            return Err(bad(path, "a part of a split model cannot be read from memory".into()));
        }
        Self::join(vec![part])
    }

    fn join(parts: Vec<Part>) -> Result<Self> {
        let path = parts[0].path.clone();
        let mut tensors: Vec<Stored> = Vec::new();
        let mut tensor_at = HashMap::new();
        let declared = if parts.len() > 1 { parts[0].split(SPLIT_TENSORS)? } else { None };
        let mut opened = Opened {
            path: path.clone(),
            parts: Vec::with_capacity(parts.len()),
            version: parts[0].version,
            keys: Vec::new(),
            key_at: HashMap::new(),
            tensors: Vec::new(),
            tensor_at: HashMap::new(),
        };
        for (i, part) in parts.into_iter().enumerate() {
            if tensors.len() + part.tensors.len() > scan::MAX_TENSORS {
                return Err(bad(&part.path, format!("the parts have more than {} tensors", scan::MAX_TENSORS)));
            }
            for mut tensor in part.tensors {
                tensor.part = i;
                if tensor_at.insert(tensor.name.clone(), tensors.len()).is_some() {
                    return Err(bad(&part.path, format!("tensor {} is in two parts", shown(&tensor.name))));
                }
                tensors.push(tensor);
            }
            opened.parts.push(part.bytes);
            if i == 0 {
                opened.key_at = part.keys.iter().enumerate().map(|(at, key)| (key.name.clone(), at)).collect();
                opened.keys = part.keys;
            }
        }
        if opened.parts.len() > 1 && declared != Some(tensors.len() as u64) {
            let want = declared.map_or("none declared".into(), |n| n.to_string());
            let n_parts = opened.parts.len();
            let what = format!("{SPLIT_TENSORS}: want {want}, got {} tensors in {n_parts} parts", tensors.len());
            return Err(bad(&path, what));
        }
        (opened.tensors, opened.tensor_at) = (tensors, tensor_at);
        Ok(Self(Arc::new(opened)))
    }

    /// The file, the first part of a split model, or the name given to bytes in memory.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The files on the disk: the parts of a split model; none for bytes in memory.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.parts.iter().filter_map(|part| match part {
            Bytes::Mapped(map) => Some(map.path()),
            Bytes::Static(_) | Bytes::Owned(_) => None,
        })
    }

    /// Whether the bytes are still those that were opened.
    ///
    /// Errors: as those of [`crate::mapping::Mapping::check_unchanged`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.0.parts.iter().try_for_each(|part| match part {
            Bytes::Mapped(map) => map.check_unchanged(),
            Bytes::Static(_) | Bytes::Owned(_) => Ok(()),
        })
    }

    /// The format's version.
    pub fn version(&self) -> u32 {
        self.0.version
    }

    /// Bytes of the file, all parts together.
    pub fn file_bytes(&self) -> usize {
        self.0.parts.iter().map(|part| part.len()).sum()
    }

    /// Number of metadata keys.
    pub fn n_keys(&self) -> usize {
        self.0.keys.len()
    }

    /// Metadata in file order, decoded one by one; of a split model the first part's.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value)> {
        self.0.keys.iter().map(|key| (&*key.name, self.decode(key)))
    }

    /// Whether there is such a key.
    pub fn contains(&self, key: &str) -> bool {
        self.0.key_at.contains_key(key)
    }

    /// The value of `key`, if there is one.
    pub fn value(&self, key: &str) -> Option<Value> {
        self.find(key).ok().map(|key| self.decode(key))
    }

    /// The value of `key`, of any integer type, if it fits. Errors: `Missing`, `WrongType`.
    pub fn get_u32(&self, key: &str) -> Result<u32, KeyError> {
        self.integer(key, "u32")
    }

    /// The value of `key`, of any integer type, if it fits. Errors: `Missing`, `WrongType`.
    pub fn get_i32(&self, key: &str) -> Result<i32, KeyError> {
        self.integer(key, "i32")
    }

    /// The value of `key`, of any integer type, if it fits. Errors: `Missing`, `WrongType`.
    pub fn get_u64(&self, key: &str) -> Result<u64, KeyError> {
        self.integer(key, "u64")
    }

    /// The value of `key`, of a float type, rounded to f32. Errors: `Missing`, `WrongType`.
    pub fn get_f32(&self, key: &str) -> Result<f32, KeyError> {
        let found = self.find(key)?;
        let value = if let Kind::One(_) = found.kind { self.decode(found).as_float() } else { None };
        value.map(|v| v as f32).ok_or_else(|| self.wrong(found, "f32"))
    }

    /// The value of `key`. Errors: `Missing`, `WrongType`.
    pub fn get_bool(&self, key: &str) -> Result<bool, KeyError> {
        let found = self.find(key)?;
        let value = if let Kind::One(_) = found.kind { self.decode(found).as_bool() } else { None };
        value.ok_or_else(|| self.wrong(found, "bool"))
    }

    /// The text of `key`. Errors: `Missing`; `WrongType`, also where the bytes are not UTF-8.
    pub fn get_str(&self, key: &str) -> Result<&str, KeyError> {
        let found = self.find(key)?;
        if found.kind != Kind::One(ValueType::String) {
            return Err(self.wrong(found, "string"));
        }
        std::str::from_utf8(self.bytes_of(found)).map_err(|_| self.wrong(found, "string in UTF-8"))
    }

    /// The texts of the array `key`. Errors: `Missing`; `WrongType`, also where one is not UTF-8.
    pub fn get_str_array(&self, key: &str) -> Result<Vec<&str>, KeyError> {
        let found = self.find(key)?;
        let Kind::Many(ValueType::String, n) = found.kind else {
            return Err(self.wrong(found, "array of string"));
        };
        let mut texts = Vec::with_capacity(n);
        for text in metadata::strings(self.bytes_of(found)) {
            texts.push(std::str::from_utf8(text).map_err(|_| self.wrong(found, "array of string in UTF-8"))?);
        }
        Ok(texts)
    }

    /// The elements of the array `key`, of any integer type, if all fit. Errors: `Missing`, `WrongType`.
    pub fn get_u32_array(&self, key: &str) -> Result<Vec<u32>, KeyError> {
        self.integers(key, "array of u32")
    }

    /// The elements of the array `key`, of any integer type, if all fit. Errors: `Missing`, `WrongType`.
    pub fn get_i32_array(&self, key: &str) -> Result<Vec<i32>, KeyError> {
        self.integers(key, "array of i32")
    }

    /// The elements of the array `key`, of a float type, rounded to f32. Errors: `Missing`, `WrongType`.
    pub fn get_f32_array(&self, key: &str) -> Result<Vec<f32>, KeyError> {
        self.elements(key, "array of f32", |v| v.as_float().map(|v| v as f32))
    }

    /// The elements of the array `key`. Errors: `Missing`, `WrongType`.
    pub fn get_bool_array(&self, key: &str) -> Result<Vec<bool>, KeyError> {
        self.elements(key, "array of bool", |v| v.as_bool())
    }

    /// [`Gguf::get_u32`], or `default` where the key is absent.
    pub fn get_u32_or(&self, key: &str, default: u32) -> Result<u32, KeyError> {
        or(self.get_u32(key), default)
    }

    /// [`Gguf::get_str`], or `default` where the key is absent.
    pub fn get_str_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str, KeyError> {
        or(self.get_str(key), default)
    }

    /// Number of tensors.
    pub fn n_tensors(&self) -> usize {
        self.0.tensors.len()
    }

    /// Tensors in file order, part by part.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = GgufTensor<'_>> {
        self.0.tensors.iter().map(|stored| self.view(stored))
    }

    /// The tensor called `name`, if there is one.
    pub fn tensor(&self, name: &str) -> Option<GgufTensor<'_>> {
        self.0.tensor_at.get(name).map(|&at| self.view(&self.0.tensors[at]))
    }

    /// Tensor `i` in file order. Panics past the last.
    pub(crate) fn tensor_at(&self, i: usize) -> GgufTensor<'_> {
        self.view(&self.0.tensors[i])
    }

    /// Gives the mapped pages of tensor `i` back to the system; the next access reads them again.
    pub(crate) fn release_tensor(&self, i: usize) {
        let stored = &self.0.tensors[i];
        if let Bytes::Mapped(map) = &self.0.parts[stored.part] {
            map.release(stored.range.clone());
        }
    }

    /// Gives the mapped pages behind bytes `range` of a tensor back to the system; the next access reads them again.
    pub fn release(&self, name: &str, range: Range<usize>) {
        let Some(&at) = self.0.tensor_at.get(name) else { return };
        let stored = &self.0.tensors[at];
        if let Bytes::Mapped(map) = &self.0.parts[stored.part] {
            let start = stored.range.start;
            let within = |at: usize| start + at.min(stored.range.len());
            map.release(within(range.start)..within(range.end));
        }
    }

    fn view<'a>(&'a self, stored: &'a Stored) -> GgufTensor<'a> {
        GgufTensor {
            name: &stored.name,
            dtype: stored.dtype,
            shape: stored.shape,
            bytes: &self.0.parts[stored.part][stored.range.clone()],
        }
    }

    fn find(&self, key: &str) -> Result<&scan::Key, KeyError> {
        let at = self
            .0
            .key_at
            .get(key)
            .ok_or_else(|| KeyError::Missing { path: self.0.path.clone(), key: key.to_owned() })?;
        Ok(&self.0.keys[*at])
    }

    fn bytes_of(&self, key: &scan::Key) -> &[u8] {
        &self.0.parts[0][key.value.clone()]
    }

    fn decode(&self, key: &scan::Key) -> Value {
        part::decode(key, &self.0.parts[0])
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, want: &'static str) -> Result<T, KeyError> {
        let found = self.find(key)?;
        let value = if let Kind::One(_) = found.kind { self.decode(found).as_integer() } else { None };
        value.and_then(|v| v.try_into().ok()).ok_or_else(|| self.wrong(found, want))
    }

    fn integers<T: TryFrom<i128>>(&self, key: &str, want: &'static str) -> Result<Vec<T>, KeyError> {
        self.elements(key, want, |v| v.as_integer().and_then(|v| v.try_into().ok()))
    }

    /// Elements of an array of plain values; the first that `convert` refuses is a `WrongType`.
    fn elements<T>(
        &self,
        key: &str,
        want: &'static str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<T>, KeyError> {
        let found = self.find(key)?;
        let Kind::Many(ty, _) = found.kind else { return Err(self.wrong(found, want)) };
        let Some(width) = ty.bytes() else { return Err(self.wrong(found, want)) };
        let values = self.bytes_of(found).chunks_exact(width).map(|one| convert(&Value::decode(ty, one)));
        values.collect::<Option<_>>().ok_or_else(|| self.wrong(found, want))
    }

    fn wrong(&self, key: &scan::Key, want: &'static str) -> KeyError {
        let got = match key.kind {
            Kind::One(ValueType::String) => "string".into(),
            Kind::One(ty) => match self.decode(key) {
                Value::Bool(v) => format!("{ty} {v}"),
                v => match (v.as_integer(), v.as_float()) {
                    (Some(v), _) => format!("{ty} {v}"),
                    (_, Some(v)) => format!("{ty} {v}"),
                    (None, None) => ty.to_string(),
                },
            },
            many => many.to_string(),
        };
        KeyError::WrongType { path: self.0.path.clone(), key: key.name.clone(), want, got }
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gguf({}, {} keys, {} tensors)", self.path().display(), self.n_keys(), self.n_tensors())
    }
}

/// The result, or `default` where the key is absent.
fn or<T>(value: Result<T, KeyError>, default: T) -> Result<T, KeyError> {
    match value {
        Err(KeyError::Missing { .. }) => Ok(default),
        other => other,
    }
}

fn bad(path: &Path, what: String) -> Error {
    Error::Gguf { path: path.to_owned(), what, source: None }
}

/// Text from a file as a message shows it: on one line, without what steers a terminal, and of at most 80 characters and three
/// dots. Everything that a file says and a message repeats goes through here, or through [`quoted`].
pub fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_SHOWN_CHARS).is_some() {
        shown.push_str("...");
    }
    shown
}

/// [`shown`] in quotation marks.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", shown(text))
}
