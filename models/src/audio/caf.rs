//! CAF files with plain samples. Source: Apple, Core Audio Format Specification 1.0.
//!
//! Other codecs are demuxed elsewhere; of a file whose sound is cut short, the demuxer sees the length that is there.

use std::io::{Read, Result, Seek};

use super::fields::Fields;
use super::patched::Patch;
use super::pcm::{Encoding, Layout, Order};
use super::wav::is_placeholder;

/// Chunks that are looked at.
const MAX_CHUNKS: usize = 256;

/// Bytes of the file's own header, of a chunk's, and of the edit count before the samples.
const FILE_HEADER: u64 = 8;
const CHUNK_HEADER: u64 = 12;
const EDIT_COUNT: u64 = 4;

/// Bits of the format flags.
const IS_FLOAT: u32 = 1;
const IS_LITTLE_ENDIAN: u32 = 2;

/// What is to know about a CAF file before it is read.
#[derive(Default)]
pub(super) struct Caf {
    /// The samples, if they are plain.
    pub layout: Option<Layout>,
    /// What a demuxer should see instead.
    pub patches: Vec<Patch>,
    /// The sound is shorter than it says.
    pub cut_short: bool,
}

/// What the description chunk says.
struct Description {
    rate_hz: u32,
    n_channels: usize,
    encoding: Encoding,
    order: Order,
}

/// Looks at a file of `len` bytes; nothing is known of one that is no CAF file.
///
/// A data chunk of length -1, or too short to hold its edit count, extends to the end of the file.
pub(super) fn inspect(src: &mut (impl Read + Seek), len: u64) -> Result<Caf> {
    let mut caf = Caf::default();
    let mut fields = Fields::new(src, len);
    if fields.get(0)? != Some(*b"caff") {
        return Ok(caf);
    }
    let mut description = None;
    let mut at = FILE_HEADER;
    for _ in 0..MAX_CHUNKS {
        let Some(tag) = fields.get::<4>(at)? else { break };
        let Some(size) = fields.get(at + 4)?.map(i64::from_be_bytes) else { break };
        let body = at + CHUNK_HEADER;
        match &tag {
            b"desc" => description = describe(&mut fields, body)?,
            b"data" => {
                let left = len - body;
                let announced = u64::try_from(size).ok().filter(|&n| n >= EDIT_COUNT && !is_placeholder(n, left));
                if size >= 0 && announced.is_none_or(|n| n > left) {
                    caf.patches.push(Patch { at: at + 4, bytes: left.to_be_bytes().into() });
                    caf.cut_short = true;
                }
                let layout = |Description { rate_hz, n_channels, encoding, order }| Layout {
                    container: "caf",
                    encoding,
                    order,
                    rate_hz,
                    n_channels,
                    start: body + EDIT_COUNT,
                    n_bytes: announced.map(|n| n - EDIT_COUNT),
                    confirmed: false,
                };
                caf.layout = description.map(layout);
                break;
            }
            _ => {}
        }
        let next = u64::try_from(size).ok().and_then(|size| body.checked_add(size));
        let Some(next) = next else { break };
        at = next;
    }
    Ok(caf)
}

/// The description, if it is one of plain samples.
fn describe<S: Read + Seek>(fields: &mut Fields<'_, S>, at: u64) -> Result<Option<Description>> {
    let Some(rate) = fields.get(at)?.map(f64::from_be_bytes) else { return Ok(None) };
    let Some(kind) = fields.get::<4>(at + 8)? else { return Ok(None) };
    let mut words = [0; 5];
    for (i, word) in words.iter_mut().enumerate() {
        let Some(bytes) = fields.get(at + 12 + 4 * i as u64)? else { return Ok(None) };
        *word = u32::from_be_bytes(bytes);
    }
    let [flags, packet_bytes, _frames, n_channels, bits] = words;
    let by_bits = bits.div_ceil(8);
    let by_packet = packet_bytes.checked_div(n_channels).filter(|n| n * n_channels == packet_bytes);
    // Samples are padded below their lowest bit where a packet has room for more.
    let bytes = by_packet.filter(|&n| n >= by_bits).unwrap_or(by_bits) as usize;
    let encoding = match (&kind, flags & IS_FLOAT != 0, bytes) {
        (b"lpcm", false, 1..=4) => Encoding::Signed(bytes),
        (b"lpcm", true, 4 | 8) => Encoding::Float(bytes),
        (b"alaw", _, 1) => Encoding::ALaw,
        (b"ulaw", _, 1) => Encoding::MuLaw,
        _ => return Ok(None),
    };
    let order = if flags & IS_LITTLE_ENDIAN != 0 { Order::Little } else { Order::Big };
    Ok(Some(Description { rate_hz: rate.round() as u32, n_channels: n_channels as usize, encoding, order }))
}
