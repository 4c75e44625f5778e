//! [`Error`]: what is wrong with a model, its vocabulary, or a request to it.

use std::path::PathBuf;

use engine::gguf::{KeyError, quoted};
use engine::weights::WeightError;

use crate::sample::NotFinite;

/// `Result` with the error of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed, with what was expected and what was found; an error about a file begins with its path.
#[derive(Debug)]
pub enum Error {
    /// The engine failed: its own error stands for this one.
    Engine(engine::Error),
    /// A metadata key is absent from a file or has another type than the architecture needs.
    Key(KeyError),
    /// A metadata key is in none of the files.
    MissingKey {
        /// The files.
        paths: Vec<PathBuf>,
        /// The key.
        key: String,
    },
    /// A metadata value, or a combination of values, makes no sense.
    BadValue {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Expected and found.
        what: String,
    },
    /// A tensor that the architecture needs is absent or has other extents than the metadata imply.
    Weight(WeightError),
    /// A tensor by which the metadata imply nothing has extents that make no sense.
    BadWeight {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Expected and found.
        what: String,
    },
    /// A projector without the text model that it belongs to.
    NoTextModel {
        /// The projector, or several.
        paths: Vec<PathBuf>,
    },
    /// A text model of speech without its projector.
    NoProjector {
        /// The text model.
        path: PathBuf,
        /// What it needs.
        what: String,
    },
    /// The files hold an architecture that is not in the registry.
    UnknownArchitecture {
        /// The files.
        paths: Vec<PathBuf>,
        /// The architecture named by them.
        found: String,
        /// The registry, comma separated.
        known: String,
    },
    /// An architecture that does not transcribe.
    NotSpeech {
        /// Its name.
        arch: &'static str,
        /// The ones that do, comma separated.
        known: String,
    },
    /// Of a speech model only the language model was loaded.
    NoEncoder {
        /// The architecture.
        arch: &'static str,
    },
    /// The vocabulary is malformed or not supported.
    Tokenizer {
        /// The file, where it comes from one.
        path: Option<PathBuf>,
        /// Expected and found.
        what: String,
    },
    /// The chat template cannot write a conversation, or is no template.
    Template {
        /// Expected and found, or the template's own words.
        what: String,
    },
    /// A parameter of the audio front end makes no sense.
    FrontEnd {
        /// The parameter.
        parameter: &'static str,
        /// Expected and found.
        what: String,
    },
    /// A sequence cannot go on, since no token can be chosen.
    NotFinite {
        /// Its number in the scheduler.
        sequence: u64,
        /// Tokens that it had generated.
        step: usize,
        /// The logits.
        source: NotFinite,
    },
    /// Whoever watched wanted no more.
    Cancelled,
    /// An argument of a request makes no sense to this model.
    Argument {
        /// The argument.
        name: &'static str,
        /// Expected and found.
        what: String,
    },
}

impl Error {
    /// This error of the vocabulary in this file; others stay as they are.
    pub(crate) fn of_vocabulary(self, file: &std::path::Path) -> Self {
        match self {
            Self::Tokenizer { path: None, what } => Self::Tokenizer { path: Some(file.to_owned()), what },
            other => other,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Engine(error) => write!(f, "{error}"),
            Self::Key(error) => write!(f, "{}: {error}", error.path().display()),
            Self::MissingKey { paths, key } => write!(f, "{}: metadata key {key} is missing", listed(paths)),
            Self::BadValue { path, key, what } => write!(f, "{}: metadata key {key}: {what}", path.display()),
            Self::Weight(error) => write!(f, "{}: {error}", listed(error.paths())),
            Self::BadWeight { path, name, what } => write!(f, "{}: {name}: {what}", path.display()),
            Self::NoTextModel { paths } => {
                write!(f, "{}: a projector (mmproj) without its text model", listed(paths))
            }
            Self::NoProjector { path, what } => write!(f, "{}: {what}", path.display()),
            Self::UnknownArchitecture { paths, found, known } => {
                let (paths, found) = (listed(paths), quoted(found));
                write!(f, "{paths}: architecture {found} is not supported (supported: {known})")
            }
            Self::NotSpeech { arch, known } => write!(f, "{arch} is not a speech model (speech models: {known})"),
            Self::NoEncoder { arch } => {
                write!(f, "there is no audio encoder: only the language model of {arch} was loaded")
            }
            Self::Tokenizer { path: Some(path), what } => write!(f, "{}: tokenizer: {what}", path.display()),
            Self::Tokenizer { path: None, what } => write!(f, "tokenizer: {what}"),
            Self::Template { what } => write!(f, "chat template: {what}"),
            Self::FrontEnd { parameter, what } => write!(f, "audio front end: {parameter}: {what}"),
            Self::NotFinite { sequence, step, source: _ } => write!(f, "sequence {sequence}, step {step}"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Argument { name, what } => write!(f, "{name}: {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Its text is this one's text, so its cause is this one's cause.
            Self::Engine(error) => error.source(),
            Self::NotFinite { source, .. } => Some(source),
            Self::Key(_)
            | Self::MissingKey { .. }
            | Self::BadValue { .. }
            | Self::Weight(_)
            | Self::BadWeight { .. }
            | Self::NoTextModel { .. }
            | Self::NoProjector { .. }
            | Self::UnknownArchitecture { .. }
            | Self::NotSpeech { .. }
            | Self::NoEncoder { .. }
            | Self::Tokenizer { .. }
            | Self::Template { .. }
            | Self::FrontEnd { .. }
            | Self::Cancelled
            | Self::Argument { .. } => None,
        }
    }
}

impl From<engine::Error> for Error {
    fn from(error: engine::Error) -> Self {
        Self::Engine(error)
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        Self::Key(error)
    }
}

impl From<WeightError> for Error {
    fn from(error: WeightError) -> Self {
        Self::Weight(error)
    }
}

/// Files in one line.
fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
