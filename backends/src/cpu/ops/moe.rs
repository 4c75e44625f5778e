//! Mixtures of experts: `Route`, `ExpertLinear`, `ExpertSum`.

#![allow(unsafe_code, reason = "writes rows of results")]

use std::ops::Range;

use engine::op::{Gating, Precision, Route};
use engine::tensor::TensorDesc;
use kernels::cpu::{Kernels, Operand, Product};
use kernels::quant::Format;

use super::super::context::{Needs, Prepared};
use super::super::machine::Machine;
use super::super::mem::{View, ViewMut, WorkerScratch};
use super::super::region::{Step, Worker, piece};
use super::by_row::ByRow;
use super::rows::{element, has_whole_blocks, index};
use crate::format::format_of;

/// Rows of an expert's weights in one chunk.
const TILE_ROWS: usize = 64;
/// Tokens that a chunk multiplies together.
const TILE_TOKENS: usize = 64;

/// `[logits]` or `[logits, bias]`.
pub(super) fn route(args: &[&TensorDesc], route: Route) -> Prepared {
    let n_expert = args[0].shape.last();
    // Scores, and scores with bias.
    let needs = Needs { shared: 0, worker: 2 * n_expert };
    Prepared::step(needs, move |cx, at| {
        let (logits, kernels) = (cx.view::<f32>(at.arg(0))?, cx.machine.kernels);
        let bias = at.node.args.get(1).map(|&b| cx.view::<f32>(b)).transpose()?;
        let scratch = cx.scratch(at)?.1;
        let results = (cx.result::<i32>(at.out(0))?, cx.result::<f32>(at.out(1))?);
        Ok(ByRow::of_width(results, n_expert, move |rows, worker| {
            let (scores, selection) = scratch.of(worker)[..2 * n_expert].split_at_mut(n_expert);
            for (r, (ids, weights)) in rows {
                scores.copy_from_slice(logits.row(r));
                match route.gating {
                    Gating::Sigmoid => kernels.sigmoid(scores),
                    Gating::Softmax => kernels.softmax(scores),
                }
                selection.copy_from_slice(scores);
                if let Some(bias) = &bias {
                    kernels.add(selection, bias.row(0));
                }
                for (id, weight) in ids.iter_mut().zip(&mut *weights) {
                    let best = largest(selection);
                    *id = i32::try_from(best).expect("models have far fewer experts");
                    *weight = scores[best];
                    selection[best] = f32::NAN;
                }
                let sum: f32 = weights.iter().sum();
                let norm = if route.normalize { sum + route.norm_eps } else { 1.0 };
                kernels.scale(weights, route.scale / norm);
            }
        }))
    })
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
    fn new(machine: Machine, w: &TensorDesc) -> Option<Self> {
        let format = format_of(w.dtype).filter(|_| has_whole_blocks(w))?;
        let [n_expert, n, k] = [0, 1, 2].map(|i| w.shape.dim(i));
        Some(Self { format, operand: machine.operand(format, 1, Precision::Fast), n, k, n_expert })
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

/// `[x, w, ids]`.
pub(super) fn linear(machine: Machine, args: &[&TensorDesc]) -> Option<Prepared> {
    let tile = Tile::new(machine, args[1])?;
    let (x, ids) = (args[0].shape, args[2].shape);
    Some(Prepared::step(tile.needs(machine), move |cx, at| {
        Ok(ExpertLinear {
            // A token has one row for all of its experts, or one for each.
            sharing: ids.elements() / x.rows(),
            x: cx.view(at.arg(0))?,
            w: cx.bytes(at.arg(1))?,
            ids: cx.view(at.arg(2))?,
            n_ids: ids.elements(),
            y: cx.result(at.out(0))?,
            worker: cx.scratch(at)?.1,
            tile,
            kernels: cx.machine.kernels,
        })
    }))
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
pub(super) fn sum() -> Prepared {
    Prepared::without_scratch(|cx, at| {
        let (x, weights, kernels) = (cx.view::<f32>(at.arg(0))?, cx.view::<f32>(at.arg(1))?, cx.machine.kernels);
        Ok(ByRow::new(cx.result::<f32>(at.out(0))?, move |rows, _| {
            for (r, y) in rows {
                let weights = weights.row(r);
                y.fill(0.0);
                for (u, weight) in weights.iter().enumerate() {
                    kernels.axpy_f32(y, *weight, x.row(r * weights.len() + u));
                }
            }
        }))
    })
}
