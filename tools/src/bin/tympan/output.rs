//! Output files: what is checked before any work, and how they are written. [`Destination`] is the type to read first.

use std::collections::HashMap;
use std::fs::{Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};

use crate::exit::{Failure, Outcome};
use crate::interrupt::Undisturbed;

/// Begins the names of temporary files.
const TEMPORARY: &str = ".tympan-";

/// Where a file will be written. Its folder is there, and takes new files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Destination {
    /// As the user knows it.
    path: PathBuf,
    /// The file itself, where the path is a link.
    target: PathBuf,
    kind: Kind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind {
    /// A file that is made, or replaced.
    File(Identity),
    /// A pipe or device, which is written to.
    Stream,
}

/// What makes two paths the same file.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Identity {
    /// Of a file that is there: its device and number.
    #[cfg(unix)]
    Inode(u64, u64),
    /// Of a file that is there: its path without links.
    #[cfg(not(unix))]
    Path(PathBuf),
    /// Of a file that is not there yet: its path, without links but in the name.
    New(PathBuf),
}

impl Identity {
    #[cfg(unix)]
    fn of(_: &Path, found: &Metadata) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        Ok(Self::Inode(found.dev(), found.ino()))
    }

    #[cfg(not(unix))]
    fn of(path: &Path, _: &Metadata) -> io::Result<Self> {
        path.canonicalize().map(Self::Path)
    }

    fn of_new(path: &Path) -> io::Result<Self> {
        Ok(Self::New(folder_of(path).canonicalize()?.join(path.file_name().unwrap_or_default())))
    }
}

impl Destination {
    /// Checks a place.
    ///
    /// Errors, all of them about the output: a folder that is not there or takes no new files; a name that is too long; a
    /// directory; a link to nothing.
    pub(crate) fn check(path: &Path) -> Outcome<Self> {
        let found = Self::find(path)?;
        if found.is_file() {
            let _undisturbed = Undisturbed::begin();
            // Nothing else tells for certain. Without a name nothing is left of it where the process is killed meanwhile.
            let made = tempfile::tempfile_in(folder_of(&found.target)).map_err(|e| io::Error::from(e.kind()));
            made.with_context(|| cannot_be_written(path)).map_err(Failure::output)?;
        }
        Ok(found)
    }

    /// The same, where the folder is made if it is missing.
    ///
    /// Errors: as those of [`Self::check`]; a folder that cannot be made.
    pub(crate) fn check_with_folder(path: &Path) -> Outcome<Self> {
        if path.file_name().is_some() {
            make_folder(folder_of(path))?;
        }
        Self::check(path)
    }

    /// A place whose folder is there, whether it takes new files or not.
    ///
    /// Errors: as those of [`Self::check`] about the path itself.
    pub(crate) fn find(path: &Path) -> Outcome<Self> {
        let kind = Kind::find(path).map_err(Failure::output)?;
        let target = if kind == Kind::Stream { path.to_owned() } else { followed(path) };
        Ok(Self { path: path.to_owned(), target, kind })
    }

    /// Whether a file is there that would be replaced.
    pub(crate) fn exists(&self) -> bool {
        match &self.kind {
            Kind::File(Identity::New(_)) | Kind::Stream => false,
            Kind::File(_) => true,
        }
    }

    /// Whether it is a file, and no pipe or device.
    pub(crate) fn is_file(&self) -> bool {
        self.kind != Kind::Stream
    }

    /// As the user knows it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file itself, where the path is a link.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Writes the file: under a temporary name that nobody else has, and renamed when it is whole, so that no part of it is
    /// ever there under its own.
    ///
    /// Errors: as the system says.
    pub(crate) fn write(&self, bytes: &[u8]) -> anyhow::Result<()> {
        match self.kind {
            Kind::Stream => self.write_through(bytes),
            Kind::File(_) => self.replace(bytes),
        }
        .with_context(|| cannot_be_written(&self.path))
    }

    fn write_through(&self, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().write(true).open(&self.target)?.write_all(bytes)
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        // The temporary file has to go, whatever happens.
        let _undisturbed = Undisturbed::begin();
        let mut file = temporary_in(folder_of(&self.target))?;
        file.as_file_mut().write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(&self.target).map_err(|e| e.error)?;
        Ok(())
    }
}

impl Kind {
    /// Errors: what no file can be written to.
    fn find(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        if path.file_name().is_none() {
            bail!("{name}: not the name of a file");
        }
        let identity = match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => bail!("{name}: is a directory"),
            Ok(found) if !found.is_file() => return Ok(Self::Stream),
            Ok(found) => Identity::of(path, &found),
            Err(e) if e.kind() == ErrorKind::NotFound && path.is_symlink() => {
                bail!("{name}: a link to a file that does not exist")
            }
            Err(e) if e.kind() == ErrorKind::NotFound => match folder_of(path) {
                folder if folder.is_dir() => Identity::of_new(path),
                folder => bail!("{name}: no such directory: {}", folder.display()),
            },
            Err(e) if e.kind() == ErrorKind::NotADirectory => {
                bail!("{name}: not a directory: {}", folder_of(path).display())
            }
            Err(e) => Err(e),
        };
        identity.map(Self::File).with_context(|| cannot_be_written(path))
    }
}

