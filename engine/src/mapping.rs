//! Files in memory. [`Mapping`] is the only place of the workspace that maps a file.
//!
//! A file that shrinks while it is mapped ends the process with a bus error, as with every reader of mapped files; a program
//! that wants to say so finds the file with [`path_at`]. What was changed otherwise is found by
//! [`Mapping::check_unchanged`]. Files of ours are replaced by a rename, which leaves the mapped one as it was.

use std::fs::{File, Metadata};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::parallel::Parallel;

/// Bytes that are copied at a time.
const PIECE_BYTES: usize = 16 << 20;

/// A read-only view of a whole file, page-aligned.
pub struct Mapping {
    path: PathBuf,
    /// The file, or memory with a copy of it.
    map: memmap2::Mmap,
    /// What the file was like when it was mapped; none of a copy.
    stamp: Option<Stamp>,
    /// Where it is found by address.
    _place: Option<Place>,
}

/// What tells whether a file was written to.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    /// Device and number; a file of another one is none of ours, whatever its name.
    identity: Option<(u64, u64)>,
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        #[cfg(unix)]
        let identity = Some((std::os::unix::fs::MetadataExt::dev(found), std::os::unix::fs::MetadataExt::ino(found)));
        // Other systems do not let a file shrink that is mapped.
        #[cfg(not(unix))]
        let identity = None;
        Self { bytes: found.len(), modified: found.modified().ok(), identity }
    }
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
        let stamp = Stamp::of(&file.metadata().map_err(io)?);
        #[allow(unsafe_code, reason = "mapping a file is unsafe by nature")]
        // SAFETY: the bytes are only read, and no code here gives them a type with invalid values. That nobody
        // changes the file meanwhile is up to the user of the machine; see the module's first lines.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        // Large pages where the file is not in memory yet: it is read faster, and so are the bytes ever after.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let place = Place::of(path, map.as_ptr_range());
        Ok(Self { path: path.to_owned(), map, stamp: Some(stamp), _place: Some(place) })
    }

    /// Whether the bytes are still those that were mapped. A file that was removed, or replaced by a rename, still has them.
    ///
    /// Errors: `Changed` where the file has another length, or was written to, on systems that allow that.
    pub fn check_unchanged(&self) -> Result<()> {
        let Some(stamp) = &self.stamp else { return Ok(()) };
        let now = match std::fs::metadata(&self.path) {
            Ok(found) => Stamp::of(&found),
            Err(_) => return Ok(()),
        };
        if stamp.identity.is_none() || now.identity != stamp.identity || now == *stamp {
            return Ok(());
        }
        let what = if now.bytes == stamp.bytes {
            "was written to".into()
        } else {
            format!("had {} bytes, has {}", stamp.bytes, now.bytes)
        };
        Err(Error::Changed { path: self.path.clone(), what })
    }

    /// The bytes in memory of their own, in large pages where the system has them, copied by these threads. Pages of the file
    /// are given back as they are copied.
    ///
    /// Errors: `OutOfMemory`; `Changed` where the file was, meanwhile.
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
        self.check_unchanged()?;
        let map = copy.make_read_only().map_err(refused)?;
        Ok(Self { map, path: self.path, stamp: None, _place: None })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the pages of `range` back to the system; the next access reads them again. A hint: it cannot fail, and does
    /// nothing to a copy.
    pub fn release(&self, range: Range<usize>) {
        if self.stamp.is_none() {
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

/// A file that is mapped now, or was.
struct Mapped {
    path: Box<str>,
    /// Its first address: 0 where it is not mapped, and the place may be taken.
    start: AtomicUsize,
    /// The first address behind it.
    end: AtomicUsize,
    next: OnceLock<Box<Mapped>>,
}

/// The files that were mapped since the process started: a list that only grows, so that it can be read without waiting for
/// anybody, in the middle of anything. A file that is mapped again takes its old place.
static MAPPED: OnceLock<Box<Mapped>> = OnceLock::new();

/// Start of a place that is taken and not yet set: it is behind every end.
const TAKEN: usize = usize::MAX;

/// The file, as messages call it, that is mapped at this address. Safe to call where a signal is handled: it neither waits nor
/// takes memory.
pub fn path_at(address: usize) -> Option<&'static str> {
    let is_there =
        |file: &&Mapped| (file.start.load(Ordering::SeqCst)..file.end.load(Ordering::SeqCst)).contains(&address);
    std::iter::successors(MAPPED.get(), |file| file.next.get())
        .map(|file| &**file)
        .find(is_there)
        .map(|file| &*file.path)
}

/// A place in the list, which is given back when this is dropped.
struct Place(&'static Mapped);

impl Place {
    fn of(path: &Path, addresses: Range<*const u8>) -> Self {
        let name = path.display().to_string();
        let mut at = &MAPPED;
        let place = loop {
            let file = at.get_or_init(|| {
                let (start, end) = (AtomicUsize::new(0), AtomicUsize::new(0));
                Box::new(Mapped { path: name.as_str().into(), start, end, next: OnceLock::new() })
            });
            let is_free = || file.start.compare_exchange(0, TAKEN, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            if *file.path == *name && is_free() {
                break file;
            }
            at = &file.next;
        };
        place.end.store(addresses.end.addr(), Ordering::SeqCst);
        place.start.store(addresses.start.addr(), Ordering::SeqCst);
        Self(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.end.store(0, Ordering::SeqCst);
        self.0.start.store(0, Ordering::SeqCst);
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
    #[test]
    fn a_mapped_file_is_found_by_its_addresses_as_long_as_it_is_mapped() {
        let path = std::env::temp_dir().join(format!("places-{}.bin", std::process::id()));
        std::fs::write(&path, [7; 10_000]).unwrap();
        let name = path.to_str();
        let addresses = |map: &Mapping| (map.as_ptr_range().start.addr(), map.as_ptr_range().end.addr());
        let first = Mapping::open(&path).unwrap();
        let second = Mapping::open(&path).unwrap();
        for (start, end) in [addresses(&first), addresses(&second)] {
            assert_eq!([start, end - 1].map(path_at), [name; 2]);
            assert_ne!(path_at(end), name);
        }
        let (start, _) = addresses(&first);
        drop(first);
        assert_eq!(path_at(start), None);
        let again = Mapping::open(&path).unwrap();
        assert_eq!(path_at(addresses(&again).0), name);
        assert_eq!([path_at(0), path_at(TAKEN)], [None; 2]);
        std::fs::remove_file(&path).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn what_happens_to_the_file_is_noticed_and_what_happens_to_its_name_is_not() {
        let path = std::env::temp_dir().join(format!("changes-{}.bin", std::process::id()));
        let other = path.with_extension("other");
        let write = |path: &Path| std::fs::write(path, [7; 10_000]).unwrap();
        write(&path);
        let map = Mapping::open(&path).unwrap();
        map.check_unchanged().unwrap();
        write(&other);
        std::fs::rename(&other, &path).unwrap();
        map.check_unchanged().unwrap();
        let map = Mapping::open(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let said = Chain(&map.check_unchanged().unwrap_err()).to_string();
        assert!(said.ends_with("has changed while it was used: was written to"), "{said}");
        file.set_len(9_999).unwrap();
        let said = Chain(&map.check_unchanged().unwrap_err()).to_string();
        assert!(said.ends_with("has changed while it was used: had 10000 bytes, has 9999"), "{said}");
        assert!(map.into_resident(&Serial).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
