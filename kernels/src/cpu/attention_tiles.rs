//! Attention with vectors of any width: scores and weighted sums of values in tiles of queries.
//!
//! The operations on vectors, and the tiles of dot products, are those of `rows`.

use super::attention::KEY_BLOCK;

/// Rows of keys or values from the one that is read to the one that is asked for. Rows of one head are far apart, and the
/// processor does not foresee them. Those that are still halves are read by few queries, straight from the attention
/// cache; all others were widened a moment ago, or many queries share them.
pub(super) const AHEAD: usize = 16;

/// Puts a tile's scores, `[R][M]`, where those of keys `j .. j + R` are.
pub(super) fn put<const R: usize, const M: usize>(results: [[f32; M]; R], s: &mut [[f32; KEY_BLOCK]], j: usize) {
    for (r, results) in results.into_iter().enumerate() {
        for (s, y) in s.iter_mut().zip(results) {
            s[j + r] = y;
        }
    }
}

/// Defines attention for a set of CPU features, in a module that has [`rows_for`](super::rows::rows_for)'s kernels.
macro_rules! attention_for {
    ($features:literal) => {
        use crate::cpu::attention::{self, Attention, KEY_BLOCK, KvRows, Parts, Scores};
        use crate::cpu::attention_tiles::{AHEAD, put};

        /// See `scalar::attention`.
        #[target_feature(enable = $features)]
        pub(super) fn attention(a: &Attention<'_>, out: &mut [f32], scratch: &mut [f32]) {
            let parts = Parts {
                scores: |q: &[&[f32]], k: KvRows<'_>, keys: Range<usize>, s: &mut Scores| match k {
                    KvRows::F32 { x, stride } => scores::<F32Bytes>(q, bytemuck::cast_slice(x), stride, keys, s),
                    KvRows::F16 { x, stride } => scores::<F16Bytes>(q, bytemuck::cast_slice(x), stride, keys, s),
                },
                accumulate: |p: &[[f32; KEY_BLOCK]], v: KvRows<'_>, keys: Range<usize>, y: &mut [f32]| match v {
                    KvRows::F32 { x, stride } => accumulate::<F32Bytes>(p, bytemuck::cast_slice(x), stride, keys, y),
                    KvRows::F16 { x, stride } => accumulate::<F16Bytes>(p, bytemuck::cast_slice(x), stride, keys, y),
                },
                widen: |x: &[half::f16], y: &mut [f32]| f16_to_f32(x, y),
                max_of: |x: &[f32]| max_of(x),
                exp_sum: |x: &mut [f32], max: f32| exp_sum(x, max),
                scale: |y: &mut [f32], s: f32| scale(y, s),
            };
            attention::run(a, out, scratch, &parts);
        }

        /// Asks for the lines that lie `distance` elements behind a row.
        #[inline]
        #[target_feature(enable = $features)]
        fn prefetch_row<B>(row: &[B], distance: usize) {
            for line in row.chunks(64 / size_of::<B>()) {
                _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(distance).cast());
            }
        }

        /// Whether rows are asked for ahead.
        const fn is_half<B: Plain>() -> bool {
            matches!(B::FORMAT, Format::F16)
        }

        /// `s[i][j] = q_i . k_j`; rows of `k` are `stride` elements apart.
        #[target_feature(enable = $features)]
        fn scores<B: Plain>(q: &[&[f32]], k: &[B], stride: usize, keys: Range<usize>, s: &mut Scores) {
            let row = |j: usize| &k[j * stride..][..q[0].len()];
            let mut j = keys.start;
            while j < keys.end {
                let n = if keys.end - j >= 4 { 4 } else { 1 };
                if is_half::<B>() {
                    (j..j + n).for_each(|r| prefetch_row(row(r), AHEAD * stride));
                }
                for (q, s) in q.chunks(2).zip(s.chunks_mut(2)) {
                    match (n, q) {
                        (4, [a, b]) => {
                            put(tile::<B, 4, 2>([row(j), row(j + 1), row(j + 2), row(j + 3)], [a, b], 0), s, j)
                        }
                        (4, [a, ..]) => {
                            put(tile::<B, 4, 1>([row(j), row(j + 1), row(j + 2), row(j + 3)], [a], 0), s, j)
                        }
                        (_, [a, b]) => put(tile::<B, 1, 2>([row(j)], [a, b], 0), s, j),
                        (_, [a, ..]) => put(tile::<B, 1, 1>([row(j)], [a], 0), s, j),
                        (_, []) => unreachable!("chunks are not empty"),
                    }
                }
                j += n;
            }
        }

        /// `y_i += sum over keys of p[i][j] v_j`, ascending; rows of `v` are `stride` elements apart.
        #[target_feature(enable = $features)]
        fn accumulate<B: Plain>(p: &[[f32; KEY_BLOCK]], v: &[B], stride: usize, keys: Range<usize>, y: &mut [f32]) {
            match p {
                [a] => accumulate_tile::<B, 1, 4>([a], v, stride, keys, y),
                [a, b] => accumulate_tile::<B, 2, 4>([a, b], v, stride, keys, y),
                [a, b, c] => accumulate_tile::<B, 3, 2>([a, b, c], v, stride, keys, y),
                [a, b, c, d, ..] => accumulate_tile::<B, 4, 2>([a, b, c, d], v, stride, keys, y),
                [] => {}
            }
        }

        /// `C` vectors of a row at a time, then single ones, then what is left.
        #[inline]
        #[target_feature(enable = $features)]
        fn accumulate_tile<B: Plain, const M: usize, const C: usize>(
            p: [&[f32; KEY_BLOCK]; M],
            v: &[B],
            stride: usize,
            keys: Range<usize>,
            y: &mut [f32],
        ) {
            let head_dim = y.len() / M;
            let done = accumulate_columns::<B, M, C>(p, v, stride, keys.clone(), y, 0);
            let done = accumulate_columns::<B, M, 1>(p, v, stride, keys.clone(), y, done);
            if done == head_dim {
                return;
            }
            for (p, y) in p.into_iter().zip(y.chunks_exact_mut(head_dim)) {
                let y = &mut y[done..];
                let mut acc = load(&padded(y, 0.0));
                for j in keys.clone() {
                    // SAFETY: this function has the features of the module.
                    let v = unsafe { B::widen(&padded(&v[j * stride + done..][..y.len()], B::zeroed())) };
                    acc = fma(splat(p[j]), v, acc);
                }
                let mut last = [0.0; WIDTH];
                store(&mut last, acc);
                y.copy_from_slice(&last[..y.len()]);
            }
        }

        /// From element `done` on, while there are `C` more vectors; returns where that ends.
        #[inline]
        #[target_feature(enable = $features)]
        fn accumulate_columns<B: Plain, const M: usize, const C: usize>(
            p: [&[f32; KEY_BLOCK]; M],
            v: &[B],
            stride: usize,
            keys: Range<usize>,
            y: &mut [f32],
            mut done: usize,
        ) -> usize {
            let head_dim = y.len() / M;
            while done + C * WIDTH <= head_dim {
                let mut acc = [[zero(); C]; M];
                for (i, acc) in acc.iter_mut().enumerate() {
                    for (h, acc) in acc.iter_mut().enumerate() {
                        *acc = load(&y[i * head_dim..].as_chunks().0[done / WIDTH + h]);
                    }
                }
                for j in keys.clone() {
                    let row = &v[j * stride..][..head_dim];
                    if is_half::<B>() && done == 0 {
                        prefetch_row(row, AHEAD * stride);
                    }
                    let mut v = [zero(); C];
                    for (h, v) in v.iter_mut().enumerate() {
                        // SAFETY: this function has the features of the module.
                        *v = unsafe { B::widen(&row.as_chunks().0[done / WIDTH + h]) };
                    }
                    for (acc, p) in acc.iter_mut().zip(p) {
                        let p = splat(p[j]);
                        for (acc, v) in acc.iter_mut().zip(v) {
                            *acc = fma(p, v, *acc);
                        }
                    }
                }
                for (i, acc) in acc.into_iter().enumerate() {
                    for (h, acc) in acc.into_iter().enumerate() {
                        store(&mut y[i * head_dim..].as_chunks_mut().0[done / WIDTH + h], acc);
                    }
                }
                done += C * WIDTH;
            }
            done
        }
    };
}

pub(super) use attention_for;
