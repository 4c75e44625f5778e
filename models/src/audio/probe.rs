//! [`media_container`]: whether bytes are a recording at all, by how they begin. Whether it can be decoded is another question.

use super::{ts, unread};

/// Bytes of a file's beginning that [`media_container`] looks at.
pub const PROBE_BYTES: usize = 4096;

/// Bytes, and where they are.
type Part = (usize, &'static [u8]);

/// Names of containers that are read here, with the bytes that they have.
const SIGNATURES: [(&str, &[Part]); 17] = [
    ("wav", &[(0, b"RIFF"), (8, b"WAVE")]),
    ("rifx", &[(0, b"RIFX"), (8, b"WAVE")]),
    ("rf64", &[(0, b"RF64"), (8, b"WAVE")]),
    ("bw64", &[(0, b"BW64"), (8, b"WAVE")]),
    ("avi", &[(0, b"RIFF"), (8, b"AVI ")]),
    ("wave64", &[(0, b"riff\x2e\x91\xcf\x11")]),
    ("aiff", &[(0, b"FORM"), (8, b"AIFF")]),
    ("aiff-c", &[(0, b"FORM"), (8, b"AIFC")]),
    ("flac", &[(0, b"fLaC")]),
    ("ogg", &[(0, b"OggS")]),
    ("au", &[(0, b".snd")]),
    ("caf", &[(0, b"caff")]),
    ("mkv", &[(0, b"\x1a\x45\xdf\xa3")]),
    ("mov", &[(4, b"moov")]),
    ("mov", &[(4, b"mdat")]),
    ("mov", &[(4, b"wide")]),
    ("id3", &[(0, b"ID3")]),
];

/// Brands of `ftyp` boxes that are pictures. Source: ISO/IEC 23008-12, annex B; the registered brands of Canon raw files.
const PICTURE_BRANDS: [&[u8]; 9] = [b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis", b"crx "];

/// Name of the media container that begins with these bytes; nothing for text, pictures and everything else.
///
/// `head`: the first [`PROBE_BYTES`], or all of a shorter file.
pub fn media_container(head: &[u8]) -> Option<&'static str> {
    let has = |&(at, bytes): &Part| head.get(at..).is_some_and(|rest| rest.starts_with(bytes));
    let signed = SIGNATURES.iter().find(|(_, parts)| parts.iter().all(has));
    signed
        .map(|&(name, _)| name)
        .or_else(|| base_media(head))
        .or_else(|| ts::container(head))
        .or_else(|| unread::container(head))
        .or_else(|| frames(head))
}

/// MP4 and its relatives, whose first box names what they are.
fn base_media(head: &[u8]) -> Option<&'static str> {
    let brand = head.get(4..)?.strip_prefix(b"ftyp")?.get(..4)?;
    (!PICTURE_BRANDS.contains(&brand)).then_some("mp4")
}

/// Bare frames of MPEG audio. Source: ISO/IEC 11172-3, 2.4.1.3 (layers II and III); ISO/IEC 13818-7, 6.2 (ADTS).
fn frames(head: &[u8]) -> Option<&'static str> {
    let &[sync, kind, rates, ..] = head else { return None };
    let (version, layer) = (kind >> 3 & 3, kind >> 1 & 3);
    let (bit_rate, sample_rate) = (rates >> 4, rates >> 2 & 3);
    match (sync, kind >> 5, layer) {
        (0xff, 0b111, 0) if kind >> 4 == 0xf => (rates >> 2 & 0xf < 13).then_some("adts"),
        (0xff, 0b111, 1 | 2) => (version != 1 && bit_rate != 0xf && sample_rate != 3).then_some("mpeg audio"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::media_container;

    #[test]
    fn recordings_are_told_by_how_they_begin() {
        let mut stream = [0; 600];
        stream.iter_mut().step_by(188).for_each(|byte| *byte = 0x47);
        for (head, want) in [
            (&b"RIFF\x24\0\0\0WAVEfmt "[..], Some("wav")),
            (b"RIFF\x24\0\0\0WEBPVP8 ", None),
            (b"FORM\0\0\0\x20AIFFCOMM", Some("aiff")),
            (b"FORM\0\0\0\x20ILBMBMHD", None),
            (b"\0\0\0\x20ftypqt  \0\0\0\0", Some("mp4")),
            (b"\0\0\0\x18ftypheic\0\0\0\0", None),
            (b".snd\0\0\0\x1c", Some("au")),
            (b"\xff\xfb\x90\x64\0\0", Some("mpeg audio")),
            (b"\xff\xf1\x50\x80\0\0", Some("adts")),
            // UTF-16 text, a JPEG picture, a frame with a bit rate that does not exist.
            (b"\xff\xfeh\0e\0l\0l\0o\0", None),
            (b"\xff\xd8\xff\xe0\0\x10JFIF", None),
            (b"\xff\xfb\xf0\x64\0\0", None),
            (b"Good morning", None),
            (b"RIFF", None),
            (b"", None),
            (&stream, Some("mpeg-ts")),
            (&stream[..300], None),
        ] {
            assert_eq!(media_container(head), want, "{}", head.escape_ascii());
        }
    }
}
