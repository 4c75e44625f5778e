//! What a clip may be.

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
