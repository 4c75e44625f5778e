//! Many sequences on one session: what happens to one of them is nobody else's business.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use engine::backend::Backend;
use engine::key::Buckets;
use engine::session::{Session, SessionOptions};
use models::decoding::{Decoding, Finish, Prompt, Rules};
use models::sample::Sampling;
use models::scheduler::{Scheduler, SequenceId};
use tests::faulty::{Fault, Faulty};
use tests::rng::Rng;

use crate::hybrid::{self, N_EMBD, N_VOCAB};

/// Ids of every answer.
const N_IDS: usize = 24;

fn cpu() -> Arc<dyn Backend> {
    backends::open("cpu", &backends::Options::default()).unwrap()
}

fn rules(max_tokens: usize) -> Rules {
    Rules {
        sampling: Sampling::default(),
        stop: Vec::new(),
        ignore_stop: false,
        max_tokens,
        n_usable: N_VOCAB,
        prompt_logits: false,
    }
}

fn decoding(seed: u64, n_prompt: usize) -> Decoding {
    Decoding::new(Prompt::of_ids(&hybrid::tokens(seed, n_prompt)), N_EMBD, rules(N_IDS))
}

fn options() -> SessionOptions {
    SessionOptions { n_slots: 4, n_ctx: 256, buckets: Buckets::Coarse, ..hybrid::options() }
}

fn scheduler() -> Scheduler {
    Scheduler::new(hybrid::open_model(hybrid::SEED, &[cpu()], options()))
}

/// Ids of sequences by themselves.
fn alone(decodings: &[Decoding]) -> Vec<Vec<u32>> {
    let ids = |decoding: &Decoding| {
        let mut ids = Vec::new();
        let mut scheduler = scheduler();
        let result = scheduler.run(decoding.clone(), &mut |event, _| {
            ids.extend(&event.tokens);
            ControlFlow::Continue(())
        });
        result.unwrap();
        ids
    };
    decodings.iter().map(ids).collect()
}

/// What all sequences gave, step by step until none is left; `between` may do anything between two steps.
fn run_all(
    scheduler: &mut Scheduler,
    ids: &mut BTreeMap<SequenceId, Vec<u32>>,
    mut between: impl FnMut(&mut Scheduler, usize),
) -> BTreeMap<SequenceId, String> {
    let mut errors = BTreeMap::new();
    for i_step in 0.. {
        between(scheduler, i_step);
        if scheduler.n_running() == 0 {
            break;
        }
        let step = scheduler.step(&mut |progress| match progress.result {
            Ok(event) => ids.entry(progress.id).or_default().extend(&event.tokens),
            Err(error) => assert!(errors.insert(progress.id, error.to_string()).is_none()),
        });
        step.unwrap();
    }
    errors
}

fn n_free(s: &Session) -> usize {
    s.memory().n_free()
}

#[test]
fn sequences_in_company_give_the_ids_they_give_alone() {
    let decodings: Vec<Decoding> = [3, 40, 1, 17].into_iter().zip(10..).map(|(n, seed)| decoding(seed, n)).collect();
    let want = alone(&decodings);
    let mut scheduler = scheduler();
    let mut waiting = decodings.into_iter();
    let mut order = Vec::new();
    let mut ids = BTreeMap::new();
    // They come one after the other, so that prompts are fed beside sequences that decode.
    let errors = run_all(&mut scheduler, &mut ids, |scheduler, i_step| {
        if i_step % 5 == 0
            && let Some(decoding) = waiting.next()
        {
            order.push(scheduler.submit(decoding).unwrap());
        }
    });
    assert!(errors.is_empty());
    assert_eq!(order.iter().map(|id| ids[id].clone()).collect::<Vec<_>>(), want);
    assert_eq!(n_free(scheduler.session()), 4);
}

#[test]
fn prompts_are_fed_in_small_pieces_beside_sequences_that_decode() {
    let decodings = [decoding(1, 5), decoding(2, 60)];
    let want = alone(&decodings);
    for n_most in [1, 7, 16] {
        let mut scheduler = scheduler();
        scheduler.set_prompt_piece(n_most);
        let first = scheduler.submit(decodings[0].clone()).unwrap();
        // Its prompt, alone, comes at once.
        scheduler.step(&mut |progress| assert_eq!(progress.result.unwrap().accepted, 5)).unwrap();
        let second = scheduler.submit(decodings[1].clone()).unwrap();
        let mut ids = BTreeMap::from([(first, vec![want[0][0]])]);
        let mut n_fed = 0;
        while scheduler.n_running() > 0 {
            let is_alone = scheduler.n_running() == 1;
            let step = scheduler.step(&mut |progress| {
                let event = progress.result.unwrap();
                ids.entry(progress.id).or_default().extend(&event.tokens);
                if progress.id == second && n_fed < 60 {
                    n_fed += event.accepted;
                    assert!(is_alone || event.accepted <= n_most, "{} of {n_most}", event.accepted);
                }
            });
            step.unwrap();
        }
        assert_eq!([ids[&first].clone(), ids[&second].clone()].to_vec(), want, "{n_most}");
    }
}

