//! Matrix products with weights: `Linear`, `LinearGroup`, `LinearGlu`.
//!
//! Two steps: activations are brought into the layout that the kernel wants, once for all products of the same `x`; then
//! tiles of the results are computed, each from some rows of weights and all or some rows of activations. Bias and
//! pointwise function are applied while the tile is in cache.

#![allow(unsafe_code, reason = "writes rows of results")]

use std::ops::Range;

use engine::error::Result;
use engine::op::{Precision, Unary};
use engine::tensor::{TensorDesc, TensorId};
use kernels::cpu::{Kernels, Operand, Product};
use kernels::quant::Format;
use smallvec::{SmallVec, smallvec};

use super::super::context::{At, Lowering, Needs, Prepared};
use super::super::machine::Machine;
use super::super::mem::{View, ViewMut, WorkerScratch};
use super::super::region::{Step, Worker, piece};
use super::rows::has_whole_blocks;
use super::{CHUNK_ELEMENTS, activate, gated};
use crate::format::format_of;

/// Bytes of weights in one tile with few rows of activations: some microseconds at the speed of memory.
const TILE_WEIGHT_BYTES: usize = 64 * 1024;
/// Rows of weights in one tile with many rows of activations.
const TILE_ROWS: usize = 32;
/// Rows of activations from which on a tile is not limited by its weights.
const MANY: usize = 9;
/// Rows of 8-bit activations in one tile: results of [`TILE_ROWS`] weights with them fill a first-level cache.
const TILE_QUANTIZED: usize = 384;
/// `f32`s of activations in one tile: they stay in the second-level cache while the tile's weights pass by.
const TILE_ACTIVATIONS: usize = 256 * 1024;
/// Rows of weights in a tile are a multiple of this, since kernels take several at a time.
const ROW_MULTIPLE: usize = 16;

/// How a product of one shape is cut. Depends on the operands alone.
#[derive(Clone, Copy)]
struct Tiling {
    format: Format,
    operand: Operand,
    /// Rows of activations.
    m: usize,
    k: usize,
    /// Rows of activations in one tile.
    tile_m: usize,
    /// Rows of weights in one tile.
    tile_n: usize,
}

impl Tiling {
    /// None if kernels do not read these weights.
    fn new(machine: Machine, x: &TensorDesc, w: &TensorDesc, precision: Precision) -> Option<Self> {
        let (m, k) = (x.shape.rows(), x.shape.last());
        let format = format_of(w.dtype).filter(|_| has_whole_blocks(w))?;
        let operand = machine.operand(format, m, precision);
        let (tile_m, tile_n) = match operand {
            Operand::Q8 | Operand::Q8K if m >= MANY => (m.min(TILE_QUANTIZED), TILE_ROWS),
            Operand::Rows | Operand::Q8 | Operand::Q8K => {
                let multiples = TILE_WEIGHT_BYTES / (ROW_MULTIPLE * format.row_bytes(k).max(1));
                (m, multiples.max(1) * ROW_MULTIPLE)
            }
            Operand::Panels => {
                let panels = (TILE_ACTIVATIONS / operand.panel_len(k)).max(1);
                (m.min(panels * operand.panel_rows()), TILE_ROWS)
            }
        };
        Some(Self { format, operand, m, k, tile_m, tile_n })
    }

    /// Whether the kernel reads rows of activations where they are.
    fn takes_rows(&self, x: &TensorDesc) -> bool {
        self.operand == Operand::Rows && x.is_contiguous()
    }

    fn tile_len(&self) -> usize {
        self.tile_m * self.tile_n
    }

    fn product_scratch(&self, kernels: Kernels) -> usize {
        kernels.product_scratch_len(self.format, self.operand, self.tile_n, self.k, self.tile_m)
    }

    /// `n_tiles` tiles, the kernel's scratch memory, and rows gathered for one panel.
    fn needs(&self, machine: Machine, x: &TensorDesc, n_tiles: usize) -> Needs {
        let tiles = self.tile_len() * n_tiles;
        let gathered = self.operand.panel_rows() * self.k;
        Needs {
            shared: if self.takes_rows(x) { 0 } else { self.operand.len(self.m, self.k) },
            worker: (tiles + self.product_scratch(machine.kernels)).max(gathered),
        }
    }
}

/// What is decided about products of the same activations.
struct Plan {
    tilings: SmallVec<[Tiling; 3]>,
    needs: Needs,
    /// Whether the kernel reads rows of activations where they are.
    takes_rows: bool,
}

