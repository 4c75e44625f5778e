//! [`Watch`]: what long work tells, and is told.

use std::sync::atomic::{AtomicBool, Ordering};

/// What a long conversion tells, and is told.
pub trait Watch: Sync {
    /// Another `elements` of tensor `name` are written.
    fn written(&self, name: &str, elements: u64);
    /// Whether to stop.
    fn is_interrupted(&self) -> bool;
    /// A line for the user.
    fn note(&self, _: &str) {}
}

/// A watch that only looks at a flag.
impl Watch for AtomicBool {
    fn written(&self, _: &str, _: u64) {}

    fn is_interrupted(&self) -> bool {
        self.load(Ordering::Relaxed)
    }
}
