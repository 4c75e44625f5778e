//! Attention: over a slot's past (`CachedAttention`) and inside windows of a clip (`Attention`).
//!
//! A chunk is a block of tokens of some key-value heads: its queries are gathered, the kernel walks the keys they see, and
//! the results are scattered. A query's result does not depend on the block it is in.

#![allow(unsafe_code, reason = "writes rows of results")]

use std::ops::Range;

use engine::DType;
use engine::error::Result;
use engine::op::Window;
use engine::tensor::{TensorDesc, TensorId};
use half::f16;
use kernels::cpu::{Attention, Kernels, KvRows, QUERY_GROUP};

use super::super::context::{At, Lowering, Machine, Needs};
use super::super::mem::{View, ViewMut, WorkerScratch};
use super::super::region::{Step, Worker, piece};
use super::rows::{element, index};

/// How an attention of one shape is cut.
#[derive(Clone, Copy)]
struct Blocks {
    n_seqs: usize,
    n_tokens: usize,
    n_head: usize,
    n_head_kv: usize,
    head_dim: usize,
    /// Key-value heads of one chunk.
    heads: usize,
}

impl Blocks {
    /// Chunks of one key-value head each.
    fn new(q: &TensorDesc, k: &TensorDesc) -> Self {
        let dim = |i| q.shape.dim(i);
        let (n_head_kv, heads) = (k.shape.dim(2), 1);
        Self { n_seqs: dim(0), n_tokens: dim(1), n_head: dim(2), n_head_kv, head_dim: dim(3), heads }
    }

    /// Where there are few queries, chunks of more heads: what a chunk reads is then in longer pieces. As many as leave
    /// every thread a chunk.
    fn joined(self, k: &TensorDesc, machine: Machine) -> Self {
        if !k.is_contiguous() {
            return self;
        }
        let most = QUERY_GROUP / (self.n_tokens * self.group());
        let most = most.min(self.n_seqs * self.n_head_kv / machine.n_workers);
        let heads = (1..=most.min(self.n_head_kv)).rev().find(|n| self.n_head_kv.is_multiple_of(*n));
        Self { heads: heads.unwrap_or(1), ..self }
    }

    /// Query heads that read the same key-value head.
    fn group(&self) -> usize {
        self.n_head / self.n_head_kv
    }

    /// Tokens of one chunk.
    fn tokens(&self) -> usize {
        (QUERY_GROUP / self.group()).clamp(1, self.n_tokens)
    }

    fn blocks(&self) -> usize {
        self.n_tokens.div_ceil(self.tokens())
    }

    fn chunks(&self) -> usize {
        self.n_seqs * self.n_head_kv / self.heads * self.blocks()
    }

    /// Sequence, first key-value head and tokens of a chunk.
    fn chunk(&self, chunk: usize) -> (usize, usize, Range<usize>) {
        let (rest, block) = (chunk / self.blocks(), chunk % self.blocks());
        let heads = self.n_head_kv / self.heads;
        (rest / heads, rest % heads * self.heads, piece(block, self.tokens(), self.n_tokens))
    }

    /// Queries, results, ranges of keys (two words each), and what the kernel wants.
    fn needs(&self, kernels: Kernels) -> Needs {
        let n_q = self.heads * self.tokens() * self.group();
        let kernel = kernels.attention_scratch_len(n_q, self.head_dim);
        Needs { shared: 0, worker: n_q * (2 * self.head_dim + 2) + kernel }
    }
}

/// Scratch memory of `[q, k, v, slots, positions, lengths]`.
pub(in super::super) fn needs_cached(machine: Machine, args: &[&TensorDesc]) -> Needs {
    Blocks::new(args[0], args[1]).joined(args[1], machine).needs(machine.kernels)
}

/// Scratch memory of `[q, k, v, lengths]`.
pub(in super::super) fn needs_full(machine: Machine, args: &[&TensorDesc]) -> Needs {
    Blocks::new(args[0], args[1]).needs(machine.kernels)
}

/// `[q, k, v, slots, positions, lengths]`.
pub(in super::super) fn cached(cx: &mut Lowering<'_>, at: At<'_>, scale: f32) -> Result<()> {
    let keys = Keys::Past {
        n_ctx: cx.desc(at.arg(1)).shape.dim(1),
        slots: cx.view(at.arg(3))?,
        positions: cx.view(at.arg(4))?,
    };
    let blocks = Blocks::new(cx.desc(at.arg(0)), cx.desc(at.arg(1))).joined(cx.desc(at.arg(1)), cx.machine);
    push(cx, at, scale, keys, at.arg(5), blocks)
}

