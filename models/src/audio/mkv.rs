//! What the demuxer does not do with Matroska files: read those that were cut short, and name codecs that it does not know.

use std::io::{Read, Result, Seek};

use super::fields::Fields;
use super::names;
use super::patched::Patch;

/// Identifiers. Source: RFC 8794 (EBML header), RFC 9559, 5.1 (Segment and what is in it).
const EBML: [u8; 4] = [0x1a, 0x45, 0xdf, 0xa3];
const SEGMENT: [u8; 4] = [0x18, 0x53, 0x80, 0x67];
const SEEK_HEAD: [u8; 4] = [0x11, 0x4d, 0x9b, 0x74];
const CLUSTER: [u8; 4] = [0x1f, 0x43, 0xb6, 0x75];
const VOID: u8 = 0xec;

/// Identifiers of the description of a track, as numbers. Source: RFC 9559, 5.1.4.
const TRACKS: u64 = 0x1654_ae6b;
const TRACK_ENTRY: u64 = 0xae;
const TRACK_TYPE: u64 = 0x83;
const CODEC_ID: u64 = 0x86;
const CODEC_PRIVATE: u64 = 0x63a2;

/// Longest name of a codec that is shown, in bytes.
const MAX_NAME_BYTES: u64 = 64;

/// Elements before the first cluster that are looked at.
const MAX_ELEMENTS: usize = 64;

/// Bytes of the longest length field.
const MAX_SIZE_BYTES: u64 = 8;

/// What makes a segment readable that is longer than the file of `len` bytes: its length becomes unknown, and its lists of
/// elements, which lead beyond the end, become empty space. Nothing in any other file.
pub(super) fn cut_segment(src: &mut (impl Read + Seek), len: u64) -> Result<Vec<Patch>> {
    let mut patches = Vec::new();
    let mut fields = Fields::new(src, len);
    if fields.get(0)? != Some(EBML) {
        return Ok(patches);
    }
    let Some((header, header_bytes)) = size(&mut fields, 4)? else { return Ok(patches) };
    let Some(at) = header.checked_add(4 + header_bytes) else { return Ok(patches) };
    if fields.get(at)? != Some(SEGMENT) {
        return Ok(patches);
    }
    let Some((segment, bytes)) = size(&mut fields, at + 4)? else { return Ok(patches) };
    let mut at = at + 4 + bytes;
    if segment == unknown(bytes) || segment <= len.saturating_sub(at) {
        return Ok(patches);
    }
    patches.push(Patch { at: at - bytes, bytes: size_field(unknown(bytes), bytes) });
    for _ in 0..MAX_ELEMENTS {
        let Some([first]) = fields.get(at)? else { break };
        let id_bytes = u64::from(u8::leading_zeros(first)) + 1;
        let Some((content, bytes)) = size(&mut fields, at + id_bytes)? else { break };
        let Some(length) = content.checked_add(id_bytes + bytes) else { break };
        let id = fields.get(at)?;
        if id == Some(CLUSTER) {
            break;
        }
        if id == Some(SEEK_HEAD) {
            let n = (id_bytes + bytes - 1).min(MAX_SIZE_BYTES);
            let void = [&[VOID][..], &size_field(length - 1 - n, n)].concat();
            patches.push(Patch { at, bytes: void });
        }
        let Some(next) = at.checked_add(length) else { break };
        at = next;
    }
    Ok(patches)
}

/// The codec of the first track of sound, which the demuxer does not know; none if there is no such track.
pub(super) fn codec(src: &mut (impl Read + Seek), len: u64) -> Result<Option<String>> {
    const SOUND: u8 = 2;
    let mut fields = Fields::new(src, len);
    if fields.get(0)? != Some(EBML) {
        return Ok(None);
    }
    let segment = elements(&mut fields, 0, len)?.into_iter().find(|e| e.id == u64::from(u32::from_be_bytes(SEGMENT)));
    let Some(segment) = segment else { return Ok(None) };
    let inside = elements(&mut fields, segment.body, segment.end)?;
    let Some(tracks) = inside.into_iter().find(|e| e.id == TRACKS) else { return Ok(None) };
    for track in elements(&mut fields, tracks.body, tracks.end)?.into_iter().filter(|e| e.id == TRACK_ENTRY) {
        let parts = elements(&mut fields, track.body, track.end)?;
        let part = |id: u64| parts.iter().find(|e| e.id == id);
        let Some(kind) = part(TRACK_TYPE).map(|e| fields.get(e.body)) else { continue };
        if kind? != Some([SOUND]) {
            continue;
        }
        let Some(id) = part(CODEC_ID) else { continue };
        let mut name = String::new();
        for at in id.body..id.end.min(id.body + MAX_NAME_BYTES) {
            name.extend(fields.get::<1>(at)?.into_iter().flatten().map(char::from).filter(char::is_ascii_graphic));
        }
        // Those of Microsoft's Audio Compression Manager have a WAVEFORMATEX.
        let format = part(CODEC_PRIVATE).filter(|_| name == "A_MS/ACM").map(|e| fields.get(e.body));
        return Ok(Some(match format.transpose()?.flatten() {
            Some(tag) => names::wave_format(u16::from_le_bytes(tag)),
            None => name.trim_start_matches("A_").to_lowercase(),
        }));
    }
    Ok(None)
}

