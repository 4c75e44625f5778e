//! WAV files and their relatives: RIFF, RIFX, RF64, BW64 and Wave64.
//!
//! Samples that are plain are read here, whatever the header says of channels and lengths; of other formats the lengths
//! are set right for the demuxer. Sources: Microsoft's mmreg.h, EBU Tech 3306, ITU-R BS.2088, Sony's Wave64 description.

use std::io::{Read, Result, Seek};

use super::fields::Fields;
use super::patched::Patch;
use super::pcm::{Encoding, Layout, Order};

/// A length field of this value stands for "to the end of the file".
const TO_THE_END: u32 = u32::MAX;

/// Chunks before the samples that are looked at.
const MAX_CHUNKS: usize = 256;

/// Programs that write to a pipe announce about 2 or 4 GiB: this near to them, in bytes, beyond the end of the file a
/// length is not believed.
const PLACEHOLDER_SLACK: u64 = 1 << 16;

/// Chunks behind the samples are at most this long, in bytes, where the length of the file confirms that of the samples.
const MAX_TAIL_BYTES: u64 = 1 << 16;

/// Format tags.
const PCM: u16 = 1;
const IEEE_FLOAT: u16 = 3;
const A_LAW: u16 = 6;
const MU_LAW: u16 = 7;
const EXTENSIBLE: u16 = 0xfffe;

/// Identifiers of Wave64: the four letters of RIFF, in lower case, and these.
const W64_RIFF: [u8; 12] = [0x2e, 0x91, 0xcf, 0x11, 0xa5, 0xd6, 0x28, 0xdb, 0x04, 0xc1, 0x00, 0x00];
const W64_CHUNK: [u8; 12] = [0xf3, 0xac, 0xd3, 0x11, 0x8c, 0xd1, 0x00, 0xc0, 0x4f, 0x8e, 0xdb, 0x8a];

/// What is to know about a WAV file before it is read.
#[derive(Default)]
pub(super) struct Wav {
    /// Code of the sample format.
    pub format_tag: Option<u16>,
    /// The samples, if they are plain.
    pub layout: Option<Layout>,
    /// What a demuxer should see instead.
    pub patches: Vec<Patch>,
}

/// How a family of files writes its chunks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Riff(Order),
    Wave64,
}

/// A chunk: its name, and where its contents are.
struct Chunk {
    tag: [u8; 4],
    body: u64,
    size: u64,
}

/// The fields of a format chunk.
pub(super) struct Format {
    /// Code of the sample format.
    pub tag: u16,
    pub n_channels: u16,
    pub rate_hz: u32,
    /// Bytes of a frame, or of a block of ADPCM.
    pub block_bytes: u16,
    bits: u16,
}

/// The format that stands at `at`, in `size` bytes, as in a WAV file.
pub(super) fn format<S: Read + Seek>(fields: &mut Fields<'_, S>, at: u64, size: u64) -> Result<Option<Format>> {
    Family::Riff(Order::Little).format(fields, &Chunk { tag: *b"fmt ", body: at, size })
}

