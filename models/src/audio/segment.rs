//! [`split`]: long audio in pieces that are cut at quiet places.

use std::ops::Range;

/// Half the width of the search around the ideal cut, in seconds; of short pieces half their length.
const SEARCH_S: usize = 5;

/// Windows whose loudness is compared are a tenth of a second, but no shorter than this.
const MIN_WINDOW: usize = 4;

/// Samples are summed as multiples of `2^-40`: exact for everything that comes from 24-bit audio, and equally quiet places
/// have equal sums, so that the first one wins.
const FIXED_POINT: f32 = (1u64 << 40) as f32;

/// Cuts `samples` into pieces of about `max_samples`, which join to the whole. A clip that fits stays in one piece. A cut is searched
/// for when its piece is asked for.
///
/// Every cut is at the quietest sample of the quietest tenth of a second within 5 s of `max_samples` after the last cut,
/// or within half of `max_samples` where that is less; the first such one if there are several. So a piece is at least half
/// as long as `max_samples`, but for the last one, and at most half of it or 5 s longer, whichever is less.
///
/// `samples`: in [-1, 1]. Panics if `max_samples` or `rate_hz` is 0.
/// Source: qwen-asr, `inference/utils.py`, `split_audio_into_chunks`, which searches 5 s around cuts of 180 s and more.
pub fn split(samples: &[f32], rate_hz: u32, max_samples: usize) -> impl Iterator<Item = Range<usize>> {
    assert!(max_samples > 0 && rate_hz > 0, "max_samples {max_samples}, rate_hz {rate_hz}");
    let rate = rate_hz as usize;
    let search = (SEARCH_S * rate).min(max_samples / 2);
    let window = (rate / 10).max(MIN_WINDOW);
    // Where the next piece starts.
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let start = next?;
        if samples.len() - start <= max_samples {
            next = None;
            return Some(start..samples.len());
        }
        let cut = start + max_samples;
        let left = cut - search;
        let right = cut.saturating_add(search).min(samples.len());
        let at = if right - left <= window { cut } else { left + quietest(&samples[left..right], window) };
        next = Some(at);
        Some(start..at)
    })
}

