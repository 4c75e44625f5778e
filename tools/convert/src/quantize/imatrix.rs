//! Importance matrices, as llama-imatrix writes them (GGUF). [`ImportanceMatrix`] is the type to read first.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use backends::format_of;
use engine::gguf::{Gguf, GgufTensor, KeyError, Value};
use engine::{DType, Shape};
use kernels::quant::Format;

use crate::assembly::{self, Xxh64};

/// Behind the name of a weight: sums of the squares of its inputs, `[n_matrices, n_columns]`.
const SUMS: &str = ".in_sum2";
/// Behind the name of a weight: inputs summed, `[n_matrices, 1]`.
const COUNTS: &str = ".counts";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
/// Bytes of a text among the keys of a quantized file. Source: llama.cpp, `llama_model_kv_override`.
const MAX_TEXT_BYTES: usize = 127;
/// A matrix that may have an importance of another size: its rows are looked up, not multiplied.
const EMBEDDING: &str = "token_embd.weight";

/// How much the columns of a model's weights matter: mean squares of the inputs they meet.
///
/// Source: llama.cpp, `common/imatrix-loader.cpp`.
pub struct ImportanceMatrix {
    file: Gguf,
    dataset: Option<String>,
    n_chunks: u32,
}

impl ImportanceMatrix {
    /// Opens a file. Errors: it is no importance matrix; half of a pair of tensors, or one that is not F32.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Gguf::open(path)?;
        let keys = || -> Result<_, KeyError> {
            file.get_u32(CHUNK_SIZE)?;
            Ok((file.get_str_array(DATASETS)?.first().map(|&name| name.to_owned()), file.get_u32(CHUNK_COUNT)?))
        };
        let (dataset, n_chunks) = keys().with_context(|| format!("{}: not an importance matrix", path.display()))?;
        for tensor in file.tensors() {
            let (name, other) = match (tensor.name.strip_suffix(SUMS), tensor.name.strip_suffix(COUNTS)) {
                (Some(name), _) => (name, COUNTS),
                (None, Some(name)) => (name, SUMS),
                (None, None) => continue,
            };
            let (path, this) = (path.display(), tensor.name);
            ensure!(tensor.dtype == DType::F32, "{path}: {this}: want F32, got {}", tensor.dtype);
            ensure!(file.tensor(&format!("{name}{other}")).is_some(), "{path}: {this} without {name}{other}");
        }
        Ok(Self { file, dataset, n_chunks })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Adds what tells whether it is still the same.
    pub(crate) fn stamp(&self, hash: &mut Xxh64) {
        self.file.paths().for_each(|path| assembly::stamp(path, hash));
    }

    /// The keys about it in a file that it was used for.
    pub fn keys(&self) -> Vec<(&'static str, Value)> {
        let text = |text: &str| Value::String(text.bytes().take(MAX_TEXT_BYTES).collect());
        let n_entries = self.file.tensors().filter(|tensor| tensor.name.ends_with(SUMS)).count();
        let mut keys = vec![("quantize.imatrix.file", text(&self.path().to_string_lossy()))];
        keys.extend(self.dataset.as_deref().map(|dataset| ("quantize.imatrix.dataset", text(dataset))));
        keys.push(("quantize.imatrix.entries_count", Value::U32(u32::try_from(n_entries).unwrap_or(u32::MAX))));
        keys.extend((self.n_chunks > 0).then_some(("quantize.imatrix.chunks_count", self.n_chunks.into())));
        keys
    }

    /// What there is to say about a tensor that becomes `dtype`: that the matrix does not have it, where that type uses
    /// one. Errors: another number of values, unless it is an embedding; one that is not finite.
    pub fn check(&self, name: &str, shape: Shape, dtype: DType) -> Result<Option<String>> {
        if !uses_importance(dtype) {
            return Ok(None);
        }
        match self.of(name, n_matrices(shape), shape.last()) {
            Ok(Some(_)) => Ok(None),
            Ok(None) => Ok(Some(format!("{name}: not in the importance matrix"))),
            Err(e) if name == EMBEDDING => Ok(Some(format!("{e:#}; not used"))),
            Err(e) => Err(e),
        }
    }

    /// The importance of the columns of a tensor that becomes `dtype`, `[n_matrices, n_columns]`; nothing where there is
    /// none to use. Errors: as for [`ImportanceMatrix::check`].
    pub(crate) fn of_tensor(&self, name: &str, shape: Shape, dtype: DType) -> Result<Option<Vec<f32>>> {
        if !uses_importance(dtype) {
            return Ok(None);
        }
        match self.of(name, n_matrices(shape), shape.last()) {
            Err(_) if name == EMBEDDING => Ok(None),
            found => found,
        }
    }

    /// The importance of the columns of weight `name`, `[n_matrices, n_columns]`; nothing where there is none.
    ///
    /// A matrix whose inputs were never seen has ones. Errors: another number of values; one that is not finite.
    fn of(&self, name: &str, n_matrices: usize, n_columns: usize) -> Result<Option<Vec<f32>>> {
        let (Some(sums), Some(counts)) =
            (self.file.tensor(&format!("{name}{SUMS}")), self.file.tensor(&format!("{name}{COUNTS}")))
        else {
            return Ok(None);
        };
        let path = self.path().display();
        let (mut sums, counts) = (floats(sums), floats(counts));
        let (want, got) = (n_matrices * n_columns, sums.len());
        ensure!(want == got, "{path}: {name}: want {n_matrices} times {n_columns} values, got {got}");
        ensure!(counts.len() == n_matrices, "{path}: {name}: want {n_matrices} counts, got {}", counts.len());
        for (sums, count) in sums.chunks_exact_mut(n_columns).zip(counts) {
            let count = count.round();
            sums.iter_mut().for_each(|sum| *sum = if count > 0.0 { *sum / count } else { 1.0 });
        }
        if let Some(i) = sums.iter().position(|x| !x.is_finite()) {
            bail!("{path}: {name}: value {i} is {}", sums[i]);
        }
        Ok(Some(sums))
    }
}

/// Whether the bytes of a tensor of this type depend on the importance of its columns.
pub fn uses_importance(dtype: DType) -> bool {
    format_of(dtype).is_some_and(Format::uses_importance)
}

/// Number of matrices in a tensor.
fn n_matrices(shape: Shape) -> usize {
    let dims = shape.dims();
    dims.len().checked_sub(3).map_or(1, |i| dims[i] as usize)
}

fn floats(tensor: GgufTensor<'_>) -> Vec<f32> {
    tensor.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
