//! What blocks of 16 rows become before they are multiplied with many rows of activations: [`Unpacked`].

use std::arch::x86_64::*;

use bytemuck::{Pod, Zeroable};

use super::WIDTH;
use crate::quant::SMALL_BLOCK;

/// Groups of 16 rows of weights in a microkernel: with six rows of activations, 12 sums of each kind in 32 registers.
pub(super) const GROUPS: usize = 2;

/// Vectors of a block: four levels of 16 rows each.
pub(super) const QUADS: usize = SMALL_BLOCK / 4;

/// A block of each of 16 rows.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Unpacked {
    /// Byte `4 r + i` of vector `v` is level `4 v + i` of row `r`, made unsigned.
    pub levels: [[u8; 64]; QUADS],
    /// Scales of the rows; of the halves in formats with a scale for each.
    pub d: [[f32; WIDTH]; 2],
    /// What weights of the rows are larger by than levels times scale, or the scale of their minima; used in formats that have
    /// it.
    pub offset: [f32; WIDTH],
    /// Minima of the halves, in Q2_K.
    pub mins: [[i16; 2]; WIDTH],
}

/// Eight vectors of which half `h` of number `r` holds the eight 32-bit elements of row `8 h + r`: number `v` of the result
/// holds element `v` of the 16 rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn transpose_8(r: [__m512i; 8]) -> [__m512i; 8] {
    // Lane l of low[v] holds element v, or in odd lanes v + 4, of rows 8 (l / 2) .. 8 (l / 2) + 4; high, of the next four.
    let low = transpose_4([r[0], r[1], r[2], r[3]]);
    let high = transpose_4([r[4], r[5], r[6], r[7]]);
    let mut out = r;
    for v in 0..4 {
        out[v] = even_lanes(low[v], high[v]);
        out[v + 4] = odd_lanes(low[v], high[v]);
    }
    out
}

/// Four vectors of which lane `l` of number `r`, 128 bits, holds 32-bit elements 0 .. 4 of row `4 l + r`: number `v` of the
/// result holds element `v` of the 16 rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn transpose_4(r: [__m512i; 4]) -> [__m512i; 4] {
    let (a, b) = (_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1]));
    let (c, d) = (_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3]));
    [_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d), _mm512_unpackhi_epi64(b, d)]
}

/// Lanes 0 of both, then lanes 2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn even_lanes(a: __m512i, b: __m512i) -> __m512i {
    _mm512_permutex2var_epi64(a, _mm512_set_epi64(13, 12, 5, 4, 9, 8, 1, 0), b)
}

/// Lanes 1 of both, then lanes 3.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn odd_lanes(a: __m512i, b: __m512i) -> __m512i {
    _mm512_permutex2var_epi64(a, _mm512_set_epi64(15, 14, 7, 6, 11, 10, 3, 2), b)
}
