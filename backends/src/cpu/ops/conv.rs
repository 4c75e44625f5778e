//! Convolutions: `Conv2d` over images with channels innermost, `CausalConv1d` over a sequence's own past.

#![allow(unsafe_code, reason = "writes rows of results")]

use std::ops::Range;

use engine::op::{Precision, Unary};
use engine::tensor::TensorDesc;
use kernels::cpu::{Kernels, Operand, Product};
use kernels::quant::Format;

use super::super::context::{Needs, Prepared};
use super::super::machine::Machine;
use super::super::mem::{View, ViewMut, WorkerScratch};
use super::super::region::{Step, Worker, piece};
use super::activate;
use super::passages::{Passage, Passages};
use crate::format::format_of;

/// `f32`s of gathered pixels in one chunk. All weights pass by for every chunk, so it should not be small; with too many,
/// the last chunks keep one thread busy.
const CHUNK_PIXEL_VALUES: usize = 512 * 1024;
/// `f32`s of results in one chunk, the other limit, for kernels over few channels.
const CHUNK_RESULTS: usize = 64 * 1024;

/// Extents of a convolution.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    height: usize,
    width: usize,
    c_in: usize,
    c_out: usize,
    kh: usize,
    kw: usize,
    stride: usize,
    pad: usize,
}

impl Geometry {
    fn new(x: &TensorDesc, w: &TensorDesc, stride: usize, pad: usize) -> Self {
        let (x, w) = (x.shape, w.shape);
        let [height, width, c_in] = [1, 2, 3].map(|i| x.dim(i));
        Self { height, width, c_in, c_out: w.dim(0), kh: w.dim(2), kw: w.dim(3), stride, pad }
    }

    /// Elements under the kernel.
    fn k(&self) -> usize {
        self.kh * self.kw * self.c_in
    }

    fn width_out(&self) -> usize {
        (self.width + 2 * self.pad - self.kw) / self.stride + 1
    }

    fn height_out(&self) -> usize {
        (self.height + 2 * self.pad - self.kh) / self.stride + 1
    }

    fn operand(&self, machine: Machine) -> Operand {
        machine.operand(Format::F32, CHUNK_RESULTS, Precision::Kept)
    }

    /// Output pixels of one chunk: whole panels.
    fn pixels(&self, machine: Machine) -> usize {
        let operand = self.operand(machine);
        let limit = (CHUNK_PIXEL_VALUES / self.k()).min(CHUNK_RESULTS / self.c_out);
        (limit / operand.panel_rows()).max(1) * operand.panel_rows()
    }

    fn product_scratch(&self, machine: Machine) -> usize {
        machine.kernels.product_scratch_len(
            Format::F32,
            self.operand(machine),
            self.c_out,
            self.k(),
            self.pixels(machine),
        )
    }

    /// Gathered rows of one panel, panels of a chunk, and what the kernel wants.
    fn needs(&self, machine: Machine) -> Needs {
        let operand = self.operand(machine);
        let gathered = operand.panel_rows() * self.k();
        Needs {
            shared: 0,
            worker: gathered + operand.len(self.pixels(machine), self.k()) + self.product_scratch(machine),
        }
    }
}

/// `[x, w, bias]`.
pub(super) fn conv2d(
    machine: Machine,
    args: &[&TensorDesc],
    stride: usize,
    pad: usize,
    act: Option<Unary>,
) -> Option<Prepared> {
    let geometry = Geometry::new(args[0], args[1], stride, pad);
    // [c_out, kh, kw, c_in]: the order of pixels with channels innermost.
    let dims = [geometry.c_out, geometry.c_in, geometry.kh * geometry.kw];
    let format = format_of(args[1].dtype)?;
    Some(Prepared::step(geometry.needs(machine), move |cx, at| {
        let packed = cx.weight(at.arg(1))?.transposed(format, dims, machine.kernels)?;
        Ok(Conv2d {
            x: cx.view(at.arg(0))?,
            w: View::dense(&packed, 0, geometry.c_out, geometry.k() * size_of::<f32>())?,
            bias: cx.view(at.arg(2))?,
            act,
            y: cx.result(at.out(0))?,
            worker: cx.scratch(at)?.1,
            geometry,
            machine,
        })
    }))
}

