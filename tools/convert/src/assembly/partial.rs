//! Files that are not finished, and who may write to them. [`Partial`] is the type to read first.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::xxh64::Xxh64;

/// Behind the name of a file that is not finished.
const PARTIAL: &str = ".part";
/// Behind the name of a file: how far it is.
const JOURNAL: &str = ".journal";
/// Bytes of a file's name that every file system takes.
const MAX_NAME_BYTES: usize = 255;
/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// Where `target` grows until it gets its name.
pub(super) fn partial_path(target: &Path) -> PathBuf {
    beside(target, PARTIAL)
}

/// What says how far `target` is.
pub(super) fn journal_path(target: &Path) -> PathBuf {
    beside(target, JOURNAL)
}

/// `target` with `suffix`; a name that would be too long is replaced by its hash.
fn beside(target: &Path, suffix: &str) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    if name.len() + suffix.len() > MAX_NAME_BYTES {
        name = format!("{:016x}", Xxh64::of(name.as_encoded_bytes())).into();
    }
    name.push(suffix);
    target.with_file_name(name)
}

/// A file that nobody else writes to; the system lets go of it when the process ends, however that happens.
pub(super) struct Partial {
    /// Its path.
    pub path: PathBuf,
    /// The open file.
    pub file: File,
}

impl Partial {
    /// Opens the file at `path`, or makes it.
    ///
    /// Errors: it cannot be opened; another process has it.
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let io = |source| engine::Error::Io { path: path.clone(), source };
        loop {
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => bail!("{}: another process is writing it", path.display()),
                // No locks on this file system: there is only the name.
                Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {}
                Err(TryLockError::Error(e)) => return Err(io(e).into()),
            }
            // Its last owner may have renamed or removed it between the two calls.
            if is_at(&file, &path) {
                return Ok(Self { path, file });
            }
        }
    }

    /// Its length.
    pub(super) fn len(&self) -> Result<u64> {
        let io = |source| engine::Error::Io { path: self.path.clone(), source };
        Ok(self.file.metadata().map_err(io)?.len())
    }

    /// Goes to its first byte.
    pub(super) fn rewind(&mut self) -> Result<()> {
        self.file.rewind().map_err(|source| engine::Error::Io { path: self.path.clone(), source }.into())
    }

    /// Cuts it to `len` bytes and goes there.
    pub(super) fn cut(&mut self, len: u64) -> Result<()> {
        let io = |source| engine::Error::Io { path: self.path.clone(), source };
        self.file.set_len(len).map_err(io)?;
        self.file.seek(SeekFrom::Start(len)).map_err(io)?;
        Ok(())
    }

    /// Removes it.
    pub(super) fn remove(self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Gives it the name `target`, in place of an older file.
    pub(super) fn rename(&self, target: &Path) -> std::io::Result<()> {
        std::fs::rename(&self.path, target)
    }
}

/// Writes the names of the files in `folder` to the disk.
#[cfg(unix)]
pub(super) fn sync_folder_of(target: &Path) -> std::io::Result<()> {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Other systems write names with the files.
#[cfg(not(unix))]
pub fn sync_folder_of(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Other systems do not rename files that are open.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// The hash of the bytes of `file` from `from` to `to`; `None` where there are fewer.
pub(super) fn hash_range(mut file: &File, from: u64, to: u64) -> std::io::Result<Option<u64>> {
    file.seek(SeekFrom::Start(from))?;
    let mut left = to - from;
    let mut hash = Xxh64::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER_BYTES);
        match file.read(&mut buffer[..n])? {
            0 => return Ok(None),
            n => {
                hash.add(&buffer[..n]);
                left -= n as u64;
            }
        }
    }
    Ok(Some(hash.value()))
}

/// Adds what tells whether the file at `path` is still the same: its size and when it was changed. One that is gone is
/// like no other.
pub fn stamp(path: &Path, hash: &mut Xxh64) {
    let Ok(found) = std::fs::metadata(path) else { return hash.add_text(b"gone") };
    hash.add_number(found.len());
    let time = found.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    hash.add_number(time.map_or(0, |t| t.as_nanos() as u64));
    #[cfg(unix)]
    {
        // The time of change cannot be set back as that of modification can.
        use std::os::unix::fs::MetadataExt;
        hash.add_number(found.ctime() as u64);
        hash.add_number(found.ctime_nsec() as u64);
    }
}
