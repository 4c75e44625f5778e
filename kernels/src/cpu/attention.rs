//! What attention of some key-value heads is given, [`Attention`], and the order in which SIMD files work through it.

use std::ops::Range;

use half::f16;

/// Keys that are scored before the running maximum of the softmax is renewed.
///
/// Blocks begin at multiples of this, counted from the first row of the keys, whatever the ranges are: the order of a
/// query's sums depends on its own range alone.
pub const KEY_BLOCK: usize = 64;

/// Queries that a tile function takes at most.
pub(super) const QUERY_TILE: usize = 4;

/// Queries that go through the keys together: f16 rows are widened once for all of them.
pub const QUERY_GROUP: usize = 32;

/// Rows of keys or of values, `stride` elements apart.
#[derive(Clone, Copy, Debug)]
pub enum KvRows<'a> {
    /// Stored as f32.
    F32 {
        /// The elements from the first row on; the last row may end the slice.
        x: &'a [f32],
        /// Elements from one row to the next.
        stride: usize,
    },
    /// Stored as f16.
    F16 {
        /// The elements from the first row on; the last row may end the slice.
        x: &'a [f16],
        /// Elements from one row to the next.
        stride: usize,
    },
}

impl<'a> KvRows<'a> {
    /// Whether `n` rows of `head_dim` elements fit.
    pub(super) fn holds(&self, n: usize, head_dim: usize) -> bool {
        let (len, stride) = match *self {
            Self::F32 { x, stride } => (x.len(), stride),
            Self::F16 { x, stride } => (x.len(), stride),
        };
        n == 0 || stride.checked_mul(n - 1).and_then(|at| at.checked_add(head_dim)).is_some_and(|end| end <= len)
    }

    /// The rows from row `i` on, each from element `at` on.
    fn from(self, i: usize, at: usize) -> Self {
        match self {
            Self::F32 { x, stride } => Self::F32 { x: &x[i * stride + at..], stride },
            Self::F16 { x, stride } => Self::F16 { x: &x[i * stride + at..], stride },
        }
    }

    /// The first `n` rows as f32: widened into `buffer`, or as they are.
    #[inline(always)]
    fn widened(self, n: usize, head_dim: usize, buffer: &'a mut [f32], widen: impl Fn(&[f16], &mut [f32])) -> Self {
        match self {
            Self::F32 { .. } => self,
            Self::F16 { x, stride } => {
                for (i, y) in buffer.chunks_exact_mut(head_dim).take(n).enumerate() {
                    widen(&x[i * stride..][..head_dim], y);
                }
                Self::F32 { x: buffer, stride: head_dim }
            }
        }
    }
}

/// Queries of some heads of keys and values. Those of one head share what the head holds.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Elements of a query, a key and a value.
    pub head_dim: usize,
    /// Heads of keys and values. What a row holds of one lies behind what it holds of the head before.
    pub n_head: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// `[n_head, n_q / n_head, head_dim]`, rows `q_stride` apart.
    pub q: &'a [f32],
    /// Elements from one query to the next.
    pub q_stride: usize,
    /// Keys.
    pub k: KvRows<'a>,
    /// Values.
    pub v: KvRows<'a>,
    /// `[start, end)` of the keys that each query sees; their number is `n_q`.
    pub ranges: &'a [[u32; 2]],
}

impl<'a> Attention<'a> {
    fn query(&self, i: usize) -> &'a [f32] {
        &self.q[i * self.q_stride..][..self.head_dim]
    }

    /// The keys of query `i` that lie in a block, counted from the block's first.
    fn keys(&self, i: usize, block: usize) -> Range<usize> {
        let [start, end] = self.ranges[i].map(|at| (at as usize).saturating_sub(block).min(KEY_BLOCK));
        start..end.max(start)
    }
}

/// The parts of attention that an instruction set has.
pub(super) struct Parts<Scores, Accumulate, Widen, Max, ExpSum, Scale> {
    /// `s[i][j] = q_i . k_j` for up to [`QUERY_TILE`] queries and a range of rows of `k`.
    pub scores: Scores,
    /// `y_i += sum over the range of p[i][j] v_j` in ascending j; the rows of `y` lie behind each other.
    pub accumulate: Accumulate,
    /// Widens a row.
    pub widen: Widen,
    /// The largest element.
    pub max_of: Max,
    /// As `scalar::exp_sum`.
    pub exp_sum: ExpSum,
    /// `y *= s`.
    pub scale: Scale,
}

/// Scores of a tile of queries with a block of keys.
pub(super) type Scores = [[f32; KEY_BLOCK]; QUERY_TILE];

/// `f32`s that attention needs to work in: a block of widened keys and one of values.
pub(super) fn scratch_len(_n_q: usize, head_dim: usize) -> usize {
    2 * KEY_BLOCK * head_dim
}

