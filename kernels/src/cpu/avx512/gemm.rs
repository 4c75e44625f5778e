//! Products with many rows of activations: panels of 16 rows against decoded weights.
//!
//! A microkernel holds [`ROWS`] x 48 results in registers and adds to them in ascending k: every result is one chain of
//! fused multiply-adds, whatever the blocking. Weights are decoded [`DEPTH`] columns at a time into scratch.

#![allow(unsafe_code, reason = "vector loads and stores")]

use std::arch::x86_64::*;

use super::{decode_columns, load, store};
use crate::cpu::product::{PANEL_ROWS, Product};
use crate::quant::SUPER_BLOCK;

/// Rows of weights in a microkernel: with three panels, 24 accumulators.
const ROWS: usize = 8;

/// Panels that a microkernel takes at most.
const MAX_PANELS: usize = 3;

/// Columns that are decoded at a time: three panels of them, 48 KiB, stay in or near the first-level cache.
const DEPTH: usize = SUPER_BLOCK;

/// `f32`s that [`product_panels`] needs to work in: decoded rows, then results by panel.
pub(super) fn product_panels_scratch_len(n_rows: usize, m: usize) -> usize {
    let n_rows = n_rows.next_multiple_of(ROWS);
    n_rows * DEPTH + n_rows * m.next_multiple_of(PANEL_ROWS)
}

/// `out[i, j] = sum over k of w[j, k] x[i, k]` with panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn product_panels(p: &Product<'_>, out: &mut [f32], scratch: &mut [f32]) {
    let (n_rows, n_panels) = (p.n_rows.next_multiple_of(ROWS), p.m.div_ceil(PANEL_ROWS));
    let (weights, sums) = scratch.split_at_mut(n_rows * DEPTH);
    // [n_panels, n_rows, PANEL_ROWS]
    let sums = &mut sums.as_chunks_mut::<PANEL_ROWS>().0[..n_rows * n_panels];
    sums.as_flattened_mut().fill(0.0);
    for from in (0..p.k).step_by(DEPTH) {
        let depth = DEPTH.min(p.k - from);
        decode_columns(p, from..from + depth, weights.as_chunks_mut::<DEPTH>().0);
        // Groups of two and three rather than of three and one.
        let n_groups = n_panels.div_ceil(MAX_PANELS);
        for group in 0..n_groups {
            let panels = n_panels * group / n_groups..n_panels * (group + 1) / n_groups;
            let x = |i: usize| &p.panel(panels.start + i).as_chunks::<PANEL_ROWS>().0[from..from + depth];
            let sums = &mut sums[panels.start * n_rows..panels.end * n_rows];
            for (r, w) in weights.as_chunks().0.iter().enumerate() {
                match panels.len() {
                    1 => microkernel(sums, n_rows, r * ROWS, w, [x(0)]),
                    2 => microkernel(sums, n_rows, r * ROWS, w, [x(0), x(1)]),
                    _ => microkernel(sums, n_rows, r * ROWS, w, [x(0), x(1), x(2)]),
                }
            }
        }
    }
    for (i, sums) in sums.chunks_exact(n_rows).enumerate() {
        let first = i * PANEL_ROWS;
        scatter(&sums[..p.n_rows], &mut out[first * p.n_rows..p.m.min(first + PANEL_ROWS) * p.n_rows]);
    }
}

