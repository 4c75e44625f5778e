//! [`Operands`]: what a node reads, as f64 in the order of its shape, wherever it is stored.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use engine::graph::Graph;
use engine::tensor::{Source, TensorDesc, TensorId};
use engine::{DType, Result};
use half::f16;

use super::{HostMemory, StoredWeight, failed};
use crate::format::format_of;

/// The tensors of a graph while it runs.
pub(super) struct Operands<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// Values of inputs and results by tensor, in one piece.
    pub values: &'a [Option<Vec<f64>>],
    pub(super) weights: &'a [Option<Arc<StoredWeight>>],
    pub(super) states: &'a [Option<Arc<HostMemory>>],
}

/// Rows of a weight or of an activation.
pub(super) enum Rows<'a> {
    /// Stored in a format that decodes row by row.
    Stored(DType, &'a [u8]),
    /// Values in one piece.
    Values(Cow<'a, [f64]>),
}

impl Rows<'_> {
    /// Row `i` of `out.len()` elements.
    pub(super) fn row(&self, i: usize, out: &mut [f64]) -> Result<()> {
        let n = out.len();
        match self {
            Self::Stored(dtype, bytes) => {
                let row_bytes = dtype.row_bytes(n);
                let row = bytes.get(i * row_bytes..).and_then(|b| b.get(..row_bytes));
                let row = row.ok_or_else(|| failed(format!("row {i} is outside of a weight")))?;
                out.copy_from_slice(&decode(*dtype, row, n)?);
            }
            Self::Values(values) => {
                let row = values.get(i * n..).and_then(|v| v.get(..n));
                out.copy_from_slice(row.ok_or_else(|| failed(format!("row {i} is outside of a tensor")))?);
            }
        }
        Ok(())
    }
}

impl<'a> Operands<'a> {
    /// The tensor's description.
    pub(super) fn desc(&self, id: TensorId) -> &'a TensorDesc {
        self.graph.tensor(id)
    }

    /// The tensor's extents, outermost first.
    pub(super) fn dims<const N: usize>(&self, id: TensorId) -> Result<[usize; N]> {
        let dims: Vec<usize> = self.desc(id).shape.dims().iter().map(|&d| d as usize).collect();
        dims.try_into().map_err(|_| failed(format!("want {N} extents, got {}", self.desc(id).shape)))
    }

    /// All elements in the order of the shape.
    pub(super) fn values(&self, id: TensorId) -> Result<Cow<'a, [f64]>> {
        let desc = self.desc(id);
        let root = self.graph.root(id);
        let whole = self.root_values(root)?;
        let Source::View { offset, .. } = desc.source else { return Ok(whole) };
        let start = offset as usize;
        if desc.is_contiguous()
            && let Cow::Borrowed(whole) = whole
        {
            let part = whole.get(start..).and_then(|v| v.get(..desc.shape.elements()));
            return part.map(Cow::Borrowed).ok_or_else(|| failed("a view outside of its tensor"));
        }
        let mut out = Vec::with_capacity(desc.shape.elements());
        gather(&whole, start, desc.shape.dims(), &desc.strides, &mut out)?;
        Ok(Cow::Owned(out))
    }

    /// The tensor's rows; those of a whole weight are decoded when they are asked for.
    pub(super) fn rows(&self, id: TensorId) -> Result<Rows<'a>> {
        match self.desc(id).source {
            Source::Weight(w) => Ok(Rows::Stored(self.desc(id).dtype, self.weight_bytes(w.0)?)),
            Source::State(_) | Source::Input(_) | Source::Node(..) | Source::View { .. } => {
                Ok(Rows::Values(self.values(id)?))
            }
        }
    }

    /// Integers, each below `limit`: ids, slots, positions.
    pub(super) fn indices(&self, id: TensorId, limit: usize) -> Result<Vec<usize>> {
        self.values(id)?.iter().map(|&v| index(v, limit)).collect()
    }

    /// The sequence of every row, none for padding.
    pub(super) fn sequences(&self, id: TensorId, n_seqs: usize) -> Result<Vec<Option<usize>>> {
        let of_row = |&v: &f64| if v < 0.0 { Ok(None) } else { index(v, n_seqs).map(Some) };
        self.values(id)?.iter().map(of_row).collect()
    }

    /// The rows of every sequence, of `n_rows` in all.
    pub(super) fn ranges(&self, id: TensorId, n_rows: usize) -> Result<Vec<Range<usize>>> {
        let ends = self.indices(id, n_rows + 1)?;
        Ok(ends.as_chunks().0.iter().map(|&[start, end]| start..end).collect())
    }

    /// The memory of the state that a tensor is, directly or as the result of a write.
    pub(super) fn state(&self, id: TensorId) -> Result<&'a HostMemory> {
        let mut id = id;
        loop {
            match self.desc(id).source {
                Source::State(s) => {
                    let memory = self.states.get(s.index()).and_then(|m| m.as_deref());
                    return memory.ok_or_else(|| failed("a state of another backend"));
                }
                Source::Node(n, 0) => {
                    let node = self.graph.node(n);
                    let arg = node.op.spec().aliases.ok_or_else(|| failed("a result is not a state"))?;
                    id = node.args[arg];
                }
                Source::Node(..) | Source::Weight(_) | Source::Input(_) | Source::View { .. } => {
                    return Err(failed("an operand is not a whole state"));
                }
            }
        }
    }

    fn root_values(&self, root: TensorId) -> Result<Cow<'a, [f64]>> {
        if let Some(values) = &self.values[root.index()] {
            return Ok(Cow::Borrowed(values));
        }
        let desc = self.desc(root);
        let n = desc.shape.elements();
        match desc.source {
            Source::Weight(w) => Ok(Cow::Owned(decode(desc.dtype, self.weight_bytes(w.0)?, n)?)),
            Source::State(_) | Source::Node(..) => Ok(Cow::Owned(decode(desc.dtype, &self.state(root)?.lock(), n)?)),
            Source::Input(_) | Source::View { .. } => Err(failed("an operand has no values")),
        }
    }

    fn weight_bytes(&self, id: u32) -> Result<&'a [u8]> {
        let weight = self.weights.get(id as usize).and_then(|w| w.as_deref());
        weight.map(|w| w.store.bytes(w.id)).ok_or_else(|| failed("a weight of another backend"))
    }
}