/// Attention by blocks of keys with a running maximum, as `scalar::attention`, in tiles of queries.
///
/// Several heads go through the keys together, block by block: their parts of a row are neighbours in memory, and a page
/// holds few rows.
///
/// Rows outside a query's range may be scored with others of its tile, but only its own range is ever added to it.
#[inline(always)]
pub(super) fn run<S, A, W, M, E, C>(
    a: &Attention<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
    parts: &Parts<S, A, W, M, E, C>,
) where
    S: Fn(&[&[f32]], KvRows<'_>, Range<usize>, &mut Scores),
    A: Fn(&[[f32; KEY_BLOCK]], KvRows<'_>, Range<usize>, &mut [f32]),
    W: Fn(&[f16], &mut [f32]),
    M: Fn(&[f32]) -> f32,
    E: Fn(&mut [f32], f32) -> f32,
    C: Fn(&mut [f32], f32),
{
    let d = a.head_dim;
    let (k_buffer, v_buffer) = scratch.split_at_mut(KEY_BLOCK * d);
    out.fill(0.0);
    for (group, out) in out.chunks_mut(QUERY_GROUP * d).enumerate() {
        let first = group * QUERY_GROUP;
        let n_q = out.len() / d;
        let of_head = n_q / a.n_head;
        let seen = a.ranges[first..first + n_q].iter().filter(|r| r[0] < r[1]);
        let (start, end) = seen.fold((usize::MAX, 0), |(s, e), r| (s.min(r[0] as usize), e.max(r[1] as usize)));
        if start >= end {
            continue;
        }
        let (mut max, mut sum) = ([f32::NEG_INFINITY; QUERY_GROUP], [0.0; QUERY_GROUP]);
        for block in (start / KEY_BLOCK..end.div_ceil(KEY_BLOCK)).map(|b| b * KEY_BLOCK) {
            if (first..first + n_q).all(|i| a.keys(i, block).is_empty()) {
                continue;
            }
            let n_keys = KEY_BLOCK.min(end - block);
            let tiles = out.chunks_mut(of_head * d).enumerate().flat_map(|(head, out)| {
                let tile = move |(t, out)| (head, head * of_head + t * QUERY_TILE, out);
                out.chunks_mut(QUERY_TILE * d).enumerate().map(tile)
            });
            let (mut k, mut v) = (a.k, a.v);
            for (head, at, out) in tiles {
                let n = out.len() / d;
                if at == head * of_head {
                    (k, v) = (a.k.from(block, head * d), a.v.from(block, head * d));
                    if of_head > QUERY_TILE {
                        k = k.widened(n_keys, d, k_buffer, &parts.widen);
                        v = v.widened(n_keys, d, v_buffer, &parts.widen);
                    }
                }
                let mut keys = [0..0, 0..0, 0..0, 0..0];
                let mut queries: [&[f32]; QUERY_TILE] = [&[]; QUERY_TILE];
                for i in 0..n {
                    keys[i] = a.keys(first + at + i, block);
                    queries[i] = a.query(first + at + i);
                }
                let keys = &keys[..n];
                let seen = keys.iter().filter(|r| !r.is_empty());
                let (low, high) = seen.fold((KEY_BLOCK, 0), |(l, h), r| (l.min(r.start), h.max(r.end)));
                if low >= high {
                    continue;
                }
                let mut s = [[0.0; KEY_BLOCK]; QUERY_TILE];
                (parts.scores)(&queries[..n], k, low..high, &mut s);
                for (i, (keys, y)) in keys.iter().zip(out.chunks_exact_mut(d)).enumerate() {
                    if keys.is_empty() {
                        continue;
                    }
                    let s = &mut s[i][keys.clone()];
                    (parts.scale)(s, a.scale);
                    let (max, sum) = (&mut max[at + i], &mut sum[at + i]);
                    let new_max = (parts.max_of)(s).max(*max);
                    if new_max > *max {
                        let mut shrink = [*max];
                        (parts.exp_sum)(&mut shrink, new_max);
                        *sum *= shrink[0];
                        (parts.scale)(y, shrink[0]);
                        *max = new_max;
                    }
                    *sum += (parts.exp_sum)(s, *max);
                }
                accumulate_ranges(&s, v, keys, d, out, &parts.accumulate);
            }
        }
        for (sum, y) in sum.iter().zip(out.chunks_exact_mut(d)) {
            if *sum != 0.0 {
                (parts.scale)(y, 1.0 / sum);
            }
        }
    }
}

/// Adds values to each query of a tile over its own range, in ascending order: what all ranges share in one go.
#[inline(always)]
fn accumulate_ranges(
    p: &Scores,
    v: KvRows<'_>,
    keys: &[Range<usize>],
    head_dim: usize,
    out: &mut [f32],
    accumulate: &impl Fn(&[[f32; KEY_BLOCK]], KvRows<'_>, Range<usize>, &mut [f32]),
) {
    let start = keys.iter().map(|r| r.start).max().unwrap_or(0);
    let end = keys.iter().map(|r| r.end).min().unwrap_or(0);
    let each = |range: &dyn Fn(&Range<usize>) -> Range<usize>, out: &mut [f32]| {
        for (i, (keys, y)) in keys.iter().zip(out.chunks_exact_mut(head_dim)).enumerate() {
            let range = range(keys);
            if !range.is_empty() {
                accumulate(&p[i..=i], v, range, y);
            }
        }
    };
    if start >= end {
        return each(&Clone::clone, out);
    }
    each(&|keys| keys.start..start, out);
    accumulate(&p[..keys.len()], v, start..end, out);
    each(&|keys| end..keys.end, out);
}
