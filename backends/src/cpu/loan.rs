//! [`CpuLoan`]: results that the host reads where they lie.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::backend::Loan;
use engine::error::Result;

use super::mem::{Storage, outside};
use super::weights::CpuBuffer;

/// The right to read an arena in place.
pub(super) struct CpuLoan {
    buffer: Arc<CpuBuffer>,
    /// That of the buffer, one look into memory nearer: after a run every such look is cold.
    storage: Arc<Storage>,
    /// Whether this loan is counted in the buffer.
    lent: AtomicBool,
}

impl CpuLoan {
    /// A loan that has not begun. States have none: runs write them without looking for loans.
    pub(super) fn new(buffer: Arc<CpuBuffer>) -> Self {
        Self { storage: Arc::clone(&buffer.storage), buffer, lent: AtomicBool::new(false) }
    }
}

#[allow(unsafe_code, reason = "a slice of memory that nobody writes while it is lent")]
impl Loan for CpuLoan {
    fn bytes(&self, range: Range<usize>) -> Result<&[u8]> {
        if range.start > range.end || range.end > self.storage.len() {
            return Err(outside(range.start, self.storage.len()));
        }
        // Counted before it is marked: `end` may take back too little, never too much.
        if !self.lent.load(Ordering::Acquire) {
            self.buffer.lend()?;
            if self.lent.swap(true, Ordering::AcqRel) {
                self.buffer.take_back();
            }
        }
        // SAFETY: the buffer counts this loan, and whoever wants to write finds it counted; only `end`, which no slice
        // survives, takes it back.
        Ok(unsafe { self.storage.bytes(range) })
    }

    fn end(&mut self) {
        if std::mem::take(self.lent.get_mut()) {
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
    use engine::backend::{Backend, Usage};

    use super::super::weights::CpuBuffer;
    use super::super::{CpuBackend, CpuOptions};

    #[test]
    fn what_is_lent_is_not_written() {
        let backend = CpuBackend::new(&CpuOptions::default()).unwrap();
        let arena = backend.alloc(64, Usage::Arena).unwrap();
        let other = backend.alloc(64, Usage::Arena).unwrap();
        backend.write(&arena, 0, &[7; 64]).unwrap();
        let mut loan = backend.loan(&arena).unwrap();
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
        let second = backend.loan(&arena).unwrap();
        assert_eq!((loan.bytes(0..1).unwrap(), second.bytes(0..1).unwrap()), (&[1][..], &[1][..]));
        drop(loan);
        assert!(backend.write(&arena, 0, &[2]).is_err());
        drop(second);
        backend.write(&arena, 0, &[2]).unwrap();
    }

    #[test]
    fn what_is_being_written_is_not_lent() {
        let backend = CpuBackend::new(&CpuOptions::default()).unwrap();
        let arena = backend.alloc(64, Usage::Arena).unwrap();
        let loan = backend.loan(&arena).unwrap();
        let buffer = CpuBuffer::shared(&arena, &backend.pool).unwrap();
        let writing = buffer.writing().unwrap();
        assert!(loan.bytes(0..8).is_err() && buffer.writing().is_err());
        drop(writing);
        assert!(loan.bytes(0..8).is_ok() && buffer.writing().is_err());
    }

    #[test]
    fn states_are_not_lent() {
        let backend = CpuBackend::new(&CpuOptions::default()).unwrap();
        assert!(backend.loan(&backend.alloc(64, Usage::State).unwrap()).is_none());
    }
}
