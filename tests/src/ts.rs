//! MPEG transport streams around frames of sound. Source: ISO/IEC 13818-1, 2.4.3 and 2.4.4.

use std::ops::Range;

/// Length of a packet.
pub const PACKET_BYTES: usize = 188;

/// Ticks of a second.
const TICKS_PER_S: f64 = 90_000.0;

/// Streams of the tables.
const PMT_PID: u16 = 0x100;
const FIRST_PID: u16 = 0x101;

/// A stream of the one program.
pub struct Stream {
    /// Its type.
    pub kind: u8,
    /// Its descriptors.
    pub descriptors: Vec<u8>,
    /// Its first time, in seconds.
    pub start_s: f64,
    /// Seconds of a frame.
    pub frame_s: f64,
    /// Frames of a PES packet.
    pub n_per_packet: usize,
    /// The frames.
    pub frames: Vec<Vec<u8>>,
}

impl Stream {
    /// Frames in PES packets of three each, without descriptors.
    pub fn new(kind: u8, start_s: f64, frame_s: f64, frames: Vec<Vec<u8>>) -> Self {
        Self { kind, descriptors: Vec::new(), start_s, frame_s, n_per_packet: 3, frames }
    }
}

/// The file, and where frames are in its packets.
pub struct File {
    /// All packets.
    pub bytes: Vec<u8>,
    /// Bytes of frames, with the number of their stream.
    pub payload: Vec<(usize, Range<usize>)>,
}

/// A stream of packets, `lead` bytes before and `tail` behind each.
pub fn file(streams: &[Stream], lead: usize, tail: usize) -> File {
    let mut out = Writer { file: File { bytes: Vec::new(), payload: Vec::new() }, lead, tail, counters: [0; 32] };
    let programs = [[0, 1], (0xe000 | PMT_PID).to_be_bytes()].concat();
    let mut of_program = [0xe1, 0x01, 0xf0, 0].to_vec();
    for (pid, stream) in (FIRST_PID..).zip(streams) {
        of_program.push(stream.kind);
        of_program.extend((0xe000 | pid).to_be_bytes());
        of_program.extend((0xf000 | stream.descriptors.len() as u16).to_be_bytes());
        of_program.extend(&stream.descriptors);
    }
    let mut packets: Vec<(f64, usize, &[Vec<u8>])> = Vec::new();
    for (i, stream) in streams.iter().enumerate() {
        for (k, frames) in stream.frames.chunks(stream.n_per_packet).enumerate() {
            packets.push((stream.start_s + (k * stream.n_per_packet) as f64 * stream.frame_s, i, frames));
        }
    }
    packets.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (n, (time_s, i, frames)) in packets.into_iter().enumerate() {
        if n % 8 == 0 {
            out.table(0, &section(0, &programs));
            out.table(PMT_PID, &section(2, &of_program));
        }
        let pes = pes(streams[i].kind, time_s);
        out.packets(FIRST_PID + i as u16, &[&pes, &frames.concat()[..]].concat(), Some((i, pes.len())));
    }
    out.file
}

/// The header of a PES packet.
fn pes(kind: u8, time_s: f64) -> Vec<u8> {
    let id = match kind {
        0x03 | 0x04 | 0x0f | 0x11 => 0xc0,
        0x06 | 0x80.. => 0xbd,
        _ => 0xe0,
    };
    let time = (time_s * TICKS_PER_S).round() as u64;
    let bits = |at: u32, n: u32| (time >> at & ((1 << n) - 1)) as u8;
    let time = [0x21 | bits(30, 3) << 1, bits(22, 8), bits(15, 7) << 1 | 1, bits(7, 8), bits(0, 7) << 1 | 1];
    [&[0, 0, 1, id, 0, 0, 0x80, 0x80, 5][..], &time].concat()
}

/// A section of a table with its checksum.
fn section(table: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![table];
    bytes.extend((0xb000 | (body.len() as u16 + 9)).to_be_bytes());
    bytes.extend([0, 1, 0xc1, 0, 0]);
    bytes.extend(body);
    let bit = |sum: u32| if sum >> 31 == 1 { sum << 1 ^ 0x04c1_1db7 } else { sum << 1 };
    let sum = bytes.iter().fold(u32::MAX, |sum, &b| (0..8).fold(sum ^ u32::from(b) << 24, |sum, _| bit(sum)));
    bytes.extend(sum.to_be_bytes());
    bytes
}

struct Writer {
    file: File,
    lead: usize,
    tail: usize,
    counters: [u8; 32],
}

impl Writer {
    fn table(&mut self, pid: u16, section: &[u8]) {
        let mut payload = vec![0];
        payload.extend(section);
        payload.resize(payload.len().next_multiple_of(PACKET_BYTES - 4), 0xff);
        self.packets(pid, &payload, None);
    }

    /// Packets of one unit, the last one stuffed. `of`: the number of its stream, and the bytes before its frames.
    fn packets(&mut self, pid: u16, unit: &[u8], of: Option<(usize, usize)>) {
        let mut at = 0;
        while at < unit.len() {
            let n = (unit.len() - at).min(PACKET_BYTES - 4);
            let stuffing = PACKET_BYTES - 4 - n;
            let counter = &mut self.counters[usize::from(pid % 32)];
            let start = if at == 0 { 0x4000 } else { 0 };
            let bytes = &mut self.file.bytes;
            bytes.resize(bytes.len() + self.lead, 0);
            bytes.push(0x47);
            bytes.extend((start | pid).to_be_bytes());
            bytes.push(if stuffing > 0 { 0x30 } else { 0x10 } | *counter);
            *counter = (*counter + 1) % 16;
            if stuffing > 0 {
                bytes.push(stuffing as u8 - 1);
                bytes.extend([0].iter().chain([0xff; PACKET_BYTES].iter()).take(stuffing - 1));
            }
            if let Some((number, header)) = of {
                let before = header.saturating_sub(at);
                let place = bytes.len();
                self.file.payload.extend((before < n).then_some((number, place + before..place + n)));
            }
            bytes.extend(&unit[at..at + n]);
            bytes.resize(bytes.len() + self.tail, 0);
            at += n;
        }
    }
}
