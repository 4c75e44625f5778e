//! MPEG audio streams, layers 1 to 3: their frames, whatever stands between them, and [`decode`]. [`decode_inside`] does the
//! same inside of containers, for AAC in ADTS too.
//!
//! What counts is the frames that are there. A tag that counts them is believed about the encoder's delay, and about the
//! end of a file that stops before it. Sources: ISO 11172-3, 2.4.1 to 2.4.3; the description of the Xing, Info and VBRI
//! headers by Konrad Windszus (codeproject.com, 8295), ID3v2.4, 3.1.

use std::io::Read;

use symphonia::core::codecs::audio::well_known::{CODEC_ID_AAC, CODEC_ID_MP1, CODEC_ID_MP2, CODEC_ID_MP3};
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder};
use symphonia::core::packet::Packet;
use symphonia::core::units::{Duration, Timestamp};

use super::demux;
use super::elementary::{Elementary, Timeline};
use super::error::AudioErrorKind;
use super::frame::{HEADER_BYTES, Header, Syntax};
use super::recording::{Decoded, ENDS_EARLY, Recording};
use super::window::Window;

/// Bytes that are looked at beyond the present place: more than the longest frame and the header behind it.
const LOOK_AHEAD: usize = 1 << 14;

/// Frames of sound to a byte: 1152 in the shortest frame there is, of 24 bytes.
const MAX_FRAMES_PER_BYTE: u64 = 48;

/// Samples by which a decoder of layer 3 is late. Source: LAME, the comment on `DECDELAY` in its documentation.
const DECODER_DELAY: u64 = 529;

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
    window: Window<R>,
    syntax: Syntax,
    last: Option<Header>,
    /// Frames seen and their bytes, to tell how many a hole had.
    n_frames: u64,
    frame_bytes: u64,
}

impl<R: Read> Pieces<R> {
    fn new(src: R, syntax: Syntax) -> Self {
        Self { window: Window::new(src), syntax, last: None, n_frames: 0, frame_bytes: 0 }
    }

    fn ahead(&mut self) -> std::io::Result<&[u8]> {
        self.window.ahead(LOOK_AHEAD)
    }

    /// Passes over all tags that stand here.
    fn pass_tags(&mut self) -> std::io::Result<()> {
        while let Some(n) = tag_bytes(self.ahead()?) {
            self.window.pass(n)?;
        }
        Ok(())
    }

    /// Whether a stream begins here: with two frames of a kind, or with one that is all.
    fn begins(&mut self) -> std::io::Result<bool> {
        self.pass_tags()?;
        let syntax = self.syntax;
        let ahead = self.ahead()?;
        let Some(header) = Header::parse(ahead, syntax) else { return Ok(false) };
        let next = ahead.get(header.bytes..).and_then(|next| Header::parse(next, syntax));
        Ok(ahead.len() == header.bytes || next.is_some_and(|next| next.is_like(header)))
    }

