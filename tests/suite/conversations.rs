//! Places that keep their sequence: what a prompt has in common with it is not fed again, and changes no logit.

use std::sync::Arc;

use convert::FileType;
use engine::DType;
use engine::backend::Backend;
use engine::session::{Session, SessionOptions};
use models::LoadOptions;
use models::decoding::{Decoding, Prompt, Rules};
use models::draft::{Oracle, Speculation};
use models::sample::Sampling;
use models::scheduler::{CheckpointLimits, Scheduler, Seat, Seated};
use tests::rng::Rng;
use tests::sessions::session_options;

use crate::checkpoint::{converted, fixture};
use crate::speculation::MODELS;

/// Tokens of an answer.
const N_ANSWER: usize = 6;
/// Tokens that a draft may have.
const N_DRAFT: usize = 3;

fn backend(name: &str) -> Arc<dyn Backend> {
    backends::open(name, &backends::Options::default()).unwrap()
}

fn scheduler(model: &str, backend: &Arc<dyn Backend>, n_slots: usize) -> Scheduler {
    let loaded = models::load(vec![converted(&fixture(model), FileType::F32)], LoadOptions::default()).unwrap();
    let options = SessionOptions { n_slots, n_ctx: 512, kv_dtype: DType::F32, n_pending: N_DRAFT, ..session_options() };
    let backends = std::slice::from_ref(backend);
    Scheduler::new(Session::open(loaded.model, &loaded.weights, backends, options).unwrap())
}

fn message(rng: &mut Rng) -> Vec<u32> {
    (0..3 + rng.below(6)).map(|_| 20 + u32::try_from(rng.below(60)).unwrap()).collect()
}

/// A conversation as the prompts of a chat are: messages, and where they end.
#[derive(Clone, Default)]
struct Chat {
    ids: Vec<u32>,
    ends: Vec<usize>,
}

impl Chat {
    fn say(&mut self, message: &[u32]) {
        self.ids.extend(message);
        self.ends.push(self.ids.len());
    }

    fn seat(&self, place: usize) -> Seat {
        Seat { place: Some(place), reuses: true, keeps: true, boundaries: self.ends.clone() }
    }
}

fn decoding(s: &Scheduler, ids: &[u32]) -> Decoding {
    let model = s.session().model();
    let rules = Rules {
        sampling: Sampling::default(),
        stop: Vec::new(),
        ignore_stop: true,
        max_tokens: N_ANSWER,
        n_usable: model.n_vocab(),
        prompt_logits: false,
    };
    Decoding::new(Prompt::of_ids(ids), model.n_embd(), rules)
}

/// The answer to a prompt, and the logits of all of its tokens, those of drafts not among them.
fn run(s: &mut Scheduler, seat: &Seat, ids: &[u32], drafts: Option<Speculation>) -> (Seated, Vec<u32>, Vec<f32>) {
    let n_vocab = s.session().model().n_vocab();
    let decoding = decoding(s, ids);
    let seated = s.submit_in(seat, decoding, drafts).unwrap();
    let (mut answer, mut logits) = (Vec::new(), Vec::new());
    while s.n_running() > 0 {
        let step = s.step(&mut |progress| {
            let event = progress.result.unwrap();
            answer.extend(&event.tokens);
            logits.extend_from_slice(&progress.logits[..event.tokens.len() * n_vocab]);
        });
        step.unwrap();
    }
    (seated, answer, logits)
}

/// Wrong guesses of every length, so that tokens are pending whenever a sequence ends.
fn guesses(s: &Scheduler, chat: &Chat, answer: &[u32]) -> Speculation {
    let n_vocab = u32::try_from(s.session().model().n_vocab()).unwrap();
    let prompt: Vec<i32> = chat.ids.iter().map(|id| id.cast_signed()).collect();
    let oracle = Oracle::new([&chat.ids, answer].concat(), N_DRAFT, 2.0, n_vocab);
    Speculation::with(Box::new(oracle), N_DRAFT, false, &prompt)
}

/// Squared distance by squared length.
fn error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        got.iter().zip(want).map(|(&a, &b)| f(f64::from(a), f64::from(b))).sum()
    };
    sum(&|a, b| (a - b) * (a - b)) / sum(&|_, b| b * b)
}

