//! What the demuxer does not tell of MP4 and QuickTime files: where the sound of a track begins (edit lists), the order of
//! bytes in plain samples, and that the samples of a file were cut short.

use std::io::{Read, Result, Seek};

use super::fields::Fields;
use super::patched::Patch;

/// Boxes that are looked at, in all.
const MAX_BOXES: usize = 4096;

/// Boxes that say what the samples are: of all, of a fragment.
const INDICES: [&[u8; 4]; 2] = [b"moov", b"moof"];

/// Boxes that a file begins with.
const FIRST_BOXES: [&[u8; 4]; 3] = [b"ftyp", b"wide", b"mdat"];

/// Entries of an edit list that are looked at.
const MAX_EDITS: u32 = 16;

/// Sample entries of QuickTime whose samples have the highest byte first unless an `enda` atom says otherwise.
const BIG_ENDIAN: [&[u8; 4]; 4] = [b"in24", b"in32", b"fl32", b"fl64"];

/// What is to know about an MP4 file before it is demuxed.
#[derive(Default)]
pub(super) struct Mp4 {
    /// Tracks with something to know.
    pub tracks: Vec<Mp4Track>,
    /// What a demuxer should see instead.
    pub patches: Vec<Patch>,
    /// There are samples, and nothing that says what they are.
    pub without_index: bool,
}

impl Mp4 {
    /// What is known of a track.
    pub(super) fn track(&self, id: u32) -> Option<&Mp4Track> {
        self.tracks.iter().find(|track| track.id == id)
    }
}

/// A track.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mp4Track {
    /// Its number.
    pub id: u32,
    /// When its sound begins, in seconds of the file's clock.
    pub start_s: f64,
    /// Seconds before the start, which encoders need and players leave out.
    pub lead: Lead,
    /// Whether its samples are plain and have the highest byte first, which the demuxer does not notice.
    pub big_endian: bool,
}

/// A time in units of a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lead {
    /// Length, in units.
    pub units: u64,
    /// Units per second, at least one.
    pub timescale: u32,
}

impl Lead {
    /// Frames at this rate.
    pub(super) fn frames(self, rate_hz: u32) -> u64 {
        let frames = u128::from(self.units) * u128::from(rate_hz) / u128::from(self.timescale);
        u64::try_from(frames).unwrap_or(u64::MAX)
    }

    /// Length in seconds.
    pub(super) fn seconds(self) -> f64 {
        self.units as f64 / f64::from(self.timescale)
    }
}

/// Looks at a file of `len` bytes; nothing is known of one that is no MP4 file.
///
/// Sources: ISO 14496-12, 8.2.2 (mvhd), 8.3.2 (tkhd), 8.4.2 (mdhd), 8.6.6 (elst); QuickTime File Format, Sound Media.
pub(super) fn inspect(src: &mut (impl Read + Seek), len: u64) -> Result<Mp4> {
    let mut walk = Walk { fields: Fields::new(src, len), left: MAX_BOXES };
    let mut mp4 = Mp4::default();
    let Some([_, _, _, _, first @ ..]) = walk.fields.get::<8>(0)? else { return Ok(mp4) };
    if FIRST_BOXES.contains(&&first) {
        mp4.without_index = walk.without_index()?;
        walk.left = MAX_BOXES;
    }
    if walk.header(0, len)?.is_none_or(|b| &b.kind != b"ftyp") {
        return Ok(mp4);
    }
    mp4.patches = walk.cut_samples()?;
    // Fragmented files have any number of boxes outside of the index.
    walk.left = MAX_BOXES;
    let indices = walk.children(0, len, b"moov")?;
    walk.left = MAX_BOXES;
    for moov in indices {
        let movie_timescale = match walk.child(moov, b"mvhd")? {
            Some(mvhd) => walk.after_times(mvhd)?.unwrap_or(0),
            None => 0,
        };
        for trak in walk.children(moov.body, moov.end, b"trak")? {
            mp4.tracks.extend(walk.track(trak, movie_timescale)?);
        }
    }
    Ok(mp4)
}

/// An edit list: what comes before the sound, and where in the media it begins.
#[derive(Clone, Copy, Default)]
struct Edits {
    empty: u64,
    media_time: u64,
}

