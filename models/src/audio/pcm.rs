//! Plain samples: [`Layout`], where they stand in a file and what they mean, and [`decode`].

use std::io::{Read, Seek, SeekFrom};

use super::error::AudioErrorKind;
use super::recording::{Decoded, Recording, check_channels, check_rate};

/// Bytes that are read at once, about.
const READ_BYTES: usize = 1 << 18;

/// Meaning of a sample's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Integer with an offset, one byte.
    Unsigned,
    /// Integer of this many bytes, 1 to 4.
    Signed(usize),
    /// Floating point number of this many bytes, 4 or 8.
    Float(usize),
    /// mu-law of G.711.
    MuLaw,
    /// A-law of G.711.
    ALaw,
}

impl Encoding {
    /// Bytes of a sample.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Unsigned | Self::MuLaw | Self::ALaw => 1,
            Self::Signed(n) | Self::Float(n) => n,
        }
    }
}

/// Order of a sample's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Lowest first.
    Little,
    /// Highest first.
    Big,
}

/// Where the samples of a file stand and what they mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Short name of the container.
    pub container: &'static str,
    /// Meaning of a sample.
    pub encoding: Encoding,
    /// Order of its bytes.
    pub order: Order,
    /// Frames per second.
    pub rate_hz: u32,
    /// Samples of a frame, one after the other.
    pub n_channels: usize,
    /// Where the first frame begins, in bytes.
    pub start: u64,
    /// Bytes of all frames; to the end of the file where it is not known.
    pub n_bytes: Option<u64>,
    /// Whether another field of the header says the same length. One alone is believed up to a limit.
    pub confirmed: bool,
}

impl Layout {
    /// Short name of the codec.
    pub(super) fn codec(&self) -> &'static str {
        match (self.encoding, self.order) {
            (Encoding::Unsigned, _) => "pcm_u8",
            (Encoding::MuLaw, _) => "pcm_mulaw",
            (Encoding::ALaw, _) => "pcm_alaw",
            (Encoding::Signed(1), _) => "pcm_s8",
            (Encoding::Signed(2), Order::Little) => "pcm_s16le",
            (Encoding::Signed(2), Order::Big) => "pcm_s16be",
            (Encoding::Signed(3), Order::Little) => "pcm_s24le",
            (Encoding::Signed(3), Order::Big) => "pcm_s24be",
            (Encoding::Signed(_), Order::Little) => "pcm_s32le",
            (Encoding::Signed(_), Order::Big) => "pcm_s32be",
            (Encoding::Float(4), Order::Little) => "pcm_f32le",
            (Encoding::Float(4), Order::Big) => "pcm_f32be",
            (Encoding::Float(_), Order::Little) => "pcm_f64le",
            (Encoding::Float(_), Order::Big) => "pcm_f64be",
        }
    }
}

/// Reads all frames; those that are announced but missing are a loss.
///
/// Errors: a rate, a number of channels or a sample that is not accepted; no frames; too many of them.
pub(super) fn decode(src: &mut (impl Read + Seek), layout: &Layout) -> Result<Decoded, AudioErrorKind> {
    check_rate(layout.rate_hz)?;
    check_channels(layout.n_channels)?;
    let mut recording = Recording::default();
    src.seek(SeekFrom::Start(layout.start)).map_err(AudioErrorKind::Io)?;
    let last = layout.start + frames(&mut src.take(layout.n_bytes.unwrap_or(u64::MAX)), layout, &mut recording)?;
    let frame = layout.encoding.bytes() * layout.n_channels;
    if let Some(announced) = layout.n_bytes {
        if !layout.confirmed {
            recording.could_hold(last / frame as u64);
        }
        recording.announced_end((announced / frame as u64) as f64 / f64::from(layout.rate_hz), 0.0);
    }
    recording.finish(layout.container, layout.codec(), None)
}

/// Appends the whole frames of a source; gives the bytes that it has.
///
/// Errors: samples that are not accepted, too many of them.
pub(super) fn frames(src: &mut impl Read, layout: &Layout, recording: &mut Recording) -> Result<u64, AudioErrorKind> {
    let frame = layout.encoding.bytes() * layout.n_channels;
    let whole = (READ_BYTES / frame).max(1) * frame;
    let (mut bytes, mut samples, mut n_bytes) = (Vec::new(), Vec::new(), 0);
    loop {
        bytes.clear();
        src.take(whole as u64).read_to_end(&mut bytes).map_err(AudioErrorKind::Io)?;
        n_bytes += bytes.len() as u64;
        samples.clear();
        read(layout.encoding, layout.order, &bytes[..bytes.len() / frame * frame], &mut samples);
        recording.interleaved(layout.rate_hz, layout.n_channels, &mut samples)?;
        if bytes.len() < whole {
            return Ok(n_bytes);
        }
    }
}

