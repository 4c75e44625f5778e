//! LFM2, LFM2-MoE and LFM2-Audio.

use std::sync::Arc;

use engine::backend::Backend;
use engine::batch::{Features, Tokens};
use engine::memory::Slot;
use engine::session::Session;
use engine::state::Role;
use models::qwen3_asr::AudioAttention;

use super::trained::Trained;
use super::{Golden, all_logits, backends, compare, decode, tap};

/// The state of a layer's convolution as the fixtures have it, `[channels, d_conv - 1]`.
fn conv_state(s: &Session, slot: Slot, layer: u32) -> Vec<f32> {
    let specs = s.memory().specs();
    let at = specs.iter().position(|spec| spec.layer == layer && spec.role == Role::Conv).unwrap();
    let (history, width) = (specs[at].shape.dim(0), specs[at].shape.dim(1));
    let bytes = s.memory().read_state(slot, at).unwrap();
    let value = |t: usize, c: usize| f32::from_le_bytes(bytes[(t * width + c) * 4..][..4].try_into().unwrap());
    (0..width).flat_map(|c| (0..history).map(move |t| (t, c))).map(|(t, c)| value(t, c)).collect()
}

fn compare_states(gold: &Golden, backend: &dyn Backend, s: &Session, slot: Slot, prefix: &str, layers: &[u32]) {
    for &layer in layers {
        let name = format!("{prefix}.layer.{layer}.conv");
        compare(&name, backend, &conv_state(s, slot, layer), &gold.expected(&name));
    }
}

/// Our name of a tap, and the fixture's.
fn text_taps(n_layer: usize, moe_layers: &[usize]) -> Vec<(String, String)> {
    let mut taps = vec![("embed".to_owned(), "tap.embed".to_owned()), ("norm".to_owned(), "tap.norm".to_owned())];
    for i in 0..n_layer {
        taps.push((format!("blk.{i}.out"), format!("tap.layer.{i}")));
        for part in ["mixer", "ffn"] {
            taps.push((format!("blk.{i}.{part}"), format!("tap.layer.{i}.{part}")));
        }
    }
    for i in moe_layers {
        for part in ["router.logits", "router.weights"] {
            taps.push((format!("blk.{i}.{part}"), format!("tap.layer.{i}.{part}")));
        }
    }
    taps
}

/// Logits, taps, states and continuation of a text model, the prompt fed in one piece or in several.
pub(super) fn check_text(name: &str, n_layer: usize, conv_layers: &[u32], moe_layers: &[usize]) {
    let gold = Golden::open(name);
    let prompt: Vec<u32> = gold.ids("prompt.ids").iter().map(|id| id.cast_unsigned()).collect();
    let taps = text_taps(n_layer, moe_layers);
    let mut wanted: Vec<String> = taps.iter().map(|(ours, _)| ours.clone()).collect();
    wanted.extend(moe_layers.iter().map(|i| format!("blk.{i}.router.experts")));
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    for backend in backends() {
        for ends in [&[24][..], &[1, 8, 24], &[7, 14, 21, 24]] {
            let is_whole = ends.len() == 1;
            let mut s = gold.session(&backend, AudioAttention::Windowed, if is_whole { &wanted } else { &[] });
            let slot = s.memory_mut().acquire().unwrap();
            let (mut logits, mut start) = (Vec::new(), 0);
            for &end in ends {
                logits.extend(all_logits(&mut s, slot, Tokens::Ids(&prompt[start..end])));
                start = end;
            }
            if is_whole {
                for (ours, theirs) in &taps {
                    compare(theirs, &*backend, &tap(&s, ours), &gold.expected(theirs));
                }
                for i in moe_layers {
                    let experts = tap(&s, &format!("blk.{i}.router.experts"));
                    let experts: Vec<i32> = experts.iter().map(|&e| e as i32).collect();
                    assert_eq!(experts, gold.ids(&format!("tap.layer.{i}.router.experts")), "{}", backend.name());
                }
            }
            compare("prompt.logits", &*backend, &logits, &gold.expected("prompt.logits"));
            compare_states(&gold, &*backend, &s, slot, "state.prompt", conv_layers);
            let n_vocab = s.model().n_vocab();
            let (ids, rows) = decode(&mut s, slot, &logits[logits.len() - n_vocab..], 16);
            assert_eq!(ids, gold.ids("decode.ids"), "{}", backend.name());
            compare("decode.logits", &*backend, &rows, &gold.expected("decode.logits"));
            compare_states(&gold, &*backend, &s, slot, "state.decode", conv_layers);
        }
    }
}

#[test]
fn lfm2_matches_transformers() {
    check_text("lfm2", 4, &[0, 1, 3], &[]);
}

