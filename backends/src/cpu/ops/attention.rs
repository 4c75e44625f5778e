//! Attention: over a slot's past (`CachedAttention`) and inside windows of a clip (`Attention`).
//!
//! Rows are cut into blocks, and a chunk is a part of a block: either all its rows for some key-value heads, or some of its
//! rows for all heads, where most rows are of sequences of their own. The queries of one sequence are gathered, the kernel
//! walks the keys they see, and the results are scattered. A query's result does not depend on the block it is in.

#![allow(unsafe_code, reason = "writes rows of results")]

use std::ops::Range;

use engine::DType;
use engine::error::Result;
use engine::op::Window;
use engine::tensor::{TensorDesc, TensorId};
use half::f16;
use kernels::cpu::{Attention, Kernels, KvRows, QUERY_GROUP};

use super::super::context::{At, Lowering, Needs, Prepared};
use super::super::machine::Machine;
use super::super::mem::{View, ViewMut, WorkerScratch};
use super::super::region::{Step, Worker, piece};
use super::rows::{Sequences, element, index, range};

/// How an attention of one shape is cut.
#[derive(Clone, Copy)]
struct Blocks {
    n_tokens: usize,
    n_head: usize,
    n_head_kv: usize,
    head_dim: usize,
    /// Rows of a block.
    tokens: usize,
    /// Key-value heads of a chunk that has all rows of its block.
    heads: usize,
    /// Whether the kernel can take several key-value heads at once.
    joins: bool,
}

impl Blocks {
    /// Chunks of one key-value head each.
    fn new(q: &TensorDesc, n_head_kv: usize) -> Self {
        let [n_tokens, n_head, head_dim] = [0, 1, 2].map(|i| q.shape.dim(i));
        let tokens = (QUERY_GROUP / (n_head / n_head_kv)).clamp(1, n_tokens);
        Self { n_tokens, n_head, n_head_kv, head_dim, tokens, heads: 1, joins: false }
    }

    /// Where there are few queries, chunks of more heads: what a chunk reads is then in longer pieces. As many as leave
    /// every thread a chunk.
    fn joined(self, k: &TensorDesc, machine: Machine) -> Self {
        if !k.is_contiguous() {
            return self;
        }
        let most = QUERY_GROUP / (self.tokens * self.group());
        let most = most.min(self.blocks() * self.n_head_kv / machine.n_workers);
        Self { heads: self.heads_up_to(most), joins: true, ..self }
    }

    /// The largest number of heads up to `most` that divides their number; at least one.
    fn heads_up_to(&self, most: usize) -> usize {
        let mut divisors = (1..=most.min(self.n_head_kv)).rev().filter(|n| self.n_head_kv.is_multiple_of(*n));
        divisors.next().unwrap_or(1)
    }

    /// Query heads that read the same key-value head.
    fn group(&self) -> usize {
        self.n_head / self.n_head_kv
    }

    fn blocks(&self) -> usize {
        self.n_tokens.div_ceil(self.tokens)
    }

    /// Chunks of a block.
    fn parts(&self) -> usize {
        self.n_head_kv / self.heads
    }

    fn chunks(&self) -> usize {
        self.blocks() * self.parts()
    }

    /// Rows and key-value heads of a part of a block that has so many runs of rows of one sequence. By rows where most are of
    /// sequences of their own and every part gets one.
    fn part(&self, block: Range<usize>, part: usize, n_runs: usize) -> (Range<usize>, Range<usize>) {
        let n_parts = self.parts();
        if self.joins && block.len() >= n_parts && 2 * n_runs > block.len() {
            let at = |part: usize| block.start + block.len() * part / n_parts;
            (at(part)..at(part + 1), 0..self.n_head_kv)
        } else {
            (block, part * self.heads..(part + 1) * self.heads)
        }
    }

    /// Queries of one call of the kernel at most.
    fn queries(&self) -> usize {
        self.tokens * self.heads * self.group()
    }

    /// Queries, results, ranges of keys (two words each), and what the kernel wants.
    fn needs(&self, kernels: Kernels) -> Needs {
        let n_q = self.queries();
        let kernel = kernels.attention_scratch_len(n_q, self.head_dim);
        Needs { shared: 0, worker: n_q * (2 * self.head_dim + 2) + kernel }
    }
}

