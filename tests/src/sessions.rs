//! Sessions as tests want them.

use engine::session::{Reuse, SessionOptions};

/// The defaults, with every graph that is used again built and compared once more.
pub fn session_options() -> SessionOptions {
    SessionOptions { reuse: Reuse::Verified, ..SessionOptions::default() }
}
