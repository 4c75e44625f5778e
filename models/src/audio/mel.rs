//! [`MelSpectrogram`]: samples to Whisper's log-mel features. Start with [`MelSpectrogram::compute`].
//!
//! Features belong to a whole clip: the dynamic range is clamped below the clip's maximum, so a clip's features cannot be
//! joined from those of its parts.

use std::f64::consts::TAU;
use std::sync::Arc;

use engine::{Error, Result};
use rayon::prelude::*;
use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

/// Lowest mel power whose logarithm is taken.
const POWER_FLOOR: f64 = 1e-10;

/// Decades below the clip's maximum at which features are clamped.
const DYNAMIC_RANGE: f64 = 8.0;

/// Frames that one task of the thread pool transforms: about half a millisecond of work.
const FRAMES_PER_TASK: usize = 64;

/// Largest parameters that a model file may ask for; they bound the filterbank's memory.
const MAX_N_MELS: usize = 1024;
const MAX_N_FFT: usize = 1 << 16;

/// What a log-mel spectrogram is computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MelParams {
    /// Samples per second.
    pub rate_hz: u32,
    /// Samples per frame, the length of the window and of the transform.
    pub n_fft: usize,
    /// Samples from one frame to the next.
    pub hop: usize,
    /// Mel bands from 0 Hz to half the rate.
    pub n_mels: usize,
    /// Shorter clips are padded with zeros to this number of samples. More than half of `n_fft`.
    pub min_samples: usize,
}

/// A log-mel spectrogram.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Mel bands.
    pub n_mels: usize,
    /// Frames.
    pub n_frames: usize,
    /// `[n_mels, n_frames]`.
    pub values: Vec<f32>,
}

/// One triangle of the filterbank: its first bin and the weights from there on.
struct Filter {
    first: usize,
    weights: Vec<f32>,
}

/// Window, transform and filterbank for one set of parameters.
pub struct MelSpectrogram {
    params: MelParams,
    window: Vec<f64>,
    filters: Vec<Filter>,
    // f32 transforms lose the quiet bands of loud frames: their noise is above the floor of the dynamic range.
    fft: Arc<dyn RealToComplex<f64>>,
}

impl MelSpectrogram {
    /// Prepares window, transform and filterbank.
    ///
    /// Errors: `BadValue` for parameters that are zero, absurdly large, or with `min_samples` too short to be reflected.
    pub fn new(params: MelParams) -> Result<Self> {
        let bad = |key: &str, what: String| Err(Error::BadValue { key: key.into(), what });
        if !(2..=MAX_N_FFT).contains(&params.n_fft) || !params.n_fft.is_multiple_of(2) {
            return bad("n_fft", format!("want an even number up to {MAX_N_FFT}, got {}", params.n_fft));
        }
        if !(1..=params.n_fft).contains(&params.hop) {
            return bad("hop_length", format!("want 1 to {}, got {}", params.n_fft, params.hop));
        }
        if !(1..=MAX_N_MELS).contains(&params.n_mels) {
            return bad("num_mel_bins", format!("want 1 to {MAX_N_MELS}, got {}", params.n_mels));
        }
        if params.rate_hz == 0 {
            return bad("sampling_rate", "want a positive number, got 0".into());
        }
        if params.min_samples <= params.n_fft / 2 || params.min_samples < params.hop {
            let want = (params.n_fft / 2 + 1).max(params.hop);
            return bad("min_samples", format!("want at least {want}, got {}", params.min_samples));
        }
        let n = params.n_fft as f64;
        let window = (0..params.n_fft).map(|i| 0.5 - 0.5 * (TAU * i as f64 / n).cos()).collect();
        let filters = filterbank(&params);
        Ok(Self { params, window, filters, fft: RealFftPlanner::new().plan_fft_forward(params.n_fft) })
    }

    /// The parameters.
    pub fn params(&self) -> &MelParams {
        &self.params
    }