/// Looks at a file of `len` bytes; nothing is known of one that is no WAV file.
///
/// The length of the whole is ignored; a data chunk of length 0 that is followed by no chunks extends to the end, as
/// libsndfile reads it.
pub(super) fn inspect(src: &mut (impl Read + Seek), len: u64) -> Result<Wav> {
    let mut wav = Wav::default();
    let mut fields = Fields::new(src, len);
    let Some((family, mut at)) = family(&mut fields)? else { return Ok(wav) };
    if family == Family::Riff(Order::Little) {
        wav.patches.push(Patch { at: 4, bytes: TO_THE_END.to_le_bytes().into() });
    }
    let mut format = None;
    let (mut long_file, mut long_size) = (None, None);
    for _ in 0..MAX_CHUNKS {
        let Some(chunk) = family.chunk(&mut fields, at)? else { break };
        match &chunk.tag {
            b"ds64" => {
                long_file = fields.get(chunk.body)?.map(u64::from_le_bytes);
                long_size = fields.get(chunk.body + 8)?.map(u64::from_le_bytes);
            }
            b"fmt " => {
                format = family.format(&mut fields, &chunk)?;
                wav.format_tag = format.as_ref().map(|f: &Format| f.tag);
            }
            b"data" => {
                let n_bytes = family.sound_bytes(&mut fields, &chunk, long_size)?;
                if n_bytes.is_none() && family != Family::Wave64 {
                    wav.patches.push(Patch { at: chunk.body - 4, bytes: TO_THE_END.to_le_bytes().into() });
                }
                let end = chunk.body.saturating_add(n_bytes.unwrap_or(0));
                let confirmed = family.end(&mut fields, long_file)?.is_some_and(|n| n.abs_diff(end) <= MAX_TAIL_BYTES);
                let layout = format.and_then(|f| f.layout(family.order()));
                wav.layout = layout.map(|layout| Layout { start: chunk.body, n_bytes, confirmed, ..layout });
                break;
            }
            _ => {}
        }
        at = family.next(&chunk);
    }
    Ok(wav)
}

/// The family of a file, and where its first chunk is.
fn family<S: Read + Seek>(fields: &mut Fields<'_, S>) -> Result<Option<(Family, u64)>> {
    let Some([a, b, c, d, rest @ ..]) = fields.get::<12>(0)? else { return Ok(None) };
    let family = match &[a, b, c, d] {
        b"RIFF" | b"RF64" | b"BW64" if rest.ends_with(b"WAVE") => Family::Riff(Order::Little),
        b"RIFX" if rest.ends_with(b"WAVE") => Family::Riff(Order::Big),
        b"riff" if fields.get(4)? == Some(W64_RIFF) && fields.get(24)? == Some(*b"wave") => {
            return Ok(Some((Family::Wave64, 40)));
        }
        _ => return Ok(None),
    };
    Ok(Some((family, 12)))
}

impl Family {
    fn order(self) -> Order {
        match self {
            Self::Riff(order) => order,
            Self::Wave64 => Order::Little,
        }
    }

