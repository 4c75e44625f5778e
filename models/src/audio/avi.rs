//! AVI files: which of their streams has sound that can be decoded, and the chunks of it.
//!
//! Lengths of lists and indices are not needed, nor read. Sources: Microsoft, AVI RIFF File Reference and mmreg.h; OpenDML AVI
//! File Format Extensions, version 1.02.

use std::io::{BufReader, Read, Result, Seek, SeekFrom};

use symphonia::core::audio::Channels;
use symphonia::core::codecs::audio::well_known::{CODEC_ID_AAC, CODEC_ID_ADPCM_IMA_WAV, CODEC_ID_ADPCM_MS};
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder};
use symphonia::core::packet::Packet;
use symphonia::core::units::{Duration, Timestamp};

use super::demux::{self, NO_DECODER, frames_per_byte, open_decoder};
use super::elementary::{Elementary, Timeline, Times, first};
use super::error::{AudioErrorKind, UNKNOWN_TRACK};
use super::fields::Fields;
use super::frame::Syntax;
use super::pcm::{Layout, Order};
use super::recording::{Decoded, MAX_STRETCH, Recording, check_channels, check_rate};
use super::{mpeg, names, pcm, wav};

/// Short name of the container.
const NAME: &str = "avi";

/// Chunks before the sound that are looked at, and streams that are listed.
const MAX_CHUNKS: usize = 4096;
const MAX_STREAMS: usize = 100;

/// Length of the header of a chunk, and of a list with its name.
const CHUNK_HEADER: u64 = 8;
const LIST_HEADER: u64 = 12;

/// Bytes of the longest packet of AAC, and of its configuration.
const MAX_PACKET_BYTES: u64 = 1 << 16;
const MAX_CONFIG_BYTES: u64 = 64;

/// Samples of a channel in a packet of AAC.
const AAC_SAMPLES: u64 = 1024;

/// Bytes that are read at once: more than the chunk of a frame, so that the header behind it is at hand.
const READ_BYTES: usize = 1 << 18;

/// Codes of formats that are decoded and not plain.
const ADPCM_MS: u16 = 0x0002;
const ADPCM_IMA: u16 = 0x0011;
const MPEG_LAYERS_1_2: u16 = 0x0050;
const MPEG_LAYER_3: u16 = 0x0055;
const AAC: u16 = 0x00ff;
const AAC_ADTS: u16 = 0x1600;

/// Whether an AVI file begins so.
pub(super) fn begins(head: &[u8]) -> bool {
    head.starts_with(b"RIFF") && head.get(8..).is_some_and(|kind| kind.starts_with(b"AVI "))
}

/// Decodes the first track that can be; none if this is no AVI file.
///
/// Errors: no list of chunks, no sound, none that can be decoded; samples that are not accepted, too many of them.
pub(super) fn decode(src: &mut (impl Read + Seek), len: u64) -> std::result::Result<Option<Decoded>, AudioErrorKind> {
    let mut fields = Fields::new(&mut *src, len);
    let head: Option<[u8; 12]> = fields.get(0).map_err(AudioErrorKind::Io)?;
    if !head.is_some_and(|head| begins(&head)) {
        return Ok(None);
    }
    let (streams, movi) = inspect(&mut fields).map_err(AudioErrorKind::Io)?;
    let Some(movi) = movi else {
        return Err(AudioErrorKind::Container { why: "no list of sound and pictures (movi)".into() });
    };
    let tracks: Vec<&Stream> = streams.iter().filter(|s| &s.kind == b"auds").collect();
    let decoded = first(tracks.len(), |i| {
        let sound = Sound::new(&mut *src, len, movi, streams.len(), tracks[i]).map_err(AudioErrorKind::Io)?;
        tracks[i].decode(sound, len)
    });
    decoded.transpose()?.map(Some).ok_or_else(|| AudioErrorKind::NoAudioTrack {
        container: NAME,
        tracks: streams.iter().map(Stream::name).collect(),
    })
}

/// What is said of a stream.
struct Stream {
    number: usize,
    kind: [u8; 4],
    handler: [u8; 4],
    /// A unit lasts `scale / rate` seconds.
    scale: u32,
    rate: u32,
    /// Units before the sound, and of the sound.
    start: u32,
    length: u32,
    /// Bytes of a unit; 0 where each is a chunk.
    unit_bytes: u32,
    format: Option<wav::Format>,
    /// What is behind the format, to configure a decoder.
    config: Vec<u8>,
}