#[test]
fn eight_turns_are_fed_from_the_nearest_boundary_and_change_no_logit() {
    for (name, most) in [("reference", 0.0), ("cpu", 1e-10)] {
        let backend = backend(name);
        for model in MODELS {
            for n_checkpoints in [1, 2, 16] {
                let mut rng = Rng::named(model);
                let mut s = scheduler(model, &backend, 2);
                s.set_checkpoint_limits(CheckpointLimits { n: n_checkpoints, ..CheckpointLimits::default() });
                let mut fresh = scheduler(model, &backend, 1);
                let is_recurrent = s.session().memory().needs_checkpoints();
                let mut chat = Chat::default();
                chat.say(&message(&mut rng));
                let (mut n_reused, mut n_again) = (0, 0);
                for turn in 0..10 {
                    chat.say(&message(&mut rng));
                    if turn == 8 {
                        // The first turn is said another way, and everything behind it is what it was.
                        let at = chat.ends[0] + 1;
                        chat.ids[at] ^= 1;
                    }
                    let ids: Vec<i32> = chat.ids.iter().map(|id| id.cast_signed()).collect();
                    let kept = s.checkpoints(0);
                    let had = s.kept(0).unwrap_or_default();
                    let n_same = had.iter().zip(&chat.ids).take_while(|(had, id)| had == id).count();
                    let what = format!("{model} on {name}, {n_checkpoints} checkpoints, turn {turn}");
                    let before = s.shared(0, &ids);
                    let (_, want, want_logits) = run(&mut fresh, &Seat::default(), &chat.ids, None);
                    let drafts = (turn % 3 == 1).then(|| guesses(&s, &chat, &want));
                    let is_plain = drafts.is_none();
                    let (seated, got, logits) = run(&mut s, &chat.seat(0), &chat.ids, drafts);
                    assert_eq!((seated.place, seated.shared), (0, before), "{what}");
                    assert_eq!(got, want, "{what}");
                    if is_plain {
                        let error = error(&logits, &want_logits);
                        assert!(error <= most, "{what}: {error:e}");
                    }
                    // As much is fed again as lies behind the nearest boundary that was kept.
                    let shared = seated.shared;
                    assert_eq!(shared.n_common, n_same, "{what}");
                    assert!(turn != 8 || n_same == chat.ends[0] + 1, "{what}");
                    let nearest = kept.iter().copied().filter(|&at| at <= shared.n_common).max().unwrap_or(0);
                    assert!(shared.n_reused >= nearest, "{what}: {shared:?}, {kept:?}");
                    assert!(is_recurrent || shared.n_reused == shared.n_common, "{what}: {shared:?}");
                    assert!(s.checkpoints(0).len() <= if is_recurrent { n_checkpoints } else { 0 }, "{what}");
                    n_reused += shared.n_reused;
                    n_again += usize::from(shared.by_checkpoint);
                    // Sometimes the answer is not what was said: the next prompt parts from the memory before it.
                    let last = if turn % 2 == 0 { &got[..] } else { &got[..N_ANSWER / 2] };
                    chat.say(last);
                }
                assert!(n_reused > 0, "{model} on {name}");
                assert!(!is_recurrent || n_checkpoints == 1 || n_again > 2, "{model} on {name}: {n_again}");
                let counts = s.checkpoint_counts();
                assert_eq!(counts.restored, n_again as u64);
                assert!(!is_recurrent || counts.made > 3, "{counts:?}");
            }
        }
    }
}

#[test]
fn all_places_together_keep_checkpoints_within_their_bytes() {
    let mut s = scheduler("golden/mamba2", &backend("cpu"), 3);
    let one = s.session().memory().bytes_of_checkpoint();
    s.set_checkpoint_limits(CheckpointLimits { n: 8, bytes: 5 * one + one / 2 });
    let mut rng = Rng::new(4);
    let mut chats = vec![Chat::default(); 3];
    for _ in 0..40 {
        let i = rng.below(3);
        if chats[i].ids.len() > 200 {
            chats[i] = Chat::default();
        }
        chats[i].say(&message(&mut rng));
        let (_, answer, _) = run(&mut s, &chats[i].seat(i), &chats[i].ids, None);
        chats[i].say(&answer);
        let bytes = s.session().memory().checkpoint_bytes();
        assert!(bytes <= 5 * one, "{bytes}");
        assert_eq!((0..3).map(|i| s.checkpoints(i).len()).sum::<usize>() * one, bytes);
    }
    let counts = s.checkpoint_counts();
    assert!(counts.evicted > 5 && counts.made > 40, "{counts:?}");
    (0..3).for_each(|i| assert!(s.forget(i) > 0));
    let memory = s.session().memory();
    assert_eq!((memory.checkpoint_bytes(), memory.n_free()), (0, 3));
    // None fits: prompts are fed whole.
    s.set_checkpoint_limits(CheckpointLimits { n: 8, bytes: one - 1 });
    run(&mut s, &chats[0].seat(0), &chats[0].ids, None);
    assert!(s.checkpoints(0).is_empty());
}

