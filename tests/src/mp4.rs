//! MP4 files made from others: with the index first, with sound that starts late, with two tracks.

use std::ops::Range;

/// Box kinds that hold the sizes of what is inside an edit list or a chunk table, from the inside out.
const AROUND_EDITS: [&[u8; 4]; 4] = [b"elst", b"edts", b"trak", b"moov"];

/// Bytes of an entry of an edit list.
const EDIT_BYTES: usize = 12;

fn word(file: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*file[at..].first_chunk().expect("the field is inside the file"))
}

/// Where the name of the first box of this kind stands.
fn find(file: &[u8], kind: &[u8; 4]) -> usize {
    file.windows(4).position(|w| w == kind).expect("the file has such a box")
}

/// The first box of this kind, header included.
fn whole(file: &[u8], kind: &[u8; 4]) -> Range<usize> {
    let start = find(file, kind) - 4;
    start..start + word(file, start) as usize
}

/// Adds `by` to every chunk offset of the first track of `file`.
fn move_chunks(file: &mut [u8], by: u32) {
    let stco = find(file, b"stco") + 4;
    let n = word(file, stco + 4) as usize;
    for offset in file[stco + 8..stco + 8 + 4 * n].as_chunks_mut::<4>().0 {
        *offset = u32::from_be_bytes(*offset).wrapping_add(by).to_be_bytes();
    }
}

fn boxed(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32 + 8).to_be_bytes()[..], kind, body].concat()
}

/// Units per second of a file's edit lists.
pub fn movie_timescale(file: &[u8]) -> u32 {
    word(file, find(file, b"mvhd") + 16)
}

/// The file of one track with its index before its samples.
pub fn index_first(file: &[u8]) -> Vec<u8> {
    let (moov, mdat) = (whole(file, b"moov"), whole(file, b"mdat"));
    let mut index = file[moov.clone()].to_vec();
    let samples = &file[mdat.clone()];
    let ftyp = &file[whole(file, b"ftyp")];
    let at = (ftyp.len() + index.len()) as u32;
    move_chunks(&mut index, at.wrapping_sub(mdat.start as u32));
    [ftyp, &index, samples].concat()
}

/// The file with an empty edit of so many units before its first one.
pub fn with_empty_edit(file: &[u8], units: u32) -> Vec<u8> {
    let mut out = index_first(file);
    let elst = find(&out, b"elst");
    let n_edits = word(&out, elst + 8) + 1;
    out[elst + 8..elst + 12].copy_from_slice(&n_edits.to_be_bytes());
    let entry = [units.to_be_bytes(), (-1i32).to_be_bytes(), 0x10000u32.to_be_bytes()].concat();
    out.splice(elst + 12..elst + 12, entry);
    for kind in AROUND_EDITS {
        let at = find(&out, kind) - 4;
        let size = word(&out, at) + EDIT_BYTES as u32;
        out[at..at + 4].copy_from_slice(&size.to_be_bytes());
    }
    move_chunks(&mut out, EDIT_BYTES as u32);
    out
}

/// The tracks of two files in one.
pub fn two_tracks(first: &[u8], second: &[u8]) -> Vec<u8> {
    let samples = |file: &[u8]| {
        let mdat = whole(file, b"mdat");
        (mdat.start as u32 + 8, file[mdat.start + 8..mdat.end].to_vec())
    };
    let ((first_at, first_samples), (second_at, second_samples)) = (samples(first), samples(second));
    let ftyp = first[whole(first, b"ftyp")].to_vec();
    let start = ftyp.len() as u32 + 8;
    let mut trak = [first[whole(first, b"trak")].to_vec(), second[whole(second, b"trak")].to_vec()];
    move_chunks(&mut trak[0], start.wrapping_sub(first_at));
    move_chunks(&mut trak[1], (start + first_samples.len() as u32).wrapping_sub(second_at));
    for (i, trak) in trak.iter_mut().enumerate() {
        let id = find(trak, b"tkhd") + 16;
        trak[id..id + 4].copy_from_slice(&(i as u32 + 1).to_be_bytes());
    }
    let index = boxed(b"moov", &[&first[whole(first, b"mvhd")], &trak[0], &trak[1]].concat());
    [ftyp, boxed(b"mdat", &[first_samples, second_samples].concat()), index].concat()
}
