//! [`activity`]: which parts of a signal carry sound, as far as levels tell. Whether the sound is speech is not asked.

use std::ops::Range;

/// Frames whose levels are compared, per second.
const FRAMES_PER_S: usize = 50;
/// Below this level nothing is sound, in dB of full scale: above what 16-bit dither leaves, below a whisper.
const SILENCE_DB: f64 = -70.0;
/// This part of all frames is quiet ...
const QUIET_PART: f64 = 0.1;
/// ... or, in sound with few pauses, so many frames.
const QUIET_FRAMES: usize = 10;
/// So many frames are loud: more than a click is long.
const LOUD_FRAMES: usize = 5;
/// Levels that differ by less are one: steady noise, a tone, clipped sound.
const STEADY_DB: f64 = 6.0;
/// The threshold is this part of the way from the quiet level to the loud one ...
const THRESHOLD_PART: f64 = 0.35;
/// ... but no more than this above the quiet level: noise does not rise so far, soft speech does.
const MAX_RISE_DB: f64 = 15.0;
/// Shorter sounds are clicks, in frames.
const MIN_SOUND: usize = 3;
/// Soft beginnings that belong to a sound, in frames.
const BEFORE: usize = 2;
/// Soft ends that belong to a sound, in frames.
const AFTER: usize = 4;
/// Shorter pauses are part of the sound around them, in frames: stops within words are shorter.
const MIN_PAUSE: usize = 10;

/// The parts of `samples` that carry sound: in order, not empty, and apart by 0.2 s or more.
///
/// A frame of 20 ms carries sound if its RMS level is above a threshold between the level of quiet places (that of a tenth of
/// the frames, or of 0.2 s where that is near the loud level) and the level of loud ones (that of 0.1 s): 35 % of the way, at
/// most 15 dB above the quiet level, never below -70 dB of full scale. Sounds shorter than 60 ms are left out, the others get 40 ms before and 80 ms after, and pauses shorter
/// than 0.2 s are closed. Where the levels differ by less than 6 dB all is one sound, or, below -70 dB, none.
///
/// `samples`: in [-1, 1]. Panics if `rate_hz` is below 50.
pub fn activity(samples: &[f32], rate_hz: u32) -> Vec<Range<usize>> {
    let frame = rate_hz as usize / FRAMES_PER_S;
    assert!(frame > 0, "rate_hz {rate_hz}");
    let levels: Vec<f64> = samples.chunks(frame).map(level_db).collect();
    let Some(threshold) = threshold_db(&levels) else { return Vec::new() };
    let is_loud: Vec<bool> = levels.iter().map(|&level| level > threshold).collect();
    let mut spans: Vec<Range<usize>> = Vec::new();
    for run in runs(&is_loud).filter(|run| run.len() >= MIN_SOUND) {
        let span = run.start.saturating_sub(BEFORE)..(run.end + AFTER).min(levels.len());
        match spans.last_mut() {
            Some(last) if span.start < last.end + MIN_PAUSE => last.end = span.end,
            _ => spans.push(span),
        }
    }
    spans.into_iter().map(|span| span.start * frame..(span.end * frame).min(samples.len())).collect()
}

/// RMS level of a frame in dB of full scale, not below [`SILENCE_DB`].
fn level_db(frame: &[f32]) -> f64 {
    let energy: f64 = frame.iter().map(|&x| f64::from(x).powi(2)).sum();
    // `max` passes over NaN: what is no number is no sound.
    (10.0 * (energy / frame.len() as f64).log10()).max(SILENCE_DB)
}

/// The level above which frames carry sound; `None` where there is none.
fn threshold_db(levels: &[f64]) -> Option<f64> {
    let mut sorted = levels.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let part = *sorted.get((sorted.len() as f64 * QUIET_PART) as usize)?;
    let loud = sorted[sorted.len().saturating_sub(LOUD_FRAMES)];
    if loud <= SILENCE_DB {
        return None;
    }
    let is_steady = |quiet: f64| loud - quiet < STEADY_DB && quiet > SILENCE_DB;
    let quiet = if is_steady(part) { sorted[QUIET_FRAMES.min(sorted.len()) - 1] } else { part };
    if is_steady(quiet) {
        return Some(f64::NEG_INFINITY);
    }
    Some(quiet + ((loud - quiet) * THRESHOLD_PART).min(MAX_RISE_DB))
}

