//! Products with many rows of activations: panels of 16 rows against decoded weights.
//!
//! A microkernel holds [`ROWS`] x 16 results in registers and adds to them in ascending k: every result is one chain of
//! fused multiply-adds, whatever the blocking. Weights are decoded [`DEPTH`] columns at a time into scratch.

#![allow(unsafe_code, reason = "vector loads and stores")]

use std::arch::x86_64::*;

use super::{decode_columns, load, store};
use crate::cpu::product::{PANEL_ROWS, Product};
use crate::quant::SUPER_BLOCK;

/// Rows of weights in a microkernel: 12 accumulators, two activations and one weight fill the 16 registers.
const ROWS: usize = 6;

/// Columns that are decoded at a time: a panel of them, 16 KiB, stays in the first-level cache.
const DEPTH: usize = SUPER_BLOCK;

/// `f32`s that [`product_panels`] needs to work in: decoded rows, then results by panel.
pub(super) fn product_panels_scratch_len(n_rows: usize, m: usize) -> usize {
    let n_rows = n_rows.next_multiple_of(ROWS);
    n_rows * DEPTH + n_rows * m.next_multiple_of(PANEL_ROWS)
}

/// `out[i, j] = sum over k of w[j, k] x[i, k]` with panels.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn product_panels(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
    let n_rows = p.n_rows.next_multiple_of(ROWS);
    let (weights, sums) = scratch.split_at_mut(n_rows * DEPTH);
    // [n_panels, n_rows, PANEL_ROWS]
    let sums = &mut sums.as_chunks_mut::<PANEL_ROWS>().0[..n_rows * p.m.div_ceil(PANEL_ROWS)];
    sums.as_flattened_mut().fill(0.0);
    for from in (0..p.k).step_by(DEPTH) {
        let depth = DEPTH.min(p.k - from);
        decode_columns(p, from..from + depth, weights.as_chunks_mut::<DEPTH>().0);
        for (i, sums) in sums.chunks_exact_mut(n_rows).enumerate() {
            let x = &p.panel(i).as_chunks::<PANEL_ROWS>().0[from..from + depth];
            for (sums, w) in sums.as_chunks_mut::<ROWS>().0.iter_mut().zip(weights.as_chunks().0) {
                microkernel(sums, w, x);
            }
        }
    }
    for (i, sums) in sums.chunks_exact(n_rows).enumerate() {
        for r in 0..PANEL_ROWS.min(p.m - i * PANEL_ROWS) {
            let out = &mut out[(i * PANEL_ROWS + r) * p.n_rows..][..p.n_rows];
            for (y, sums) in out.iter_mut().zip(sums) {
                *y = sums[r];
            }
        }
    }
}

/// `sums[r] += sum over k of w[r, k] x[k]`; `w` is `[ROWS, DEPTH]`, of which the first `x.len()` columns count.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn microkernel(sums: &mut [[f32; PANEL_ROWS]; ROWS], w: &[f32; ROWS * DEPTH], x: &[[f32; PANEL_ROWS]]) {
    let mut acc = [[_mm256_setzero_ps(); 2]; ROWS];
    for (acc, sums) in acc.iter_mut().zip(&*sums) {
        let [low, high] = halves(sums);
        *acc = [load(low), load(high)];
    }
    for (k, x) in x.iter().enumerate().take(DEPTH) {
        let [low, high] = halves(x);
        let (low, high) = (load(low), load(high));
        for (r, acc) in acc.iter_mut().enumerate() {
            let w = _mm256_set1_ps(w[r * DEPTH + k]);
            acc[0] = _mm256_fmadd_ps(w, low, acc[0]);
            acc[1] = _mm256_fmadd_ps(w, high, acc[1]);
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        let [low, high] = sums.as_chunks_mut().0 else { unreachable!("16 is twice 8") };
        store(low, acc[0]);
        store(high, acc[1]);
    }
}

#[inline]
fn halves(x: &[f32; PANEL_ROWS]) -> [&[f32; 8]; 2] {
    let [low, high] = x.as_chunks().0 else { unreachable!("16 is twice 8") };
    [low, high]
}

/// Transposes `n_rows` rows into one panel `[k, PANEL_ROWS]`; missing rows become zeros.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn prepare_panel(x: &[f32], stride: usize, n_rows: usize, k: usize, out: &mut [f32]) {
    let out = &mut out.as_chunks_mut::<PANEL_ROWS>().0[..k];
    let (blocks, tail) = out.as_chunks_mut::<8>();
    for (b, columns) in blocks.iter_mut().enumerate() {
        for half in [0, 8] {
            let mut rows = [_mm256_setzero_ps(); 8];
            for (row, i) in rows.iter_mut().zip(half..n_rows) {
                *row = load(x[i * stride + 8 * b..].first_chunk().expect("a row of k"));
            }
            for (column, values) in columns.iter_mut().zip(transpose(rows)) {
                store(column[half..].first_chunk_mut().expect("half a panel"), values);
            }
        }
    }
    let done = k - tail.len();
    for (c, column) in tail.iter_mut().enumerate() {
        for (i, y) in column.iter_mut().enumerate() {
            *y = if i < n_rows { x[i * stride + done + c] } else { 0.0 };
        }
    }
}

/// Transposes an 8 x 8 matrix.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn transpose(r: [__m256; 8]) -> [__m256; 8] {
    let pair = |a: usize, b: usize| (_mm256_unpacklo_ps(r[a], r[b]), _mm256_unpackhi_ps(r[a], r[b]));
    let ((a0, a1), (b0, b1), (c0, c1), (d0, d1)) = (pair(0, 1), pair(2, 3), pair(4, 5), pair(6, 7));
    let quad = |a: __m256, b: __m256| (_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xEE>(a, b));
    let ((e0, e1), (e2, e3)) = (quad(a0, b0), quad(a1, b1));
    let ((f0, f1), (f2, f3)) = (quad(c0, d0), quad(c1, d1));
    let mut out = r;
    for (i, (e, f)) in [(e0, f0), (e1, f1), (e2, f2), (e3, f3)].into_iter().enumerate() {
        out[i] = _mm256_permute2f128_ps::<0x20>(e, f);
        out[i + 4] = _mm256_permute2f128_ps::<0x31>(e, f);
    }
    out
}
