//! The guard in front of gguf-rs. [`scan`] walks over a header without allocating for what the file claims, refuses
//! what is malformed, unknown or beyond a limit, and notes where every key's value stands.
//!
//! The limits keep the memory for any header under 160 MB, mapped pages included. gguf-rs, which comes after, spends
//! about 65 bytes on an array element and three times the bytes of a string that is not UTF-8.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use super::metadata::{Plain, ValueType};
use super::{bad, shown};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::{MAX_RANK, Shape};

/// First bytes of every GGUF file, of either byte order.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// Version of the files that the writer makes.
pub(super) const VERSION: u32 = 3;
/// Oldest version with 64-bit counts.
const OLDEST_VERSION: u32 = 2;
/// Alignment of tensor data where the file names none. Source: GGUF specification.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
/// Key that names another alignment.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// Bytes of a count or a string's length.
pub(super) const LENGTH_BYTES: usize = 8;
/// Keys whose arrays may be as long as a vocabulary.
const VOCABULARY_PREFIX: &str = "tokenizer.";

/// Bytes before tensor data. Vocabularies of 262,144 tokens with their merges take about 16 MiB.
const MAX_HEADER_BYTES: usize = 64 << 20;
/// Header bytes outside the arrays of `tokenizer.` keys: templates, licences, the tensor table.
const MAX_PLAIN_BYTES: usize = 8 << 20;
/// Metadata keys. Files have about fifty.
const MAX_KEYS: u64 = 1 << 14;
/// Tensors of a file. Models have a few thousand.
pub(super) const MAX_TENSORS: usize = 1 << 16;
/// Bytes of a key. Source: GGUF specification, "at most 2^16-1 bytes".
pub(super) const MAX_KEY_BYTES: usize = (1 << 16) - 1;
/// Bytes of a tensor's name. The specification allows 64; writers that ignore it stay under this.
const MAX_TENSOR_NAME_BYTES: usize = 256;
/// Array elements under `tokenizer.` keys, all arrays together: 262,144 tokens with scores, types and merges are half.
const MAX_VOCABULARY_ELEMENTS: u64 = 1 << 21;
/// Array elements under other keys, all arrays together: one per layer is the usual length.
const MAX_OTHER_ELEMENTS: u64 = 1 << 18;

/// What the walk found.
pub(super) struct Header {
    pub version: u32,
    /// In file order.
    pub keys: Vec<Key>,
    /// In file order.
    pub tensors: Vec<TensorEntry>,
    /// First byte after the tensor table.
    pub end: usize,
}

/// A metadata key and where its value stands.
pub(super) struct Key {
    pub name: String,
    pub kind: Kind,
    /// The value's bytes: a string's without its length, an array's elements without type and length.
    pub value: Range<usize>,
}

impl Key {
    /// Whether the value is an array that may be as long as a vocabulary.
    pub(super) fn is_vocabulary(&self) -> bool {
        matches!(self.kind, Kind::Many(..)) && self.name.starts_with(VOCABULARY_PREFIX)
    }
}

/// The type of a key's value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A plain value or a string.
    One(ValueType),
    /// An array of this many values of one type.
    Many(ValueType, usize),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(ty) => write!(f, "{ty}"),
            Self::Many(ty, n) => write!(f, "array of {n} {ty}"),
        }
    }
}

/// A line of the tensor table.
pub(super) struct TensorEntry {
    pub name: String,
    pub dtype: DType,
    pub shape: Shape,
    /// From the start of tensor data.
    pub offset: u64,
}

/// Walks over the header at the start of `file`.
///
/// Errors: `Gguf` for anything that the specification forbids, an unknown type, or a limit that is passed.
pub(super) fn scan(path: &Path, file: &[u8]) -> Result<Header> {
    let mut cursor = Cursor { path, file, at: 0, vocabulary_bytes: 0 };
    let (version, n_tensors, n_keys) = cursor.preamble()?;
    let mut elements = Elements::default();
    let mut seen = HashSet::new();
    let mut keys = Vec::new();
    for _ in 0..n_keys {
        let key = cursor.key(&mut elements)?;
        if !seen.insert(key.name.clone()) {
            return Err(cursor.bad(format!("metadata key {} is there twice", shown(&key.name))));
        }
        keys.push(key);
    }
    seen.clear();
    let mut tensors = Vec::new();
    for _ in 0..n_tensors {
        let tensor = cursor.tensor()?;
        if !seen.insert(tensor.name.clone()) {
            return Err(cursor.bad(format!("tensor {} is there twice", shown(&tensor.name))));
        }
        tensors.push(tensor);
    }
    Ok(Header { version, keys, tensors, end: cursor.at })
}

