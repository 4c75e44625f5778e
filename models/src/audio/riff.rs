//! WAV files whose length fields were never filled in, as programs leave them that write to a pipe or are stopped.

use std::io::{Read, Result, Seek, SeekFrom};

use symphonia::core::io::MediaSource;

/// A length field of this value stands for "to the end of the file".
const TO_THE_END: [u8; 4] = [0xff; 4];

/// Chunks before the samples that are looked at.
const MAX_CHUNKS: usize = 256;

/// What is to know about a WAV file before it is demuxed.
#[derive(Default)]
pub(super) struct Riff {
    /// Code of the sample format, for the message if it is not supported.
    pub format_tag: Option<u16>,
    patches: Patches,
}

/// Bytes to replace, with where they are.
type Patches = Vec<(u64, [u8; 4])>;

/// Looks at a file of `len` bytes; nothing is known of one that is no WAV file.
///
/// Its own length is to be ignored; a data chunk of length 0 that is followed by no chunks extends to the end, as
/// libsndfile reads it.
pub(super) fn inspect(src: &mut (impl Read + Seek), len: u64) -> Result<Riff> {
    let mut riff = Riff::default();
    let mut head = [0; 12];
    if len < head.len() as u64 {
        return Ok(riff);
    }
    src.seek(SeekFrom::Start(0))?;
    src.read_exact(&mut head)?;
    if &head[..4] != b"RIFF" || &head[8..] != b"WAVE" {
        return Ok(riff);
    }
    riff.patches.push((4, TO_THE_END));
    let mut at = head.len() as u64;
    for _ in 0..MAX_CHUNKS {
        let Some((tag, size)) = chunk(src, at, len)? else { break };
        let body = at + 8;
        if &tag == b"fmt " && size >= 2 && body + 2 <= len {
            let mut code = [0; 2];
            src.read_exact(&mut code)?;
            riff.format_tag = Some(u16::from_le_bytes(code));
        }
        if &tag == b"data" {
            if size == 0 && !ends_with_chunks(src, body, len)? {
                riff.patches.push((at + 4, TO_THE_END));
            }
            break;
        }
        at = body + u64::from(size) + u64::from(size % 2);
    }
    Ok(riff)
}

/// Tag and length of the chunk at `at`, if its header is inside the file.
fn chunk(src: &mut (impl Read + Seek), at: u64, len: u64) -> Result<Option<([u8; 4], u32)>> {
    let mut head = [0; 8];
    if at + head.len() as u64 > len {
        return Ok(None);
    }
    src.seek(SeekFrom::Start(at))?;
    src.read_exact(&mut head)?;
    let [a, b, c, d, size @ ..] = head;
    Ok(Some(([a, b, c, d], u32::from_le_bytes(size))))
}

/// Whether the rest of the file is a sequence of whole chunks.
fn ends_with_chunks(src: &mut (impl Read + Seek), mut at: u64, len: u64) -> Result<bool> {
    for _ in 0..MAX_CHUNKS {
        if at >= len {
            return Ok(at - len <= 1);
        }
        let Some((_, size)) = chunk(src, at, len)? else { return Ok(false) };
        at += 8 + u64::from(size) + u64::from(size % 2);
    }
    Ok(false)
}

/// A seekable source with some bytes replaced.
pub(super) struct Patched<S> {
    inner: S,
    at: u64,
    patches: Patches,
}

impl<S: Read + Seek> Patched<S> {
    /// `inner` from its start, with lengths that can be believed.
    pub(super) fn new(mut inner: S, riff: &Riff) -> Result<Self> {
        inner.seek(SeekFrom::Start(0))?;
        Ok(Self { inner, at: 0, patches: riff.patches.clone() })
    }
}

impl<S: Read> Read for Patched<S> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let n = self.inner.read(buf)?;
        for (start, bytes) in &self.patches {
            for (i, byte) in bytes.iter().enumerate() {
                let at = (start + i as u64).checked_sub(self.at).and_then(|k| usize::try_from(k).ok());
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

impl<S: MediaSource> MediaSource for Patched<S> {
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
        let patches = vec![(4, TO_THE_END), (20, TO_THE_END)];
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
