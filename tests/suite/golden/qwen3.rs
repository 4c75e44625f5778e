//! Qwen3-ASR.

use std::sync::Arc;

use engine::backend::Backend;
use engine::batch::{Features, Tokens};
use engine::parallel::Serial;
use models::qwen3_asr::AudioAttention;
use serde_json::json;
use tempfile::TempDir;

use super::trained::Trained;
use super::{Golden, all_logits, backends, compare, decode, tap};
use crate::checkpoint::{copy_of, edit_config};

/// Channels-last `[n, mel, time, channels]` to `[channels, mel, time]` of the first image.
fn channels_first(values: &[f32], want: &[usize]) -> Vec<f32> {
    let [channels, mel, time] = want[..] else { panic!("want three extents") };
    let at = |c: usize, m: usize, t: usize| values[(m * time + t) * channels + c];
    (0..channels).flat_map(|c| (0..mel).flat_map(move |m| (0..time).map(move |t| at(c, m, t)))).collect()
}

/// What a clip holds beside embeddings, prompt and ids: our tap, and the fixture's name after `clip.N.`.
fn encoder_taps(clip: usize) -> Vec<(&'static str, &'static str)> {
    let mut taps = vec![("enc.stem", "stem"), ("enc.blk.0.out", "block.0"), ("enc.blk.1.out", "block.1")];
    if clip <= 16_000 {
        taps.push(("enc.conv2d3.0", "conv2d3"));
        taps.push(("enc.ln_post", "ln_post"));
    }
    taps
}

fn check_clip(gold: &Golden, backend: &Arc<dyn Backend>, clip: usize, from_waveform: bool) {
    let name = |part: &str| format!("clip.{clip}.{part}");
    let mut taps: Vec<&str> = encoder_taps(clip).iter().map(|(ours, _)| *ours).collect();
    taps.extend(["embed", "blk.0.out", "blk.1.out", "norm"]);
    let mut s = gold.session(backend, AudioAttention::Windowed, &taps);
    let stored = gold.expected(&name("features"));
    let mut features =
        models::audio::Features { n_mels: stored.shape[0], n_frames: stored.shape[1], values: stored.values };
    if from_waveform {
        let mel = models::audio::MelSpectrogram::new(models::qwen3_asr::mel_params(features.n_mels)).unwrap();
        features = mel.compute(&gold.waveform(clip), &Serial).unwrap();
    }
    let input = Features { n_mels: features.n_mels, n_frames: features.n_frames, values: &features.values };
    let embeddings = s.encode(&[input]).unwrap().clip(0).to_vec();
    if !from_waveform {
        for (ours, theirs) in encoder_taps(clip) {
            let want = gold.expected(&name(theirs));
            let mut got = tap(&s, ours);
            if theirs == "conv2d3" {
                got = channels_first(&got, &want.shape);
            }
            compare(&name(theirs), &**backend, &got[..want.values.len()], &want);
        }
        compare(&name("embeddings"), &**backend, &embeddings, &gold.expected(&name("embeddings")));
    }
    let prompt = gold.ids(&name("prompt.ids"));
    let slot = s.memory_mut().acquire().unwrap();
    let logits = all_logits(&mut s, slot, Tokens::Mixed { ids: &prompt, embeddings: &embeddings });
    if clip == 16_000 && !from_waveform {
        for (ours, theirs) in [("embed", "embed"), ("blk.0.out", "layer.0"), ("blk.1.out", "layer.1"), ("norm", "norm")]
        {
            let want = gold.expected(&name(&format!("tap.{theirs}")));
            compare(theirs, &**backend, &tap(&s, ours)[..want.values.len()], &want);
        }
    }
    if !from_waveform {
        compare(&name("prompt.logits"), &**backend, &logits, &gold.expected(&name("prompt.logits")));
    }
    let n_vocab = s.model().n_vocab();
    let (ids, rows) = decode(&mut s, slot, &logits[logits.len() - n_vocab..], 16);
    assert_eq!(ids, gold.ids(&name("decode.ids")), "clip {clip} on {}", backend.name());
    if clip == 16_000 && !from_waveform {
        compare(&name("decode.logits"), &**backend, &rows, &gold.expected(&name("decode.logits")));
    }
}

#[test]
fn qwen3_asr_matches_transformers() {
    let gold = Golden::open("qwen3_asr");
    for backend in backends() {
        for clip in [5600, 16_000, 132_977] {
            check_clip(&gold, &backend, clip, false);
        }
    }
}

#[test]
fn qwen3_asr_from_the_waveform_gives_the_same_ids() {
    let gold = Golden::open("qwen3_asr");
    for backend in backends() {
        for clip in [5600, 16_000, 132_977] {
            check_clip(&gold, &backend, clip, true);
        }
    }
}

#[test]
fn qwen3_asr_full_attention_matches_the_official_package() {
    let gold = Golden::open("qwen3_asr");
    for backend in backends() {
        let mut s = gold.session(&backend, AudioAttention::Full, &["enc.blk.1.out"]);
        let stored = gold.expected("clip.132977.features");
        let input = Features { n_mels: stored.shape[0], n_frames: stored.shape[1], values: &stored.values };
        let embeddings = s.encode(&[input]).unwrap().clip(0).to_vec();
        let want = gold.expected("clip.132977.full.block.1");
        compare("full.block.1", &*backend, &tap(&s, "enc.blk.1.out")[..want.values.len()], &want);
        compare("full.embeddings", &*backend, &embeddings, &gold.expected("clip.132977.full.embeddings"));
    }
}