/// Array elements so far.
#[derive(Default)]
struct Elements {
    vocabulary: u64,
    other: u64,
}

/// A place in the header.
struct Cursor<'a> {
    path: &'a Path,
    file: &'a [u8],
    at: usize,
    /// Bytes walked over inside arrays of `tokenizer.` keys.
    vocabulary_bytes: usize,
}

impl<'a> Cursor<'a> {
    fn bad(&self, what: String) -> Error {
        bad(self.path, what)
    }

    fn preamble(&mut self) -> Result<(u32, u64, u64)> {
        if self.file.is_empty() {
            return Err(self.bad("the file is empty".into()));
        }
        if !self.file.starts_with(&MAGIC) {
            return Err(self.bad("not a GGUF file: it does not begin with \"GGUF\"".into()));
        }
        self.at = MAGIC.len();
        let version = self.u32()?;
        if version.swap_bytes() <= VERSION {
            return Err(self.bad("big-endian GGUF files are not supported".into()));
        }
        if !(OLDEST_VERSION..=VERSION).contains(&version) {
            return Err(self.bad(format!("want GGUF version {OLDEST_VERSION} or {VERSION}, got {version}")));
        }
        let (n_tensors, n_keys) = (self.u64()?, self.u64()?);
        if n_tensors > MAX_TENSORS as u64 {
            return Err(self.bad(format!("want at most {MAX_TENSORS} tensors, got {n_tensors}")));
        }
        if n_keys > MAX_KEYS {
            return Err(self.bad(format!("want at most {MAX_KEYS} metadata keys, got {n_keys}")));
        }
        Ok((version, n_tensors, n_keys))
    }

    fn key(&mut self, elements: &mut Elements) -> Result<Key> {
        let name = self.name("a metadata key", MAX_KEY_BYTES)?;
        let ty = self.value_type(&name)?;
        let (kind, value) = match (ty, ty.bytes()) {
            (ValueType::Array, _) => self.array(&name, elements)?,
            (_, Some(width)) => (Kind::One(ty), self.plain(&name, ty, width as u64)?),
            (_, None) => (Kind::One(ty), self.string()?),
        };
        self.check_plain_bytes()?;
        Ok(Key { name, kind, value })
    }

    fn array(&mut self, key: &str, elements: &mut Elements) -> Result<(Kind, Range<usize>)> {
        let ty = self.value_type(key)?;
        let n = self.u64()?;
        let vocabulary = key.starts_with(VOCABULARY_PREFIX);
        let (total, max) = match vocabulary {
            true => (&mut elements.vocabulary, MAX_VOCABULARY_ELEMENTS),
            false => (&mut elements.other, MAX_OTHER_ELEMENTS),
        };
        *total = total.saturating_add(n);
        if *total > max {
            let group = if vocabulary { "under tokenizer. keys" } else { "outside tokenizer. keys" };
            let what = format!("metadata key {}: {total} array elements {group}, at most {max} are read", shown(key));
            return Err(self.bad(what));
        }
        let value = match ty.bytes() {
            Some(width) => self.plain(key, ty, n * width as u64)?,
            None if ty == ValueType::String => {
                let start = self.at;
                for _ in 0..n {
                    self.string()?;
                }
                start..self.at
            }
            None => return Err(self.bad(format!("metadata key {}: arrays of arrays are not supported", shown(key)))),
        };
        if vocabulary {
            self.vocabulary_bytes += value.len();
        }
        let n = usize::try_from(n).expect("the limits fit every address space");
        Ok((Kind::Many(ty, n), value))
    }

    /// `n` bytes of values of a type with a fixed width.
    fn plain(&mut self, key: &str, ty: ValueType, n: u64) -> Result<Range<usize>> {
        let value = self.take(n)?;
        // Specification: "Anything else is invalid, and should be treated as either the model being invalid or the
        // reader being buggy."
        if ty == ValueType::Bool
            && let Some(odd) = self.file[value.clone()].iter().find(|&&b| b > 1)
        {
            return Err(self.bad(format!("metadata key {}: want bool 0 or 1, got {odd}", shown(key))));
        }
        Ok(value)
    }

