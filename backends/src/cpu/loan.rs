//! [`CpuLoan`]: results that the host reads where they lie. While they are lent, the backend refuses to write them and to
//! run what might.

use std::ops::Range;
use std::sync::Arc;

use engine::error::Result;

use super::mem::{Storage, outside};
use super::weights::CpuBuffer;

/// The right to read an arena in place.
pub(super) struct CpuLoan {
    buffer: Arc<CpuBuffer>,
    /// That of the buffer, one look into memory nearer: after a run every such look is cold.
    storage: Arc<Storage>,
    /// Whether this loan is counted in the buffer.
    lent: bool,
}

#[allow(unsafe_code, reason = "a slice of memory that nobody writes while it is lent")]
impl CpuLoan {
    /// A loan that has not begun.
    pub(super) fn new(buffer: Arc<CpuBuffer>) -> Self {
        Self { storage: Arc::clone(&buffer.storage), buffer, lent: false }
    }

    /// The arena.
    pub(super) fn buffer(&self) -> &CpuBuffer {
        &self.buffer
    }

    /// Lends a range of the arena, until [`Self::end`].
    ///
    /// Errors: a range that does not fit; something that writes the arena.
    pub(super) fn bytes(&mut self, range: Range<usize>) -> Result<&[u8]> {
        if range.start > range.end || range.end > self.storage.len() {
            return Err(outside(range.start, self.storage.len()));
        }
        if !self.lent {
            self.buffer.lend()?;
            self.lent = true;
        }
        // SAFETY: the buffer counts this loan, and whoever wants to write finds it counted; only `end`, which no slice
        // survives, takes it back.
        Ok(unsafe { self.storage.bytes(range) })
    }

    /// Takes back what was lent. The exclusive borrow proves that nobody looks at it any more.
    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.lent) {
            self.buffer.take_back();
        }
    }
}

impl Drop for CpuLoan {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use engine::backend::{Backend, Buffer};

    use super::super::weights::CpuBuffer;
    use super::super::{CpuBackend, CpuOptions};
    use super::CpuLoan;

    fn buffer(backend: &CpuBackend, of: &Buffer) -> Arc<CpuBuffer> {
        CpuBuffer::shared(of, &backend.pool).unwrap()
    }

    #[test]
    fn what_is_lent_is_not_written() {
        let backend = CpuBackend::new(&CpuOptions::default()).unwrap();
        let arena = backend.alloc(64).unwrap();
        let other = backend.alloc(64).unwrap();
        backend.write(&arena, 0, &[7; 64]).unwrap();
        let mut loan = CpuLoan::new(buffer(&backend, &arena));
        let lent = loan.bytes(8..16).unwrap();
        for refused in [backend.write(&arena, 0, &[1]), backend.copy(&arena, 0..4, 8), backend.zero(&arena, 0..64)] {
            assert!(refused.unwrap_err().to_string().contains("lent"));
        }
        backend.write(&other, 0, &[1]).unwrap();
        backend.read(&arena, 0, &mut [0; 64]).unwrap();
        assert_eq!(lent, [7; 8]);
        assert!(loan.bytes(60..65).is_err());
        loan.end();
        backend.write(&arena, 0, &[1]).unwrap();
        // Two loans of one buffer end one by one, and a dropped one has ended.
        let mut second = CpuLoan::new(buffer(&backend, &arena));
        assert_eq!((loan.bytes(0..1).unwrap(), second.bytes(0..1).unwrap()), (&[1][..], &[1][..]));
        drop(loan);
        assert!(backend.write(&arena, 0, &[2]).is_err());
        drop(second);
        backend.write(&arena, 0, &[2]).unwrap();
    }

    #[test]
    fn what_is_being_written_is_not_lent() {
        let backend = CpuBackend::new(&CpuOptions::default()).unwrap();
        let arena = backend.alloc(64).unwrap();
        let mut loan = CpuLoan::new(buffer(&backend, &arena));
        let buffer = buffer(&backend, &arena);
        let writing = buffer.writing().unwrap();
        assert!(loan.bytes(0..8).is_err() && buffer.writing().is_err());
        drop(writing);
        assert!(loan.bytes(0..8).is_ok() && buffer.writing().is_err());
    }
}
