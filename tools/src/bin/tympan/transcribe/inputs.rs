//! Which files the arguments stand for. [`Inputs`] is the type to read first.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use engine::error::Chain;
use models::audio::{PROBE_BYTES, media_container};

use super::glob::Glob;

/// Which files of a directory count.
#[derive(Args, Clone, Default, Debug)]
pub(super) struct Selection {
    /// Leave out the sub-folders of directories [default: they are read]
    #[arg(long)]
    no_recursive: bool,

    /// Only files of directories whose name fits: *, ** and ?; with a / the path below the directory (repeatable) [default:
    /// all recordings]
    #[arg(long, value_name = "GLOB")]
    include: Vec<Glob>,

    /// No files of directories whose name fits, and no sub-folders (repeatable) [default: none]
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<Glob>,
}

impl Selection {
    fn includes(&self, below: &Path) -> bool {
        self.include.is_empty() || self.include.iter().any(|glob| glob.fits(below))
    }

    fn excludes(&self, below: &Path) -> bool {
        self.exclude.iter().any(|glob| glob.fits(below))
    }
}

/// One input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Input {
    /// A file.
    File {
        /// Where it is.
        path: PathBuf,
        /// Its folder below the directory that was named; empty for a file that was named itself.
        folder: PathBuf,
    },
    /// Standard input.
    Stdin,
}

impl Input {
    /// The input as the user names it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::File { path, .. } => path.display().to_string(),
            Self::Stdin => "-".into(),
        }
    }

    /// Whether reading it may take as long as somebody else likes: a pipe or a device.
    pub(super) fn may_wait(&self) -> bool {
        match self {
            Self::File { path, .. } => fs::metadata(path).is_ok_and(|found| !found.is_file()),
            Self::Stdin => true,
        }
    }

    /// What output files are called, without extension, in the folder that mirrors the input's.
    pub(super) fn stem(&self) -> PathBuf {
        match self {
            Self::File { path, folder } => folder.join(path.file_stem().unwrap_or(path.as_os_str())),
            Self::Stdin => "stdin".into(),
        }
    }

    /// The same with the extension of the input.
    pub(super) fn file_name(&self) -> PathBuf {
        match self {
            Self::File { path, folder } => folder.join(path.file_name().unwrap_or(path.as_os_str())),
            Self::Stdin => "stdin".into(),
        }
    }
}

/// What arguments stand for.
#[derive(Default, Debug)]
pub(super) struct Inputs {
    /// Files to read, those of a directory in order of their names.
    pub found: Vec<Input>,
    /// Files and folders of directories that are no recordings, and why.
    pub skipped: Vec<(PathBuf, &'static str)>,
    /// Entries that cannot be read, and directories without a recording.
    pub failed: Vec<anyhow::Error>,
}

impl Inputs {
    /// Adds an argument: itself, or the recordings of a directory.
    pub(super) fn add(&mut self, argument: &Path, selection: &Selection) {
        if argument == Path::new("-") {
            return self.found.push(Input::Stdin);
        }
        if !argument.is_dir() {
            return self.found.push(Input::File { path: argument.to_owned(), folder: PathBuf::new() });
        }
        let (n_found, n_failed) = (self.found.len(), self.failed.len());
        let mut walk = Walk { selection, inputs: self, ancestors: Vec::new(), seen: HashSet::new() };
        walk.directory(argument, Path::new(""));
        if self.found.len() == n_found && self.failed.len() == n_failed {
            let n_skipped = self.skipped.iter().filter(|(path, _)| path.starts_with(argument)).count();
            let name = argument.display();
            self.failed.push(anyhow!("{name}: no recording in this directory ({n_skipped} skipped; -v names them)"));
        }
    }
}

/// A walk through a directory. What cannot be read costs its own entry and nothing else.
struct Walk<'a> {
    selection: &'a Selection,
    inputs: &'a mut Inputs,
    /// The folders around the one at hand, without links.
    ancestors: Vec<PathBuf>,
    /// All folders so far, without links.
    seen: HashSet<PathBuf>,
}

impl Walk<'_> {
    fn directory(&mut self, dir: &Path, below: &Path) {
        match self.entries(dir) {
            Ok(entries) => entries.iter().for_each(|path| self.entry(path, &below.join(file_name(path)))),
            Err(e) => self.inputs.failed.push(e),
        }
        self.ancestors.pop();
    }

    /// The entries of a folder, in order, which becomes the innermost one.
    fn entries(&mut self, dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let unlisted = || format!("{}: cannot be listed", dir.display());
        let real = fs::canonicalize(dir).with_context(unlisted);
        self.ancestors.push(real.as_ref().map_or_else(|_| dir.to_owned(), Clone::clone));
        self.seen.insert(real?);
        let entries = fs::read_dir(dir).with_context(unlisted)?;
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.with_context(unlisted)?.path());
        }
        paths.sort();
        Ok(paths)
    }

    fn entry(&mut self, path: &Path, below: &Path) {
        if file_name(path).to_string_lossy().starts_with('.') {
            return self.skip(path, "hidden");
        }
        if self.selection.excludes(below) {
            return self.skip(path, "excluded");
        }
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(e) => return self.inputs.failed.push(unreachable_entry(path, &e)),
        };
        if meta.is_dir() {
            self.folder(path, below);
        } else if !self.selection.includes(below) {
            self.skip(path, "not included");
        } else if !meta.is_file() {
            // Opening a pipe could wait for ever.
            self.skip(path, "not a file");
        } else if is_recording(path) {
            let folder = below.parent().unwrap_or(Path::new("")).to_owned();
            self.inputs.found.push(Input::File { path: path.to_owned(), folder });
        } else {
            self.skip(path, "not a recording");
        }
    }

    fn folder(&mut self, path: &Path, below: &Path) {
        if self.selection.no_recursive {
            return self.skip(path, "sub-folder");
        }
        match fs::canonicalize(path) {
            Ok(real) if self.ancestors.contains(&real) => {
                self.inputs.failed.push(anyhow!("{}: a link to a folder that it is in", path.display()));
            }
            Ok(real) if self.seen.contains(&real) => self.skip(path, "a link to a folder that is read already"),
            _ => self.directory(path, below),
        }
    }

    fn skip(&mut self, path: &Path, why: &'static str) {
        self.inputs.skipped.push((path.to_owned(), why));
    }
}

fn file_name(path: &Path) -> &Path {
    path.file_name().unwrap_or_default().as_ref()
}

/// Why an entry leads nowhere.
fn unreachable_entry(path: &Path, error: &std::io::Error) -> anyhow::Error {
    if error.kind() == ErrorKind::NotFound && path.is_symlink() {
        return anyhow!("{}: a link to a file that does not exist", path.display());
    }
    anyhow!("{}: cannot be read: {}", path.display(), Chain(error))
}

/// Whether a file is a recording by its content. One that cannot be read may be, and is said when it is its turn.
fn is_recording(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(PROBE_BYTES as u64).read_to_end(&mut head));
    read.is_err() || media_container(&head).is_some()
}
