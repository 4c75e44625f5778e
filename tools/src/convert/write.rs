//! Weights from the checkpoint into a file, block by block in constant memory. [`write_tensor`] is where to start.

use std::ops::Range;

use anyhow::{Result, ensure};
use engine::DType;
use engine::gguf::GgufWriter;
use kernels::cpu::Kernels;
use kernels::quant::{Format, f16};
use rayon::prelude::*;

use super::checkpoint::{Model, Weight};
use super::plan::{PlannedTensor, Source};
use super::{batch_norm, positions};
use crate::exit::{Failure, Outcome};
use crate::progress::Watch;

/// Elements that a thread converts at a time; a multiple of every format's block.
const PIECE: usize = 1 << 15;
/// Pieces between two writes: 2 Mi elements, at most 8 MiB of output.
const PIECES: usize = 64;
/// The smallest f32 that becomes an infinite f16.
const F16_OVERFLOW: f32 = 65520.0;

/// Writes one tensor, which is the next of `out`.
///
/// Fails with the code of a bad model where a value is not finite or does not fit the format, with that of a failed
/// output where `out` cannot be written, and when `watch` says so.
pub fn write_tensor(
    out: &mut GgufWriter,
    checkpoint: &Model,
    tensor: &PlannedTensor,
    watch: &dyn Watch,
) -> Outcome<()> {
    out.begin(&tensor.name).map_err(Failure::output)?;
    let format = format_of(tensor.dtype);
    let computed = match &tensor.source {
        Source::Stored { .. } | Source::Experts { .. } => {
            let parts = StoredParts::new(checkpoint, &tensor.source).map_err(Failure::model)?;
            let decode = |range: Range<usize>, x: &mut [f32]| parts.decode(range, x, format);
            return write_blocks(out, tensor, format, watch, decode, |range| parts.release(range));
        }
        Source::Zeros => {
            let decode = |_: Range<usize>, x: &mut [f32]| {
                x.fill(0.0);
                Ok(())
            };
            return write_blocks(out, tensor, format, watch, decode, |_| ());
        }
        Source::BatchNorm { prefix, part, .. } => {
            let parts = StoredParts::new(checkpoint, &tensor.source).and_then(|parts| parts.all());
            let folded = batch_norm::fold(&parts.map_err(Failure::model)?, *part);
            check(&folded, format).map_err(|(i, what)| {
                Failure::model(checkpoint.error(prefix, format_args!("folded element {i} {what}")))
            })?;
            folded
        }
        Source::Positions => positions::table(tensor.shape.last()),
    };
    let decode = |range: Range<usize>, x: &mut [f32]| {
        x.copy_from_slice(&computed[range]);
        Ok(())
    };
    write_blocks(out, tensor, format, watch, decode, |_| ())
}

/// Tensors of a checkpoint, of equal lengths, as one row.
struct StoredParts<'a> {
    checkpoint: &'a Model,
    parts: Vec<(String, Weight<'a>)>,
    /// Elements of each.
    part_len: usize,
}

impl<'a> StoredParts<'a> {
    /// The tensors that `source` needs.
    fn new(checkpoint: &'a Model, source: &Source) -> Result<Self> {
        let part_len = source.needs().next().map_or(0, |(_, dims)| dims.iter().product());
        let part = |(name, _): (String, _)| {
            let weight = checkpoint.weight(&name)?;
            Ok((name, weight))
        };
        Ok(Self { checkpoint, parts: source.needs().map(part).collect::<Result<_>>()?, part_len })
    }

    /// The parts that `range` lies in: number, elements there, elements of the whole row.
    fn cut(&self, range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
        let n = self.part_len;
        (range.start / n..range.end.div_ceil(n)).map(move |i| {
            let all = range.start.max(i * n)..range.end.min((i + 1) * n);
            (i, all.start - i * n..all.end - i * n, all)
        })
    }

    /// Decodes `range`. Errors: values that cannot be written in `format`.
    fn decode(&self, range: Range<usize>, x: &mut [f32], format: Format) -> Result<()> {
        let start = range.start;
        for (i, inner, outer) in self.cut(range) {
            let (name, weight) = &self.parts[i];
            let x = &mut x[outer.start - start..outer.end - start];
            weight.decode(inner.clone(), x);
            check(x, format).map_err(|(at, what)| {
                self.checkpoint.error(name, format_args!("element {} {what}", inner.start + at))
            })?;
        }
        Ok(())
    }

