//! Mixtures of experts: `Route`, `ExpertLinear`, `ExpertSum`.

#![allow(unsafe_code, reason = "writes rows of results")]

use std::ops::Range;

use engine::error::Result;
use engine::op::{Gating, Route};
use engine::tensor::TensorDesc;
use kernels::cpu::{Kernels, Operand, Product};
use kernels::quant::Format;

use super::super::context::{At, Lowering, Machine, Needs};
use super::super::mem::{View, ViewMut, WorkerScratch};
use super::super::region::{Step, Worker, piece};
use super::rows::{element, has_whole_blocks, index};
use super::rows_per_chunk;
use crate::format::format_of;

/// Rows of an expert's weights in one chunk.
const TILE_ROWS: usize = 64;
/// Tokens that a chunk multiplies together.
const TILE_TOKENS: usize = 64;

/// Scratch memory of `[logits]` or `[logits, bias]`: scores, and scores with bias.
pub(in super::super) fn needs_route(args: &[&TensorDesc]) -> Needs {
    Needs { shared: 0, worker: 2 * args[0].shape.last() }
}

/// `[logits]` or `[logits, bias]`.
pub(in super::super) fn route(cx: &mut Lowering<'_>, at: At<'_>, route: Route) -> Result<()> {
    let logits = *cx.desc(at.arg(0));
    let step = Choose {
        logits: cx.view(at.arg(0))?,
        bias: at.node.args.get(1).map(|&b| cx.view(b)).transpose()?,
        ids: cx.result(at.out(0))?,
        weights: cx.result(at.out(1))?,
        route,
        worker: cx.scratch(at, needs_route(&[&logits]))?.1,
        kernels: cx.machine.kernels,
    };
    cx.push(step);
    Ok(())
}

struct Choose {
    logits: View<f32>,
    bias: Option<View<f32>>,
    ids: ViewMut<i32>,
    weights: ViewMut<f32>,
    route: Route,
    worker: WorkerScratch,
    kernels: Kernels,
}

impl Step for Choose {
    fn chunks(&self) -> usize {
        self.logits.n_rows().div_ceil(rows_per_chunk(self.logits.row_len()))
    }

    fn run(&self, chunk: usize, worker: &mut Worker) {
        let n_expert = self.logits.row_len();
        let (scores, selection) = self.worker.of(worker).split_at_mut(n_expert);
        for r in piece(chunk, rows_per_chunk(n_expert), self.logits.n_rows()) {
            scores.copy_from_slice(self.logits.row(r));
            match self.route.gating {
                Gating::Sigmoid => self.kernels.sigmoid(scores),
                Gating::Softmax => self.kernels.softmax(scores),
            }
            selection.copy_from_slice(scores);
            if let Some(bias) = &self.bias {
                self.kernels.add(selection, bias.row(0));
            }
            // SAFETY: row `r` of `ids` belongs to this chunk alone.
            let ids = unsafe { self.ids.row_mut(r) };
            // SAFETY: row `r` of `weights` belongs to this chunk alone.
            let weights = unsafe { self.weights.row_mut(r) };
            for (id, weight) in ids.iter_mut().zip(&mut *weights) {
                let best = largest(selection);
                *id = i32::try_from(best).expect("models have far fewer experts");
                *weight = scores[best];
                selection[best] = f32::NAN;
            }
            let sum: f32 = weights.iter().sum();
            let norm = if self.route.normalize { sum + self.route.norm_eps } else { 1.0 };
            self.kernels.scale(weights, self.route.scale / norm);
        }
    }
}

/// Index of the largest element, the first of equal ones. NaN counts as taken; of nothing but NaN the first.
fn largest(x: &[f32]) -> usize {
    let mut best: Option<usize> = None;
    for (i, v) in x.iter().enumerate().filter(|(_, v)| !v.is_nan()) {
        if best.is_none_or(|b| *v > x[b]) {
            best = Some(i);
        }
    }
    best.unwrap_or(0)
}

/// Whether kernels read these weights.
pub(in super::super) fn supports(args: &[&TensorDesc]) -> bool {
    args.get(1).is_some_and(|w| format_of(w.dtype).is_some() && has_whole_blocks(w))
}

/// How a chunk multiplies: some tokens of one expert with some rows of its matrix.
#[derive(Clone, Copy)]
struct Tile {
    format: Format,
    /// The layout for one row, whatever the number of tokens: a token's result does not depend on its neighbours.
    operand: Operand,
    n: usize,
    k: usize,
    n_expert: usize,
}

impl Tile {
    fn new(machine: Machine, w: &TensorDesc) -> Self {
        let format = format_of(w.dtype).unwrap_or(Format::F32);
        let [n_expert, n, k] = [0, 1, 2].map(|i| w.shape.dim(i));
        Self { format, operand: machine.kernels.operand(format, 1), n, k, n_expert }
    }

    fn tiles(&self) -> usize {
        self.n.div_ceil(TILE_ROWS)
    }

    fn product_scratch(&self, kernels: Kernels) -> usize {
        kernels.product_scratch_len(self.format, self.operand, TILE_ROWS.min(self.n), self.k, TILE_TOKENS)
    }

