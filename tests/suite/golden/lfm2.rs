//! LFM2-Audio.

use std::sync::Arc;

use engine::backend::Backend;
use engine::batch::{Features, Tokens};
use engine::memory::Slot;
use engine::session::Session;
use engine::state::Role;
use models::qwen3_asr::AudioAttention;

use super::text::fixed_state;
use super::trained::Trained;
use super::{Golden, all_logits, backends, compare, decode, tap};

/// The state of the first layer's convolution.
fn compare_state(gold: &Golden, backend: &dyn Backend, s: &Session, slot: Slot, prefix: &str) {
    let name = format!("{prefix}.layer.0.conv");
    compare(&name, backend, &fixed_state(s, slot, 0, Role::Conv), &gold.expected(&name));
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
        compare_state(gold, &**backend, &s, slot, &name("state.prompt"));
        let n_vocab = s.model().n_vocab();
        let (ids, rows) = decode(&mut s, slot, &logits[logits.len() - n_vocab..], 16);
        assert_eq!(ids, gold.ids(&name("decode.ids")), "clip {clip} on {}", backend.name());
        if clip == 16_000 {
            compare(&name("decode.logits"), &**backend, &rows, &gold.expected(&name("decode.logits")));
        }
        compare_state(gold, &**backend, &s, slot, &name("state.decode"));
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
