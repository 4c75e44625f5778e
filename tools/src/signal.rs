//! Questions about signals that the standard library has no safe call for.

#![allow(unsafe_code, reason = "the system's calls about signals are foreign functions")]

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
