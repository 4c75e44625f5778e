//! Standard output and standard error; nothing else writes to them. What cannot be said costs nothing; what cannot be
//! printed ends the run.

use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Write};

use anyhow::Context;

use crate::exit::{Failure, Outcome};
#[cfg(unix)]
use crate::interrupt;

/// Bytes that a pipe takes at once where it takes any. Source: POSIX, `PIPE_BUF`, at least 512; 4096 on Linux.
const PIECE_BYTES: usize = if cfg!(target_os = "linux") { 4096 } else { 512 };
/// How often a signal is looked for that came just before the wait.
#[cfg(unix)]
const SIGNAL_INTERVAL: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Prints a piece of the result on standard output, at once.
///
/// Errors: [`Failure::reader_gone`] where nobody reads any more; a signal that came while a reader did not read; the system's
/// reason otherwise, such as a full disk.
pub(crate) fn print(text: &str) -> Outcome<()> {
    let mut out = io::stdout().lock();
    for piece in text.as_bytes().chunks(PIECE_BYTES) {
        wait_for_reader()?;
        printed(out.write_all(piece).and_then(|()| out.flush()))?;
    }
    Ok(())
}

/// Waits until standard output takes a piece: who is in the middle of a write does not hear signals.
///
/// Errors: a signal came.
#[cfg(unix)]
fn wait_for_reader() -> Outcome<()> {
    use rustix::event::{PollFd, PollFlags, poll};

    let stdout = io::stdout();
    let mut stream = [PollFd::new(&stdout, PollFlags::OUT)];
    // Everything else than a signal or an interval without a reader is for the write to find out.
    while matches!(poll(&mut stream, Some(&SIGNAL_INTERVAL)), Ok(0) | Err(rustix::io::Errno::INTR)) {
        if interrupt::exit().is_some() {
            return Err(Failure::interrupted("interrupted while standard output was not read").ending());
        }
    }
    Ok(())
}

/// Other systems are not asked.
#[cfg(not(unix))]
fn wait_for_reader() -> Outcome<()> {
    Ok(())
}

/// What became of bytes that something else printed on standard output.
///
/// Errors: as those of [`print`](fn@print).
pub(crate) fn printed(result: io::Result<()>) -> Outcome<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(Failure::reader_gone()),
        other => other.context("standard output cannot be written").map_err(|e| Failure::output(e).ending()),
    }
}

/// Says a line on standard error, with control characters escaped. Where nobody hears, nothing happens.
pub(crate) fn say(line: impl Display) {
    let mut text = escaped(&line.to_string());
    text.push('\n');
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Says why the program ends, with the mark that clap's errors have.
pub(crate) fn say_error(line: impl Display) {
    let is_coloured = may_colour() && io::stderr().is_terminal();
    let mark = if is_coloured { "\u{1b}[1m\u{1b}[31merror:\u{1b}[0m" } else { "error:" };
    let text = format!("{mark} {}\n", escaped(&line.to_string()));
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Whether colours are wanted on terminals. Source: <https://no-color.org>; terminfo's `dumb`.
pub(crate) fn may_colour() -> bool {
    let value = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    value("NO_COLOR").is_none() && value("TERM").is_none_or(|term| term != "dumb")
}

/// Standard error as something that never fails.
pub(crate) struct StandardError;

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Marks that turn the direction of what follows, or break lines. Source: Unicode, `Bidi_Control` and section 5.8.
const STEERING: [std::ops::RangeInclusive<char>; 4] =
    ['\u{61c}'..='\u{61c}', '\u{200e}'..='\u{200f}', '\u{2028}'..='\u{202e}', '\u{2066}'..='\u{2069}'];

/// The text with its control characters as escapes, but for line breaks: names of files must not steer a terminal.
pub(crate) fn escaped(text: &str) -> String {
    let steers = |c: char| c.is_control() || STEERING.iter().any(|range| range.contains(&c));
    let mut out = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if steers(c) && c != '\n' {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(escaped("a\u{1b}[31m\r\tb\u{9b}\nc \u{e4}"), "a\\u{1b}[31m\\r\\tb\\u{9b}\nc \u{e4}");
        assert_eq!(escaped("gpj.\u{202e}wav"), "gpj.\\u{202e}wav");
    }
}
