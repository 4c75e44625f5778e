//! Sessions as tests want them.

use std::sync::Arc;

use engine::backend::Backend;
use engine::session::{Reuse, SessionOptions};

/// Every backend of this machine that computes whole models.
pub fn backends() -> Vec<Arc<dyn Backend>> {
    backends::whole().map(|entry| (entry.open)(0, &backends::Options::default()).unwrap()).collect()
}

/// The defaults, with every graph that is used again built and compared once more.
pub fn session_options() -> SessionOptions {
    SessionOptions { reuse: Reuse::Verified, ..SessionOptions::default() }
}