    /// Frames of a clip of `n_samples`: `floor(max(n_samples, min_samples) / hop)`.
    pub fn n_frames(&self, n_samples: usize) -> usize {
        n_samples.max(self.params.min_samples) / self.params.hop
    }

    /// Log-mel spectrogram: `log10(max(mel . |stft(x)|^2, 1e-10))`, clamped to 8 below the clip's maximum, `(y + 4) / 4`.
    ///
    /// `samples`: mono at `rate_hz`, finite, at least one. Frames are centred, the clip is reflected at both ends, and the
    /// last frame of the transform is dropped: `n_frames = max(samples.len(), min_samples) / hop`. The result does not
    /// depend on the number of threads.
    ///
    /// Source: transformers, `WhisperFeatureExtractor._np_extract_fbank_features` and `Qwen3ASRFeatureExtractor`.
    pub fn compute(&self, samples: &[f32]) -> Result<Features> {
        if samples.is_empty() {
            return Err(Error::BadValue { key: "audio".into(), what: "want at least one sample, got 0".into() });
        }
        let MelParams { n_mels, min_samples, .. } = self.params;
        let padded: Vec<f32>;
        let samples = if samples.len() < min_samples {
            padded = samples.iter().copied().chain(std::iter::repeat(0.0)).take(min_samples).collect();
            &padded
        } else {
            samples
        };
        let n_frames = self.n_frames(samples.len());
        let mut by_frame = vec![0f32; n_frames * n_mels];
        let max = by_frame
            .par_chunks_mut(FRAMES_PER_TASK * n_mels)
            .enumerate()
            .map(|(i, out)| self.log_mel(samples, i * FRAMES_PER_TASK, out))
            .reduce(|| f32::NEG_INFINITY, f32::max);

        let floor = max - DYNAMIC_RANGE as f32;
        let mut values = vec![0f32; n_frames * n_mels];
        values.par_chunks_mut(n_frames).enumerate().for_each(|(i_mel, row)| {
            for (y, frame) in row.iter_mut().zip(by_frame.chunks_exact(n_mels)) {
                *y = (frame[i_mel].max(floor) + 4.0) / 4.0;
            }
        });
        Ok(Features { n_mels, n_frames, values })
    }

    /// Logarithm of the mel power of consecutive frames from `first` on, `[frames, n_mels]`. Returns the largest value.
    fn log_mel(&self, samples: &[f32], first: usize, out: &mut [f32]) -> f32 {
        let mut frame = self.fft.make_input_vec();
        let mut spectrum = self.fft.make_output_vec();
        let mut scratch = self.fft.make_scratch_vec();
        let mut power = vec![0f64; spectrum.len()];
        let mut max = f32::NEG_INFINITY;
        for (i, row) in out.chunks_exact_mut(self.params.n_mels).enumerate() {
            self.windowed(samples, first + i, &mut frame);
            self.fft
                .process_with_scratch(&mut frame, &mut spectrum, &mut scratch)
                .expect("the buffers come from this transform");
            for (p, z) in power.iter_mut().zip(&spectrum) {
                *p = Complex::norm_sqr(z);
            }
            for (y, filter) in row.iter_mut().zip(&self.filters) {
                let bins = &power[filter.first..];
                let mel: f64 = filter.weights.iter().zip(bins).map(|(&w, p)| f64::from(w) * p).sum();
                *y = mel.max(POWER_FLOOR).log10() as f32;
                max = max.max(*y);
            }
        }
        max
    }