#[test]
fn a_sequence_of_nan_ends_alone() {
    let sound = [decoding(1, 5), decoding(2, 9)];
    let want = alone(&sound);
    let poison = Prompt { ids: vec![3, -1, 4], embeddings: vec![f32::NAN; N_EMBD] };
    let mut scheduler = scheduler();
    let first = scheduler.submit(sound[0].clone()).unwrap();
    let bad = scheduler.submit(Decoding::new(poison, N_EMBD, rules(N_IDS))).unwrap();
    let second = scheduler.submit(sound[1].clone()).unwrap();
    let mut ids = BTreeMap::new();
    let errors = run_all(&mut scheduler, &mut ids, |_, _| ());
    assert_eq!(errors.keys().collect::<Vec<_>>(), [&bad]);
    assert!(errors[&bad].contains("sequence 1") && errors[&bad].contains("step 0"), "{}", errors[&bad]);
    assert_eq!([ids[&first].clone(), ids[&second].clone()].to_vec(), want);
    assert_eq!(n_free(scheduler.session()), 4);
}

#[test]
fn cancelling_one_changes_no_other() {
    let decodings = [decoding(1, 5), decoding(2, 30), decoding(3, 2)];
    let want = alone(&decodings);
    for cancelled in 0..3 {
        for at in [1, 2, 7] {
            let mut scheduler = scheduler();
            let order: Vec<SequenceId> = decodings.iter().map(|d| scheduler.submit(d.clone()).unwrap()).collect();
            let mut ids = BTreeMap::new();
            run_all(&mut scheduler, &mut ids, |scheduler, i_step| {
                if i_step == at {
                    scheduler.cancel(order[cancelled]);
                    assert_eq!(n_free(scheduler.session()), 2);
                }
            });
            for (k, want) in want.iter().enumerate().filter(|(k, _)| *k != cancelled) {
                assert_eq!(ids[&order[k]], *want, "{cancelled} cancelled at step {at}");
            }
            assert_eq!(n_free(scheduler.session()), 4);
        }
    }
}

#[test]
fn a_panic_of_the_observer_frees_its_slot_and_harms_nobody() {
    let decodings = [decoding(1, 5), decoding(2, 9)];
    let want = alone(&decodings);
    let mut scheduler = scheduler();
    let other = scheduler.submit(decodings[1].clone()).unwrap();
    let mut n_events = 0;
    let panic = catch_unwind(AssertUnwindSafe(|| {
        scheduler.run(decodings[0].clone(), &mut |_, _| {
            n_events += 1;
            assert!(n_events < 4, "enough");
            ControlFlow::Continue(())
        })
    }));
    assert!(panic.is_err());
    assert_eq!((n_free(scheduler.session()), scheduler.n_running()), (3, 1));
    // What the other one was given meanwhile nobody saw; what follows is what follows alone.
    let mut ids = BTreeMap::new();
    run_all(&mut scheduler, &mut ids, |_, _| ());
    assert!(want[1].ends_with(&ids[&other]) && ids[&other].len() == N_IDS - 4, "{ids:?}");
    let mut again: Vec<u32> = Vec::new();
    let result = scheduler.run(decodings[0].clone(), &mut |event, _| {
        again.extend(&event.tokens);
        ControlFlow::Continue(())
    });
    result.unwrap();
    assert_eq!(again, want[0]);
}

#[test]
fn a_sequence_without_memory_to_grow_ends_alone() {
    let decodings = [decoding(1, 3), decoding(2, 9)];
    let want = alone(&decodings);
    for n_before in 0..3 {
        let backend = Faulty::new(cpu(), |_| false);
        let session = hybrid::open_model(hybrid::SEED, &[Arc::clone(&backend) as _], options());
        let mut scheduler = Scheduler::new(session);
        let order = decodings.clone().map(|d| scheduler.submit(d).unwrap());
        let mut ids = BTreeMap::new();
        let errors = run_all(&mut scheduler, &mut ids, |_, i_step| {
            // From here on the first memory that is asked for is that of the second sequence, whose prompt is longer.
            if i_step == 2 {
                backend.fail_later(Fault::Commit, n_before);
            }
        });
        assert_eq!(errors.keys().collect::<Vec<_>>(), [&order[1]]);
        assert_eq!(ids[&order[0]], want[0]);
        assert!(want[1].starts_with(&ids[&order[1]]) && ids[&order[1]].len() < N_IDS);
        assert_eq!(n_free(scheduler.session()), 4);
        // The memory is there again.
        let mut again: Vec<u32> = Vec::new();
        let result = scheduler.run(decodings[1].clone(), &mut |event, _| {
            again.extend(&event.tokens);
            ControlFlow::Continue(())
        });
        result.unwrap();
        assert_eq!(again, want[1]);
    }
}