/// `sums[v, from + r] += sum over k of w[r, k] x[v][k]`.
///
/// `sums` is `[V, n_rows, PANEL_ROWS]`, `w` is `[ROWS, DEPTH]`, of which the first `x[0].len()` columns count.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn microkernel<const V: usize>(
    sums: &mut [[f32; PANEL_ROWS]],
    n_rows: usize,
    from: usize,
    w: &[f32; ROWS * DEPTH],
    x: [&[[f32; PANEL_ROWS]]; V],
) {
    let depth = x[0].len().min(DEPTH);
    // One length for all panels lets the compiler drop the checks in the loop.
    let x = x.map(|x| &x[..depth]);
    let mut acc = [[_mm512_setzero_ps(); V]; ROWS];
    for (r, acc) in acc.iter_mut().enumerate() {
        for (v, acc) in acc.iter_mut().enumerate() {
            *acc = load(&sums[v * n_rows + from + r]);
        }
    }
    for k in 0..depth {
        let mut columns = [_mm512_setzero_ps(); V];
        for (column, x) in columns.iter_mut().zip(x) {
            *column = load(&x[k]);
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let w = _mm512_set1_ps(w[r * DEPTH + k]);
            for (acc, column) in acc.iter_mut().zip(columns) {
                *acc = _mm512_fmadd_ps(w, column, *acc);
            }
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        for (v, acc) in acc.into_iter().enumerate() {
            store(&mut sums[v * n_rows + from + r], acc);
        }
    }
}

/// `out[r, j] = sums[j][r]`: results of one panel, for as many rows as `out` has.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn scatter(sums: &[[f32; PANEL_ROWS]], out: &mut [f32]) {
    let n_rows = sums.len();
    let (blocks, tail) = sums.as_chunks::<16>();
    for (b, block) in blocks.iter().enumerate() {
        let mut columns = [_mm512_setzero_ps(); 16];
        for (column, sums) in columns.iter_mut().zip(block) {
            *column = load(sums);
        }
        for (row, out) in transpose(columns).into_iter().zip(out.chunks_exact_mut(n_rows)) {
            store(&mut out.as_chunks_mut().0[b], row);
        }
    }
    for (r, out) in out.chunks_exact_mut(n_rows).enumerate() {
        for (y, sums) in out[16 * blocks.len()..].iter_mut().zip(tail) {
            *y = sums[r];
        }
    }
}

/// Transposes `n_rows` rows into one panel `[k, PANEL_ROWS]`; missing rows become zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn prepare_panel(x: &[f32], stride: usize, n_rows: usize, k: usize, out: &mut [f32]) {
    let out = &mut out.as_chunks_mut::<PANEL_ROWS>().0[..k];
    for (b, columns) in out.chunks_mut(16).enumerate() {
        let mut rows = [_mm512_setzero_ps(); PANEL_ROWS];
        for (i, row) in rows.iter_mut().enumerate().take(n_rows) {
            let x = &x[i * stride + 16 * b..][..columns.len()];
            // SAFETY: the mask has as many bits as `x` has elements, and no others are read.
            *row = unsafe { _mm512_maskz_loadu_ps(u16::MAX >> (16 - x.len()), x.as_ptr()) };
        }
        for (column, values) in columns.iter_mut().zip(transpose(rows)) {
            store(column, values);
        }
    }
}

/// Transposes a 16 x 16 matrix.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn transpose(rows: [__m512; 16]) -> [__m512; 16] {
    // Inside each 128-bit lane: 4 x 4 matrices of four rows.
    let mut quads = rows;
    for (quad, r) in quads.as_chunks_mut::<4>().0.iter_mut().zip(rows.as_chunks::<4>().0) {
        let (a, b) = (_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
        let (c, d) = (_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
        *quad = [
            _mm512_shuffle_ps::<0x44>(a, c),
            _mm512_shuffle_ps::<0xEE>(a, c),
            _mm512_shuffle_ps::<0x44>(b, d),
            _mm512_shuffle_ps::<0xEE>(b, d),
        ];
    }
    // Then the 4 x 4 matrix of lanes. Lane l of quads[4 i + c] holds column 4 l + c of rows 4 i .. 4 i + 4.
    let mut out = rows;
    for c in 0..4 {
        let (a, b) = (quads[c], quads[4 + c]);
        let (e, f) = (quads[8 + c], quads[12 + c]);
        let (ab_even, ab_odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
        let (ef_even, ef_odd) = (_mm512_shuffle_f32x4::<0x88>(e, f), _mm512_shuffle_f32x4::<0xDD>(e, f));
        out[c] = _mm512_shuffle_f32x4::<0x88>(ab_even, ef_even);
        out[4 + c] = _mm512_shuffle_f32x4::<0x88>(ab_odd, ef_odd);
        out[8 + c] = _mm512_shuffle_f32x4::<0xDD>(ab_even, ef_even);
        out[12 + c] = _mm512_shuffle_f32x4::<0xDD>(ab_odd, ef_odd);
    }
    out
}
