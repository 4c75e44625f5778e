//! [`Error`]: everything that can go wrong at the library boundary.

use std::path::PathBuf;

use crate::dtype::DType;
use crate::shape::Shape;

/// `Result` with the engine's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed, with what was expected and what was found.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    Io {
        /// The file.
        path: PathBuf,
        /// Its answer.
        source: std::io::Error,
    },
    /// A GGUF file is malformed or not supported.
    Gguf {
        /// The file, or a name for bytes in memory.
        path: PathBuf,
        /// Expected and found.
        what: String,
    },
    /// A metadata key that the architecture needs is absent.
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata key has another type than the architecture needs.
    WrongType {
        /// The key.
        key: String,
        /// The type needed.
        want: &'static str,
        /// The type found.
        got: String,
    },
    /// A metadata value or a combination of values makes no sense.
    BadValue {
        /// The key.
        key: String,
        /// Expected and found.
        what: String,
    },
    /// A tensor that the architecture needs is absent.
    MissingWeight {
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the metadata imply.
    WeightShape {
        /// The tensor.
        name: String,
        /// The shape implied.
        want: Shape,
        /// The shape found.
        got: Shape,
    },
    /// A tensor has a type that its use does not allow.
    WeightType {
        /// The tensor.
        name: String,
        /// What is allowed.
        want: &'static str,
        /// The type found.
        got: DType,
    },
    /// The file holds an architecture that is not in the registry.
    UnknownArchitecture {
        /// The architecture named by the file.
        found: String,
        /// The registry, comma separated.
        known: String,
    },
    /// The vocabulary is malformed or not supported.
    Tokenizer {
        /// Expected and found.
        what: String,
    },
    /// A graph was built from operands that do not fit each other.
    Graph {
        /// File and line of the builder's caller.
        at: String,
        /// The operation.
        op: &'static str,
        /// Expected and found.
        msg: String,
    },
    /// A backend cannot run an operation.
    Unsupported {
        /// The operation.
        op: &'static str,
        /// The backend.
        backend: String,
        /// The reason.
        why: String,
    },
    /// Memory does not suffice.
    OutOfMemory {
        /// What it was for.
        what: String,
        /// Bytes wanted.
        wanted: usize,
        /// Bytes free, where known.
        free: Option<usize>,
    },
    /// A device failed.
    Device {
        /// The backend.
        backend: String,
        /// What it said.
        msg: String,
    },
    /// All slots hold sequences.
    NoFreeSlot {
        /// Number of slots.
        n_slots: usize,
    },
    /// A sequence would grow past the context.
    ContextFull {
        /// Tokens that fit.
        capacity: usize,
        /// Tokens asked for.
        wanted: usize,
    },
    /// Recurrent state cannot be taken back to an earlier position.
    NotRewindable,
    /// A call failed half-way through this slot's recurrent states: release it or rewind it to 0.
    TornSlot {
        /// The slot.
        slot: usize,
    },
    /// A graph that is kept differs from what the model builds for the same key: the model is not a function of the key.
    StaleGraph {
        /// The key and the first difference.
        what: String,
    },
    /// Bytes that are no snapshot of this model: damaged, cut short or of another one.
    Snapshot {
        /// Expected and found.
        what: String,
    },
    /// A call does not fit the model: a token outside the vocabulary, an embedding of another width, an empty batch.
    Batch {
        /// Expected and found.
        what: String,
    },
}

/// [`Error::Batch`]. Apart from the checks that find one, so that those which find none are little code.
#[cold]
#[inline(never)]
pub(crate) fn refuse<T>(what: std::fmt::Arguments<'_>) -> Result<T> {
    Err(Error::Batch { what: what.to_string() })
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io { path, source } => write!(f, "{}: {}", path.display(), reason(source)),
            Self::Gguf { path, what } => write!(f, "{}: {what}", path.display()),
            Self::MissingKey { key } => write!(f, "metadata key {key} is missing"),
            Self::WrongType { key, want, got } => write!(f, "metadata key {key}: want {want}, got {got}"),
            Self::BadValue { key, what } => write!(f, "metadata key {key}: {what}"),
            Self::MissingWeight { name } => write!(f, "tensor {name} is missing"),
            Self::WeightShape { name, want, got } => write!(f, "{name}: want {want}, got {got}"),
            Self::WeightType { name, want, got } => write!(f, "{name}: want {want}, got {got}"),
            Self::UnknownArchitecture { found, known } => {
                write!(f, "architecture {found:?} is not supported (supported: {known})")
            }
            Self::Tokenizer { what } => write!(f, "tokenizer: {what}"),
            Self::Graph { at, op, msg } => write!(f, "{at}: {op}: {msg}"),
            Self::Unsupported { op, backend, why } => write!(f, "{op} is not supported by backend {backend}: {why}"),
            Self::OutOfMemory { what, wanted, free } => {
                write!(f, "out of memory: {what} needs {wanted} bytes")?;
                free.map_or(Ok(()), |free| write!(f, ", {free} are free"))
            }
            Self::Device { backend, msg } => write!(f, "{backend}: {msg}"),
            Self::NoFreeSlot { n_slots } => write!(f, "all {n_slots} slots are in use"),
            Self::ContextFull { capacity, wanted } => {
                write!(f, "the context holds {capacity} tokens, {wanted} are needed")
            }
            Self::NotRewindable => f.write_str("recurrent state cannot be rewound to this position"),
            Self::TornSlot { slot } => {
                write!(f, "a call failed half-way through the state of slot {slot}: release it or rewind it to 0")
            }
            Self::StaleGraph { what } => write!(f, "a kept graph is stale: {what}"),
            Self::Snapshot { what } => write!(f, "snapshot: {what}"),
            Self::Batch { what } => f.write_str(what),
        }
    }
}

// No `source`: the text of `Io` has the cause already, and whoever prints a chain would say it twice.
impl std::error::Error for Error {}

/// The system's answer in words, without its error number.
pub fn reason(e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::NotFound => "no such file".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        std::io::ErrorKind::IsADirectory => "is a directory".into(),
        _ => {
            let text = e.to_string();
            text.split(" (os error").next().unwrap_or(&text).to_lowercase()
        }
    }
}
