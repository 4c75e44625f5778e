//! [`Pool`]: the threads of a backend, and the rule that one thing at a time happens in its memory.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use engine::Error;
use engine::error::{Cause, Result};

use super::NAME;
use super::region::Region;
use super::team::Team;

/// Threads, and who may use the backend's memory.
///
/// Threads from outside take turns. Inside the pool is only the request whose turn it is; should it use the backend from
/// several of the pool's threads at once, `busy` turns that into an error.
pub(super) struct Pool {
    /// Where requests run.
    threads: rayon::ThreadPool,
    /// Who helps them.
    team: Team,
    turn: Mutex<()>,
    /// The pool's thread that runs the request whose turn it is, as [`this_thread`] numbers it; 0 between requests.
    runner: AtomicUsize,
    busy: AtomicBool,
}

/// The right of a request to use the backend's memory, given back when it is dropped.
struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A request that runs on this thread, until it is dropped.
struct Running<'a>(&'a AtomicUsize);

impl<'a> Running<'a> {
    fn here(runner: &'a AtomicUsize) -> Self {
        runner.store(this_thread(), Ordering::Relaxed);
        Self(runner)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Pool {
    /// A pool of `n_threads` threads. Errors: `Device` if the system gives none.
    pub(super) fn new(n_threads: usize) -> Result<Self> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|i| format!("tympan-cpu-{i}"))
            .build()
            .map_err(|e| no_threads(n_threads, e.into()))?;
        let team = Team::new(n_threads - 1)?;
        Ok(Self { threads, team, turn: Mutex::new(()), runner: AtomicUsize::new(0), busy: AtomicBool::new(false) })
    }

    /// Number of threads.
    pub(super) fn n_threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Runs `work` on a thread of the pool: on this one if it is one, else when it is this thread's turn.
    pub(super) fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if self.is_inside() {
            return work();
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.threads.install(|| {
            let _running = Running::here(&self.runner);
            work()
        })
    }

    /// Runs `work` while nothing else happens in the backend's memory. Errors: `Refused` if something else does.
    pub(super) fn alone<R>(&self, work: impl FnOnce() -> R) -> Result<R> {
        let _turn = (!self.is_inside()).then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        let _busy = self.claim()?;
        Ok(work())
    }

    /// Runs a region's steps inside the pool, on this thread and those that help, after `prepare` and while nothing else
    /// happens in the backend's memory. Errors: those of `prepare`, else as for [`Self::alone`].
    pub(super) fn run<T: Send>(&self, region: &Arc<Region>, prepare: impl FnOnce() -> Result<T> + Send) -> Result<()> {
        self.inside(|| {
            let _busy = self.claim()?;
            let _prepared = prepare()?;
            self.team.run(region);
            Ok(())
        })
    }

    /// The right to use the backend's memory, among those whose turn it is.
    fn claim(&self) -> Result<Busy<'_>> {
        if self.busy.swap(true, Ordering::Acquire) { Err(twice()) } else { Ok(Busy(&self.busy)) }
    }

    /// Whether this is a thread of the pool. Only the thread itself can have stored its number; asking the pool takes more
    /// looks into memory, which is cold after a run.
    fn is_inside(&self) -> bool {
        self.runner.load(Ordering::Relaxed) == this_thread() || self.threads.current_thread_index().is_some()
    }
}

/// A number that no other living thread has.
fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// The system gave fewer threads than these.
#[cold]
pub(super) fn no_threads(n: usize, source: Cause) -> Error {
    Error::Device { backend: NAME.into(), msg: format!("{n} threads"), source: Some(source) }
}

#[cold]
fn twice() -> Error {
    let what = "two threads of one request use the backend at the same time".into();
    Error::Refused { backend: NAME.into(), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_from_outside_take_turns() {
        let pool = Pool::new(2).unwrap();
        let inside = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    pool.inside(|| {
                        assert!(!inside.swap(true, Ordering::SeqCst));
                        pool.alone(std::thread::yield_now).unwrap();
                        assert!(inside.swap(false, Ordering::SeqCst));
                    });
                });
            }
        });
    }

    #[test]
    fn one_request_cannot_use_the_memory_twice_at_once() {
        let pool = Pool::new(2).unwrap();
        pool.inside(|| {
            let nested = pool.alone(|| pool.alone(|| ()).is_err());
            assert!(nested.unwrap());
            assert!(pool.alone(|| ()).is_ok());
        });
    }

    #[test]
    fn a_panic_gives_the_memory_free() {
        let pool = Pool::new(1).unwrap();
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.inside(|| pool.alone(|| panic!()))));
        assert!(panic.is_err());
        assert!(pool.alone(|| ()).is_ok());
    }
}
