//! Kept sequences as bytes: their tokens, and what the session's snapshot says of their memory.
//!
//! ```text
//! "tympanSQ"  version u32  n_tokens u64  token u32 of every token  crc u32 of all before  snapshot
//! ```
//!
//! Integers are little endian; the checksum is CRC-32C.

use engine::crc32c;

use super::{Scheduler, places::Kept};
use crate::error::{Error, Result};

const MAGIC: [u8; 8] = *b"tympanSQ";
/// Changes with the layout of the bytes; the snapshot has a version of its own.
const VERSION: u32 = 1;

impl Scheduler {
    /// The sequence that a place keeps, without its checkpoints; `None` where it keeps none.
    ///
    /// Errors: those of the backend.
    pub fn save(&self, place: usize) -> Result<Option<Vec<u8>>> {
        let Some(Kept { slot, tokens, .. }) = self.places.kept(place) else { return Ok(None) };
        let snapshot = self.session.snapshot(*slot)?;
        let mut out = MAGIC.to_vec();
        out.reserve(tokens.len() * size_of::<u32>() + snapshot.len() + 32);
        out.extend(VERSION.to_le_bytes());
        out.extend((tokens.len() as u64).to_le_bytes());
        tokens.iter().for_each(|token| out.extend(token.to_le_bytes()));
        out.extend(crc32c(&[&out]).to_le_bytes());
        out.extend(snapshot);
        Ok(Some(out))
    }

    /// Makes a place keep a sequence that was saved, in place of what it keeps. Returns its number of tokens.
    ///
    /// Errors: `Snapshot` for bytes that are no sequence of this model, and for damage; `ContextFull` for one that is too long;
    /// `NoFreeSlot` for a place that is in use. The place has kept what it had, or where states and tokens are not of one
    /// sequence, nothing.
    pub fn restore(&mut self, place: usize, bytes: &[u8]) -> Result<usize> {
        self.sweep();
        if !self.is_free(place) {
            let n_slots = self.session.memory().n_slots();
            return Err(engine::Error::NoFreeSlot { n_slots }.into());
        }
        let (tokens, snapshot) = parts(bytes)?;
        let Self { session, places, .. } = self;
        let is_new = places.kept(place).is_none();
        let slot = match places.kept(place) {
            Some(kept) => kept.slot,
            None => session.memory_mut().acquire_at(place)?,
        };
        let restored = session.restore(slot, snapshot).and_then(|()| session.memory().n_past(slot));
        match restored {
            Ok(n) if n == tokens.len() => {
                places.take(place);
                places.keep(slot, tokens);
                Ok(n)
            }
            result => {
                // A snapshot that was refused has changed nothing; one of another length is not what the tokens say.
                if is_new || result.is_ok() {
                    places.take(place);
                    session.memory_mut().release(slot);
                }
                result?;
                Err(bad(format!("it has {} tokens, and its states another number of them", tokens.len())))
            }
        }
    }
}

/// The tokens, and the snapshot behind them.
fn parts(bytes: &[u8]) -> Result<(Vec<u32>, &[u8])> {
    const HEADER: usize = MAGIC.len() + size_of::<u32>() + size_of::<u64>();
    let cut = || bad("it ends too early".into());
    let (header, rest) = bytes.split_at_checked(HEADER).ok_or_else(cut)?;
    let (magic, numbers) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(bad("these bytes are no saved sequence".into()));
    }
    let (version, n) = numbers.split_at(size_of::<u32>());
    let version = u32::from_le_bytes(version.try_into().expect("as many bytes as were taken"));
    if version != VERSION {
        return Err(bad(format!("want version {VERSION}, got {version}")));
    }
    let n = u64::from_le_bytes(n.try_into().expect("as many bytes as were taken"));
    let len = usize::try_from(n).ok().and_then(|n| n.checked_mul(size_of::<u32>()));
    let (tokens, rest) = len.and_then(|len| rest.split_at_checked(len)).ok_or_else(cut)?;
    let (crc, snapshot) = rest.split_at_checked(size_of::<u32>()).ok_or_else(cut)?;
    if crc != crc32c(&[header, tokens]).to_le_bytes() {
        return Err(bad("its tokens are damaged".into()));
    }
    let token = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("chunks of four bytes"));
    Ok((tokens.chunks_exact(size_of::<u32>()).map(token).collect(), snapshot))
}

fn bad(what: String) -> Error {
    engine::Error::Snapshot { what }.into()
}
