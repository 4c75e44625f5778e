//! Statistics of a tensor's values, read piece by piece.

use std::ops::Range;

use engine::DType;
use engine::gguf::Gguf;
use half::{bf16, f16};
use kernels::quant::Format;

/// Elements that are decoded at once: whole blocks of every format.
const PIECE: usize = 1 << 16;

/// Bytes after which those before are given back. Reading a page maps those around it too, so that giving back every piece by
/// itself would leave most of its pages.
const RELEASED: usize = 4 << 20;
/// So much of what was given back before is given back once more: the system maps up to so many bytes around a page.
const AROUND: usize = 128 << 10;

/// How a tensor's bytes become numbers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Encoding {
    /// A format of GGUF files, its bytes aligned.
    Blocks(Format),
    /// Numbers of this width, little-endian, anywhere in memory.
    Plain {
        /// Bytes of one.
        width: usize,
        /// One of them.
        decode: fn(&[u8]) -> f64,
    },
}

impl Encoding {
    /// That of a type of GGUF files.
    pub(super) fn of(dtype: DType) -> Self {
        backends::format_of(dtype).map_or(Self::I32, Self::Blocks)
    }

    /// Signed 32 bits.
    pub(super) const I32: Self = Self::Plain { width: 4, decode: |b| f64::from(i32::from_le_bytes(array(b))) };

    /// That of a type of safetensors files, where its values are numbers of whole bytes.
    pub(super) fn of_stored(dtype: safetensors::Dtype) -> Option<Self> {
        use safetensors::Dtype;
        let (width, decode): (usize, fn(&[u8]) -> f64) = match dtype {
            Dtype::F64 => (8, |b| f64::from_le_bytes(array(b))),
            Dtype::F32 => (4, |b| f64::from(f32::from_le_bytes(array(b)))),
            Dtype::F16 => (2, |b| f16::from_le_bytes(array(b)).to_f64()),
            Dtype::BF16 => (2, |b| bf16::from_le_bytes(array(b)).to_f64()),
            Dtype::I64 => (8, |b| i64::from_le_bytes(array(b)) as f64),
            Dtype::I32 => return Some(Self::I32),
            Dtype::I16 => (2, |b| f64::from(i16::from_le_bytes(array(b)))),
            Dtype::I8 => (1, |b| f64::from(i8::from_le_bytes(array(b)))),
            Dtype::U8 | Dtype::BOOL => (1, |b| f64::from(b[0])),
            _ => return None,
        };
        Some(Self::Plain { width, decode })
    }
}

/// The bytes of one number, which were cut to its width.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("cut to the width of the type")
}

/// What a tensor's values are like.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Statistics {
    /// The least finite value; none where there is none.
    pub min: Option<f64>,
    /// The greatest finite value.
    pub max: Option<f64>,
    /// Mean of the finite values.
    pub mean: Option<f64>,
    /// Root of the mean of their squares.
    pub rms: Option<f64>,
    /// Infinities and values that are no numbers.
    pub n_non_finite: u64,
}

/// Reads a tensor of `n` elements. `release` is told which bytes were read and are not needed again.
pub(super) fn of(encoding: Encoding, bytes: &[u8], n: usize, release: impl Fn(Range<usize>)) -> Statistics {
    let mut sums = Sums::default();
    let mut decoded = vec![0.0; PIECE.min(n)];
    let (piece_len, piece_bytes) = match encoding {
        Encoding::Blocks(format) => (PIECE, PIECE / format.block_len() * format.block_bytes()),
        Encoding::Plain { width, .. } => (PIECE, PIECE * width),
    };
    let mut kept = 0;
    for (i, piece) in bytes.chunks(piece_bytes).enumerate() {
        match encoding {
            Encoding::Blocks(format) => {
                let x = &mut decoded[..piece_len.min(n - i * piece_len)];
                format.decode_row(piece, x);
                x.iter().for_each(|&v| sums.add(f64::from(v)));
            }
            Encoding::Plain { width, decode } => piece.chunks_exact(width).for_each(|one| sums.add(decode(one))),
        }
        let end = i * piece_bytes + piece.len();
        if end - kept >= RELEASED || end == bytes.len() {
            release(kept.saturating_sub(AROUND)..end);
            kept = end;
        }
    }
    sums.finish()
}

