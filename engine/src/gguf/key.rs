//! [`KeyError`]: a metadata key that a file does not have as it was asked for.

use std::path::{Path, PathBuf};

/// What is wrong with a metadata key. The text is about the key alone: who asked knows the file, and who passes the error on
/// says it ([`KeyError::path`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeyError {
    /// It is absent.
    Missing {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// It has another type, or a value that the type asked for does not hold.
    WrongType {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The type asked for.
        want: &'static str,
        /// The type found.
        got: String,
    },
}

impl KeyError {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Missing { path, .. } | Self::WrongType { path, .. } => path,
        }
    }
}

impl std::fmt::Display for KeyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing { key, .. } => write!(f, "metadata key {key} is missing"),
            Self::WrongType { key, want, got, .. } => write!(f, "metadata key {key}: want {want}, got {got}"),
        }
    }
}

impl std::error::Error for KeyError {}
