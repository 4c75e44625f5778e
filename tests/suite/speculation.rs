//! Speculative decoding is invisible: whatever drafters guess, a text is what it is without them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use convert::FileType;
use engine::DType;
use engine::backend::Backend;
use engine::batch::{Batch, Rows, Sequence, Tokens};
use engine::gguf::Gguf;
use engine::memory::Slot;
use engine::session::{Session, SessionOptions};
use models::LoadOptions;
use models::decoding::{Decoding, Prompt, Rules};
use models::draft::model::DraftModel;
use models::draft::{
    Drafter, Drafters, Kind, Limits, NgramSizes, Oracle, Outcome, Parameters, Shared, Speculation, Statistics,
};
use models::generate::{End, Generator, Request};
use models::sample::Sampling;
use models::scheduler::{Rollback, Scheduler, SequenceId};
use models::tokenizer::Tokenizer;
use tests::draft::Draft;
use tests::rng::Rng;
use tests::sessions::session_options;

use crate::checkpoint::{converted, fixture};

/// Tokens of every text.
const N_TOKENS: usize = 64;
/// Every drafter must have so many tokens verified, and one of them rejected: else a cell says nothing.
const N_VERIFIED: u64 = 20;

/// Every architecture of language models: attention alone, then with recurrent states.
pub const MODELS: [&str; 13] = [
    "golden/llama",
    "golden/llama3",
    "golden/qwen3",
    "golden/lfm2",
    "golden/lfm2_moe",
    "golden/mamba",
    "golden/mamba2",
    "golden/jamba",
    "golden/granitemoehybrid",
    "golden/granitemoehybrid_moe",
    "golden/qwen3_next",
    "golden/qwen3_5",
    "golden/qwen3_5_moe",
];
/// One of every kind of recurrent state, and attention.
const KINDS: [&str; 5] = ["golden/llama", "golden/lfm2", "golden/mamba", "golden/mamba2", "golden/qwen3_next"];
/// Longest guess.
const MOST: usize = 48;

fn file(name: &str) -> Gguf {
    converted(&fixture(name), FileType::F32)
}

fn backend(name: &str) -> Arc<dyn Backend> {
    backends::open(name, &backends::Options::default()).unwrap()
}

fn session(file: &Gguf, n_slots: usize, backend: &Arc<dyn Backend>) -> Session {
    let loaded = models::load(vec![file.clone()], LoadOptions::default()).unwrap();
    let options = SessionOptions { n_slots, n_ctx: 256, kv_dtype: DType::F32, n_pending: MOST, ..session_options() };
    Session::open(loaded.model, &loaded.weights, std::slice::from_ref(backend), options).unwrap()
}

/// A prompt of tokens that repeat, so that n-gram drafters have something to say.
fn prompt(seed: u64, n: usize) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    let part: Vec<u32> = (0..5).map(|_| 20 + u32::try_from(rng.below(8)).unwrap()).collect();
    part.iter().copied().cycle().take(n).collect()
}

fn greedy() -> Sampling {
    Sampling::default()
}

fn drawn() -> Sampling {
    Sampling { temperature: 0.7, top_k: 4, repetition_penalty: 1.05, seed: 9, ..Sampling::default() }
}

fn decoding(s: &Session, prompt: &[u32], sampling: Sampling, max_tokens: usize) -> Decoding {
    let model = s.model();
    let n_usable = model.n_vocab();
    let rules = Rules { sampling, stop: Vec::new(), ignore_stop: true, max_tokens, n_usable, prompt_logits: false };
    Decoding::new(Prompt::of_ids(prompt), model.n_embd(), rules)
}

fn ids_of(prompt: &[u32]) -> Vec<i32> {
    prompt.iter().map(|id| id.cast_signed()).collect()
}

/// The text after a prompt, and what came of the drafts.
fn run(
    s: &mut Scheduler,
    prompt: &[u32],
    sampling: Sampling,
    speculation: Option<Speculation>,
) -> (Vec<u32>, Option<Statistics>) {
    let mut ids = Vec::new();
    let decoding = decoding(s.session(), prompt, sampling, N_TOKENS);
    let statistics = s.run_with(decoding, speculation, &mut |event, _| {
        ids.extend(&event.tokens);
        ControlFlow::Continue(())
    });
    (ids, statistics.unwrap())
}

