//! What about signals the standard library has no safe call for.

#![allow(unsafe_code, reason = "the system's calls about signals are foreign functions")]

#[cfg(unix)]
use crate::exit::Exit;

/// Whether the process ignores signal `number`, as it was started.
#[cfg(unix)]
pub(crate) fn is_ignored(number: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call only writes the present one to the place it is given, which is ours.
    let answer = unsafe { libc::sigaction(number, std::ptr::null(), action.as_mut_ptr()) };
    if answer != 0 {
        return false;
    }
    // SAFETY: the call succeeded, so it has written all of it.
    unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Other systems have no such processes.
#[cfg(not(unix))]
pub(crate) fn is_ignored(_: i32) -> bool {
    false
}

/// What `work` returns, which no signal of `numbers` comes in the middle of: it comes behind it. For a process of one thread.
#[cfg(unix)]
pub(crate) fn undisturbed_by<T>(numbers: impl Iterator<Item = i32>, work: impl FnOnce() -> T) -> T {
    use std::mem::MaybeUninit;

    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the first call makes an empty set at the place it is given, which is ours.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for number in numbers {
        // SAFETY: it is a set by now; a number that is none changes nothing.
        unsafe { libc::sigaddset(set.as_mut_ptr(), number) };
    }
    // SAFETY: reads one set and writes the other, both ours.
    let is_blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr()) } == 0;
    let result = work();
    if is_blocked {
        // SAFETY: the call above succeeded, so it has written the set that was blocked before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    }
    result
}

/// Other systems cannot hold signals back.
#[cfg(not(unix))]
pub(crate) fn undisturbed_by<T>(_: impl Iterator<Item = i32>, work: impl FnOnce() -> T) -> T {
    work()
}

/// Ends the process with a message and [`Exit::Model`] where a file that is mapped gives no bytes any more: it has been cut
/// short, or its disk fails. Without this, the process would be killed without a word.
///
/// Bytes that are replaced raise no signal: [`engine::mapping::Mapping::check_unchanged`] finds those.
///
/// Errors: the system refuses.
#[cfg(unix)]
pub(crate) fn explain_bus_errors() -> std::io::Result<()> {
    use signal_hook::consts::SIGBUS;
    use signal_hook::low_level;
    use std::sync::atomic::{AtomicBool, Ordering};

    static IS_SAID: AtomicBool = AtomicBool::new(false);
    let explain = |info: &libc::siginfo_t| {
        // SAFETY: the system fills in the address for every bus error.
        let address = unsafe { info.si_addr() }.addr();
        match engine::mapping::path_at(address) {
            Some(path) => {
                // Another thread is saying so, and ends the process.
                while IS_SAID.swap(true, Ordering::SeqCst) {
                    let _ = rustix::event::poll(&mut [], None);
                }
                for text in
                    ["error: ", path, ": the file gives no bytes any more: it was cut short while it was used\n"]
                {
                    let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
                }
                low_level::exit(Exit::Model as i32);
            }
            // Somebody else's: as if nobody had asked. To go back would be to come here again, for ever.
            None => {
                let _ = low_level::emulate_default_handler(SIGBUS);
                low_level::abort();
            }
        }
    };
    // SAFETY: all that is done is allowed in the middle of anything: atomic operations, poll, write, exit and abort.
    unsafe { signal_hook_registry::register_sigaction(SIGBUS, explain) }.map(|_| ())
}

/// Other systems do not let a mapped file shrink.
#[cfg(not(unix))]
pub(crate) fn explain_bus_errors() -> std::io::Result<()> {
    Ok(())
}
