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
        use std::ops::Range;

        use crate::cpu::attention::{self, Attention, KEY_BLOCK, KvRows, Parts, Scores};
        use crate::cpu::attention_tiles::{AHEAD, put};
        use crate::cpu::rows::F16;

        /// See `scalar::attention`.
        #[target_feature(enable = $features)]
        pub fn attention(a: &Attention<'_>, out: &mut [f32], scratch: &mut [f32]) {
            let parts = Parts {
                scores: |q: &[&[f32]], k: KvRows<'_>, keys: Range<usize>, s: &mut Scores| match k {
                    KvRows::F32 { x, stride } => scores::<F32>(q, bytemuck::cast_slice(x), 4 * stride, keys, s),
                    KvRows::F16 { x, stride } => scores::<F16>(q, bytemuck::cast_slice(x), 2 * stride, keys, s),
                },
                accumulate: |p: &[[f32; KEY_BLOCK]], v: KvRows<'_>, keys: Range<usize>, y: &mut [f32]| match v {
                    KvRows::F32 { x, stride } => accumulate::<F32>(p, bytemuck::cast_slice(x), 4 * stride, keys, y),
                    KvRows::F16 { x, stride } => accumulate::<F16>(p, bytemuck::cast_slice(x), 2 * stride, keys, y),
                },
                widen: |x: &[half::f16], y: &mut [f32]| f16_to_f32(x, y),
                max_of: |x: &[f32]| max_of(x),
                exp_sum: |x: &mut [f32], max: f32| exp_sum(x, max),
                scale: |y: &mut [f32], s: f32| scale(y, s),
            };
            attention::run(a, out, scratch, &parts);
        }

        /// Asks for the lines that lie `distance` bytes behind a row.
        #[inline]
        #[target_feature(enable = $features)]
        fn prefetch_row(row: &[u8], distance: usize) {
            for line in row.chunks(64) {
                _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(distance).cast());
            }
        }

        /// `s[i][j] = q_i . k_j`; rows of `k` are `stride` bytes apart.
        #[target_feature(enable = $features)]
        fn scores<const FORMAT: usize>(q: &[&[f32]], k: &[u8], stride: usize, keys: Range<usize>, s: &mut Scores) {
            let row_bytes = q[0].len() * if FORMAT == F32 { 4 } else { 2 };
            let row = |j: usize| &k[j * stride..][..row_bytes];
            let mut j = keys.start;
            while j < keys.end {
                let n = if keys.end - j >= 4 { 4 } else { 1 };
                if FORMAT == F16 {
                    (j..j + n).for_each(|r| prefetch_row(row(r), AHEAD * stride));
                }
                for (q, s) in q.chunks(2).zip(s.chunks_mut(2)) {
                    match (n, q) {
                        (4, [a, b]) => {
                            put(tile::<FORMAT, 4, 2>([row(j), row(j + 1), row(j + 2), row(j + 3)], [a, b]), s, j)
                        }
                        (4, [a, ..]) => {
                            put(tile::<FORMAT, 4, 1>([row(j), row(j + 1), row(j + 2), row(j + 3)], [a]), s, j)
                        }
                        (_, [a, b]) => put(tile::<FORMAT, 1, 2>([row(j)], [a, b]), s, j),
                        (_, [a, ..]) => put(tile::<FORMAT, 1, 1>([row(j)], [a]), s, j),
                        (_, []) => unreachable!("chunks are not empty"),
                    }
                }
                j += n;
            }
        }

        /// `y_i += sum over keys of p[i][j] v_j`, ascending; rows of `v` are `stride` bytes apart.
        #[target_feature(enable = $features)]
        fn accumulate<const FORMAT: usize>(
            p: &[[f32; KEY_BLOCK]],
            v: &[u8],
            stride: usize,
            keys: Range<usize>,
            y: &mut [f32],
        ) {
            match p {
                [a] => accumulate_tile::<FORMAT, 1, 4>([a], v, stride, keys, y),
                [a, b] => accumulate_tile::<FORMAT, 2, 4>([a, b], v, stride, keys, y),
                [a, b, c] => accumulate_tile::<FORMAT, 3, 2>([a, b, c], v, stride, keys, y),
                [a, b, c, d, ..] => accumulate_tile::<FORMAT, 4, 2>([a, b, c, d], v, stride, keys, y),
                [] => {}
            }
        }

        /// `C` vectors of a row at a time, then single ones, then single elements.
        #[inline]
        #[target_feature(enable = $features)]
        fn accumulate_tile<const FORMAT: usize, const M: usize, const C: usize>(
            p: [&[f32; KEY_BLOCK]; M],
            v: &[u8],
            stride: usize,
            keys: Range<usize>,
            y: &mut [f32],
        ) {
            let head_dim = y.len() / M;
            let bytes = if FORMAT == F32 { 4 } else { 2 };
            let done = accumulate_columns::<FORMAT, M, C>(p, v, stride, keys.clone(), y, 0);
            let done = accumulate_columns::<FORMAT, M, 1>(p, v, stride, keys.clone(), y, done);
            for (i, p) in p.into_iter().enumerate() {
                for (e, y) in y[i * head_dim..][..head_dim].iter_mut().enumerate().skip(done) {
                    for j in keys.clone() {
                        let at = &v[j * stride + e * bytes..][..bytes];
                        let v = match FORMAT {
                            F32 => f32::from_le_bytes(*at.first_chunk().expect("four bytes")),
                            _ => widen(u16::from_le_bytes(*at.first_chunk().expect("two bytes"))),
                        };
                        *y = p[j].mul_add(v, *y);
                    }
                }
            }
        }

        /// From element `done` on, while there are `C` more vectors; returns where that ends.
        #[inline]
        #[target_feature(enable = $features)]
        fn accumulate_columns<const FORMAT: usize, const M: usize, const C: usize>(
            p: [&[f32; KEY_BLOCK]; M],
            v: &[u8],
            stride: usize,
            keys: Range<usize>,
            y: &mut [f32],
            mut done: usize,
        ) -> usize {
            let head_dim = y.len() / M;
            let bytes = if FORMAT == F32 { 4 } else { 2 };
            while done + C * WIDTH <= head_dim {
                let mut acc = [[zero(); C]; M];
                for (i, acc) in acc.iter_mut().enumerate() {
                    for (h, acc) in acc.iter_mut().enumerate() {
                        *acc = load(&y[i * head_dim..].as_chunks().0[done / WIDTH + h]);
                    }
                }
                for j in keys.clone() {
                    let row = &v[j * stride..][..head_dim * bytes];
                    if FORMAT == F16 && done == 0 {
                        prefetch_row(row, AHEAD * stride);
                    }
                    let mut v = [zero(); C];
                    for (h, v) in v.iter_mut().enumerate() {
                        *v = weights::<FORMAT>(row, done / WIDTH + h);
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