/// The streams of a file, and where their chunks begin.
fn inspect<S: Read + Seek>(fields: &mut Fields<'_, S>) -> Result<(Vec<Stream>, Option<u64>)> {
    let mut streams: Vec<Stream> = Vec::new();
    let mut at = LIST_HEADER;
    for _ in 0..MAX_CHUNKS {
        let Some(tag) = fields.get::<4>(at)? else { break };
        let Some(size) = fields.get(at + 4)?.map(u32::from_le_bytes) else { break };
        let body = at + CHUNK_HEADER;
        match &tag {
            b"LIST" => {
                at += LIST_HEADER;
                if fields.get(body)? == Some(*b"movi") {
                    return Ok((streams, Some(at)));
                }
                continue;
            }
            b"strh" if streams.len() < MAX_STREAMS => streams.extend(stream(fields, body, streams.len())?),
            b"strf" => {
                if let Some(stream) = streams.last_mut().filter(|s| &s.kind == b"auds") {
                    stream.format = wav::format(fields, body, size.into())?;
                    stream.config = config(fields, body)?;
                }
            }
            _ => {}
        }
        at = body + u64::from(size).next_multiple_of(2);
    }
    Ok((streams, None))
}

/// The header of a stream.
fn stream<S: Read + Seek>(fields: &mut Fields<'_, S>, at: u64, number: usize) -> Result<Option<Stream>> {
    let (Some(kind), Some(handler)) = (fields.get(at)?, fields.get(at + 4)?) else { return Ok(None) };
    let mut word = |offset: u64| -> Result<u32> { Ok(fields.get(at + offset)?.map_or(0, u32::from_le_bytes)) };
    let (scale, rate, start, length, unit_bytes) = (word(20)?, word(24)?, word(28)?, word(32)?, word(44)?);
    let (format, config) = (None, Vec::new());
    Ok(Some(Stream { number, kind, handler, scale, rate, start, length, unit_bytes, format, config }))
}

/// What follows a WAVEFORMATEX.
fn config<S: Read + Seek>(fields: &mut Fields<'_, S>, at: u64) -> Result<Vec<u8>> {
    const FORMAT_BYTES: u64 = 18;
    let n = fields.get(at + FORMAT_BYTES - 2)?.map_or(0, u16::from_le_bytes);
    let mut config = Vec::new();
    for i in 0..u64::from(n).min(MAX_CONFIG_BYTES) {
        config.extend(fields.get::<1>(at + FORMAT_BYTES + i)?.into_iter().flatten());
    }
    Ok(config)
}

impl Stream {
    fn name(&self) -> String {
        match &self.kind {
            b"vids" => format!("video {}", self.handler.escape_ascii().to_string().to_lowercase()),
            b"txts" => "subtitle".into(),
            _ => UNKNOWN_TRACK.into(),
        }
    }

    /// When a unit begins, in seconds.
    fn time_s(&self, unit: u64) -> f64 {
        unit as f64 * f64::from(self.scale) / f64::from(self.rate.max(1))
    }

    fn decode<S: Read + Seek>(
        &self,
        mut sound: Sound<'_, S>,
        len: u64,
    ) -> std::result::Result<Decoded, AudioErrorKind> {
        let refuse = |codec, why| Err(AudioErrorKind::Codec { codec, container: NAME, why });
        let Some(format) = &self.format else { return refuse("unknown".into(), "the file does not say which") };
        let codec = || names::with_channels(names::wave_format(format.tag), format.n_channels);
        let (mut recording, codec) = match (format.layout(Order::Little), format.tag) {
            (Some(layout), _) => plain(&mut sound, &layout)?,
            (None, MPEG_LAYERS_1_2 | MPEG_LAYER_3) => mpeg::decode_inside(&mut sound, Syntax::Mpeg, NAME, len)?,
            (None, AAC_ADTS) => mpeg::decode_inside(&mut sound, Syntax::Adts, NAME, len)?,
            (None, AAC) => self.aac(&mut sound, format, len)?,
            (None, ADPCM_MS | ADPCM_IMA) => match adpcm_params(format) {
                Some((params, n)) => adpcm(&mut sound, &params, n, format.block_bytes)?,
                None => return refuse(codec(), "its blocks have no length"),
            },
            _ => return refuse(codec(), NO_DECODER),
        };
        let could_hold = match format.layout(Order::Little) {
            Some(layout) => len / (layout.encoding.bytes() * layout.n_channels) as u64,
            None => len.saturating_mul(frames_per_byte(codec)),
        };
        recording.could_hold(could_hold);
        self.place(&sound, could_hold, &mut recording);
        recording.finish(NAME, codec, None)
    }