/// `[q, k, v, slots, positions, sequences]`.
pub(super) fn cached(machine: Machine, args: &[&TensorDesc], scale: f32) -> Prepared {
    let [n_ctx, n_head_kv] = [1, 2].map(|i| args[1].shape.dim(i));
    let blocks = Blocks::new(args[0], n_head_kv).joined(args[1], machine);
    Prepared::step(blocks.needs(machine.kernels), move |cx, at| {
        let keys = Keys::Past { n_ctx, slots: cx.view(at.arg(3))?, positions: cx.view(at.arg(4))? };
        attend(cx, at, scale, keys, at.arg(5), blocks)
    })
}

/// `[q, k, v, sequences, ranges]`.
pub(super) fn full(machine: Machine, args: &[&TensorDesc], scale: f32, window: Window) -> Prepared {
    let blocks = Blocks::new(args[0], args[1].shape.dim(1));
    Prepared::step(blocks.needs(machine.kernels), move |cx, at| {
        let keys = Keys::Windows { window, ranges: cx.view(at.arg(4))? };
        attend(cx, at, scale, keys, at.arg(3), blocks)
    })
}

fn attend(
    cx: &Lowering<'_>,
    at: At<'_>,
    scale: f32,
    keys: Keys,
    sequences: TensorId,
    blocks: Blocks,
) -> Result<Attend> {
    Ok(Attend {
        q: cx.view(at.arg(0))?,
        k: KvView::new(cx, at.arg(1))?,
        v: KvView::new(cx, at.arg(2))?,
        sequences: Sequences(cx.view(sequences)?),
        y: cx.result(at.out(0))?,
        worker: cx.scratch(at)?.1,
        keys,
        scale,
        blocks,
        kernels: cx.machine.kernels,
    })
}

/// Keys or values in the format they are stored in, rows `[sequence or slot, token or position, head]`.
enum KvView {
    F32(View<f32>),
    F16(View<f16>),
}

impl KvView {
    fn new(cx: &Lowering<'_>, id: TensorId) -> Result<Self> {
        match cx.desc(id).dtype {
            DType::F16 => Ok(Self::F16(cx.view(id)?)),
            _ => Ok(Self::F32(cx.view(id)?)),
        }
    }

    /// `n` times `width` neighbouring rows from `first` on, `step` row numbers apart.
    fn every(&self, first: usize, n: usize, step: usize, width: usize) -> KvRows<'_> {
        match self {
            Self::F32(view) => {
                let (x, stride) = view.every(first, n, step, width);
                KvRows::F32 { x, stride }
            }
            Self::F16(view) => {
                let (x, stride) = view.every(first, n, step, width);
                KvRows::F16 { x, stride }
            }
        }
    }
}

/// Which keys a row sees.
enum Keys {
    /// Rows `0 ..= position` of the sequence's slot.
    Past { n_ctx: usize, slots: View<i32>, positions: View<i32> },
    /// Rows of its own window of the sequence.
    Windows { window: Window, ranges: View<i32> },
}

impl Keys {
    /// Where the keys of sequence `s` begin, in rows of the outermost two extents, and for how many they go on.
    fn of(&self, s: usize) -> Range<usize> {
        match self {
            Self::Past { n_ctx, slots, .. } => {
                let first = index(element(slots, s)) * n_ctx;
                first..first + n_ctx
            }
            Self::Windows { ranges, .. } => range(ranges, s),
        }
    }

    /// `[start, end)` for row `t`, counted from the first of the keys `of` its sequence.
    fn seen(&self, t: usize, of: &Range<usize>) -> [u32; 2] {
        let word = |n: usize| u32::try_from(n).expect("graphs count elements in 32 bits");
        match self {
            Self::Past { n_ctx, positions, .. } => {
                let position = index(element(positions, t));
                assert!(position < *n_ctx, "position {position} of {n_ctx}");
                [0, word(position) + 1]
            }
            Self::Windows { window: Window::Full, .. } => [0, word(of.len())],
            Self::Windows { window: Window::Blocks(n), .. } => {
                let start = word(t - of.start) / n * n;
                [start, start.saturating_add(*n).min(word(of.len()))]
            }
        }
    }
}

struct Attend {
    q: View<f32>,
    k: KvView,
    v: KvView,
    sequences: Sequences,
    y: ViewMut<f32>,
    worker: WorkerScratch,
    keys: Keys,
    scale: f32,
    blocks: Blocks,
    kernels: Kernels,
}

