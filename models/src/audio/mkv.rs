//! Matroska files that were cut short: the demuxer wants the whole segment.

use std::io::{Read, Result, Seek};

use super::fields::Fields;
use super::patched::Patch;

/// Identifiers. Source: RFC 8794 (EBML header), RFC 9559, 5.1 (Segment and what is in it).
const EBML: [u8; 4] = [0x1a, 0x45, 0xdf, 0xa3];
const SEGMENT: [u8; 4] = [0x18, 0x53, 0x80, 0x67];
const SEEK_HEAD: [u8; 4] = [0x11, 0x4d, 0x9b, 0x74];
const CLUSTER: [u8; 4] = [0x1f, 0x43, 0xb6, 0x75];
const VOID: u8 = 0xec;

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
