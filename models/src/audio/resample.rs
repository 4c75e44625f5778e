//! [`resample`]: a whole clip to another sample rate.

use rubato::audioadapter_buffers::direct::SequentialSliceOfSlices;
use rubato::{Fft, FixedSync, Resampler, WindowFunction};

use super::limits::{MAX_RATE_HZ, MIN_RATE_HZ};

/// Length of the anti-aliasing filter in samples of the lower rate. Sets the transition band: from about 0.91 of the lower
/// Nyquist frequency, as in libsoxr's "HQ" that the official loaders use, to all of it.
const FILTER_LEN: u32 = 320;

/// Band-limited conversion of a whole clip from `from_hz` to `to_hz`: linear phase, no delay.
///
/// Returns `ceil(samples.len() * to_hz / from_hz)` samples; sample `i` is the signal at `i / to_hz` seconds. Outside the
/// clip the signal is zero. The same samples come back if the rates are equal.
///
/// `samples`: finite, below 1e30 in magnitude. Panics if a rate is not between [`MIN_RATE_HZ`] and [`MAX_RATE_HZ`].
pub fn resample(samples: Vec<f32>, from_hz: u32, to_hz: u32) -> Vec<f32> {
    for rate in [from_hz, to_hz] {
        assert!((MIN_RATE_HZ..=MAX_RATE_HZ).contains(&rate), "sample rate {rate}");
    }
    if from_hz == to_hz || samples.is_empty() {
        return samples;
    }
    let wanted = samples.len() as u128 * u128::from(to_hz);
    let wanted = wanted.div_ceil(u128::from(from_hz)) as usize;

    let divisor = gcd(from_hz, to_hz);
    let (from, to) = (from_hz / divisor, to_hz / divisor);
    // An even number of blocks: the filter's centre falls on a sample of either rate, so that the delay is whole.
    let n_blocks = FILTER_LEN.div_ceil(from.min(to)).next_multiple_of(2);
    let (from, to) = (from as usize, to as usize);
    let chunk = n_blocks as usize * from;
    let mut fft = Fft::<f64>::new_custom(from, to, chunk, 1, 1, WindowFunction::BlackmanHarris2, FixedSync::Both)
        .expect("rates and chunk are positive");

    let (n_in, n_out) = (fft.input_frames_next(), fft.output_frames_next());
    let mut skip = fft.output_delay();
    let mut input = vec![0f64; n_in];
    let mut output = vec![0f64; n_out];
    let mut resampled = Vec::with_capacity(wanted);
    let mut chunks = samples.chunks(n_in);
    while resampled.len() < wanted {
        let chunk = chunks.next().unwrap_or_default();
        input[chunk.len()..].fill(0.0);
        for (y, &x) in input.iter_mut().zip(chunk) {
            *y = f64::from(x);
        }
        fft.process_into_buffer(
            &SequentialSliceOfSlices::new(&[&input], 1, n_in).expect("the buffer has this size"),
            &mut SequentialSliceOfSlices::new_mut(&mut [&mut output], 1, n_out).expect("the buffer has this size"),
            None,
        )
        .expect("the buffers have the sizes that the resampler asked for");
        let left = wanted - resampled.len();
        let fresh = &output[skip.min(n_out)..];
        skip -= n_out - fresh.len();
        resampled.extend(fresh.iter().take(left).map(|&y| y as f32));
    }
    resampled
}

/// Greatest common divisor.
fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::TAU;

    fn sine(hz: f64, rate_hz: u32, n: usize) -> Vec<f32> {
        (0..n).map(|i| (0.5 * (TAU * hz * i as f64 / f64::from(rate_hz) + 0.3).sin()) as f32).collect()
    }

    /// Largest deviation from the ideal sine away from the ends, where the filter sees the end of the signal.
    fn deviation(hz: f64, from_hz: u32, to_hz: u32) -> f64 {
        // Rates without a common divisor have a filter of two seconds.
        let n = from_hz as usize * if gcd(from_hz, to_hz) == 1 { 8 } else { 1 };
        let y = resample(sine(hz, from_hz, n), from_hz, to_hz);
        let margin = y.len() / 4;
        let want = |i: usize| 0.5 * (TAU * hz * i as f64 / f64::from(to_hz) + 0.3).sin();
        (margin..y.len() - margin).map(|i| (f64::from(y[i]) - want(i)).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn sines_in_the_pass_band_keep_amplitude_and_phase() {
        for from_hz in [8000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 44_101, 48_000, 96_000, 192_000] {
            let nyquist = f64::from(from_hz.min(16_000)) / 2.0;
            for part in [0.01, 0.2, 0.5, 0.8, 0.9] {
                let d = deviation(part * nyquist, from_hz, 16_000);
                assert!(d < 1e-5, "{from_hz} Hz, {part} of Nyquist: {d:e}");
            }
        }
    }

    #[test]
    fn tones_above_the_new_nyquist_are_gone() {
        for from_hz in [22_050, 24_000, 44_100, 48_000, 96_000] {
            for hz in [8010.0, 8500.0, 10_000.0, 11_000.0] {
                let y = resample(sine(hz, from_hz, from_hz as usize), from_hz, 16_000);
                let margin = y.len() / 4;
                let peak = y[margin..y.len() - margin].iter().fold(0f32, |m, x| m.max(x.abs()));
                // 100 dB below the tone's amplitude of 0.5.
                assert!(peak < 5e-6, "{hz} Hz at {from_hz}: {peak:e}");
            }
        }
    }

    #[test]
    fn images_of_low_rates_are_gone() {
        // A tone at 3500 Hz of 8 kHz has its image at 4500 Hz: what is left after taking out the tone is its level.
        assert!(deviation(3500.0, 8000, 16_000) < 5e-6);
    }

    #[test]
    fn length_is_rounded_up() {
        for (from_hz, n, want) in
            [(44_100, 44_100, 16_000), (44_100, 1, 1), (44_100, 3, 2), (8000, 5, 10), (48_000, 100_001, 33_334)]
        {
            assert_eq!(resample(vec![0.1; n], from_hz, 16_000).len(), want, "{n} samples at {from_hz}");
        }
        assert!(resample(Vec::new(), 8000, 16_000).is_empty());
    }

    #[test]
    fn an_impulse_stays_where_it_is() {
        for (from_hz, at) in [(8000u32, 1000usize), (44_100, 4410), (48_000, 3000), (22_050, 2205), (32_000, 2)] {
            let mut x = vec![0f32; from_hz as usize];
            x[at] = 1.0;
            let y = resample(x, from_hz, 16_000);
            let peak = (0..y.len()).max_by(|&a, &b| y[a].total_cmp(&y[b])).unwrap();
            assert_eq!(peak as u64, at as u64 * 16_000 / u64::from(from_hz), "{from_hz}");
            for k in 1..=peak.min(100) {
                assert!((y[peak - k] - y[peak + k]).abs() < 1e-6, "{from_hz}: not symmetric at {k}");
            }
        }
    }
}
