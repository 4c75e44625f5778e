//! Media files that are not read here, by their first bytes: an error that names them, and their sound as far as they say.

use std::io::{Read, Result, Seek, SeekFrom};

use super::demux::NO_DECODER;
use super::error::AudioErrorKind;
use super::names;

/// Bytes in which the description of the sound is looked for.
const HEAD_BYTES: u64 = 1 << 16;

/// Names with the bytes that a file begins with, and where those are.
const SIGNATURES: [(&str, usize, &[u8]); 27] = [
    ("mpeg-ps", 0, &[0, 0, 1, 0xba]),
    ("asf (wma, wmv)", 0, &ASF),
    ("flv", 0, b"FLV\x01"),
    ("mxf", 0, &[0x06, 0x0e, 0x2b, 0x34, 0x02, 0x05, 0x01, 0x01]),
    ("amr-wb", 0, b"#!AMR-WB"),
    ("amr", 0, b"#!AMR"),
    ("realmedia", 0, b".RMF"),
    ("realaudio", 0, b".ra\xfd"),
    ("wavpack", 0, b"wvpk"),
    ("monkey's audio", 0, b"MAC "),
    ("musepack", 0, b"MPCK"),
    ("musepack", 0, b"MP+"),
    ("true audio", 0, b"TTA1"),
    ("tak", 0, b"tBaK"),
    ("optimfrog", 0, b"OFR "),
    ("shorten", 0, b"ajkg"),
    ("dsf", 0, b"DSD "),
    ("dsdiff", 0, b"FRM8"),
    ("ac3", 0, &[0x0b, 0x77]),
    ("dts", 0, &[0x7f, 0xfe, 0x80, 0x01]),
    ("dts", 0, &[0xfe, 0x7f, 0x01, 0x80]),
    ("truehd", 4, &[0xf8, 0x72, 0x6f, 0xba]),
    ("voc", 0, b"Creative Voice File"),
    ("nist sphere", 0, b"NIST_1A"),
    ("8svx", 8, b"8SVX"),
    ("ircam", 0, &[0x64, 0xa3]),
    ("sound designer ii", 0, b"Sd2f"),
];

/// Bytes of an Ogg file in which its first packet begins.
const OGG_PAGE_BYTES: usize = 64;

/// Identifiers of ASF: of a file, and of a stream with sound. Source: Advanced Systems Format Specification, 10.1 and 10.4.
const ASF: [u8; 8] = [0x30, 0x26, 0xb2, 0x75, 0x8e, 0x66, 0xcf, 0x11];
const ASF_SOUND: [u8; 16] =
    [0x40, 0x9e, 0x69, 0xf8, 0x4d, 0x5b, 0xcf, 0x11, 0xa8, 0xfd, 0x00, 0x80, 0x5f, 0x5c, 0x44, 0x2b];

/// The error for a file in no format that is read here.
pub(super) fn named(src: &mut (impl Read + Seek)) -> Result<AudioErrorKind> {
    let mut head = Vec::new();
    src.seek(SeekFrom::Start(0))?;
    src.take(HEAD_BYTES).read_to_end(&mut head)?;
    if let Some(code) = head.strip_prefix(b".snd").and_then(|_| word(&head, 12)).map(u32::from_be_bytes) {
        return Ok(AudioErrorKind::Codec { codec: au_encoding(code), container: "au", why: NO_DECODER });
    }
    if head.starts_with(b"OggS") && find(&head[..head.len().min(OGG_PAGE_BYTES)], b"Speex   ").is_some() {
        return Ok(AudioErrorKind::Codec { codec: "speex".into(), container: "ogg", why: NO_DECODER });
    }
    let Some(container) = container(&head) else { return Ok(AudioErrorKind::NotRecognised) };
    Ok(AudioErrorKind::NotRead { container, sound: sound(container, &head) })
}

/// Name of the media file that begins with these bytes, where it is none that is read here.
pub(super) fn container(head: &[u8]) -> Option<&'static str> {
    let starts = |&(_, at, bytes): &(&str, usize, &[u8])| head.get(at..).is_some_and(|rest| rest.starts_with(bytes));
    SIGNATURES.iter().find(|signature| starts(signature)).map(|&(container, ..)| container)
}

/// Codec and channels of the first sound that a file describes: `mp3, 2 channels`.
fn sound(container: &str, head: &[u8]) -> Option<String> {
    let (codec, n_channels) = match container {
        "asf (wma, wmv)" => {
            // A WAVEFORMATEX: the code of the format, the number of channels.
            let [t0, t1, c0, c1] = word(head, find(head, &ASF_SOUND)? + 54)?;
            (names::wave_format(u16::from_le_bytes([t0, t1])), u16::from_le_bytes([c0, c1]))
        }
        "flv" => flv_sound(head)?,
        _ => return None,
    };
    Some(names::with_channels(codec, n_channels))
}

/// The first tag with sound. Source: Adobe, Video File Format Specification, version 10, annex E.
fn flv_sound(head: &[u8]) -> Option<(String, u16)> {
    const SOUND: u8 = 8;
    const TAG_HEADER: usize = 11;
    const CODECS: [&str; 16] = [
        "pcm",
        "adpcm",
        "mp3",
        "pcm",
        "nellymoser",
        "nellymoser",
        "nellymoser",
        "alaw",
        "mulaw",
        "unknown",
        "aac",
        "speex",
        "unknown",
        "unknown",
        "mp3",
        "unknown",
    ];
    let mut at = u32::from_be_bytes(word(head, 5)?) as usize + 4;
    loop {
        let [kind, size @ ..] = word(head, at)?;
        let first = *head.get(at + TAG_HEADER)?;
        if kind == SOUND {
            return Some((CODECS[usize::from(first >> 4)].into(), u16::from(first & 1) + 1));
        }
        let size = size.iter().fold(0, |n, &byte| n << 8 | usize::from(byte));
        at += TAG_HEADER + size + 4;
    }
}

/// Name of an encoding of AU files that has no plain samples. Source: the manual page audio(5) of SunOS; libsndfile, `au.c`.
fn au_encoding(code: u32) -> String {
    match code {
        23 => "g721".into(),
        24 => "g722".into(),
        25 | 26 => "g723".into(),
        code => format!("{code:#x}"),
    }
}

fn word(head: &[u8], at: usize) -> Option<[u8; 4]> {
    head.get(at..)?.first_chunk().copied()
}

fn find(head: &[u8], what: &[u8]) -> Option<usize> {
    head.windows(what.len()).position(|w| w == what)
}
