//! MPEG audio streams, layers 1 to 3: their frames, whatever stands between them, and [`decode`].
//!
//! What counts is the frames that are there. A tag that counts them is believed about the encoder's delay, and about the
//! end of a file that stops before it. Sources: ISO 11172-3, 2.4.1 to 2.4.3; ISO 13818-3, 2.4.2.3; the description of the
//! Xing, Info and VBRI headers by Konrad Windszus (codeproject.com, 8295), ID3v2.4, 3.1.

use std::io::Read;

use symphonia::core::codecs::audio::well_known::{CODEC_ID_MP1, CODEC_ID_MP2, CODEC_ID_MP3};
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::packet::Packet;
use symphonia::core::units::{Duration, Timestamp};

use super::decode::Decoded;
use super::error::AudioErrorKind;
use super::recording::{ENDS_EARLY, Recording};

/// Bytes that are looked at beyond the present place: more than the longest frame and the header behind it.
const LOOK_AHEAD: usize = 1 << 13;

/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 16;

/// Header and length of a frame.
const HEADER_BYTES: usize = 4;

/// Frames of sound to a byte: 1152 in the shortest frame there is, of 24 bytes.
const MAX_FRAMES_PER_BYTE: u64 = 48;

/// Samples by which a decoder of layer 3 is late. Source: LAME, the comment on `DECDELAY` in its documentation.
const DECODER_DELAY: u64 = 529;