    fn tensor(&mut self) -> Result<TensorEntry> {
        let name = self.name("a tensor name", MAX_TENSOR_NAME_BYTES)?;
        let rank = self.u32()?;
        if rank == 0 || rank as usize > MAX_RANK {
            return Err(self.bad(format!("tensor {}: want 1 to {MAX_RANK} dimensions, got {rank}", shown(&name))));
        }
        let mut dims = [0; MAX_RANK];
        let dims = &mut dims[..rank as usize];
        // The file lists the innermost first.
        for dim in dims.iter_mut().rev() {
            *dim = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        }
        let id = self.u32()?;
        let offset = self.u64()?;
        let Some(dtype) = DType::from_gguf_id(id) else {
            let known = ggml_type(id).map_or(String::new(), |name| format!("{name}, "));
            return Err(self.bad(format!("tensor {}: type {known}id {id}, is not supported", shown(&name))));
        };
        let fail = |what: String| self.bad(format!("tensor {}: {what}", shown(&name)));
        if dims.contains(&0) {
            return Err(fail(format!("want extents above 0, got {dims:?}")));
        }
        let shape = Shape::new(dims).ok_or_else(|| fail(format!("{dims:?} are more elements than are supported")))?;
        let block = dtype.block().len;
        if !shape.last().is_multiple_of(block) {
            return Err(fail(format!("{dtype} wants rows of a multiple of {block}, got {}", shape.last())));
        }
        self.check_plain_bytes()?;
        Ok(TensorEntry { name, dtype, shape, offset })
    }

    /// A name: UTF-8 of 1 to `max` bytes.
    fn name(&mut self, what: &str, max: usize) -> Result<String> {
        let start = self.at;
        let range = self.string()?;
        if range.is_empty() || range.len() > max {
            let n = range.len();
            return Err(self.bad(format!("at byte {start}: want {what} of 1 to {max} bytes, got {n}")));
        }
        match std::str::from_utf8(&self.file[range]) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(self.bad(format!("at byte {start}: want {what} in UTF-8"))),
        }
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType> {
        let id = self.u32()?;
        ValueType::from_id(id)
            .ok_or_else(|| self.bad(format!("metadata key {}: value type {id} is not known", shown(key))))
    }

    fn string(&mut self) -> Result<Range<usize>> {
        let n = self.u64()?;
        self.take(n)
    }

    fn u32(&mut self) -> Result<u32> {
        let range = self.take(4)?;
        Ok(u32::get(&self.file[range]))
    }

    fn u64(&mut self) -> Result<u64> {
        let range = self.take(LENGTH_BYTES as u64)?;
        Ok(u64::get(&self.file[range]))
    }

    /// The next `n` bytes.
    fn take(&mut self, n: u64) -> Result<Range<usize>> {
        let start = self.at;
        let len = self.file.len();
        let end = usize::try_from(n).ok().and_then(|n| start.checked_add(n)).filter(|&end| end <= len);
        let Some(end) = end else {
            let what = format!("the header wants {n} bytes at byte {start}, but the file has {len}: it is cut short");
            return Err(self.bad(what));
        };
        if end > MAX_HEADER_BYTES {
            return Err(self.bad(format!("the header goes past byte {end}, at most {MAX_HEADER_BYTES} are read")));
        }
        self.at = end;
        Ok(start..end)
    }

    fn check_plain_bytes(&self) -> Result<()> {
        let n = self.at - self.vocabulary_bytes;
        if n > MAX_PLAIN_BYTES {
            let what = format!("{n} header bytes outside tokenizer. arrays, at most {MAX_PLAIN_BYTES} are read");
            return Err(self.bad(what));
        }
        Ok(())
    }
}

/// The name of a tensor type that ggml knows, whether the engine stores it or not. Source: ggml, `enum ggml_type`.
fn ggml_type(id: u32) -> Option<&'static str> {
    Some(match id {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        8 => "Q8_0",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        30 => "BF16",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_the_numbers_of_ggml() {
        for dtype in DType::ALL {
            let id = dtype.gguf_id();
            assert_eq!(ggml_type(id), Some(dtype.name()), "id {id} of {dtype} in the list of formats");
        }
    }
}
