//! Delta nets: matrices that each row of a sequence changes and then reads.
//!
//! A chunk is some tiles of columns of one value head, for all sequences: no two chunks touch the same state whatever the
//! slots are, and columns know nothing of each other. Rows of a sequence are taken in blocks: what they need of all columns
//! is made once for a block, then each tile passes through it in the nearest cache, in place.

#![allow(unsafe_code, reason = "writes rows of results and states")]

use std::ops::Range;

use bytemuck::Pod;
use engine::error::Result;
use engine::op::{DeltaRule, HeadMap};
use engine::tensor::TensorDesc;
use kernels::cpu::Kernels;

use super::super::context::{At, Lowering, Needs, Prepared};
use super::super::machine::Machine;
use super::super::mem::{View, ViewMut, WorkerScratch};
use super::super::region::{Step, Worker, piece};
use super::passages::{Passage, Passages};

/// Rows of a block: what is made for them takes half of the nearest cache, a tile the other.
const BLOCK: usize = 8;
/// Vectors of `k_dim` that are made for a row: see [`Made`].
const VECTORS: usize = 5;
/// Numbers that are made for a row: see [`Made`].
const NUMBERS: usize = 3;

/// Extents of a delta net, and how it is cut.
#[derive(Clone, Copy)]
struct Sizes {
    n_key: usize,
    n_value: usize,
    k_dim: usize,
    /// Columns of a tile, and tiles of a value head.
    width: usize,
    n_tiles: usize,
    /// Tiles of a chunk.
    tiles: usize,
}

impl Sizes {
    fn new(q: &TensorDesc, v: &TensorDesc, state: &TensorDesc, n_workers: usize) -> Self {
        let (n_value, width) = (v.shape.dim(1), state.shape.dim(3));
        let n_tiles = v.shape.dim(2) / width;
        // As many as leave every thread a chunk.
        let parts = n_workers.div_ceil(n_value).min(n_tiles);
        let tiles = n_tiles.div_ceil(parts);
        Self { n_key: q.shape.dim(1), n_value, k_dim: q.shape.dim(2), width, n_tiles, tiles }
    }

    /// Chunks of a value head.
    fn parts(&self) -> usize {
        self.n_tiles.div_ceil(self.tiles)
    }

    /// Elements of a tile.
    fn tile(&self) -> usize {
        self.k_dim * self.width
    }

    /// f32s that are made for a row.
    fn made(&self) -> usize {
        VECTORS * self.k_dim + NUMBERS
    }

    /// What is made for a block, the tiles of a chunk, and a tile's row.
    fn needs(&self) -> Needs {
        Needs { shared: 0, worker: BLOCK * self.made() + self.tiles * self.tile() + self.width }
    }
}

/// `[q, k, v, .., state, reads, slots, kept, ranges]`.
pub(super) fn gated_delta(machine: Machine, args: &[&TensorDesc], heads: HeadMap, rule: DeltaRule) -> Prepared {
    let state = 3 + rule.n_args();
    let sizes = Sizes::new(args[0], args[2], args[state], machine.n_workers);
    Prepared::step(sizes.needs(), move |cx, at| {
        Ok(GatedDelta {
            q: cx.view(at.arg(0))?,
            k: cx.view(at.arg(1))?,
            v: cx.view(at.arg(2))?,
            gates: Gates::bind(cx, at, rule)?,
            state: cx.result(at.arg(state))?,
            passages: Passages::bind(cx, at, state + 1)?,
            y: cx.result(at.out(0))?,
            worker: cx.scratch(at)?.1,
            heads,
            sizes,
            kernels: cx.machine.kernels,
        })
    })
}

/// The arguments of a rule.
enum Gates {
    Gated { a: PerHead, b: PerHead, scale: View<f32>, bias: View<f32>, l2_eps: f32 },
    Given { g: PerHead, r: View<f32>, p: View<f32> },
}

impl Gates {
    fn bind(cx: &Lowering<'_>, at: At<'_>, rule: DeltaRule) -> Result<Self> {
        let n_value = cx.desc(at.arg(2)).shape.dim(1);
        let per_head = |i: usize| PerHead::new(cx, at, i, n_value);
        Ok(match rule {
            DeltaRule::Gated { l2_eps } => Self::Gated {
                a: per_head(3)?,
                b: per_head(4)?,
                scale: cx.view(at.arg(5))?,
                bias: cx.view(at.arg(6))?,
                l2_eps,
            },
            DeltaRule::Given => Self::Given { g: per_head(3)?, r: cx.view(at.arg(4))?, p: cx.view(at.arg(5))? },
        })
    }
}