    fn u16(self, bytes: [u8; 2]) -> u16 {
        if self.order() == Order::Big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    fn u32(self, bytes: [u8; 4]) -> u32 {
        if self.order() == Order::Big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    /// The chunk at `at`, if its header is inside the file.
    fn chunk<S: Read + Seek>(self, fields: &mut Fields<'_, S>, at: u64) -> Result<Option<Chunk>> {
        const W64_HEADER: u64 = 24;
        let Some([a, b, c, d, size @ ..]) = fields.get::<8>(at)? else { return Ok(None) };
        let tag = [a, b, c, d];
        if self != Self::Wave64 {
            return Ok(Some(Chunk { tag, body: at + 8, size: self.u32(size).into() }));
        }
        let (Some(guid), Some(size)) = (fields.get(at + 4)?, fields.get(at + 16)?) else { return Ok(None) };
        let size = u64::from_le_bytes(size).checked_sub(W64_HEADER);
        let chunk = |size| Chunk { tag: if guid == W64_CHUNK { tag } else { [0; 4] }, body: at + W64_HEADER, size };
        Ok(size.map(chunk))
    }

    /// Where the file ends, as its header says. `long`: what a chunk of long sizes says.
    fn end<S: Read + Seek>(self, fields: &mut Fields<'_, S>, long: Option<u64>) -> Result<Option<u64>> {
        const RIFF_HEADER: u64 = 8;
        let size = match (self, long) {
            (Self::Wave64, _) => return Ok(fields.get(16)?.map(u64::from_le_bytes)),
            (Self::Riff(_), Some(long)) => Some(long),
            (Self::Riff(_), None) => fields.get(4)?.map(|bytes| u64::from(self.u32(bytes))),
        };
        Ok(size.and_then(|size| size.checked_add(RIFF_HEADER)))
    }

    /// Where the chunk after this one is.
    fn next(self, chunk: &Chunk) -> u64 {
        let alignment = if self == Self::Wave64 { 8 } else { 2 };
        let size = chunk.size.checked_next_multiple_of(alignment);
        size.and_then(|size| chunk.body.checked_add(size)).unwrap_or(u64::MAX)
    }

    fn format<S: Read + Seek>(self, fields: &mut Fields<'_, S>, chunk: &Chunk) -> Result<Option<Format>> {
        const SUB_FORMAT: u64 = 24;
        if chunk.size < 16 {
            return Ok(None);
        }
        let Some([t0, t1, c0, c1, rate @ ..]) = fields.get::<8>(chunk.body)? else { return Ok(None) };
        let Some([b0, b1, w0, w1]) = fields.get::<4>(chunk.body + 12)? else { return Ok(None) };
        let mut tag = self.u16([t0, t1]);
        if tag == EXTENSIBLE
            && chunk.size >= SUB_FORMAT + 2
            && let Some(sub_format) = fields.get(chunk.body + SUB_FORMAT)?
        {
            tag = self.u16(sub_format);
        }
        Ok(Some(Format {
            tag,
            n_channels: self.u16([c0, c1]),
            rate_hz: self.u32(rate),
            block_bytes: self.u16([b0, b1]),
            bits: self.u16([w0, w1]),
        }))
    }

    /// Bytes of the samples that a data chunk announces; none if it does not know.
    fn sound_bytes<S: Read + Seek>(
        self,
        fields: &mut Fields<'_, S>,
        data: &Chunk,
        long_size: Option<u64>,
    ) -> Result<Option<u64>> {
        let size = match (self, long_size) {
            (Self::Riff(_), Some(long)) if data.size == u64::from(TO_THE_END) => long,
            _ => data.size,
        };
        let unknown = if size == 0 { !self.ends_with_chunks(fields, data.body)? } else { false };
        Ok((!unknown && !is_placeholder(size, fields.len - data.body.min(fields.len))).then_some(size))
    }

    /// Whether the rest of the file is a sequence of whole chunks.
    fn ends_with_chunks<S: Read + Seek>(self, fields: &mut Fields<'_, S>, mut at: u64) -> Result<bool> {
        for _ in 0..MAX_CHUNKS {
            if at >= fields.len {
                return Ok(at - fields.len <= 1);
            }
            let Some(chunk) = self.chunk(fields, at)? else { return Ok(false) };
            at = self.next(&chunk);
        }
        Ok(false)
    }
}

/// Whether a length was written before it was known. `left`: bytes that there are.
pub(super) fn is_placeholder(size: u64, left: u64) -> bool {
    let near = |limit: u64| size.abs_diff(limit) <= PLACEHOLDER_SLACK;
    size > left && (near(1 << 31) || near(1 << 32) || size > u64::MAX / 4)
}

impl Format {
    /// The layout of plain samples. They fill their bytes from the highest bit on, however many bits are said to count.
    pub(super) fn layout(&self, order: Order) -> Option<Layout> {
        let n_channels = usize::from(self.n_channels);
        let by_bits = usize::from(self.bits.div_ceil(8));
        let by_block = usize::from(self.block_bytes).checked_div(n_channels).unwrap_or(0);
        let bytes = if by_block >= by_bits && by_block * n_channels == usize::from(self.block_bytes) {
            by_block
        } else {
            by_bits
        };
        let encoding = match (self.tag, bytes) {
            (PCM, 1) => Encoding::Unsigned,
            (PCM, 2..=4) => Encoding::Signed(bytes),
            (IEEE_FLOAT, 4 | 8) => Encoding::Float(bytes),
            (A_LAW, 1) => Encoding::ALaw,
            (MU_LAW, 1) => Encoding::MuLaw,
            _ => return None,
        };
        let rate_hz = self.rate_hz;
        let (start, n_bytes, confirmed) = (0, None, false);
        Some(Layout { container: "wav", encoding, order, rate_hz, n_channels, start, n_bytes, confirmed })
    }
}
