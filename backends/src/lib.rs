//! Backends: the engine's traits on the kernels' functions. [`list`] names them and [`open`] makes one.
//!
//! Read [`mod@reference`] first, where every op is a few lines of f64, then [`cpu`]: its `ops` has a line for each op, and
//! its `lower` makes steps of nodes.

#![warn(unreachable_pub)]

pub mod cpu;
mod format;
pub mod reference;

use std::num::NonZeroUsize;
use std::sync::Arc;

use engine::backend::Backend;
use engine::{Error, Result};

pub use self::format::format_of;

/// What a user may say about a backend.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Options {
    /// Threads; the backend's own choice without.
    pub threads: Option<NonZeroUsize>,
}

/// An entry of the registry.
pub struct BackendDef {
    /// The name by which users choose it.
    pub name: &'static str,
    /// What users may want to know of it, in a few words.
    pub about: &'static str,
    /// Makes one.
    pub open: fn(&Options) -> Result<Arc<dyn Backend>>,
}

/// Every backend, in order of preference.
const BACKENDS: &[BackendDef] = &[
    BackendDef {
        name: cpu::NAME,
        about: "",
        open: |options| Ok(Arc::new(cpu::CpuBackend::new(&cpu::CpuOptions { threads: options.threads, isa: None })?)),
    },
    BackendDef {
        name: "reference",
        about: "plain f64 interpreter, for checking",
        open: |options| Ok(Arc::new(reference::ReferenceBackend::new(options.threads)?)),
    },
];

/// Every backend, in order of preference.
pub fn list() -> &'static [BackendDef] {
    BACKENDS
}

/// The backend called `name`. Errors: `UnknownBackend` for a name that is not in the list.
pub fn open(name: &str, options: &Options) -> Result<Arc<dyn Backend>> {
    match BACKENDS.iter().find(|b| b.name == name) {
        Some(b) => (b.open)(options),
        None => {
            let known: Vec<&str> = BACKENDS.iter().map(|b| b.name).collect();
            Err(Error::UnknownBackend { name: name.to_owned(), known: known.join(", ") })
        }
    }
}
