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
    /// Whether a machine may have several of its kind: `name:1` is the second.
    pub is_numbered: bool,
    /// Whether it takes every op, so that a session may have it alone.
    pub is_whole: bool,
    /// Whether this machine has what it needs; if not, what is missing, for people to read. Nothing is started.
    pub usable: fn() -> Result<(), String>,
    /// Makes the one with this number, 0 where there is only one.
    pub open: fn(usize, &Options) -> Result<Arc<dyn Backend>>,
}

/// Every backend, in order of preference.
const BACKENDS: &[BackendDef] = &[
    BackendDef {
        name: cpu::NAME,
        about: "",
        is_numbered: false,
        is_whole: true,
        usable: || Ok(()),
        open: |_, options| {
            Ok(Arc::new(cpu::CpuBackend::new(&cpu::CpuOptions { threads: options.threads, isa: None })?))
        },
    },
    BackendDef {
        name: "reference",
        about: "plain f64 interpreter, for checking",
        is_numbered: false,
        is_whole: true,
        usable: || Ok(()),
        open: |_, options| Ok(Arc::new(reference::ReferenceBackend::new(options.threads)?)),
    },
];

/// Every backend, in order of preference.
pub fn list() -> &'static [BackendDef] {
    BACKENDS
}

/// Those of the list that this machine can use and that a session may have alone.
pub fn whole() -> impl Iterator<Item = &'static BackendDef> {
    BACKENDS.iter().filter(|b| b.is_whole && (b.usable)().is_ok())
}

/// The entry that a user means by `name`, or by `name:NUMBER` where there may be several of its kind, and the number.
pub fn find(name: &str) -> Option<(&'static BackendDef, usize)> {
    let (kind, number) = match name.split_once(':') {
        Some((kind, number)) => (kind, Some(number.parse().ok()?)),
        None => (name, None),
    };
    let entry = BACKENDS.iter().find(|b| b.name == kind && (b.is_numbered || number.is_none()))?;
    Some((entry, number.unwrap_or(0)))
}

/// The backend called `name`. Errors: `UnknownBackend` for a name that is not in the list; those of the backend.
pub fn open(name: &str, options: &Options) -> Result<Arc<dyn Backend>> {
    match find(name) {
        Some((entry, number)) => (entry.open)(number, options),
        None => {
            let known: Vec<&str> = BACKENDS.iter().map(|b| b.name).collect();
            Err(Error::UnknownBackend { name: name.to_owned(), known: known.join(", ") })
        }
    }
}