/// kbit/s by the field's value; for layers 1, 2 and 3 of MPEG-1, for layer 1 and for layers 2 and 3 of MPEG-2.
const BIT_RATES: [[u16; 15]; 5] = [
    [0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448],
    [0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
    [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
    [0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
    [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
];

/// Sample rates of MPEG-1. Those of MPEG-2 are half, of MPEG-2.5 a quarter.
const RATES_HZ: [u32; 3] = [44_100, 48_000, 32_000];

/// What the first four bytes of a frame say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    layer: u8,
    mpeg1: bool,
    rate_hz: u32,
    n_channels: u8,
    /// Length of the frame, its header included.
    bytes: usize,
}

impl Header {
    fn parse(word: [u8; HEADER_BYTES]) -> Option<Self> {
        let bits = u32::from_be_bytes(word);
        let field = |at: u32, n: u32| (bits >> at & ((1 << n) - 1)) as usize;
        if field(21, 11) != 0x7ff {
            return None;
        }
        let halvings = match field(19, 2) {
            0 => 2,
            2 => 1,
            3 => 0,
            _ => return None,
        };
        let mpeg1 = halvings == 0;
        let layer = match field(17, 2) {
            1..=3 => 4 - field(17, 2) as u8,
            _ => return None,
        };
        let table = match (mpeg1, layer) {
            (true, layer) => usize::from(layer) - 1,
            (false, 1) => 3,
            (false, _) => 4,
        };
        let kbps = u32::from(*BIT_RATES[table].get(field(12, 4)).filter(|&&k| k > 0)?);
        let rate_hz = RATES_HZ.get(field(10, 2))? >> halvings;
        let mono = field(6, 2) == 3;
        let slots = |factor: u32| (factor * kbps * 1000 / rate_hz) as usize + field(9, 1);
        let bytes = match layer {
            1 => slots(12) * 4,
            3 if !mpeg1 => slots(72),
            _ => slots(144),
        };
        // Layer 2 has no narrow stereo and no wide mono.
        let allowed = layer != 2 || !mpeg1 || if mono { kbps <= 192 } else { ![32, 48, 56, 80].contains(&kbps) };
        allowed.then_some(Self { layer, mpeg1, rate_hz, n_channels: if mono { 1 } else { 2 }, bytes })
    }

    /// Frames of sound in a packet.
    fn n_samples(self) -> usize {
        match (self.layer, self.mpeg1) {
            (1, _) => 384,
            (3, false) => 576,
            _ => 1152,
        }
    }

    /// Whether a stream goes on in the same way.
    fn is_like(self, other: Self) -> bool {
        (self.layer, self.mpeg1, self.rate_hz, self.n_channels)
            == (other.layer, other.mpeg1, other.rate_hz, other.n_channels)
    }

    /// Bytes between the header and the main data of a frame of layer 3.
    fn side_bytes(self) -> usize {
        match (self.mpeg1, self.n_channels) {
            (true, 1) | (false, 2) => 17,
            (true, _) => 32,
            (false, _) => 9,
        }
    }
}

/// What the frame says that an encoder puts before its sound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tag {
    n_frames: Option<u64>,
    n_bytes: Option<u64>,
    delay: u64,
    padding: u64,
}

impl Tag {
    fn parse(header: Header, frame: &[u8]) -> Option<Self> {
        const VBRI: usize = HEADER_BYTES + 32;
        let word = |at: usize| frame.get(at..at + 4).and_then(|b| b.first_chunk()).map(|b| u32::from_be_bytes(*b));
        if header.layer != 3 {
            return None;
        }
        if frame.get(VBRI..VBRI + 4)? == b"VBRI" {
            let count = |at| word(VBRI + at).map(u64::from);
            return Some(Self { n_bytes: count(10), n_frames: count(14), ..Self::default() });
        }
        let start = HEADER_BYTES + header.side_bytes();
        if ![&b"Xing"[..], b"Info"].contains(&frame.get(start..start + 4)?) {
            return None;
        }
        let flags = word(start + 4)?;
        let mut at = start + 8;
        let mut field = |bit: u32, bytes: usize| {
            let here = at;
            let present = flags >> bit & 1 == 1;
            at += if present { bytes } else { 0 };
            present.then_some(here)
        };
        let n_frames = field(0, 4).and_then(word).map(u64::from);
        let n_bytes = field(1, 4).and_then(word).map(u64::from);
        field(2, 100);
        field(3, 4);
        let mut tag = Self { n_frames, n_bytes, ..Self::default() };
        let encoder = frame.get(at..at + 4);
        if let (Some(b"LAME" | b"Lavf" | b"Lavc"), Some(gaps)) = (encoder, word(at + 20)) {
            // Twelve bits each, behind a byte of another field.
            tag.delay = u64::from(gaps >> 12 & 0xfff) + DECODER_DELAY;
            tag.padding = u64::from(gaps & 0xfff).saturating_sub(DECODER_DELAY);
        }
        Some(tag)
    }
}

/// A piece of a stream.
enum Piece {
    /// A frame of sound.
    Frame(Header, Vec<u8>),
    /// The sound that begins here was encoded by itself.
    Tag(Tag),
    /// Bytes that are no frames, where this many have been.
    Hole(usize),
    /// A frame whose end is not there.
    Cut(Header),
}

/// The pieces of a stream.
struct Pieces<R> {
    src: R,
    buf: Vec<u8>,
    at: usize,
    ended: bool,
    last: Option<Header>,
    /// Frames seen and their bytes, to tell how many a hole had.
    n_frames: u64,
    frame_bytes: u64,
}

impl<R: Read> Pieces<R> {
    fn new(src: R) -> Self {
        Self { src, buf: Vec::new(), at: 0, ended: false, last: None, n_frames: 0, frame_bytes: 0 }
    }

    /// At least `n` bytes from here on, unless the stream ends before.
    fn ahead(&mut self, n: usize) -> std::io::Result<&[u8]> {
        if self.buf.len() - self.at < n && !self.ended {
            self.buf.drain(..self.at);
            self.at = 0;
            let missing = n.max(READ_BYTES) - self.buf.len().min(n);
            let got = self.src.by_ref().take(missing as u64).read_to_end(&mut self.buf)?;
            self.ended = got < missing;
        }
        Ok(&self.buf[self.at..])
    }

    /// Passes over `n` bytes.
    fn pass(&mut self, mut n: u64) -> std::io::Result<()> {
        while n > 0 {
            let there = self.ahead(1)?.len() as u64;
            if there == 0 {
                break;
            }
            let step = there.min(n);
            self.at += step as usize;
            n -= step;
        }
        Ok(())
    }

    /// Passes over all tags that stand here.
    fn pass_tags(&mut self) -> std::io::Result<()> {
        while let Some(n) = tag_bytes(self.ahead(LOOK_AHEAD)?) {
            self.pass(n)?;
        }
        Ok(())
    }

    /// Whether a stream begins here: with two frames of a kind, or with one that is all.
    fn begins(&mut self) -> std::io::Result<bool> {
        self.pass_tags()?;
        let ahead = self.ahead(LOOK_AHEAD)?;
        let Some(header) = header_at(ahead, 0) else { return Ok(false) };
        Ok(ahead.len() == header.bytes || header_at(ahead, header.bytes).is_some_and(|next| next.is_like(header)))
    }

    /// The next piece; none at the end.
    fn next(&mut self) -> std::io::Result<Option<Piece>> {
        self.pass_tags()?;
        let last = self.last;
        let ahead = self.ahead(LOOK_AHEAD)?;
        if ahead.is_empty() {
            return Ok(None);
        }
        let Some(header) = header_at(ahead, 0).filter(|&header| is_frame(ahead, 0, header, last)) else {
            return self.hole().map(Some);
        };
        let frame = ahead[..header.bytes.min(ahead.len())].to_vec();
        let cut = frame.len() < header.bytes;
        let tag = Tag::parse(header, &frame);
        self.last = Some(header);
        self.at += frame.len();
        if cut {
            return Ok(Some(Piece::Cut(header)));
        }
        if let Some(tag) = tag {
            return Ok(Some(Piece::Tag(tag)));
        }
        self.n_frames += 1;
        self.frame_bytes += frame.len() as u64;
        Ok(Some(Piece::Frame(header, frame)))
    }

    /// Passes over what is no frame.
    fn hole(&mut self) -> std::io::Result<Piece> {
        let last = self.last;
        let mut passed = 0u64;
        let mut silent = true;
        loop {
            let ahead = self.ahead(LOOK_AHEAD)?;
            if ahead.is_empty() {
                break;
            }
            // Only places with a whole frame ahead are judged, unless the stream ends.
            let n_judged = if ahead.len() >= LOOK_AHEAD { ahead.len() - LOOK_AHEAD + 1 } else { ahead.len() };
            let found = (0..n_judged).find(|&i| {
                (passed + i as u64 > 0 && tag_bytes(&ahead[i..]).is_some())
                    || header_at(ahead, i).is_some_and(|h| is_confirmed(ahead, i, h, last))
            });
            let step = found.unwrap_or(n_judged);
            silent &= ahead[..step].iter().all(|&b| b == 0);
            self.at += step;
            passed += step as u64;
            if found.is_some() {
                break;
            }
        }
        // Zeros are padding.
        if self.n_frames == 0 || silent {
            return Ok(Piece::Hole(0));
        }
        let n = (passed * self.n_frames + self.frame_bytes / 2) / self.frame_bytes;
        Ok(Piece::Hole(usize::try_from(n).unwrap_or(usize::MAX)))
    }
}

fn header_at(bytes: &[u8], at: usize) -> Option<Header> {
    bytes.get(at..)?.first_chunk().and_then(|word| Header::parse(*word))
}

/// Whether a frame is to be expected at this place: like the last one, or the first of another kind.
fn is_frame(bytes: &[u8], at: usize, header: Header, last: Option<Header>) -> bool {
    last.is_some_and(|last| header.is_like(last)) || is_confirmed(bytes, at, header, last)
}

/// Whether the frame at this place is followed by one like it, or by the end.
fn is_confirmed(bytes: &[u8], at: usize, header: Header, last: Option<Header>) -> bool {
    let end = at + header.bytes;
    if end >= bytes.len() {
        return last.is_none_or(|last| header.is_like(last)) && end == bytes.len();
    }
    header_at(bytes, end).is_some_and(|next| next.is_like(header))
        || last.is_some_and(|last| header.is_like(last)) && tag_bytes(&bytes[end..]).is_some()
}

/// Length of the tag that stands at the start of `bytes`: ID3 of either version, APE, Lyrics3.
fn tag_bytes(bytes: &[u8]) -> Option<u64> {
    const ID3V1_BYTES: u64 = 128;
    const APE_HEADER_BYTES: u64 = 32;
    match bytes {
        [b'I', b'D', b'3', version @ 2..=4, _, flags, size @ ..] => {
            let size = size.first_chunk::<4>().filter(|s| s.iter().all(|b| b & 0x80 == 0))?;
            let body = size.iter().fold(0u64, |n, &b| n << 7 | u64::from(b));
            let footer = if *version == 4 && flags & 0x10 != 0 { 10 } else { 0 };
            Some(10 + body + footer)
        }
        [b'T', b'A', b'G', ..] => Some(ID3V1_BYTES),
        [b'A', b'P', b'E', b'T', b'A', b'G', b'E', b'X', _, _, _, _, a, b, c, d, ..] => {
            Some(APE_HEADER_BYTES + u64::from(u32::from_le_bytes([*a, *b, *c, *d])))
        }
        [b'L', b'Y', b'R', b'I', b'C', b'S', b'B', b'E', b'G', b'I', b'N', rest @ ..] => {
            let end = rest.windows(9).position(|w| w == b"LYRICS200" || w == b"LYRICSEND")?;
            Some(11 + end as u64 + 9)
        }
        _ => None,
    }
}

/// Whether a stream begins at the start of `src`, behind its tags.
pub(super) fn begins(src: impl Read) -> std::io::Result<bool> {
    Pieces::new(src).begins()
}

/// Reads a stream that is known to be one. What is before its first frame is passed over.
///
/// Errors: no frames can be decoded, samples that are not accepted, too many of them.
pub(super) fn decode(src: impl Read) -> Result<Decoded, AudioErrorKind> {
    let mut pieces = Pieces::new(src);
    let mut stream = Stream::default();
    while let Some(piece) = pieces.next().map_err(AudioErrorKind::Io)? {
        match piece {
            Piece::Tag(tag) => stream.begin(tag),
            Piece::Frame(header, bytes) => stream.frame(header, bytes)?,
            Piece::Hole(n) => stream.hole(n)?,
            Piece::Cut(header) => stream.cut(header),
        }
    }
    stream.finish()
}

/// What a stream gave so far.
#[derive(Default)]
struct Stream {
    recording: Recording,
    decoder: Option<(Header, Box<dyn AudioDecoder>)>,
    codec: &'static str,
    /// The tag of the present part, with where it begins, its frames and their bytes.
    tag: Tag,
    part_start_s: f64,
    part_frames: u64,
    part_bytes: u64,
    /// Bytes of all frames.
    n_bytes: u64,
    last: Option<Header>,
}

impl Stream {
    fn begin(&mut self, tag: Tag) {
        self.end_part();
        self.decoder = None;
        self.tag = tag;
        self.part_start_s = self.recording.position_s();
        (self.part_frames, self.part_bytes) = (0, 0);
        self.recording.skip(tag.delay);
    }

    /// Takes back what the encoder filled the last frames of a part with.
    fn end_part(&mut self) {
        if self.tag.n_frames == Some(self.part_frames) {
            self.recording.take_back(usize::try_from(self.tag.padding).unwrap_or(usize::MAX));
        }
    }

    fn frame(&mut self, header: Header, bytes: Vec<u8>) -> Result<(), AudioErrorKind> {
        let changed = self.decoder.as_ref().is_none_or(|(of, _)| !of.is_like(header));
        if changed {
            self.decoder = Some((header, open_decoder(header)?));
        }
        self.part_frames += 1;
        self.part_bytes += bytes.len() as u64;
        self.n_bytes += bytes.len() as u64;
        self.last = Some(header);
        self.codec = codec_name(header);
        let Some((_, decoder)) = &mut self.decoder else { return Ok(()) };
        let packet = Packet::new(0, Timestamp::ZERO, Duration::from(header.n_samples() as u64), bytes);
        match decoder.decode(&packet) {
            Ok(buffer) => self.recording.packet(&buffer),
            Err(e) => self.recording.bad_packet(header.rate_hz, header.n_samples(), &super::demux::reason(&e)),
        }
    }

    fn hole(&mut self, n: usize) -> Result<(), AudioErrorKind> {
        const WHAT: &str = "bytes that are no MPEG frames";
        let Some(header) = self.last.filter(|_| n > 0) else { return Ok(()) };
        if let Some((_, decoder)) = &mut self.decoder {
            decoder.reset();
        }
        self.part_frames += n as u64;
        self.recording.hole(header.rate_hz, n.saturating_mul(header.n_samples()), WHAT)
    }

    fn cut(&mut self, header: Header) {
        self.last = self.last.or(Some(header));
        let end_s = self.recording.position_s() + header.n_samples() as f64 / f64::from(header.rate_hz);
        self.recording.lost(end_s, ENDS_EARLY);
    }

    fn finish(mut self) -> Result<Decoded, AudioErrorKind> {
        self.end_part();
        if let (Some(n_frames), Some(header)) = (self.tag.n_frames, self.last)
            && self.tag.n_bytes.is_none_or(|n_bytes| n_bytes > self.part_bytes)
            && n_frames > self.part_frames
        {
            let n = (n_frames * header.n_samples() as u64).saturating_sub(self.tag.delay + self.tag.padding);
            self.recording.could_hold(self.n_bytes * MAX_FRAMES_PER_BYTE);
            self.recording.announced_end(self.part_start_s + n as f64 / f64::from(header.rate_hz), 0.0);
        }
        self.recording.finish(self.codec, self.codec, None)
    }
}

fn codec_name(header: Header) -> &'static str {
    match header.layer {
        1 => "mp1",
        2 => "mp2",
        _ => "mp3",
    }
}

fn open_decoder(header: Header) -> Result<Box<dyn AudioDecoder>, AudioErrorKind> {
    let mut params = AudioCodecParameters::new();
    params.for_codec(match header.layer {
        1 => CODEC_ID_MP1,
        2 => CODEC_ID_MP2,
        _ => CODEC_ID_MP3,
    });
    params.with_sample_rate(header.rate_hz);
    let codecs = symphonia::default::get_codecs();
    let made = codecs.make_audio_decoder(&params, &AudioDecoderOptions::default());
    made.map_err(|e| AudioErrorKind::Container { why: super::demux::reason(&e) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_length_and_kind() {
        let header = |word| Header::parse(word);
        let mp3 = header([0xff, 0xfb, 0x90, 0x44]).unwrap(); // MPEG-1 layer 3, 128 kbit/s, 44100 Hz, joint stereo
        assert_eq!((mp3.layer, mp3.rate_hz, mp3.n_channels, mp3.bytes, mp3.n_samples()), (3, 44_100, 2, 417, 1152));
        let low = header([0xff, 0xf3, 0x48, 0xc4]).unwrap(); // MPEG-2 layer 3, 32 kbit/s, 16 kHz, mono
        assert_eq!((low.layer, low.rate_hz, low.n_channels, low.bytes, low.n_samples()), (3, 16_000, 1, 144, 576));
        let mp2 = header([0xff, 0xfd, 0xa4, 0x04]).unwrap(); // MPEG-1 layer 2, 192 kbit/s, 48 kHz, stereo
        assert_eq!((mp2.layer, mp2.rate_hz, mp2.bytes, mp2.n_samples()), (2, 48_000, 576, 1152));
        for word in
            [[0xff, 0xfb, 0x00, 0x44], [0xff, 0xfb, 0x9c, 0x44], [0xff, 0xf9, 0x90, 0x44], [0xfe, 0xfb, 0x90, 0]]
        {
            assert_eq!(header(word), None, "{word:x?}");
        }
    }

    #[test]
    fn tags_of_other_kinds_are_passed_over() {
        assert_eq!(tag_bytes(b"ID3\x04\0\0\0\0\x01\x02rest"), Some(140));
        assert_eq!(tag_bytes(b"ID3\x04\0\x10\0\0\0\x02rest"), Some(22));
        assert_eq!(tag_bytes(b"ID3\x04\0\0\0\0\x81\x02rest"), None);
        assert_eq!(tag_bytes(b"TAGtitle"), Some(128));
        assert_eq!(tag_bytes(b"APETAGEX\xd0\x07\0\0\x20\0\0\0rest"), Some(64));
        assert_eq!(tag_bytes(b"\xff\xfb\x90\x44"), None);
    }
}