#[derive(Clone, Copy)]
struct Mp4Box {
    kind: [u8; 4],
    body: u64,
    end: u64,
}

struct Walk<'a, S> {
    fields: Fields<'a, S>,
    left: usize,
}

impl<S: Read + Seek> Walk<'_, S> {
    fn track(&mut self, trak: Mp4Box, movie_timescale: u32) -> Result<Option<Mp4Track>> {
        let Some(tkhd) = self.child(trak, b"tkhd")? else { return Ok(None) };
        let Some(mdia) = self.child(trak, b"mdia")? else { return Ok(None) };
        let Some(mdhd) = self.child(mdia, b"mdhd")? else { return Ok(None) };
        let Some(id) = self.after_times(tkhd)? else { return Ok(None) };
        let Some(timescale) = self.after_times(mdhd)?.filter(|&t| t > 0) else { return Ok(None) };
        let edits = match self.child(trak, b"edts")? {
            Some(edts) => self.child(edts, b"elst")?,
            None => None,
        };
        let edits = match edits {
            Some(elst) => self.edits(elst)?,
            None => Edits::default(),
        };
        let start_s = if movie_timescale > 0 { edits.empty as f64 / f64::from(movie_timescale) } else { 0.0 };
        let lead = Lead { units: edits.media_time, timescale };
        let big_endian = self.is_big_endian(mdia)?;
        Ok(Some(Mp4Track { id, start_s, lead, big_endian }))
    }

    /// The field after the version, the flags and the two times: a track's number, a timescale.
    fn after_times(&mut self, b: Mp4Box) -> Result<Option<u32>> {
        let Some([version, ..]) = self.bytes::<4>(b, 0)? else { return Ok(None) };
        let at = if version == 1 { 20 } else { 12 };
        Ok(self.bytes(b, at)?.map(u32::from_be_bytes))
    }

    /// Lengths of the empty edits at the start, and media time of the first edit that is not empty.
    fn edits(&mut self, elst: Mp4Box) -> Result<Edits> {
        let mut edits = Edits::default();
        let Some([version, _, _, _, count @ ..]) = self.bytes::<8>(elst, 0)? else { return Ok(edits) };
        for i in 0..u64::from(u32::from_be_bytes(count).min(MAX_EDITS)) {
            let (length, time) = if version == 1 {
                let at = 8 + 20 * i;
                (self.bytes(elst, at)?.map(u64::from_be_bytes), self.bytes(elst, at + 8)?.map(i64::from_be_bytes))
            } else {
                let at = 8 + 12 * i;
                let length = self.bytes(elst, at)?.map(|b| u64::from(u32::from_be_bytes(b)));
                (length, self.bytes(elst, at + 4)?.map(|b| i64::from(i32::from_be_bytes(b))))
            };
            let (Some(length), Some(time)) = (length, time) else { return Ok(Edits::default()) };
            match u64::try_from(time) {
                Ok(media_time) => return Ok(Edits { media_time, ..edits }),
                Err(_) => edits.empty = edits.empty.saturating_add(length),
            }
        }
        Ok(Edits::default())
    }

    /// Whether the sound of a media box is plain samples with the highest byte first.
    fn is_big_endian(&mut self, mdia: Mp4Box) -> Result<bool> {
        const ENTRIES: u64 = 8;
        // The fields of a sound sample entry, by its version; version 2 says the order elsewhere.
        const FIELDS: [u64; 2] = [28, 44];
        let mut inner = mdia;
        for kind in [b"minf", b"stbl", b"stsd"] {
            let Some(child) = self.child(inner, kind)? else { return Ok(false) };
            inner = child;
        }
        let Some(entry) = self.header(inner.body + ENTRIES, inner.end)? else { return Ok(false) };
        if !BIG_ENDIAN.contains(&&entry.kind) {
            return Ok(false);
        }
        let version = self.bytes(entry, 8)?.map(u16::from_be_bytes);
        let Some(&fields) = version.and_then(|v| FIELDS.get(usize::from(v))) else { return Ok(false) };
        let extensions = Mp4Box { body: entry.body + fields, ..entry };
        let wave = self.child(extensions, b"wave")?.unwrap_or(extensions);
        let enda = match self.child(wave, b"enda")? {
            Some(enda) => self.bytes(enda, 0)?.map(u16::from_be_bytes),
            None => None,
        };
        Ok(enda.is_none_or(|little| little == 0))
    }

    /// Where the samples are longer than the file, they go to its end.
    fn cut_samples(&mut self) -> Result<Vec<Patch>> {
        let mut at = 0;
        while let Some(b) = self.header(at, self.fields.len)? {
            at = b.end;
        }
        let Some([a, b, c, d, kind @ ..]) = self.fields.get::<8>(at)? else { return Ok(Vec::new()) };
        let long = [a, b, c, d] == [0, 0, 0, 1];
        if &kind != b"mdat" || self.left == 0 {
            return Ok(Vec::new());
        }
        let bytes = if long { (self.fields.len - at).to_be_bytes().into() } else { vec![0; 4] };
        Ok(vec![Patch { at: if long { at + 8 } else { at }, bytes }])
    }

    /// Whether there are samples without an index, before or among them.
    fn without_index(&mut self) -> Result<bool> {
        let (mut at, mut samples) = (0, false);
        loop {
            let kind = self.fields.get::<4>(at + 4)?;
            samples |= kind == Some(*b"mdat");
            if kind.is_some_and(|kind| INDICES.contains(&&kind)) || self.left == 0 {
                return Ok(false);
            }
            let Some(b) = self.header(at, self.fields.len)? else { return Ok(samples) };
            at = b.end;
        }
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
        self.fields.get(b.body + offset)
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
        let moov = mp4_box(b"moov", &[mp4_box(b"mvhd", &head(500)), mp4_box(b"trak", &trak)].concat());
        [mp4_box(b"ftyp", b"M4A "), mp4_box(b"mdat", &[0; 100]), moov].concat()
    }

    /// The start in seconds and the lead of the tracks.
    fn found(bytes: &[u8]) -> Vec<(u32, f64, u64)> {
        let tracks = inspect(&mut Cursor::new(bytes), bytes.len() as u64).unwrap().tracks;
        tracks.iter().map(|t| (t.id, t.start_s, t.lead.units)).collect()
    }

    #[test]
    fn the_first_edit_that_is_not_empty_counts() {
        let want = [(7, 2.0, 2112)];
        let entry = |time: i32| [&1000u32.to_be_bytes()[..], &time.to_be_bytes(), &0x10000u32.to_be_bytes()].concat();
        let short = [&[0, 0, 0, 0, 0, 0, 0, 2][..], &entry(-1), &entry(2112)].concat();
        assert_eq!(found(&file(&short)), want);
        let entry = |time: i64| [&1000u64.to_be_bytes()[..], &time.to_be_bytes(), &0x10000u32.to_be_bytes()].concat();
        let long = [&[1, 0, 0, 0, 0, 0, 0, 2][..], &entry(-1), &entry(2112)].concat();
        assert_eq!(found(&file(&long)), want);
    }

    #[test]
    fn samples_that_were_cut_go_to_the_end() {
        let ftyp = mp4_box(b"ftyp", b"M4A ");
        let patches = |mdat: &[u8]| {
            let bytes = [&ftyp[..], mdat, b"samples"].concat();
            inspect(&mut Cursor::new(&bytes), bytes.len() as u64).unwrap().patches
        };
        assert_eq!(patches(b"\0\0\x01\0mdat"), [Patch { at: 12, bytes: vec![0; 4] }]);
        let long = b"\0\0\0\x01mdat\0\0\0\x01\0\0\0\0";
        assert_eq!(patches(long), [Patch { at: 20, bytes: vec![0, 0, 0, 0, 0, 0, 0, 23] }]);
        assert_eq!(patches(b"\0\0\0\x0fmdat"), []);
        assert_eq!(patches(b"\0\0\x01\0moov"), []);
    }

    #[test]
    fn files_without_edits_start_at_the_start() {
        assert_eq!(found(b""), []);
        assert_eq!(found(b"RIFF\0\0\0\0WAVE"), []);
        assert_eq!(found(&file(&[0; 8])), [(7, 0.0, 0)]);
        assert_eq!(found(&file(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])), [(7, 0.0, 0)]);
    }
}