impl Plan {
    /// Of products of `x` with `weights`, `n_tiles` of which a chunk computes. None unless kernels read these weights, and all
    /// of them with the same layout of activations.
    fn new(
        machine: Machine,
        x: &TensorDesc,
        weights: &[&TensorDesc],
        n_tiles: usize,
        precision: Precision,
    ) -> Option<Self> {
        let tilings: SmallVec<[Tiling; 3]> =
            weights.iter().map(|w| Tiling::new(machine, x, w, precision)).collect::<Option<_>>()?;
        let first = tilings.first()?;
        let takes_rows = first.takes_rows(x);
        let needs = tilings.iter().map(|t| t.needs(machine, x, n_tiles)).fold(Needs::default(), Needs::max);
        tilings.iter().all(|t| t.operand == first.operand).then_some(Self { tilings, needs, takes_rows })
    }
}

/// `[x, w]` or `[x, w, bias]`.
pub(super) fn linear(
    machine: Machine,
    args: &[&TensorDesc],
    act: Option<Unary>,
    precision: Precision,
) -> Option<Prepared> {
    let plan = Plan::new(machine, args[0], &args[1..2], 1, precision)?;
    // Not the whole plan: there is one of these for every product of a graph.
    let (tiling, takes_rows) = (plan.tilings[0], plan.takes_rows);
    Some(Prepared::new(plan.needs, move |cx, at| {
        let bias = at.node.args.get(2).map(|&bias| cx.view(bias)).transpose()?;
        let part = Part { bias, act, ..Part::new(cx, tiling, at.arg(1), at.out(0))? };
        products(cx, at, smallvec![part], takes_rows)
    }))
}

/// `[x, w_0, .., bias_0, ..]`.
pub(super) fn group(machine: Machine, args: &[&TensorDesc], n: usize, precision: Precision) -> Option<Prepared> {
    let plan = Plan::new(machine, args[0], &args[1..=n], 1, precision)?;
    Some(Prepared::new(plan.needs, move |cx, at| {
        let part = |(i, tiling): (usize, &Tiling)| {
            let bias = at.node.args.get(1 + n + i).map(|&bias| cx.view(bias)).transpose()?;
            Ok(Part { bias, ..Part::new(cx, *tiling, at.arg(1 + i), at.out(i))? })
        };
        let parts = plan.tilings.iter().enumerate().map(part).collect::<Result<_>>()?;
        products(cx, at, parts, plan.takes_rows)
    }))
}

/// `[x, gate, up]`.
pub(super) fn glu(machine: Machine, args: &[&TensorDesc], act: Unary, precision: Precision) -> Option<Prepared> {
    let plan = Plan::new(machine, args[0], &args[1..3], 2, precision)?;
    let (tiling, format, takes_rows) = (plan.tilings[0], plan.tilings[1].format, plan.takes_rows);
    Some(Prepared::new(plan.needs, move |cx, at| {
        let up = Some((cx.bytes(at.arg(2))?, format));
        let part = Part { up, act: Some(act), ..Part::new(cx, tiling, at.arg(1), at.out(0))? };
        products(cx, at, smallvec![part], takes_rows)
    }))
}

fn products(cx: &mut Lowering<'_>, at: At<'_>, mut parts: Parts, takes_rows: bool) -> Result<()> {
    let kernels = cx.machine.kernels;
    let (shared, worker) = cx.scratch(at)?;
    let x = cx.view::<f32>(at.arg(0))?;
    let Tiling { operand, m, k, .. } = parts[0].tiling;
    let x = if takes_rows {
        x
    } else {
        let prepared = shared.clone();
        cx.push(Prepare { x, operand, m, k, prepared, worker: worker.clone(), kernels });
        View::clone(&shared)
    };
    let mut first = 0;
    for part in &mut parts {
        part.first_chunk = first;
        first += part.chunks();
    }
    cx.push(Products { x, parts, n_chunks: first, worker, kernels });
    Ok(())
}

/// Brings rows of activations into the kernel's layout.
struct Prepare {
    x: View<f32>,
    operand: Operand,
    m: usize,
    k: usize,
    prepared: ViewMut<f32>,
    worker: WorkerScratch,
    kernels: Kernels,
}

impl Prepare {
    fn panels_per_chunk(&self) -> usize {
        (CHUNK_ELEMENTS / (self.operand.panel_rows() * self.k)).max(1)
    }
}

impl Step for Prepare {
    fn chunks(&self) -> usize {
        self.m.div_ceil(self.operand.panel_rows()).div_ceil(self.panels_per_chunk())
    }

    fn run(&self, chunk: usize, worker: &mut Worker) {
        let (rows_each, len) = (self.operand.panel_rows(), self.operand.panel_len(self.k));
        for i in piece(chunk, self.panels_per_chunk(), self.m.div_ceil(rows_each)) {
            let rows = piece(i, rows_each, self.m);
            // SAFETY: panel `i` belongs to this chunk alone, and nobody reads it before the next step.
            let panel = unsafe { self.prepared.part_mut(0, i * len..(i + 1) * len) };
            let n = rows.len();
            if self.x.is_uniform() {
                let (x, stride) = self.x.every(rows.start, n, 1, 1);
                self.kernels.prepare(self.operand, x, stride, n, self.k, panel);
            } else {
                let gathered = &mut self.worker.of(worker)[..n * self.k];
                for (to, r) in gathered.chunks_exact_mut(self.k).zip(rows) {
                    to.copy_from_slice(self.x.row(r));
                }
                self.kernels.prepare(self.operand, gathered, self.k, n, self.k, panel);
            }
        }
    }
}