    /// Moves the sound to its start, and says what is missing at its end: units, which may be of different lengths.
    fn place<S>(&self, sound: &Sound<'_, S>, could_hold: u64, recording: &mut Recording) {
        let n_units = match u64::from(self.unit_bytes) {
            0 => sound.n_chunks,
            n => sound.total_bytes / n,
        };
        let n_missing = u64::from(self.length).saturating_sub(n_units);
        if n_units > 0 && n_missing > 0 {
            let missing_s = recording.position_s() / n_units as f64 * n_missing as f64;
            recording.announced_end(recording.position_s() + missing_s, 0.0);
        }
        let start_s = self.time_s(self.start.into());
        if start_s * f64::from(recording.rate_hz()) < could_hold.saturating_mul(MAX_STRETCH) as f64 {
            recording.move_by(start_s);
        }
    }

    /// A chunk is a packet.
    fn aac<S: Read + Seek>(
        &self,
        sound: &mut Sound<'_, S>,
        format: &wav::Format,
        len: u64,
    ) -> std::result::Result<(Recording, &'static str), AudioErrorKind> {
        let mut params = AudioCodecParameters::new();
        params.for_codec(CODEC_ID_AAC).with_sample_rate(format.rate_hz);
        params.with_channels(Channels::Discrete(format.n_channels));
        if !self.config.is_empty() {
            params.with_extra_data(self.config.clone().into());
        }
        let mut decoder = open_decoder(&params, NAME)?;
        let (mut recording, mut timeline) = (Recording::default(), Timeline::new(len));
        while sound.resume().map_err(AudioErrorKind::Io)? {
            if sound.n_chunks > 0 {
                timeline.broken(&recording, 0);
            }
            while let Some(bytes) = sound.packet().map_err(AudioErrorKind::Io)? {
                if let Some(time_s) = sound.time_s(u64::MAX) {
                    timeline.check(time_s, &mut recording)?;
                }
                if !bytes.is_empty() {
                    timeline.frame(bytes.len());
                    packet(&mut *decoder, bytes, (format.rate_hz, AAC_SAMPLES), &mut recording)?;
                }
            }
        }
        timeline.finish(&mut recording)?;
        Ok((recording, "aac"))
    }
}

/// Reads plain samples.
fn plain<S: Read + Seek>(
    sound: &mut Sound<'_, S>,
    layout: &Layout,
) -> std::result::Result<(Recording, &'static str), AudioErrorKind> {
    check_rate(layout.rate_hz)?;
    check_channels(layout.n_channels)?;
    let mut recording = Recording::default();
    while sound.resume().map_err(AudioErrorKind::Io)? {
        pcm::frames(sound, layout, &mut recording)?;
    }
    Ok((recording, layout.codec()))
}

/// What the decoder of ADPCM needs to know, and the frames of a block. Source: RFC 2361, A.2 and A.9.
fn adpcm_params(format: &wav::Format) -> Option<(AudioCodecParameters, u64)> {
    const SAMPLES_PER_BYTE: u64 = 2;
    let n_channels = u64::from(format.n_channels);
    let (codec, header_bytes, header_samples) = match format.tag {
        ADPCM_MS => (CODEC_ID_ADPCM_MS, 7, 2),
        _ => (CODEC_ID_ADPCM_IMA_WAV, 4, 1),
    };
    let body = u64::from(format.block_bytes).checked_sub(header_bytes * n_channels)?;
    let n = (body * SAMPLES_PER_BYTE).checked_div(n_channels)? + header_samples;
    let mut params = AudioCodecParameters::new();
    params.for_codec(codec).with_sample_rate(format.rate_hz).with_channels(Channels::Discrete(format.n_channels));
    params.with_max_frames_per_packet(n).with_frames_per_block(n);
    Some((params, n))
}

