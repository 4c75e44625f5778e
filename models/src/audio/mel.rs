//! [`MelSpectrogram`]: samples to log-mel features, as Whisper or as NeMo computes them. Start with
//! [`MelSpectrogram::compute`].
//!
//! Features belong to a whole clip: both recipes scale them by what they find in all of it, so a clip's features cannot be
//! joined from those of its parts.

use std::f64::consts::TAU;
use std::sync::Arc;

use engine::parallel::Parallel;
use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

use super::filterbank::Filterbank;
use super::sum::sum;

use crate::error::{Error, Result};

/// Whisper: lowest mel power whose logarithm is taken.
const POWER_FLOOR: f64 = 1e-10;
/// Whisper: decades below the clip's maximum at which features are clamped.
const DYNAMIC_RANGE: f64 = 8.0;

/// NeMo: how much of a sample is taken from the next one.
const PRE_EMPHASIS: f64 = 0.97;
/// NeMo: added to the mel power, `2^-24`.
const POWER_GUARD: f32 = 1.0 / (1u32 << 24) as f32;
/// NeMo: added to the standard deviation of a band.
const DEVIATION_GUARD: f32 = 1e-5;

/// Frames that one task transforms: about half a millisecond of work.
const FRAMES_PER_TASK: usize = 64;

/// Largest parameters that a model file may ask for; they bound the filterbank's memory.
const MAX_N_MELS: usize = 1024;
const MAX_N_FFT: usize = 1 << 16;

/// What becomes of samples before the transform, and of mel power after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MelRecipe {
    /// The clip is reflected at both ends, windowed by a periodic Hann window, and the last frame is dropped:
    /// `y = log10(max(mel, 1e-10))`, clamped to 8 below the clip's maximum, `(y + 4) / 4`.
    ///
    /// Source: transformers, `WhisperFeatureExtractor._np_extract_fbank_features`.
    Whisper,
    /// The clip, of which every sample loses 0.97 of the one before, stands between zeros and is windowed by a symmetric
    /// Hann window: `y = ln(mel + 2^-24)`. Each band is then brought to mean 0 and standard deviation 1 over all frames but
    /// the last, `(y - mean) / (std + 1e-5)` with the unbiased `std`, and 0 where that is the only one. The last frame is
    /// zeros.
    ///
    /// Source: liquid-audio, `conformer/processor.py`, `FilterbankFeatures` (after NeMo's class of that name).
    Nemo,
}

/// What a log-mel spectrogram is computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MelParams {
    /// Whose features they are.
    pub recipe: MelRecipe,
    /// Samples per second.
    pub rate_hz: u32,
    /// Length of the transform.
    pub n_fft: usize,
    /// Length of the window, which stands in the middle of the transform.
    pub win_length: usize,
    /// Samples from one frame to the next.
    pub hop: usize,
    /// Mel bands from 0 Hz to half the rate.
    pub n_mels: usize,
    /// Shorter clips are padded with zeros to this number of samples. At least `hop`; where the clip is reflected, more
    /// than half of `n_fft`.
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

/// Window, transform and filterbank for one set of parameters.
pub struct MelSpectrogram {
    params: MelParams,
    /// `[n_fft]`, zeros around the window.
    window: Vec<f64>,
    filterbank: Filterbank,
    // f32 transforms lose the quiet bands of loud frames: their noise is above the floor of the dynamic range.
    fft: Arc<dyn RealToComplex<f64>>,
}

