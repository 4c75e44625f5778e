//! Means, deviations, percentiles, and the time of day.

use std::time::{SystemTime, UNIX_EPOCH};

/// How sure [`median_interval`] is.
pub(super) const CONFIDENCE: f64 = 0.99;

/// The mean; 0 of nothing.
pub(super) fn mean(x: &[f64]) -> f64 {
    if x.is_empty() { 0.0 } else { x.iter().sum::<f64>() / x.len() as f64 }
}

/// The deviation of a sample, with `n - 1` below the root; 0 of a single value.
pub(super) fn stddev(x: &[f64]) -> f64 {
    if x.len() < 2 {
        return 0.0;
    }
    let mean = mean(x);
    (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (x.len() - 1) as f64).sqrt()
}

/// The value that a share `p` of all lies below or at, interpolated; 0 of nothing.
pub(super) fn percentile(x: &[f64], p: f64) -> f64 {
    let mut sorted = x.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = p * last as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
}

/// Between which two values the median of all that could be measured lies, at a confidence of at least [`CONFIDENCE`];
/// everything where `x` is too short for that. Makes no assumption about the distribution.
///
/// The `k` smallest and largest are left out with the largest `k` for which `2 P(B <= k)` is small enough, `B` binomial with
/// `x.len()` and 1/2. Source: Conover, "Practical Nonparametric Statistics", confidence interval of a quantile.
pub(super) fn median_interval(x: &[f64]) -> [f64; 2] {
    let mut sorted = x.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let mut term = 0.5f64.powi(i32::try_from(n).unwrap_or(i32::MAX));
    let mut below = term;
    let mut k = 0;
    while 2.0 * below <= 1.0 - CONFIDENCE {
        k += 1;
        term *= (n - k + 1) as f64 / k as f64;
        below += term;
    }
    match k.checked_sub(1) {
        Some(left_out) => [sorted[left_out], sorted[n - 1 - left_out]],
        None => [f64::NEG_INFINITY, f64::INFINITY],
    }
}

/// Now, in UTC: `2026-11-21T19:04:00Z`.
pub(super) fn utc_now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    utc(seconds)
}

/// Source of the calendar: Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March on.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_their_textbook_figures() {
        let x = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        assert_eq!(mean(&x), 5.0);
        assert!((stddev(&x) - (32.0f64 / 7.0).sqrt()).abs() < 1e-12);
        assert_eq!(percentile(&x, 0.5), 4.5);
        assert_eq!(percentile(&x, 1.0), 9.0);
        assert_eq!((mean(&[]), stddev(&[3.0]), percentile(&[], 0.5)), (0.0, 0.0, 0.0));
    }

    #[test]
    fn intervals_of_a_median_are_those_of_the_tables() {
        let upto = |n: u32| median_interval(&(1..=n).map(f64::from).collect::<Vec<_>>());
        // Ranks at 99 %, from tables of the sign test.
        assert_eq!(upto(7), [f64::NEG_INFINITY, f64::INFINITY]);
        for (n, low) in [(8, 1.0), (11, 1.0), (12, 2.0), (15, 3.0), (20, 4.0), (40, 12.0)] {
            assert_eq!(upto(n), [low, f64::from(n) + 1.0 - low], "{n}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        // `date -u -d @N +%FT%TZ`
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_795_287_840, "2026-11-21T19:04:00Z"),
        ] {
            assert_eq!(utc(seconds), want);
        }
    }
}
