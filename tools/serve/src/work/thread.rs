//! [`EngineThread`]: the thread that owns the session.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Core, Inbox};

/// How long the thread sleeps at most where nothing is to be done: clients that went are found by then.
const IDLE: Duration = Duration::from_millis(100);

/// The thread, until it is joined.
pub(crate) struct EngineThread(JoinHandle<bool>);

impl EngineThread {
    /// Starts it; `make` opens what it owns there.
    ///
    /// Errors: the system gives no thread.
    pub(crate) fn start(mut core: Core, inbox: Arc<Inbox>) -> std::io::Result<Self> {
        let run = move || {
            // After a panic nothing of the core is used again.
            let result = catch_unwind(AssertUnwindSafe(|| turn(&mut core, &inbox)));
            if result.is_err() {
                inbox.set_dead();
            }
            result.is_ok()
        };
        std::thread::Builder::new().name("engine".into()).spawn(run).map(Self)
    }

    /// Whether it has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for its end; whether it was in order.
    pub(crate) fn join(self) -> bool {
        self.0.join().unwrap_or(false)
    }
}

/// Works until the inbox is closed and everything is answered.
fn turn(core: &mut Core, inbox: &Inbox) {
    loop {
        for job in inbox.take() {
            core.take(job);
        }
        if inbox.is_aborted() {
            core.abort();
        }
        let is_busy = core.step();
        inbox.ended(core.take_ended());
        if !is_busy {
            if inbox.is_closed() && core.is_idle() {
                return;
            }
            inbox.wait(IDLE);
        }
    }
}
