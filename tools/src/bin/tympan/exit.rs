//! [`Exit`]: the program's exit codes, and which one an error stands for.

use std::process::ExitCode;

use convert::ErrorKind;
use engine::error::Chain;

use crate::{interrupt, streams};

/// Characters of a message. What files say is cut where it is said (`engine::gguf::shown`); this is for what libraries repeat.
const MAX_MESSAGE_CHARS: usize = 4000;

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
    /// A model or checkpoint is missing, malformed, unsupported, changed while it was used or gives values that are not
    /// finite.
    Model = 4,
    /// The memory does not suffice.
    Memory = 5,
    /// A text was cut at the token limit.
    Truncated = 6,
    /// Ended by the end of its terminal (HUP).
    HungUp = 129,
    /// Interrupted by the user (INT).
    Interrupted = 130,
    /// Asked to end (TERM).
    Terminated = 143,
}

impl Exit {
    /// Of a run over several inputs, of which some failed for these reasons.
    pub(crate) fn of_several(failed: &[Self], n_inputs: usize) -> Self {
        let is = |exit: Self| failed.contains(&exit);
        let none_was_read = failed.len() == n_inputs && failed.iter().all(|&exit| exit == Self::Input);
        match failed {
            [only] if n_inputs == 1 => *only,
            _ if is(Self::Model) => Self::Model,
            _ if is(Self::Memory) => Self::Memory,
            _ if none_was_read => Self::Input,
            _ => Self::SomeFailed,
        }
    }
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
    /// Whether the run ends with it, however much is left to do.
    pub ends_run: bool,
}

/// `Result` with an exit code.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    fn new(exit: Exit, error: anyhow::Error) -> Self {
        Self { exit, error, ends_run: false }
    }

    /// The same, and the run ends with it.
    pub(crate) fn ending(self) -> Self {
        Self { ends_run: true, ..self }
    }

    /// Nobody reads standard output any more: the run is done, and nothing is said of it.
    pub(crate) fn reader_gone() -> Self {
        Self::new(Exit::Done, anyhow::anyhow!("standard output is closed")).ending()
    }

    /// A signal came; `what` is kept.
    pub(crate) fn interrupted(what: impl std::fmt::Display) -> Self {
        Self::new(interrupt::exit().unwrap_or(Exit::Interrupted), anyhow::anyhow!("{what}")).ending()
    }

    /// Says it on standard error; there is nothing to say of a reader that has gone.
    pub(crate) fn say(&self) {
        if self.exit != Exit::Done {
            streams::say_error(self);
        }
    }

    /// A usage error.
    pub(crate) fn usage(message: impl std::fmt::Display) -> Self {
        Self::new(Exit::Usage, anyhow::anyhow!("{message}"))
    }

    /// What a flag asks for that the system or a library refuses.
    pub(crate) fn refused(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::Usage, error.into())
    }

    /// A flag or value of the contract that is not built yet.
    pub(crate) fn not_in_this_version(what: impl std::fmt::Display) -> Self {
        Self::usage(format!("{what}: not in this version"))
    }

    /// An error in a model or checkpoint; running out of memory keeps its own code.
    pub(crate) fn model(error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        let exit = if error.chain().any(is_out_of_memory) { Exit::Memory } else { Exit::Model };
        Self::new(exit, error)
    }

    /// An output that cannot be written.
    pub(crate) fn output(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::SomeFailed, error.into())
    }

    /// An error in an input.
    pub(crate) fn input(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::Input, error.into())
    }
}

impl From<convert::Error> for Failure {
    fn from(error: convert::Error) -> Self {
        let exit = match error.kind() {
            ErrorKind::Usage => Exit::Usage,
            ErrorKind::Model => Exit::Model,
            ErrorKind::Memory => Exit::Memory,
            ErrorKind::Output => Exit::SomeFailed,
            ErrorKind::Interrupted => return Self::interrupted(error),
        };
        Self::new(exit, error.into())
    }
}

/// Errors of models and checkpoints; inputs have [`Failure::input`].
impl From<tympan::Error> for Failure {
    fn from(error: tympan::Error) -> Self {
        match error {
            tympan::Error::Convert(error) if error.kind() == ErrorKind::Output => error.into(),
            error => Self::model(error),
        }
    }
}

fn is_out_of_memory(cause: &(dyn std::error::Error + 'static)) -> bool {
    let engine = match (cause.downcast_ref(), cause.downcast_ref()) {
        (Some(tympan::Error::Engine(error) | tympan::Error::Model(models::Error::Engine(error))), _)
        | (_, Some(models::Error::Engine(error))) => Some(error),
        _ => cause.downcast_ref(),
    };
    matches!(engine, Some(engine::Error::OutOfMemory { .. }))
}

impl std::fmt::Display for Failure {
    /// One line: the causes from the outside in, separated by colons.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = Chain(self.error.as_ref()).to_string();
        let line: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let line = line.join(" ");
        match line.char_indices().nth(MAX_MESSAGE_CHARS) {
            Some((end, _)) => write!(f, "{}...", &line[..end]),
            None => f.write_str(&line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Exit::{self, Input, Memory, Model, SomeFailed};

    #[test]
    fn several_inputs_have_one_exit_code() {
        for (failed, n_inputs, want) in [
            (&[Input][..], 1, Input),
            (&[Memory], 1, Memory),
            (&[Input], 2, SomeFailed),
            (&[Input, Input], 2, Input),
            (&[Input, SomeFailed], 2, SomeFailed),
            (&[Input, Memory, Model], 3, Model),
            (&[Memory, Input], 5, Memory),
        ] {
            assert_eq!(Exit::of_several(failed, n_inputs), want, "{failed:?} of {n_inputs}");
        }
    }
}
