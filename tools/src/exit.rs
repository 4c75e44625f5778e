//! [`Exit`]: the program's exit codes, and which one an error stands for.

use std::process::ExitCode;

use convert::ErrorKind;
use engine::error::Chain;

/// Why the program ended. The numbers are part of the command line's contract.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Some of several inputs failed and the others were written, or an output cannot be written.
    SomeFailed = 1,
    /// Flags or arguments that make no sense together, or that this version does not have.
    Usage = 2,
    /// An input cannot be read or decoded.
    Input = 3,
    /// A model or checkpoint is missing, malformed or unsupported.
    Model = 4,
    /// The memory does not suffice.
    Memory = 5,
    /// A text was cut at the token limit.
    Truncated = 6,
    /// Interrupted by the user.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        // The discriminants are all below 256.
        Self::from(exit as u8)
    }
}

/// An error that knows its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What the program exits with.
    pub exit: Exit,
    /// What failed, on which file, expected and found.
    pub error: anyhow::Error,
}

/// `Result` with an exit code.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A usage error.
    pub(crate) fn usage(message: impl std::fmt::Display) -> Self {
        Self { exit: Exit::Usage, error: anyhow::anyhow!("{message}") }
    }

    /// What a flag asks for that the system or a library refuses.
    pub(crate) fn refused(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Usage, error: error.into() }
    }

    /// A flag or value of the contract that is not built yet.
    pub(crate) fn not_in_this_version(what: impl std::fmt::Display) -> Self {
        Self::usage(format!("{what}: not in this version"))
    }

    /// An error in a model or checkpoint; running out of memory keeps its own code.
    pub(crate) fn model(error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        let exit = if error.chain().any(is_out_of_memory) { Exit::Memory } else { Exit::Model };
        Self { exit, error }
    }

    /// An output that cannot be written.
    pub(crate) fn output(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::SomeFailed, error: error.into() }
    }

    /// An error in an input.
    pub(crate) fn input(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Input, error: error.into() }
    }
}

impl From<convert::Error> for Failure {
    fn from(error: convert::Error) -> Self {
        let exit = match error.kind() {
            ErrorKind::Usage => Exit::Usage,
            ErrorKind::Model => Exit::Model,
            ErrorKind::Memory => Exit::Memory,
            ErrorKind::Output => Exit::SomeFailed,
            ErrorKind::Interrupted => Exit::Interrupted,
        };
        Self { exit, error: error.into() }
    }
}

fn is_out_of_memory(cause: &(dyn std::error::Error + 'static)) -> bool {
    let engine = match cause.downcast_ref() {
        Some(models::Error::Engine(error)) => Some(error),
        _ => cause.downcast_ref(),
    };
    matches!(engine, Some(engine::Error::OutOfMemory { .. }))
}

impl std::fmt::Display for Failure {
    /// One line: the causes from the outside in, separated by colons.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = Chain(self.error.as_ref()).to_string();
        let line: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        f.write_str(&line.join(" "))
    }
}