/// An integer operand as an index below `limit`.
pub(super) fn index(v: f64, limit: usize) -> Result<usize> {
    let fits = v >= 0.0 && v < limit as f64;
    fits.then_some(v as usize).ok_or_else(|| failed(format!("index {v} is not below {limit}")))
}

/// `n` elements of any format, exactly. Whole rows only.
pub(super) fn decode(dtype: DType, bytes: &[u8], n: usize) -> Result<Vec<f64>> {
    if bytes.len() != dtype.row_bytes(n) {
        return Err(failed(format!("{n} elements of {dtype}: want {} bytes, got {}", dtype.row_bytes(n), bytes.len())));
    }
    let Some(format) = format_of(dtype) else {
        return Ok(bytes.as_chunks().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect());
    };
    let mut row = vec![0.0; n];
    format.decode_row(bytes, &mut row);
    Ok(row.into_iter().map(f64::from).collect())
}

/// Stores elements of a state, rounded once to its format.
pub(super) fn encode(dtype: DType, values: &[f64], bytes: &mut [u8]) -> Result<()> {
    if dtype == DType::F32 {
        bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, v)| *b = (*v as f32).to_le_bytes());
        Ok(())
    } else if dtype == DType::F16 {
        bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, v)| *b = f16::from_f64(*v).to_le_bytes());
        Ok(())
    } else {
        Err(failed(format!("states of {dtype} cannot be written")))
    }
}

fn gather(whole: &[f64], start: usize, dims: &[u32], strides: &[u32], out: &mut Vec<f64>) -> Result<()> {
    let (Some((&dim, dims)), Some((&stride, strides))) = (dims.split_first(), strides.split_first()) else {
        out.push(*whole.get(start).ok_or_else(|| failed("a view outside of its tensor"))?);
        return Ok(());
    };
    (0..dim as usize).try_for_each(|i| gather(whole, start + i * stride as usize, dims, strides, out))
}
