//! [`Pool`]: the threads of a backend, and the rule that one thing at a time happens in its memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::error::Result;
use engine::parallel::Parallel;

use super::region::{Region, for_each};
use super::team::Team;

/// Threads, and who may use the backend's memory. Callers take turns; whoever has the turn is one of the threads.
pub(super) struct Pool {
    n_threads: usize,
    /// The turn, and who helps the caller that has it.
    team: Mutex<Team>,
}

impl Pool {
    /// A pool of `n_threads` threads, the caller's among them. Errors: `Device` if the system gives none.
    pub(super) fn new(n_threads: usize) -> Result<Self> {
        Ok(Self { n_threads, team: Mutex::new(Team::new(n_threads - 1)?) })
    }

    /// Number of threads.
    pub(super) fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// Waits for the turn. A panic in what another caller ran leaves nothing behind that the next one looks at.
    fn turn(&self) -> MutexGuard<'_, Team> {
        self.team.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on this thread while nothing else happens in the backend's memory.
    pub(super) fn alone<R>(&self, work: impl FnOnce() -> R) -> R {
        let _turn = self.turn();
        work()
    }

    /// Runs a region's steps on this thread and those that help, after `prepare` and while nothing else happens in the
    /// backend's memory. Errors: those of `prepare`.
    pub(super) fn run<T>(&self, region: &Arc<Region>, prepare: impl FnOnce() -> Result<T>) -> Result<()> {
        let team = self.turn();
        let _prepared = prepare()?;
        team.run(region);
        Ok(())
    }
}

impl Parallel for Pool {
    fn for_each(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        let team = self.turn();
        if self.n_threads == 1 || n <= 1 {
            return (0..n).for_each(task);
        }
        for_each(&team, self.n_threads, n, task);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(2).unwrap();
        let inside = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    pool.alone(|| {
                        assert!(!inside.swap(true, Ordering::SeqCst));
                        std::thread::yield_now();
                        assert!(inside.swap(false, Ordering::SeqCst));
                    });
                });
            }
        });
    }

    #[test]
    fn a_panic_gives_the_memory_free() {
        let pool = Pool::new(1).unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| pool.alone(|| panic!()))).is_err());
        pool.alone(|| ());
    }

    #[test]
    fn every_task_runs_once() {
        for n_threads in 1..=4 {
            let pool = Pool::new(n_threads).unwrap();
            for n in [0, 1, 2, 3, 17, 1000] {
                let runs: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(n, &|i| _ = runs[i].fetch_add(1, Ordering::Relaxed));
                assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1), "{n} tasks on {n_threads} threads");
            }
        }
    }

    #[test]
    fn a_panic_in_a_task_is_raised_after_all_that_run_have_ended() {
        for n_threads in [1, 3] {
            let pool = Pool::new(n_threads).unwrap();
            let running = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.for_each(100, &|i| {
                    running.fetch_add(1, Ordering::SeqCst);
                    std::thread::yield_now();
                    running.fetch_sub(1, Ordering::SeqCst);
                    assert!(i != 40, "task 40");
                });
            }));
            let panic = result.unwrap_err();
            assert_eq!(panic.downcast_ref(), Some(&"task 40"));
            assert_eq!(running.load(Ordering::SeqCst), 0);
            pool.for_each(3, &|_| ());
        }
    }
}