/// An element: its identifier, and where its contents are.
struct Element {
    id: u64,
    body: u64,
    end: u64,
}

/// The elements between two places, up to the first cluster.
fn elements<S: Read + Seek>(fields: &mut Fields<'_, S>, mut at: u64, end: u64) -> Result<Vec<Element>> {
    let mut found = Vec::new();
    while at < end && found.len() < MAX_ELEMENTS {
        // An identifier is a length field with its mark.
        let Some((value, id_bytes)) = size(fields, at)? else { break };
        let Some((content, bytes)) = size(fields, at + id_bytes)? else { break };
        let (id, body) = (value | 1 << (7 * id_bytes), at + id_bytes + bytes);
        if id == u64::from(u32::from_be_bytes(CLUSTER)) {
            break;
        }
        // An unknown length is a very large one.
        at = body.saturating_add(content).min(end);
        found.push(Element { id, body, end: at });
    }
    Ok(found)
}

/// The value of a length field of `n` bytes that stands for no length.
fn unknown(n: u64) -> u64 {
    (1 << (7 * n)) - 1
}

/// A length field of `n` bytes.
fn size_field(value: u64, n: u64) -> Vec<u8> {
    (value | 1 << (7 * n)).to_be_bytes()[(MAX_SIZE_BYTES - n) as usize..].to_vec()
}

/// The length that stands at `at`, and its own length: as many bytes as there are zeros before the first one.
fn size<S: Read + Seek>(fields: &mut Fields<'_, S>, at: u64) -> Result<Option<(u64, u64)>> {
    let Some([first]) = fields.get(at)? else { return Ok(None) };
    let n = u64::from(u8::leading_zeros(first)) + 1;
    if n > MAX_SIZE_BYTES {
        return Ok(None);
    }
    let mut value = u64::from(first) & ((1 << (8 - n)) - 1);
    for i in 1..n {
        let Some([byte]) = fields.get(at + i)? else { return Ok(None) };
        value = value << 8 | u64::from(byte);
    }
    Ok(Some((value, n)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn only_segments_beyond_the_end_are_cut() {
        let patch = |size: &[u8]| {
            let bytes = [&EBML[..], &[0x82, 0, 0], &SEGMENT, size, &[0; 100]].concat();
            cut_segment(&mut Cursor::new(&bytes), bytes.len() as u64).unwrap()
        };
        assert_eq!(patch(&[0xe4]), []);
        assert_eq!(patch(&[0xe5]), [Patch { at: 11, bytes: vec![0xff] }]);
        assert_eq!(patch(&[0xff]), []);
        assert_eq!(patch(&[0x10, 0, 0, 101]), [Patch { at: 11, bytes: vec![0x1f, 0xff, 0xff, 0xff] }]);
        let long = patch(&[0x01, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(long, [Patch { at: 11, bytes: vec![0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff] }]);
        assert_eq!(patch(&[0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), []);
    }

    #[test]
    fn lists_of_elements_become_empty_space() {
        let element = |id: &[u8], body: &[u8]| [id, &[0x80 | body.len() as u8], body].concat();
        let elements = [element(&[VOID], &[0; 3]), element(&SEEK_HEAD, &[7; 20]), element(&CLUSTER, &[0; 5])].concat();
        let bytes = [&EBML[..], &[0x82, 0, 0], &SEGMENT, &[0x40, 200], &elements].concat();
        let patches = cut_segment(&mut Cursor::new(&bytes), bytes.len() as u64).unwrap();
        // Empty space of the same length: five bytes of header, and what was in the list.
        assert_eq!(patches[1], Patch { at: 18, bytes: vec![VOID, 0x10, 0, 0, 20] });
        assert_eq!(patches.len(), 2);
    }
}
