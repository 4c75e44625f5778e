//! GGUF files in other types. [`Quantization`] is the type to read first.
//!
//! A file is planned first (`mix`), then its tensors are read, decoded, encoded and written piece by piece. Types, order,
//! keys and bytes are those of llama-quantize (llama-cpp-python 0.3.36) on x86-64.

mod cli;
pub mod imatrix;
pub mod mix;

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use backends::format_of;
use engine::DType;
use engine::gguf::{Gguf, GgufTensor, GgufWriter, Value};
use kernels::cpu::Kernels;
use kernels::quant::Format;
use rayon::prelude::*;

use self::imatrix::ImportanceMatrix;
use self::mix::{Choice, FileType, Model, Tensor};
use crate::exit::{Failure, Outcome};
use crate::progress::Watch;

pub use self::cli::{QuantizeArgs, run};

/// Elements that a thread encodes at a time, but at least one row.
const PIECE: usize = 1 << 15;
/// Elements between two writes, but at least one row.
const BATCH: usize = 1 << 21;
/// `general.quantization_version`. Source: ggml, `GGML_QNT_VERSION`.
const QUANTIZATION_VERSION: u32 = 2;
/// Bytes of a text among the keys about the importance matrix. Source: llama.cpp, `llama_model_kv_override`.
const MAX_TEXT_BYTES: usize = 127;
/// Keys that the new file does not take over as they are.
const REPLACED_KEYS: [&str; 5] =
    ["general.quantization_version", "general.file_type", "split.no", "split.count", "split.tensors.count"];
/// A matrix that may have an importance of another size: its rows are looked up, not multiplied.
const EMBEDDING: &str = "token_embd.weight";

/// A planned file.
pub struct Quantization {
    source: Gguf,
    mix: FileType,
    importance: Option<ImportanceMatrix>,
    /// Tensors of the source in the order of the new file, and their types there.
    tensors: Vec<(usize, Choice)>,
}

impl Quantization {
    /// Plans `source` as a file of type `mix`.
    ///
    /// Fails with the code of a bad model, or with that of a wrong call where a quantized tensor would get another type
    /// and `allow_requantize` is not set.
    pub fn plan(
        source: Gguf,
        mix: FileType,
        importance: Option<ImportanceMatrix>,
        allow_requantize: bool,
    ) -> Outcome<Self> {
        let architecture = source
            .get_str("general.architecture")
            .with_context(|| source.path().display().to_string())
            .map_err(Failure::model)?;
        let model = Model::read(architecture, importance.is_some(), |key| source.value(key));
        let order = mix::order(source.tensors().map(|tensor| tensor.name));
        let all: Vec<GgufTensor<'_>> = source.tensors().collect();
        let view = |&i: &usize| Tensor { name: all[i].name, shape: all[i].shape, dtype: all[i].dtype };
        let choices = mix::choose(mix, &model, &order.iter().map(view).collect::<Vec<_>>());
        for (&i, choice) in order.iter().zip(&choices) {
            let tensor = &all[i];
            let is_quantized = tensor.dtype.block().len > 1;
            if is_quantized && choice.dtype != tensor.dtype && !allow_requantize {
                let (path, name, dtype) = (source.path().display(), tensor.name, tensor.dtype);
                let what = format!("{path}: {name} is {dtype} already; --allow-requantize quantizes it again");
                return Err(Failure::usage(what));
            }
        }
        let tensors = order.into_iter().zip(choices).collect();
        Ok(Self { source, mix, importance, tensors })
    }

    /// Tensors in the order of the new file, and their types there.
    pub fn tensors(&self) -> impl Iterator<Item = (GgufTensor<'_>, Choice)> {
        let all: Vec<GgufTensor<'_>> = self.source.tensors().collect();
        self.tensors.iter().map(move |(i, choice)| (all[*i], *choice))
    }

    /// Elements that [`Quantization::write`] writes, for progress.
    pub fn elements(&self) -> u64 {
        self.source.tensors().map(|tensor| tensor.shape.elements() as u64).sum()
    }

    /// Writes the file, in constant memory, on the threads of the current pool; `notice` gets lines for the user.
    ///
    /// The file has its name only when it is whole. Fails with the code of a bad model where a value is not finite or
    /// does not fit its type, with that of a failed output, and when `watch` says so.
    pub fn write(&self, path: &Path, watch: &dyn Watch, notice: &mut dyn FnMut(String)) -> Outcome<()> {
        let kernels = Kernels::detect().map_err(Failure::usage)?;
        let mut out = GgufWriter::create(path).map_err(Failure::output)?;
        self.write_keys(&mut out).map_err(Failure::output)?;
        for (tensor, choice) in self.tensors() {
            out.tensor(tensor.name, choice.dtype, tensor.shape).map_err(Failure::output)?;
        }
        for (tensor, choice) in self.tensors() {
            if let Some(wanted) = choice.replaced {
                let (name, row) = (tensor.name, tensor.shape.last());
                notice(format!("{name}: rows of {row} cannot be {wanted}: {}", choice.dtype));
            }
            out.begin(tensor.name).map_err(Failure::output)?;
            let write = Write { source: &self.source, tensor, watch, out: &mut out };
            if choice.dtype == tensor.dtype {
                write.copy()?;
            } else {
                let importance = self.importance_of(&tensor, choice.dtype, notice).map_err(Failure::model)?;
                write.convert(kernels, choice.dtype, importance.as_deref())?;
            }
        }
        out.finish().map_err(Failure::output)
    }

