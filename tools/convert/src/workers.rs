//! The threads of work that is no graph: conversion, quantization and statistics. There are as many as the user asked for, and
//! whoever waits for them computes nothing meanwhile.

use std::num::NonZeroUsize;

use engine::parallel::Parallel;
use rayon::ThreadPoolBuilder;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Runs `work` on `threads` threads of its own, or on as many as this process may run at once.
///
/// Errors: the system gives no threads.
pub fn with<R: Send>(threads: Option<NonZeroUsize>, work: impl FnOnce() -> R + Send) -> Result<R> {
    let builder = ThreadPoolBuilder::new().num_threads(threads.map_or(0, NonZeroUsize::get));
    let builder = builder.thread_name(|i| format!("tympan-work-{i}"));
    // Scoped, so that the threads are gone when this returns: the next ones would compute beside them.
    builder.build_scoped(|thread| thread.run(), |pool| pool.install(work)).map_err(Error::output)
}

/// The threads that [`with`] has given the caller.
#[derive(Clone, Copy, Debug)]
pub struct Workers;

impl Parallel for Workers {
    fn for_each(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..n).into_par_iter().for_each(task);
    }
}

/// Runs `work` on the threads that [`with`] has given it, or on threads of its own.
///
/// Errors: the system gives no threads.
pub(crate) fn inside<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R> {
    if rayon::current_thread_index().is_some() { Ok(work()) } else { with(None, work) }
}
