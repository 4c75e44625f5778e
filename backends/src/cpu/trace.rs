//! [`Trace`]: when the steps of the last run began and ended.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Most steps of a graph whose times are kept where one trace serves all graphs.
const MAX_STEPS: usize = 1 << 14;

/// Times of one run.
#[derive(Clone, Copy, Debug)]
pub struct RunTimes {
    /// When the first chunk was claimed.
    pub first_chunk: Instant,
    /// When the last chunk was finished.
    pub last_chunk: Instant,
    /// Steps of the graph.
    pub n_steps: usize,
    /// Time from a step's last chunk to the next step's first one, all steps together.
    pub between_steps: Duration,
}

/// Nanoseconds since the trace was made.
#[derive(Default)]
struct Mark {
    first: AtomicU64,
    last: AtomicU64,
}

/// Written by the threads of a run, read between runs.
pub(super) struct Trace {
    start: Instant,
    run: AtomicU64,
    marks: Vec<Mark>,
    n_steps: AtomicU32,
}

impl Default for Trace {
    fn default() -> Self {
        Self::new(MAX_STEPS)
    }
}

impl Trace {
    /// A trace of graphs of at most `n_steps` steps; more are not timed.
    pub(super) fn new(n_steps: usize) -> Self {
        let marks = std::iter::repeat_with(Mark::default).take(n_steps).collect();
        Self { start: Instant::now(), run: AtomicU64::new(0), marks, n_steps: AtomicU32::new(0) }
    }

    /// A run begins.
    pub(super) fn starts(&self) {
        self.run.store(self.now(), Ordering::Relaxed);
    }

    /// Nanoseconds of every step of the last run, each from the end of the one before it.
    pub(super) fn step_ns(&self) -> impl Iterator<Item = u64> {
        let mut before = self.run.load(Ordering::Relaxed);
        let n_steps = self.n_steps.load(Ordering::Relaxed) as usize;
        self.marks.iter().take(n_steps).map(move |mark| {
            let last = mark.last.load(Ordering::Relaxed);
            last.saturating_sub(std::mem::replace(&mut before, last))
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The first chunk of a step was claimed.
    pub(super) fn begins(&self, i_step: u32) {
        if let Some(mark) = self.marks.get(i_step as usize) {
            mark.first.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The last chunk of a step is finished.
    pub(super) fn ends(&self, i_step: u32) {
        if let Some(mark) = self.marks.get(i_step as usize) {
            mark.last.store(self.now(), Ordering::Relaxed);
        }
        self.n_steps.store(i_step + 1, Ordering::Relaxed);
    }

    /// Times of the last run.
    pub(super) fn times(&self) -> Option<RunTimes> {
        let n_steps = self.n_steps.load(Ordering::Relaxed) as usize;
        let marks = self.marks.get(..n_steps).filter(|m| !m.is_empty())?;
        let at = |ns: &AtomicU64| Duration::from_nanos(ns.load(Ordering::Relaxed));
        let between = marks.windows(2).map(|m| at(&m[1].first).saturating_sub(at(&m[0].last)));
        Some(RunTimes {
            first_chunk: self.start + at(&marks[0].first),
            last_chunk: self.start + at(&marks[n_steps - 1].last),
            n_steps,
            between_steps: between.sum(),
        })
    }
}