/// Guesses of at most `k` tokens, by as few tokens as possible, so that texts of these models give drafts.
fn parameters(kind: Kind, k: usize) -> Parameters {
    let sizes = NgramSizes { n: 1, m: k, min_hits: 1 };
    Parameters {
        kinds: vec![kind],
        simple: sizes,
        map_k: sizes,
        map_k4v: NgramSizes { n: 1, m: 1, min_hits: 1 },
        mod_n: 1,
        modular: Limits { min: 1, max: k },
        cache_max: k,
        suffix: sizes,
        model: Limits { min: 0, max: k },
        adapts: false,
        ..Parameters::default()
    }
}

/// The same model without one of its parts: it is often right.
fn weaker(file: &Gguf) -> Gguf {
    let mut draft = Draft::of(file);
    let is_part = |name: &str| name.starts_with("blk.0.") && (name.contains("ffn_down") || name.contains("ssm_out"));
    draft.tensors.iter_mut().filter(|t| is_part(&t.name)).for_each(|t| t.bytes.fill(0));
    draft.in_memory()
}

fn shared(kind: Kind, file: &Gguf, n: usize) -> Shared {
    let mut shared = Shared::default();
    if kind == Kind::DraftModel {
        let loaded = models::load(vec![weaker(file)], LoadOptions::default()).unwrap();
        let target = Tokenizer::from_gguf(file).unwrap();
        let model = DraftModel::open(&loaded, &target, &[backend("cpu")], DType::F32, n).unwrap();
        shared.model = Some(Arc::new(model));
    }
    shared
}

/// Ids with drafts are ids without, for every drafter, model and way to choose tokens.
#[test]
fn drafters_are_invisible() {
    let mut n_accepted = 0;
    for (i_model, name) in MODELS.into_iter().enumerate() {
        let file = file(name);
        let mut plain = Scheduler::new(session(&file, 1, &backend("cpu")));
        let mut scheduler = Scheduler::new(session(&file, 1, &backend("cpu")));
        // Every drafter and every model meets all lengths.
        let lengths = [1, 2, 7, MOST].into_iter().cycle().skip(i_model);
        let cells = Kind::ALL.into_iter().zip(lengths);
        for (kind, k, sampling) in cells.flat_map(|(kind, k)| [(kind, k, greedy()), (kind, k, drawn())]) {
            let drafters = Drafters::new(parameters(kind, k), shared(kind, &file, 1)).unwrap();
            let (mut verified, mut accepted) = (0, 0);
            // As many texts as it takes to have seen enough, and wrong guesses too.
            for seed in 1..=400 {
                let prompt = prompt(seed, 40);
                let (want, _) = run(&mut plain, &prompt, sampling, None);
                let speculation = drafters.speculation(&ids_of(&prompt)).unwrap();
                let (got, statistics) = run(&mut scheduler, &prompt, sampling, Some(speculation));
                let statistics = statistics.unwrap();
                assert_eq!(got, want, "{} of {k} on {name}, {sampling:?}: {statistics}", kind.name());
                assert_eq!(statistics.emitted, N_TOKENS as u64);
                verified += statistics.verified;
                accepted += statistics.accepted;
                if verified >= N_VERIFIED && accepted < verified {
                    break;
                }
            }
            let cell = format!("{} of {k} on {name}, {sampling:?}: {accepted} of {verified}", kind.name());
            assert!(verified >= N_VERIFIED && accepted < verified, "{cell}");
            n_accepted += accepted;
        }
    }
    assert!(n_accepted > 100, "{n_accepted} accepted");
}

/// What an [`Adversary`] does.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    Never,
    /// From this position of a guess on.
    From(usize),
    /// Every other guess is wrong altogether.
    Alternating,
    /// Many more tokens than were asked for.
    TooLong,
}

/// Knows the text.
struct Adversary {
    text: Vec<u32>,
    k: usize,
    fault: Fault,
    n_guesses: usize,
    n_vocab: u32,
}

impl Drafter for Adversary {
    fn begin(&mut self, _: &[u32]) {}

