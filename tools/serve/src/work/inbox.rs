//! [`Inbox`]: where jobs wait for the engine thread, a bounded number of them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Job;

/// Why a job was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// As many wait as may.
    Full,
    /// The server is about to end.
    Closed,
}

struct State {
    jobs: VecDeque<Job>,
    /// Jobs that were taken and are not at their end.
    n_open: usize,
    is_closed: bool,
    /// The engine thread ends what it has at once.
    is_aborted: bool,
}

/// Jobs on their way to the engine thread.
pub(crate) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
    is_dead: AtomicBool,
}

impl Inbox {
    /// Takes so many jobs at once, those that are worked on among them.
    pub(crate) fn new(capacity: usize) -> Self {
        let state = State { jobs: VecDeque::new(), n_open: 0, is_closed: false, is_aborted: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), capacity, is_dead: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes jobs that belong together, all of them or none.
    pub(crate) fn submit(&self, jobs: Vec<Job>) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(Refusal::Closed);
        }
        if state.n_open + jobs.len() > self.capacity {
            return Err(Refusal::Full);
        }
        state.n_open += jobs.len();
        state.jobs.extend(jobs);
        self.changed.notify_all();
        Ok(())
    }

    /// Whether `n` more jobs would be taken now.
    pub(crate) fn has_room(&self, n: usize) -> Result<(), Refusal> {
        let state = self.lock();
        match state.is_closed {
            true => Err(Refusal::Closed),
            false if state.n_open + n > self.capacity => Err(Refusal::Full),
            false => Ok(()),
        }
    }

    /// Most jobs at once.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Jobs that came, in their order. For the engine thread.
    pub(crate) fn take(&self) -> VecDeque<Job> {
        std::mem::take(&mut self.lock().jobs)
    }

    /// So many jobs are at their end.
    pub(crate) fn ended(&self, n: usize) {
        self.lock().n_open -= n;
    }

    /// Waits until a job comes, all are to be ended, or the time is over.
    pub(crate) fn wait(&self, most: Duration) {
        let state = self.lock();
        let _ = self.changed.wait_timeout_while(state, most, |state| state.jobs.is_empty() && !state.is_aborted);
    }

    /// Takes no more jobs.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Takes no more jobs, and ends those that there are.
    pub(crate) fn abort(&self) {
        let mut state = self.lock();
        (state.is_closed, state.is_aborted) = (true, true);
        self.changed.notify_all();
    }

    /// Whether no more jobs come.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Whether those that there are are to be ended.
    pub(crate) fn is_aborted(&self) -> bool {
        self.lock().is_aborted
    }

    /// The engine thread has died: nothing more will be answered.
    pub(crate) fn set_dead(&self) {
        self.is_dead.store(true, Ordering::SeqCst);
        // Whoever waits for an answer of these learns it by their mailboxes.
        let jobs = {
            let mut state = self.lock();
            state.is_closed = true;
            std::mem::take(&mut state.jobs)
        };
        drop(jobs);
    }

    /// Whether the engine thread has died.
    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::SeqCst)
    }
}
