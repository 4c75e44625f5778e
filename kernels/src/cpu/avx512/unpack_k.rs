//! 256-blocks of 16 rows of weights in the layout of `unpacked`.
//!
//! Where 16 weights have a scale and products of levels and scales fit a byte, these products take the place of the levels,
//! and one scale is left for all weights: Q2_K, with products 0 ..= 45, and Q3_K, with products -124 ..= 128.

#![allow(unsafe_code, reason = "methods of traits that need CPU features")]

use std::arch::x86_64::*;

use super::dot::prefetch_block;
use super::few_q8_k::{QUARTERS, Quarters, Scales, scale_index};
use super::gemm::transpose;
use super::gemm_q8::Layout;
use super::unpacked::{GROUPS, QUADS, Unpacked, transpose_8};
use super::{WIDTH, load_16, load_64, store, store_64};
use crate::cpu::product::Product;
use crate::quant::{SMALL_BLOCK, SUPER_BLOCK};

/// Unpacked blocks of a block.
const IN_BLOCK: usize = SUPER_BLOCK / SMALL_BLOCK;

/// Unpacks weights `32 (from + i) ..` of the 16 rows from number `first` on for each element `i` of `out`. Rows past the last
/// one are that again. `from` begins a block, and `out` takes whole blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn unpack_k<B: Quarters>(p: &Product<'_>, first: usize, from: usize, out: &mut [Unpacked]) {
    let rows: [&[B]; WIDTH] = std::array::from_fn(|r| p.blocks((first + r).min(p.n_rows - 1)));
    for (i, out) in (from / IN_BLOCK..).zip(out.as_chunks_mut::<IN_BLOCK>().0) {
        let none = Scales { d: _mm_setzero_ps(), scales: _mm256_setzero_si256(), mins: _mm256_setzero_si256() };
        let mut of_rows = [none; WIDTH];
        for (of_row, row) in of_rows.iter_mut().zip(rows) {
            prefetch_block(&row[i], GROUPS * WIDTH * size_of_val(row));
            *of_row = Scales::of(&row[i]);
        }
        unpack_scales::<B>(&of_rows, out);
        for c in 0..QUARTERS {
            // Row r, then, transposed, four levels of 16 rows.
            let mut quads = [_mm512_setzero_ps(); WIDTH];
            for ((quads, row), of_row) in quads.iter_mut().zip(rows).zip(&of_rows) {
                // SAFETY: this function has the features.
                let levels = unsafe { row[i].quarter(c) };
                let levels = if B::HAS_PRODUCTS { products::<B>(levels, of_row, c) } else { levels };
                *quads = _mm512_castsi512_ps(levels);
            }
            let quads = transpose(quads);
            for (run, quads) in B::RUNS[c].into_iter().zip(quads.as_chunks::<QUADS>().0) {
                for (levels, quad) in out[run].levels.iter_mut().zip(quads) {
                    store_64(levels, _mm512_castps_si512(*quad));
                }
            }
        }
    }
}

/// Vector `c` of the unsigned levels of a block times the scales of their groups, made unsigned.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn products<B: Quarters>(levels: __m512i, of_row: &Scales, c: usize) -> __m512i {
    // Levels of three bits are signed, those of two are not.
    let all: [i16; 8] = match B::EXCESS {
        Some(_) => [-4, -3, -2, -1, 0, 1, 2, 3],
        None => [0, 1, 2, 3, 0, 1, 2, 3],
    };
    let all = _mm512_broadcast_i32x4(load_16(bytemuck::cast_ref(&all)));
    let index = load_64(bytemuck::cast_ref(&const { scale_index::<B>() }[c]));
    // A group is a lane of 128 bits, with products of all levels there are.
    let scales = _mm512_permutexvar_epi16(index, _mm512_castsi256_si512(of_row.scales));
    let products = _mm512_add_epi16(_mm512_mullo_epi16(all, scales), _mm512_set1_epi16(B::EXCESS_OF_UNPACKED));
    _mm512_shuffle_epi8(_mm512_packus_epi16(products, products), levels)
}

/// Writes scales, offsets and minima of a block of each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn unpack_scales<B: Quarters>(of_rows: &[Scales; WIDTH], out: &mut [Unpacked; IN_BLOCK]) {
    if B::HAS_PRODUCTS {
        for (r, of_row) in of_rows.iter().enumerate() {
            let (d, dmin) = (_mm_cvtss_f32(of_row.d), _mm_cvtss_f32(_mm_movehdup_ps(of_row.d)));
            for out in out.iter_mut() {
                (out.d[0][r], out.offset[r]) = (d, dmin);
            }
        }
        if B::HAS_OFFSET {
            let mut mins = [_mm512_setzero_si512(); WIDTH / 2];
            let (low, high) = of_rows.split_at(WIDTH / 2);
            for ((mins, low), high) in mins.iter_mut().zip(low).zip(high) {
                *mins = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low.mins), high.mins);
            }
            for (out, mins) in out.iter_mut().zip(transpose_8(mins)) {
                store_64(bytemuck::cast_mut(&mut out.mins), mins);
            }
        }
        return;
    }
    let mut factors = [_mm512_setzero_ps(); WIDTH];
    for (factors, of_row) in factors.iter_mut().zip(of_rows) {
        let mut d = _mm512_broadcastss_ps(of_row.d);
        if B::IS_WIDE {
            // The second eight are minima.
            let neg_dmin = _mm_sub_ps(_mm_setzero_ps(), _mm_movehdup_ps(of_row.d));
            d = _mm512_mask_broadcastss_ps(d, 0xFF00, neg_dmin);
        }
        *factors = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(of_row.scales)), d);
    }
    let factors = transpose(factors);
    for (g, out) in out.iter_mut().enumerate() {
        if !B::IS_WIDE {
            store(&mut out.d[0], factors[2 * g]);
            store(&mut out.d[1], factors[2 * g + 1]);
        } else {
            store(&mut out.d[0], factors[g]);
            store(&mut out.offset, factors[IN_BLOCK + g]);
        }
    }
}
