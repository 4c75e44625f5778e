//! Ogg files with broken pages: the demuxer stops at the first one, so it is shown the others.
//!
//! Source: RFC 3533, section 6 (pages and their checksum).

use std::io::{Read, Result, Seek, SeekFrom};
use std::ops::Range;

use super::window::Window;

/// What a page begins with.
const CAPTURE: [u8; 4] = *b"OggS";

/// Bytes of the fixed part of a page's header, and of the longest page.
const HEADER_BYTES: usize = 27;
const MAX_PAGE_BYTES: usize = HEADER_BYTES + 255 + 255 * 255;

/// What is to know about an Ogg file before it is demuxed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ogg {
    /// Where the whole pages are, joined where they touch. Nothing if no page is broken, or none is whole.
    pub whole: Vec<Range<u64>>,
    /// The first pages of sound are broken.
    pub begins_broken: bool,
}

/// Looks for broken pages; there are none in a file that is no Ogg file.
pub(super) fn inspect(src: &mut (impl Read + Seek)) -> Result<Ogg> {
    src.seek(SeekFrom::Start(0))?;
    let mut window = Window::new(src);
    let mut ogg = Ogg::default();
    if !window.ahead(MAX_PAGE_BYTES)?.starts_with(&CAPTURE) {
        return Ok(ogg);
    }
    let table = table();
    let (mut broken, mut sounds) = (false, false);
    loop {
        let place = window.offset();
        let ahead = window.ahead(MAX_PAGE_BYTES)?;
        if ahead.is_empty() {
            break;
        }
        let n = match whole_page(ahead, &table) {
            Some(page) => {
                sounds |= granule(page) > 0;
                let n = page.len() as u64;
                match ogg.whole.last_mut() {
                    Some(last) if last.end == place => last.end += n,
                    _ => ogg.whole.push(place..place + n),
                }
                page.len()
            }
            None => {
                broken = true;
                ogg.begins_broken |= !sounds;
                let next = ahead[1..].windows(CAPTURE.len()).position(|w| w == CAPTURE);
                // The last bytes may begin a capture.
                next.map_or(ahead.len().saturating_sub(CAPTURE.len() - 1).max(1), |at| at + 1)
            }
        };
        window.pass(n as u64)?;
    }
    Ok(if broken { ogg } else { Ogg::default() })
}

/// The page that begins here, if it is whole and its checksum is right.
fn whole_page<'a>(bytes: &'a [u8], table: &[u32; 256]) -> Option<&'a [u8]> {
    const CHECKSUM: Range<usize> = 22..26;
    let header = bytes.get(..HEADER_BYTES).filter(|header| header.starts_with(&CAPTURE))?;
    let head = HEADER_BYTES + usize::from(header[HEADER_BYTES - 1]);
    let body: usize = bytes.get(HEADER_BYTES..head)?.iter().map(|&n| usize::from(n)).sum();
    let page = bytes.get(..head + body)?;
    let add = |sum: u32, byte: u8| sum << 8 ^ table[usize::from((sum >> 24) as u8 ^ byte)];
    let sum = page[..CHECKSUM.start].iter().fold(0, |sum, &byte| add(sum, byte));
    let sum = CHECKSUM.fold(sum, |sum, _| add(sum, 0));
    let sum = page[CHECKSUM.end..].iter().fold(sum, |sum, &byte| add(sum, byte));
    (sum.to_le_bytes() == page[CHECKSUM]).then_some(page)
}

/// The time at the end of a page: nothing on those of headers, -1 where no packet ends.
fn granule(page: &[u8]) -> i64 {
    page.get(6..14).and_then(|b| b.first_chunk()).map_or(0, |b| i64::from_le_bytes(*b))
}

/// Checksums of single bytes, by the polynomial 0x04c11db7.
fn table() -> [u32; 256] {
    const POLYNOMIAL: u32 = 0x04c1_1db7;
    std::array::from_fn(|i| {
        (0..8).fold((i as u32) << 24, |sum, _| if sum >> 31 == 1 { sum << 1 ^ POLYNOMIAL } else { sum << 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// The beginning of a page.
    const PAGE: &[u8] = b"OggS\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

    #[test]
    fn the_checksum_is_that_of_the_specification() {
        // CRC-32/MPEG-2 without its initial value: 0x89a1897f for "123456789" (catalogue of parametrised CRC algorithms,
        // CRC-32/CKSUM before its length and its complement).
        let table = table();
        let sum = b"123456789".iter().fold(0u32, |sum, &byte| sum << 8 ^ table[usize::from((sum >> 24) as u8 ^ byte)]);
        assert_eq!(sum, 0x89a1_897f);
    }

    #[test]
    fn files_without_pages_have_none() {
        for bytes in [&b""[..], b"OggS", b"fLaC and more", PAGE] {
            assert_eq!(inspect(&mut Cursor::new(bytes)).unwrap().whole, []);
        }
    }
}
