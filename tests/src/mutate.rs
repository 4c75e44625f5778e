//! Damaged copies of files, for readers that must answer with an error and not with a panic.

use crate::rng::Rng;

/// Numbers that find missing checks where a count, a length or an offset stands.
const ODD_NUMBERS: [u64; 10] =
    [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, 0x8000_0000_0000_0000, u64::MAX];
/// Single changes of one mutation.
const MAX_CHANGES: usize = 6;
/// Bytes that one change inserts, deletes or repeats.
const MAX_PIECE: usize = 40;

/// `file` with one to six changes: bits, bytes or numbers replaced, pieces inserted, deleted or repeated, the end cut.
/// All but every eighth change falls into the first `header` bytes.
pub fn mutate(file: &[u8], header: usize, rng: &mut Rng) -> Vec<u8> {
    let mut out = file.to_vec();
    for _ in 0..=rng.below(MAX_CHANGES) {
        let reach = if rng.below(8) == 0 { out.len() } else { header.min(out.len()) };
        if reach == 0 {
            break;
        }
        change(&mut out, reach, rng);
    }
    out
}

fn change(out: &mut Vec<u8>, reach: usize, rng: &mut Rng) {
    let at = rng.below(reach);
    let piece = at..(at + 1 + rng.below(MAX_PIECE)).min(out.len());
    match rng.below(8) {
        0 => out[at] ^= 1 << rng.below(8),
        1 => out[at] = rng.next_u64() as u8,
        2 | 3 => {
            let width = *rng.pick(&[4, 8]);
            let number = rng.pick(&ODD_NUMBERS).to_le_bytes();
            let end = (at + width).min(out.len());
            out[at..end].copy_from_slice(&number[..end - at]);
        }
        4 => {
            let n = 1 + rng.below(MAX_PIECE);
            let new = rng.bytes(n);
            out.splice(at..at, new);
        }
        5 => {
            out.drain(piece);
        }
        6 => {
            let copy = out[piece].to_vec();
            out.splice(at..at, copy);
        }
        _ => out.truncate(at),
    }
}