    fn draft(&mut self, history: &[u32], max: usize, guess: &mut Vec<u32>) {
        self.n_guesses += 1;
        let n = if self.fault == Fault::TooLong { 10 * max } else { self.k };
        let known = self.text[history.len()..].iter().copied().chain(std::iter::repeat(1)).take(n);
        let from = match self.fault {
            Fault::Never | Fault::TooLong => n,
            Fault::From(from) => from,
            Fault::Alternating if self.n_guesses.is_multiple_of(2) => 0,
            Fault::Alternating => n,
        };
        guess.extend(known.enumerate().map(|(i, id)| if i < from { id } else { (id + 1) % self.n_vocab }));
    }

    fn judged(&mut self, outcome: Outcome) {
        assert!(outcome.verified <= self.k && outcome.accepted <= outcome.verified);
    }
}

/// Steps all sequences to their ends.
fn run_all(s: &mut Scheduler, order: &[SequenceId]) -> Vec<Vec<u32>> {
    let mut ids: BTreeMap<SequenceId, Vec<u32>> = BTreeMap::new();
    while s.n_running() > 0 {
        s.step(&mut |progress| ids.entry(progress.id).or_default().extend(&progress.result.unwrap().tokens)).unwrap();
    }
    order.iter().map(|id| ids.remove(id).unwrap()).collect()
}

fn adversaries() -> Vec<(usize, Fault)> {
    let mut all = Vec::new();
    for k in [1, 2, 7, 48] {
        all.extend([Fault::Never, Fault::Alternating, Fault::TooLong].map(|fault| (k, fault)));
        all.extend((0..k).filter(|&i| k < 48 || i % 9 == 0).map(|i| (k, Fault::From(i))));
    }
    all
}

/// One to four sequences with guesses of other lengths and other faults, on one session.
#[test]
fn adversaries_change_no_text() {
    for (name, sampling) in KINDS.into_iter().flat_map(|name| [(name, greedy()), (name, drawn())]) {
        let mut scheduler = Scheduler::new(session(&file(name), 4, &backend("cpu")));
        let prompts: Vec<Vec<u32>> = (1..=4).map(|seed| prompt(seed, 6)).collect();
        let want: Vec<Vec<u32>> = prompts.iter().map(|p| run(&mut scheduler, p, sampling, None).0).collect();
        let all = adversaries();
        for (i, _) in all.iter().enumerate() {
            let n_seqs = 1 + i % 4;
            let mut order = Vec::new();
            for j in 0..n_seqs {
                let (k, fault) = all[(i + 5 * j) % all.len()];
                let text = [&prompts[j][..], &want[j]].concat();
                let n_vocab = u32::try_from(scheduler.session().model().n_vocab()).unwrap();
                let adversary = Adversary { text, k, fault, n_guesses: 0, n_vocab };
                let speculation = Speculation::with(Box::new(adversary), k, false, &ids_of(&prompts[j]));
                let decoding = decoding(scheduler.session(), &prompts[j], sampling, N_TOKENS);
                order.push(scheduler.submit_with(decoding, Some(speculation)).unwrap());
            }
            assert_eq!(run_all(&mut scheduler, &order), want[..n_seqs], "{name}, {i}: {:?}, {sampling:?}", all[i]);
        }
    }
}

