//! MPEG transport streams: their tables, which of their streams has sound that can be decoded, and the bytes of it.
//!
//! Sources: ISO/IEC 13818-1, 2.4.3.2 (packets), 2.4.3.6 (PES packets), 2.4.4 (tables), table 2-34 (types of streams); ETSI EN
//! 300 468, 6.2.1 and annex D (descriptors of AC-3, DTS and AAC); ATSC A/52, annex A; the registry of SMPTE-RA.

use std::collections::BTreeMap;
use std::io::{Read, Result, Seek, SeekFrom};

use super::demux::NO_DECODER;
use super::elementary::{Elementary, Times, first};
use super::error::{AudioErrorKind, UNKNOWN_TRACK};
use super::frame::{Header, Syntax};
use super::mpeg;
use super::recording::Decoded;
use super::window::Window;

/// Short name of the container.
const NAME: &str = "mpeg-ts";

/// Length of a packet, and what it begins with.
const PACKET_BYTES: usize = 188;
const SYNC: u8 = 0x47;

/// How far apart packets are, and what is before each: in a stream; on a disc or in a camera, with a time; with a checksum.
const SPACINGS: [Spacing; 3] =
    [Spacing { bytes: 188, lead: 0 }, Spacing { bytes: 192, lead: 4 }, Spacing { bytes: 204, lead: 0 }];

/// Packets that have to be in place: text is full of the letter G. More where the first one is cut.
const N_PACKETS: usize = 3;
const N_LATER_PACKETS: usize = 5;

/// Bytes of the longest packet with what is before or behind it.
const MAX_SPACING: usize = 204;

/// How far into a file, in bytes, tables and first times are looked for: three seconds of a Blu-ray disc.
const SCAN_BYTES: u64 = 1 << 24;

/// Bytes of the longest section of a table.
const MAX_SECTION_BYTES: usize = 1024;

/// Streams that are looked at.
const MAX_STREAMS: usize = 256;

/// Times count 1/90000 s, in 33 bits.
const TICKS_PER_S: f64 = 90_000.0;
const TIME_BITS: u32 = 33;

/// A first time that is farther than this, in ticks, from the one after it is damaged: ten seconds.
const MAX_TIME_STEP: u64 = 900_000;

/// Times of pictures are those of the same film up to this distance from the sound, in seconds.
const MAX_LEAD_S: f64 = 600.0;

/// How packets follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spacing {
    /// From one packet to the next.
    bytes: usize,
    /// Before each.
    lead: usize,
}

impl Spacing {
    /// Whether `n` packets follow each other from here on.
    fn fits(self, bytes: &[u8], n: usize) -> bool {
        let mut syncs = bytes.iter().skip(self.lead).step_by(self.bytes).take(n);
        syncs.len() == n && syncs.all(|&byte| byte == SYNC)
    }

    fn of(head: &[u8]) -> Option<Self> {
        let begins = |spacing: &Self| spacing.fits(head, N_PACKETS);
        let goes_on =
            |spacing: &Self| (1..spacing.bytes.min(head.len())).any(|i| spacing.fits(&head[i..], N_LATER_PACKETS));
        SPACINGS.into_iter().find(begins).or_else(|| SPACINGS.into_iter().find(goes_on))
    }
}

/// Name of the container, if packets of a transport stream begin here.
pub(super) fn container(head: &[u8]) -> Option<&'static str> {
    Spacing::of(head).map(|_| NAME)
}