impl MelSpectrogram {
    /// Prepares window, transform and filterbank.
    ///
    /// Errors: `FrontEnd` for parameters that are zero, absurdly large, or with `min_samples` too short for one frame or to
    /// be reflected.
    pub fn new(params: MelParams) -> Result<Self> {
        let bad = |parameter, what: String| Err(Error::FrontEnd { parameter, what });
        let MelParams { recipe, rate_hz, n_fft, win_length, hop, n_mels, min_samples } = params;
        if !(2..=MAX_N_FFT).contains(&n_fft) || !n_fft.is_multiple_of(2) {
            return bad("n_fft", format!("want an even number up to {MAX_N_FFT}, got {n_fft}"));
        }
        if !(2..=n_fft).contains(&win_length) {
            return bad("win_length", format!("want 2 to {n_fft}, got {win_length}"));
        }
        if !(1..=n_fft).contains(&hop) {
            return bad("hop_length", format!("want 1 to {n_fft}, got {hop}"));
        }
        if !(1..=MAX_N_MELS).contains(&n_mels) {
            return bad("num_mel_bins", format!("want 1 to {MAX_N_MELS}, got {n_mels}"));
        }
        if rate_hz == 0 {
            return bad("sampling_rate", "want a positive number, got 0".into());
        }
        let reflected = match recipe {
            MelRecipe::Whisper => n_fft / 2 + 1,
            MelRecipe::Nemo => 1,
        };
        if min_samples < reflected.max(hop) {
            return bad("min_samples", format!("want at least {}, got {min_samples}", reflected.max(hop)));
        }
        Ok(Self {
            params,
            window: hann(&params),
            filterbank: Filterbank::new(rate_hz, n_fft, n_mels),
            fft: RealFftPlanner::new().plan_fft_forward(n_fft),
        })
    }

    /// The parameters.
    pub fn params(&self) -> &MelParams {
        &self.params
    }

    /// Frames of a clip of `n_samples`: one per hop of `max(n_samples, min_samples)`, and one more where the last is kept.
    pub fn n_frames(&self, n_samples: usize) -> usize {
        let n_hops = n_samples.max(self.params.min_samples) / self.params.hop;
        match self.params.recipe {
            MelRecipe::Whisper => n_hops,
            MelRecipe::Nemo => n_hops + 1,
        }
    }

    /// Log-mel spectrogram of a clip: the mel bands of `|stft(x)|^2` on frames centred at multiples of `hop`, scaled as
    /// [`MelParams::recipe`] says.
    ///
    /// `samples`: mono at `rate_hz`, finite, at least one. Returns [`MelSpectrogram::n_frames`] frames. The result does not
    /// depend on the number of threads.
    pub fn compute(&self, samples: &[f32], threads: &dyn Parallel) -> Result<Features> {
        if samples.is_empty() {
            return Err(Error::Argument { name: "audio", what: "want at least one sample, got 0".into() });
        }
        let MelParams { recipe, n_mels, min_samples, .. } = self.params;
        let padded: Vec<f32>;
        let samples = if samples.len() < min_samples {
            padded = samples.iter().copied().chain(std::iter::repeat(0.0)).take(min_samples).collect();
            &padded
        } else {
            samples
        };
        let values = match recipe {
            MelRecipe::Whisper => self.whisper(samples, threads),
            MelRecipe::Nemo => self.nemo(samples, threads),
        };
        Ok(Features { n_mels, n_frames: self.n_frames(samples.len()), values })
    }

    /// Features `[n_mels, n_frames]` of [`MelRecipe::Whisper`].
    fn whisper(&self, samples: &[f32], threads: &dyn Parallel) -> Vec<f32> {
        let n_frames = self.n_frames(samples.len());
        let by_frame = self.mel(samples, threads, n_frames, |power| power.max(POWER_FLOOR).log10() as f32);
        let part = FRAMES_PER_TASK * self.params.n_mels;
        let mut largest = vec![f32::NEG_INFINITY; by_frame.len().div_ceil(part)];
        threads.chunks_mut(&mut largest, 1, |i, largest| {
            largest[0] = by_frame[i * part..].iter().take(part).copied().fold(f32::NEG_INFINITY, f32::max);
        });
        let max = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
        let floor = max - DYNAMIC_RANGE as f32;
        let mut values = vec![0f32; by_frame.len()];
        threads.chunks_mut(&mut values, n_frames, |i_mel, row| {
            for (y, frame) in row.iter_mut().zip(by_frame.chunks_exact(self.params.n_mels)) {
                *y = (frame[i_mel].max(floor) + 4.0) / 4.0;
            }
        });
        values
    }

