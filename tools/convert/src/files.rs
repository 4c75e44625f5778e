//! The files of a checkpoint, wherever they are. [`Files`] is the type to read first.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use engine::mapping::Mapping;
use serde_json::Value;

use crate::synth::{self, Synthetic};

/// Characters of a text from a file that a message repeats.
const MAX_SHOWN_CHARS: usize = 80;

/// Where the files of a checkpoint are.
#[derive(Clone, Debug)]
pub enum Files {
    /// In this directory.
    Directory(PathBuf),
    /// In the program.
    Embedded {
        /// Stands for the directory in messages.
        name: &'static str,
        /// Names and contents.
        files: &'static [(&'static str, &'static [u8])],
    },
    /// Nowhere: they are made by a rule.
    Synthetic(Arc<Synthetic>),
}

impl<P: AsRef<Path> + ?Sized> From<&P> for Files {
    fn from(directory: &P) -> Self {
        Self::Directory(directory.as_ref().to_owned())
    }
}

impl From<Synthetic> for Files {
    fn from(made: Synthetic) -> Self {
        Self::Synthetic(Arc::new(made))
    }
}

impl Files {
    /// The checkpoint that an argument stands for: a directory, or `synth:SHAPE[:SEED]`.
    ///
    /// Errors: a shape or seed that does not exist.
    pub fn from_argument(argument: &Path) -> crate::Result<Self> {
        Ok(synth::checkpoint(argument)?.map_or_else(|| argument.into(), Self::from))
    }

    /// The directory, or what stands for it.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            Self::Embedded { name, .. } => Path::new(name),
            Self::Synthetic(made) => made.path(),
        }
    }

    /// Checks that there is a directory.
    pub fn check(&self) -> Result<()> {
        let Self::Directory(path) = self else { return Ok(()) };
        let io = |source| engine::Error::Io { path: path.clone(), source };
        let found = std::fs::metadata(path).map_err(io)?;
        ensure!(found.is_dir(), "{}: want a checkpoint directory, got a file", path.display());
        Ok(())
    }

    /// Whether there is something called `name`.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(path) => path.join(name).exists(),
            Self::Embedded { .. } => self.embedded(Path::new(name)).is_some(),
            Self::Synthetic(made) => made.file(name).is_some(),
        }
    }

    /// Path of the file `name` for messages, and its bytes, which may be at most `max`; `None` where there is no such file.
    pub fn read(&self, name: &str, max: u64) -> Result<Option<(PathBuf, Cow<'static, [u8]>)>> {
        let path = self.path().join(name);
        match self {
            Self::Directory(_) => {}
            Self::Embedded { .. } => return Ok(self.embedded(Path::new(name)).map(|bytes| (path, bytes.into()))),
            Self::Synthetic(made) => return Ok(made.file(name).map(|bytes| (path, bytes.into()))),
        }
        let io = |source| engine::Error::Io { path: path.clone(), source };
        match std::fs::metadata(&path) {
            Ok(found) => ensure!(found.is_file(), "{}: not a regular file", path.display()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io(e).into()),
        }
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(io)?;
        file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
        ensure!(bytes.len() as u64 <= max, "{}: larger than {max} bytes", path.display());
        Ok(Some((path, bytes.into())))
    }

    /// The file `name`, not read but mapped.
    pub fn map(&self, name: &Path) -> Result<Mapped> {
        let path = self.path().join(name);
        match (self, self.embedded(name)) {
            (Self::Directory(_), _) => Ok(Mapped::File(Mapping::open(&path)?)),
            (Self::Embedded { .. }, Some(bytes)) => Ok(Mapped::Embedded(path, bytes)),
            (Self::Embedded { .. } | Self::Synthetic(_), None) => bail!("{}: no such file", path.display()),
            (Self::Synthetic(_), Some(_)) => bail!("{}: not a stored file", path.display()),
        }
    }

    fn embedded(&self, name: &Path) -> Option<&'static [u8]> {
        let Self::Embedded { files, .. } = self else { return None };
        files.iter().find(|(found, _)| name == Path::new(found)).map(|(_, bytes)| *bytes)
    }
}

/// The JSON value of a file. Python writes `Infinity`, which is no JSON: it is `null` here.
pub(crate) fn parse(bytes: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice(bytes).or_else(|error| without_infinity(bytes).ok_or(error))
}

fn without_infinity(bytes: &[u8]) -> Option<Value> {
    const INFINITY: &str = "Infinity";
    let text = std::str::from_utf8(bytes).ok()?;
    let mut out = String::with_capacity(text.len());
    // Parts inside and outside of texts in turn; a quote behind a backslash ends no text.
    let (mut rest, mut in_text) = (text, false);
    while let Some(at) = rest.find('"') {
        let (part, after) = rest.split_at(at);
        let ends = !in_text || part.bytes().rev().take_while(|&b| b == b'\\').count() % 2 == 0;
        if in_text {
            out.push_str(part)
        } else {
            out.push_str(&part.replace(INFINITY, "null"))
        }
        out.push('"');
        (rest, in_text) = (&after[1..], in_text != ends);
    }
    out.push_str(&rest.replace(INFINITY, "null"));
    serde_json::from_str(&out).ok()
}

/// The beginning of a JSON value from a file, for messages, whose control characters whoever shows them escapes.
pub(crate) fn brief(value: &Value) -> String {
    cut(&value.to_string())
}

/// The beginning of a text, for messages.
pub(crate) fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The bytes of a file.
pub enum Mapped {
    /// Read from the disk when they are needed.
    File(Mapping),
    /// Part of the program, under this path in messages.
    Embedded(PathBuf, &'static [u8]),
}

impl Mapped {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(map) => map.path(),
            Self::Embedded(path, _) => path,
        }
    }

    /// Gives the memory behind `range` back to the system, where it can be read again.
    pub fn release(&self, range: Range<usize>) {
        match self {
            Self::File(map) => map.release(range),
            // The program's own pages are the system's to keep.
            Self::Embedded(..) => {}
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::File(map) => map,
            Self::Embedded(_, bytes) => bytes,
        }
    }
}