/// Decodes the first track that can be; none if this is no transport stream.
///
/// Errors: no tables, no sound, none that can be decoded; samples that are not accepted, too many of them.
pub(super) fn decode(src: &mut (impl Read + Seek), len: u64) -> std::result::Result<Option<Decoded>, AudioErrorKind> {
    src.seek(SeekFrom::Start(0)).map_err(AudioErrorKind::Io)?;
    let mut window = Window::new(&mut *src);
    let head = window.ahead((N_LATER_PACKETS + 1) * MAX_SPACING).map_err(AudioErrorKind::Io)?;
    let Some(spacing) = Spacing::of(head) else { return Ok(None) };
    let streams = scan(src, spacing).map_err(AudioErrorKind::Io)?;
    let tracks: Vec<&Stream> = streams.iter().filter(|s| s.kind.is_sound()).collect();
    let decoded = first(tracks.len(), |i| {
        let track = tracks[i];
        let syntax = match track.kind {
            Kind::Frames(syntax) => syntax,
            Kind::Sound(codec) | Kind::Picture(codec) => {
                return Err(AudioErrorKind::Codec { codec: codec.into(), container: NAME, why: NO_DECODER });
            }
            Kind::Other => return Err(AudioErrorKind::NoSamples),
        };
        src.seek(SeekFrom::Start(0)).map_err(AudioErrorKind::Io)?;
        let mut sound = Sound::new(Packets::new(&mut *src, spacing), track.pid, start(&streams, track));
        let (recording, codec) = mpeg::decode_inside(&mut sound, syntax, NAME, len)?;
        if recording.n_frames() == 0 && sound.scrambled {
            return Err(AudioErrorKind::Container { why: "its sound is scrambled".into() });
        }
        recording.finish(NAME, codec, None)
    });
    match decoded {
        Some(decoded) => decoded.map(Some),
        None if streams.is_empty() => {
            Err(AudioErrorKind::Container { why: "no table says what its streams are".into() })
        }
        None => Err(AudioErrorKind::NoAudioTrack {
            container: NAME,
            tracks: streams.iter().map(|s| s.kind.name()).collect(),
        }),
    }
}

/// What a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Frames that are read here.
    Frames(Syntax),
    /// Sound in another codec.
    Sound(&'static str),
    /// Pictures.
    Picture(&'static str),
    Other,
}

impl Kind {
    fn is_sound(self) -> bool {
        matches!(self, Self::Frames(_) | Self::Sound(_))
    }

    fn name(self) -> String {
        match self {
            Self::Frames(Syntax::Mpeg) => "audio mpeg audio".into(),
            Self::Frames(Syntax::Adts) => "audio aac".into(),
            Self::Sound(codec) => format!("audio {codec}"),
            Self::Picture(codec) => format!("video {codec}"),
            Self::Other => UNKNOWN_TRACK.into(),
        }
    }

    /// By the type of the stream, its descriptors, and whether the program is that of a Blu-ray disc or a camera.
    fn of(stream_type: u8, descriptors: &[u8], hdmv: bool) -> Self {
        match stream_type {
            0x01 => Self::Picture("mpeg1"),
            0x02 => Self::Picture("mpeg2"),
            0x03 | 0x04 => Self::Frames(Syntax::Mpeg),
            0x0f => Self::Frames(Syntax::Adts),
            0x10 => Self::Picture("mpeg4"),
            0x11 => Self::Sound("aac (latm)"),
            0x1b => Self::Picture("h264"),
            0x1c => Self::Sound("aac (raw)"),
            0x24 => Self::Picture("hevc"),
            0x33 => Self::Picture("vvc"),
            0x80 if hdmv => Self::Sound("pcm (blu-ray)"),
            0x81 => Self::Sound("ac3"),
            0x82 | 0x85 | 0x86 | 0x8a | 0xa2 if hdmv || stream_type == 0x8a => Self::Sound("dts"),
            0x83 if hdmv => Self::Sound("truehd"),
            0x84 | 0x87 | 0xa1 if hdmv || stream_type == 0x87 => Self::Sound("eac3"),
            0xea => Self::Picture("vc1"),
            _ => described(descriptors).unwrap_or(Self::Other),
        }
    }
}

/// The tag and the contents of descriptors.
fn descriptors(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let [tag, n, rest @ ..] = bytes else { return None };
        let (content, next) = rest.split_at_checked(usize::from(*n))?;
        bytes = next;
        Some((*tag, content))
    })
}

/// The name that a registration descriptor gives.
fn registered(tag: u8, content: &[u8]) -> Option<&[u8; 4]> {
    const REGISTRATION: u8 = 0x05;
    if tag == REGISTRATION { content.first_chunk() } else { None }
}