    /// Frame `i_frame` of the reflected clip times the window.
    fn windowed(&self, samples: &[f32], i_frame: usize, frame: &mut [f64]) {
        let half = self.params.n_fft / 2;
        let start = i_frame * self.params.hop;
        if start >= half && start - half + frame.len() <= samples.len() {
            let inside = &samples[start - half..][..frame.len()];
            for ((y, &x), w) in frame.iter_mut().zip(inside).zip(&self.window) {
                *y = f64::from(x) * w;
            }
            return;
        }
        let last = samples.len() - 1;
        for (k, (y, w)) in frame.iter_mut().zip(&self.window).enumerate() {
            let at = (start + k).abs_diff(half);
            // Frames reach at most half a window past the end, and the clip is longer than that.
            let at = if at > last { 2 * last - at } else { at };
            *y = f64::from(samples[at]) * w;
        }
    }
}

/// Triangles on the slaney mel scale with slaney's area normalisation, from 0 Hz to half the rate.
///
/// Source: transformers, `audio_utils.mel_filter_bank(norm="slaney", mel_scale="slaney")`.
fn filterbank(params: &MelParams) -> Vec<Filter> {
    let nyquist = f64::from(params.rate_hz) / 2.0;
    let n_bins = params.n_fft / 2 + 1;
    let top = hz_to_mel(nyquist);
    let n_points = params.n_mels + 2;
    let points: Vec<f64> = (0..n_points).map(|i| mel_to_hz(top * i as f64 / (n_points - 1) as f64)).collect();
    let bin_hz = |k: usize| nyquist * k as f64 / (n_bins - 1) as f64;
    points
        .windows(3)
        .map(|p| {
            let weight = |k: usize| {
                let rise = (bin_hz(k) - p[0]) / (p[1] - p[0]);
                let fall = (p[2] - bin_hz(k)) / (p[2] - p[1]);
                (rise.min(fall).max(0.0) * 2.0 / (p[2] - p[0])) as f32
            };
            let first = (0..n_bins).find(|&k| weight(k) > 0.0).unwrap_or(0);
            Filter { first, weights: (first..n_bins).map(weight).take_while(|&w| w > 0.0).collect() }
        })
        .collect()
}

/// Slaney's mel scale: linear to 1000 Hz, logarithmic above.
fn hz_to_mel(hz: f64) -> f64 {
    if hz < 1000.0 { 3.0 * hz / 200.0 } else { 15.0 + (hz / 1000.0).ln() * 27.0 / 6.4f64.ln() }
}

/// Inverse of [`hz_to_mel`].
fn mel_to_hz(mel: f64) -> f64 {
    if mel < 15.0 { 200.0 * mel / 3.0 } else { 1000.0 * ((mel - 15.0) * 6.4f64.ln() / 27.0).exp() }
}

