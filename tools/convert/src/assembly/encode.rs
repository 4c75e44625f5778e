//! One tensor from its values to its bytes, batch by batch in constant memory. [`Encoder`] is the type to read first.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use engine::DType;
use kernels::cpu::Kernels;
use kernels::quant::Format;
use rayon::prelude::*;

use super::{PlannedTensor, Values};
use crate::error::Error;

/// Elements that a thread encodes at a time; a multiple of every format's block.
const PIECE: usize = 1 << 15;
/// Elements between two writes: at most 8 MiB.
const BATCH: usize = 1 << 21;

/// A tensor that can be encoded from any batch on.
pub(super) struct Encoder<'a> {
    name: &'a str,
    dtype: DType,
    values: Box<dyn Values + 'a>,
    kernels: Kernels,
    n_elements: usize,
    /// Elements of a row, and rows of a matrix.
    n_columns: usize,
    n_rows: usize,
    /// Elements that a thread takes, and those of a batch.
    piece: usize,
    batch: usize,
}

/// How far the values of a tensor are from those they were made from.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Difference {
    /// Sum of the squared differences.
    pub squares: f64,
    /// Sum of the squares of the original values.
    pub energy: f64,
    /// The largest absolute difference.
    pub max_abs: f32,
}

impl Difference {
    /// The squared differences over the squares: 0 for equal values.
    pub fn nmse(&self) -> f64 {
        if self.squares == 0.0 { 0.0 } else { self.squares / self.energy }
    }

    /// Of both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            squares: self.squares + other.squares,
            energy: self.energy + other.energy,
            max_abs: self.max_abs.max(other.max_abs),
        }
    }

    fn between(want: &[f32], got: &[f32]) -> Self {
        want.iter().zip(got).fold(Self::default(), |sum, (&want, &got)| {
            let off = f64::from(want) - f64::from(got);
            let max_abs = sum.max_abs.max(off.abs() as f32);
            Self { squares: sum.squares + off * off, energy: sum.energy + f64::from(want).powi(2), max_abs }
        })
    }
}

impl<'a> Encoder<'a> {
    /// An encoder of `tensor`, whose values are `values`.
    pub(super) fn new<S>(tensor: &'a PlannedTensor<S>, values: Box<dyn Values + 'a>) -> crate::Result<Self> {
        let dims = tensor.shape.dims();
        let n_rows = dims.len().checked_sub(2).map_or(1, |i| dims[i] as usize);
        let n_columns = tensor.shape.last();
        // Formats do not care where a row ends, as long as blocks are whole; weights of columns do.
        let piece = if values.importance().is_some() { n_columns * (PIECE / n_columns).max(1) } else { PIECE };
        Ok(Self {
            name: &tensor.name,
            dtype: tensor.dtype,
            values,
            kernels: Kernels::detect().map_err(Error::usage)?,
            n_elements: tensor.shape.elements(),
            n_columns,
            n_rows,
            piece,
            batch: piece * (BATCH / piece).max(1),
        })
    }

    /// The batches from element `from` on.
    pub(super) fn batches(&self, from: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (n, batch) = (self.n_elements, self.batch);
        (from..n).step_by(batch).map(move |start| start..n.min(start + batch))
    }

    /// The bytes of the elements in `range`, which begins and ends where blocks do.
    pub(super) fn byte_range(&self, range: &Range<usize>) -> Range<usize> {
        let block = self.dtype.block();
        range.start / block.len * block.bytes..range.end / block.len * block.bytes
    }

    /// The bytes of a batch; `buffer` may hold them.
    ///
    /// Errors: values that are not finite or do not fit.
    pub(super) fn encode<'b>(&'b self, batch: &Range<usize>, buffer: &'b mut Vec<u8>) -> Result<&'b [u8]> {
        let bytes = self.byte_range(batch);
        if let Some(stored) = self.values.stored() {
            return Ok(&stored[bytes]);
        }
        buffer.resize(bytes.len(), 0);
        let piece_bytes = self.byte_range(&(0..self.piece)).len();
        let pieces = buffer.par_chunks_mut(piece_bytes).enumerate();
        let done: Result<()> =
            pieces.map_init(Vec::new, |x, (i, out)| self.encode_piece(&self.piece_of(batch, i), x, out)).collect();
        done?;
        Ok(buffer)
    }

    /// How far the values in `got`, the batch's bytes, are from the original ones.
    pub(super) fn difference(&self, batch: &Range<usize>, got: &[u8]) -> Result<Difference> {
        if self.values.stored().is_some() {
            return Ok(Difference::default());
        }
        let format = self.format()?;
        let pieces = got.par_chunks(self.byte_range(&(0..self.piece)).len()).enumerate();
        let parts: Result<Vec<Difference>> = pieces
            .map_init(
                || (Vec::new(), Vec::new()),
                |(x, y), (i, got)| {
                    let range = self.piece_of(batch, i);
                    x.resize(range.len(), 0.0);
                    y.resize(range.len(), 0.0);
                    self.values.decode(range, x)?;
                    self.kernels.decode_row(format, got, y);
                    Ok(Difference::between(x, y))
                },
            )
            .collect();
        // In order: sums do not depend on the threads.
        Ok(parts?.into_iter().fold(Difference::default(), Difference::and))
    }

    /// Gives the memory behind the originals of a batch back to the system.
    pub(super) fn release(&self, batch: Range<usize>) {
        self.values.release(batch);
    }

    fn piece_of(&self, batch: &Range<usize>, i: usize) -> Range<usize> {
        let start = batch.start + i * self.piece;
        start..batch.end.min(start + self.piece)
    }

    fn encode_piece(&self, range: &Range<usize>, x: &mut Vec<f32>, out: &mut [u8]) -> Result<()> {
        let format = self.format()?;
        x.resize(range.len(), 0.0);
        self.values.decode(range.clone(), x)?;
        if let Some(importance) = self.values.importance() {
            let n = self.n_columns;
            let rows = x.chunks_exact(n).zip(out.chunks_exact_mut(format.row_bytes(n)));
            for (row, (x, out)) in (range.start / n..).zip(rows) {
                let i_matrix = row / self.n_rows % (importance.len() / n);
                self.kernels.encode_row(format, x, Some(&importance[i_matrix * n..][..n]), out);
            }
        } else {
            self.kernels.encode_row(format, x, None, out);
        }
        let (name, first) = (self.name, range.start);
        ensure!(format.is_finite(out), "{name}: elements from {first} on are too large for {format:?}");
        Ok(())
    }

    fn format(&self) -> Result<Format> {
        let (name, dtype) = (self.name, self.dtype);
        backends::format_of(dtype).with_context(|| format!("{name}: {dtype} is not a type of weights"))
    }
}