/// What is right of a guess is fed again, from states that were copied before, or that are in another row: the texts are the same,
/// for one and several sequences.
fn replays_change_no_text(rollback: Rollback) {
    let mut n_replays = 0;
    for (name, sampling) in MODELS[3..].iter().flat_map(|name| [(name, greedy()), (name, drawn())]) {
        let loaded = models::load(vec![file(name)], LoadOptions::default()).unwrap();
        let options = SessionOptions {
            n_slots: 4,
            n_ctx: 256,
            kv_dtype: DType::F32,
            two_rows: rollback.two_rows(),
            ..session_options()
        };
        let session = Session::open(loaded.model, &loaded.weights, &[backend("cpu")], options).unwrap();
        let n_vocab = u32::try_from(session.model().n_vocab()).unwrap();
        let mut scheduler = Scheduler::new(session);
        scheduler.set_rollback(rollback);
        let prompts: Vec<Vec<u32>> = (1..=4).map(|seed| prompt(seed, 6)).collect();
        let want: Vec<Vec<u32>> = prompts.iter().map(|p| run(&mut scheduler, p, sampling, None).0).collect();
        let faults = [Fault::Never, Fault::From(0), Fault::From(1), Fault::Alternating, Fault::From(5), Fault::TooLong];
        for (i, n_seqs) in [1, 2, 4].into_iter().enumerate() {
            let mut order = Vec::new();
            for j in 0..n_seqs {
                let (k, fault) = ([7, 2, 1, 48][j], faults[(3 * i + 2 * j) % faults.len()]);
                let text = [&prompts[j][..], &want[j]].concat();
                let adversary = Adversary { text, k, fault, n_guesses: 0, n_vocab };
                let speculation = Speculation::with(Box::new(adversary), k, false, &ids_of(&prompts[j]));
                let decoding = decoding(scheduler.session(), &prompts[j], sampling, N_TOKENS);
                order.push(scheduler.submit_with(decoding, Some(speculation)).unwrap());
            }
            let mut ids: BTreeMap<SequenceId, Vec<u32>> = BTreeMap::new();
            let mut last = BTreeMap::new();
            while scheduler.n_running() > 0 {
                let step = scheduler.step(&mut |progress| {
                    ids.entry(progress.id).or_default().extend(&progress.result.unwrap().tokens);
                    last.insert(progress.id, *progress.statistics.unwrap());
                });
                step.unwrap();
            }
            let got: Vec<Vec<u32>> = order.iter().map(|id| ids.remove(id).unwrap()).collect();
            assert_eq!(got, want[..n_seqs], "{name}, {n_seqs} sequences, {sampling:?}");
            for statistics in last.values() {
                let undone = &statistics.undone;
                assert!(!undone.save.is_zero() && statistics.verified > 0, "{name}: {statistics}");
                assert_eq!(undone.replays > 0, !undone.replay.is_zero());
                n_replays += undone.replays;
            }
            assert_eq!(scheduler.session().memory().checkpoint_bytes(), 0, "copies go with their sequences");
        }
    }
    assert!(n_replays > 500, "{n_replays}");
}

#[test]
fn copied_states_change_no_text() {
    replays_change_no_text(Rollback::Checkpoint { n_tries: 2 });
}

#[test]
fn states_in_two_rows_change_no_text() {
    replays_change_no_text(Rollback::Row { n_tries: 2 });
}

/// Where states have two rows, a sequence goes back to where it was before its last call, bit for bit, and to nowhere else.
#[test]
fn a_second_row_holds_what_was_before_the_last_call() {
    let mut rng = Rng::new(8);
    let ids: Vec<u32> = (0..30).map(|_| u32::try_from(rng.below(300)).unwrap()).collect();
    let feed = |s: &mut Session, slot: Slot, ids: &[u32]| -> Vec<u32> {
        s.feed(slot, Tokens::Ids(ids)).unwrap().iter().map(|x| x.to_bits()).collect()
    };
    for name in &MODELS[3..] {
        let loaded = models::load(vec![file(name)], LoadOptions::default()).unwrap();
        let open = |two_rows| {
            let options = SessionOptions { n_slots: 2, n_ctx: 64, kv_dtype: DType::F32, two_rows, ..session_options() };
            Session::open(Arc::clone(&loaded.model), &loaded.weights, &[backend("cpu")], options).unwrap()
        };
        let (mut plain, mut s) = (open(false), open(true));
        let slot = plain.memory_mut().acquire().unwrap();
        feed(&mut plain, slot, &ids[..10]);
        let before = plain.snapshot(slot).unwrap();
        let one = feed(&mut plain, slot, &ids[10..14]);
        plain.restore(slot, &before).unwrap();
        let other = feed(&mut plain, slot, &ids[20..22]);

        let slot = s.memory_mut().acquire().unwrap();
        feed(&mut s, slot, &ids[..10]);
        assert_eq!(feed(&mut s, slot, &ids[10..14]), one, "{name}");
        assert_eq!([13, 10, 9].map(|at| s.memory().reachable(slot, at).unwrap()), [10, 10, 0], "{name}");
        assert!(s.memory_mut().rewind(slot, 12).is_err());
        s.memory_mut().rewind(slot, 10).unwrap();
        assert_eq!(feed(&mut s, slot, &ids[20..22]), other, "{name}");
        s.memory_mut().rewind(slot, 10).unwrap();
        assert_eq!(s.snapshot(slot).unwrap(), before, "{name}");
        assert_eq!(s.memory().reachable(slot, 9).unwrap(), 0, "one call at most");
        let copy = s.memory_mut().acquire().unwrap();
        s.memory_mut().copy(slot, copy).unwrap();
        assert_eq!(feed(&mut s, copy, &ids[10..14]), one, "{name}, copied");
        assert_eq!(feed(&mut s, slot, &ids[20..22]), other, "{name}, beside a copy");
        s.restore(slot, &before).unwrap();
        assert_eq!(feed(&mut s, slot, &ids[10..14]), one, "{name}, restored");
        let [two, one] = [&s, &plain].map(|s| s.memory().bytes());
        assert_eq!(two - 2 * one, 2 * s.memory().bytes_of_checkpoint(), "{name}");
    }
}

