//! [`Error`]: what failed, and whose fault it is.

use std::fmt;

use engine::error::Chain;

/// Whose fault an error is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense, or not with this checkpoint.
    Usage,
    /// A model or checkpoint is missing, malformed or unsupported.
    Model,
    /// The memory does not suffice.
    Memory,
    /// A file cannot be written.
    Output,
    /// [`Watch::is_interrupted`](crate::Watch::is_interrupted) said so.
    Interrupted,
}

/// An error of this crate. `{}` is its outermost line, [`source`](std::error::Error::source) what is behind it, and `{:#}`
/// all of it in one line.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    cause: anyhow::Error,
}

/// `Result` of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the file system said, where it is about that.
    pub fn io(&self) -> Option<&std::io::Error> {
        self.cause.chain().find_map(|cause| cause.downcast_ref())
    }

    /// Running out of memory keeps its own kind, whatever was being done.
    fn of(kind: ErrorKind, cause: anyhow::Error) -> Self {
        let is_memory = |e: &engine::Error| matches!(e, engine::Error::OutOfMemory { .. });
        let memory = cause.chain().any(|e| e.downcast_ref().is_some_and(is_memory));
        Self { kind: if memory { ErrorKind::Memory } else { kind }, cause }
    }

    pub(crate) fn usage(cause: impl Into<anyhow::Error>) -> Self {
        Self::of(ErrorKind::Usage, cause.into())
    }

    pub(crate) fn model(cause: impl Into<anyhow::Error>) -> Self {
        Self::of(ErrorKind::Model, cause.into())
    }

    pub(crate) fn output(cause: impl Into<anyhow::Error>) -> Self {
        Self::of(ErrorKind::Output, cause.into())
    }

    pub(crate) fn interrupted() -> Self {
        Self::of(ErrorKind::Interrupted, anyhow::anyhow!("interrupted"))
    }

    /// The same with `what` behind its line.
    pub(crate) fn followed_by(self, what: impl fmt::Display) -> Self {
        Self { kind: self.kind, cause: anyhow::anyhow!("{}: {what}", self.cause) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return fmt::Display::fmt(&self.cause, f);
        }
        // Causes of other crates may have several lines.
        let text = Chain(self.cause.as_ref()).to_string();
        let line: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        f.write_str(&line.join(" "))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.source()
    }
}
