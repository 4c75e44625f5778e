//! Weights of a checkpoint as the values of planned tensors. [`CheckpointWeights`] is the type to read first.

use std::ops::Range;

use anyhow::Result;
use engine::DType;
use kernels::quant::Format;

use super::arrange::{Change, Piece, stored_ranges};
use super::checkpoint::Model;
use super::plan::{PlannedTensor, Source};
use super::{batch_norm, positions};
use crate::assembly::{Values, Weights, Xxh64};
use crate::quantize::imatrix::ImportanceMatrix;
use crate::weights::Weight;

/// The tensors of a checkpoint.
pub struct CheckpointWeights<'a> {
    /// Where they are stored.
    pub checkpoint: &'a Model,
    /// How much their columns matter.
    pub importance: Option<&'a ImportanceMatrix>,
}

impl Weights for CheckpointWeights<'_> {
    type Source = Source;

    fn values<'a>(&'a self, tensor: &'a PlannedTensor) -> Result<Box<dyn Values + 'a>> {
        let checkpoint = self.checkpoint;
        let format = format_of(tensor.dtype);
        Ok(match &tensor.source {
            Source::Stored { .. } | Source::Experts { .. } => Box::new(self.stored(tensor)?),
            Source::Arranged { name, pieces, change, .. } => {
                Box::new(Arranged { stored: self.stored(tensor)?, name, pieces, change: *change })
            }
            Source::Values(values) => Box::new(Computed(values.clone())),
            Source::Zeros => Box::new(Computed(vec![0.0; tensor.shape.elements()])),
            Source::Positions => Box::new(Computed(positions::table(tensor.shape.last()))),
            Source::BatchNorm { prefix, part, .. } => {
                let parts = StoredParts::new(checkpoint, &tensor.source, Format::F32)?.all()?;
                let folded = batch_norm::fold(&parts, *part);
                check(&folded, format)
                    .map_err(|(i, what)| checkpoint.error(prefix, format_args!("folded element {i} {what}")))?;
                Box::new(Computed(folded))
            }
        })
    }

    fn stamp(&self, hash: &mut Xxh64) {
        self.checkpoint.stamp(hash);
        self.importance.into_iter().for_each(|matrix| matrix.stamp(hash));
    }
}

impl<'a> CheckpointWeights<'a> {
    fn stored(&'a self, tensor: &'a PlannedTensor) -> Result<StoredParts<'a>> {
        let of = |matrix: &ImportanceMatrix| matrix.of_tensor(&tensor.name, tensor.shape, tensor.dtype);
        let importance = self.importance.map_or(Ok(None), of)?;
        let parts = StoredParts::new(self.checkpoint, &tensor.source, format_of(tensor.dtype))?;
        Ok(StoredParts { importance, ..parts })
    }
}

/// Values that are not in the checkpoint as they are.
struct Computed(Vec<f32>);

impl Values for Computed {
    fn decode(&self, range: Range<usize>, x: &mut [f32]) -> Result<()> {
        x.copy_from_slice(&self.0[range]);
        Ok(())
    }

    fn release(&self, _: Range<usize>) {}
}

/// Tensors of a checkpoint, of equal lengths, as one row.
struct StoredParts<'a> {
    checkpoint: &'a Model,
    parts: Vec<(String, Weight<'a>)>,
    /// Elements of each.
    part_len: usize,
    /// What the values must fit.
    format: Format,
    importance: Option<Vec<f32>>,
}

impl<'a> StoredParts<'a> {
    /// The tensors that `source` needs.
    fn new(checkpoint: &'a Model, source: &Source, format: Format) -> Result<Self> {
        let part_len = source.needs().next().map_or(0, |(_, dims)| dims.iter().product());
        let part = |(name, _): (String, _)| {
            let weight = checkpoint.weight(&name)?;
            Ok((name, weight))
        };
        let parts = source.needs().map(part).collect::<Result<_>>()?;
        Ok(Self { checkpoint, parts, part_len, format, importance: None })
    }

    /// The parts that `range` lies in: number, elements there, elements of the whole row.
    fn cut(&self, range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
        let n = self.part_len;
        (range.start / n..range.end.div_ceil(n)).map(move |i| {
            let all = range.start.max(i * n)..range.end.min((i + 1) * n);
            (i, all.start - i * n..all.end - i * n, all)
        })
    }

    /// Each part as a whole.
    fn all<const N: usize>(&self) -> Result<[Vec<f32>; N]> {
        let mut parts = [const { Vec::new() }; N];
        for (i, part) in parts.iter_mut().enumerate() {
            part.resize(self.part_len, 0.0);
            self.decode(i * self.part_len..(i + 1) * self.part_len, part)?;
        }
        Ok(parts)
    }
}

impl Values for StoredParts<'_> {
    fn decode(&self, range: Range<usize>, x: &mut [f32]) -> Result<()> {
        let start = range.start;
        for (i, inner, outer) in self.cut(range) {
            let (name, weight) = &self.parts[i];
            let x = &mut x[outer.start - start..outer.end - start];
            weight.decode(inner.clone(), x);
            check(x, self.format).map_err(|(at, what)| {
                self.checkpoint.error(name, format_args!("element {} {what}", inner.start + at))
            })?;
        }
        Ok(())
    }

    fn importance(&self) -> Option<&[f32]> {
        self.importance.as_deref()
    }

    fn release(&self, range: Range<usize>) {
        for (i, inner, _) in self.cut(range) {
            let (name, weight) = &self.parts[i];
            self.checkpoint.release(name, bytes_of(weight, &inner));
        }
    }
}

/// Elements of one tensor of a checkpoint in another order.
struct Arranged<'a> {
    stored: StoredParts<'a>,
    name: &'a str,
    pieces: &'a [Piece],
    change: Change,
}

impl Values for Arranged<'_> {
    fn decode(&self, range: Range<usize>, x: &mut [f32]) -> Result<()> {
        let start = range.start;
        let mut end = 0;
        for stored in stored_ranges(self.pieces, range) {
            let begin = end;
            end += stored.len();
            self.stored.decode(stored, &mut x[begin..end])?;
        }
        self.change.apply(x);
        check(x, self.stored.format).map_err(|(at, what)| {
            self.stored.checkpoint.error(self.name, format_args!("element {} {what}", start + at))
        })
    }

    fn importance(&self) -> Option<&[f32]> {
        self.stored.importance()
    }

    fn release(&self, range: Range<usize>) {
        stored_ranges(self.pieces, range).for_each(|stored| self.stored.release(stored));
    }
}

fn bytes_of(weight: &Weight<'_>, range: &Range<usize>) -> Range<usize> {
    let width = weight.dtype.block().bytes;
    range.start * width..range.end * width
}

/// Checks that `x` can be written in `format`; else the first that cannot, and why.
fn check(x: &[f32], format: Format) -> Result<(), (usize, String)> {
    let limit = format.limit();
    let is_bad = |x: f32| x.is_nan() | (x.abs() >= limit);
    // Almost always nothing is bad: looking at all without a branch is the fast way to see it.
    if !x.iter().fold(false, |bad, &x| bad | is_bad(x)) {
        return Ok(());
    }
    let Some(i) = x.iter().position(|&x| is_bad(x)) else { return Ok(()) };
    let why = if x[i].is_finite() { format!(", which is too large for {format:?}") } else { String::new() };
    Err((i, format!("is {}{why}", x[i])))
}

/// The kernels' name of a format of weights.
fn format_of(dtype: DType) -> Format {
    backends::format_of(dtype).expect("no plan and no checkpoint reader gives integers")
}
