//! Time that does not depend on what else the machine does.

use std::time::Duration;

/// Processor time of this thread, from an arbitrary start. Zero where the system is not Linux: a difference of two
/// calls then passes every upper bound.
pub fn thread_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}