/// Reads blocks of ADPCM, of `n` frames.
fn adpcm<S: Read + Seek>(
    sound: &mut Sound<'_, S>,
    params: &AudioCodecParameters,
    n: u64,
    block_bytes: u16,
) -> std::result::Result<(Recording, &'static str), AudioErrorKind> {
    let mut decoder = open_decoder(params, NAME)?;
    let mut recording = Recording::default();
    while sound.resume().map_err(AudioErrorKind::Io)? {
        loop {
            let mut block = Vec::new();
            sound.take(block_bytes.into()).read_to_end(&mut block).map_err(AudioErrorKind::Io)?;
            if block.len() < usize::from(block_bytes) {
                break;
            }
            packet(&mut *decoder, block, (params.sample_rate.unwrap_or(0), n), &mut recording)?;
        }
    }
    Ok((recording, names::audio_codec(params.codec)))
}

/// Appends what a packet gives, or else `n` frames of silence.
fn packet(
    decoder: &mut dyn AudioDecoder,
    bytes: Vec<u8>,
    (rate_hz, n): (u32, u64),
    recording: &mut Recording,
) -> std::result::Result<(), AudioErrorKind> {
    match decoder.decode(&Packet::new(0, Timestamp::ZERO, Duration::from(n), bytes)) {
        Ok(buffer) => recording.packet(&buffer),
        Err(e) => recording.bad_packet(rate_hz, n as usize, &demux::reason(&e)),
    }
}

/// The chunks of a stream of sound.
struct Sound<'a, S> {
    src: BufReader<&'a mut S>,
    /// Where `src` stands, and the end of the file.
    place: u64,
    len: u64,
    stream: &'a Stream,
    n_streams: usize,
    /// The next chunk, and the bytes that are left of this one.
    next: u64,
    left: u64,
    /// Bytes are missing before the next chunk.
    broken: bool,
    resumed: bool,
    n_chunks: u64,
    total_bytes: u64,
    /// Bytes since the last break, and times with places among them.
    n_bytes: u64,
    times: Times,
}

impl<'a, S: Read + Seek> Sound<'a, S> {
    fn new(src: &'a mut S, len: u64, movi: u64, n_streams: usize, stream: &'a Stream) -> Result<Self> {
        src.seek(SeekFrom::Start(0))?;
        Ok(Self {
            src: BufReader::with_capacity(READ_BYTES, src),
            place: 0,
            len,
            stream,
            n_streams,
            next: movi,
            left: 0,
            broken: false,
            resumed: false,
            n_chunks: 0,
            total_bytes: 0,
            n_bytes: 0,
            times: Times::default(),
        })
    }

    fn go(&mut self, to: u64) -> Result<()> {
        self.src.seek_relative(to.cast_signed() - self.place.cast_signed())?;
        self.place = to;
        Ok(())
    }

    /// The header at `at`: its name and its length.
    fn header(&mut self, at: u64) -> Result<Option<([u8; 4], u64)>> {
        if at.checked_add(CHUNK_HEADER).is_none_or(|end| end > self.len) {
            return Ok(None);
        }
        self.go(at)?;
        let mut bytes = [0; CHUNK_HEADER as usize];
        self.src.read_exact(&mut bytes)?;
        self.place += CHUNK_HEADER;
        let [a, b, c, d, size @ ..] = bytes;
        let tag = [a, b, c, d];
        let size = u64::from(u32::from_le_bytes(size));
        let fits = is_list(tag) || self.number(tag).is_some() || size <= self.len - at - CHUNK_HEADER;
        Ok((fits && tag.iter().all(|byte| byte.is_ascii_alphanumeric())).then_some((tag, size)))
    }

    /// The number of the stream that a chunk with this name belongs to.
    fn number(&self, tag: [u8; 4]) -> Option<usize> {
        let [tens @ b'0'..=b'9', ones @ b'0'..=b'9', a, b] = tag else { return None };
        let number = usize::from(tens - b'0') * 10 + usize::from(ones - b'0');
        (number < self.n_streams && a.is_ascii_alphabetic() && b.is_ascii_alphabetic()).then_some(number)
    }

