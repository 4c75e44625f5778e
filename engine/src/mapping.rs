//! Files in memory. [`Mapping`] is the only place of the workspace that maps a file.
//!
//! A file that shrinks while it is mapped ends the process with a bus error, as with every reader of mapped files.
//! Files of ours are replaced by a rename, which leaves the mapped one as it was.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A read-only view of a whole file, page-aligned.
pub struct Mapping {
    path: PathBuf,
    map: memmap2::Mmap,
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
        Ok(Self { path: path.to_owned(), map })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the pages of `range` back to the system; the next access reads them again. A hint: it cannot fail.
    pub fn release(&self, range: Range<usize>) {
        let end = range.end.min(self.map.len());
        let Some(len) = end.checked_sub(range.start).filter(|&n| n > 0) else { return };
        #[cfg(unix)]
        {
            #[allow(unsafe_code, reason = "giving pages back is unsafe for mappings that were written to")]
            // SAFETY: the mapping is never written to, so the pages come back with the file's bytes.
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

    #[test]
    fn directories_and_missing_files_are_told_apart() {
        let dir = std::env::temp_dir();
        let said = |path: &Path| Chain(&Mapping::open(path).unwrap_err()).to_string();
        assert!(said(&dir).ends_with("is a directory"));
        let missing = dir.join("no-such-file-here.gguf");
        assert!(said(&missing).ends_with("no-such-file-here.gguf: no such file"));
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
