//! [`Patched`]: a file as a demuxer should see it, with lengths that can be believed. [`Spliced`]: the good parts of a file.

use std::io::{ErrorKind, Read, Result, Seek, SeekFrom};
use std::ops::Range;

use symphonia::core::io::MediaSource;

/// Bytes to replace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Patch {
    /// Where they are.
    pub at: u64,
    /// What stands there instead.
    pub bytes: Vec<u8>,
}

/// A seekable source with some bytes replaced.
pub(super) struct Patched<S> {
    inner: S,
    at: u64,
    patches: Vec<Patch>,
}

impl<S: Read + Seek> Patched<S> {
    /// `inner` from its start.
    pub(super) fn new(mut inner: S, patches: Vec<Patch>) -> Result<Self> {
        inner.seek(SeekFrom::Start(0))?;
        Ok(Self { inner, at: 0, patches })
    }
}

impl<S: Read> Read for Patched<S> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let n = self.inner.read(buf)?;
        for patch in &self.patches {
            for (i, byte) in patch.bytes.iter().enumerate() {
                let at = (patch.at + i as u64).checked_sub(self.at).and_then(|k| usize::try_from(k).ok());
                if let Some(target) = at.and_then(|k| buf[..n].get_mut(k)) {
                    *target = *byte;
                }
            }
        }
        self.at += n as u64;
        Ok(n)
    }
}

impl<S: Seek> Seek for Patched<S> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.at = self.inner.seek(to)?;
        Ok(self.at)
    }
}

impl<S: MediaSource> MediaSource for Patched<&mut S> {
    fn is_seekable(&self) -> bool {
        self.inner.is_seekable()
    }

    fn byte_len(&self) -> Option<u64> {
        self.inner.byte_len()
    }
}

/// Ranges of a seekable source, one after the other.
pub(super) struct Spliced<S> {
    inner: S,
    at: u64,
    ranges: Vec<Range<u64>>,
}

impl<S: Read + Seek> Spliced<S> {
    /// These ranges of `inner`, from the start of the first.
    pub(super) fn new(inner: S, ranges: Vec<Range<u64>>) -> Self {
        Self { inner, at: 0, ranges }
    }

    fn len(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

impl<S: Read + Seek> Read for Spliced<S> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut before = 0;
        for range in &self.ranges {
            let n = range.end - range.start;
            if self.at < before + n {
                let inside = self.at - before;
                self.inner.seek(SeekFrom::Start(range.start + inside))?;
                let n = self.inner.by_ref().take(n - inside).read(buf)?;
                self.at += n as u64;
                return Ok(n);
            }
            before += n;
        }
        Ok(0)
    }
}

impl<S: Read + Seek> Seek for Spliced<S> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.len().checked_add_signed(by),
        };
        self.at = at.ok_or(ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl<S: MediaSource> MediaSource for Spliced<&mut S> {
    fn is_seekable(&self) -> bool {
        self.inner.is_seekable()
    }

    fn byte_len(&self) -> Option<u64> {
        Some(self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn ranges_follow_each_other() {
        let bytes: Vec<u8> = (0..32).collect();
        let mut spliced = Spliced::new(Cursor::new(&bytes), vec![2..5, 7..8, 20..24]);
        let mut all = Vec::new();
        spliced.read_to_end(&mut all).unwrap();
        assert_eq!(all, [2, 3, 4, 7, 20, 21, 22, 23]);
        for at in 0..9 {
            let mut rest = Vec::new();
            spliced.seek(SeekFrom::End(at - 8)).unwrap();
            spliced.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, all[at as usize..]);
        }
        assert!(spliced.seek(SeekFrom::Current(-100)).is_err());
    }

    #[test]
    fn bytes_are_replaced_wherever_reads_begin() {
        let bytes: Vec<u8> = (0..32).collect();
        let patches = vec![Patch { at: 4, bytes: vec![0xff; 4] }, Patch { at: 20, bytes: vec![0xff; 4] }];
        for start in 0..32u64 {
            for size in 1..9 {
                let mut p = Patched { inner: Cursor::new(&bytes), at: 0, patches: patches.clone() };
                p.seek(SeekFrom::Start(start)).unwrap();
                let mut got = vec![0; size];
                let n = p.read(&mut got).unwrap();
                for (k, byte) in got[..n].iter().enumerate() {
                    let at = start as u8 + k as u8;
                    let patched = (4..8).contains(&at) || (20..24).contains(&at);
                    assert_eq!(*byte, if patched { 0xff } else { at });
                }
            }
        }
    }
}