/// A chunk gathers what lies under the kernel for a block of output pixels and multiplies it with all weights.
struct Conv2d {
    x: View<f32>,
    /// `[c_out, kh * kw * c_in]` in f32.
    w: View<u8>,
    bias: View<f32>,
    act: Option<Unary>,
    y: ViewMut<f32>,
    worker: WorkerScratch,
    geometry: Geometry,
    machine: Machine,
}

impl Conv2d {
    /// Copies the elements under the kernel of output pixel `p`, zeros where it hangs over the border.
    fn gather(&self, p: usize, out: &mut [f32]) {
        let Geometry { height, width, c_in, kw, stride, pad, .. } = self.geometry;
        let (column, rest) = (p % self.geometry.width_out(), p / self.geometry.width_out());
        let (row, image) = (rest % self.geometry.height_out(), rest / self.geometry.height_out());
        for (dy, line) in out.chunks_exact_mut(kw * c_in).enumerate() {
            let y = (row * stride + dy).checked_sub(pad).filter(|&y| y < height);
            for (dx, pixel) in line.chunks_exact_mut(c_in).enumerate() {
                let x = (column * stride + dx).checked_sub(pad).filter(|&x| x < width);
                let Some((y, x)) = y.zip(x) else {
                    pixel.fill(0.0);
                    continue;
                };
                let r = (image * height + y) * width + x;
                if self.x.inner() == 1 {
                    pixel.copy_from_slice(self.x.row(r));
                } else {
                    for (to, from) in pixel.iter_mut().zip(self.x.strided_row(r).iter().step_by(self.x.inner())) {
                        *to = *from;
                    }
                }
            }
        }
    }
}

impl Step for Conv2d {
    fn chunks(&self) -> usize {
        self.y.n_rows().div_ceil(self.geometry.pixels(self.machine))
    }

    fn run(&self, chunk: usize, worker: &mut Worker) {
        let operand = self.geometry.operand(self.machine);
        let (k, n, rows_each) = (self.geometry.k(), self.geometry.c_out, operand.panel_rows());
        let pixels = piece(chunk, self.geometry.pixels(self.machine), self.y.n_rows());
        let m = pixels.len();
        let (gathered, scratch) = self.worker.of(worker).split_at_mut(rows_each * k);
        let (panels, scratch) = scratch.split_at_mut(operand.len(m, k));
        for (i, panel) in panels.chunks_exact_mut(operand.panel_len(k)).enumerate() {
            let rows = piece(i, rows_each, m);
            for (p, row) in rows.clone().zip(gathered.chunks_exact_mut(k)) {
                self.gather(pixels.start + p, row);
            }
            self.machine.kernels.prepare(operand, gathered, k, rows.len(), k, panel);
        }
        // SAFETY: these pixels belong to this chunk alone.
        let y = unsafe { self.y.rows_mut(pixels) };
        let product = Product { format: Format::F32, w: self.w.rows(0..n), n_rows: n, k, operand, x: panels, m };
        self.machine.kernels.product(&product, y, scratch);
        for y in y.chunks_exact_mut(n) {
            self.machine.kernels.add(y, self.bias.row(0));
            activate(self.machine.kernels, self.act, y);
        }
    }
}

/// Channels of one chunk. Few under Miri, where shapes are small and chunks shall still meet.
const CHANNELS: usize = if cfg!(miri) { 8 } else { 256 };

/// `[x, w, state, reads, slots, kept, ranges]`, and the bias.
pub(super) fn causal_conv1d(args: &[&TensorDesc], bias: bool, act: Option<Unary>) -> Prepared {
    let [width, d_conv] = [0, 1].map(|i| args[1].shape.dim(i));
    // History of the channels of a chunk.
    let needs = Needs { shared: 0, worker: width.min(CHANNELS) * (d_conv - 1) };
    Prepared::step(needs, move |cx, at| {
        let taps = cx.weight(at.arg(1))?.transposed(Format::F32, [1, width, d_conv], cx.machine.kernels)?;
        Ok(CausalConv1d {
            x: cx.view(at.arg(0))?,
            taps: View::dense(&taps, 0, d_conv, width)?,
            state: cx.result(at.arg(2))?,
            passages: Passages::bind(cx, at, 3)?,
            bias: if bias { Some(cx.view(at.arg(7))?) } else { None },
            act,
            y: cx.result(at.out(0))?,
            worker: cx.scratch(at)?.1,
            kernels: cx.machine.kernels,
        })
    })
}