/// What the descriptors of a private stream say that it is.
fn described(bytes: &[u8]) -> Option<Kind> {
    descriptors(bytes).find_map(|(tag, content)| match tag {
        0x6a => Some(Kind::Sound("ac3")),
        0x7a => Some(Kind::Sound("eac3")),
        0x7b => Some(Kind::Sound("dts")),
        0x7c => Some(Kind::Sound("aac (latm)")),
        _ => match registered(tag, content)? {
            b"AC-3" => Some(Kind::Sound("ac3")),
            b"EAC3" => Some(Kind::Sound("eac3")),
            b"AC-4" => Some(Kind::Sound("ac4")),
            b"DTS1" | b"DTS2" | b"DTS3" => Some(Kind::Sound("dts")),
            b"Opus" => Some(Kind::Sound("opus")),
            b"BSSD" => Some(Kind::Sound("pcm (smpte 302m)")),
            b"HEVC" => Some(Kind::Picture("hevc")),
            b"VC-1" => Some(Kind::Picture("vc1")),
            _ => None,
        },
    })
}

/// A stream of a program.
struct Stream {
    program: u16,
    pid: u16,
    kind: Kind,
    /// Its first time, and the one after it.
    first: Option<u64>,
    second: Option<u64>,
}

/// The time at which the film of a track starts.
fn start(streams: &[Stream], track: &Stream) -> u64 {
    let of_film = streams.iter().filter(|s| s.program == track.program && s.kind != Kind::Other);
    let times: Vec<u64> = of_film.filter_map(|s| s.first).collect();
    let Some(sound) = track.first.or(times.first().copied()) else { return 0 };
    let near = |ticks: &i64| ticks.unsigned_abs() as f64 / TICKS_PER_S < MAX_LEAD_S;
    let lead = times.iter().map(|&time| difference(sound, time)).filter(near).max().unwrap_or(0);
    sound.wrapping_add_signed(-lead) & ((1 << TIME_BITS) - 1)
}

/// `a - b` of times that begin anew when they are full.
fn difference(a: u64, b: u64) -> i64 {
    let unused = u64::BITS - TIME_BITS;
    (a.wrapping_sub(b) << unused).cast_signed() >> unused
}

/// A packet with the stream it belongs to.
struct Packet<'a> {
    pid: u16,
    /// A PES packet or a section begins here.
    starts: bool,
    scrambled: bool,
    counter: u8,
    /// The counter may be any.
    discontinuity: bool,
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// A packet that is not known to be damaged.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (&[sync, a, b, c], rest) = bytes.split_first_chunk()?;
        if sync != SYNC || a & 0x80 != 0 {
            return None;
        }
        let (discontinuity, payload) = match c >> 4 & 3 {
            1 => (false, rest),
            2 | 3 => {
                let (&n, rest) = rest.split_first()?;
                let (adaptation, payload) = rest.split_at_checked(n.into())?;
                (adaptation.first().is_some_and(|flags| flags & 0x80 != 0), if c & 0x10 == 0 { &[] } else { payload })
            }
            _ => return None,
        };
        let (starts, scrambled, counter) = (a & 0x40 != 0, c & 0xc0 != 0, c & 0xf);
        Some(Self { pid: u16::from_be_bytes([a & 0x1f, b]), starts, scrambled, counter, discontinuity, payload })
    }
}

/// The packets of a file.
struct Packets<R> {
    window: Window<R>,
    spacing: Spacing,
}

impl<R: Read> Packets<R> {
    fn new(src: R, spacing: Spacing) -> Self {
        Self { window: Window::new(src), spacing }
    }

