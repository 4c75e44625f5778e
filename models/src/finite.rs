//! Weights that are not finite. Most of them come through to the logits, where they are found as a token is chosen; what a
//! gate or a maximum can hide is found here, before anything is computed.

use engine::DType;
use engine::gguf::{Gguf, GgufTensor};

use crate::error::{Error, Result};

/// Tensors of more bytes are not read for this: norms, biases, convolutions and routers have fewer, and the large matrices
/// of published models hide nothing.
const MAX_BYTES: usize = 4 << 20;

/// Tensors of which only the rows of tokens are read; what pads them may be anything.
const READ_BY_ROW: [&str; 2] = ["token_embd.weight", "output.weight"];

/// Checks the small tensors of a file that are not quantized.
///
/// Errors: `BadWeight`.
pub(crate) fn check(file: &Gguf) -> Result<()> {
    let small = |t: &GgufTensor<'_>| t.bytes.len() <= MAX_BYTES && !READ_BY_ROW.contains(&t.name);
    for tensor in file.tensors().filter(small) {
        let n = n_not_finite(tensor.dtype, tensor.bytes);
        if n > 0 {
            let what = format!("{n} of {} values are not finite", tensor.shape.elements());
            return Err(Error::BadWeight { path: file.path().to_owned(), name: tensor.name.to_owned(), what });
        }
    }
    Ok(())
}

/// How many values are not finite: those with nothing but ones in their exponent. None of a quantized or integer tensor.
fn n_not_finite(dtype: DType, bytes: &[u8]) -> usize {
    const F16_EXPONENT: u16 = 0x7c00;
    const BF16_EXPONENT: u16 = 0x7f80;
    let halves = |exponent: u16| {
        let halves = bytes.as_chunks().0.iter().map(|&b| u16::from_le_bytes(b));
        halves.filter(|bits| bits & exponent == exponent).count()
    };
    if dtype == DType::F32 {
        bytes.as_chunks().0.iter().filter(|&&b| !f32::from_le_bytes(b).is_finite()).count()
    } else if dtype == DType::F16 {
        halves(F16_EXPONENT)
    } else if dtype == DType::BF16 {
        halves(BF16_EXPONENT)
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_in_every_plain_format() {
        let halves = |bits: &[u16]| bits.iter().flat_map(|b| b.to_le_bytes()).collect::<Vec<u8>>();
        let singles = [1.0, f32::NAN, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, -0.0];
        let singles: Vec<u8> = singles.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(n_not_finite(DType::F32, &singles), 3);
        // 1, infinity, -infinity, NaN, the largest.
        assert_eq!(n_not_finite(DType::F16, &halves(&[0x3c00, 0x7c00, 0xfc00, 0x7e01, 0x7bff])), 3);
        assert_eq!(n_not_finite(DType::BF16, &halves(&[0x3f80, 0x7f80, 0xff80, 0x7fc1, 0x7f7f])), 3);
        assert_eq!(n_not_finite(DType::I32, &[0xff; 8]), 0);
    }
}