    /// Each part as a whole.
    fn all<const N: usize>(&self) -> Result<[Vec<f32>; N]> {
        let mut parts = [const { Vec::new() }; N];
        for (i, part) in parts.iter_mut().enumerate() {
            part.resize(self.part_len, 0.0);
            self.decode(i * self.part_len..(i + 1) * self.part_len, part, Format::F32)?;
        }
        Ok(parts)
    }

    /// Gives the memory behind `range` back to the system.
    fn release(&self, range: Range<usize>) {
        for (i, inner, _) in self.cut(range) {
            let (name, weight) = &self.parts[i];
            self.checkpoint.release(name, bytes_of(weight, &inner));
        }
    }
}

fn bytes_of(weight: &Weight<'_>, range: &Range<usize>) -> Range<usize> {
    let width = weight.dtype.block().bytes;
    range.start * width..range.end * width
}

/// Formats do not care where a row ends, as long as blocks are whole: a tensor is converted as one long row.
fn write_blocks(
    out: &mut GgufWriter,
    tensor: &PlannedTensor,
    format: Format,
    watch: &dyn Watch,
    decode: impl Fn(Range<usize>, &mut [f32]) -> Result<()> + Sync,
    release: impl Fn(Range<usize>),
) -> Outcome<()> {
    let kernels = Kernels::detect().map_err(Failure::usage)?;
    let n = tensor.shape.elements();
    let mut bytes = vec![0; format.row_bytes(n.min(PIECE * PIECES))];
    for start in (0..n).step_by(PIECE * PIECES) {
        if watch.is_interrupted() {
            return Err(Failure::interrupted());
        }
        let end = n.min(start + PIECE * PIECES);
        let block = &mut bytes[..format.row_bytes(end - start)];
        let pieces = block.par_chunks_mut(format.row_bytes(PIECE)).enumerate();
        let converted: Result<()> = pieces
            .map_init(
                || vec![0.0; PIECE.min(n)],
                |x, (i, piece)| {
                    let first = start + i * PIECE;
                    let range = first..end.min(first + PIECE);
                    let x = &mut x[..range.len()];
                    decode(range, x)?;
                    kernels.encode_row(format, x, None, piece);
                    let name = &tensor.name;
                    ensure!(format.is_finite(piece), "{name}: elements from {first} on are too large for {format:?}");
                    Ok(())
                },
            )
            .collect();
        converted.map_err(Failure::model)?;
        out.write(block).map_err(Failure::output)?;
        release(start..end);
        watch.written(&tensor.name, (end - start) as u64);
    }
    Ok(())
}

/// Checks that `x` can be written in `format`; else the first that cannot, and why.
fn check(x: &[f32], format: Format) -> Result<(), (usize, String)> {
    let limit = limit(format);
    let is_bad = |x: f32| x.is_nan() | (x.abs() >= limit);
    // Almost always nothing is bad: looking at all without a branch is the fast way to see it.
    if !x.iter().fold(false, |bad, &x| bad | is_bad(x)) {
        return Ok(());
    }
    let Some(i) = x.iter().position(|&x| is_bad(x)) else { return Ok(()) };
    let why = if x[i].is_finite() { format!(", which is too large for {format:?}") } else { String::new() };
    Err((i, format!("is {}{why}", x[i])))
}

/// The smallest magnitude whose scale or value is no longer finite.
fn limit(format: Format) -> f32 {
    match format {
        Format::F32 => f32::INFINITY,
        // Everything above rounds to infinity.
        Format::BF16 => f32::from_bits(0x7f7f_8000),
        Format::F16 => F16_OVERFLOW,
        Format::Q8_0 => 127.0 * f16::to_f32(0x7bff),
        Format::Q4_0 => 8.0 * f16::to_f32(0x7bff),
        // How large depends on the block; what was encoded is checked.
        Format::Q4_1
        | Format::Q5_0
        | Format::Q5_1
        | Format::IQ4_NL
        | Format::Q2_K
        | Format::Q3_K
        | Format::Q4_K
        | Format::Q5_K
        | Format::Q6_K => f32::INFINITY,
    }
}

/// The kernels' name of a format of weights.
fn format_of(dtype: DType) -> Format {
    backends::format_of(dtype).expect("no plan and no checkpoint reader gives integers")
}