/// Refuses outputs that are an input or each other, by whatever path or link.
///
/// Errors: a usage error with both names.
pub(crate) fn refuse_collisions<'o, 'i>(
    outputs: impl IntoIterator<Item = &'o Destination>,
    inputs: impl IntoIterator<Item = &'i Path>,
) -> Outcome<()> {
    let identified = |path: &'i Path| {
        let found = std::fs::metadata(path).ok().filter(Metadata::is_file)?;
        Some((Identity::of(path, &found).ok()?, path))
    };
    let inputs: HashMap<Identity, &Path> = inputs.into_iter().filter_map(identified).collect();
    let mut others: HashMap<&Identity, &Path> = HashMap::new();
    for Destination { path, kind, .. } in outputs {
        // What is written to takes one output after the other.
        let Kind::File(identity) = kind else { continue };
        let input = inputs.get(identity).map(|path| (*path, "an input"));
        let other = others.insert(identity, path).map(|path| (path, "another output"));
        if let Some((other, what)) = input.or(other) {
            let (path, other) = (path.display(), other.display());
            return Err(Failure::usage(format!("{path}: this output is the same file as {what}: {other}")));
        }
    }
    Ok(())
}

/// The file that a link leads to; other paths stay as they are.
fn followed(path: &Path) -> PathBuf {
    let end = path.is_symlink().then(|| path.canonicalize().ok()).flatten();
    end.unwrap_or_else(|| path.to_owned())
}

/// The folder that a path is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a folder and those above it.
///
/// Errors: the system refuses; something else is there.
pub(crate) fn make_folder(folder: &Path) -> Outcome<()> {
    let made = match std::fs::create_dir_all(folder) {
        // What is there is no directory, or is above one.
        Err(e) if matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::NotADirectory) => {
            Err(anyhow!("{}: not a directory", folder.display()))
        }
        other => other.with_context(|| format!("{}: cannot be created", folder.display())),
    };
    made.map_err(Failure::output)
}

/// A new file with a name that nobody else has.
fn temporary_in(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    // Temporary files are private by default; results are as readable as the user's other files.
    #[cfg(unix)]
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    #[cfg(unix)]
    builder.permissions(mode);
    // Its own error names the temporary file.
    builder.tempfile_in(folder).map_err(|e| io::Error::from(e.kind()))
}

fn cannot_be_written(path: &Path) -> String {
    format!("{}: cannot be written", path.display())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn refused(path: &Path) -> String {
        Destination::check(path).unwrap_err().to_string()
    }

    #[test]
    fn places_that_take_no_file_are_found_before_any_work() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        assert!(refused(folder.path()).ends_with(": is a directory"));
        let file = at("file").display().to_string();
        assert_eq!(refused(&at("file/below")), format!("{file}/below: not a directory: {file}"));
        assert_eq!(refused(&at("none/below")), format!("{0}/below: no such directory: {0}", at("none").display()));
        let made = |name: &str| Destination::check_with_folder(&at(name)).map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(made("file/below"), Err(format!("{file}: not a directory")));
        assert_eq!(made("file/further/below"), Err(format!("{file}/further: not a directory")));
        assert!(refused(&at("dangling")).ends_with("dangling: a link to a file that does not exist"));
        assert!(refused(&at(&"n".repeat(256))).contains("n: cannot be written: "));
        assert!(refused(Path::new("..")).ends_with("..: not the name of a file"));
        // No trace is left of a place that is fine.
        Destination::check(&at("fine")).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn links_and_devices_stay_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("elsewhere")).unwrap();
        std::fs::write(at("elsewhere/file"), "old").unwrap();
        symlink("elsewhere/file", at("link")).unwrap();
        let link = Destination::check(&at("link")).unwrap();
        assert!(link.exists());
        link.write(b"new").unwrap();
        assert!(at("link").is_symlink());
        assert_eq!(std::fs::read_to_string(at("elsewhere/file")).unwrap(), "new");
        symlink("/dev/null", at("null")).unwrap();
        let null = Destination::check(&at("null")).unwrap();
        null.write(b"nothing").unwrap();
        assert!(!null.exists() && at("null").is_symlink());
        let full = Destination::check(Path::new("/dev/full")).unwrap().write(b"much").unwrap_err();
        let said = Failure::output(full).to_string();
        assert_eq!(said, "/dev/full: cannot be written: no space left on device");
    }

    #[test]
    fn an_output_is_neither_an_input_nor_another_output() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("b")).unwrap();
        std::fs::write(at("input"), "precious").unwrap();
        std::fs::hard_link(at("input"), at("hard")).unwrap();
        symlink("input", at("soft")).unwrap();
        symlink("b", at("c")).unwrap();
        let check = |outputs: &[&str]| {
            let outputs: Vec<Destination> = outputs.iter().map(|name| Destination::check(&at(name)).unwrap()).collect();
            let input = at("input");
            refuse_collisions(&outputs, [&*input]).map_err(|failure| (failure.exit as i32, failure.to_string()))
        };
        for name in ["input", "b/../input", "hard", "soft"] {
            let (code, said) = check(&[name]).unwrap_err();
            assert!(code == 2 && said.contains("this output is the same file as an input: "), "{said}");
        }
        for pair in [["new", "new"], ["new", "b/../new"], ["b/new", "c/new"]] {
            let (code, said) = check(&pair).unwrap_err();
            assert!(code == 2 && said.contains("this output is the same file as another output: "), "{said}");
        }
        assert_eq!(check(&["new", "b/new", "other"]), Ok(()));
    }
}
