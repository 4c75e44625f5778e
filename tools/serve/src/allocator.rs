//! [`keep_large_blocks_apart`]: resident memory that falls again after large requests.

/// Blocks of so many bytes are mapped on their own: what the system's allocator begins with.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES: libc::c_int = 128 << 10;

/// Asks the allocator of this process to give large blocks back to the system when they are freed. For programs that serve for
/// long, once, when they begin.
///
/// Bodies, decoded audio and spectrograms are large, live as long as a request, and lie between small blocks that stay. The
/// allocator of glibc maps blocks of 128 KiB and more on their own at first, but whenever one is freed it takes blocks up to
/// its size, at most 32 MiB, from the common heap from then on, whose holes stay resident. A threshold that is set
/// does not move. Does nothing where the allocator is another one. Source: mallopt(3), `M_MMAP_THRESHOLD`.
pub fn keep_large_blocks_apart() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[allow(unsafe_code, reason = "the allocator's options are a foreign function")]
        // SAFETY: reads its two numbers only, and takes the allocator's own lock.
        let is_set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES) };
        // Where it refuses, memory is as it would have been.
        let _ = is_set;
    }
}
