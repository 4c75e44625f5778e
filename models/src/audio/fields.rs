//! Fields of fixed size at given places of a file.

use std::io::{Read, Result, Seek, SeekFrom};

/// A seekable source with its length in bytes.
pub(super) struct Fields<'a, S> {
    src: &'a mut S,
    /// Bytes of the source.
    pub len: u64,
}

impl<'a, S: Read + Seek> Fields<'a, S> {
    /// The fields of `src`, which has `len` bytes.
    pub(super) fn new(src: &'a mut S, len: u64) -> Self {
        Self { src, len }
    }

    /// `N` bytes from `at` on, or `None` if they are not all there.
    pub(super) fn get<const N: usize>(&mut self, at: u64) -> Result<Option<[u8; N]>> {
        if at.checked_add(N as u64).is_none_or(|end| end > self.len) {
            return Ok(None);
        }
        let mut bytes = [0; N];
        self.src.seek(SeekFrom::Start(at))?;
        self.src.read_exact(&mut bytes)?;
        Ok(Some(bytes))
    }
}
