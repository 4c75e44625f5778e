//! Files in memory. [`Mapping`] is the only place of the workspace that maps a file.
//!
//! A file that shrinks while it is mapped ends the process with a bus error, as with every reader of mapped files.
//! Files of ours are replaced by a rename, which leaves the mapped one as it was.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::parallel::Parallel;

/// Bytes that are copied at a time.
const PIECE_BYTES: usize = 16 << 20;

/// A read-only view of a whole file, page-aligned.
pub struct Mapping {
    path: PathBuf,
    /// The file, or memory with a copy of it.
    map: memmap2::Mmap,
    is_copy: bool,
}

impl Mapping {
    /// Maps `path`.
    ///
    /// Errors: `Io` where there is no such file, where it is a directory, a pipe or a device, or where it may not be
    /// read.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        // Before opening: to open a pipe waits for its writer.
        let kind = std::fs::metadata(path).map_err(io)?.file_type();
        if kind.is_dir() {
            return Err(io(std::io::ErrorKind::IsADirectory.into()));
        }
        if !kind.is_file() {
            return Err(io(std::io::Error::other("not a regular file")));
        }
        let file = File::open(path).map_err(io)?;
        #[allow(unsafe_code, reason = "mapping a file is unsafe by nature")]
        // SAFETY: the bytes are only read, and no code here gives them a type with invalid values. That nobody
        // changes the file meanwhile is up to the user of the machine; see the module's first lines.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        // Large pages where the file is not in memory yet: it is read faster, and so are the bytes ever after.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { path: path.to_owned(), map, is_copy: false })
    }

    /// The bytes in memory of their own, in large pages where the system has them, copied by these threads. Pages of the file
    /// are given back as they are copied.
    ///
    /// Errors: `OutOfMemory`.
    pub fn into_resident(self, threads: &dyn Parallel) -> Result<Self> {
        if self.map.is_empty() {
            return Ok(self);
        }
        let (what, wanted) = (format!("a copy of {}", self.path.display()), self.map.len());
        let refused = |_| Error::OutOfMemory { what: what.clone(), wanted, free: None };
        let mut copy = memmap2::MmapMut::map_anon(wanted).map_err(refused)?;
        #[cfg(target_os = "linux")]
        let _ = copy.advise(memmap2::Advice::HugePage);
        threads.chunks_mut(&mut copy, PIECE_BYTES, |i, piece| {
            let from = i * PIECE_BYTES..i * PIECE_BYTES + piece.len();
            piece.copy_from_slice(&self.map[from.clone()]);
            self.release(from);
        });
        let map = copy.make_read_only().map_err(refused)?;
        Ok(Self { map, path: self.path, is_copy: true })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the pages of `range` back to the system; the next access reads them again. A hint: it cannot fail, and does
    /// nothing to a copy.
    pub fn release(&self, range: Range<usize>) {
        if self.is_copy {
            return;
        }
        let end = range.end.min(self.map.len());
        let Some(len) = end.checked_sub(range.start).filter(|&n| n > 0) else { return };
        #[cfg(unix)]
        {
            #[allow(unsafe_code, reason = "giving pages back is unsafe for mappings that were written to")]
            // SAFETY: the mapping is of a file and never written to, so the pages come back with the file's bytes.
            let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, len) };
        }
        #[cfg(not(unix))]
        let _ = len;
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapping({}, {} bytes)", self.path.display(), self.map.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Chain;
    use crate::parallel::Serial;

    #[test]
    fn directories_and_missing_files_are_told_apart() {
        let dir = std::env::temp_dir();
        let said = |path: &Path| Chain(&Mapping::open(path).unwrap_err()).to_string();
        assert!(said(&dir).ends_with("is a directory"));
        let missing = dir.join("no-such-file-here.gguf");
        assert!(said(&missing).ends_with("no-such-file-here.gguf: no such file"));
    }

    #[test]
    fn resident_bytes_are_those_of_the_file() {
        let path = std::env::temp_dir().join(format!("resident-{}.bin", std::process::id()));
        let bytes: Vec<u8> = (0..2 * PIECE_BYTES + 4097).map(|i| (i % 251) as u8).collect();
        for bytes in [&bytes[..], &[]] {
            std::fs::write(&path, bytes).unwrap();
            let map = Mapping::open(&path).unwrap().into_resident(&Serial).unwrap();
            // Whatever happens to the file.
            std::fs::write(&path, b"other").unwrap();
            map.release(0..map.len());
            assert!(map[..] == *bytes && map.path() == path);
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn released_pages_come_back() {
        let path = std::env::temp_dir().join(format!("mapping-{}.bin", std::process::id()));
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = Mapping::open(&path).unwrap();
        assert_eq!(&map[..], &bytes[..]);
        map.release(1..99_999);
        map.release(5..usize::MAX);
        assert_eq!(&map[..], &bytes[..]);
        std::fs::remove_file(&path).unwrap();
    }
}
