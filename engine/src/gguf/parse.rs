//! gguf-rs on a header that the scan has passed. No other file names the crate.
//!
//! gguf-rs is the parser of record for which keys and tensors there are; whatever it and the scan read differently is
//! an error. Not taken from it: the bytes of a tensor (its table of type sizes is wrong for BF16, I32 and others),
//! values (it turns NaN and infinities into null, replaces bytes that are not UTF-8, and forgets widths), the start of
//! tensor data (it passes over alignments that are no power of two), its mapping (it copies the whole file), and its
//! `file_type()`, which can panic. Vocabulary arrays are shown to it as empty: it takes 0.2 us for each element, which
//! would be nearly all of the time to open a file.

use std::io::Cursor;
use std::path::Path;

use gguf_rs::{ByteOrder, GGUFContainer, GGUFModel};

use super::metadata::{Value, ValueType};
use super::scan::{Header, Key, Kind, LENGTH_BYTES, MAGIC};
use super::{bad, shown};
use crate::error::{Error, Result};

/// Has gguf-rs read the header of `file` and compares it with `header`.
pub(super) fn parse(path: &Path, file: &[u8], header: &Header) -> Result<()> {
    let reader = Box::new(Cursor::new(without_vocabulary(file, header)));
    let mut container = GGUFContainer::new(ByteOrder::LE, reader, u64::MAX);
    let model = container.decode().map_err(|e| Error::Gguf {
        path: path.to_owned(),
        what: "gguf-rs refuses the header".into(),
        source: Some(e.into()),
    })?;
    compare_keys(path, file, header, &model)?;
    compare_tensors(path, header, &model)
}

/// The header after the magic bytes, which the container expects to be read already, with vocabulary arrays empty.
fn without_vocabulary(file: &[u8], header: &Header) -> Vec<u8> {
    let mut out = Vec::new();
    let mut from = MAGIC.len();
    for key in header.keys.iter().filter(|key| key.is_vocabulary()) {
        out.extend_from_slice(&file[from..key.value.start - LENGTH_BYTES]);
        out.extend_from_slice(&[0; LENGTH_BYTES]);
        from = key.value.end;
    }
    out.extend_from_slice(&file[from..header.end]);
    out
}

fn compare_keys(path: &Path, file: &[u8], header: &Header, model: &GGUFModel) -> Result<()> {
    let read = model.metadata();
    if read.len() != header.keys.len() {
        return Err(differs(path, "the number of metadata keys"));
    }
    for key in &header.keys {
        let same = read.get(&key.name).is_some_and(|read| same_value(key, &file[key.value.clone()], read));
        if !same {
            return Err(differs(path, &format!("metadata key {}", shown(&key.name))));
        }
    }
    Ok(())
}

/// Whether `read` agrees with the key's bytes as far as gguf-rs keeps them.
fn same_value(key: &Key, bytes: &[u8], read: &serde_json::Value) -> bool {
    match key.kind {
        Kind::Many(_, n) => {
            let n = if key.is_vocabulary() { 0 } else { n };
            read.as_array().is_some_and(|read| read.len() == n)
        }
        Kind::One(ValueType::String) => read.as_str() == Some(&*String::from_utf8_lossy(bytes)),
        Kind::One(ty) => match Value::decode(ty, bytes) {
            Value::Bool(v) => read.as_bool() == Some(v),
            Value::F32(_) | Value::F64(_) => read.is_number() || read.is_null(),
            v if ty == ValueType::U64 => read.as_u64().map(i128::from) == v.as_integer(),
            v => read.as_i64().map(i128::from) == v.as_integer(),
        },
    }
}

fn compare_tensors(path: &Path, header: &Header, model: &GGUFModel) -> Result<()> {
    let read = model.tensors();
    if read.len() != header.tensors.len() {
        return Err(differs(path, "the number of tensors"));
    }
    for (tensor, read) in header.tensors.iter().zip(read) {
        let same = tensor.name == read.name
            && tensor.shape.dims().iter().rev().map(|&dim| u64::from(dim)).eq(read.shape.iter().copied())
            && tensor.dtype.gguf_id() == read.kind
            && tensor.offset == read.offset;
        if !same {
            return Err(differs(path, &format!("tensor {}", shown(&tensor.name))));
        }
    }
    Ok(())
}

fn differs(path: &Path, what: &str) -> Error {
    bad(path, format!("gguf-rs reads {what} differently"))
}