/// The quietest sample of the quietest window, both the first of their kind. `x` is longer than the window.
fn quietest(x: &[f32], window: usize) -> usize {
    let level = |x: f32| (x.abs() * FIXED_POINT) as u64;
    let mut sum: u64 = x[..window].iter().map(|&x| level(x)).sum();
    let (mut best, mut best_sum) = (0, sum);
    for start in 1..=x.len() - window {
        sum = sum + level(x[start + window - 1]) - level(x[start - 1]);
        if sum < best_sum {
            (best, best_sum) = (start, sum);
        }
    }
    let inside = &x[best..][..window];
    let quiet = (1..window).fold(0, |q, i| if inside[i].abs() < inside[q].abs() { i } else { q });
    best + quiet
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noise of 16-bit samples, so that all sums are exact.
    fn noise(n: usize, seed: u64, gain: impl Fn(usize) -> f32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|i| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let u = (state >> 33) as f32 / (1u64 << 30) as f32 - 1.0;
                (u * gain(i) * 32767.0).trunc() / 32768.0
            })
            .collect()
    }

    /// The definition, without sliding sums: quadratic, in f64.
    fn oracle(x: &[f32], rate: usize, max: usize) -> Vec<usize> {
        let window = (rate / 10).max(4);
        let mut cuts = Vec::new();
        let mut start = 0;
        while x.len() - start > max {
            let cut = start + max;
            let search = (5.0 * rate as f64).min(0.5 * max as f64).floor() as usize;
            let (left, right) = (cut - search, (cut + search).min(x.len()));
            let mut at = cut;
            if right - left > window {
                let sums: Vec<f64> = (left..=right - window)
                    .map(|p| x[p..p + window].iter().map(|v| f64::from(v.abs())).sum())
                    .collect();
                let p = (0..sums.len()).min_by(|&a, &b| sums[a].total_cmp(&sums[b])).unwrap();
                let q = (0..window).min_by(|&a, &b| x[left + p + a].abs().total_cmp(&x[left + p + b].abs())).unwrap();
                at = left + p + q;
            }
            start = at;
            cuts.push(start);
        }
        cuts
    }

    fn cuts(x: &[f32], rate: u32, max: usize) -> Vec<usize> {
        let pieces: Vec<_> = split(x, rate, max).collect();
        assert_eq!((pieces[0].start, pieces[pieces.len() - 1].end), (0, x.len()));
        for pair in pieces.windows(2) {
            assert_eq!(pair[0].end, pair[1].start, "nothing is lost or doubled");
            assert!(2 * pair[0].len() >= max, "{:?} for {max}", pair[0]);
            assert!(pair[0].len() <= max + (5 * rate as usize).min(max / 2), "{:?} for {max}", pair[0]);
        }
        assert!(x.is_empty() || !pieces.last().unwrap().is_empty());
        assert!(pieces.last().unwrap().len() <= max, "a piece that is longer is cut again");
        pieces[1..].iter().map(|p| p.start).collect()
    }

    #[test]
    fn cuts_equal_the_definition() {
        // A low rate keeps the quadratic oracle quick; all lengths scale with it.
        let rate = 100;
        for seed in 0..40 {
            let n = 500 + seed as usize * 97;
            let x = noise(n, seed, |i| if i / 130 % 2 == 0 { 0.9 } else { 0.1 });
            for max in [1, 3, 50, 400, 501, 1000, 1700] {
                assert_eq!(cuts(&x, rate as u32, max), oracle(&x, rate, max), "seed {seed}, at most {max} of {n}");
            }
        }
    }

    #[test]
    fn pieces_of_any_signal_and_length_are_neither_short_nor_long() {
        // What `cuts` asserts of every signal is the test.
        let random = |seed: u64, n: usize| (noise(1, seed, |_| 1.0)[0].abs() * n as f32) as usize % n;
        for seed in 0..2000u64 {
            let draw = |i: u64, n: usize| random(seed * 8 + i, n);
            let rate = [10, 100, 1000][draw(0, 3)];
            let n = draw(1, 4000);
            let max = 1 + draw(2, [10, 100, 1000, 5000][draw(3, 4)]);
            let (period, loud) = (1 + draw(4, 700), draw(5, 100) as f32 / 100.0);
            let x = match draw(6, 4) {
                0 => vec![0.0; n],
                1 => vec![loud; n],
                // Quietest at its beginning or end, where every search would like to go.
                2 => noise(n, seed, |i| i as f32 / n as f32),
                _ => noise(n, seed, |i| if i / period % 2 == 0 { loud } else { 0.0 }),
            };
            let pieces = 1 + cuts(&x, rate, max).len();
            assert!(pieces <= 1 + 2 * n / max, "{pieces} pieces of {n} samples, {max} each");
        }
    }

    #[test]
    fn short_pieces_of_silence_have_a_length() {
        // 1.006 s in pieces of 1 s: the quietest place of the whole clip is its first sample, again and again.
        assert_eq!(split(&vec![0.0; 16_100], 16_000, 16_000).collect::<Vec<_>>(), [0..8000, 8000..16_100]);
        for seconds in 1..=5 {
            let n_pieces = split(&vec![0.0; 24 * 16_000], 16_000, seconds * 16_000).count();
            assert!(n_pieces <= 1 + 48 / seconds, "{n_pieces} of {seconds} s");
        }
    }

    #[test]
    fn equally_quiet_places_are_cut_at_the_first() {
        let mut x = noise(4000, 7, |_| 0.5);
        x[1700..1900].fill(0.0);
        x[2100..2300].fill(0.0);
        assert_eq!(cuts(&x, 100, 2000), [1700, oracle(&x, 100, 2000)[1]]);
        let silence = vec![0.0; 3000];
        assert_eq!(cuts(&silence, 100, 1000), oracle(&silence, 100, 1000));
        assert_eq!(cuts(&silence, 100, 1000)[0], 500);
    }

    #[test]
    fn a_pause_is_found_at_full_rate() {
        // 42 s of noise with a pause around 19 s, at most 20 s: the first cut is in the pause, the last piece is short.
        let x = noise(42 * 16_000, 1, |i| if (304_000..306_000).contains(&i) { 0.01 } else { 0.5 });
        let c = cuts(&x, 16_000, 320_000);
        assert_eq!(c.len(), 2);
        assert!((304_000..306_000).contains(&c[0]), "{c:?}");
        assert!((c[0] + 240_000..c[0] + 400_000).contains(&c[1]), "{c:?}");
    }

    #[test]
    fn short_clips_stay_whole() {
        for n in [0, 1, 100] {
            assert!(split(&vec![0.0; n], 16_000, 100).eq(std::iter::once(0..n)));
        }
    }
}
