//! Several segments on their way to text at once: what comes of each is what comes of it alone, and is told in the order of its
//! clip, whatever becomes of the others.

use std::num::NonZeroUsize;
use std::sync::Arc;

use convert::FileType;
use engine::DType;
use engine::backend::Backend;
use engine::session::{Session, SessionOptions};
use models::audio::Audio;
use models::decoding::{Decoding, Prompt, Rules};
use models::sample::Sampling;
use models::scheduler::Scheduler;
use models::together::{Ended, Together};
use models::transcribe::{Observer, Request, Tensors, Transcriber, Transcript};
use models::{Error, LoadOptions, Loaded};
use tests::faulty::{Fault, Faulty};

use crate::checkpoint::{converted, fixture};
use crate::clips;
use crate::hybrid;

/// The small trained models.
const MODELS: [&str; 2] = ["tiny-qwen3-asr", "tiny-lfm2-audio"];
/// Formats whose products have a kernel each for few rows and for many.
const FORMATS: [FileType; 3] = [FileType::F32, FileType::Q8_0, FileType::Q4_K_M];
/// Segments at once: one number for each format, or all.
const N_PARALLEL: [usize; 3] = [8, 2, 4];

fn cpu() -> Arc<dyn Backend> {
    backends::open("cpu", &backends::Options::default()).unwrap()
}

fn load(model: &str, file_type: FileType) -> Loaded {
    let file = converted(&fixture("models").join(model), file_type);
    models::load(vec![file], LoadOptions::default()).unwrap()
}

fn transcriber(loaded: &Loaded, backend: Arc<dyn Backend>, n_parallel: usize) -> Transcriber {
    let n_parallel = NonZeroUsize::new(n_parallel).unwrap();
    Transcriber::open_parallel(loaded, &[backend], DType::F16, n_parallel).unwrap()
}

fn samples(name: &str) -> Vec<f32> {
    Audio::of_file(&fixture(name)).unwrap().samples
}

/// Clips of one segment, and three of several.
fn some_clips() -> Vec<Vec<f32>> {
    let names = ["long_24s.wav", "yes.wav", "long_9s.wav", "digits_eight.wav", "long_24s.wav", "open_door.wav"];
    names.map(|name| samples(&format!("audio/{name}"))).into()
}

/// What a clip's observer is told.
#[derive(Clone, PartialEq, Debug)]
enum Told {
    /// Of a segment, and its first logits.
    Tensors(usize, Vec<u32>),
    /// The number of segments that are finished.
    Segments(usize),
}

/// Keeps what it is told.
#[derive(Default, Debug)]
struct Witness {
    i_clip: usize,
    waits: bool,
    told: Vec<Told>,
}

impl Observer for Witness {
    fn waits_for_text(&self) -> bool {
        self.waits
    }

    fn segment(&mut self, so_far: &Transcript) {
        self.told.push(Told::Segments(so_far.segments.len()));
    }

    fn tensors(&mut self, segment: usize, tensors: &Tensors<'_>) {
        self.told.push(Told::Tensors(segment, tensors.first_logits.iter().map(|x| x.to_bits()).collect()));
    }
}

impl Witness {
    /// First logits of every segment, which came in their order.
    fn first_logits(&self) -> Vec<&[u32]> {
        let tensors = self.told.iter().filter_map(|told| match told {
            Told::Tensors(i, logits) => Some((*i, &logits[..])),
            Told::Segments(_) => None,
        });
        tensors.enumerate().map(|(want, (i, logits))| (i == want).then_some(logits).unwrap()).collect()
    }
}

