//! Attention with relative positions, and the sinusoids of these positions.
//!
//! A chunk is a block of queries of one head. A query's scores are two scalar products per key, one with the key and one
//! with the row of its distance; its result does not depend on the block it is in.

#![allow(unsafe_code, reason = "writes rows of results")]

use engine::tensor::TensorDesc;
use kernels::cpu::Kernels;

use super::super::context::{Needs, Prepared};
use super::super::mem::{View, ViewMut, WorkerScratch};
use super::super::region::{Step, Worker, piece};
use super::rows::{Sequences, range};
use super::rows_per_chunk;

/// Base of the frequencies.
const BASE: f64 = 10_000.0;
/// Queries of one chunk.
const QUERIES: usize = 16;

/// `[x]`, of which only the shape counts.
pub(super) fn positions(args: &[&TensorDesc]) -> Prepared {
    let (n_tokens, n) = (args[0].shape.dim(0), args[0].shape.last());
    Prepared::without_scratch(move |cx, at| {
        let frequencies = (0..n / 2).map(|i| BASE.powf(-2.0 * i as f64 / n as f64)).collect();
        Ok(RelPositions { n_tokens, frequencies, y: cx.result(at.out(0))? })
    })
}

struct RelPositions {
    n_tokens: usize,
    frequencies: Vec<f64>,
    y: ViewMut<f32>,
}

impl Step for RelPositions {
    fn chunks(&self) -> usize {
        self.n_tokens.div_ceil(rows_per_chunk(2 * self.y.row_len()))
    }

    /// Distances come in pairs of opposite sign, whose sines differ in sign alone.
    fn run(&self, chunk: usize, _worker: &mut Worker) {
        for distance in piece(chunk, rows_per_chunk(2 * self.y.row_len()), self.n_tokens) {
            // SAFETY: the rows of this distance and of its negative belong to this chunk alone.
            let ahead = unsafe { self.y.row_mut(self.n_tokens - 1 - distance) };
            for (pair, frequency) in ahead.chunks_exact_mut(2).zip(&self.frequencies) {
                let (sin, cos) = (distance as f64 * frequency).sin_cos();
                pair.copy_from_slice(&[sin as f32, cos as f32]);
            }
            if distance > 0 {
                // SAFETY: as above, and another row than `ahead`.
                let behind = unsafe { self.y.row_mut(self.n_tokens - 1 + distance) };
                for (pair, from) in behind.chunks_exact_mut(2).zip(ahead.chunks_exact(2)) {
                    pair.copy_from_slice(&[-from[0], from[1]]);
                }
            }
        }
    }
}

/// `[q, k, v, p, bias_u, bias_v, sequences, ranges]`.
pub(super) fn attention(args: &[&TensorDesc], scale: f32) -> Prepared {
    let [n_tokens, n_head, head_dim] = [0, 1, 2].map(|i| args[0].shape.dim(i));
    // A query with each bias, and its scores.
    let needs = Needs { shared: 0, worker: 2 * head_dim + n_tokens };
    Prepared::step(needs, move |cx, at| {
        Ok(RelPosAttention {
            n_tokens,
            n_head,
            q: cx.view(at.arg(0))?,
            k: cx.view(at.arg(1))?,
            v: cx.view(at.arg(2))?,
            p: cx.view(at.arg(3))?,
            bias_u: cx.view(at.arg(4))?,
            bias_v: cx.view(at.arg(5))?,
            sequences: Sequences(cx.view(at.arg(6))?),
            ranges: cx.view(at.arg(7))?,
            y: cx.result(at.out(0))?,
            scale,
            worker: cx.scratch(at)?.1,
            kernels: cx.machine.kernels,
        })
    })
}

struct RelPosAttention {
    n_tokens: usize,
    n_head: usize,
    q: View<f32>,
    k: View<f32>,
    v: View<f32>,
    p: View<f32>,
    bias_u: View<f32>,
    bias_v: View<f32>,
    sequences: Sequences,
    ranges: View<i32>,
    y: ViewMut<f32>,
    scale: f32,
    worker: WorkerScratch,
    kernels: Kernels,
}

impl Step for RelPosAttention {
    fn chunks(&self) -> usize {
        self.n_head * self.n_tokens.div_ceil(QUERIES)
    }

    fn run(&self, chunk: usize, worker: &mut Worker) {
        let blocks = self.n_tokens.div_ceil(QUERIES);
        let (h, block) = (chunk / blocks, chunk % blocks);
        let head_dim = self.y.row_len();
        let (content, scratch) = self.worker.of(worker).split_at_mut(head_dim);
        let (position, scratch) = scratch.split_at_mut(head_dim);
        let row = |t: usize| t * self.n_head + h;
        for i in piece(block, QUERIES, self.n_tokens) {
            // SAFETY: row `row(i)` of `y` belongs to this chunk alone.
            let y = unsafe { self.y.row_mut(row(i)) };
            y.fill(0.0);
            let Some(s) = self.sequences.of(i) else { continue };
            let keys = range(&self.ranges, s);
            for (with, bias) in [(&mut *content, &self.bias_u), (&mut *position, &self.bias_v)] {
                with.copy_from_slice(self.q.row(row(i)));
                self.kernels.add(with, bias.row(h));
            }
            let scores = &mut scratch[..keys.len()];
            for (j, score) in keys.clone().zip(&mut *scores) {
                let distance = self.p.row((j + self.n_tokens - 1 - i) * self.n_head + h);
                let sum = self.kernels.dot_f32(content, self.k.row(row(j))) + self.kernels.dot_f32(position, distance);
                *score = self.scale * sum;
            }
            self.kernels.softmax(scores);
            for (j, weight) in keys.zip(&*scores) {
                self.kernels.axpy_f32(y, *weight, self.v.row(row(j)));
            }
        }
    }
}