    /// The next piece; none at the end.
    fn next(&mut self) -> std::io::Result<Option<Piece>> {
        self.pass_tags()?;
        let (last, syntax) = (self.last, self.syntax);
        let ahead = self.ahead()?;
        if ahead.is_empty() {
            return Ok(None);
        }
        // Like the last one, or the first of another kind.
        let expected =
            |h: &Header| last.is_some_and(|last| h.is_like(last)) || is_confirmed(ahead, 0, *h, last, syntax);
        let Some(header) = Header::parse(ahead, syntax).filter(expected) else {
            return self.hole().map(Some);
        };
        let cut = ahead.len() < header.bytes;
        // Frames inside show that the length is wrong.
        let confirmed = |i: usize| {
            Header::parse(&ahead[i..], syntax).is_some_and(|h| is_confirmed(ahead, i, h, Some(header), syntax))
        };
        if cut && (1..ahead.len()).any(confirmed) {
            return self.hole().map(Some);
        }
        let frame = ahead[..header.bytes.min(ahead.len())].to_vec();
        let tag = Tag::parse(header, &frame);
        self.last = Some(header);
        self.window.pass(frame.len() as u64)?;
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
        let (last, syntax) = (self.last, self.syntax);
        let mut passed = 0u64;
        let mut silent = true;
        loop {
            let ahead = self.ahead()?;
            if ahead.is_empty() {
                break;
            }
            // Only places with a whole frame ahead are judged, unless the stream ends.
            let n_judged = if ahead.len() >= LOOK_AHEAD { ahead.len() - LOOK_AHEAD + 1 } else { ahead.len() };
            let found = (0..n_judged).find(|&i| {
                (passed + i as u64 > 0 && tag_bytes(&ahead[i..]).is_some())
                    || Header::parse(&ahead[i..], syntax).is_some_and(|h| is_confirmed(ahead, i, h, last, syntax))
            });
            let step = found.unwrap_or(n_judged);
            silent &= ahead[..step].iter().all(|&b| b == 0);
            self.window.pass(step as u64)?;
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

/// Whether the frame at this place is followed by one like it, or by the end.
fn is_confirmed(bytes: &[u8], at: usize, header: Header, last: Option<Header>, syntax: Syntax) -> bool {
    let end = at + header.bytes;
    if end >= bytes.len() {
        return last.is_none_or(|last| header.is_like(last)) && end == bytes.len();
    }
    Header::parse(&bytes[end..], syntax).is_some_and(|next| next.is_like(header))
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
    Pieces::new(src, Syntax::Mpeg).begins()
}

/// Reads a stream that is known to be one. What is before its first frame is passed over.
///
/// Errors: no frames can be decoded, samples that are not accepted, too many of them.
pub(super) fn decode(src: impl Read) -> Result<Decoded, AudioErrorKind> {
    let mut pieces = Pieces::new(src, Syntax::Mpeg);
    let mut stream = Stream::default();
    while let Some(piece) = pieces.next().map_err(AudioErrorKind::Io)? {
        match piece {
            Piece::Tag(tag) => stream.begin(tag),
            Piece::Frame(header, bytes) => stream.frame(header, bytes)?,
            Piece::Hole(n) => stream.hole(n)?,
            Piece::Cut(header) => stream.cut(header),
        }
    }
    let (recording, codec) = stream.finish();
    recording.finish(codec, codec, None)
}

/// Reads the stream inside of a container of `len` bytes; gives it with the name of its codec.
///
/// A frame that is cut at a break or at the end is none.
/// Errors: a codec that is not decoded, samples that are not accepted, too many of them.
pub(super) fn decode_inside(
    src: &mut impl Elementary,
    syntax: Syntax,
    container: &'static str,
    len: u64,
) -> Result<(Recording, &'static str), AudioErrorKind> {
    let mut stream = Stream { container, ..Stream::default() };
    let mut timeline = Timeline::new(len);
    while src.resume().map_err(AudioErrorKind::Io)? {
        if stream.last.is_some() {
            timeline.broken(&stream.recording, 0);
        }
        let mut pieces = Pieces { last: stream.last, ..Pieces::new(&mut *src, syntax) };
        loop {
            let at = pieces.window.offset();
            let Some(piece) = pieces.next().map_err(AudioErrorKind::Io)? else { break };
            if let Some(time_s) = pieces.window.source().time_s(at) {
                timeline.check(time_s, &mut stream.recording)?;
            }
            match piece {
                Piece::Tag(tag) => stream.begin(tag),
                Piece::Frame(header, bytes) => {
                    timeline.frame(bytes.len());
                    stream.frame(header, bytes)?;
                }
                Piece::Hole(n) => {
                    // Times inside are those of frames that are gone.
                    let end = pieces.window.offset();
                    pieces.window.source().time_s(end.saturating_sub(1));
                    match stream.last {
                        Some(header) if timeline.runs() => {
                            timeline.broken(&stream.recording, n.saturating_mul(header.n_samples()));
                        }
                        _ => stream.hole(n)?,
                    }
                }
                Piece::Cut(_) => {}
            }
        }
    }
    timeline.finish(&mut stream.recording)?;
    Ok(stream.finish())
}

/// What a stream gave so far.
#[derive(Default)]
struct Stream {
    recording: Recording,
    decoder: Option<(Header, Box<dyn AudioDecoder>)>,
    codec: &'static str,
    container: &'static str,
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
            self.decoder = match open_decoder(header, self.container) {
                Ok(decoder) => Some((header, decoder)),
                Err(e) if self.last.is_none() => return Err(e),
                Err(e) => return self.recording.bad_packet(header.rate_hz, header.n_samples(), &e.to_string()),
            };
        }
        self.part_frames += 1;
        self.part_bytes += bytes.len() as u64;
        self.n_bytes += bytes.len() as u64;
        self.last = Some(header);
        self.codec = header.codec();
        let Some((_, decoder)) = &mut self.decoder else { return Ok(()) };
        let bytes = bytes[header.lead_bytes..].to_vec();
        let packet = Packet::new(0, Timestamp::ZERO, Duration::from(header.n_samples() as u64), bytes);
        match decoder.decode(&packet) {
            Ok(buffer) => self.recording.packet(&buffer),
            Err(e) => self.recording.bad_packet(header.rate_hz, header.n_samples(), &demux::reason(&e)),
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

    fn finish(mut self) -> (Recording, &'static str) {
        self.end_part();
        if let (Some(n_frames), Some(header)) = (self.tag.n_frames, self.last)
            && self.tag.n_bytes.is_none_or(|n_bytes| n_bytes > self.part_bytes)
            && n_frames > self.part_frames
        {
            let n = (n_frames * header.n_samples() as u64).saturating_sub(self.tag.delay + self.tag.padding);
            self.recording.could_hold(self.n_bytes * MAX_FRAMES_PER_BYTE);
            self.recording.announced_end(self.part_start_s + n as f64 / f64::from(header.rate_hz), 0.0);
        }
        (self.recording, self.codec)
    }
}

fn open_decoder(header: Header, container: &'static str) -> Result<Box<dyn AudioDecoder>, AudioErrorKind> {
    let mut params = AudioCodecParameters::new();
    params.for_codec(match header.layer {
        0 => CODEC_ID_AAC,
        1 => CODEC_ID_MP1,
        2 => CODEC_ID_MP2,
        _ => CODEC_ID_MP3,
    });
    params.with_sample_rate(header.rate_hz);
    if header.layer == 0 {
        params.with_extra_data(Box::new(header.aac_config));
    }
    demux::open_decoder(&params, container)
}

#[cfg(test)]
mod tests {
    use super::*;

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
