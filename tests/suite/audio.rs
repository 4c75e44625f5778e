//! Audio front end against the official loaders and extractors.

use std::f64::consts::TAU;
use std::path::{Path, PathBuf};

use models::audio::{self, MelParams, MelSpectrogram, decode_file};
use safetensors::{Dtype, SafeTensors};

/// The extractor of Qwen3-ASR.
const QWEN3_ASR: MelParams = MelParams { rate_hz: 16_000, n_fft: 400, hop: 160, n_mels: 128, min_samples: 8000 };

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn f32_tensor(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let t = file.tensor(name).unwrap();
    assert_eq!(t.dtype(), Dtype::F32, "{name}");
    t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Largest difference between a clip's features and the official ones.
fn mel_error(samples: &[f32], want: &[f32], shape: &[usize]) -> f32 {
    let got = MelSpectrogram::new(QWEN3_ASR).unwrap().compute(samples).unwrap();
    assert_eq!([got.n_mels, got.n_frames], shape);
    got.values.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn features_equal_the_official_ones() {
    let bytes = std::fs::read(fixture("golden/qwen3_asr/golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let waveform = file.tensor("waveform").unwrap();
    assert_eq!(waveform.dtype(), Dtype::I16);
    let waveform: Vec<f32> =
        waveform.data().chunks_exact(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32768.0).collect();
    for n in [5600, 16_000, 132_977] {
        let name = format!("clip.{n}.features");
        let e = mel_error(&waveform[..n], &f32_tensor(&file, &name), file.tensor(&name).unwrap().shape());
        // These come from float64: rounding to f32 is all that is left.
        assert!(e < 1e-6, "{name}: {e:e}");
    }
    for clip in ["open_door", "long_9s"] {
        let bytes = std::fs::read(fixture(&format!("models/tiny-qwen3-asr/golden/{clip}.safetensors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let shape = file.tensor("mel").unwrap().shape().to_vec();
        let e = mel_error(&f32_tensor(&file, "waveform"), &f32_tensor(&file, "mel"), &shape);
        // These come from a float32 transform, whose noise shows in quiet bands.
        assert!(e < 1e-4, "{clip}: {e:e}");
    }
}

/// The synthetic signal of the specification: two tones and noise.
fn synthetic(n: usize) -> Vec<f32> {
    let mut v = 12_345u32;
    (0..n)
        .map(|i| {
            v = v.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let u = f64::from(v >> 8) / f64::from(1 << 23) - 1.0;
            let t = i as f64 / 16_000.0;
            let voice = 0.3 * (TAU * 220.0 * t).sin() * (0.6 + 0.4 * (TAU * 3.0 * t).sin());
            (voice + 0.1 * (TAU * 1760.0 * t + 0.5).sin() + 0.01 * u) as f32
        })
        .collect()
}

#[test]
fn synthetic_signal_has_the_published_features() {
    let x = synthetic(57_637);
    for (i, want) in [
        (0, 0.0383506082),
        (1, 0.0987542942),
        (2, 0.127046317),
        (3, 0.102745511),
        (4, 0.0570950769),
        (1000, -0.244315326),
    ] {
        assert!((f64::from(x[i]) - want).abs() < 1e-8, "x[{i}] = {}", x[i]);
    }

    struct Want {
        n: usize,
        n_frames: usize,
        sum: f64,
        extremes: Option<(f64, f64)>,
        last: (f64, f64),
    }
    let table = [
        Want {
            n: 57_637,
            n_frames: 360,
            sum: 3923.24098,
            extremes: Some((1.32746923, -0.67253077)),
            last: (0.017188, 0.460594),
        },
        Want {
            n: 176_000,
            n_frames: 1100,
            sum: 11948.66213,
            extremes: Some((1.32809460, -0.67190540)),
            last: (-0.022419, 0.689639),
        },
        Want {
            n: 12_000,
            n_frames: 75,
            sum: 858.64550,
            extremes: Some((1.32664168, -0.67335832)),
            last: (-0.002549, 0.818609),
        },
        Want { n: 4800, n_frames: 50, sum: -1211.9658, extremes: None, last: (-0.673358, -0.673358) },
    ];
    let mel = MelSpectrogram::new(QWEN3_ASR).unwrap();
    for want in table {
        let n = want.n;
        let y = mel.compute(&synthetic(n)).unwrap();
        assert_eq!(y.n_frames, want.n_frames, "{n}");
        let at = |i_mel: usize, i_frame: usize| y.values[i_mel * y.n_frames + i_frame];
        let near = |what: &str, got: f32, want: f64| {
            assert!((f64::from(got) - want).abs() < 2e-5, "{n}: {what}: want {want}, got {got}");
        };
        // One part in a million per value, as the sum was taken of float32 values.
        let sum: f64 = y.values.iter().map(|&v| f64::from(v)).sum();
        assert!((sum - want.sum).abs() < 1e-6 * y.values.len() as f64, "{n}: sum {sum}");
        if let Some((max, min)) = want.extremes {
            near("max", y.values.iter().copied().fold(f32::MIN, f32::max), max);
            near("min", y.values.iter().copied().fold(f32::MAX, f32::min), min);
        }
        near("[127, last]", at(127, y.n_frames - 1), want.last.0);
        near("[5, last]", at(5, y.n_frames - 1), want.last.1);
        if n == 57_637 {
            for (m, t, v) in
                [(0, 0, 0.859271), (0, 1, 0.347117), (10, 0, 0.951537), (40, 7, 0.050602), (64, 20, 0.917453)]
            {
                near(&format!("[{m}, {t}]"), at(m, t), v);
            }
        }
    }
}

#[test]
fn features_do_not_depend_on_the_number_of_threads() {
    let x = synthetic(40_000);
    let mel = MelSpectrogram::new(QWEN3_ASR).unwrap();
    let with = |n| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| mel.compute(&x).unwrap())
    };
    assert!([2, 3, 8].map(with).iter().all(|y| *y == with(1)));
}

/// Clips that are not 16 kHz mono.
const RESAMPLED: [&str; 13] = [
    "timer_8k",
    "blue_book_44k_stereo",
    "music_48k_stereo",
    "radio_22k_float",
    "fsdd/digits_0_jackson",
    "fsdd/digits_2_jackson",
    "fsdd/digits_4_jackson",
    "fsdd/digits_6_lucas",
    "fsdd/digits_8_theo",
    "fsdd/single_1_theo_4",
    "fsdd/single_3_jackson_7",
    "fsdd/single_5_george_2",
    "fsdd/single_8_jackson_21",
];

/// A file's samples at 16 kHz, as the official loader prepares them.
fn load(path: &Path) -> Vec<f32> {
    let clip = decode_file(path).unwrap();
    let mut samples = audio::resample(clip.samples, clip.rate_hz, 16_000);
    audio::normalize(&mut samples);
    samples
}

/// Power of `want` over that of the difference, in dB.
fn snr_db(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let power = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let noise = power(&mut got.iter().zip(want).map(|(a, b)| a - b));
    10.0 * (power(&mut want.iter().copied()) / noise).log10()
}

#[test]
fn resampled_clips_equal_the_official_loaders() {
    for clip in RESAMPLED {
        let (dir, name) = clip.split_once('/').unwrap_or(("", clip));
        let got = load(&fixture(&format!("audio/{clip}.wav")));
        let want = load(&fixture(&format!("audio/{dir}/at16k/{name}.wav")));
        // The two filters differ only above 0.9 of the lower Nyquist frequency, where speech has little. One sample of
        // delay would leave less than 20 dB.
        let snr = snr_db(&got, &want);
        assert!(snr > 45.0, "{clip}: {snr:.1} dB");
    }
}