    /// Features `[n_mels, n_frames]` of [`MelRecipe::Nemo`].
    ///
    /// From the logarithm on in f32, like the official code: a band without sound, such as those above 4 kHz of a telephone
    /// call, is the logarithm of the guard all along, and what the model sees of it is how its mean was rounded.
    fn nemo(&self, samples: &[f32], threads: &dyn Parallel) -> Vec<f32> {
        let n_frames = self.n_frames(samples.len());
        let n_valid = n_frames - 1;
        let by_frame = self.mel(samples, threads, n_valid, |power| f64::from(power as f32 + POWER_GUARD).ln() as f32);
        let mut values = vec![0f32; n_frames * self.params.n_mels];
        threads.chunks_mut(&mut values, n_frames, |i_mel, row| {
            for (y, x) in row.iter_mut().zip(by_frame.iter().skip(i_mel).step_by(self.params.n_mels)) {
                *y = *x;
            }
            // The zero of the last frame takes part in the sums, for the order in which they are added.
            let mean = sum(row) / n_valid as f32;
            row[..n_valid].iter_mut().for_each(|y| *y -= mean);
            let squares: Vec<f32> = row.iter().map(|y| y * y).collect();
            // One frame has no deviation: its features are 0, whatever it is divided by.
            let std = (sum(&squares) / (n_valid as f32 - 1.0).max(1.0)).sqrt() + DEVIATION_GUARD;
            row.iter_mut().for_each(|y| *y /= std);
        });
        values
    }

    /// Mel power of the first `n_frames` frames after `log`: `[n_frames, n_mels]`.
    fn mel(
        &self,
        samples: &[f32],
        threads: &dyn Parallel,
        n_frames: usize,
        log: impl Fn(f64) -> f32 + Sync,
    ) -> Vec<f32> {
        let n_mels = self.params.n_mels;
        let mut by_frame = vec![0f32; n_frames * n_mels];
        threads.chunks_mut(&mut by_frame, FRAMES_PER_TASK * n_mels, |i, out| {
            let mut frame = self.fft.make_input_vec();
            let mut spectrum = self.fft.make_output_vec();
            let mut scratch = self.fft.make_scratch_vec();
            let mut power = vec![0f64; spectrum.len()];
            for (k, row) in out.chunks_exact_mut(n_mels).enumerate() {
                self.windowed(samples, i * FRAMES_PER_TASK + k, &mut frame);
                self.fft
                    .process_with_scratch(&mut frame, &mut spectrum, &mut scratch)
                    .expect("the buffers come from this transform");
                for (p, z) in power.iter_mut().zip(&spectrum) {
                    *p = Complex::norm_sqr(z);
                }
                for (y, band) in row.iter_mut().zip(self.filterbank.bands(&power)) {
                    *y = log(band);
                }
            }
        });
        by_frame
    }

    /// Frame `i_frame` of the clip, extended at both ends, times the window. At least `hop` samples.
    fn windowed(&self, samples: &[f32], i_frame: usize, frame: &mut [f64]) {
        let half = self.params.n_fft / 2;
        let start = i_frame * self.params.hop;
        match self.params.recipe {
            MelRecipe::Whisper => {
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
            MelRecipe::Nemo => {
                let sample = |at: usize| samples.get(at).map_or(0.0, |&x| f64::from(x));
                for (k, (y, w)) in frame.iter_mut().zip(&self.window).enumerate() {
                    let emphasised = match (start + k).checked_sub(half) {
                        None => 0.0,
                        Some(0) => sample(0),
                        // Past the end are zeros, not what pre-emphasis would make of them.
                        Some(at) if at >= samples.len() => 0.0,
                        Some(at) => sample(at) - PRE_EMPHASIS * sample(at - 1),
                    };
                    *y = emphasised * w;
                }
            }
        }
    }
}

/// Hann's window in the middle of `n_fft` zeros: `0.5 - 0.5 cos(2 pi i / d)`, where `d` is its length, and one less for the
/// symmetric one.
fn hann(params: &MelParams) -> Vec<f64> {
    let &MelParams { recipe, n_fft, win_length, .. } = params;
    let period = match recipe {
        MelRecipe::Whisper => win_length,
        MelRecipe::Nemo => win_length - 1,
    };
    let mut window = vec![0.0; n_fft];
    for (i, w) in window[(n_fft - win_length) / 2..][..win_length].iter_mut().enumerate() {
        *w = 0.5 - 0.5 * (TAU * i as f64 / period as f64).cos();
    }
    window
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
    use engine::parallel::Serial;

    use super::*;

    const WHISPER: MelParams = MelParams {
        recipe: MelRecipe::Whisper,
        rate_hz: 16_000,
        n_fft: 400,
        win_length: 400,
        hop: 160,
        n_mels: 128,
        min_samples: 8000,
    };
    const NEMO: MelParams = MelParams { recipe: MelRecipe::Nemo, n_fft: 512, min_samples: 1600, ..WHISPER };

    #[test]
    fn reflection_does_not_repeat_the_edge() {
        let params = MelParams { rate_hz: 8, n_fft: 4, win_length: 4, hop: 1, n_mels: 1, min_samples: 3, ..WHISPER };
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
            assert!(matches!(MelSpectrogram::new(p), Err(Error::FrontEnd { .. })), "{p:?}");
        };
        bad(&|p| p.n_fft = 0);
        bad(&|p| p.n_fft = 401);
        bad(&|p| p.n_fft = usize::MAX - 1);
        bad(&|p| p.win_length = 1);
        bad(&|p| p.win_length = 401);
        bad(&|p| p.hop = 0);
        bad(&|p| p.hop = 401);
        bad(&|p| p.n_mels = 0);
        bad(&|p| p.n_mels = usize::MAX);
        bad(&|p| p.rate_hz = 0);
        bad(&|p| p.min_samples = 200);
        bad(&|p| (p.recipe, p.min_samples) = (MelRecipe::Nemo, 159));
        assert!(MelSpectrogram::new(WHISPER).is_ok() && MelSpectrogram::new(NEMO).is_ok());
    }