    fn write_keys(&self, out: &mut GgufWriter) -> engine::Result<()> {
        for (name, value) in self.source.metadata().filter(|(name, _)| !REPLACED_KEYS.contains(name)) {
            out.key(name, value)?;
        }
        out.key("general.quantization_version", QUANTIZATION_VERSION)?;
        out.key("general.file_type", self.mix.general_file_type())?;
        let Some(importance) = &self.importance else { return Ok(()) };
        let text = |text: &str| Value::String(text.bytes().take(MAX_TEXT_BYTES).collect());
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        out.key("quantize.imatrix.file", text(&importance.path().to_string_lossy()))?;
        if let Some(dataset) = importance.dataset() {
            out.key("quantize.imatrix.dataset", text(dataset))?;
        }
        out.key("quantize.imatrix.entries_count", count(importance.n_entries()))?;
        if importance.n_chunks() > 0 {
            out.key("quantize.imatrix.chunks_count", importance.n_chunks())?;
        }
        Ok(())
    }

    /// The importance of the columns of a tensor that becomes `dtype`.
    fn importance_of(
        &self,
        tensor: &GgufTensor<'_>,
        dtype: DType,
        notice: &mut dyn FnMut(String),
    ) -> Result<Option<Vec<f32>>> {
        let Some(matrix) = &self.importance else { return Ok(None) };
        if !format_of(dtype).is_some_and(Format::uses_importance) {
            return Ok(None);
        }
        let (n_matrices, _) = matrices(tensor);
        match matrix.of(tensor.name, n_matrices, tensor.shape.last()) {
            Ok(None) => notice(format!("{}: not in the importance matrix", tensor.name)),
            Ok(found) => return Ok(found),
            Err(e) if tensor.name == EMBEDDING => notice(format!("{e:#}; not used")),
            Err(e) => return Err(e),
        }
        Ok(None)
    }
}

/// Number of matrices in a tensor, and of rows in each.
fn matrices(tensor: &GgufTensor<'_>) -> (usize, usize) {
    let dims = tensor.shape.dims();
    let at = |from_last: usize| dims.len().checked_sub(from_last).map_or(1, |i| dims[i] as usize);
    (at(3), at(2))
}

/// A tensor on its way into the file, which is next there.
struct Write<'a> {
    source: &'a Gguf,
    tensor: GgufTensor<'a>,
    watch: &'a dyn Watch,
    out: &'a mut GgufWriter,
}

impl Write<'_> {
    /// The bytes as they are.
    fn copy(mut self) -> Outcome<()> {
        self.batches(|this, rows, row_bytes| {
            let bytes = &this.tensor.bytes[rows.start * row_bytes..rows.end * row_bytes];
            this.out.write(bytes).map_err(Failure::output)
        })
    }

    /// The values in another type. `importance`: `[n_matrices, n_columns]`.
    fn convert(mut self, kernels: Kernels, dtype: DType, importance: Option<&[f32]>) -> Outcome<()> {
        let tensor = self.tensor;
        let (Some(from), Some(to)) = (format_of(tensor.dtype), format_of(dtype)) else {
            return Err(Failure::model(anyhow!("{}: {} is not a type of weights", tensor.name, tensor.dtype)));
        };
        let n = tensor.shape.last();
        let (n_matrices, n_rows) = matrices(&tensor);
        let rows_of_piece = (PIECE / n).max(1);
        let to_bytes = to.row_bytes(n);
        let path = self.source.path().display().to_string();
        let encode = |row: usize, bytes: &[u8], x: &mut [f32], out: &mut [u8]| -> Result<()> {
            kernels.decode_row(from, bytes, x);
            let importance = importance.map(|importance| &importance[row / n_rows % n_matrices * n..][..n]);
            let is_finite = x.iter().fold(true, |all, x| all & x.is_finite());
            ensure!(is_finite, "{path}: {}: row {row} has values that are not finite", tensor.name);
            kernels.encode_row(to, x, importance, out);
            ensure!(to.is_finite(out), "{path}: {}: row {row} is too large for {dtype}", tensor.name);
            Ok(())
        };
        let mut encoded = vec![0; tensor.shape.rows().min((BATCH / n).max(1)) * to_bytes];
        self.batches(|this, rows, row_bytes| {
            let encoded = &mut encoded[..rows.len() * to_bytes];
            let bytes = &this.tensor.bytes[rows.start * row_bytes..rows.end * row_bytes];
            let pieces =
                encoded.par_chunks_mut(rows_of_piece * to_bytes).zip(bytes.par_chunks(rows_of_piece * row_bytes));
            let done: Result<()> = pieces
                .enumerate()
                .map_init(
                    || vec![0.0; n],
                    |x, (i, (out, bytes))| {
                        let first = rows.start + i * rows_of_piece;
                        let mut rows = out.chunks_exact_mut(to_bytes).zip(bytes.chunks_exact(row_bytes)).enumerate();
                        rows.try_for_each(|(j, (out, bytes))| encode(first + j, bytes, x, out))
                    },
                )
                .collect();
            done.map_err(Failure::model)?;
            this.out.write(encoded).map_err(Failure::output)
        })
    }

    /// Calls `write(self, rows, bytes of a row)` batch by batch, and gives the memory behind each back to the system.
    fn batches(&mut self, mut write: impl FnMut(&mut Self, Range<usize>, usize) -> Outcome<()>) -> Outcome<()> {
        let (tensor, n) = (self.tensor, self.tensor.shape.last());
        let (n_rows, row_bytes) = (tensor.shape.rows(), tensor.dtype.row_bytes(n));
        let step = (BATCH / n).max(1);
        for start in (0..n_rows).step_by(step) {
            if self.watch.is_interrupted() {
                return Err(Failure::interrupted());
            }
            let rows = start..n_rows.min(start + step);
            write(self, rows.clone(), row_bytes)?;
            self.source.release(tensor.name, rows.start * row_bytes..rows.end * row_bytes);
            self.watch.written(tensor.name, (rows.len() * n) as u64);
        }
        Ok(())
    }
}
