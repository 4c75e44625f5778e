//! [`Parallel`]: independent tasks on the threads that graphs run on, for work outside of graphs such as an audio front end.

use std::sync::{Mutex, PoisonError};

/// Threads that share tasks. The caller's thread is one of them, so that no more compute at a time than a backend was given.
pub trait Parallel: Send + Sync {
    /// Calls `task` once with every number below `n`, in any order and several at a time, and returns when all have ended. A
    /// panic in a task is raised again here. Tasks must not use the backend that the threads belong to, nor these threads.
    fn for_each(&self, n: usize, task: &(dyn Fn(usize) + Sync));
}

impl dyn Parallel + '_ {
    /// Calls `f` with every part of `size` elements of `x`, the last of which may be shorter, and with its number.
    pub fn chunks_mut<T: Send>(&self, x: &mut [T], size: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        // Each is locked once, by the one task that it belongs to.
        let parts: Vec<Mutex<&mut [T]>> = x.chunks_mut(size).map(Mutex::new).collect();
        self.for_each(parts.len(), &|i| f(i, &mut parts[i].lock().unwrap_or_else(PoisonError::into_inner)));
    }
}

/// The caller's thread alone.
#[derive(Clone, Copy, Default, Debug)]
pub struct Serial;

impl Parallel for Serial {
    fn for_each(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..n).for_each(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_comes_once_with_its_number() {
        let mut x = [0; 11];
        let threads: &dyn Parallel = &Serial;
        threads.chunks_mut(&mut x, 4, |i, part| part.iter_mut().for_each(|v| *v += 10 * i + part_len(i)));
        assert_eq!(x, [4, 4, 4, 4, 14, 14, 14, 14, 23, 23, 23]);
        threads.chunks_mut(&mut x[..0], 4, |_, _| panic!("nothing has no parts"));
    }

    fn part_len(i: usize) -> usize {
        if i < 2 { 4 } else { 3 }
    }
}