    #[test]
    fn the_window_of_nemo_has_the_published_values() {
        let w = hann(&NEMO);
        assert_eq!((w.len(), w[56], w[455]), (512, 0.0, 0.0));
        for (at, want) in [(57, 6.198883e-05), (255, 0.9999845), (256, 0.9999845)] {
            // Published as the official code has it in f32.
            assert!((w[at] - want).abs() < 3e-8, "w[{at}]: want {want}, got {}", w[at]);
        }
        assert!((w.iter().sum::<f64>() - 199.5).abs() < 1e-9);
        assert!(w[..56].iter().chain(&w[456..]).all(|&w| w == 0.0));
    }

    #[test]
    fn frames_of_nemo_are_emphasised_and_stand_between_zeros() {
        let params = MelParams { rate_hz: 8, n_fft: 4, win_length: 4, hop: 1, n_mels: 1, min_samples: 1, ..NEMO };
        let mel = MelSpectrogram::new(params).unwrap();
        let mut frame = [0.0; 4];
        let padded = [0.0, 0.0, 3.0, 1.0 - 0.97 * 3.0, 2.0 - 0.97, 0.0, 0.0];
        let window = [0.0, 0.75, 0.75, 0.0];
        for i in 0..4 {
            mel.windowed(&[3.0, 1.0, 2.0], i, &mut frame);
            for k in 0..4 {
                assert!((frame[k] - padded[i + k] * window[k]).abs() < 1e-15, "frame {i}: {frame:?}");
            }
        }
    }

    #[test]
    fn one_frame_has_features_of_zero() {
        let mel = MelSpectrogram::new(MelParams { min_samples: 160, ..NEMO }).unwrap();
        let y = mel.compute(&[0.5; 200], &Serial).unwrap();
        assert_eq!((y.n_frames, y.values), (2, vec![0.0; 256]));
    }

    #[test]
    fn frames_of_nemo_follow_the_published_table() {
        let mel = MelSpectrogram::new(NEMO).unwrap();
        for (n_samples, n_frames) in [
            (1, 11),
            (1600, 11),
            (4800, 31),
            (16_000, 101),
            (57_600, 361),
            (176_000, 1101),
            (480_000, 3001),
            (1_040_000, 6501),
        ] {
            assert_eq!(mel.n_frames(n_samples), n_frames, "{n_samples} samples");
        }
    }

    #[test]
    fn no_samples_are_an_error() {
        for params in [WHISPER, NEMO] {
            assert!(MelSpectrogram::new(params).unwrap().compute(&[], &Serial).is_err());
        }
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