    /// Hands the next packet that is not known to be damaged to `read`; none at the end.
    fn next<T>(&mut self, mut read: impl FnMut(&Packet<'_>) -> T) -> Result<Option<T>> {
        let Spacing { bytes, lead } = self.spacing;
        loop {
            let ahead = self.window.ahead(bytes * (N_PACKETS + 1))?;
            if ahead.len() < lead + PACKET_BYTES {
                return Ok(None);
            }
            let read = Packet::parse(&ahead[lead..lead + PACKET_BYTES]).map(|packet| read(&packet));
            // Packets are where they are expected, or three of them follow each other elsewhere.
            let next = ahead.get(bytes + lead);
            let step = if ahead[lead] == SYNC || next.is_none_or(|&byte| byte == SYNC) {
                bytes
            } else {
                let n = ahead.len().saturating_sub(bytes * (N_PACKETS - 1));
                let found = (1..n).find(|&i| self.spacing.fits(&ahead[i..], N_PACKETS));
                found.unwrap_or(bytes)
            };
            let step = step.min(ahead.len());
            self.window.pass(step as u64)?;
            if read.is_some() {
                return Ok(read);
            }
        }
    }
}

/// The header of a PES packet: its time, and its length in bytes.
fn pes_header(payload: &[u8]) -> Option<(Option<u64>, usize)> {
    const FIXED_BYTES: usize = 9;
    let &[0, 0, 1, _, _, _, marks, flags, n] = payload.first_chunk()? else { return None };
    let time = payload.get(FIXED_BYTES..).and_then(|rest| rest.first_chunk::<5>()).filter(|_| flags & 0x80 != 0);
    (marks & 0xc0 == 0x80).then_some((time.and_then(|&bytes| time_of(bytes)), FIXED_BYTES + usize::from(n)))
}

/// What a PES packet begins with, where the tables do not say it. Sources: table 2-22; ATSC A/52, 5.4.1; ETSI TS 102 114, 5.3.
fn contents(payload: &[u8], header_bytes: usize) -> Option<Kind> {
    let (id, frame) = (payload.get(3)?, payload.get(header_bytes..)?);
    match (id, frame) {
        (0xbd, [0x0b, 0x77, ..]) => Some(Kind::Sound("ac3")),
        (0xbd | 0xfd, [0x7f, 0xfe, 0x80, 0x01, ..]) => Some(Kind::Sound("dts")),
        (0xc0..=0xdf, _) => {
            let begins = |&syntax: &Syntax| Header::parse(frame, syntax).is_some();
            [Syntax::Mpeg, Syntax::Adts].into_iter().find(begins).map(Kind::Frames)
        }
        _ => None,
    }
}

/// A time, if its marks are in place.
fn time_of(bytes: [u8; 5]) -> Option<u64> {
    let [a, b, c, d, e] = bytes.map(u64::from);
    let marked = a & 1 == 1 && c & 1 == 1 && e & 1 == 1 && a >> 5 == 1;
    marked.then_some((a >> 1 & 7) << 30 | b << 22 | c >> 1 << 15 | d << 7 | e >> 1)
}

/// Looks for tables and the first times of all streams.
fn scan(src: &mut (impl Read + Seek), spacing: Spacing) -> Result<Vec<Stream>> {
    src.seek(SeekFrom::Start(0))?;
    let mut packets = Packets::new(src.take(SCAN_BYTES), spacing);
    let mut tables = Tables::default();
    while packets.next(|packet| tables.packet(packet))?.is_some_and(|complete| !complete) {}
    Ok(tables.streams)
}

/// The tables of a stream, as they come.
#[derive(Default)]
struct Tables {
    /// Sections that are being put together, by the stream that they are in. The first is the list of programs.
    sections: BTreeMap<u16, Vec<u8>>,
    /// Programs by the stream that describes them, once they are listed; and whether that was read.
    programs: BTreeMap<u16, bool>,
    streams: Vec<Stream>,
}

impl Tables {
    /// Takes a packet; true if nothing more is to be found out.
    fn packet(&mut self, packet: &Packet<'_>) -> bool {
        let Packet { pid, starts, payload, .. } = *packet;
        if pid == 0 || self.programs.contains_key(&pid) {
            self.section(pid, starts, payload);
        }
        let unknown = |stream: &&mut Stream| stream.pid == pid && stream.second.is_none();
        if starts && let Some((Some(time), n)) = pes_header(payload) {
            for stream in self.streams.iter_mut().filter(unknown) {
                if stream.kind == Kind::Other {
                    stream.kind = contents(payload, n).unwrap_or(Kind::Other);
                }
                match stream.first {
                    Some(first) if difference(time, first).unsigned_abs() < MAX_TIME_STEP => stream.second = Some(time),
                    _ => stream.first = Some(time),
                }
            }
        }
        let listed = !self.programs.is_empty() && self.programs.values().all(|&read| read);
        listed && self.streams.iter().all(|s| s.second.is_some())
    }