/// A chunk is a block of channels of all sequences, so that no two chunks touch the same state whatever the slots are.
struct CausalConv1d {
    x: View<f32>,
    /// `[d_conv, width]`.
    taps: View<f32>,
    state: ViewMut<f32>,
    passages: Passages,
    bias: Option<View<f32>>,
    act: Option<Unary>,
    y: ViewMut<f32>,
    worker: WorkerScratch,
    kernels: Kernels,
}

impl CausalConv1d {
    /// Past inputs of the channels, oldest first.
    fn load_history(&self, read: Option<usize>, channels: &Range<usize>, history: &mut [f32]) {
        let n = history.len() / channels.len();
        for (i, row) in history.chunks_exact_mut(channels.len()).enumerate() {
            match read {
                // The rest of the row belongs to other chunks.
                Some(slot) => row.copy_from_slice(self.state.part(slot * n + i, channels.clone())),
                None => row.fill(0.0),
            }
        }
    }

    /// Input `i` of a sequence, whose first row is `first`, counted from the oldest one in the history.
    fn input<'a>(&'a self, first: usize, i: usize, channels: &Range<usize>, history: &'a [f32]) -> &'a [f32] {
        let n = history.len() / channels.len();
        match i.checked_sub(n) {
            None => &history[i * channels.len()..][..channels.len()],
            Some(t) => self.x.part(first + t, channels.clone()),
        }
    }
}

impl Step for CausalConv1d {
    fn chunks(&self) -> usize {
        self.y.row_len().div_ceil(CHANNELS)
    }

