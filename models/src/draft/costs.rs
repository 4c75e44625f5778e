//! [`Costs`]: how long steps of so many rows take, as they were measured.

use std::collections::BTreeMap;
use std::time::Duration;

/// Steps of a size that count: the last ones.
const N_LAST: usize = 32;

/// The last times of one size.
#[derive(Clone, Debug)]
struct Times {
    last: [Duration; N_LAST],
    n: usize,
    /// Of them.
    median: Duration,
}

/// Times of steps by their number of rows. One of these belongs to a session: its times are those of its model on its machine.
#[derive(Clone, Default, Debug)]
pub struct Costs {
    times: BTreeMap<usize, Times>,
}

impl Costs {
    /// Takes note of a step of so many rows.
    pub fn record(&mut self, n_rows: usize, time: Duration) {
        let times = self.times.entry(n_rows).or_insert(Times { last: [time; N_LAST], n: 0, median: time });
        times.last[times.n % N_LAST] = time;
        times.n += 1;
        let mut sorted = times.last;
        let known = &mut sorted[..times.n.min(N_LAST)];
        known.sort_unstable();
        times.median = known[known.len() / 2];
    }

    /// The median of the last times of steps of exactly so many rows.
    pub fn measured(&self, n_rows: usize) -> Option<Duration> {
        self.times.get(&n_rows).map(|times| times.median)
    }

    /// Seconds of a step of so many rows: as measured, or between its neighbours, or like the nearest. Nothing where nothing was
    /// measured.
    pub fn estimate(&self, n_rows: usize) -> Option<f64> {
        let below = self.times.range(..=n_rows).next_back().map(|(n, t)| (*n as f64, t.median.as_secs_f64()));
        let above = self.times.range(n_rows..).next().map(|(n, t)| (*n as f64, t.median.as_secs_f64()));
        match (below, above) {
            (Some((n0, t0)), Some((n1, t1))) if n1 > n0 => Some(t0 + (t1 - t0) * (n_rows as f64 - n0) / (n1 - n0)),
            (Some((_, t)), _) | (None, Some((_, t))) => Some(t),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_the_last_steps_and_lines_between_them() {
        let mut costs = Costs::default();
        assert_eq!(costs.estimate(3), None);
        let ms = Duration::from_millis;
        for t in [40, 900, 41, 42, 2] {
            costs.record(1, ms(t));
        }
        assert_eq!(costs.measured(1), Some(ms(41)));
        (0..N_LAST).for_each(|_| costs.record(1, ms(20)));
        assert_eq!(costs.measured(1), Some(ms(20)));
        costs.record(5, ms(60));
        let close = |n, want: f64| assert!((costs.estimate(n).unwrap() - want).abs() < 1e-12, "{n}");
        close(1, 0.02);
        close(3, 0.04);
        close(5, 0.06);
        close(9, 0.06);
        assert_eq!(costs.measured(3), None);
    }
}