/// Tokens that a drafter had ready, and that the model had to give one by one: two of eight can be taken back, or guesses that
/// were wrong are given up and followed by pauses.
#[test]
fn tokens_that_were_known_and_not_proposed_are_counted() {
    let loaded = models::load(vec![file("golden/mamba")], LoadOptions::default()).unwrap();
    let prompt = prompt(1, 6);
    let mut want = Vec::new();
    for (rollback, k, fault, counts) in [
        // One token comes with the prompt, then 21 steps of three: all but the last have one more that was known.
        (Rollback::Ring, 8, Fault::Never, [21, 42, 42, 20]),
        // Pauses of 2, 4, 8, 16 and 32 steps whose tokens were known, a verification before each, and the text's last token.
        (Rollback::Checkpoint { n_tries: 0 }, 3, Fault::From(1), [68, 15, 0, 62]),
        (Rollback::Row { n_tries: 0 }, 3, Fault::From(1), [68, 15, 0, 62]),
    ] {
        let (n_pending, two_rows) = (rollback.n_pending(2), rollback.two_rows());
        let options = SessionOptions { n_ctx: 256, kv_dtype: DType::F32, n_pending, two_rows, ..session_options() };
        let session = Session::open(Arc::clone(&loaded.model), &loaded.weights, &[backend("cpu")], options).unwrap();
        let n_vocab = u32::try_from(session.model().n_vocab()).unwrap();
        let mut scheduler = Scheduler::new(session);
        scheduler.set_rollback(rollback);
        if want.is_empty() {
            want = run(&mut scheduler, &prompt, greedy(), None).0;
        }
        let adversary = Adversary { text: [&prompt[..], &want].concat(), k, fault, n_guesses: 0, n_vocab };
        let speculation = Speculation::with(Box::new(adversary), k, false, &ids_of(&prompt));
        let (got, statistics) = run(&mut scheduler, &prompt, greedy(), Some(speculation));
        let statistics = statistics.unwrap();
        assert_eq!(got, want, "{rollback:?}");
        let Statistics { steps, verified, accepted, missed, .. } = statistics;
        assert_eq!([steps, verified, accepted, missed], counts, "{rollback:?}: {statistics}");
    }
}

/// The last token takes the last position, and guesses do not reach behind it.
#[test]
fn a_full_context_is_filled_to_its_last_position() {
    for name in KINDS {
        let file = file(name);
        let open = || Scheduler::new(session(&file, 1, &backend("cpu")));
        let prompt = prompt(3, 192);
        let (want, _) = run(&mut open(), &prompt, greedy(), None);
        for (k, fault) in [(7, Fault::Never), (7, Fault::From(3)), (48, Fault::TooLong)] {
            let mut scheduler = open();
            let text = [&prompt[..], &want].concat();
            let adversary = Adversary { text, k, fault, n_guesses: 0, n_vocab: 300 };
            let speculation = Speculation::with(Box::new(adversary), k, false, &ids_of(&prompt));
            assert_eq!(run(&mut scheduler, &prompt, greedy(), Some(speculation)).0, want);
            assert_eq!(scheduler.session().memory().n_ctx(), 256, "no more positions than the text has");
        }
    }
}