impl Attend {
    /// Rows and key-value heads of a chunk.
    fn part(&self, chunk: usize) -> (Range<usize>, Range<usize>) {
        let Blocks { n_tokens, tokens, .. } = self.blocks;
        let n_parts = self.blocks.parts();
        let block = piece(chunk / n_parts, tokens, n_tokens);
        let n_runs = self.sequences.runs(block.clone()).count();
        self.blocks.part(block, chunk % n_parts, n_runs)
    }

    /// Rows of one sequence.
    fn attend(&self, s: usize, rows: &Range<usize>, heads: &Range<usize>, scratch: &mut [f32]) {
        let Blocks { n_head, n_head_kv, head_dim, .. } = self.blocks;
        let group = self.blocks.group();
        let n_q = heads.len() * rows.len() * group;
        let (q, scratch) = scratch.split_at_mut(n_q * head_dim);
        let (out, scratch) = scratch.split_at_mut(n_q * head_dim);
        let (ranges, scratch) = scratch.split_at_mut(n_q * 2);
        let ranges: &mut [[u32; 2]] = bytemuck::cast_slice_mut(ranges);

        let queries = || {
            let of_head = |h| rows.clone().flat_map(move |t| (0..group).map(move |g| (t, t * n_head + h * group + g)));
            heads.clone().flat_map(of_head)
        };
        let keys = self.keys.of(s);
        for (((t, r), q), range) in queries().zip(q.chunks_exact_mut(head_dim)).zip(&mut *ranges) {
            q.copy_from_slice(self.q.row(r));
            *range = self.keys.seen(t, &keys);
        }
        let n_keys = ranges.iter().map(|r| r[1] as usize).max().expect("a run has rows");
        let first = keys.start * n_head_kv + heads.start;
        let [k, v] = [&self.k, &self.v].map(|kv| kv.every(first, n_keys, n_head_kv, heads.len()));
        let attention =
            Attention { head_dim, n_head: heads.len(), scale: self.scale, q, q_stride: head_dim, k, v, ranges };
        self.kernels.attention(&attention, out, scratch);
        for ((_, r), out) in queries().zip(out.chunks_exact(head_dim)) {
            // SAFETY: row `r` of `y` belongs to this chunk alone.
            unsafe { self.y.row_mut(r) }.copy_from_slice(out);
        }
    }
}

impl Step for Attend {
    fn chunks(&self) -> usize {
        self.blocks.chunks()
    }

    fn run(&self, chunk: usize, worker: &mut Worker) {
        let group = self.blocks.group();
        let (rows, heads) = self.part(chunk);
        let scratch = self.worker.of(worker);
        for (s, rows) in self.sequences.runs(rows) {
            let Some(s) = s else {
                for r in rows.flat_map(|t| heads.clone().flat_map(move |h| (0..group).map(move |g| (t, h * group + g))))
                {
                    // SAFETY: this row of `y` belongs to this chunk alone.
                    unsafe { self.y.row_mut(r.0 * self.blocks.n_head + r.1) }.fill(0.0);
                }
                continue;
            };
            let at_once = self.blocks.heads_up_to(self.blocks.queries() / (group * rows.len())).min(heads.len());
            for first in heads.clone().step_by(at_once) {
                self.attend(s, &rows, &(first..first + at_once), scratch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_share_a_block_and_none_is_idle() {
        for (n_rows, heads) in (1..=8).flat_map(|n| [1, 2, 4].map(|heads| (n, heads))) {
            let blocks =
                Blocks { n_tokens: n_rows, n_head: 8, n_head_kv: 8, head_dim: 4, tokens: n_rows, heads, joins: true };
            for n_runs in 1..=n_rows {
                let mut seen = vec![0; n_rows * 8];
                for part in 0..blocks.parts() {
                    let (rows, heads) = blocks.part(0..n_rows, part, n_runs);
                    assert!(!rows.is_empty() && !heads.is_empty(), "{n_rows} rows, {n_runs} runs, part {part}");
                    rows.for_each(|r| heads.clone().for_each(|h| seen[r * 8 + h] += 1));
                }
                assert_eq!(seen, vec![1; n_rows * 8]);
            }
        }
    }
}
