//! [`Error`]: what goes wrong between a path and a text.

use std::path::PathBuf;

use models::audio::AudioError;

/// `Result` with the error of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed. Errors of the crates below stand for themselves: their text is this one's text, their cause its cause.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A path does not lead to one model: there is none, there are several, or something else came instead.
    NoModel {
        /// The path.
        path: PathBuf,
        /// What is there, and what to do.
        what: String,
    },
    /// A directory could not be listed.
    Io {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A recording cannot be read.
    Audio(AudioError),
    /// A checkpoint cannot be converted.
    Convert(convert::Error),
    /// A model file makes no sense, or the model cannot do what was asked.
    Model(models::Error),
    /// A file, a backend or memory failed.
    Engine(engine::Error),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoModel { path, what } => write!(f, "{}: {what}", path.display()),
            Self::Io { path, source: _ } => write!(f, "{}: cannot be listed", path.display()),
            Self::Audio(error) => write!(f, "{error}"),
            Self::Convert(error) => write!(f, "{error}"),
            Self::Model(error) => write!(f, "{error}"),
            Self::Engine(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoModel { .. } => None,
            Self::Io { source, .. } => Some(source),
            Self::Audio(error) => error.source(),
            Self::Convert(error) => error.source(),
            Self::Model(error) => error.source(),
            Self::Engine(error) => error.source(),
        }
    }
}

impl From<AudioError> for Error {
    fn from(error: AudioError) -> Self {
        Self::Audio(error)
    }
}

impl From<convert::Error> for Error {
    fn from(error: convert::Error) -> Self {
        Self::Convert(error)
    }
}

impl From<models::Error> for Error {
    fn from(error: models::Error) -> Self {
        Self::Model(error)
    }
}

impl From<engine::Error> for Error {
    fn from(error: engine::Error) -> Self {
        Self::Engine(error)
    }
}
