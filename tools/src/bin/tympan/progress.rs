//! Progress of long work: [`Bar`] for what is converted, [`Position`] for what is transcribed.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use convert::Watch;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::interrupt::Interrupt;
use crate::streams::{self, escaped};

/// Progress on standard error, and signals: while there is one, they are left to those who look at it.
pub(crate) struct Bar {
    bar: ProgressBar,
    written: AtomicU64,
    /// None where the first signal may end the process wherever it is.
    interrupt: Option<Interrupt>,
}

impl Bar {
    /// A bar of `elements`, drawn where standard error is a terminal and `quiet` is not set.
    pub(crate) fn new(elements: u64, quiet: bool) -> Self {
        Self::with(elements, quiet, Some(Interrupt::watch()))
    }

    /// The same of work that has nothing to save, and that may wait for a reader for ever: signals end it at once.
    pub(crate) fn of_stream(elements: u64, quiet: bool) -> Self {
        Self::with(elements, quiet, None)
    }

    fn with(elements: u64, quiet: bool, interrupt: Option<Interrupt>) -> Self {
        let bar = ProgressBar::with_draw_target(Some(elements), target(quiet));
        let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg} (eta {eta})");
        bar.set_style(style.expect("the template is a constant").progress_chars("=> "));
        Self { bar, written: AtomicU64::new(0), interrupt }
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Where bars are drawn: on standard error where it is a terminal and `quiet` is not set.
fn target(quiet: bool) -> ProgressDrawTarget {
    if quiet || !std::io::stderr().is_terminal() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() }
}

impl Watch for Bar {
    fn written(&self, name: &str, elements: u64) {
        let written = self.written.fetch_add(elements, Ordering::Relaxed) + elements;
        self.bar.set_position(written);
        self.bar.set_message(name.to_owned());
    }

    fn is_interrupted(&self) -> bool {
        self.interrupt.as_ref().is_some_and(Interrupt::is_set)
    }

    /// Prints the line above the bar.
    fn note(&self, line: &str) {
        self.bar.suspend(|| streams::say(line));
    }
}

/// How far the transcription of a file is, on the last line of a terminal as long as it lives.
pub(crate) struct Position {
    bar: ProgressBar,
    file: File,
    start: Instant,
}

/// A file among those of a run.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct File {
    /// From 1 on.
    pub number: usize,
    /// Files of the run.
    pub of: usize,
    /// As the user named it.
    pub name: String,
    /// Length in seconds.
    pub seconds: f64,
}

impl Position {
    /// Drawn at once, where standard error is a terminal and `quiet` is not set.
    pub(crate) fn new(file: File, quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(None, target(quiet));
        bar.set_style(ProgressStyle::with_template("{wide_msg}").expect("the template is a constant"));
        bar.set_message(file.line(0.0, Duration::ZERO));
        Self { bar, file, start: Instant::now() }
    }

    /// So many seconds of the file are done.
    pub(crate) fn set(&self, done_s: f64) {
        self.bar.set_message(self.file.line(done_s, self.start.elapsed()));
    }
}

impl Drop for Position {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl File {
    /// `2 of 5 | 1:02 of 3:45 | 12x | 0:14 left | talk.mp3`; no speed where nothing is done. The name is last: a terminal that
    /// is too narrow cuts it.
    fn line(&self, done_s: f64, elapsed: Duration) -> String {
        let Self { number, of, name, seconds } = self;
        let speed = if done_s > 0.0 { done_s / elapsed.as_secs_f64().max(1e-3) } else { 0.0 };
        let decimals = usize::from(speed < 10.0);
        let pace = if speed > 0.0 {
            format!("{speed:.decimals$}x | {} left | ", clock((seconds - done_s).max(0.0) / speed))
        } else {
            String::new()
        };
        format!("{number} of {of} | {} of {} | {pace}{}", clock(done_s), clock(*seconds), escaped(name))
    }
}

/// `1:02` or `1:02:03`.
fn clock(seconds: f64) -> String {
    // Durations of audio files are far below 2^53 seconds.
    let s = seconds.round() as u64;
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_file_position_speed_and_remaining_time() {
        let file = |seconds| File { number: 2, of: 5, name: "a\u{1b}b.mp3".into(), seconds };
        assert_eq!(file(225.4).line(0.0, Duration::ZERO), "2 of 5 | 0:00 of 3:45 | a\\u{1b}b.mp3");
        // 62 s in 5 s are 12.4 times as fast; the other 163.4 take 13.2 s.
        let said = "2 of 5 | 1:02 of 3:45 | 12x | 0:13 left | a\\u{1b}b.mp3";
        assert_eq!(file(225.4).line(62.0, Duration::from_secs(5)), said);
        // A quarter of two hours in an hour.
        let said = "2 of 5 | 30:00 of 2:00:00 | 0.5x | 3:00:00 left | a\\u{1b}b.mp3";
        assert_eq!(file(7200.0).line(1800.0, Duration::from_secs(3600)), said);
        assert!(file(10.0).line(10.0, Duration::from_secs(1)).contains("| 10x | 0:00 left |"));
    }
}
