//! Audio front end against the official loaders and extractors.

use std::f64::consts::TAU;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::parallel::Serial;
use models::audio::{self, MelParams, MelRecipe, MelSpectrogram, decode_bytes, decode_file, decode_reader};
use safetensors::{Dtype, SafeTensors};

/// The extractor of Qwen3-ASR.
const QWEN3_ASR: MelParams = MelParams {
    recipe: MelRecipe::Whisper,
    rate_hz: 16_000,
    n_fft: 400,
    win_length: 400,
    hop: 160,
    n_mels: 128,
    min_samples: 8000,
};

/// The extractor of LFM2-Audio.
const LFM2_AUDIO: MelParams = MelParams { recipe: MelRecipe::Nemo, n_fft: 512, min_samples: 1600, ..QWEN3_ASR };

/// A file of the fixtures.
pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn f32_tensor(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let t = file.tensor(name).unwrap();
    assert_eq!(t.dtype(), Dtype::F32, "{name}");
    t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Largest difference between a clip's features and the official ones.
fn mel_error(params: MelParams, samples: &[f32], want: &[f32], shape: &[usize]) -> f32 {
    let got = MelSpectrogram::new(params).unwrap().compute(samples, &Serial).unwrap();
    assert_eq!([got.n_mels, got.n_frames], shape);
    got.values.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn features_equal_the_official_ones() {
    let bytes = std::fs::read(fixture("golden/qwen3_asr/golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let waveform = pcm16(&file.tensor("waveform").unwrap());
    for n in [5600, 16_000, 132_977] {
        let name = format!("clip.{n}.features");
        let e = mel_error(QWEN3_ASR, &waveform[..n], &f32_tensor(&file, &name), file.tensor(&name).unwrap().shape());
        // These come from float64: rounding to f32 is all that is left.
        assert!(e < 1e-6, "{name}: {e:e}");
    }
    for clip in ["open_door", "long_9s"] {
        let bytes = std::fs::read(fixture(&format!("models/tiny-qwen3-asr/golden/{clip}.safetensors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let shape = file.tensor("mel").unwrap().shape().to_vec();
        let waveform = decode_file(&fixture(&format!("audio/{clip}.wav"))).unwrap().samples;
        let e = mel_error(QWEN3_ASR, &waveform, &f32_tensor(&file, "mel"), &shape);
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
        let y = mel.compute(&synthetic(n), &Serial).unwrap();
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
fn features_of_lfm2_audio_equal_the_official_ones() {
    let folder = fixture("golden/lfm2_audio");
    let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let waveform = pcm16(&file.tensor("waveform").unwrap());
    for n in [5600, 16_000, 128_777] {
        let name = format!("clip.{n}.features");
        let tensors = manifest["tensors"].as_array().unwrap();
        let stored = tensors.iter().find(|t| t["name"] == *name).unwrap();
        let number = |field: &str| stored[field].as_f64().unwrap();
        let e = mel_error(LFM2_AUDIO, &waveform[..n], &f32_tensor(&file, &name), file.tensor(&name).unwrap().shape());
        let tolerance = 20.0 * number("f32_error") + 1e-6 * number("max_abs");
        assert!(f64::from(e) < tolerance, "{name}: {e:e}, want at most {tolerance:e}");
    }
    for clip in ["open_door", "long_9s"] {
        let bytes = std::fs::read(fixture(&format!("models/tiny-lfm2-audio/golden/{clip}.safetensors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let shape = file.tensor("mel").unwrap().shape().to_vec();
        let waveform = decode_file(&fixture(&format!("audio/{clip}.wav"))).unwrap().samples;
        let e = mel_error(LFM2_AUDIO, &waveform, &f32_tensor(&file, "mel"), &shape);
        // These come from a float32 transform.
        assert!(e < 1e-4, "{clip}: {e:e}");
    }
}

/// Samples stored as 16-bit integers.
fn pcm16(waveform: &safetensors::tensor::TensorView<'_>) -> Vec<f32> {
    assert_eq!(waveform.dtype(), Dtype::I16);
    waveform.data().as_chunks().0.iter().map(|&b| f32::from(i16::from_le_bytes(b)) / 32768.0).collect()
}

/// The signal that llama.cpp tests its front end of LFM2-Audio with: three tones, silence, a quiet tone.
#[test]
fn tones_and_silence_have_the_published_features() {
    let x: Vec<f32> = (0..16_000)
        .map(|i| {
            let t = f64::from(i) / 16_000.0;
            let tone = |hz: f64| (TAU * hz * t).sin();
            let loud = 0.3 * tone(300.0) + 0.2 * tone(1200.0) + 0.1 * tone(3500.0);
            (if t < 0.4 {
                loud
            } else if t < 0.6 {
                0.0
            } else {
                1e-3 * tone(800.0)
            }) as f32
        })
        .collect();
    let y = MelSpectrogram::new(LFM2_AUDIO).unwrap().compute(&x, &Serial).unwrap();
    assert_eq!((y.n_mels, y.n_frames), (128, 101));
    for (i_mel, i_frame, want) in [
        (0, 0, 4.43272),
        (0, 99, -0.70364),
        (8, 0, 3.61036),
        (8, 39, 1.54460),
        (24, 50, -0.63713),
        (24, 60, -0.04761),
        (40, 41, 1.91390),
        (63, 80, -0.38098),
        (64, 99, -0.24894),
        (100, 20, -0.09130),
        (127, 5, -0.21472),
        (127, 99, -0.21466),
        (127, 100, 0.0),
    ] {
        // Published as computed in f64; the official code in f32 is up to 5e-5 away.
        let got = f64::from(y.values[i_mel * y.n_frames + i_frame]);
        assert!((got - want).abs() < 1e-4, "[{i_mel}][{i_frame}]: want {want}, got {got}");
    }
    assert!(y.values.chunks_exact(y.n_frames).all(|band| band[y.n_frames - 1] == 0.0));
}

#[test]
fn short_clips_are_padded_to_a_tenth_of_a_second() {
    let mel = MelSpectrogram::new(LFM2_AUDIO).unwrap();
    let x = synthetic(1600);
    for n in [1, 159, 160, 1599] {
        let padded: Vec<f32> = x[..n].iter().copied().chain(std::iter::repeat_n(0.0, 1600 - n)).collect();
        let y = mel.compute(&x[..n], &Serial).unwrap();
        assert_eq!(y, mel.compute(&padded, &Serial).unwrap(), "{n} samples");
        assert!(y.values.iter().all(|v| v.is_finite()), "{n} samples");
    }
    assert!(mel.compute(&[], &Serial).is_err());
}

#[test]
fn features_do_not_depend_on_the_number_of_threads() {
    let x = synthetic(40_000);
    for params in [QWEN3_ASR, LFM2_AUDIO] {
        let mel = MelSpectrogram::new(params).unwrap();
        let with = |n| {
            let options = backends::Options { threads: NonZeroUsize::new(n) };
            mel.compute(&x, backends::open("cpu", &options).unwrap().parallel()).unwrap()
        };
        assert!([2, 3, 8].map(with).iter().all(|y| *y == with(1)));
    }
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

/// What every file of `formats/` holds: container, codec, samples, delay in samples at 16 kHz, least SNR in dB.
///
/// Numbers of samples are those of the source, or what ffmpeg decodes where the file does not tell.
const FORMATS: [(&str, &str, &str, usize, usize, f64); 31] = [
    ("u8.wav", "wav", "pcm_u8", 13_917, 0, 25.0),
    ("s32.wav", "wav", "pcm_s32le", 13_917, 0, EXACT),
    ("f32.wav", "wav", "pcm_f32le", 13_917, 0, EXACT),
    ("f64.wav", "wav", "pcm_f64le", 4800, 0, EXACT),
    ("streamed.wav", "wav", "pcm_s16le", 13_917, 0, EXACT),
    ("mulaw.wav", "wav", "pcm_mulaw", 13_917, 0, 35.0),
    ("alaw.wav", "wav", "pcm_alaw", 13_917, 0, 35.0),
    ("adpcm_ms.wav", "wav", "adpcm_ms", 14_252, 0, 20.0),
    ("adpcm_ima.wav", "wav", "adpcm_ima_wav", 14_287, 0, 20.0),
    ("flac.flac", "flac", "flac", 13_917, 0, EXACT),
    ("flac.ogg", "ogg", "flac", 13_917, 0, EXACT),
    ("flac_pages.ogg", "ogg", "flac", 13_917, 0, EXACT),
    ("flac.mka", "mkv", "flac", 13_917, 0, EXACT),
    ("alac.m4a", "mp4", "alac", 13_917, 0, EXACT),
    ("alac.caf", "caf", "alac", 13_917, 0, EXACT),
    ("aiff.aiff", "aiff", "pcm_s16be", 13_917, 0, EXACT),
    ("sowt.aifc", "aiff", "pcm_s16le", 13_917, 0, EXACT),
    ("pcm.caf", "caf", "pcm_s16le", 13_917, 0, EXACT),
    ("pcm.mov", "mp4", "pcm_s16le", 13_917, 0, EXACT),
    ("mp3.mp3", "mp3", "mp3", 13_917, 0, 18.0),
    ("stereo_44k.mp3", "mp3", "mp3", 40_320, 401, 18.0),
    ("mp2.mp2", "mp2", "mp2", 14_976, 481, 20.0),
    ("vorbis.ogg", "ogg", "vorbis", 13_917, 0, 15.0),
    ("vorbis_pages.ogg", "ogg", "vorbis", 13_917, 0, 15.0),
    ("vorbis.webm", "mkv", "vorbis", 14_208, 0, 15.0),
    ("aac.m4a", "mp4", "aac", 14_336, 0, 30.0),
    ("with_video.mp4", "mp4", "aac", 14_336, 0, 30.0),
    ("aac_fragmented.mp4", "mp4", "aac", 15_360, 1024, 30.0),
    ("aac.aac", "adts", "aac", 15_360, 1024, 30.0),
    ("aac.mka", "mkv", "aac", 15_360, 1024, 30.0),
    ("s24_left.wav", "wav", "pcm_s24le", 13_917, 0, 6.0),
];

/// Samples equal those of the source bit for bit.
const EXACT: f64 = f64::INFINITY;

#[test]
fn every_format_is_read() {
    let source = load(&fixture("audio/yes.wav"));
    for (name, container, codec, n, delay, least_db) in FORMATS {
        let clip = decode_file(&fixture(&format!("formats/{name}"))).unwrap();
        assert_eq!((clip.container, clip.codec, clip.samples.len()), (container, codec, n), "{name}");
        assert!(clip.losses.is_empty(), "{name}");
        let got = audio::resample(clip.samples, clip.rate_hz, 16_000);
        let n = source.len().min(got.len() - delay);
        let snr = snr_db(&got[delay..][..n], &source[..n]);
        assert!(snr >= least_db, "{name}: {snr:.1} dB");
    }
}

#[test]
fn channels_are_averaged() {
    let source = load(&fixture("audio/yes.wav"));
    let half: Vec<f32> = source.iter().map(|x| x / 2.0).collect();
    assert_eq!(load(&fixture("formats/s24_left.wav")), half);
}

#[test]
fn all_clips_of_the_reference_are_read() {
    let reference = std::fs::read_to_string(fixture("audio/reference.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&reference).unwrap();
    let clips = reference["tiny-qwen3-asr"]["official"]["clips"].as_object().unwrap();
    assert_eq!(clips.len(), 29);
    for name in clips.keys() {
        let clip = decode_file(&fixture(&format!("audio/{name}"))).unwrap();
        let resampled = RESAMPLED.contains(&name.trim_end_matches(".wav"));
        assert_eq!(clip.rate_hz != 16_000, resampled, "{name}");
        assert!(clip.losses.is_empty(), "{name}");
    }
}

#[test]
fn what_cannot_be_decoded_is_named() {
    let message = |path: &str| {
        let e = engine::error::Chain(&decode_file(&fixture(path)).unwrap_err()).to_string();
        e.rsplit_once(std::path::MAIN_SEPARATOR).unwrap().1.to_string()
    };
    for container in ["ogg", "webm", "mp4"] {
        let short = container.replace("webm", "mkv");
        assert_eq!(
            message(&format!("formats/opus.{container}")),
            format!("opus.{container}: codec opus is not supported (container {short}; there is no decoder)")
        );
    }
    for (name, want) in [
        ("ac3.mka", "codec ac3 is not supported (container mkv; there is no decoder)"),
        ("ac3.mp4", "codec ac3 is not supported (container mp4; there is no decoder)"),
        ("wma.wav", "codec wma is not supported (container wav; there is no decoder)"),
        ("g726.wav", "codec g726 is not supported (container wav; there is no decoder)"),
        ("video_only.mp4", "no audio track (container mp4; tracks: video h264)"),
        ("make.sh", "not an audio file in a known format"),
        ("missing.wav", "no such file"),
    ] {
        assert_eq!(message(&format!("formats/{name}")), format!("{name}: {want}"));
    }
    assert!(message("formats").ends_with("formats: is a directory"));
}

#[test]
fn he_aac_is_refused() {
    let plain = std::fs::read(fixture("formats/aac.m4a")).unwrap();
    // AAC-LC at 16 kHz, mono, followed by "no band replication": the last byte says yes instead, to 32 kHz.
    let config = [0x14, 0x08, 0x56, 0xe5, 0x00];
    let at = plain.windows(config.len()).position(|w| w == config).unwrap();
    for (bytes, name) in [
        ([0x14, 0x08, 0x56, 0xe5, 0xa8], "he-aac"),
        // Object type 5 or 29 first: 16 kHz, mono, to 32 kHz, core of type 2.
        ([0x2c, 0x0a, 0x88, 0x00, 0x00], "he-aac"),
        ([0xec, 0x0a, 0x88, 0x00, 0x00], "he-aac v2"),
    ] {
        let mut file = plain.clone();
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        let want = format!("clip: codec {name} is not supported (container mp4; only AAC-LC is decoded)");
        assert_eq!(decode_bytes("clip", &file).unwrap_err().to_string(), want);
    }
}

/// A WAV file of 32-bit floats.
pub fn float_wav(rate_hz: u32, n_channels: u16, samples: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = samples.iter().flat_map(|x| x.to_le_bytes()).collect();
    wav(3, rate_hz, n_channels, 32, &data)
}

/// A WAV file of samples in this format.
pub fn wav(format: u16, rate_hz: u32, n_channels: u16, bits: u16, data: &[u8]) -> Vec<u8> {
    let align = n_channels.wrapping_mul(bits / 8);
    let mut file = b"RIFF".to_vec();
    file.extend((36 + data.len() as u32).to_le_bytes());
    file.extend(b"WAVEfmt ");
    file.extend(16u32.to_le_bytes());
    for half in [format, n_channels] {
        file.extend(half.to_le_bytes());
    }
    for word in [rate_hz, rate_hz.wrapping_mul(u32::from(align))] {
        file.extend(word.to_le_bytes());
    }
    for half in [align, bits] {
        file.extend(half.to_le_bytes());
    }
    file.extend(b"data");
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(data);
    file
}

#[test]
fn loud_float_files_are_scaled_to_their_peak() {
    let x: Vec<f32> = synthetic(4000).iter().map(|x| x * 3.0).collect();
    let peak = x.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(peak > 1.1);
    let clip = decode_bytes("clip", &float_wav(16_000, 1, &x)).unwrap();
    assert_eq!(clip.samples, x, "decoding does not scale");
    let mut got = clip.samples;
    audio::normalize(&mut got);
    assert!(got.iter().zip(&x).all(|(a, b)| *a == b / peak));
    let mut quiet = vec![0.25, -0.5];
    audio::normalize(&mut quiet);
    assert_eq!(quiet, [0.25, -0.5], "quiet clips are not raised");
}

#[test]
fn unusable_samples_and_rates_are_named() {
    let error = |file: &[u8]| decode_bytes("clip", file).unwrap_err().to_string();
    assert_eq!(error(b""), "clip: empty file");
    assert_eq!(error(&float_wav(16_000, 1, &[])), "clip: no samples");
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf"), (2e30, "2e30")] {
        let mut x = vec![0.5; 5000];
        x[2 * 2001 + 1] = value;
        let clip = decode_bytes("clip", &float_wav(16_000, 2, &x)).unwrap();
        let [loss] = &clip.losses[..] else { panic!("{:?}", clip.losses) };
        assert_eq!(
            (loss.what.as_str(), clip.samples[2001], clip.samples[2002]),
            ("samples that are no numbers", 0.25, 0.5)
        );
        let near = |got: f64, want: f64| (got - want / 16_000.0).abs() < 1e-9;
        assert!(near(loss.start_s, 2001.0) && near(loss.end_s, 2002.0), "{loss:?}");
        x.resize(10_000, value);
        x[2 * 2001 + 2..5000].fill(value);
        let shown = if value == 2e30 { format!("{value}") } else { shown.into() };
        assert_eq!(
            error(&float_wav(16_000, 2, &x)),
            format!("clip: sample 2001 is {shown}, want a number of at most 1e30")
        );
    }
    for rate in [0, 999, 384_001, u32::MAX] {
        assert_eq!(
            error(&float_wav(rate, 1, &[0.0; 10])),
            format!("clip: sample rate {rate} Hz, want 1000 to 384000 Hz")
        );
    }
    for channels in [0, 65, u16::MAX] {
        let message = error(&float_wav(16_000, channels, &[0.0; 70]));
        assert!(message.starts_with("clip: "), "{message}");
        assert!(!message.contains("stopped on it"), "{message}");
    }
}

#[test]
fn files_longer_than_memory_allows_are_refused() {
    // At 1000 Hz the limit holds for the samples at 16 kHz.
    let limit = audio::limits::MAX_SAMPLES / 16;
    let fits = decode_bytes("clip", &wav(1, 1000, 1, 8, &vec![128; limit])).unwrap();
    assert_eq!(fits.samples.len(), limit);
    drop(fits);
    let error = decode_bytes("clip", &wav(1, 1000, 1, 8, &vec![128; limit + 1])).unwrap_err();
    assert_eq!(error.to_string(), "clip: longer than 33554 s, the limit at its sample rate");
}

#[test]
fn unfinished_wav_files_give_what_is_there() {
    let whole = std::fs::read(fixture("audio/yes.wav")).unwrap();
    let source = load(&fixture("audio/yes.wav"));
    let data = whole.windows(4).position(|w| w == b"data").unwrap() + 4;
    let with = |riff: u32, len: u32, end: usize| {
        let mut file = whole[..end].to_vec();
        file[4..8].copy_from_slice(&riff.to_le_bytes());
        file[data..data + 4].copy_from_slice(&len.to_le_bytes());
        decode_bytes("clip", &file).unwrap()
    };
    let size = (whole.len() - data - 4) as u32;
    // Lengths that a program filled in beforehand, or never, or beyond the end.
    for (riff, len, cut_short) in [
        (0, 0, false),
        (36, 0, false),
        (u32::MAX, u32::MAX, false),
        (0, size, false),
        (100, size, false),
        (u32::MAX, 0x7fff_ff00, false),
        (size + 36, size + 8000, true),
    ] {
        let clip = with(riff, len, whole.len());
        assert_eq!(clip.samples, source, "{riff} {len}");
        assert_eq!(!clip.losses.is_empty(), cut_short, "{riff} {len}");
    }
    // A file that was cut off, within a sample.
    let clip = with(size + 36, size, whole.len() - 4001);
    assert_eq!(clip.samples, source[..source.len() - 2001]);
    assert_eq!(clip.losses.len(), 1);
    // An empty data chunk with a chunk after it is empty.
    let mut file = wav(1, 16_000, 1, 16, &[]);
    file.extend(b"LIST\x04\0\0\0INFO");
    assert_eq!(decode_bytes("clip", &file).unwrap_err().to_string(), "clip: no samples");
}

#[test]
fn files_that_were_cut_give_their_beginning() {
    for (name, cut) in [("mp3.mp3", 4000), ("aac.aac", 3000), ("flac.flac", 12_000)] {
        let whole = std::fs::read(fixture(&format!("formats/{name}"))).unwrap();
        let all = decode_bytes(name, &whole).unwrap().samples;
        let part = decode_bytes(name, &whole[..cut]).unwrap().samples;
        assert!(part.len() > all.len() / 4 && part.len() < all.len(), "{name}: {} of {}", part.len(), all.len());
        assert!(part.iter().zip(&all).take(part.len() - 1200).all(|(a, b)| a == b), "{name}");
    }
}

#[test]
fn streams_are_read_like_files() {
    let bytes = std::fs::read(fixture("formats/mp3.mp3")).unwrap();
    let from_file = decode_file(&fixture("formats/mp3.mp3")).unwrap();
    let from_stream = decode_reader("standard input", &bytes[..]).unwrap();
    assert_eq!(from_file.samples, from_stream.samples);
}

/// Random changes of a file: bytes, bits, lengths in its head, pieces taken out or put in, and its end cut off.
pub fn mutated(file: &[u8], random: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    let mut bytes = file.to_vec();
    let head = bytes.len().min(512);
    let at = random(bytes.len());
    let end = (at + random(200)).min(bytes.len());
    match random(6) {
        0 => (0..=random(8)).for_each(|_| bytes[random(file.len())] = random(256) as u8),
        1 => (0..=random(4)).for_each(|_| bytes[random(head)] ^= 1 << random(8)),
        2 => {
            let (from, value) = (random(head - 4), [0, 0x7f, 0x80, 0xff][random(4)]);
            bytes[from..from + 4].fill(value);
        }
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..end)),
        _ => {
            let noise: Vec<u8> = (at..end).map(|_| random(256) as u8).collect();
            bytes.splice(at..at, noise);
        }
    }
    bytes
}

/// Decodes mutations of a file to 16 kHz: success or an error, no panic, no hang.
fn survives(name: &str, file: &[u8], n: usize) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ file.len() as u64;
    let mut random = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % n
    };
    let mut n_read = 0;
    for i in 0..n {
        let bytes = mutated(file, &mut random);
        let start = Instant::now();
        match decode_bytes(name, &bytes) {
            Ok(clip) => {
                n_read += 1;
                let mut samples = audio::resample(clip.samples, clip.rate_hz, 16_000);
                audio::normalize(&mut samples);
                assert!(samples.iter().all(|x| (-1.0..=1.0).contains(x)), "{name}, mutation {i}");
            }
            Err(e) => {
                let message = e.to_string();
                assert!(message.starts_with(name) && message.lines().count() == 1, "{name}, mutation {i}: {message}");
            }
        }
        // A bound that only a hang or a flood of data breaks.
        assert!(start.elapsed() < Duration::from_secs(2), "{name}, mutation {i}: {:?}", start.elapsed());
    }
    println!("{name}: {n_read} of {n} mutations can be read");
}

#[test]
fn damaged_wav_files_are_errors_at_worst() {
    survives("yes.wav", &std::fs::read(fixture("audio/yes.wav")).unwrap(), 2000);
}

#[test]
fn damaged_mp3_files_are_errors_at_worst() {
    survives("mp3.mp3", &std::fs::read(fixture("formats/mp3.mp3")).unwrap(), 2000);
}

#[test]
fn damaged_files_of_all_formats_are_errors_at_worst() {
    let mut files: Vec<_> = std::fs::read_dir(fixture("formats")).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        survives(name, &std::fs::read(&path).unwrap(), 100);
    }
}

#[test]
fn noise_is_no_audio_file() {
    let mut state = 1u64;
    for i in 0..50 {
        let bytes: Vec<u8> = (0..200_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        let result = decode_bytes("noise", &bytes);
        assert!(result.is_err(), "file {i}: {:?} samples", result.map(|clip| clip.samples.len()));
    }
}

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
        let want = load(&fixture(&format!("audio/{dir}/at16k/{name}.flac")));
        // The two filters differ only above 0.9 of the lower Nyquist frequency, where speech has little. One sample of
        // delay would leave less than 20 dB.
        let snr = snr_db(&got, &want);
        assert!(snr > 45.0, "{clip}: {snr:.1} dB");
    }
}