/// Sequences that are cancelled between a verification and the next step leave nothing behind.
#[test]
fn an_abort_between_steps_frees_its_slot_and_harms_nobody() {
    for name in KINDS {
        let file = file(name);
        let mut scheduler = Scheduler::new(session(&file, 2, &backend("cpu")));
        let prompts = [prompt(1, 6), prompt(2, 9)];
        let want: Vec<Vec<u32>> = prompts.iter().map(|p| run(&mut scheduler, p, greedy(), None).0).collect();
        for n_steps in 1..6 {
            let mut order = Vec::new();
            for (prompt, want) in prompts.iter().zip(&want) {
                let text = [&prompt[..], want].concat();
                let adversary = Adversary { text, k: 5, fault: Fault::From(n_steps % 4), n_guesses: 0, n_vocab: 300 };
                let speculation = Speculation::with(Box::new(adversary), 5, false, &ids_of(prompt));
                let decoding = decoding(scheduler.session(), prompt, greedy(), N_TOKENS);
                order.push(scheduler.submit_with(decoding, Some(speculation)).unwrap());
            }
            let mut ids = Vec::new();
            for _ in 0..n_steps {
                let step = scheduler.step(&mut |progress| {
                    if progress.id == order[1] {
                        ids.extend(&progress.result.unwrap().tokens);
                    }
                });
                step.unwrap();
            }
            scheduler.cancel(order[0]);
            assert_eq!(scheduler.session().memory().n_free(), 1);
            ids.extend(run_all(&mut scheduler, &order[1..]).remove(0));
            assert_eq!(ids, want[1], "after {n_steps} steps");
        }
    }
}