    fn section(&mut self, pid: u16, starts: bool, payload: &[u8]) {
        let mut rest = payload;
        if starts {
            // What is before belongs to the last section.
            let Some((&pointer, sections)) = payload.split_first() else { return };
            let Some((before, new)) = sections.split_at_checked(pointer.into()) else { return };
            self.continue_section(pid, before);
            self.sections.insert(pid, Vec::new());
            rest = new;
        }
        self.continue_section(pid, rest);
    }

    fn continue_section(&mut self, pid: u16, bytes: &[u8]) {
        const HEADER_BYTES: usize = 3;
        let Some(section) = self.sections.get_mut(&pid) else { return };
        section.extend(bytes);
        let Some(&[_, a, b]) = section.first_chunk() else { return };
        let end = HEADER_BYTES + usize::from(u16::from_be_bytes([a & 0xf, b]));
        if end > MAX_SECTION_BYTES {
            self.sections.remove(&pid);
            return;
        }
        if section.len() < end {
            return;
        }
        let mut whole = std::mem::take(section);
        self.sections.remove(&pid);
        whole.truncate(end);
        if checksum(&whole) == 0 {
            self.table(pid, &whole);
        }
    }

    /// Reads a table that is whole, as far as it makes sense.
    fn table(&mut self, pid: u16, section: &[u8]) -> Option<()> {
        const PROGRAMS: u8 = 0;
        const STREAMS: u8 = 2;
        const HEADER_BYTES: usize = 8;
        const CHECKSUM_BYTES: usize = 4;
        let is_current = section.get(5)? & 1 == 1;
        let body = section.get(HEADER_BYTES..section.len().checked_sub(CHECKSUM_BYTES)?)?;
        match section[0] {
            PROGRAMS if pid == 0 && is_current => {
                for &[n0, n1, a, b] in body.as_chunks().0 {
                    // Number 0 is the network.
                    if [n0, n1] != [0, 0] {
                        self.programs.entry(u16::from_be_bytes([a & 0x1f, b])).or_insert(false);
                    }
                }
            }
            STREAMS if is_current && self.programs.get(&pid) == Some(&false) => {
                let &[_, _, a, b] = body.first_chunk()?;
                let n = usize::from(u16::from_be_bytes([a & 0xf, b]));
                let of_program = body.get(4..4 + n)?;
                let hdmv = descriptors(of_program).any(|(tag, content)| registered(tag, content) == Some(b"HDMV"));
                let mut rest = body.get(4 + n..)?;
                while let Some((&[stream_type, p0, p1, a, b], more)) = rest.split_first_chunk() {
                    let n = usize::from(u16::from_be_bytes([a & 0xf, b]));
                    let (of_stream, next) = more.split_at_checked(n)?;
                    let kind = Kind::of(stream_type, of_stream, hdmv);
                    if self.streams.len() < MAX_STREAMS {
                        let pid_of_stream = u16::from_be_bytes([p0 & 0x1f, p1]);
                        self.streams.push(Stream { program: pid, pid: pid_of_stream, kind, first: None, second: None });
                    }
                    rest = next;
                }
                self.programs.insert(pid, true);
            }
            _ => {}
        }
        Some(())
    }
}

/// The checksum of a section, 0 with its own at the end. Source: ISO/IEC 13818-1, annex A.
fn checksum(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x04c1_1db7;
    let bit = |sum: u32| if sum >> 31 == 1 { sum << 1 ^ POLYNOMIAL } else { sum << 1 };
    bytes.iter().fold(u32::MAX, |sum, &byte| (0..8).fold(sum ^ u32::from(byte) << 24, |sum, _| bit(sum)))
}

/// The bytes of a stream of sound.
struct Sound<R> {
    packets: Packets<R>,
    pid: u16,
    /// The last time, as it stands in the file, and in ticks since the start of the film.
    last_time: u64,
    ticks: i64,
    counter: Option<u8>,
    /// What the last packet held: it may be there twice.
    last: Vec<u8>,
    /// Bytes that were not read yet, and where they begin.
    left: Vec<u8>,
    at: usize,
    /// They are behind a break, which has not been passed.
    broken: bool,
    /// The time that is written before them, in seconds.
    left_time_s: Option<f64>,
    /// Bytes since the last break, and times with places among them.
    n_bytes: u64,
    times: Times,
    resumed: bool,
    /// Some packets cannot be read.
    scrambled: bool,
}

impl<R: Read> Sound<R> {
    /// The stream `pid` of a film that starts at the time `start`.
    fn new(packets: Packets<R>, pid: u16, start: u64) -> Self {
        Self {
            packets,
            pid,
            last_time: start,
            ticks: 0,
            counter: None,
            last: Vec::new(),
            left: Vec::new(),
            at: 0,
            broken: false,
            left_time_s: None,
            n_bytes: 0,
            times: Times::default(),
            resumed: false,
            scrambled: false,
        }
    }