/// The first tensor of a file with values that are not finite, and how many those are.
pub(crate) fn first_not_finite(file: &Gguf) -> Option<String> {
    file.tensors().find_map(|t| {
        let n_elements = t.shape.elements();
        let found = of(Encoding::of(t.dtype), t.bytes, n_elements, |range| file.release(t.name, range)).n_non_finite;
        (found > 0).then(|| format!("{}: {found} of {n_elements} values are not finite", t.name))
    })
}

struct Sums {
    min: f64,
    max: f64,
    sum: f64,
    squares: f64,
    n: u64,
    n_non_finite: u64,
}

impl Default for Sums {
    fn default() -> Self {
        Self { min: f64::INFINITY, max: f64::NEG_INFINITY, sum: 0.0, squares: 0.0, n: 0, n_non_finite: 0 }
    }
}

impl Sums {
    fn add(&mut self, v: f64) {
        if !v.is_finite() {
            self.n_non_finite += 1;
            return;
        }
        self.min = self.min.min(v);
        self.max = self.max.max(v);
        self.sum += v;
        self.squares += v * v;
        self.n += 1;
    }

    fn finish(self) -> Statistics {
        let some = |v: f64| (self.n > 0).then_some(v);
        let n = self.n as f64;
        Statistics {
            min: some(self.min),
            max: some(self.max),
            mean: some(self.sum / n),
            rms: some((self.squares / n).sqrt()),
            n_non_finite: self.n_non_finite,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn what_is_not_finite_is_counted_and_left_out() {
        let values = [1.0f32, -3.0, f32::NAN, 4.0, f32::INFINITY];
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let got = of(Encoding::of(DType::F32), &bytes, values.len(), |_| ());
        assert_eq!((got.min, got.max, got.n_non_finite), (Some(-3.0), Some(4.0), 2));
        assert_eq!((got.mean, got.rms), (Some(2.0 / 3.0), Some((26.0f64 / 3.0).sqrt())));
        let none = of(Encoding::of_stored(safetensors::Dtype::F16).unwrap(), &[0, 0x7e], 1, |_| ());
        assert_eq!((none.min, none.mean, none.n_non_finite), (None, None, 1));
    }

    #[test]
    fn blocks_are_decoded_over_many_pieces_and_given_back() {
        // Q8_0 with scale 0.5 and values 1 to 32 in every block: layout of ggml, `block_q8_0`.
        let mut block = vec![0x00, 0x38];
        block.extend(1..=32u8);
        let n = 70 * PIECE + 64;
        let bytes = block.repeat(n / 32);
        let released = RefCell::new(0);
        let got = of(Encoding::of(DType::Q8_0), &bytes, n, |range| {
            assert!(range.start <= *released.borrow() && range.len() < RELEASED + AROUND + 2 * PIECE);
            *released.borrow_mut() = range.end;
        });
        assert_eq!(*released.borrow(), bytes.len());
        assert_eq!((got.min, got.max, got.mean), (Some(0.5), Some(16.0), Some(8.25)));
        // Sum of squares of 1 to 32 is 11440.
        assert!((got.rms.unwrap() - (0.25f64 * 11_440.0 / 32.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn stored_numbers_may_start_anywhere() {
        let bytes: Vec<u8> = std::iter::once(7).chain([1.0f64, 2.0].iter().flat_map(|v| v.to_le_bytes())).collect();
        let got = of(Encoding::of_stored(safetensors::Dtype::F64).unwrap(), &bytes[1..], 2, |_| ());
        assert_eq!((got.min, got.max), (Some(1.0), Some(2.0)));
    }
}
