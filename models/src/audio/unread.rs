//! Media files that are not read here, by their first bytes: an error that names them.

use std::io::{Read, Result, Seek, SeekFrom};

use super::error::AudioErrorKind;

/// Length of a packet of an MPEG transport stream, which begins with a byte of its own.
const TS_PACKET_BYTES: usize = 188;
const TS_SYNC: u8 = 0x47;
/// Packets that have to be in place: text is full of the letter G.
const N_TS_PACKETS: usize = 3;

/// Names with the bytes that a file begins with, and where those are.
const SIGNATURES: [(&str, usize, &[u8]); 16] = [
    ("avi", 8, b"AVI "),
    ("mpeg-ps", 0, &[0, 0, 1, 0xba]),
    ("asf (wma, wmv)", 0, &[0x30, 0x26, 0xb2, 0x75, 0x8e, 0x66, 0xcf, 0x11]),
    ("flv", 0, b"FLV\x01"),
    ("amr", 0, b"#!AMR"),
    ("realmedia", 0, b".RMF"),
    ("wavpack", 0, b"wvpk"),
    ("monkey's audio", 0, b"MAC "),
    ("musepack", 0, b"MPCK"),
    ("musepack", 0, b"MP+"),
    ("true audio", 0, b"TTA1"),
    ("dsf", 0, b"DSD "),
    ("dsdiff", 0, b"FRM8"),
    ("ac3", 0, &[0x0b, 0x77]),
    ("dts", 0, &[0x7f, 0xfe, 0x80, 0x01]),
    ("au", 0, b".snd"),
];

/// The error for a file in no format that is read here.
pub(super) fn named(src: &mut (impl Read + Seek)) -> Result<AudioErrorKind> {
    let mut head = Vec::new();
    src.seek(SeekFrom::Start(0))?;
    src.take((N_TS_PACKETS * TS_PACKET_BYTES) as u64).read_to_end(&mut head)?;
    Ok(container(&head).map_or(AudioErrorKind::NotRecognised, |container| AudioErrorKind::NotRead { container }))
}

/// Name of the media file that begins with these bytes, where it is none that is read here.
pub(super) fn container(head: &[u8]) -> Option<&'static str> {
    let starts = |&(_, at, bytes): &(&str, usize, &[u8])| head.get(at..).is_some_and(|rest| rest.starts_with(bytes));
    let mut packets = head.iter().step_by(TS_PACKET_BYTES).take(N_TS_PACKETS);
    if packets.len() == N_TS_PACKETS && packets.all(|&b| b == TS_SYNC) {
        return Some("mpeg-ts");
    }
    SIGNATURES.iter().find(|signature| starts(signature)).map(|&(container, ..)| container)
}
