//! What stands where in a GGUF file, before there is one. [`GgufLayout`] takes keys, then tensor descriptions.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::metadata::{Plain, Value};
use super::scan::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_KEY_BYTES, MAX_TENSORS, VERSION};
use super::{TENSOR_ALIGNMENT, bad, shown};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::Shape;

/// Bytes of a tensor's name that every reader accepts. Source: ggml, `GGML_MAX_NAME` less the closing zero.
const MAX_TENSOR_NAME_BYTES: usize = 63;
/// Alignment of tensor data in bytes.
pub(super) const ALIGNMENT: u64 = DEFAULT_ALIGNMENT;

const _: () = assert!(ALIGNMENT == TENSOR_ALIGNMENT as u64);

/// The header of a file, and the places of its tensors: little-endian, version 3, tensor data aligned to 32 bytes.
#[derive(Clone)]
pub struct GgufLayout {
    path: PathBuf,
    keys: Vec<u8>,
    key_names: HashSet<String>,
    tensors: Vec<PlacedTensor>,
    tensor_names: HashSet<String>,
    /// Bytes of the tensor table.
    table_bytes: u64,
    /// Where the next tensor goes, from the start of tensor data.
    end: u64,
}

/// A line of the tensor table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlacedTensor {
    /// Its name.
    pub name: String,
    /// Its element format.
    pub dtype: DType,
    /// Its extents, outermost first.
    pub shape: Shape,
    /// Its first byte, from the start of tensor data.
    pub offset: u64,
    /// Its bytes, without the padding behind them.
    pub bytes: u64,
}

impl PlacedTensor {
    /// The first byte behind the padding, from the start of tensor data.
    pub fn end(&self) -> u64 {
        (self.offset + self.bytes).next_multiple_of(ALIGNMENT)
    }
}

impl GgufLayout {
    /// An empty file; `path` is for messages.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            keys: Vec::new(),
            key_names: HashSet::new(),
            tensors: Vec::new(),
            tensor_names: HashSet::new(),
            table_bytes: 0,
            end: 0,
        }
    }

    /// Adds a metadata key.
    ///
    /// Errors: `Gguf` for a key that is there already, has a name that readers refuse, or names another alignment.
    pub fn key(&mut self, name: &str, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        if name.is_empty() || name.len() > MAX_KEY_BYTES {
            let n = name.len();
            return Err(self.bad(format!("want a metadata key of 1 to {MAX_KEY_BYTES} bytes, got {n}")));
        }
        if name == ALIGNMENT_KEY && value.as_integer() != Some(ALIGNMENT.into()) {
            return Err(self.bad(format!("{ALIGNMENT_KEY}: want {ALIGNMENT}, got another value")));
        }
        if !self.key_names.insert(name.to_owned()) {
            return Err(self.bad(format!("metadata key {} is there twice", shown(name))));
        }
        put_text(name, &mut self.keys);
        value.value_type().id().put(&mut self.keys);
        value.encode(&mut self.keys);
        Ok(())
    }

    /// Adds a tensor; its bytes stand behind those of the one before. `shape`: outermost first, of rank 1 at least.
    ///
    /// Errors: `Gguf` for a tensor that is there already, has a name that readers refuse, or has rows that are not whole
    /// blocks.
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: Shape) -> Result<()> {
        if name.is_empty() || name.len() > MAX_TENSOR_NAME_BYTES {
            let what = format!("tensor {}: want a name of 1 to {MAX_TENSOR_NAME_BYTES} bytes", shown(name));
            return Err(self.bad(what));
        }
        let block = dtype.block().len;
        if shape.rank() == 0 || !shape.last().is_multiple_of(block) {
            let what = format!("tensor {}: {dtype} wants rows of a multiple of {block}, got {shape}", shown(name));
            return Err(self.bad(what));
        }
        if self.tensors.len() == MAX_TENSORS {
            return Err(self.bad(format!("more than {MAX_TENSORS} tensors")));
        }
        if !self.tensor_names.insert(name.to_owned()) {
            return Err(self.bad(format!("tensor {} is there twice", shown(name))));
        }
        let bytes = shape.rows() as u64 * dtype.row_bytes(shape.last()) as u64;
        // Below 2^16 tensors of less than 2^34 bytes: no overflow.
        let tensor = PlacedTensor { name: name.to_owned(), dtype, shape, offset: self.end, bytes };
        self.end = tensor.end();
        self.table_bytes += line(&tensor).len() as u64;
        self.tensors.push(tensor);
        Ok(())
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> &[PlacedTensor] {
        &self.tensors
    }

    /// Where tensor data starts: the length of [`GgufLayout::header`].
    pub fn data_start(&self) -> u64 {
        let preamble = MAGIC.len() + size_of_val(&VERSION) + 2 * size_of::<u64>();
        (preamble as u64 + self.keys.len() as u64 + self.table_bytes).next_multiple_of(ALIGNMENT)
    }

    /// Bytes of tensor data, paddings included.
    pub fn data_bytes(&self) -> u64 {
        self.end
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.data_start() + self.end
    }

    /// Everything before tensor data: keys, tensor table, padding.
    pub fn header(&self) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        VERSION.put(&mut header);
        (self.tensors.len() as u64).put(&mut header);
        (self.key_names.len() as u64).put(&mut header);
        header.extend(&self.keys);
        self.tensors.iter().for_each(|tensor| header.extend(line(tensor)));
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        header
    }

    fn bad(&self, what: String) -> Error {
        bad(&self.path, what)
    }
}

/// A line of the tensor table as it stands in the file.
fn line(tensor: &PlacedTensor) -> Vec<u8> {
    let mut line = Vec::new();
    put_text(&tensor.name, &mut line);
    let dims = tensor.shape.dims();
    (dims.len() as u32).put(&mut line);
    dims.iter().rev().for_each(|&dim| u64::from(dim).put(&mut line));
    tensor.dtype.gguf_id().put(&mut line);
    tensor.offset.put(&mut line);
    line
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    (text.len() as u64).put(out);
    out.extend_from_slice(text.as_bytes());
}
