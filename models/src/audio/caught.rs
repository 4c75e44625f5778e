//! [`caught`]: panics of demuxers and decoders become errors.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Panics of this thread are caught and reported as errors.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; a panic in it becomes its message, and nothing is printed.
///
/// Some malformed files make the demuxers and decoders panic, mostly by overflowing arithmetic in builds that check it.
/// Such a file is an error like any other.
pub(super) fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !CATCHING.get() {
                previous(panic);
            }
        }));
    });
    let outer = CATCHING.replace(true);
    // Nothing that `f` borrowed is used after a panic.
    let result = catch_unwind(AssertUnwindSafe(f));
    CATCHING.set(outer);
    result.map_err(message)
}

/// The text of a panic, in one line.
fn message(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    text.and_then(|text| text.lines().next()).unwrap_or("no reason given").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_errors() {
        let shout = || -> u8 { panic!("first {}\nsecond", "line") };
        assert_eq!(caught(shout).unwrap_err(), "first line");
        assert_eq!(caught(|| caught(shout).unwrap_err()).unwrap(), "first line");
        assert!(!CATCHING.get());
        assert_eq!(caught(|| 7), Ok(7));
    }
}
