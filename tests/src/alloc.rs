//! A counting allocator: how much memory a piece of code takes on its own thread. It also says no when it is told to.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, with counts by thread.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// What [`measure`] saw on its thread.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Allocations and growths.
    pub calls: usize,
    /// Highest number of bytes held above those held at the start.
    pub peak_bytes: usize,
}

/// Runs `f` and counts what this thread allocates meanwhile.
pub fn measure<T>(f: impl FnOnce() -> T) -> (T, Usage) {
    let (calls, live) = (CALLS.get(), LIVE.get());
    PEAK.set(live);
    let result = f();
    let peak_bytes = (PEAK.get() - live).unsigned_abs();
    (result, Usage { calls: CALLS.get() - calls, peak_bytes })
}

/// Runs `f` on a thread to which the system gives at most so many bytes at once.
pub fn refusing<T>(most_bytes: usize, f: impl FnOnce() -> T) -> T {
    let before = MOST.replace(most_bytes);
    let result = f();
    MOST.set(before);
    result
}

fn count(bytes: isize) {
    let live = LIVE.get() + bytes;
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

// A thread that ends frees memory after its counters are gone; those have no destructor, so access stays valid.
#[allow(unsafe_code, reason = "an allocator is unsafe by nature")]
// SAFETY: every call goes to the system's allocator unchanged, or fails as it may.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > MOST.get() {
            return std::ptr::null_mut();
        }
        CALLS.set(CALLS.get() + 1);
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() > MOST.get() {
            return std::ptr::null_mut();
        }
        CALLS.set(CALLS.get() + 1);
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > MOST.get() {
            return std::ptr::null_mut();
        }
        CALLS.set(CALLS.get() + 1);
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_most_is_refused() {
        let reserve = |n| Vec::<u8>::new().try_reserve_exact(n);
        assert!(refusing(1000, || reserve(1000).is_ok() && reserve(1001).is_err()));
        assert!(reserve(1001).is_ok());
    }

    #[test]
    fn peak_counts_what_is_held_at_once() {
        let (_, usage) = measure(|| {
            drop(std::hint::black_box(Vec::<u8>::with_capacity(1000)));
            std::hint::black_box(Vec::<u8>::with_capacity(600))
        });
        assert_eq!((usage.calls, usage.peak_bytes), (2, 1000));
    }
}