    /// Goes to the next chunk of the stream; false at the end and at a break.
    fn next_chunk(&mut self) -> Result<bool> {
        while !self.broken && self.next < self.len {
            let at = self.next;
            let Some((tag, size)) = self.header(at)? else {
                if at + CHUNK_HEADER > self.len {
                    break;
                }
                self.next = self.search(at + 1)?;
                self.broken = self.next < self.len;
                continue;
            };
            if is_list(tag) {
                self.next = at + LIST_HEADER;
                continue;
            }
            let body = at + CHUNK_HEADER;
            let (end, next, broken) = self.end(body, body + size)?;
            self.next = next;
            if self.number(tag) == Some(self.stream.number) {
                self.go(body)?;
                self.left = end - body;
                self.broken = broken;
                if self.stream.unit_bytes == 0 {
                    self.times.note(self.n_bytes, self.stream.time_s(self.n_chunks));
                }
                // One that is cut is none.
                self.n_chunks += u64::from(next < self.len || body + size <= self.len);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where a chunk ends that should end at `end`, where the next one is, and whether bytes between them are unknown.
    fn end(&mut self, body: u64, end: u64) -> Result<(u64, u64, bool)> {
        for next in [end + (end - body) % 2, end] {
            if next + CHUNK_HEADER > self.len && end <= self.len || self.header(next)?.is_some() {
                return Ok((end, next, false));
            }
        }
        let next = self.search(body)?;
        Ok((end.min(next), next, next > end))
    }

    /// The first place from `at` on where a chunk of a stream, or a list of them, seems to begin; else the end.
    fn search(&mut self, at: u64) -> Result<u64> {
        const BLOCK_BYTES: u64 = 1 << 16;
        let mut from = at;
        let mut block = Vec::new();
        while from + CHUNK_HEADER <= self.len {
            self.go(from)?;
            block.clear();
            let n = self.src.by_ref().take(BLOCK_BYTES).read_to_end(&mut block)? as u64;
            self.place += n;
            let begins = |bytes: &[u8; CHUNK_HEADER as usize], i: u64| {
                let [a, b, c, d, size @ ..] = *bytes;
                let fits = u64::from(u32::from_le_bytes(size)) <= self.len - from - i - CHUNK_HEADER;
                is_list([a, b, c, d]) || fits && self.number([a, b, c, d]).is_some()
            };
            let windows = block.windows(CHUNK_HEADER as usize).filter_map(|w| w.first_chunk());
            if let Some((i, _)) = windows.enumerate().find(|&(i, bytes)| begins(bytes, i as u64)) {
                return Ok(from + i as u64);
            }
            from += n.saturating_sub(CHUNK_HEADER - 1).max(1);
        }
        Ok(self.len)
    }

    /// The next chunk as a whole; none at the end and at a break. One that is too long for a packet is passed over.
    fn packet(&mut self) -> Result<Option<Vec<u8>>> {
        if !self.next_chunk()? {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let n = self.left.min(MAX_PACKET_BYTES);
        self.take(n).read_to_end(&mut bytes)?;
        self.left = 0;
        Ok(Some(bytes))
    }
}

fn is_list(tag: [u8; 4]) -> bool {
    &tag == b"LIST" || &tag == b"RIFF"
}

impl<S: Read + Seek> Read for Sound<'_, S> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        while self.left == 0 {
            if !self.next_chunk()? {
                return Ok(0);
            }
        }
        let n = self.src.by_ref().take(self.left).read(buf)?;
        // The file may have become shorter.
        self.left = if n == 0 { 0 } else { self.left - n as u64 };
        self.place += n as u64;
        self.n_bytes += n as u64;
        self.total_bytes += n as u64;
        Ok(n)
    }
}

impl<S: Read + Seek> Elementary for Sound<'_, S> {
    fn time_s(&mut self, offset: u64) -> Option<f64> {
        self.times.take(offset)
    }

    fn resume(&mut self) -> Result<bool> {
        let goes_on = !self.resumed || self.broken;
        (self.resumed, self.broken, self.n_bytes) = (true, false, 0);
        self.times.clear();
        Ok(goes_on)
    }
}
