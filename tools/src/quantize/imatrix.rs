//! Importance matrices, as llama-imatrix writes them (GGUF). [`ImportanceMatrix`] is the type to read first.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use engine::DType;
use engine::gguf::{Gguf, GgufTensor};

/// Behind the name of a weight: sums of the squares of its inputs, `[n_matrices, n_columns]`.
const SUMS: &str = ".in_sum2";
/// Behind the name of a weight: inputs summed, `[n_matrices, 1]`.
const COUNTS: &str = ".counts";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";

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
        let keys = || -> engine::Result<_> {
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

    /// The first set of texts that it was made from.
    pub fn dataset(&self) -> Option<&str> {
        self.dataset.as_deref()
    }

    /// Pieces of text that it was made from.
    pub fn n_chunks(&self) -> u32 {
        self.n_chunks
    }

    /// Weights that it has.
    pub fn n_entries(&self) -> usize {
        self.file.tensors().filter(|tensor| tensor.name.ends_with(SUMS)).count()
    }

    /// The importance of the columns of weight `name`, `[n_matrices, n_columns]`; nothing where there is none.
    ///
    /// A matrix whose inputs were never seen has ones. Errors: another number of values; one that is not finite.
    pub fn of(&self, name: &str, n_matrices: usize, n_columns: usize) -> Result<Option<Vec<f32>>> {
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

fn floats(tensor: GgufTensor<'_>) -> Vec<f32> {
    tensor.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