/// A stop text in the middle of accepted tokens ends the text where it does without them.
#[test]
fn stop_texts_end_accepted_runs() {
    let file = converted(&fixture("models/tiny-qwen3-asr"), FileType::F32);
    let options = LoadOptions { text_only: true, ..LoadOptions::default() };
    let loaded = models::load(vec![file], options).unwrap();
    let mut generator = Generator::open(&loaded, &[backend("cpu")], DType::F16).unwrap();
    let prompt = generator.writer().prompt("turn the");
    let sampling = Sampling { temperature: 1.6, seed: 11, ..Sampling::default() };
    let request =
        Request { prompt: &prompt, max_tokens: 24, sampling, ignore_stop: true, stop: &[], prompt_logits: false };
    let whole = generator.generate(&request, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let places: Vec<usize> = whole.text.char_indices().map(|(at, _)| at).collect();
    let mut n_cut = 0;
    for &from in places.iter().skip(4).step_by(7) {
        let stop = [whole.text[from..].chars().take(2).collect::<String>()];
        let request = Request { stop: &stop, ..request };
        let want = generator.generate(&request, &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(want.end, End::Text(stop[0].clone()));
        let mut with = Generator::open(&loaded, &[backend("cpu")], DType::F16).unwrap();
        // The same prompt twice: the second time the text is known.
        let parameters = Parameters { kinds: vec![Kind::NgramCache], adapts: false, ..Parameters::default() };
        with.set_drafters(Drafters::new(parameters, Shared::default()).unwrap()).unwrap();
        for _ in 0..4 {
            with.generate(&Request { stop: &[], ..request }, &mut |_, _| ControlFlow::Continue(())).unwrap();
        }
        let got = with.generate(&request, &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!((&got.ids, &got.text, &got.end), (&want.ids, &want.text, &want.end), "{stop:?}");
        let statistics = got.speculation.unwrap();
        assert!(statistics.accepted > 0, "{stop:?}: {statistics}");
        n_cut += statistics.cut;
    }
    assert!(n_cut > 0);
}

/// Lengths that follow success and cost change no text either, and an oracle saves the steps that it was made for.
#[test]
fn oracles_and_lengths_that_adapt() {
    let file = file("golden/qwen3");
    let mut scheduler = Scheduler::new(session(&file, 1, &backend("cpu")));
    let prompt = prompt(5, 8);
    let (want, _) = run(&mut scheduler, &prompt, drawn(), None);
    let oracle = |mean| Box::new(Oracle::new([&prompt[..], &want].concat(), 4, mean, 304));
    let (got, statistics) =
        run(&mut scheduler, &prompt, drawn(), Some(Speculation::with(oracle(4.0), 4, false, &ids_of(&prompt))));
    let statistics = statistics.unwrap();
    assert_eq!(got, want);
    assert_eq!((statistics.steps, statistics.accepted), (16, 47), "{statistics}");
    for mean in [1.0, 3.0, 5.0] {
        let speculation = Speculation::with(oracle(mean), 4, true, &ids_of(&prompt));
        assert_eq!(run(&mut scheduler, &prompt, drawn(), Some(speculation)).0, want);
    }
}

/// Logits of `n` tokens behind `n_past` that are fed together, drafts but for the first, and taken back.
fn together(s: &mut Session, slot: Slot, ids: &[u32], n_past: usize, n: usize) -> Vec<f32> {
    let tokens = Tokens::Ids(&ids[n_past..n_past + n]);
    let logits = s.step(&Batch { seqs: &[Sequence { slot, tokens, rows: Rows::Drafts(n - 1) }] }).unwrap();
    logits.rows(0).to_vec()
}

/// Every architecture, with its recurrent states, bit for bit in steps of any number of rows. What is then accepted in part is
/// folded as if it had come alone.
#[test]
fn every_architecture_verifies_as_single_steps_do() {
    for name in MODELS {
        let mut s = session(&file(name), 1, &backend("cpu"));
        let mut rng = Rng::new(4);
        let ids: Vec<u32> = (0..60).map(|_| u32::try_from(rng.below(300)).unwrap()).collect();
        let slot = s.memory_mut().acquire().unwrap();
        s.feed(slot, Tokens::Ids(&ids[..10])).unwrap();
        let snapshot = s.snapshot(slot).unwrap();
        let single: Vec<f32> = (10..43).flat_map(|at| together(&mut s, slot, &ids, at, 1)).collect();
        for (n, n_kept) in [(2, 1), (5, 3), (8, 8), (8, 2), (9, 4), (17, 17), (33, 20)] {
            s.restore(slot, &snapshot).unwrap();
            let mut got = together(&mut s, slot, &ids, 10, n);
            s.memory_mut().rewind(slot, 10 + n_kept).unwrap();
            let n_vocab = got.len() / n;
            got.truncate(n_kept * n_vocab);
            got.extend(together(&mut s, slot, &ids, 10 + n_kept, 1));
            let differs = got.iter().zip(&single).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(differs, None, "{name}, {n} rows, {n_kept} kept");
        }
    }
}

/// A model whose matrices are all in one format.
fn in_format(name: &str, dtype: DType) -> Gguf {
    let mut draft = Draft::of(&file(name));
    let fits = |dims: &[usize]| dims.len() == 2 && dims[1].is_multiple_of(dtype.block().len);
    draft.tensors.iter_mut().filter(|t| fits(&t.dims)).for_each(|t| t.encode(dtype));
    draft.in_memory()
}

/// Logits of tokens that are verified together are those of single steps, bit for bit, in steps of any number of rows.
#[test]
fn verification_gives_the_bits_of_single_steps() {
    let of_weights = DType::ALL.into_iter().filter(|t| *t != DType::I32).map(|t| ("cpu", t, 49));
    for (name, dtype, most) in std::iter::once(("reference", DType::Q8_0, 9)).chain(of_weights) {
        let mut s = session(&in_format("golden/qwen3", dtype), 2, &backend(name));
        let mut rng = Rng::new(4);
        let ids: Vec<u32> = (0..60).map(|_| u32::try_from(rng.below(300)).unwrap()).collect();
        let slot = s.memory_mut().acquire().unwrap();
        let rows = |s: &mut Session, n_past: usize, n: usize| {
            s.memory_mut().rewind(slot, n_past).unwrap();
            let tokens = Tokens::Ids(&ids[n_past..n_past + n]);
            s.step(&Batch { seqs: &[Sequence { slot, tokens, rows: Rows::All }] }).unwrap().rows(0).to_vec()
        };
        rows(&mut s, 0, 10);
        let single: Vec<f32> = (10..10 + most).flat_map(|at| rows(&mut s, at, 1)).collect();
        for n in [2, 3, 5, 8, 9, 17, 33, 49].into_iter().filter(|&n| n <= most) {
            let together = rows(&mut s, 10, n);
            let differs = together.iter().zip(&single).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(differs, None, "{name}, {dtype}, {n} rows");
        }
    }
}
