//! Where the sound of an MP4 track begins: its edit list, which the demuxer reads but does not apply.

use std::io::{Read, Result, Seek, SeekFrom};

/// Boxes that are looked at, in all.
const MAX_BOXES: usize = 4096;

/// Entries of an edit list that are looked at.
const MAX_EDITS: u32 = 16;

/// The part before the start of a track, which encoders need and players leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// The track.
    pub track: u32,
    /// Length of the part, in units of the track.
    pub media_time: u64,
    /// Units per second.
    pub timescale: u32,
}

/// The starts of all tracks with an edit list; none if this is not an MP4 file. `len`: bytes of the file.
///
/// Source: ISO 14496-12, 8.3.2 (tkhd), 8.4.2 (mdhd), 8.6.6 (elst).
pub(super) fn starts(src: &mut (impl Read + Seek), len: u64) -> Result<Vec<Start>> {
    let mut walk = Walk { src, left: MAX_BOXES };
    let mut starts = Vec::new();
    if walk.header(0, len)?.is_none_or(|b| &b.kind != b"ftyp") {
        return Ok(starts);
    }
    for moov in walk.children(0, len, b"moov")? {
        for trak in walk.children(moov.body, moov.end, b"trak")? {
            starts.extend(walk.start(trak)?);
        }
    }
    Ok(starts)
}

#[derive(Clone, Copy)]
struct Mp4Box {
    kind: [u8; 4],
    body: u64,
    end: u64,
}

struct Walk<'a, S> {
    src: &'a mut S,
    left: usize,
}

impl<S: Read + Seek> Walk<'_, S> {
    fn start(&mut self, trak: Mp4Box) -> Result<Option<Start>> {
        let Some(tkhd) = self.child(trak, b"tkhd")? else { return Ok(None) };
        let Some(edts) = self.child(trak, b"edts")? else { return Ok(None) };
        let Some(elst) = self.child(edts, b"elst")? else { return Ok(None) };
        let Some(mdia) = self.child(trak, b"mdia")? else { return Ok(None) };
        let Some(mdhd) = self.child(mdia, b"mdhd")? else { return Ok(None) };
        let Some(track) = self.after_times(tkhd)? else { return Ok(None) };
        let Some(timescale) = self.after_times(mdhd)? else { return Ok(None) };
        let Some(media_time) = self.first_edit(elst)? else { return Ok(None) };
        Ok((timescale > 0).then_some(Start { track, media_time, timescale }))
    }

    /// The field after the version, the flags and the two times: a track's number, a media's timescale.
    fn after_times(&mut self, b: Mp4Box) -> Result<Option<u32>> {
        let Some([version, ..]) = self.bytes::<4>(b, 0)? else { return Ok(None) };
        let at = if version == 1 { 20 } else { 12 };
        Ok(self.bytes(b, at)?.map(u32::from_be_bytes))
    }

    /// Media time of the first edit that is not empty.
    fn first_edit(&mut self, elst: Mp4Box) -> Result<Option<u64>> {
        let Some([version, _, _, _, count @ ..]) = self.bytes::<8>(elst, 0)? else { return Ok(None) };
        for i in 0..u64::from(u32::from_be_bytes(count).min(MAX_EDITS)) {
            let time = if version == 1 {
                self.bytes(elst, 8 + 20 * i + 8)?.map(i64::from_be_bytes)
            } else {
                self.bytes(elst, 8 + 12 * i + 4)?.map(|b| i64::from(i32::from_be_bytes(b)))
            };
            let Some(time) = time else { return Ok(None) };
            if let Ok(time) = u64::try_from(time) {
                return Ok(Some(time));
            }
        }
        Ok(None)
    }

    fn child(&mut self, parent: Mp4Box, kind: &[u8; 4]) -> Result<Option<Mp4Box>> {
        Ok(self.children(parent.body, parent.end, kind)?.first().copied())
    }

    /// The boxes of one kind between two places.
    fn children(&mut self, mut at: u64, end: u64, kind: &[u8; 4]) -> Result<Vec<Mp4Box>> {
        let mut found = Vec::new();
        while let Some(b) = self.header(at, end)? {
            if &b.kind == kind {
                found.push(b);
            }
            at = b.end;
        }
        Ok(found)
    }

    /// The box at `at`, if it is whole.
    fn header(&mut self, at: u64, end: u64) -> Result<Option<Mp4Box>> {
        self.left = self.left.saturating_sub(1);
        let outer = Mp4Box { kind: [0; 4], body: at, end };
        let Some([a, b, c, d, kind @ ..]) = self.bytes::<8>(outer, 0)? else { return Ok(None) };
        let (head, size) = match u32::from_be_bytes([a, b, c, d]) {
            0 => (8, end - at),
            1 => match self.bytes(outer, 8)? {
                Some(size) => (16, u64::from_be_bytes(size)),
                None => return Ok(None),
            },
            size => (8, u64::from(size)),
        };
        let whole = self.left > 0 && size >= head && size <= end - at;
        Ok(whole.then_some(Mp4Box { kind, body: at + head, end: at + size }))
    }

    /// Bytes of a box from an offset into its body, or `None` past its end.
    fn bytes<const N: usize>(&mut self, b: Mp4Box, offset: u64) -> Result<Option<[u8; N]>> {
        if b.end.saturating_sub(b.body) < offset + N as u64 {
            return Ok(None);
        }
        let mut bytes = [0; N];
        self.src.seek(SeekFrom::Start(b.body + offset))?;
        self.src.read_exact(&mut bytes)?;
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn mp4_box(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
        [&(body.len() as u32 + 8).to_be_bytes()[..], kind, body].concat()
    }

    fn file(elst: &[u8]) -> Vec<u8> {
        let head = |value: u32| [&[0; 12][..], &value.to_be_bytes(), &[0; 8]].concat();
        let mdia = mp4_box(b"mdia", &mp4_box(b"mdhd", &head(44_100)));
        let edts = mp4_box(b"edts", &mp4_box(b"elst", elst));
        let trak = [mp4_box(b"tkhd", &head(7)), edts, mdia].concat();
        let moov = mp4_box(b"moov", &mp4_box(b"trak", &trak));
        [mp4_box(b"ftyp", b"M4A "), mp4_box(b"mdat", &[0; 100]), moov].concat()
    }

    fn found(bytes: &[u8]) -> Vec<Start> {
        starts(&mut Cursor::new(bytes), bytes.len() as u64).unwrap()
    }

    #[test]
    fn the_first_edit_that_is_not_empty_counts() {
        let want = [Start { track: 7, media_time: 2112, timescale: 44_100 }];
        let entry = |time: i32| [&1000u32.to_be_bytes()[..], &time.to_be_bytes(), &0x10000u32.to_be_bytes()].concat();
        let short = [&[0, 0, 0, 0, 0, 0, 0, 2][..], &entry(-1), &entry(2112)].concat();
        assert_eq!(found(&file(&short)), want);
        let entry = |time: i64| [&1000u64.to_be_bytes()[..], &time.to_be_bytes(), &0x10000u32.to_be_bytes()].concat();
        let long = [&[1, 0, 0, 0, 0, 0, 0, 2][..], &entry(-1), &entry(2112)].concat();
        assert_eq!(found(&file(&long)), want);
    }

    #[test]
    fn files_without_edits_start_at_the_start() {
        assert_eq!(found(b""), []);
        assert_eq!(found(b"RIFF\0\0\0\0WAVE"), []);
        assert_eq!(found(&file(&[0; 8])), []);
        assert_eq!(found(&file(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])), []);
    }
}
