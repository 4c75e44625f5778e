//! Files that are not finished, and who may write to them. [`Partial`] is the type to read first.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

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
pub fn beside(target: &Path, suffix: &str) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    if name.len() + suffix.len() > MAX_NAME_BYTES {
        name = format!("{:016x}", Xxh64::of(name.as_encoded_bytes())).into();
    }
    name.push(suffix);
    target.with_file_name(name)
}

/// A file that nobody else writes to; the system lets go of it when the process ends, however that happens.
pub struct Partial {
    /// Its path.
    pub path: PathBuf,
    /// What messages call it, but where its own name matters: the file that it is for.
    pub target: PathBuf,
    /// The open file.
    pub file: File,
}

impl Partial {
    /// Makes the file at `path`, which is for `target`, or opens the one that an earlier process left there.
    ///
    /// Errors: it cannot be opened; something else than such a file is there, which stays as it is; another process has it.
    pub fn open(path: PathBuf, target: &Path) -> Result<Self> {
        let io = |source| engine::Error::Io { path: target.to_owned(), source };
        loop {
            let made = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
            let file = match made {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => match open_left(&path)? {
                    Some(file) => file,
                    None => continue,
                },
                other => other.map_err(io)?,
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => bail!("{}: another process is writing it", path.display()),
                // No locks on this file system: there is only the name.
                Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {}
                Err(TryLockError::Error(e)) => return Err(io(e).into()),
            }
            // Its last owner may have renamed or removed it between the two calls.
            if is_at(&file, &path) {
                return Ok(Self { path, target: target.to_owned(), file });
            }
        }
    }

    /// An error that says what is in the place of this file.
    pub fn foreign(&self, found: &str) -> anyhow::Error {
        foreign(&self.path, found)
    }

    /// Its length.
    pub fn len(&self) -> Result<u64> {
        let io = |source| engine::Error::Io { path: self.target.clone(), source };
        Ok(self.file.metadata().map_err(io)?.len())
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Goes to its first byte.
    pub fn rewind(&mut self) -> Result<()> {
        self.file.rewind().map_err(|source| engine::Error::Io { path: self.target.clone(), source }.into())
    }

    /// Cuts it to `len` bytes and goes there.
    pub fn cut(&mut self, len: u64) -> Result<()> {
        let io = |source| engine::Error::Io { path: self.target.clone(), source };
        self.file.set_len(len).map_err(io)?;
        self.file.seek(SeekFrom::Start(len)).map_err(io)?;
        Ok(())
    }

    /// Removes it.
    pub fn remove(self) {
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
pub(super) fn sync_folder_of(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// Opens what is at `path` already; `None` where it has just gone.
fn open_left(path: &Path) -> Result<Option<File>> {
    let io = |source| engine::Error::Io { path: path.to_owned(), source };
    let found = match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io)?,
    };
    // Before opening: to open a pipe waits for its reader.
    refuse_foreign(path, &found)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    {
        // Somebody may have put a link or a pipe there in between.
        use rustix::fs::OFlags;
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags.bits().cast_signed());
    }
    let file = match options.open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io)?,
    };
    refuse_foreign(path, &file.metadata().map_err(io)?)?;
    Ok(Some(file))
}

/// Errors: this is not a file as a process of this user leaves it.
fn refuse_foreign(path: &Path, found: &Metadata) -> Result<()> {
    let kind = found.file_type();
    let what = if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a directory"
    } else if !kind.is_file() {
        "a pipe or device"
    } else {
        return refuse_shared(path, found);
    };
    Err(foreign(path, what))
}

/// Errors: the file has other names too, or belongs to somebody else.
#[cfg(unix)]
fn refuse_shared(path: &Path, found: &Metadata) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    if found.nlink() > 1 {
        return Err(foreign(path, "a file with other names too"));
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(foreign(path, "a file of another user"));
    }
    Ok(())
}

/// Other systems do not say so.
#[cfg(not(unix))]
fn refuse_shared(_: &Path, _: &Metadata) -> Result<()> {
    Ok(())
}

fn foreign(path: &Path, found: &str) -> anyhow::Error {
    let path = path.display();
    anyhow!("{path}: here goes what is unfinished, but there is {found}: it is left alone; remove it to go on")
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::symlink_metadata(path)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_process_left_is_opened_and_two_never_have_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.part");
        std::fs::write(&path, "left").unwrap();
        let mut first = Partial::open(path.clone(), &path).unwrap();
        assert_eq!((first.len().unwrap(), first.is_empty().unwrap()), (4, false));
        first.cut(2).unwrap();
        let second = Partial::open(path.clone(), &path).err().unwrap().to_string();
        assert!(second.ends_with("x.part: another process is writing it"), "{second}");
        drop(first);
        assert_eq!(Partial::open(path.clone(), &path).unwrap().len().unwrap(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_none_of_ours_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("precious"), "precious").unwrap();
        std::os::unix::fs::symlink("precious", at("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
        std::fs::write(at("twice"), "precious").unwrap();
        std::fs::hard_link(at("twice"), at("hard")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        for (name, found) in [
            ("link", "a symbolic link"),
            ("dangling", "a symbolic link"),
            ("hard", "a file with other names too"),
            ("folder", "a directory"),
        ] {
            let said = Partial::open(at(name), &at("x")).err().unwrap().to_string();
            assert!(said.contains(&format!("{name}: ")) && said.contains(found), "{said}");
        }
        for name in ["precious", "twice"] {
            assert_eq!(std::fs::read_to_string(at(name)).unwrap(), "precious");
        }
        assert!(!at("nowhere").exists());
    }
}