/// Values for every value head, `n` for each, in rows of any extents.
struct PerHead {
    view: View<f32>,
    n_value: usize,
    n: usize,
}

impl PerHead {
    fn new(cx: &Lowering<'_>, at: At<'_>, i: usize, n_value: usize) -> Result<Self> {
        let shape = cx.desc(at.arg(i)).shape;
        Ok(Self { view: cx.view(at.arg(i))?, n_value, n: shape.elements() / (shape.dim(0) * n_value) })
    }

    /// Value `i` of head `j` in row `t`.
    fn get(&self, t: usize, j: usize, i: usize) -> f32 {
        element(&self.view, (t * self.n_value + j) * self.n + i)
    }
}

/// Element `i` in the order of the shape.
fn element<T: Pod>(x: &View<T>, i: usize) -> T {
    x.row(i / x.row_len())[i % x.row_len()]
}

/// What is made of a row's arguments for all columns of a head.
struct Made<'a> {
    /// Factor of every row of the matrix.
    w: &'a [f32],
    /// `diag(w) q`: with it the matrix as it was gives the result's larger part.
    wq: &'a [f32],
    /// What is read of the matrix as it was: `diag(w) k`, or `r`.
    read: &'a [f32],
    k: &'a [f32],
    /// Of a rule that has it.
    p: &'a [f32],
    /// `k . q`.
    kq: f32,
    /// `p . q`.
    pq: f32,
    beta: f32,
}

impl<'a> Made<'a> {
    fn of(made: &'a [f32], k_dim: usize) -> Self {
        let (vectors, numbers) = made.split_at(VECTORS * k_dim);
        let [w, wq, read, k, p] = std::array::from_fn(|i| &vectors[i * k_dim..][..k_dim]);
        Self { w, wq, read, k, p, kq: numbers[0], pq: numbers[1], beta: numbers[2] }
    }
}

struct GatedDelta {
    q: View<f32>,
    k: View<f32>,
    v: View<f32>,
    gates: Gates,
    /// Rows of tiles.
    state: ViewMut<f32>,
    passages: Passages,
    y: ViewMut<f32>,
    worker: WorkerScratch,
    heads: HeadMap,
    sizes: Sizes,
    kernels: Kernels,
}

impl GatedDelta {
    /// Makes what the columns of head `j` need in row `t`.
    fn make(&self, t: usize, j: usize, made: &mut [f32]) {
        let Sizes { n_key, n_value, k_dim, .. } = self.sizes;
        let h = match self.heads {
            HeadMap::Interleaved => j / (n_value / n_key),
            HeadMap::Tiled => j % n_key,
        };
        let (q, stored_k) = (self.q.row(t * n_key + h), self.k.row(t * n_key + h));
        let (vectors, numbers) = made.split_at_mut(VECTORS * k_dim);
        let mut vectors = vectors.chunks_exact_mut(k_dim);
        let [w, wq, read, k, p] = std::array::from_fn(|_| vectors.next().expect("as many as there are"));
        wq.copy_from_slice(q);
        k.copy_from_slice(stored_k);
        match &self.gates {
            Gates::Gated { a, b, scale, bias, l2_eps } => {
                let logs = &mut w[..a.n];
                logs.iter_mut().enumerate().for_each(|(i, g)| *g = a.get(t, j, i) + element(bias, j * a.n + i));
                self.kernels.softplus(logs);
                self.kernels.scale(logs, element(scale, j));
                let beta = &mut numbers[2..];
                beta[0] = b.get(t, j, 0);
                self.kernels.sigmoid(beta);
                self.decay(w, a.n);
                // Heads are small integers, exact in f32.
                let of_root = |x: &[f32]| 1.0 / (self.kernels.dot_f32(x, x) + l2_eps).sqrt();
                self.kernels.scale(wq, of_root(q) / (k_dim as f32).sqrt());
                self.kernels.scale(k, of_root(stored_k));
                numbers[0] = self.kernels.dot_f32(k, wq);
                read.copy_from_slice(k);
                self.kernels.mul(read, w);
            }
            Gates::Given { g, r, p: stored_p } => {
                w[..g.n].iter_mut().enumerate().for_each(|(i, w)| *w = g.get(t, j, i));
                self.decay(w, g.n);
                read.copy_from_slice(r.row(t * n_key + h));
                p.copy_from_slice(stored_p.row(t * n_key + h));
                numbers[0] = self.kernels.dot_f32(k, wq);
                numbers[1] = self.kernels.dot_f32(p, wq);
            }
        }
        self.kernels.mul(wq, w);
    }