#[test]
fn places_go_to_whoever_asks_and_the_oldest_goes_first() {
    let mut s = scheduler("golden/llama", &backend("cpu"), 2);
    let mut rng = Rng::new(5);
    let prompts: Vec<Chat> = (0..3)
        .map(|_| {
            let mut chat = Chat::default();
            chat.say(&message(&mut rng));
            chat
        })
        .collect();
    let anywhere = |chat: &Chat| Seat { place: None, ..chat.seat(0) };
    assert_eq!(run(&mut s, &anywhere(&prompts[0]), &prompts[0].ids, None).0.place, 0);
    assert_eq!(run(&mut s, &anywhere(&prompts[1]), &prompts[1].ids, None).0.place, 1);
    assert_eq!(s.oldest_kept(|_| true), Some(0));
    assert_eq!(run(&mut s, &anywhere(&prompts[2]), &prompts[2].ids, None).0.place, 0);
    assert_eq!((s.oldest_kept(|_| true), s.oldest_kept(|i| i == 0)), (Some(1), Some(0)));
    // One that is in use is not given away, nor restored into.
    let seated = s.submit_in(&prompts[0].seat(1), decoding(&s, &prompts[0].ids), None).unwrap();
    assert!(!s.is_free(1) && s.kept(1).is_none());
    assert!(s.submit_in(&prompts[1].seat(1), decoding(&s, &prompts[1].ids), None).is_err());
    let saved = s.save(0).unwrap().unwrap();
    assert!(s.restore(1, &saved).is_err() && s.save(1).unwrap().is_none());
    // Whoever leaves leaves what was fed.
    s.step(&mut |_| ()).unwrap();
    s.cancel(seated.id);
    assert_eq!(s.kept(1), Some(&*prompts[0].ids));
    // Without reuse nothing is shared, and where nothing is kept nothing is left.
    let seat = Seat { place: Some(1), ..Seat::default() };
    assert_eq!(run(&mut s, &seat, &prompts[0].ids, None).0.shared.n_reused, 0);
    assert!(s.kept(1).is_none() && s.is_free(1));
    assert!(s.submit_in(&Seat { place: Some(2), ..seat }, decoding(&s, &prompts[0].ids), None).is_err());
}

#[test]
fn saved_sequences_go_on_elsewhere_or_are_refused() {
    for model in ["golden/llama", "golden/mamba", "golden/qwen3_next"] {
        let backend = backend("cpu");
        let mut s = scheduler(model, &backend, 1);
        let mut chat = Chat::default();
        chat.say(&message(&mut Rng::new(6)));
        let (_, answer, _) = run(&mut scheduler(model, &backend, 1), &Seat::default(), &chat.ids, None);
        let drafts = guesses(&s, &chat, &answer);
        run(&mut s, &chat.seat(0), &chat.ids, Some(drafts));
        chat.say(&answer);
        chat.say(&[9, 8, 7]);
        let saved = s.save(0).unwrap().unwrap();
        let n_kept = s.kept(0).unwrap().len();
        let mut other = scheduler(model, &backend, 2);
        assert_eq!(other.restore(1, &saved).unwrap(), n_kept);
        let (seated, got, _) = run(&mut other, &chat.seat(1), &chat.ids, None);
        assert_eq!(seated.shared.n_reused, n_kept, "{model}");
        assert_eq!(got, run(&mut scheduler(model, &backend, 1), &Seat::default(), &chat.ids, None).1, "{model}");

        // Nothing that is damaged changes what a place keeps.
        let kept = other.kept(1).unwrap().to_vec();
        let mut rng = Rng::new(7);
        for _ in 0..300 {
            let mut bytes = saved.clone();
            if rng.below(2) == 0 {
                bytes.truncate(rng.below(bytes.len()));
            } else {
                let n_bits = if rng.below(2) == 0 { bytes.len() * 8 } else { 1000 };
                let bit = rng.below(n_bits);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            assert!(other.restore(1, &bytes).is_err());
            assert_eq!(other.kept(1), Some(&*kept));
        }
        assert!(scheduler("golden/llama3", &backend, 1).restore(0, &saved).is_err());
        assert!(other.restore(2, &saved).is_err());
    }
}
