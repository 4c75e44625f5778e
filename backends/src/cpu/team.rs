//! [`Team`]: the threads that help whoever runs a region.
//!
//! A run is announced, and whoever is free joins it; the caller works on it in any case. It never waits for a helper that
//! holds no chunk, nor for a lock that one holds: a helper that lost its core can make a run slower by its own chunk only.
//! Between runs helpers look for the next one for a while before they sleep, since the steps of a decoder follow each
//! other within microseconds and waking a thread takes longer.

use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use engine::Error;
use engine::error::Result;

use super::NAME;
use super::region::{Region, Worker, pause};

/// How long a helper looks for the next run before it sleeps.
const PATIENCE: Duration = Duration::from_micros(200);

/// Pauses between two looks at the clock.
const PAUSES: u32 = 64;

/// Helpers and what they are to do.
pub(super) struct Team {
    shared: Arc<Shared>,
    n_helpers: usize,
}

#[derive(Default)]
struct Shared {
    /// Counts announcements. Changes only while `work` is locked.
    announced: AtomicU64,
    work: Mutex<Work>,
    wake: Condvar,
}

#[derive(Default)]
struct Work {
    /// The latest run's. It may be over and its graph gone: helpers then find no chunks, or nothing.
    region: Weak<Region>,
    n_sleeping: usize,
    is_over: bool,
}

impl Team {
    /// Starts `n_helpers` threads. Errors: `Device` if the system gives none.
    pub(super) fn new(n_helpers: usize) -> Result<Self> {
        let team = Self { shared: Arc::default(), n_helpers };
        for i in 1..=n_helpers {
            let shared = Arc::clone(&team.shared);
            let thread = std::thread::Builder::new().name(format!("tympan-help-{i}"));
            let failed = |e: std::io::Error| Error::Device {
                backend: NAME.into(),
                msg: format!("{n_helpers} threads"),
                source: Some(e.into()),
            };
            thread.spawn(move || shared.help(&mut Worker::new(i))).map_err(failed)?;
        }
        Ok(team)
    }

    /// Runs every step of a region once. A panic in a step ends the run and is raised again here.
    ///
    /// The caller sees to it that nobody else runs a region with this team at the same time.
    pub(super) fn run(&self, region: &Arc<Region>) {
        region.start();
        if self.n_helpers > 0 {
            self.shared.announce(region);
        }
        region.walk(&mut Worker::new(0));
        region.finish();
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        // Helpers end by themselves: the one that drops the last reference to a team cannot wait for itself.
        self.shared.work.lock().unwrap_or_else(PoisonError::into_inner).is_over = true;
        self.shared.announced.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
    }
}

impl Shared {
    /// Tells helpers of the run, unless one of them is just looking for another.
    fn announce(&self, region: &Arc<Region>) {
        let n_sleeping = {
            let mut work = match self.work.try_lock() {
                Ok(work) => work,
                Err(TryLockError::Poisoned(work)) => work.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            // Mostly it is that of the run before; its counts are then left alone.
            if !ptr::eq(work.region.as_ptr(), Arc::as_ptr(region)) {
                work.region = Arc::downgrade(region);
            }
            self.announced.fetch_add(1, Ordering::Release);
            work.n_sleeping
        };
        if n_sleeping > 0 {
            self.wake.notify_all();
        }
    }

    fn help(&self, worker: &mut Worker) {
        let mut seen = 0;
        loop {
            seen = self.next(seen);
            let region = {
                let work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
                if work.is_over {
                    return;
                }
                work.region.upgrade()
            };
            if let Some(region) = region {
                region.help(worker);
            }
        }
    }

    /// Waits until there is another announcement than number `seen`.
    fn next(&self, seen: u64) -> u64 {
        let start = Instant::now();
        let mut spins = 0;
        while start.elapsed() < PATIENCE {
            for _ in 0..PAUSES {
                let announced = self.announced.load(Ordering::Acquire);
                if announced != seen {
                    return announced;
                }
                pause(&mut spins);
            }
        }
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let announced = self.announced.load(Ordering::Acquire);
            if announced != seen || work.is_over {
                return announced;
            }
            work.n_sleeping += 1;
            work = self.wake.wait(work).unwrap_or_else(PoisonError::into_inner);
            work.n_sleeping -= 1;
        }
    }
}
