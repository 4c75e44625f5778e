//! [`Filterbank`]: power spectra to mel bands, by triangles on Slaney's mel scale with Slaney's area normalisation.

/// Triangles from 0 Hz to half the rate. What each one adds up to in the spectrum of white noise does not depend on its width.
///
/// Source: transformers, `audio_utils.mel_filter_bank(norm="slaney", mel_scale="slaney")`; librosa, `filters.mel`.
pub(super) struct Filterbank {
    filters: Vec<Filter>,
}

/// One triangle: its first bin and the weights from there on.
struct Filter {
    first: usize,
    weights: Vec<f32>,
}

impl Filterbank {
    /// `n_mels` triangles for the spectra of transforms of length `n_fft`.
    pub(super) fn new(rate_hz: u32, n_fft: usize, n_mels: usize) -> Self {
        let nyquist = f64::from(rate_hz) / 2.0;
        let n_bins = n_fft / 2 + 1;
        let top = hz_to_mel(nyquist);
        let n_points = n_mels + 2;
        let points: Vec<f64> = (0..n_points).map(|i| mel_to_hz(top * i as f64 / (n_points - 1) as f64)).collect();
        let bin_hz = |k: usize| nyquist * k as f64 / (n_bins - 1) as f64;
        let filter = |p: &[f64]| {
            let weight = |k: usize| {
                let rise = (bin_hz(k) - p[0]) / (p[1] - p[0]);
                let fall = (p[2] - bin_hz(k)) / (p[2] - p[1]);
                (rise.min(fall).max(0.0) * 2.0 / (p[2] - p[0])) as f32
            };
            let first = (0..n_bins).find(|&k| weight(k) > 0.0).unwrap_or(0);
            Filter { first, weights: (first..n_bins).map(weight).take_while(|&w| w > 0.0).collect() }
        };
        Self { filters: points.windows(3).map(filter).collect() }
    }

    /// The bands of one power spectrum, in order.
    pub(super) fn bands(&self, power: &[f64]) -> impl Iterator<Item = f64> {
        self.filters.iter().map(|filter| {
            let bins = &power[filter.first..];
            filter.weights.iter().zip(bins).map(|(&w, p)| f64::from(w) * p).sum()
        })
    }
}

/// Slaney's mel scale: linear to 1000 Hz, logarithmic above.
fn hz_to_mel(hz: f64) -> f64 {
    if hz < 1000.0 { 3.0 * hz / 200.0 } else { 15.0 + (hz / 1000.0).ln() * 27.0 / 6.4f64.ln() }
}

/// Inverse of [`hz_to_mel`].
fn mel_to_hz(mel: f64) -> f64 {
    if mel < 15.0 { 200.0 * mel / 3.0 } else { 1000.0 * ((mel - 15.0) * 6.4f64.ln() / 27.0).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asserts values of a filterbank, each with its bin and band. They were published with 8 digits or more after the point.
    fn check(f: &Filterbank, want: &[(usize, usize, f64)]) {
        for &(bin, mel, value) in want {
            let filter = &f.filters[mel];
            let got = bin.checked_sub(filter.first).and_then(|i| filter.weights.get(i)).copied().unwrap_or(0.0);
            assert!((f64::from(got) - value).abs() < 6e-9, "F[{bin},{mel}]: want {value}, got {got}");
        }
        assert!(f.filters.iter().all(|f| !f.weights.is_empty()));
    }

    #[test]
    fn the_filterbank_of_whisper_has_the_published_values() {
        let f = Filterbank::new(16_000, 400, 128);
        let want = [
            (1, 0, 0.0123739867),
            (1, 1, 0.0303925649),
            (2, 2, 0.0247479733),
            (3, 5, 0.00564459199),
            (4, 5, 0.0067293942),
            (25, 42, 0.0316114595),
            (100, 100, 0.00257835),
            (101, 100, 0.00677583),
            (102, 100, 0.00940942),
            (103, 100, 0.00531195),
            (104, 100, 0.00121448),
            (199, 127, 0.00111428),
        ];
        check(&f, &want);
        assert_eq!(f.filters.iter().map(|f| f.weights.len()).sum::<usize>(), 394);
        let sum: f64 = f.filters.iter().flat_map(|f| &f.weights).map(|&w| f64::from(w)).sum();
        assert!((sum - 3.19098552854).abs() < 1e-7, "{sum}");
        assert_eq!((f.filters[127].first, f.filters[127].weights.len()), (191, 9));
    }

    #[test]
    fn the_filterbank_of_nemo_has_the_published_values() {
        let f = Filterbank::new(16_000, 512, 128);
        let want = [
            (1, 0, 0.02837754),
            (1, 1, 0.01438901),
            (2, 1, 0.01398853),
            (8, 10, 0.02957896),
            (30, 40, 0.00400473),
            (31, 40, 0.02437281),
            (54, 64, 0.01121671),
            (55, 64, 0.01881828),
            (56, 64, 0.00064914),
            (128, 100, 0.00257835),
            (129, 100, 0.00585763),
            (130, 100, 0.00913691),
            (131, 100, 0.00800091),
            (132, 100, 0.00479976),
            (133, 100, 0.00159861),
            (250, 127, 0.00522319),
        ];
        check(&f, &want);
        let rows: Vec<usize> = f.filters.iter().map(|f| f.weights.len()).collect();
        assert_eq!((rows.iter().min(), rows.iter().max()), (Some(&1), Some(&12)));
        assert_eq!((f.filters[127].first, rows[127]), (244, 12));
    }
}
