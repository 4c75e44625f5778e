//! Convolutions of every channel with its own kernel, channels innermost: `DepthwiseConv2d` over images and
//! `DepthwiseConv1d` over the rows of a sequence.

#![allow(unsafe_code, reason = "writes rows of results")]

use engine::error::Result;
use engine::tensor::TensorDesc;
use kernels::cpu::Kernels;
use kernels::quant::Format;

use super::super::context::{At, Lowering, Needs};
use super::super::mem::{View, ViewMut, WorkerScratch};
use super::super::region::{Step, Worker, piece};
use super::rows::{Sequences, range};
use super::rows_per_chunk;
use crate::format::format_of;

/// Scratch memory of operands whose second one is the kernel: its taps with channels innermost, and those of a channel.
pub(in super::super) fn needs(args: &[&TensorDesc]) -> Needs {
    let w = args[1].shape;
    Needs { shared: 0, worker: w.elements() + w.elements() / w.dim(0) }
}

/// Weights of a float format, `n_taps` for each of `width` channels.
struct Taps {
    w: View<u8>,
    format: Format,
    width: usize,
    n_taps: usize,
    worker: WorkerScratch,
    kernels: Kernels,
}

impl Taps {
    fn new(cx: &Lowering<'_>, at: At<'_>) -> Result<Self> {
        let w = *cx.desc(at.arg(1));
        let width = w.shape.dim(0);
        let n_taps = w.shape.elements() / width;
        let format = format_of(w.dtype).ok_or_else(|| cx.fail("a kernel of integers"))?;
        let bytes = cx.bytes(at.arg(1))?;
        let worker = cx.scratch(at, needs(&[&w, &w]))?.1;
        Ok(Self { w: bytes, format, width, n_taps, worker, kernels: cx.machine.kernels })
    }

    /// `[n_taps, width]`.
    fn transposed<'a>(&'a self, worker: &'a mut Worker) -> &'a [f32] {
        let (channel, out) = self.worker.of(worker).split_at_mut(self.n_taps);
        let bytes = self.w.rows(0..self.w.n_rows()).chunks_exact(self.format.row_bytes(self.n_taps));
        for (c, bytes) in bytes.enumerate() {
            self.kernels.decode_row(self.format, bytes, channel);
            for (tap, value) in channel.iter().enumerate() {
                out[tap * self.width + c] = *value;
            }
        }
        out
    }
}

/// `[x, w, bias]`.
pub(in super::super) fn conv2d(cx: &mut Lowering<'_>, at: At<'_>, stride: usize, pad: usize) -> Result<()> {
    let (x, w, y) = (cx.desc(at.arg(0)).shape, cx.desc(at.arg(1)).shape, cx.desc(at.out(0)).shape);
    let step = DepthwiseConv2d {
        x: cx.view(at.arg(0))?,
        taps: Taps::new(cx, at)?,
        bias: cx.view(at.arg(2))?,
        y: cx.result(at.out(0))?,
        size: [x.dim(1), x.dim(2)],
        size_out: [y.dim(1), y.dim(2)],
        kernel: [w.dim(2), w.dim(3)],
        stride,
        pad,
    };
    cx.push(step);
    Ok(())
}

/// Heights come before widths.
struct DepthwiseConv2d {
    x: View<f32>,
    taps: Taps,
    bias: View<f32>,
    y: ViewMut<f32>,
    size: [usize; 2],
    size_out: [usize; 2],
    kernel: [usize; 2],
    stride: usize,
    pad: usize,
}

impl DepthwiseConv2d {
    /// Input coordinate under tap `tap` of output coordinate `at`; `None` on the border.
    fn under(&self, at: usize, tap: usize, size: usize) -> Option<usize> {
        (at * self.stride + tap).checked_sub(self.pad).filter(|&i| i < size)
    }
}

impl Step for DepthwiseConv2d {
    fn chunks(&self) -> usize {
        self.y.n_rows().div_ceil(rows_per_chunk(self.y.row_len()))
    }

    fn run(&self, chunk: usize, worker: &mut Worker) {
        let taps = self.taps.transposed(worker);
        let ([height, width], [kh, kw]) = (self.size, self.kernel);
        for pixel in piece(chunk, rows_per_chunk(self.y.row_len()), self.y.n_rows()) {
            let (column, rest) = (pixel % self.size_out[1], pixel / self.size_out[1]);
            let (row, image) = (rest % self.size_out[0], rest / self.size_out[0]);
            // SAFETY: row `pixel` of `y` belongs to this chunk alone.
            let y = unsafe { self.y.row_mut(pixel) };
            y.copy_from_slice(self.bias.row(0));
            for (tap, w) in taps.chunks_exact(self.taps.width).enumerate().take(kh * kw) {
                let (dy, dx) = (self.under(row, tap / kw, height), self.under(column, tap % kw, width));
                if let Some((dy, dx)) = dy.zip(dx) {
                    self.taps.kernels.add_product(y, w, self.x.row((image * height + dy) * width + dx));
                }
            }
        }
    }
}

/// `[x, w, bias, sequences, ranges]`.
pub(in super::super) fn conv1d(cx: &mut Lowering<'_>, at: At<'_>) -> Result<()> {
    let step = DepthwiseConv1d {
        x: cx.view(at.arg(0))?,
        taps: Taps::new(cx, at)?,
        bias: cx.view(at.arg(2))?,
        sequences: Sequences(cx.view(at.arg(3))?),
        ranges: cx.view(at.arg(4))?,
        y: cx.result(at.out(0))?,
    };
    cx.push(step);
    Ok(())
}

struct DepthwiseConv1d {
    x: View<f32>,
    taps: Taps,
    bias: View<f32>,
    sequences: Sequences,
    ranges: View<i32>,
    y: ViewMut<f32>,
}

impl Step for DepthwiseConv1d {
    fn chunks(&self) -> usize {
        self.y.n_rows().div_ceil(rows_per_chunk(self.y.row_len()))
    }

    fn run(&self, chunk: usize, worker: &mut Worker) {
        let taps = self.taps.transposed(worker);
        for r in piece(chunk, rows_per_chunk(self.y.row_len()), self.y.n_rows()) {
            let rows = self.sequences.of(r).map_or(0..0, |s| range(&self.ranges, s));
            // SAFETY: row `r` of `y` belongs to this chunk alone.
            let y = unsafe { self.y.row_mut(r) };
            y.copy_from_slice(self.bias.row(0));
            for (j, w) in taps.chunks_exact(self.taps.width).enumerate() {
                if let Some(i) = (r + j).checked_sub(self.taps.n_taps / 2).filter(|i| rows.contains(i)) {
                    self.taps.kernels.add_product(y, w, self.x.row(i));
                }
            }
        }
    }
}