#[test]
fn lfm2_moe_matches_transformers() {
    check_text("lfm2_moe", 3, &[0, 2], &[1, 2]);
}

/// What a clip holds of the encoder: our tap, and the fixture's name after `clip.N.`.
fn encoder_taps(clip: usize) -> Vec<(&'static str, &'static str)> {
    let mut taps = vec![("enc.stem", "pre_encode"), ("enc.blk.0.out", "block.0"), ("enc.blk.1.out", "block.1")];
    if clip == 16_000 {
        taps.extend([
            ("enc.blk.0.ff1", "block.0.ff1"),
            ("enc.blk.0.attn", "block.0.attention"),
            ("enc.blk.0.conv", "block.0.conv"),
            ("enc.blk.0.ff2", "block.0.ff2"),
        ]);
    }
    taps
}

fn check_clip(gold: &Golden, backend: &Arc<dyn Backend>, clip: usize) {
    let name = |part: &str| format!("clip.{clip}.{part}");
    let text_taps = [("embed", "embed"), ("blk.0.out", "layer.0"), ("blk.1.out", "layer.1"), ("norm", "norm")];
    let mut taps: Vec<&str> = encoder_taps(clip).iter().map(|(ours, _)| *ours).collect();
    taps.extend(text_taps.map(|(ours, _)| ours));
    let features = gold.expected(&name("features"));
    let input = Features { n_mels: features.shape[0], n_frames: features.shape[1], values: &features.values };
    let prompt = gold.ids(&name("prompt.ids"));
    for ends in [vec![prompt.len()], vec![1, 8, prompt.len()]] {
        let is_whole = ends.len() == 1;
        let mut s = gold.session(backend, AudioAttention::Windowed, &taps);
        let embeddings = s.encode(&[input]).unwrap().clip(0).to_vec();
        for (ours, theirs) in encoder_taps(clip) {
            let want = gold.expected(&name(theirs));
            compare(&name(theirs), &**backend, &tap(&s, ours)[..want.values.len()], &want);
        }
        compare(&name("embeddings"), &**backend, &embeddings, &gold.expected(&name("embeddings")));

        let slot = s.memory_mut().acquire().unwrap();
        let n_embd = s.model().n_embd();
        let (mut logits, mut start, mut vectors) = (Vec::new(), 0, &embeddings[..]);
        for end in ends {
            let ids = &prompt[start..end];
            let (now, later) = vectors.split_at(ids.iter().filter(|&&id| id == -1).count() * n_embd);
            logits.extend(all_logits(&mut s, slot, Tokens::Mixed { ids, embeddings: now }));
            (start, vectors) = (end, later);
        }
        if clip == 16_000 && is_whole {
            for (ours, theirs) in text_taps {
                let want = gold.expected(&name(&format!("tap.{theirs}")));
                compare(theirs, &**backend, &tap(&s, ours)[..want.values.len()], &want);
            }
        }
        compare(&name("prompt.logits"), &**backend, &logits, &gold.expected(&name("prompt.logits")));
        compare_states(gold, &**backend, &s, slot, &name("state.prompt"), &[0]);
        let n_vocab = s.model().n_vocab();
        let (ids, rows) = decode(&mut s, slot, &logits[logits.len() - n_vocab..], 16);
        assert_eq!(ids, gold.ids(&name("decode.ids")), "clip {clip} on {}", backend.name());
        if clip == 16_000 {
            compare(&name("decode.logits"), &**backend, &rows, &gold.expected(&name("decode.logits")));
        }
        compare_states(gold, &**backend, &s, slot, &name("state.decode"), &[0]);
    }
}

#[test]
fn lfm2_audio_matches_the_official_package() {
    let gold = Golden::open("lfm2_audio");
    for backend in backends() {
        for clip in [5600, 16_000, 128_777] {
            check_clip(&gold, &backend, clip);
        }
    }
}

fn check_trained(backend: &Arc<dyn Backend>, clip: &str) {
    let gold = Trained::open("tiny-lfm2-audio", clip);
    let (s, embeddings) = gold.encode(backend, "enc.blk.3.out");
    // The flags say where the audio stands among the ids of the text.
    let mut text = gold.ids("prompt_ids").into_iter();
    let flags = gold.ids("modality_flag");
    let prompt: Vec<i32> = flags.iter().map(|&flag| if flag == 1 { text.next().unwrap() } else { -1 }).collect();
    gold.check_decoder(&**backend, s, &prompt, &embeddings);
}

#[test]
fn the_trained_lfm2_audio_matches_the_official_package() {
    for backend in backends() {
        for clip in ["open_door", "long_9s"] {
            check_trained(&backend, clip);
        }
    }
}
