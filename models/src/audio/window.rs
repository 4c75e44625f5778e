//! [`Window`]: bytes of a source from the present place on.

use std::io::{Read, Result};

/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 16;

/// A source, with some bytes ahead of the present place.
pub(super) struct Window<R> {
    src: R,
    bytes: Vec<u8>,
    at: usize,
    ended: bool,
    /// Bytes of the source that were read.
    n_read: u64,
}

impl<R: Read> Window<R> {
    /// The source from where it stands.
    pub(super) fn new(src: R) -> Self {
        Self { src, bytes: Vec::new(), at: 0, ended: false, n_read: 0 }
    }

    /// The source.
    pub(super) fn source(&mut self) -> &mut R {
        &mut self.src
    }

    /// Bytes of the source before the present place.
    pub(super) fn offset(&self) -> u64 {
        self.n_read - (self.bytes.len() - self.at) as u64
    }

    /// At least `n` bytes from here on, unless the source ends before.
    pub(super) fn ahead(&mut self, n: usize) -> Result<&[u8]> {
        if self.bytes.len() - self.at < n && !self.ended {
            self.bytes.drain(..self.at);
            self.at = 0;
            let missing = n.max(READ_BYTES) - self.bytes.len().min(n);
            let got = self.src.by_ref().take(missing as u64).read_to_end(&mut self.bytes)?;
            self.n_read += got as u64;
            self.ended = got < missing;
        }
        Ok(&self.bytes[self.at..])
    }

    /// Passes over `n` bytes.
    pub(super) fn pass(&mut self, mut n: u64) -> Result<()> {
        while n > 0 {
            let there = self.ahead(1)?.len() as u64;
            if there == 0 {
                break;
            }
            let step = there.min(n);
            self.at += step as usize;
            n -= step;
        }
        Ok(())
    }
}