/// The fixture with attention windows of `n_frames`.
fn with_window(n_frames: usize) -> (TempDir, Golden) {
    let dir = copy_of("golden/qwen3_asr");
    edit_config(&dir, |config| config["thinker_config"]["audio_config"]["n_window_infer"] = json!(n_frames));
    let gold = Golden { dir: dir.path().to_owned(), ..Golden::open("qwen3_asr") };
    (dir, gold)
}

#[test]
fn a_window_longer_than_the_clip_is_full_attention() {
    // 8.3 s: longer than the window of the releases, shorter than this one.
    let (_dir, gold) = with_window(900);
    for backend in backends() {
        let mut s = gold.session(&backend, AudioAttention::Windowed, &[]);
        let stored = gold.expected("clip.132977.features");
        let input = Features { n_mels: stored.shape[0], n_frames: stored.shape[1], values: &stored.values };
        let embeddings = s.encode(&[input]).unwrap().clip(0).to_vec();
        compare("embeddings", &*backend, &embeddings, &gold.expected("clip.132977.full.embeddings"));
    }
}

#[test]
fn a_window_is_a_pass_of_its_own() {
    // What a window is in llama.cpp, and what follows from chunks that share nothing but attention. 250: a part of a
    // chunk does not count, as in the integer division of `Qwen3ASRAudioEncoder.forward`.
    const WINDOW: usize = 200;
    let (_dir, short) = with_window(WINDOW + 50);
    let usual = Golden::open("qwen3_asr");
    let backend = backends().into_iter().find(|backend| backend.name() == "reference").unwrap();
    let stored = usual.expected("clip.132977.features");
    let [n_mels, n_frames] = stored.shape[..] else { panic!("want bands and frames") };
    let encode = |gold: &Golden, frames: std::ops::Range<usize>| {
        let bands = stored.values.chunks_exact(n_frames);
        let values: Vec<f32> = bands.flat_map(|band| &band[frames.clone()]).copied().collect();
        let mut s = gold.session(&backend, AudioAttention::Windowed, &[]);
        s.encode(&[Features { n_mels, n_frames: frames.len(), values: &values }]).unwrap().clip(0).to_vec()
    };
    let whole = encode(&short, 0..n_frames);
    let starts = (0..n_frames).step_by(WINDOW);
    let passes: Vec<f32> = starts.flat_map(|at| encode(&usual, at..n_frames.min(at + WINDOW))).collect();
    assert_eq!(whole, passes);
    assert_ne!(whole, encode(&usual, 0..n_frames));
}

/// `13 floor(L / 100) + ceil((L mod 100) / 8)` for `L` frames of a clip that is raised to half a second.
fn published_count(n_samples: usize) -> usize {
    let frames = n_samples.max(8000) / 160;
    13 * (frames / 100) + (frames % 100).div_ceil(8)
}

#[test]
fn every_clip_length_has_the_published_number_of_audio_tokens() {
    let mel = models::audio::MelSpectrogram::new(models::qwen3_asr::mel_params(128)).unwrap();
    let lengths: Vec<usize> = (1..=480_000).step_by(37).collect();
    for &n in &lengths {
        assert_eq!(models::qwen3_asr::audio_tokens(mel.n_frames(n)), published_count(n), "{n} samples");
    }
    let gold = Golden::open("qwen3_asr");
    let backend = backends().remove(0);
    let mut s = gold.session(&backend, AudioAttention::Windowed, &[]);
    for &n in lengths.iter().step_by(lengths.len() / 60) {
        let features = mel.compute(&vec![0.25; n], &Serial).unwrap();
        let input = Features { n_mels: features.n_mels, n_frames: features.n_frames, values: &features.values };
        let embeddings = s.encode(&[input]).unwrap().clip(0).to_vec();
        assert_eq!(embeddings.len(), published_count(n) * s.model().n_embd(), "{n} samples");
        assert!(embeddings.iter().all(|x| x.is_finite()), "{n} samples");
    }
}

/// Largest difference of the trained checkpoint's features.
const TRAINED_MEL: f64 = 1e-4;

fn check_trained(backend: &Arc<dyn Backend>, clip: &str) {
    let gold = Trained::open("tiny-qwen3-asr", clip);
    let mel = models::audio::MelSpectrogram::new(models::qwen3_asr::mel_params(128)).unwrap();
    let features = mel.compute(&gold.samples(), &Serial).unwrap();
    gold.compare_within("mel", &**backend, &features.values, TRAINED_MEL);

    let (s, embeddings) = gold.encode(backend, "enc.ln_post");
    let placeholder = gold.ids("prompt_ids");
    let n_audio = embeddings.len() / s.model().n_embd();
    let audio =
        placeholder.iter().copied().find(|id| placeholder.iter().filter(|i| *i == id).count() == n_audio).unwrap();
    let prompt: Vec<i32> = placeholder.iter().map(|&id| if id == audio { -1 } else { id }).collect();
    gold.check_decoder(&**backend, s, &prompt, &embeddings);
}

#[test]
fn the_trained_checkpoint_matches_transformers() {
    for backend in backends() {
        for clip in ["open_door", "long_9s"] {
            check_trained(&backend, clip);
        }
    }
}
