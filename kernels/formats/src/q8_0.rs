//! Q8_0: 32 signed bytes and one scale.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::{Block, F16Bytes, Group, Integers, SMALL_BLOCK, f16, inverse_or_zero, trunc8};

/// Value of element `e`: `q[e] * d`.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ8_0 {
    /// Scale.
    pub d: F16Bytes,
    /// Levels.
    pub q: [i8; SMALL_BLOCK],
}

impl Block for BlockQ8_0 {
    const LEN: usize = SMALL_BLOCK;
    const SCALES: &'static [usize] = &[offset_of!(Self, d)];
    const USES_IMPORTANCE: bool = false;
    const LIMIT: f32 = 127.0 * f16::MAX;
    const INTEGERS: Integers<Self> = Integers::Small(integers);

    #[inline(always)]
    fn decode(blocks: &[Self], out: &mut [f32]) {
        decode(blocks, out.as_chunks_mut().0);
    }

    #[inline(always)]
    fn encode(x: &[f32], _importance: Option<&[f32]>, out: &mut [Self]) {
        encode(x.as_chunks().0, out);
    }
}

#[inline(always)]
fn integers(b: &BlockQ8_0) -> Group {
    Group { levels: b.q, scale: b.d.to_f32(), offset: 0.0 }
}

/// Decodes whole blocks.
#[inline(always)]
fn decode(blocks: &[BlockQ8_0], out: &mut [[f32; SMALL_BLOCK]]) {
    for (y, b) in out.iter_mut().zip(blocks) {
        let d = b.d.to_f32();
        for (y, q) in y.iter_mut().zip(b.q) {
            *y = f32::from(q) * d;
        }
    }
}

/// Encodes whole blocks: `d = amax / 127`, levels from the unrounded `d`, halves away from zero.
///
/// Source: ggml, `quantize_row_q8_0_ref`.
#[inline(always)]
fn encode(x: &[[f32; SMALL_BLOCK]], out: &mut [BlockQ8_0]) {
    for (b, x) in out.iter_mut().zip(x) {
        let amax = x.iter().fold(0.0, |m: f32, x| if x.abs() > m { x.abs() } else { m });
        let d = amax / 127.0;
        let id = inverse_or_zero(d);
        b.d = F16Bytes::from_f32(d);
        b.q = x.map(|x| trunc8((x * id).round()));
    }
}