    /// Prepared tokens, their results, their numbers, and what the kernel wants.
    fn needs(&self, machine: Machine) -> Needs {
        let tokens = self.operand.len(TILE_TOKENS, self.k) + TILE_TOKENS * TILE_ROWS.min(self.n) + TILE_TOKENS;
        Needs { shared: 0, worker: tokens + self.product_scratch(machine.kernels) }
    }
}

/// Scratch memory of `[x, w, ids]`.
pub(in super::super) fn needs_linear(machine: Machine, args: &[&TensorDesc]) -> Needs {
    Tile::new(machine, args[1]).needs(machine)
}

/// `[x, w, ids]`.
pub(in super::super) fn linear(cx: &mut Lowering<'_>, at: At<'_>) -> Result<()> {
    let tile = Tile::new(cx.machine, cx.desc(at.arg(1)));
    let (x, ids) = (cx.desc(at.arg(0)).shape, cx.desc(at.arg(2)).shape);
    let step = ExpertLinear {
        // A token has one row for all of its experts, or one for each.
        sharing: ids.elements() / x.rows(),
        x: cx.view(at.arg(0))?,
        w: cx.bytes(at.arg(1))?,
        ids: cx.view(at.arg(2))?,
        n_ids: ids.elements(),
        y: cx.result(at.out(0))?,
        worker: cx.scratch(at, tile.needs(cx.machine))?.1,
        tile,
        kernels: cx.machine.kernels,
    };
    cx.push(step);
    Ok(())
}

/// A chunk is a tile of one expert's rows: the expert's weights are read once for all tokens sent to it.
struct ExpertLinear {
    x: View<f32>,
    w: View<u8>,
    ids: View<i32>,
    n_ids: usize,
    sharing: usize,
    y: ViewMut<f32>,
    tile: Tile,
    worker: WorkerScratch,
    kernels: Kernels,
}

impl ExpertLinear {
    /// Multiplies the chosen tokens with rows `rows` of expert `e`.
    fn multiply(&self, e: usize, rows: &Range<usize>, chosen: &[u32], scratch: &mut [f32]) {
        let Tile { format, operand, n, k, .. } = self.tile;
        let m = chosen.len();
        let (prepared, scratch) = scratch.split_at_mut(operand.len(m, k));
        let (out, scratch) = scratch.split_at_mut(m * rows.len());
        for (panel, &i) in prepared.chunks_exact_mut(operand.panel_len(k)).zip(chosen) {
            self.kernels.prepare(operand, self.x.row(i as usize / self.sharing), k, 1, k, panel);
        }
        let w = self.w.rows(e * n + rows.start..e * n + rows.end);
        self.kernels.product(&Product { format, w, n_rows: rows.len(), k, operand, x: prepared, m }, out, scratch);
        for (&i, out) in chosen.iter().zip(out.chunks_exact(rows.len())) {
            // SAFETY: these elements of row `i` belong to this chunk alone: the row has one expert.
            unsafe { self.y.part_mut(i as usize, rows.clone()) }.copy_from_slice(out);
        }
    }
}

impl Step for ExpertLinear {
    fn chunks(&self) -> usize {
        self.tile.n_expert * self.tile.tiles()
    }

    fn run(&self, chunk: usize, worker: &mut Worker) {
        let (e, rows) = (chunk / self.tile.tiles(), piece(chunk % self.tile.tiles(), TILE_ROWS, self.tile.n));
        let (chosen, scratch) = self.worker.of(worker).split_at_mut(TILE_TOKENS);
        let chosen: &mut [u32] = bytemuck::cast_slice_mut(chosen);
        let mut n_chosen = 0;
        for i in (0..self.n_ids).filter(|&i| index(element(&self.ids, i)) == e) {
            chosen[n_chosen] = u32::try_from(i).expect("graphs count elements in 32 bits");
            n_chosen += 1;
            if n_chosen == TILE_TOKENS {
                self.multiply(e, &rows, chosen, scratch);
                n_chosen = 0;
            }
        }
        if n_chosen > 0 {
            self.multiply(e, &rows, &chosen[..n_chosen], scratch);
        }
    }
}

/// `[x, weights]`.
pub(in super::super) fn sum(cx: &mut Lowering<'_>, at: At<'_>) -> Result<()> {
    let step = ExpertSum {
        x: cx.view(at.arg(0))?,
        weights: cx.view(at.arg(1))?,
        y: cx.result(at.out(0))?,
        kernels: cx.machine.kernels,
    };
    cx.push(step);
    Ok(())
}

struct ExpertSum {
    x: View<f32>,
    weights: View<f32>,
    y: ViewMut<f32>,
    kernels: Kernels,
}

impl Step for ExpertSum {
    fn chunks(&self) -> usize {
        self.y.n_rows().div_ceil(rows_per_chunk(self.y.row_len()))
    }

    fn run(&self, chunk: usize, _worker: &mut Worker) {
        for r in piece(chunk, rows_per_chunk(self.y.row_len()), self.y.n_rows()) {
            let weights = self.weights.row(r);
            // SAFETY: row `r` of `y` belongs to this chunk alone.
            let y = unsafe { self.y.row_mut(r) };
            y.fill(0.0);
            for (u, weight) in weights.iter().enumerate() {
                self.kernels.axpy_f32(y, *weight, self.x.row(r * weights.len() + u));
            }
        }
    }
}