/// The ranges in which all are set.
fn runs(set: &[bool]) -> impl Iterator<Item = Range<usize>> {
    let mut end = 0;
    std::iter::from_fn(move || {
        let start = end + set[end..].iter().position(|&x| x)?;
        end = set[start..].iter().position(|&x| !x).map_or(set.len(), |n| start + n);
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u32 = 16_000;

    /// Noise with this gain at every time in seconds.
    fn noise(seconds: f64, gain: impl Fn(f64) -> f64) -> Vec<f32> {
        let mut state = 1u64;
        let n = (seconds * f64::from(RATE)) as usize;
        let sample = |i: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let u = (state >> 33) as f64 / f64::from(1u32 << 30) - 1.0;
            (u * gain(i as f64 / f64::from(RATE))).clamp(-1.0, 1.0) as f32
        };
        (0..n).map(sample).collect()
    }

    fn spans(samples: &[f32]) -> Vec<(f64, f64)> {
        let spans = activity(samples, RATE);
        assert!(spans.iter().all(|span| span.start < span.end && span.end <= samples.len()), "{spans:?}");
        let seconds = |i: usize| i as f64 / f64::from(RATE);
        spans.into_iter().map(|span| (seconds(span.start), seconds(span.end))).collect()
    }

    /// Sounds are found where they are: up to one frame and the soft beginning early, the soft end late.
    fn assert_near(samples: &[f32], want: &[(f64, f64)]) {
        let found = spans(samples);
        assert_eq!(found.len(), want.len(), "{found:?}");
        for (got, want) in found.iter().zip(want) {
            assert!((-0.001..0.07).contains(&(want.0 - got.0)), "{found:?}");
            assert!((-0.001..0.11).contains(&(got.1 - want.1)), "{found:?}");
        }
    }

    fn within(t: f64, spans: &[(f64, f64)]) -> bool {
        spans.iter().any(|span| (span.0..span.1).contains(&t))
    }

    #[test]
    fn sounds_are_found_at_any_level_over_any_noise() {
        let want = [(1.0, 2.5), (4.0, 4.2), (5.0, 5.9)];
        // From full scale over nothing to 26 dB above a hiss, and soft.
        for (sound, hiss) in [(0.9, 0.0), (0.9, 0.001), (0.2, 0.01), (0.01, 0.0005), (0.002, 0.00001)] {
            assert_near(&noise(8.0, |t| if within(t, &want) { sound } else { hiss }), &want);
        }
    }

    #[test]
    fn a_word_in_a_long_silence_is_found() {
        let want = [(40.0, 40.4)];
        assert_near(&noise(60.0, |t| if within(t, &want) { 0.1 } else { 0.002 }), &want);
        // A pause of a second in a minute of sound, too.
        let want = [(0.0, 30.0), (31.0, 60.0)];
        let found = spans(&noise(60.0, |t| if within(t, &want) { 0.1 } else { 0.002 }));
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn silence_has_no_sound() {
        for gain in [0.0, 1.0 / 32768.0] {
            assert_eq!(spans(&noise(5.0, |_| gain)), []);
        }
        assert_eq!(spans(&[]), []);
        assert_eq!(spans(&[f32::NAN; 4000]), []);
    }

    #[test]
    fn what_is_steady_is_one_sound() {
        for gain in [0.003, 0.3, 1.0, 100.0] {
            assert_eq!(spans(&noise(5.0, |_| gain)), [(0.0, 5.0)], "{gain}");
        }
        let square: Vec<f32> = (0..RATE).map(|i| if i / 40 % 2 == 0 { 1.0 } else { -1.0 }).collect();
        assert_eq!(spans(&square), [(0.0, 1.0)]);
        assert_eq!(spans(&noise(0.05, |_| 0.5)), [(0.0, 0.05)], "shorter than what is compared");
    }

    #[test]
    fn clicks_are_no_sound_and_stops_are_no_pause() {
        let word = [(1.0, 1.3), (1.42, 1.8)];
        let click = [(3.0, 3.015), (4.0, 4.01)];
        let clip = noise(6.0, |t| {
            if within(t, &word) {
                0.1
            } else if within(t, &click) {
                0.9
            } else {
                0.001
            }
        });
        assert_near(&clip, &[(1.0, 1.8)]);
    }
}