/// One product of the step, `y = act(x . w^T + bias)`, or with `up` `y = act(x . w^T) * (x . up^T)`.
struct Part {
    tiling: Tiling,
    w: View<u8>,
    up: Option<(View<u8>, Format)>,
    bias: Option<View<f32>>,
    act: Option<Unary>,
    y: ViewMut<f32>,
    first_chunk: usize,
}

impl Part {
    fn new(cx: &Lowering<'_>, tiling: Tiling, w: TensorId, y: TensorId) -> Result<Self> {
        Ok(Self { tiling, w: cx.bytes(w)?, up: None, bias: None, act: None, y: cx.result(y)?, first_chunk: 0 })
    }

    fn chunks(&self) -> usize {
        self.w.n_rows().div_ceil(self.tiling.tile_n) * self.tiling.m.div_ceil(self.tiling.tile_m)
    }

    /// The tile of a chunk. Tiles of the same activations follow each other, so that those stay in the cache.
    fn tile(&self, chunk: usize) -> Tile {
        let Tiling { m, tile_m, tile_n, .. } = self.tiling;
        let tiles_n = self.w.n_rows().div_ceil(tile_n);
        Tile { m: piece(chunk / tiles_n, tile_m, m), n: piece(chunk % tiles_n, tile_n, self.w.n_rows()) }
    }

    /// Adds the bias to elements `columns` of a row and applies the function.
    fn finish(&self, kernels: Kernels, y: &mut [f32], columns: &Range<usize>) {
        if let Some(bias) = &self.bias {
            kernels.add(y, &bias.row(0)[columns.clone()]);
        }
        activate(kernels, self.act, y);
    }
}

/// Rows of activations and rows of weights.
struct Tile {
    m: Range<usize>,
    n: Range<usize>,
}

impl Tile {
    fn len(&self) -> usize {
        self.m.len() * self.n.len()
    }
}

/// Products of the same activations, mostly one.
type Parts = SmallVec<[Part; 1]>;

/// Tiles of one or several products of the same activations.
struct Products {
    x: View<f32>,
    parts: Parts,
    n_chunks: usize,
    worker: WorkerScratch,
    kernels: Kernels,
}

impl Products {
    /// Computes `x . w^T` for a tile: `[m, n]`.
    fn product(&self, t: &Tiling, w: &View<u8>, format: Format, tile: &Tile, out: &mut [f32], scratch: &mut [f32]) {
        let (rows, len) = (t.operand.panel_rows(), t.operand.panel_len(t.k));
        let x = self.x.rows(0..self.x.n_rows());
        let product = Product {
            format,
            w: w.rows(tile.n.clone()),
            n_rows: tile.n.len(),
            k: t.k,
            operand: t.operand,
            x: &x[tile.m.start / rows * len..tile.m.end.div_ceil(rows) * len],
            m: tile.m.len(),
        };
        self.kernels.product(&product, out, scratch);
    }
}

impl Step for Products {
    fn chunks(&self) -> usize {
        self.n_chunks
    }

    fn run(&self, chunk: usize, worker: &mut Worker) {
        let after = self.parts.iter().position(|p| p.first_chunk > chunk).unwrap_or(self.parts.len());
        let part = &self.parts[after - 1];
        let t = &part.tiling;
        let tile = part.tile(chunk - part.first_chunk);
        let scratch = self.worker.of(worker);
        if t.m == 1 && part.up.is_none() {
            // SAFETY: these elements of the only row belong to this tile alone.
            let y = unsafe { part.y.part_mut(0, tile.n.clone()) };
            self.product(t, &part.w, t.format, &tile, y, scratch);
            part.finish(self.kernels, y, &tile.n);
            return;
        }
        let (out, scratch) = scratch.split_at_mut(tile.len());
        if let Some((up, format)) = &part.up {
            let (out_up, scratch) = scratch.split_at_mut(tile.len());
            self.product(t, up, *format, &tile, out_up, scratch);
            self.product(t, &part.w, t.format, &tile, out, scratch);
            gated(self.kernels, part.act, out, out_up);
        } else {
            self.product(t, &part.w, t.format, &tile, out, scratch);
        }
        for (r, out) in tile.m.clone().zip(out.chunks_exact_mut(tile.n.len())) {
            // SAFETY: these elements of row `r` belong to this tile alone.
            let y = unsafe { part.y.part_mut(r, tile.n.clone()) };
            y.copy_from_slice(out);
            if part.up.is_none() {
                part.finish(self.kernels, y, &tile.n);
            }
        }
    }
}
