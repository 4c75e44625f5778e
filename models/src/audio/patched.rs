//! [`Patched`]: a file as a demuxer should see it, with lengths that can be believed.

use std::io::{Read, Result, Seek, SeekFrom};

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

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