#[test]
fn what_cannot_be_fed_is_refused_before_it_has_a_slot() {
    let mut scheduler = scheduler();
    let outside = Decoding::new(Prompt::of_ids(&[1, N_VOCAB as u32]), N_EMBD, rules(4));
    let empty = Decoding::new(Prompt::default(), N_EMBD, rules(4));
    let short = Prompt { ids: vec![3, -1], embeddings: vec![0.0; N_EMBD - 1] };
    let endless = Decoding::new(Prompt::of_ids(&[1]), N_EMBD, rules(usize::MAX));
    for bad in [outside, empty, Decoding::new(short, N_EMBD, rules(4)), endless] {
        scheduler.submit(bad).unwrap_err();
        assert_eq!((n_free(scheduler.session()), scheduler.n_running()), (4, 0));
    }
    for _ in 0..4 {
        scheduler.submit(decoding(1, 2)).unwrap();
    }
    scheduler.submit(decoding(1, 2)).unwrap_err();
}

/// A drafter that knows the answer, and is wrong from position `wrong_at` of every guess on.
fn drafts(want: &[u32], n_known: usize, n: usize, wrong_at: usize) -> Vec<u32> {
    let right = want[n_known..].iter().take(n);
    right.enumerate().map(|(i, &id)| if i < wrong_at { id } else { (id + 1) % N_VOCAB as u32 }).collect()
}

#[test]
fn drafts_on_attention_give_the_ids_of_plain_decoding() {
    const N_DRAFTS: usize = 4;
    let open = || Scheduler::new(hybrid::open_attention_only(&[cpu()]));
    for sampling in [Sampling::default(), Sampling { temperature: 0.9, top_k: 20, seed: 5, ..Sampling::default() }] {
        let decoding = |seed| {
            let rules = Rules { sampling, ..rules(N_IDS) };
            Decoding::new(Prompt::of_ids(&hybrid::tokens(seed, 6)), N_EMBD, rules)
        };
        let plain = |seed| {
            let mut ids = BTreeMap::new();
            let mut scheduler = open();
            let id = scheduler.submit(decoding(seed)).unwrap();
            run_all(&mut scheduler, &mut ids, |_, _| ());
            ids.remove(&id).unwrap()
        };
        let want = [plain(1), plain(2)];
        for wrong_at in 0..=N_DRAFTS {
            let mut scheduler = open();
            let order = [1, 2].map(|seed| scheduler.submit(decoding(seed)).unwrap());
            let mut ids: BTreeMap<SequenceId, Vec<u32>> = BTreeMap::new();
            let mut n_steps = 0;
            let mut lengths = [0; 2];
            while scheduler.n_running() > 0 {
                for (k, id) in order.iter().enumerate() {
                    lengths[k] = ids.get(id).map_or(0, Vec::len);
                    if let Some(sequence) = scheduler.sequence(*id)
                        && lengths[k] > 0
                    {
                        sequence.draft(&drafts(&want[k], lengths[k], N_DRAFTS, wrong_at));
                    }
                }
                let step = scheduler.step(&mut |progress| {
                    ids.entry(progress.id).or_default().extend(&progress.result.unwrap().tokens);
                });
                step.unwrap();
                n_steps += 1;
            }
            assert_eq!([ids[&order[0]].clone(), ids[&order[1]].clone()], want, "wrong at {wrong_at}, {sampling:?}");
            let fewest = 1 + (N_IDS - 1).div_ceil(wrong_at + 1);
            assert_eq!(n_steps, fewest, "wrong at {wrong_at}");
        }
    }
}

/// Sequences join and leave at random, with prompts of 1 to 500 tokens.
#[test]
fn random_traffic_needs_few_graphs() {
    let options = SessionOptions { n_slots: 8, n_ctx: 768, buckets: Buckets::Coarse, ..hybrid::options() };
    let mut scheduler = Scheduler::new(hybrid::open_model(hybrid::SEED, &[cpu()], options));
    let mut rng = Rng::new(11);
    let mut finished = BTreeSet::new();
    for _ in 0..3000 {
        let join = scheduler.n_running() == 0 || scheduler.n_running() < 8 && rng.below(12) == 0;
        if join {
            let prompt = Prompt::of_ids(&hybrid::tokens(rng.next_u64(), 1 + rng.below(500)));
            scheduler.submit(Decoding::new(prompt, N_EMBD, rules(10 + rng.below(120)))).unwrap();
        }
        let step = scheduler.step(&mut |progress| {
            if progress.result.unwrap().finish == Some(Finish::Limit) {
                finished.insert(progress.id);
            }
        });
        step.unwrap();
    }
    let stats = scheduler.session().stats();
    assert!(finished.len() > 150, "{}", finished.len());
    assert!(stats.hit_rate() >= 0.95 && stats.builds <= 32, "{stats:?}");
}