/// `[q, k, v, lengths]`.
pub(in super::super) fn full(cx: &mut Lowering<'_>, at: At<'_>, scale: f32, window: Window) -> Result<()> {
    let blocks = Blocks::new(cx.desc(at.arg(0)), cx.desc(at.arg(1)));
    push(cx, at, scale, Keys::Windows(window), at.arg(3), blocks)
}

fn push(cx: &mut Lowering<'_>, at: At<'_>, scale: f32, keys: Keys, lengths: TensorId, blocks: Blocks) -> Result<()> {
    let kernels = cx.machine.kernels;
    let step = Attend {
        q: cx.view(at.arg(0))?,
        k: KvView::new(cx, at.arg(1))?,
        v: KvView::new(cx, at.arg(2))?,
        lengths: cx.view(lengths)?,
        y: cx.result(at.out(0))?,
        worker: cx.scratch(at, blocks.needs(kernels))?.1,
        keys,
        scale,
        blocks,
        kernels,
    };
    cx.push(step);
    Ok(())
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

/// Which keys a token sees.
enum Keys {
    /// Rows `0 ..= position` of the sequence's slot.
    Past { n_ctx: usize, slots: View<i32>, positions: View<i32> },
    /// Tokens of its own window.
    Windows(Window),
}

impl Keys {
    /// `[start, end)` for token `t` of sequence `s`; nothing for padding.
    fn range(&self, s: usize, t: usize, n_tokens: usize, length: usize) -> [u32; 2] {
        if t >= length {
            return [0, 0];
        }
        let word = |n: usize| u32::try_from(n).expect("graphs count elements in 32 bits");
        match self {
            Self::Past { n_ctx, positions, .. } => {
                let position = index(element(positions, s * n_tokens + t));
                assert!(position < *n_ctx, "position {position} of {n_ctx}");
                [0, word(position) + 1]
            }
            Self::Windows(Window::Full) => [0, word(length)],
            Self::Windows(Window::Blocks(n)) => {
                let start = word(t) / n * n;
                [start, start.saturating_add(*n).min(word(length))]
            }
        }
    }

    /// Where the keys of sequence `s` begin, in rows of the outermost two extents.
    fn first(&self, s: usize, n_tokens: usize) -> usize {
        match self {
            Self::Past { n_ctx, slots, .. } => index(element(slots, s)) * n_ctx,
            Self::Windows(_) => s * n_tokens,
        }
    }
}

struct Attend {
    q: View<f32>,
    k: KvView,
    v: KvView,
    lengths: View<i32>,
    y: ViewMut<f32>,
    worker: WorkerScratch,
    keys: Keys,
    scale: f32,
    blocks: Blocks,
    kernels: Kernels,
}

impl Step for Attend {
    fn chunks(&self) -> usize {
        self.blocks.chunks()
    }

    fn run(&self, chunk: usize, worker: &mut Worker) {
        let Blocks { n_tokens, n_head, n_head_kv, head_dim, heads, .. } = self.blocks;
        let (s, h, tokens) = self.blocks.chunk(chunk);
        let group = self.blocks.group();
        let n_q = heads * tokens.len() * group;
        let (q, scratch) = self.worker.of(worker).split_at_mut(n_q * head_dim);
        let (out, scratch) = scratch.split_at_mut(n_q * head_dim);
        let (ranges, scratch) = scratch.split_at_mut(n_q * 2);
        let ranges: &mut [[u32; 2]] = bytemuck::cast_slice_mut(ranges);

        let length = index(element(&self.lengths, s)).min(n_tokens);
        let queries = || {
            let of_head = |h| tokens.clone().flat_map(move |t| (0..group).map(move |g| (t, h * group + g)));
            (h..h + heads).flat_map(of_head).map(|(t, head)| (t, (s * n_tokens + t) * n_head + head))
        };
        for (((t, r), q), range) in queries().zip(q.chunks_exact_mut(head_dim)).zip(&mut *ranges) {
            q.copy_from_slice(self.q.row(r));
            *range = self.keys.range(s, t, n_tokens, length);
        }
        let n_keys = ranges.iter().map(|r| r[1] as usize).max().unwrap_or(0);
        if n_keys == 0 {
            out.fill(0.0);
        } else {
            let first = self.keys.first(s, n_tokens) * n_head_kv + h;
            let (k, v) = (self.k.every(first, n_keys, n_head_kv, heads), self.v.every(first, n_keys, n_head_kv, heads));
            let attention =
                Attention { head_dim, n_head: heads, scale: self.scale, q, q_stride: head_dim, k, v, ranges };
            self.kernels.attention(&attention, out, scratch);
        }
        for ((_, r), out) in queries().zip(out.chunks_exact(head_dim)) {
            // SAFETY: row `r` of `y` belongs to this chunk alone.
            unsafe { self.y.row_mut(r) }.copy_from_slice(out);
        }
    }
}
