//! What company costs: `cargo bench -p tests --bench ragged -- TEXT.gguf [SPEECH.gguf [MMPROJ.gguf]]`.
//!
//! - a step of one prompt of 256 tokens beside seven sequences of one token, against the two in calls of their own
//! - with a speech model, clips of 3 and 30 seconds in one call of the encoder, against a call each
//!
//! Both ways take turns; what is printed is the median of the ratios together / apart, with both quartiles. Files with random
//! weights will do: `tympan convert synth:qwen3-0.6b --type q8_0 -o DIR`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::batch::{Batch, Features, Rows, Sequence, Tokens};
use engine::gguf::Gguf;
use engine::memory::Slot;
use engine::session::{Session, SessionOptions};
use models::LoadOptions;

/// Measured pairs.
const ROUNDS: usize = 15;
/// Tokens of the prompt.
const N_PROMPT: usize = 256;
/// Sequences that decode beside it.
const N_DECODE: usize = 7;
/// Positions that each of them has seen.
const N_PAST: usize = 64;
/// Frames of the clips.
const CLIPS: [usize; 2] = [300, 3000];

fn session(files: Vec<Gguf>, text_only: bool) -> Session {
    let loaded = models::load(files, LoadOptions { text_only, ..LoadOptions::default() }).expect("a model");
    let backend = backends::open("cpu", &backends::Options::default()).expect("threads start");
    let options = SessionOptions { n_slots: N_DECODE + 1, n_ctx: 1024, ..SessionOptions::default() };
    Session::open(Arc::clone(&loaded.model), &loaded.weights, &[backend], options).expect("memory suffices")
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Median and quartiles of the ratios of pairs that take turns, after one that is not counted.
fn compare(what: &str, mut pair: impl FnMut() -> [Duration; 2]) {
    pair();
    let mut pairs: Vec<[f64; 2]> = (0..ROUNDS).map(|_| pair().map(|d| d.as_secs_f64() * 1e3)).collect();
    pairs.sort_by(|a, b| (a[0] / a[1]).total_cmp(&(b[0] / b[1])));
    let ratio = |i: usize| pairs[(ROUNDS - 1) * i / 4][0] / pairs[(ROUNDS - 1) * i / 4][1];
    let [together, apart] = pairs[(ROUNDS - 1) / 2];
    println!("{what}: {together:.1} ms / {apart:.1} ms = {:.3} ({:.3} to {:.3})", ratio(2), ratio(1), ratio(3));
}

fn steps(s: &mut Session) {
    let prompt: Vec<u32> = (0..N_PROMPT as u32).map(|i| 100 + i * 7).collect();
    let slots: Vec<Slot> = (0..=N_DECODE).map(|_| s.memory_mut().acquire().expect("a slot each")).collect();
    let (first, others) = slots.split_first().expect("slots");
    for &slot in others {
        s.feed(slot, Tokens::Ids(&prompt[..N_PAST])).expect("there is room");
    }
    let sequence = |slot, ids| Sequence { slot, tokens: Tokens::Ids(ids), rows: Rows::Last };
    let decode: Vec<Sequence<'_>> = others.iter().map(|&slot| sequence(slot, &prompt[..1])).collect();
    let prefill = [sequence(*first, &prompt[..])];
    let all = [&prefill[..], &decode].concat();
    compare(&format!("{N_PROMPT} tokens of a prompt beside {N_DECODE} sequences"), || {
        let mut step = |seqs: &[Sequence<'_>]| {
            std::hint::black_box(s.step(&Batch { seqs }).expect("there is room"));
        };
        let together = timed(|| step(&all));
        let apart = timed(|| step(&decode));
        s.memory_mut().rewind(*first, 0).expect("a sequence");
        let mut step = |seqs: &[Sequence<'_>]| {
            std::hint::black_box(s.step(&Batch { seqs }).expect("there is room"));
        };
        let apart = apart + timed(|| step(&prefill));
        s.memory_mut().rewind(*first, 0).expect("a sequence");
        [together, apart]
    });
}

fn clips(s: &mut Session) {
    let n_mels = s.model().encoder().expect("a speech model").n_mels;
    let wave = |i: usize| (i as f32 * 0.37).sin();
    let values: Vec<Vec<f32>> = CLIPS.iter().map(|n| (0..n_mels * n).map(wave).collect()).collect();
    let clip = |i: usize| Features { n_mels, n_frames: CLIPS[i], values: &values[i] };
    compare("clips of 3 and 30 s", || {
        let mut encode = |clips: &[Features<'_>]| {
            timed(|| {
                std::hint::black_box(s.encode(clips).expect("it fits"));
            })
        };
        [encode(&[clip(0), clip(1)]), encode(&[clip(0)]) + encode(&[clip(1)])]
    });
}

fn main() {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).filter(|p| p.exists()).collect();
    let open = |path: &PathBuf| Gguf::open(path).unwrap_or_else(|e| panic!("{e}"));
    let Some((text, speech)) = paths.split_first() else {
        println!("no model was given: see the first lines of the source");
        return;
    };
    steps(&mut session(vec![open(text)], true));
    if !speech.is_empty() {
        clips(&mut session(speech.iter().map(open).collect(), false));
    }
}