    /// Takes the next packet of the stream; false at the end.
    fn next(&mut self) -> Result<bool> {
        let Self { packets, pid, last_time, ticks, counter, last, left, at, broken, left_time_s, scrambled, .. } = self;
        left.clear();
        *at = 0;
        *left_time_s = None;
        let taken = packets.next(|packet| {
            if packet.pid != *pid || packet.payload.is_empty() {
                return;
            }
            *scrambled |= packet.scrambled;
            let before = counter.replace(packet.counter);
            if packet.scrambled || before == Some(packet.counter) && *last == packet.payload {
                return;
            }
            last.clear();
            last.extend(packet.payload);
            let expected = before.is_none_or(|before| (before + 1) & 0xf == packet.counter);
            *broken |= !expected && !packet.discontinuity;
            if !packet.starts {
                left.extend(packet.payload);
                return;
            }
            let header = pes_header(packet.payload).and_then(|(time, n)| Some((time, packet.payload.get(n..)?)));
            let Some((time, payload)) = header else {
                *broken = true;
                return;
            };
            left.extend(payload);
            if let Some(time) = time {
                *ticks += difference(time, *last_time);
                *last_time = time;
                *left_time_s = Some(*ticks as f64 / TICKS_PER_S);
            }
        })?;
        Ok(taken.is_some())
    }

    /// Notes the time of the bytes that are left.
    fn note_time(&mut self) {
        if let Some(time_s) = self.left_time_s.take() {
            self.times.note(self.n_bytes, time_s);
        }
    }
}

impl<R: Read> Read for Sound<R> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        while self.at == self.left.len() && !self.broken {
            if !self.next()? {
                return Ok(0);
            }
            if !self.broken {
                self.note_time();
            }
        }
        if self.broken {
            return Ok(0);
        }
        let n = buf.len().min(self.left.len() - self.at);
        buf[..n].copy_from_slice(&self.left[self.at..self.at + n]);
        self.at += n;
        self.n_bytes += n as u64;
        Ok(n)
    }
}

impl<R: Read> Elementary for Sound<R> {
    fn resume(&mut self) -> Result<bool> {
        let goes_on = !self.resumed || self.broken;
        (self.resumed, self.broken, self.n_bytes) = (true, false, 0);
        self.times.clear();
        self.note_time();
        Ok(goes_on)
    }

    fn time_s(&mut self, offset: u64) -> Option<f64> {
        self.times.take(offset)
    }
}
