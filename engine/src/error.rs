//! [`Error`]: everything that can go wrong at the library boundary.

use std::path::PathBuf;

use crate::key::GraphKey;

/// `Result` with the engine's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What made something fail, of any type.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What failed, with what was expected and what was found. The text leaves out what `source` has: [`Chain`] joins them.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused a file operation.
    Io {
        /// The file.
        path: PathBuf,
        /// Its answer.
        source: std::io::Error,
    },
    /// A file was changed while it was used.
    Changed {
        /// The file.
        path: PathBuf,
        /// What is different.
        what: String,
    },
    /// A GGUF file is malformed or not supported.
    Gguf {
        /// The file, or a name for bytes in memory.
        path: PathBuf,
        /// Expected and found.
        what: String,
        /// What the parser of record said, where it refused the file.
        source: Option<Cause>,
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
    /// No backend has this name.
    UnknownBackend {
        /// The name.
        name: String,
        /// The names that there are, comma separated.
        known: String,
    },
    /// A device, or the system on its behalf, failed.
    Device {
        /// The backend.
        backend: String,
        /// What was to be done, or what the device said.
        msg: String,
        /// The system's answer, where it gave one.
        source: Option<Cause>,
    },
    /// A call that a backend does not carry out: memory of another backend, bytes outside of a buffer, a result that is lent.
    Refused {
        /// The backend.
        backend: String,
        /// Expected and found.
        what: String,
    },
    /// A key that no call has.
    Key {
        /// The key.
        key: GraphKey,
        /// Expected and found.
        what: String,
    },
    /// The model has no state of this number.
    NoState {
        /// The number.
        index: usize,
        /// Number of states.
        n_states: usize,
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
            Self::Io { path, source: _ } => write!(f, "{}", path.display()),
            Self::Changed { path, what } => write!(f, "{}: has changed while it was used: {what}", path.display()),
            Self::Gguf { path, what, source: _ } => write!(f, "{}: {what}", path.display()),
            Self::Graph { at, op, msg } => write!(f, "{at}: {op}: {msg}"),
            Self::Unsupported { op, backend, why } => write!(f, "{op} is not supported by backend {backend}: {why}"),
            Self::OutOfMemory { what, wanted, free } => {
                write!(f, "out of memory: {what} needs {wanted} bytes")?;
                free.map_or(Ok(()), |free| write!(f, ", {free} are free"))
            }
            Self::UnknownBackend { name, known } => write!(f, "{name}: no such backend (known: {known})"),
            Self::Device { backend, msg, source: _ } => write!(f, "{backend}: {msg}"),
            Self::Refused { backend, what } => write!(f, "{backend}: {what}"),
            Self::Key { key, what } => write!(f, "{key:?}: {what}"),
            Self::NoState { index, n_states } => write!(f, "state {index} of {n_states}: there is none"),
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

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Gguf { source, .. } | Self::Device { source, .. } => source.as_deref().map(|source| source as _),
            Self::Changed { .. }
            | Self::Graph { .. }
            | Self::Unsupported { .. }
            | Self::OutOfMemory { .. }
            | Self::UnknownBackend { .. }
            | Self::Refused { .. }
            | Self::Key { .. }
            | Self::NoState { .. }
            | Self::NoFreeSlot { .. }
            | Self::ContextFull { .. }
            | Self::NotRewindable
            | Self::TornSlot { .. }
            | Self::StaleGraph { .. }
            | Self::Snapshot { .. }
            | Self::Batch { .. } => None,
        }
    }
}

/// An error and its causes from the outside in, separated by colons: what a program shows. The system's answers are in
/// words, without their numbers.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut next = Some(self.0);
        while let Some(error) = next {
            match error.downcast_ref::<std::io::Error>() {
                Some(error) => f.write_str(&reason(error))?,
                None => write!(f, "{error}")?,
            }
            next = error.source();
            if next.is_some() {
                f.write_str(": ")?;
            }
        }
        Ok(())
    }
}

/// The system's answer in words, without its error number.
fn reason(e: &std::io::Error) -> String {
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