/// Appends samples, each in [-1, 1], but for floating point numbers that are not. `bytes` are those of whole samples.
fn read(encoding: Encoding, order: Order, bytes: &[u8], to: &mut Vec<f32>) {
    let signed = |bits: u64| (bits.cast_signed() as f64 / -(i64::MIN as f64)) as f32;
    match encoding {
        Encoding::Unsigned => to.extend(bytes.iter().map(|&b| (f32::from(b) - 128.0) / 128.0)),
        Encoding::MuLaw => to.extend(bytes.iter().map(|&b| mu_law(b))),
        Encoding::ALaw => to.extend(bytes.iter().map(|&b| a_law(b))),
        Encoding::Signed(1) => each::<1>(order, bytes, to, signed),
        Encoding::Signed(2) => each::<2>(order, bytes, to, signed),
        Encoding::Signed(3) => each::<3>(order, bytes, to, signed),
        Encoding::Signed(_) => each::<4>(order, bytes, to, signed),
        Encoding::Float(4) => each::<4>(order, bytes, to, |bits| f32::from_bits((bits >> 32) as u32)),
        Encoding::Float(_) => each::<8>(order, bytes, to, |bits| f64::from_bits(bits) as f32),
    }
}

/// Appends what samples of `N` bytes mean, whose bits are the highest of 64.
fn each<const N: usize>(order: Order, bytes: &[u8], to: &mut Vec<f32>, value: impl Fn(u64) -> f32) {
    let sample = |mut bytes: [u8; N]| {
        if order == Order::Big {
            bytes.reverse();
        }
        let mut wide = [0; 8];
        wide[8 - N..].copy_from_slice(&bytes);
        value(u64::from_le_bytes(wide))
    };
    to.extend(bytes.as_chunks::<N>().0.iter().map(|&bytes| sample(bytes)));
}

/// Source: ITU-T G.711, table 2.
fn mu_law(byte: u8) -> f32 {
    const BIAS: i32 = 33;
    let code = !byte;
    let (exponent, mantissa) = (code >> 4 & 7, i32::from(code & 15));
    let magnitude = ((2 * mantissa + BIAS) << exponent) - BIAS;
    (if code & 0x80 == 0 { magnitude } else { -magnitude }) as f32 / 8192.0
}

/// Source: ITU-T G.711, table 1.
fn a_law(byte: u8) -> f32 {
    let code = byte ^ 0x55;
    let (exponent, mantissa) = (code >> 4 & 7, i32::from(code & 15));
    let magnitude = if exponent == 0 { 2 * mantissa + 1 } else { (2 * mantissa + 33) << (exponent - 1) };
    (if code & 0x80 == 0 { -magnitude } else { magnitude }) as f32 / 4096.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_mean_the_same_in_either_order() {
        for (encoding, little, want) in [
            (Encoding::Unsigned, &[192][..], 0.5),
            (Encoding::Signed(1), &[0xc0], -0.5),
            (Encoding::Signed(2), &[0, 0x40], 0.5),
            (Encoding::Signed(3), &[0, 0, 0xc0], -0.5),
            (Encoding::Signed(4), &[0, 0, 0, 0x80], -1.0),
            (Encoding::Float(4), &0.25f32.to_le_bytes(), 0.25),
            (Encoding::Float(8), &(-3.5f64).to_le_bytes(), -3.5),
        ] {
            let value = |order, bytes: &[u8]| {
                let mut samples = Vec::new();
                read(encoding, order, bytes, &mut samples);
                samples
            };
            assert_eq!(value(Order::Little, little), [want], "{encoding:?}");
            let big: Vec<u8> = little.iter().rev().copied().collect();
            assert_eq!(value(Order::Big, &big), [want], "{encoding:?}");
        }
    }

    #[test]
    fn companded_samples_have_the_values_of_g_711() {
        for (code, want) in [(0xff, 0), (0x7f, 0), (0x80, 8031), (0x00, -8031), (0xf0, 30), (0xef, 33)] {
            assert_eq!(mu_law(code) * 8192.0, want as f32, "mu-law {code:#x}");
        }
        for (code, want) in [(0xd5, 1), (0x55, -1), (0xaa, 4032), (0x2a, -4032), (0xc5, 33)] {
            assert_eq!(a_law(code) * 4096.0, want as f32, "A-law {code:#x}");
        }
    }
}