    /// Makes factors of the logarithms that are the first `n` of `w`: one for all rows of a matrix, or one for each.
    fn decay(&self, w: &mut [f32], n: usize) {
        let (logs, rest) = w.split_at_mut(n);
        self.kernels.exp_sum(logs, 0.0);
        rest.fill(logs[0]);
    }

    /// Takes one tile through a row: `s [k_dim, width]`, and the tile's columns of `v` and `y`. `held`: a row to work in.
    fn pass(&self, made: &Made<'_>, s: &mut [f32], v: &[f32], y: &mut [f32], held: &mut [f32]) {
        self.kernels.two_products(s, made.read, made.wq, held, y);
        match self.gates {
            Gates::Gated { .. } => {
                held.iter_mut().zip(v).for_each(|(d, v)| *d = made.beta * (v - *d));
                self.kernels.axpy_f32(y, made.kq, held);
                self.kernels.decay_add_outer(s, made.w, made.k, held);
            }
            Gates::Given { .. } => {
                self.kernels.axpy_f32(y, made.pq, held);
                self.kernels.axpy_f32(y, made.kq, v);
                self.kernels.decay_add_outer(s, made.w, made.p, held);
                for (s, k) in s.chunks_exact_mut(v.len()).zip(made.k) {
                    self.kernels.axpy_f32(s, *k, v);
                }
            }
        }
    }

    /// Takes the tiles `tiles` of head `j`, which are in `states`, through `rows`.
    fn walk(&self, rows: Range<usize>, j: usize, tiles: &Range<usize>, states: &mut [f32], scratch: &mut [f32]) {
        let Sizes { n_value, k_dim, width, .. } = self.sizes;
        let (block, held) = scratch.split_at_mut(BLOCK * self.sizes.made());
        for first in rows.clone().step_by(BLOCK) {
            let rows = first..rows.end.min(first + BLOCK);
            let block = &mut block[..rows.len() * self.sizes.made()];
            for (t, made) in rows.clone().zip(block.chunks_exact_mut(self.sizes.made())) {
                self.make(t, j, made);
            }
            for (tile, s) in tiles.clone().zip(states.chunks_exact_mut(self.sizes.tile())) {
                let columns = tile * width..(tile + 1) * width;
                for (t, made) in rows.clone().zip(block.chunks_exact(self.sizes.made())) {
                    let v = self.v.part(t * n_value + j, columns.clone());
                    // SAFETY: these columns of `y` belong to this chunk alone.
                    let y = unsafe { self.y.part_mut(t * n_value + j, columns.clone()) };
                    self.pass(&Made::of(made, k_dim), s, v, y, held);
                }
            }
        }
    }
}

impl Step for GatedDelta {
    fn chunks(&self) -> usize {
        self.sizes.n_value * self.sizes.parts()
    }

    fn run(&self, chunk: usize, worker: &mut Worker) {
        let Sizes { n_value, k_dim, n_tiles, tiles, .. } = self.sizes;
        let (j, part) = (chunk / self.sizes.parts(), chunk % self.sizes.parts());
        let tiles = piece(part, tiles, n_tiles);
        let scratch = self.worker.of(worker);
        let (later, scratch) = scratch.split_at_mut(self.sizes.tiles * self.sizes.tile());
        let later = &mut later[..tiles.len() * self.sizes.tile()];
        for Passage { rows, read, slot, kept } in self.passages.of_chunk(chunk) {
            let place = |slot: usize| {
                let first = (slot * n_value + j) * n_tiles;
                (first + tiles.start) * k_dim..(first + tiles.end) * k_dim
            };
            // SAFETY: these tiles of the state belong to this chunk alone, and another slot is read before they are used.
            let states = unsafe { self.state.rows_mut(place(slot)) };
            match read {
                Some(read) if read == slot => {}
                Some(read) => states.copy_from_slice(self.state.rows(place(read))),
                None => states.fill(0.0),
            }
            let stored = rows.start + kept;
            self.walk(rows.start..stored, j, &tiles, states, scratch);
            if stored < rows.end {
                later.copy_from_slice(states);
                self.walk(stored..rows.end, j, &tiles, later, scratch);
            }
        }
    }
}
