//! Convolutions of every channel with its own kernel, channels innermost: `DepthwiseConv2d` over images and
//! `DepthwiseConv1d` over the rows of a sequence.

use engine::error::Result;
use engine::tensor::TensorDesc;
use kernels::cpu::Kernels;
use kernels::quant::Format;

use super::super::context::{At, Lowering, Needs, Prepared};
use super::super::mem::{View, WorkerScratch};
use super::super::region::Worker;
use super::by_row::ByRow;
use super::rows::{Sequences, range};
use crate::format::format_of;

/// Extents of a weight of a float format: `n_taps` for each of `width` channels.
#[derive(Clone, Copy)]
struct Kernel {
    format: Format,
    width: usize,
    n_taps: usize,
}

impl Kernel {
    fn new(w: &TensorDesc) -> Option<Self> {
        let width = w.shape.dim(0);
        Some(Self { format: format_of(w.dtype)?, width, n_taps: w.shape.elements() / width })
    }

    /// Its taps with channels innermost, and those of a channel.
    fn needs(self) -> Needs {
        Needs { shared: 0, worker: (self.width + 1) * self.n_taps }
    }
}

/// A weight, and memory to transpose it.
struct Taps {
    w: View<u8>,
    kernel: Kernel,
    worker: WorkerScratch,
    kernels: Kernels,
}

impl Taps {
    fn new(cx: &Lowering<'_>, at: At<'_>, kernel: Kernel) -> Result<Self> {
        Ok(Self { w: cx.bytes(at.arg(1))?, kernel, worker: cx.scratch(at)?.1, kernels: cx.machine.kernels })
    }

    /// `width` values for every tap.
    fn transposed<'a>(&'a self, worker: &'a mut Worker) -> impl Iterator<Item = &'a [f32]> + Clone {
        let Kernel { format, width, n_taps } = self.kernel;
        let (channel, out) = self.worker.of(worker)[..(width + 1) * n_taps].split_at_mut(n_taps);
        let bytes = self.w.rows(0..self.w.n_rows()).chunks_exact(format.row_bytes(n_taps));
        for (c, bytes) in bytes.enumerate() {
            self.kernels.decode_row(format, bytes, channel);
            for (tap, value) in channel.iter().enumerate() {
                out[tap * width + c] = *value;
            }
        }
        out.chunks_exact(width)
    }
}

/// How images are walked. Heights come before widths.
#[derive(Clone, Copy)]
struct Walk {
    size: [usize; 2],
    size_out: [usize; 2],
    kernel_width: usize,
    stride: usize,
    pad: usize,
}

impl Walk {
    /// Row of the input that lies under a tap of output pixel `pixel`; `None` on the border.
    fn under(&self, pixel: usize, tap: usize) -> Option<usize> {
        let (column, rest) = (pixel % self.size_out[1], pixel / self.size_out[1]);
        let (row, image) = (rest % self.size_out[0], rest / self.size_out[0]);
        let at =
            |out: usize, tap: usize, size: usize| (out * self.stride + tap).checked_sub(self.pad).filter(|&i| i < size);
        let y = at(row, tap / self.kernel_width, self.size[0])?;
        let x = at(column, tap % self.kernel_width, self.size[1])?;
        Some((image * self.size[0] + y) * self.size[1] + x)
    }
}

/// `[x, w, bias]`.
pub(super) fn conv2d(args: &[&TensorDesc], stride: usize, pad: usize) -> Option<Prepared> {
    let (kernel, x, kernel_width) = (Kernel::new(args[1])?, args[0].shape, args[1].shape.dim(3));
    let size = [x.dim(1), x.dim(2)];
    Some(Prepared::step(kernel.needs(), move |cx, at| {
        let out = cx.desc(at.out(0)).shape;
        let walk = Walk { size, size_out: [out.dim(1), out.dim(2)], kernel_width, stride, pad };
        let (x, taps, bias) = (cx.view::<f32>(at.arg(0))?, Taps::new(cx, at, kernel)?, cx.view::<f32>(at.arg(2))?);
        Ok(ByRow::new(cx.result::<f32>(at.out(0))?, move |pixels, worker| {
            let by_tap = taps.transposed(worker);
            for (pixel, y) in pixels {
                y.copy_from_slice(bias.row(0));
                for (tap, w) in by_tap.clone().enumerate() {
                    if let Some(r) = walk.under(pixel, tap) {
                        taps.kernels.add_product(y, w, x.row(r));
                    }
                }
            }
        }))
    }))
}

/// `[x, w, bias, sequences, ranges]`.
pub(super) fn conv1d(args: &[&TensorDesc]) -> Option<Prepared> {
    let kernel = Kernel::new(args[1])?;
    Some(Prepared::step(kernel.needs(), move |cx, at| {
        let (x, taps, bias) = (cx.view::<f32>(at.arg(0))?, Taps::new(cx, at, kernel)?, cx.view::<f32>(at.arg(2))?);
        let (sequences, ranges) = (Sequences(cx.view(at.arg(3))?), cx.view::<i32>(at.arg(4))?);
        Ok(ByRow::new(cx.result::<f32>(at.out(0))?, move |rows, worker| {
            let by_tap = taps.transposed(worker);
            for (r, y) in rows {
                let inputs = sequences.of(r).map_or(0..0, |s| range(&ranges, s));
                y.copy_from_slice(bias.row(0));
                for (j, w) in by_tap.clone().enumerate() {
                    if let Some(i) = (r + j).checked_sub(kernel.n_taps / 2).filter(|i| inputs.contains(i)) {
                        taps.kernels.add_product(y, w, x.row(i));
                    }
                }
            }
        }))
    }))
}
