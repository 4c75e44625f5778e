//! What goes into files, before any value is read. [`FilePlan`] is the type to read first.

use std::path::{Path, PathBuf};

use engine::gguf::{GgufLayout, Value};
use engine::{DType, Shape};

/// Parts of a split model that the reader takes.
pub const MAX_PARTS: usize = 1024;

/// A tensor with its final format.
pub struct PlannedTensor<S> {
    /// Its name in the file.
    pub name: String,
    /// Its format.
    pub dtype: DType,
    /// Its extents, outermost first.
    pub shape: Shape,
    /// Where its values come from.
    pub source: S,
}

impl<S> PlannedTensor<S> {
    /// Its number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.elements() as u64
    }

    fn bytes(&self) -> u64 {
        self.shape.rows() as u64 * self.dtype.row_bytes(self.shape.last()) as u64
    }
}

/// Keys and tensors of one file, in order.
pub struct FilePlan<S> {
    /// Metadata.
    pub keys: Vec<(String, Value)>,
    /// Tensors.
    pub tensors: Vec<PlannedTensor<S>>,
}

impl<S> FilePlan<S> {
    /// Number of elements of all tensors.
    pub fn elements(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::elements).sum()
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::bytes).sum()
    }

    /// The places of everything. Errors: a key or tensor that is there twice or that readers would refuse.
    pub fn layout(&self, path: &Path) -> engine::Result<GgufLayout> {
        let mut layout = GgufLayout::new(path);
        self.keys.iter().try_for_each(|(key, value)| layout.key(key, value.clone()))?;
        self.tensors.iter().try_for_each(|tensor| layout.tensor(&tensor.name, tensor.dtype, tensor.shape))?;
        Ok(layout)
    }

    /// Gives `key` this value, behind all others.
    pub(crate) fn set_key(&mut self, key: &str, value: Value) {
        self.keys.retain(|(found, _)| found != key);
        self.keys.push((key.to_owned(), value));
    }

    /// Parts with tensors of at most `max_bytes` together, but at least one; the first has the keys.
    ///
    /// Source: gguf-py (llama-cpp-python 0.3.36), `GGUFWriter.add_tensor_info` and `add_shard_kv_data`.
    pub fn split(self, max_bytes: u64) -> Vec<Self> {
        let n_tensors = self.tensors.len();
        let mut parts = vec![Self { keys: self.keys, tensors: Vec::new() }];
        let mut bytes = 0;
        for tensor in self.tensors {
            if bytes > 0 && bytes + tensor.bytes() > max_bytes {
                parts.push(Self { keys: Vec::new(), tensors: Vec::new() });
                bytes = 0;
            }
            bytes += tensor.bytes();
            parts.last_mut().expect("there is a first part").tensors.push(tensor);
        }
        let n_parts = parts.len();
        if n_parts > 1 {
            let short = |n: usize| Value::U16(u16::try_from(n).unwrap_or(u16::MAX));
            for (i, part) in parts.iter_mut().enumerate() {
                part.set_key("split.no", short(i));
                part.set_key("split.count", short(n_parts));
                part.set_key("split.tensors.count", Value::I32(i32::try_from(n_tensors).unwrap_or(i32::MAX)));
            }
        }
        parts
    }
}

/// The path of part `i`, counted from 0, of `n_parts` that are called after `base`.
pub fn part_path(base: &Path, i: usize, n_parts: usize) -> PathBuf {
    let mut name = base.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{:05}-of-{n_parts:05}.gguf", i + 1));
    base.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_filled_up_to_the_limit() {
        let tensor = |bytes: usize| PlannedTensor {
            name: format!("{bytes}"),
            dtype: DType::F32,
            shape: Shape::new(&[bytes / 4]).unwrap(),
            source: (),
        };
        let plan = || FilePlan { keys: Vec::new(), tensors: [40, 60, 4, 200, 8].map(tensor).into() };
        let sizes = |max| -> Vec<usize> { plan().split(max).iter().map(|part| part.tensors.len()).collect() };
        assert_eq!(sizes(100), [2, 1, 1, 1]);
        assert_eq!(sizes(104), [3, 1, 1]);
        assert_eq!(sizes(1), [1, 1, 1, 1, 1]);
        assert_eq!(plan().split(312)[0].keys, []);
        assert_eq!(part_path(Path::new("a/b.gguf"), 2, 12), Path::new("a/b-00003-of-00012.gguf"));
    }
}
