//! [`Draft`]: a model file that tests change and write again.

use std::collections::BTreeMap;
use std::path::Path;

use engine::gguf::{Gguf, GgufWriter, Value};
use engine::{DType, Shape};

/// A model file that is taken apart.
#[derive(Clone)]
pub struct Draft {
    /// Metadata.
    pub keys: BTreeMap<String, Value>,
    /// Tensors in the order of the file.
    pub tensors: Vec<DraftTensor>,
}

/// A tensor of a draft.
#[derive(Clone)]
pub struct DraftTensor {
    /// Its name.
    pub name: String,
    /// Its format.
    pub dtype: DType,
    /// Its extents, outermost first.
    pub dims: Vec<usize>,
    /// Its elements as the file stores them.
    pub bytes: Vec<u8>,
}

impl Draft {
    /// Takes a file apart.
    pub fn of(file: &Gguf) -> Self {
        let keys = file.metadata().map(|(key, value)| (key.to_owned(), value)).collect();
        let tensor = |t: engine::gguf::GgufTensor<'_>| DraftTensor {
            name: t.name.to_owned(),
            dtype: t.dtype,
            dims: t.shape.dims().iter().map(|&d| d as usize).collect(),
            bytes: t.bytes.to_vec(),
        };
        Self { keys, tensors: file.tensors().map(tensor).collect() }
    }

    /// The file, which is nowhere on the disk.
    pub fn in_memory(&self) -> Gguf {
        let mut out = GgufWriter::in_memory("draft.gguf");
        self.write_to(&mut out);
        out.finish_in_memory().expect("every tensor has its bytes")
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) {
        let mut out = GgufWriter::create(path).expect("the folder is ours");
        self.write_to(&mut out);
        out.finish().expect("every tensor has its bytes");
    }

    fn write_to(&self, out: &mut GgufWriter) {
        for (key, value) in &self.keys {
            out.key(key, value.clone()).expect("a key of a file");
        }
        for t in &self.tensors {
            let shape = Shape::new(&t.dims).expect("extents of a tensor");
            out.tensor(&t.name, t.dtype, shape).expect("a tensor of a file");
        }
        for t in &self.tensors {
            out.begin(&t.name).expect("tensors come in order");
            out.write(&t.bytes).expect("as many bytes as the tensor needs");
        }
    }

    /// The tensor called `name`; panics where there is none.
    pub fn tensor(&mut self, name: &str) -> &mut DraftTensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// Takes the tensor called `name` out; panics where there is none.
    pub fn take(&mut self, name: &str) -> DraftTensor {
        let at = self.tensors.iter().position(|t| t.name == name).unwrap_or_else(|| panic!("no tensor {name}"));
        self.tensors.remove(at)
    }

    /// The tensors whose names contain one of `parts` and end in `.weight`; there is at least one.
    pub fn weights(&mut self, parts: &[&str]) -> Vec<&mut DraftTensor> {
        let is_meant =
            |t: &&mut DraftTensor| parts.iter().any(|part| t.name.contains(part)) && t.name.ends_with(".weight");
        let found: Vec<&mut DraftTensor> = self.tensors.iter_mut().filter(is_meant).collect();
        assert!(!found.is_empty());
        found
    }
}

impl DraftTensor {
    /// The same values in another format, as far as it has them.
    pub fn encode(&mut self, dtype: DType) {
        let (from, to) = self.dtype.format().zip(dtype.format()).expect("weights have formats");
        let mut x = vec![0.0; self.dims.iter().product()];
        from.decode_row(&self.bytes, &mut x);
        self.bytes = vec![0; to.row_bytes(x.len())];
        to.encode_row(&x, &mut self.bytes);
        self.dtype = dtype;
    }
}