    fn run(&self, chunk: usize, worker: &mut Worker) {
        let channels = piece(chunk, CHANNELS, self.y.row_len());
        let d_conv = self.taps.n_rows();
        let history = &mut self.worker.of(worker)[..channels.len() * (d_conv - 1)];
        for Passage { rows, read, slot, kept } in self.passages.of_chunk(chunk) {
            let first = rows.start;
            self.load_history(read, &channels, history);
            for t in 0..rows.len() {
                // SAFETY: these channels of `y` belong to this chunk alone.
                let y = unsafe { self.y.part_mut(first + t, channels.clone()) };
                match &self.bias {
                    Some(bias) => y.copy_from_slice(bias.part(0, channels.clone())),
                    None => y.fill(0.0),
                }
                for j in 0..d_conv {
                    let taps = self.taps.part(j, channels.clone());
                    self.kernels.add_product(y, taps, self.input(first, t + j, &channels, history));
                }
                activate(self.kernels, self.act, y);
            }
            for i in 0..d_conv - 1 {
                // SAFETY: these channels of the state belong to this chunk alone, and the history is a copy.
                let state = unsafe { self.state.part_mut(slot * (d_conv - 1) + i, channels.clone()) };
                state.copy_from_slice(self.input(first, kept + i, &channels, history));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::mem::Storage;
    use super::super::super::mem::Window;
    use super::super::super::region::Region;
    use super::super::super::team::Team;
    use super::super::super::weights::transpose;
    use super::*;

    const N_WORKERS: usize = 3;

    /// Values in [-1, 1) that repeat for the same seed.
    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn stored(x: &[f32]) -> Arc<Storage> {
        let storage = Arc::new(Storage::zeroed(size_of_val(x), "test").unwrap());
        let all = ViewMut::dense(&storage, 0, 1, x.len()).unwrap();
        // SAFETY: nobody else knows the storage.
        unsafe { all.row_mut(0) }.copy_from_slice(x);
        storage
    }

    /// Cross-correlation with zero border in f64; `x [n, c_in, height, width]`, result `[n, h', w', c_out]`.
    fn naive(n: usize, g: &Geometry, x: &[f32], w: &[f32], bias: &[f32]) -> Vec<f64> {
        let mut out = Vec::new();
        for (image, row, column, o) in (0..n).flat_map(|i| {
            let (h, w) = (g.height_out(), g.width_out());
            (0..h * w * g.c_out).map(move |j| (i, j / (w * g.c_out), j / g.c_out % w, j % g.c_out))
        }) {
            let mut sum = f64::from(bias[o]);
            for (c, dy, dx) in (0..g.k()).map(|j| (j / (g.kh * g.kw), j / g.kw % g.kh, j % g.kw)) {
                let (y, x_at) = (row * g.stride + dy, column * g.stride + dx);
                if y >= g.pad && y < g.height + g.pad && x_at >= g.pad && x_at < g.width + g.pad {
                    let at = ((image * g.c_in + c) * g.height + y - g.pad) * g.width + x_at - g.pad;
                    let tap = ((o * g.c_in + c) * g.kh + dy) * g.kw + dx;
                    sum += f64::from(x[at]) * f64::from(w[tap]);
                }
            }
            out.push(sum);
        }
        out
    }

    /// Runs the step on `x` with channels outermost, read through strides where `is_strided`, else packed.
    fn run(kernels: Kernels, n: usize, g: Geometry, is_strided: bool, n_threads: usize) -> (Vec<f32>, Vec<f64>) {
        let x = values(n * g.c_in * g.height * g.width, 1);
        let w = values(g.c_out * g.k(), 2);
        let bias = values(g.c_out, 3);
        let pixels = g.height * g.width;
        let window = Window {
            byte: 0,
            row_len: g.c_in,
            inner: if is_strided { pixels } else { 1 },
            outer: if is_strided {
                [(n, g.c_in * pixels), (g.height, g.width), (g.width, 1)]
            } else {
                [(n, g.c_in * pixels), (g.height, g.width * g.c_in), (g.width, g.c_in)]
            },
        };
        let stored_x = if is_strided {
            stored(&x)
        } else {
            let at = |j: usize| (j / (pixels * g.c_in) * g.c_in + j % g.c_in) * pixels + j / g.c_in % pixels;
            stored(&(0..x.len()).map(|j| x[at(j)]).collect::<Vec<_>>())
        };
        let dims = [g.c_out, g.c_in, g.kh * g.kw];
        let packed = transpose(&stored(&w), Format::F32, dims, kernels).unwrap();
        let n_pixels = n * g.height_out() * g.width_out();
        let y_storage = Arc::new(Storage::zeroed(n_pixels * g.c_out * 4, "test").unwrap());
        let machine = Machine { kernels, n_workers: N_WORKERS };
        let needs = g.needs(machine);
        let scratch = Arc::new(Storage::zeroed(WorkerScratch::bytes(N_WORKERS, needs.worker), "test").unwrap());
        let y = ViewMut::dense(&y_storage, 0, n_pixels, g.c_out).unwrap();
        let step = Conv2d {
            x: View::new(&stored_x, window).unwrap(),
            w: View::dense(&packed, 0, g.c_out, g.k() * 4).unwrap(),
            bias: View::dense(&stored(&bias), 0, 1, g.c_out).unwrap(),
            act: None,
            y: y.clone(),
            worker: WorkerScratch::new(&scratch, 0, N_WORKERS, needs.worker).unwrap(),
            geometry: g,
            machine,
        };
        let region = Arc::new(Region::new(vec![Box::new(step)], n_threads, None));
        Team::new(n_threads - 1).unwrap().run(&region);
        (y.rows(0..n_pixels).to_vec(), naive(n, &g, &x, &w, &bias))
    }

    #[test]
    fn conv2d_equals_the_sum_in_f64() {
        let shapes = [
            // A stem: one channel, then many; pixels of one panel come from several images.
            (3, Geometry { height: 9, width: 10, c_in: 1, c_out: 7, kh: 3, kw: 3, stride: 2, pad: 1 }),
            (2, Geometry { height: 5, width: 7, c_in: 33, c_out: 17, kh: 3, kw: 3, stride: 2, pad: 1 }),
            (1, Geometry { height: 40, width: 30, c_in: 5, c_out: 96, kh: 2, kw: 4, stride: 1, pad: 0 }),
            (1, Geometry { height: 1, width: 1, c_in: 2, c_out: 1, kh: 3, kw: 3, stride: 3, pad: 2 }),
        ];
        for kernels in Kernels::available() {
            for (n, g) in shapes {
                for is_strided in [false, true] {
                    let (got, want) = run(kernels, n, g, is_strided, 2);
                    assert_eq!(got.len(), want.len());
                    // Sums of k products below 1 in size, each rounded.
                    let tolerance = g.k() as f64 * f64::from(f32::EPSILON);
                    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                        assert!((f64::from(*got) - want).abs() <= tolerance, "{kernels:?} {g:?} {i}: {got} {want}");
                    }
                    assert_eq!(got, run(kernels, n, g, is_strided, 3).0);
                }
            }
        }
    }
}