/// Audio tokens of Qwen3-ASR for `n_frames` mel frames that are encoded in chunks of `chunk_frames`.
///
/// Three convolutions of stride 2 turn `a` frames of a chunk into `ceil(a / 8)` tokens; tokens that cover only the padding
/// of the last chunk are dropped. Source: transformers, `_get_feat_extract_output_lengths` of Qwen3-ASR.
///
/// Panics if `chunk_frames` is 0.
pub fn qwen3_asr_n_tokens(n_frames: usize, chunk_frames: usize) -> usize {
    const STRIDE: usize = 8;
    n_frames / chunk_frames * chunk_frames.div_ceil(STRIDE) + (n_frames % chunk_frames).div_ceil(STRIDE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHISPER: MelParams = MelParams { rate_hz: 16_000, n_fft: 400, hop: 160, n_mels: 128, min_samples: 8000 };

    fn weight(filters: &[Filter], bin: usize, mel: usize) -> f32 {
        let f = &filters[mel];
        bin.checked_sub(f.first).and_then(|i| f.weights.get(i)).copied().unwrap_or(0.0)
    }

    #[test]
    fn filterbank_has_the_published_values() {
        let f = filterbank(&WHISPER);
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
        for (bin, mel, value) in want {
            let got = weight(&f, bin, mel);
            assert!((f64::from(got) - value).abs() < 5e-9, "F[{bin},{mel}]: want {value}, got {got}");
        }
        assert_eq!(f.iter().map(|f| f.weights.len()).sum::<usize>(), 394);
        let sum: f64 = f.iter().flat_map(|f| &f.weights).map(|&w| f64::from(w)).sum();
        assert!((sum - 3.19098552854).abs() < 1e-7, "{sum}");
        assert!(f.iter().all(|f| !f.weights.is_empty()));
        assert_eq!((f[127].first, f[127].weights.len()), (191, 9));
    }

    #[test]
    fn reflection_does_not_repeat_the_edge() {
        let params = MelParams { rate_hz: 8, n_fft: 4, hop: 1, n_mels: 1, min_samples: 3 };
        let mel = MelSpectrogram::new(params).unwrap();
        let mut frame = [0.0; 4];
        let padded = [2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0];
        let window = [0.0, 0.5, 1.0, 0.5];
        for i in 0..3 {
            mel.windowed(&[0.0, 1.0, 2.0], i, &mut frame);
            for k in 0..4 {
                assert!((frame[k] - padded[i + k] * window[k]).abs() < 1e-15, "frame {i}: {frame:?}");
            }
        }
    }

    #[test]
    fn parameters_are_checked() {
        let bad = |change: &dyn Fn(&mut MelParams)| {
            let mut p = WHISPER;
            change(&mut p);
            assert!(matches!(MelSpectrogram::new(p), Err(Error::BadValue { .. })), "{p:?}");
        };
        bad(&|p| p.n_fft = 0);
        bad(&|p| p.n_fft = 401);
        bad(&|p| p.n_fft = usize::MAX - 1);
        bad(&|p| p.hop = 0);
        bad(&|p| p.hop = 401);
        bad(&|p| p.n_mels = 0);
        bad(&|p| p.n_mels = usize::MAX);
        bad(&|p| p.rate_hz = 0);
        bad(&|p| p.min_samples = 200);
        assert!(MelSpectrogram::new(WHISPER).is_ok());
    }

    #[test]
    fn no_samples_are_an_error() {
        assert!(MelSpectrogram::new(WHISPER).unwrap().compute(&[]).is_err());
    }

    #[test]
    fn token_counts_follow_the_published_table() {
        // Samples, frames, tokens: columns "original" (from 8000 samples on) and "HF" of the length table.
        let mel = MelSpectrogram::new(WHISPER).unwrap();
        let table = [
            (1, 50, 7),
            (1600, 50, 7),
            (4800, 50, 7),
            (7960, 50, 7),
            (8000, 50, 7),
            (12_000, 75, 10),
            (15_998, 99, 13),
            (16_000, 100, 13),
            (16_080, 100, 13),
            (16_160, 101, 14),
            (57_600, 360, 47),
            (128_000, 800, 104),
            (129_280, 808, 105),
            (176_000, 1100, 143),
            (256_000, 1600, 208),
            (480_000, 3000, 390),
            (1_040_000, 6500, 845),
        ];
        for (n_samples, n_frames, n_tokens) in table {
            assert_eq!(mel.n_frames(n_samples), n_frames, "{n_samples} samples");
            assert_eq!(qwen3_asr_n_tokens(n_frames, 100), n_tokens, "{n_samples} samples");
        }
        // Without the minimum: column "original" below 8000 samples.
        assert_eq!([10, 30, 49].map(|l| qwen3_asr_n_tokens(l, 100)), [2, 4, 7]);
        assert_eq!(qwen3_asr_n_tokens(0, 100), 0);
    }

    #[test]
    fn token_count_is_the_convolutions_output_length() {
        let conv = |a: usize| if a == 0 { 0 } else { (a - 1) / 2 + 1 };
        for n_samples in (1..=480_000).step_by(37) {
            let l = n_samples.max(8000) / 160;
            let want = 13 * (l / 100) + conv(conv(conv(l % 100)));
            assert_eq!(qwen3_asr_n_tokens(l, 100), want, "{n_samples} samples");
        }
    }
}
