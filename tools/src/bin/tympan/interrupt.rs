//! Ctrl-C and the other signals that ask a process to end. They end it at once, with their exit code, unless somebody is
//! there who would rather leave nothing half done: [`Interrupt`] is the type to read first.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::exit::{Exit, Failure, Outcome};
use crate::signal;

/// The signals, and what the process exits with.
const SIGNALS: &[(i32, Exit)] = &[
    (SIGINT, Exit::Interrupted),
    (SIGTERM, Exit::Terminated),
    #[cfg(unix)]
    (signal_hook::consts::SIGHUP, Exit::HungUp),
];

/// What signals set and look at.
struct Flags {
    /// Whether the next signal ends the process at once.
    at_once: Arc<AtomicBool>,
    /// Exit code of the last signal that came, 0 where none did.
    exit: Arc<AtomicUsize>,
}

static FLAGS: OnceLock<Flags> = OnceLock::new();

/// Takes over the signals; those that were ignored when the process started stay so, as `nohup` wants it.
///
/// Errors: the system refuses.
pub(crate) fn install() -> Outcome<()> {
    let flags = FLAGS.get_or_init(|| Flags { at_once: Arc::new(true.into()), exit: Arc::new(0.into()) });
    let heard = || SIGNALS.iter().filter(|(number, _)| !signal::is_ignored(*number));
    let register = || {
        heard().try_for_each(|&(number, exit)| {
            // In this order: the first signal that somebody waits for must not end the process on its way.
            flag::register_conditional_shutdown(number, exit as i32, Arc::clone(&flags.at_once))
                .and_then(|_| flag::register(number, Arc::clone(&flags.at_once)))
                .and_then(|_| flag::register_usize(number, Arc::clone(&flags.exit), exit as usize))
                .map(|_| ())
        })
    };
    // A signal that comes when its handler is there and what the handler does is not yet would be lost.
    signal::undisturbed_by(heard().map(|&(number, _)| number), register)
        .and_then(|()| signal::explain_bus_errors())
        .map_err(refused)
}

fn refused(error: std::io::Error) -> Failure {
    Failure::refused(anyhow::Error::new(error).context("cannot watch for signals"))
}

/// Somebody who looks for signals, or whom they must not disturb: while there is one, the first signal only sets it, and the
/// second one ends the process.
#[derive(Debug)]
pub(crate) struct Interrupt(());

/// How many [`Interrupt`]s there are.
static WATCHING: AtomicUsize = AtomicUsize::new(0);

impl Interrupt {
    /// Begins to look.
    pub(crate) fn watch() -> Self {
        WATCHING.fetch_add(1, Ordering::SeqCst);
        if let Some(flags) = FLAGS.get() {
            flags.at_once.store(false, Ordering::SeqCst);
            // It may have come before.
            flags.at_once.fetch_or(flags.exit.load(Ordering::SeqCst) != 0, Ordering::SeqCst);
        }
        Self(())
    }

    /// Whether a signal came.
    pub(crate) fn is_set(&self) -> bool {
        exit().is_some()
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        let is_last = WATCHING.fetch_sub(1, Ordering::SeqCst) == 1;
        if let Some(flags) = FLAGS.get().filter(|_| is_last) {
            flags.at_once.store(true, Ordering::SeqCst);
        }
    }
}

/// Work that signals must not disturb, and that does not look for them: where nobody else does either, one that comes
/// meanwhile ends the process behind it.
#[derive(Debug)]
pub(crate) struct Undisturbed(Option<Interrupt>);

impl Undisturbed {
    /// Begins the work.
    pub(crate) fn begin() -> Self {
        Self(Some(Interrupt::watch()))
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        self.0 = None;
        if WATCHING.load(Ordering::SeqCst) == 0
            && let Some(exit) = exit()
        {
            std::process::exit(exit as i32);
        }
    }
}

/// What the process exits with for the signal that came; none where none did.
pub(crate) fn exit() -> Option<Exit> {
    let code = FLAGS.get()?.exit.load(Ordering::SeqCst);
    SIGNALS.iter().map(|&(_, exit)| exit).find(|&exit| exit as usize == code)
}
