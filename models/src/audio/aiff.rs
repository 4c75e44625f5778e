//! AIFF and AIFF-C files with plain samples. Source: Apple, Audio Interchange File Format, version 1.3 and AIFF-C draft.

use std::io::{Read, Result, Seek};

use super::fields::Fields;
use super::pcm::{Encoding, Layout, Order};
use super::wav::is_placeholder;

/// Chunks that are looked at.
const MAX_CHUNKS: usize = 256;

/// What the common chunk says.
struct Common {
    n_channels: u16,
    n_frames: u32,
    rate_hz: u32,
    encoding: Encoding,
    order: Order,
}

/// The samples of a file of `len` bytes; none if it is no AIFF file, or its samples are not plain.
///
/// The length of the whole is ignored. The number of frames counts where a recorder left the length of the sound wrong;
/// without either, the sound extends to the end of the file.
pub(super) fn layout(src: &mut (impl Read + Seek), len: u64) -> Result<Option<Layout>> {
    let mut fields = Fields::new(src, len);
    let Some([b'F', b'O', b'R', b'M', _, _, _, _, kind @ ..]) = fields.get::<12>(0)? else { return Ok(None) };
    let compressed = match &kind {
        b"AIFF" => false,
        b"AIFC" => true,
        _ => return Ok(None),
    };
    let mut common = None;
    let mut sound = None;
    let mut at = 12;
    for _ in 0..MAX_CHUNKS {
        let Some([a, b, c, d, size @ ..]) = fields.get::<8>(at)? else { break };
        let (body, size) = (at + 8, u64::from(u32::from_be_bytes(size)));
        match &[a, b, c, d] {
            b"COMM" => common = read_common(&mut fields, body, compressed)?,
            b"SSND" => {
                let Some(offset) = fields.get(body)? else { break };
                let start = body + 8 + u64::from(u32::from_be_bytes(offset));
                sound = Some((start, (body + size).saturating_sub(start)));
            }
            _ => {}
        }
        if common.is_some() && sound.is_some() {
            break;
        }
        at = body + size.next_multiple_of(2);
    }
    let (Some(common), Some((start, sound_bytes))) = (common, sound) else { return Ok(None) };
    let frame = common.encoding.bytes() as u64 * u64::from(common.n_channels);
    let counted = u64::from(common.n_frames) * frame;
    let known = |size: u64| size > 0 && !is_placeholder(size, len.saturating_sub(start));
    let n_bytes = match (known(counted), known(sound_bytes)) {
        (true, true) => Some(counted.min(sound_bytes)),
        (true, false) => Some(counted),
        (false, true) => Some(sound_bytes),
        (false, false) => None,
    };
    let confirmed = counted.abs_diff(sound_bytes) <= frame;
    let Common { rate_hz, encoding, order, .. } = common;
    let n_channels = common.n_channels.into();
    Ok(Some(Layout { container: "aiff", encoding, order, rate_hz, n_channels, start, n_bytes, confirmed }))
}

fn read_common<S: Read + Seek>(fields: &mut Fields<'_, S>, at: u64, compressed: bool) -> Result<Option<Common>> {
    let Some([c0, c1, frames @ .., w0, w1]) = fields.get::<8>(at)? else { return Ok(None) };
    let Some(rate) = fields.get(at + 8)? else { return Ok(None) };
    let bytes = usize::from(u16::from_be_bytes([w0, w1]).div_ceil(8));
    let kind = if compressed { fields.get::<4>(at + 18)? } else { Some(*b"NONE") };
    let (encoding, order) = match (kind.as_ref(), bytes) {
        (Some(b"NONE" | b"twos"), 1..=4) => (Encoding::Signed(bytes), Order::Big),
        (Some(b"sowt"), 1..=4) => (Encoding::Signed(bytes), Order::Little),
        (Some(b"raw "), 1) => (Encoding::Unsigned, Order::Big),
        (Some(b"in24"), _) => (Encoding::Signed(3), Order::Big),
        (Some(b"in32"), _) => (Encoding::Signed(4), Order::Big),
        (Some(b"fl32" | b"FL32"), _) => (Encoding::Float(4), Order::Big),
        (Some(b"fl64" | b"FL64"), _) => (Encoding::Float(8), Order::Big),
        (Some(b"alaw" | b"ALAW"), _) => (Encoding::ALaw, Order::Big),
        (Some(b"ulaw" | b"ULAW"), _) => (Encoding::MuLaw, Order::Big),
        _ => return Ok(None),
    };
    let [f0, f1, f2, f3] = frames;
    Ok(Some(Common {
        n_channels: u16::from_be_bytes([c0, c1]),
        n_frames: u32::from_be_bytes([f0, f1, f2, f3]),
        rate_hz: extended(rate),
        encoding,
        order,
    }))
}

/// A number of 80 bits, as IEEE 754 calls extended, to an integer; 0 if it is not a usual one.
fn extended([e0, e1, mantissa @ ..]: [u8; 10]) -> u32 {
    const BIAS: u32 = 16_383;
    const TOP_BIT: u32 = 63;
    let exponent = u32::from(u16::from_be_bytes([e0, e1])).checked_sub(BIAS);
    let shift = exponent.and_then(|e| TOP_BIT.checked_sub(e));
    shift.map_or(0, |shift| u32::try_from(u64::from_be_bytes(mantissa) >> shift).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::extended;

    #[test]
    fn rates_are_numbers_of_80_bits() {
        assert_eq!(extended([0x40, 0x0e, 0xac, 0x44, 0, 0, 0, 0, 0, 0]), 44_100);
        assert_eq!(extended([0x40, 0x0b, 0xfa, 0, 0, 0, 0, 0, 0, 0]), 8000);
        assert_eq!(extended([0; 10]), 0);
        assert_eq!(extended([0x7f, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0]), 0);
    }
}
