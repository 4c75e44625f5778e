//! Progress of long work. [`Bar`] is what the user sees.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

use convert::Watch;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::interrupt::Interrupt;
use crate::streams;

/// Progress on standard error, and signals: while there is one, they are left to those who look at it.
pub(crate) struct Bar {
    bar: ProgressBar,
    written: AtomicU64,
    interrupt: Interrupt,
}

impl Bar {
    /// A bar of `elements`, drawn where standard error is a terminal and `quiet` is not set.
    pub(crate) fn new(elements: u64, quiet: bool) -> Self {
        let target = if quiet || !std::io::stderr().is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(elements), target);
        let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg} (eta {eta})");
        bar.set_style(style.expect("the template is a constant").progress_chars("=> "));
        Self { bar, written: AtomicU64::new(0), interrupt: Interrupt::watch() }
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Watch for Bar {
    fn written(&self, name: &str, elements: u64) {
        let written = self.written.fetch_add(elements, Ordering::Relaxed) + elements;
        self.bar.set_position(written);
        self.bar.set_message(name.to_owned());
    }

    fn is_interrupted(&self) -> bool {
        self.interrupt.is_set()
    }

    /// Prints the line above the bar.
    fn note(&self, line: &str) {
        self.bar.suspend(|| streams::say(line));
    }
}
