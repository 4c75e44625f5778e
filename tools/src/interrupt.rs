//! Ctrl-C and the signals that ask a process to end. [`Interrupt`] is a flag that long work looks at, so that it leaves
//! nothing half done.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::exit::{Exit, Failure, Outcome};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the user asked to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interrupt(());

impl Interrupt {
    /// Takes over the signals. The first one sets the flag, the second one ends the process at once.
    pub(crate) fn install() -> Outcome<Self> {
        let handler = || {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(Exit::Interrupted as i32);
            }
        };
        match ctrlc::set_handler(handler) {
            // Another subcommand of this process asked before.
            Ok(()) | Err(ctrlc::Error::MultipleHandlers) => Ok(Self(())),
            Err(e) => Err(Failure::refused(anyhow::Error::new(e).context("cannot watch for Ctrl-C"))),
        }
    }

    /// Whether a signal came.
    pub(crate) fn is_set(self) -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }
}