/// Transcribes clips, `between` steps; in their order.
fn transcribe(
    transcriber: &mut Transcriber,
    clips: &[Vec<f32>],
    waits: bool,
    mut between: impl FnMut(&mut Together<'_, Witness>),
) -> Vec<Ended<Witness>> {
    let mut together = Together::new(transcriber);
    let mut waiting = clips.iter().enumerate();
    let mut ended = Vec::new();
    while ended.len() < clips.len() {
        if together.has_room()
            && let Some((i_clip, samples)) = waiting.next()
        {
            let transcription = together.begin(samples, &Request::default()).unwrap();
            together.add(transcription, Witness { i_clip, waits, ..Witness::default() });
        } else {
            together.step();
        }
        between(&mut together);
        ended.extend(std::iter::from_fn(|| together.ended()));
    }
    ended.sort_by_key(|ended| ended.observer.i_clip);
    ended
}

/// A transcript without what it took.
fn said(transcript: &Transcript) -> (&str, &[models::transcribe::Segment]) {
    (&transcript.text, &transcript.segments)
}

/// Calls of the session.
fn n_calls(transcriber: &Transcriber) -> u64 {
    transcriber.stats().builds + transcriber.stats().hits
}

#[test]
fn texts_ids_and_first_logits_are_those_of_one_by_one() {
    for model in MODELS {
        let names = clips::names(model);
        let mut all: Vec<Vec<f32>> = names.iter().map(|name| samples(&format!("audio/{name}"))).collect();
        all.push(samples("talk/talk.ogg"));
        let takes_all = std::env::var_os("TYMPAN_TEST_ALL").is_some_and(|value| !value.is_empty());
        for (i_format, file_type) in FORMATS.into_iter().enumerate() {
            let loaded = load(model, file_type);
            let mut alone = transcriber(&loaded, cpu(), 1);
            let want = transcribe(&mut alone, &all, true, |_| ());
            assert!(want.last().unwrap().transcript.segments.len() > 16);
            let numbers = N_PARALLEL.into_iter().enumerate().filter(|(i, _)| takes_all || *i == i_format);
            for (_, n_parallel) in numbers {
                let mut several = transcriber(&loaded, cpu(), n_parallel);
                let got = transcribe(&mut several, &all, n_parallel == 4, |_| ());
                for (i, (want, got)) in want.iter().zip(&got).enumerate() {
                    let what = format!("{model}, {file_type:?}, {n_parallel} at once, clip {i}");
                    assert!(got.result.is_ok() && want.result.is_ok(), "{what}: {:?}", got.result);
                    assert_eq!(said(&got.transcript), said(&want.transcript), "{what}");
                    assert!(got.observer.first_logits() == want.observer.first_logits(), "{what}");
                }
                let (n, n_alone) = (n_calls(&several), n_calls(&alone));
                assert!(n * 5 < n_alone * 4, "{model}, {n_parallel} at once: {n} calls, {n_alone} alone");
            }
        }
    }
}

/// Tokens that are generated of every prompt.
const N_IDS: usize = 24;

fn decoding(loaded: &Loaded, seed: u64, n_prompt: usize) -> Decoding {
    let rules = Rules {
        sampling: Sampling::default(),
        stop: Vec::new(),
        ignore_stop: true,
        max_tokens: N_IDS,
        n_usable: loaded.model.n_vocab(),
        prompt_logits: false,
    };
    Decoding::new(Prompt::of_ids(&hybrid::tokens(seed, n_prompt)), loaded.model.n_embd(), rules)
}

#[test]
fn all_logits_of_sequences_that_read_apart_are_the_same_bits_as_alone() {
    for (model, file_type) in MODELS.into_iter().flat_map(|model| FORMATS.map(|file_type| (model, file_type))) {
        let loaded = load(model, file_type);
        let run = |decodings: &[Decoding], n_slots: usize| {
            let options = SessionOptions { n_slots, n_ctx: 256, ..SessionOptions::default() };
            let session = Session::open(Arc::clone(&loaded.model), &loaded.weights, &[cpu()], options).unwrap();
            let mut scheduler = Scheduler::new(session);
            scheduler.read_apart();
            let mut waiting = decodings.iter().cloned();
            let mut logits: Vec<(_, Vec<u32>)> = Vec::new();
            let mut most = 0;
            for i_step in 0.. {
                if i_step % 5 == 0
                    && let Some(decoding) = waiting.next()
                {
                    logits.push((scheduler.submit(decoding).unwrap(), Vec::new()));
                }
                most = most.max(scheduler.n_running());
                if scheduler.n_running() == 0 {
                    break;
                }
                let step = scheduler.step(&mut |progress| {
                    let (_, all) = logits.iter_mut().find(|(id, _)| *id == progress.id).unwrap();
                    all.extend(progress.logits.iter().map(|x| x.to_bits()));
                });
                step.unwrap();
            }
            (logits.into_iter().map(|(_, bits)| bits).collect::<Vec<_>>(), most)
        };
        let decodings: Vec<Decoding> =
            [3, 40, 1, 17].into_iter().zip(10..).map(|(n, seed)| decoding(&loaded, seed, n)).collect();
        let (got, most) = run(&decodings, decodings.len());
        assert_eq!(most, decodings.len());
        for (i, decoding) in decodings.into_iter().enumerate() {
            let (want, _) = run(&[decoding], 1);
            assert_eq!(want[0].len(), N_IDS * loaded.model.n_vocab());
            assert!(got[i] == want[0], "{model}, {file_type:?}, sequence {i}");
        }
    }
}

#[test]
fn the_first_segment_has_the_model_to_itself_where_text_is_awaited() {
    let loaded = load(MODELS[0], FileType::BF16);
    let clips = [samples("talk/talk.ogg")];
    for waits in [true, false] {
        let ended = transcribe(&mut transcriber(&loaded, cpu(), 4), &clips, waits, |_| ());
        let [Ended { observer, transcript, .. }] = &ended[..] else { panic!("one clip") };
        let n_segments = transcript.segments.len();
        let finished: Vec<usize> = observer
            .told
            .iter()
            .filter_map(|told| match told {
                Told::Segments(n) => Some(*n),
                Told::Tensors(..) => None,
            })
            .collect();
        assert_eq!(finished, (1..=n_segments).collect::<Vec<_>>());
        assert_eq!(observer.first_logits().len(), n_segments);
        // How many were read when so many were finished.
        let n_read = |n: usize| {
            let before = observer.told.iter().take_while(|told| **told != Told::Segments(n));
            before.filter(|told| matches!(told, Told::Tensors(..))).count()
        };
        assert_eq!(n_read(1) == 1, waits, "{}", n_read(1));
        assert!((2..n_segments).any(|n| n_read(n) > n + 1), "company came");
    }
}

/// A fault in a call that several segments share, or in the memory of one of them, costs the company and nothing else; where a
/// segment had none, its clip fails alone, behind the segments before.
#[test]
fn what_fails_in_company_is_tried_alone() {
    let loaded = load(MODELS[0], FileType::BF16);
    let clips = some_clips();
    let want = transcribe(&mut transcriber(&loaded, cpu(), 1), &clips, false, |_| ());
    let (mut n_reduced, mut n_failed) = (0, 0);
    for fault in [Fault::BeforeRun, Fault::AfterRun, Fault::Commit] {
        for n_before in (0..60).step_by(9) {
            let faulty = Faulty::new(cpu(), |_| false);
            let mut transcriber = transcriber(&loaded, Arc::clone(&faulty) as Arc<dyn Backend>, 3);
            faulty.fail_later(fault, n_before);
            let mut is_reduced = false;
            // The second fault comes when segments have no company any more.
            let got = transcribe(&mut transcriber, &clips, false, |together| {
                if together.take_reduced().is_some() {
                    assert!(!std::mem::replace(&mut is_reduced, true));
                    if n_before % 2 == 0 {
                        faulty.fail_later(Fault::BeforeRun, 40);
                    }
                }
            });
            let failed: Vec<_> = got.iter().filter(|ended| ended.result.is_err()).collect();
            for ended in &failed {
                assert!(matches!(ended.result, Err(Error::Engine(engine::Error::Device { .. }))), "{:?}", ended.result);
                let whole = &want[ended.observer.i_clip].transcript.segments;
                assert_eq!(ended.transcript.segments, whole[..ended.transcript.segments.len()]);
            }
            for (want, got) in want.iter().zip(&got).filter(|(_, got)| got.result.is_ok()) {
                assert_eq!(said(&got.transcript), said(&want.transcript), "{fault:?} after {n_before}");
            }
            assert!(failed.len() <= 1, "{fault:?} after {n_before}: {failed:?}");
            assert!(is_reduced || failed.len() == 1 || fault == Fault::Commit, "{fault:?} after {n_before}");
            (n_reduced, n_failed) = (n_reduced + usize::from(is_reduced), n_failed + failed.len());
            faulty.fail_later(fault, usize::MAX);
            let again = transcribe(&mut transcriber, &clips, false, |_| ());
            assert!(again.iter().zip(&want).all(|(again, want)| said(&again.transcript) == said(&want.transcript)));
        }
    }
    assert!(n_reduced > 6 && n_failed > 2, "{n_reduced} went on one by one, {n_failed} failed");
}

#[test]
fn whoever_stops_in_the_middle_leaves_all_slots_free() {
    let loaded = load(MODELS[0], FileType::BF16);
    let clips = some_clips();
    let mut transcriber = transcriber(&loaded, cpu(), 4);
    let want = transcribe(&mut transcriber, &clips, false, |_| ());
    for n_steps in [0, 1, 5, 30] {
        let mut n = 0;
        let cancelled = transcribe(&mut transcriber, &clips, false, |together| {
            n += 1;
            if n > n_steps {
                together.cancel();
            }
        });
        for (cancelled, want) in cancelled.iter().zip(&want) {
            assert!(
                matches!(cancelled.result, Err(Error::Cancelled))
                    || said(&cancelled.transcript) == said(&want.transcript)
            );
        }
        // Dropped with segments that are decoded.
        let mut together = Together::new(&mut transcriber);
        let transcription = together.begin(&clips[0], &Request::default()).unwrap();
        together.add(transcription, ());
        (0..n_steps).for_each(|_| together.step());
        drop(together);
        let again = transcribe(&mut transcriber, &clips, false, |_| ());
        assert!(again.iter().zip(&want).all(|(again, want)| said(&again.transcript) == said(&want.transcript)));
    }
}
