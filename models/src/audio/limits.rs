//! What a clip may be.

use std::cell::Cell;

/// Longest stream that is buffered, in bytes: more than 90 minutes of 16-bit stereo at 44.1 kHz.
pub const MAX_INPUT_BYTES: u64 = 1 << 30;

/// Samples that a clip may have at its own rate and at 16 kHz: 2 GiB, 3.1 hours at 48 kHz and 9.3 hours at 16 kHz.
pub const MAX_SAMPLES: usize = 1 << 29;

/// Lowest sample rate, so that resampling cannot blow up a small file.
pub const MIN_RATE_HZ: u32 = 1000;

/// Highest sample rate: that of the most extravagant recordings. Bounds the resampler's transforms.
pub const MAX_RATE_HZ: u32 = 384_000;

/// Most channels that are mixed down.
pub const MAX_CHANNELS: usize = 64;

/// Largest sample; more would overflow in the resampler.
pub const MAX_MAGNITUDE: f32 = 1e30;

/// Rate that [`MAX_SAMPLES`] also holds for, and of a clip whose own rate changes on the way: that of speech models.
pub const REFERENCE_RATE_HZ: u32 = 16_000;

thread_local! {
    /// Most seconds of a clip that is decoded on this thread.
    static MAX_SECONDS: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Runs `f`, in which no clip gets longer than so many seconds, where a number is given: what decodes a file is many readers
/// deep, and all of them end at [`max_samples`].
pub(super) fn within<T>(max_s: Option<u32>, f: impl FnOnce() -> T) -> T {
    struct Outer(Option<u32>);
    impl Drop for Outer {
        fn drop(&mut self) {
            MAX_SECONDS.set(self.0);
        }
    }
    let _outer = Outer(MAX_SECONDS.replace(max_s));
    f()
}

/// Most samples of a clip at this rate.
pub(super) fn max_samples(rate_hz: u32) -> u64 {
    let all = MAX_SAMPLES as u64 * u64::from(rate_hz.min(REFERENCE_RATE_HZ)) / u64::from(REFERENCE_RATE_HZ);
    MAX_SECONDS.get().map_or(all, |max_s| all.min(u64::from(max_s) * u64::from(rate_hz)))
}
