//! Sequences grow in place: memory follows their positions, and nothing that runs beside them notices.

use std::sync::Arc;

use engine::Error;
use engine::backend::Backend;
use engine::memory::Slot;
use engine::session::{Reuse, Session, SessionOptions};
use engine::stats::BuildReason;
use tests::faulty::{Fault, Faulty};
use tests::private::Private;
use tests::sessions::session_options;

use crate::hybrid::{self, SEED, backends, open_model, step, tokens};

const N_GROWTHS: usize = 300;
/// Positions of one growth.
const STEP: usize = 8;
/// Bytes of keys and values of a position in the model of these tests: two heads of eight f32s each.
const POSITION_BYTES: usize = 2 * 2 * 8 * size_of::<f32>();

fn options() -> SessionOptions {
    SessionOptions { n_ctx: STEP, cached_graphs: 8, reuse: Reuse::On, ..hybrid::options() }
}

fn cpu() -> Arc<dyn Backend> {
    backends().remove(0)
}

/// The likeliest token.
fn greedy(logits: &[f32]) -> u32 {
    u32::try_from(models::sample::greedy(logits).unwrap()).unwrap()
}

/// Lets the context be larger by a step and fills it.
fn grow(s: &mut Session, slot: Slot) -> Vec<f32> {
    let n_past = s.memory().n_past(slot).unwrap();
    s.reserve_context((n_past + STEP).max(N_GROWTHS + 2)).unwrap();
    step(s, &[(slot, &tokens(n_past as u64, STEP))]).remove(0)
}

/// Decodes with one sequence beside another that grows; returns the ids, and what the growing one gave last.
fn grow_beside(s: &mut Session, mut each: impl FnMut(&Session, usize)) -> ([Slot; 2], Vec<u32>, Vec<f32>) {
    let slots = [(); 2].map(|()| s.memory_mut().acquire().unwrap());
    let [decoding, growing] = slots;
    let (mut ids, mut last) = (vec![1], Vec::new());
    for i in 0..N_GROWTHS {
        last = grow(s, growing);
        let next = greedy(&step(s, &[(decoding, &ids[ids.len() - 1..])])[0]);
        ids.push(next);
        each(s, i);
    }
    (slots, ids, last)
}

#[test]
fn growth_builds_nothing_and_moves_nothing() {
    let mut want = None;
    for inner in backends() {
        let backend = Private::new(Arc::clone(&inner));
        let mut s = open_model(SEED, &[Arc::clone(&backend) as _], options());
        let mut warm = 0;
        let (_, ids, _) = grow_beside(&mut s, |s, i| {
            if i == 0 {
                warm = s.stats().builds;
            }
        });
        assert_eq!((s.stats().builds, s.stats().state_moves), (warm, 0), "{}", inner.name());
        // Other shapes come and go, with a larger arena for the largest of them.
        let slot = s.memory_mut().acquire().unwrap();
        for n in (1..40).chain([300]).chain((1..40).rev()) {
            step(&mut s, &[(slot, &tokens(3, n))]);
            s.memory_mut().rewind(slot, 0).unwrap();
        }
        assert!(s.stats().evictions > 0);
        let bound = backend.bound();
        assert_eq!(bound.len(), backend.n_compiled());
        assert!(bound.values().all(|places| places.len() == 1), "a graph that is used again is where it was");
        let all: Vec<_> = bound.into_values().flatten().collect();
        assert!(all.iter().all(|b| b.states == all[0].states), "states never move");
        let arenas: std::collections::BTreeSet<usize> = all.iter().map(|b| b.arena).collect();
        assert!(arenas.len() > 1, "the arena was enlarged");
        // The same ids as beside nobody.
        let mut alone = open_model(SEED, &[inner], SessionOptions { n_ctx: N_GROWTHS + 2, ..options() });
        let slot = alone.memory_mut().acquire().unwrap();
        let mut expected = vec![1];
        while expected.len() < ids.len() {
            expected.push(greedy(&step(&mut alone, &[(slot, &expected[expected.len() - 1..])])[0]));
        }
        assert_eq!(ids, expected);
        assert!(want.is_none_or(|want| want == ids));
        want = Some(ids);
    }
}

#[test]
fn committed_memory_follows_positions() {
    let mut s = open_model(SEED, &[cpu()], options());
    assert_eq!(s.stats().state_bytes, 0);
    let fixed = 2 * hybrid::N_EMBD * size_of::<f32>();
    let ([decoding, growing], ..) = grow_beside(&mut s, |s, i| {
        let needed = ((i + 1) * (STEP + 1)) * POSITION_BYTES + 2 * fixed;
        let slack = 2 * 16 * POSITION_BYTES;
        let committed = s.stats().state_bytes;
        assert!((needed..=needed + slack).contains(&committed), "{committed} for {needed}");
    });
    s.memory_mut().release(growing);
    let rest = s.stats().state_bytes;
    assert!((N_GROWTHS * POSITION_BYTES..(N_GROWTHS + 32) * POSITION_BYTES).contains(&rest), "{rest}");
    s.memory_mut().release(decoding);
    assert_eq!(s.stats().state_bytes, 0);
}

/// Bytes of memory behind the mappings of at least this size.
#[cfg(target_os = "linux")]
fn resident(at_least: usize) -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let number = |line: &str| line.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok()).unwrap() * 1024;
    let (mut size, mut total) = (0, 0);
    for line in maps.lines() {
        if line.starts_with("Size:") {
            size = number(line);
        } else if line.starts_with("Rss:") && size >= at_least {
            total += number(line);
        }
    }
    total
}

/// In a process of its own, where no other test has states.
#[cfg(target_os = "linux")]
#[test]
fn resident_memory_follows_positions_and_goes_back() {
    const ALONE: &str = "TYMPAN_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "growth::resident_memory_follows_positions_and_goes_back";
        let mut test = std::process::Command::new(std::env::current_exe().unwrap());
        let output = test.args(["--exact", name]).env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    // So many slots that a state is larger than anything else that is mapped.
    let n_slots = 128;
    let mut s = hybrid::open_attention_only_with(&[cpu()], SessionOptions { n_slots, ..options() });
    let reserved = n_slots * engine::session::MAX_CONTEXT * POSITION_BYTES / 2;
    let before = resident(reserved);
    let ([decoding, growing], ..) = grow_beside(&mut s, |_, _| ());
    let needed = N_GROWTHS * (STEP + 1) * POSITION_BYTES;
    let got = resident(reserved) - before;
    assert!(got >= needed && got * 20 <= needed * 21, "{got} bytes for {needed}");
    s.memory_mut().release(growing);
    let needed = N_GROWTHS * POSITION_BYTES;
    let got = resident(reserved) - before;
    assert!(got >= needed && got < needed + 4 * 4096, "{got} bytes for {needed} after release");
    s.memory_mut().release(decoding);
    assert_eq!(resident(reserved) - before, 0);
}

#[test]
fn a_failed_growth_ends_one_sequence_and_leaves_the_others() {
    for inner in backends() {
        let private = Private::new(inner);
        let backend = Faulty::new(Arc::clone(&private) as _, |_| false);
        let mut s = open_model(SEED, &[Arc::clone(&backend) as _], SessionOptions { n_ctx: 64, ..options() });
        let [a, b] = [(); 2].map(|()| s.memory_mut().acquire().unwrap());
        step(&mut s, &[(a, &tokens(1, 3)), (b, &tokens(2, 15))]);
        let (bytes, states) = (s.stats().state_bytes, hybrid::states(&s, a));
        // The second state of the slot fails, so that the first has to give back what it got.
        for n_before in [0, 1] {
            backend.fail_later(Fault::Commit, n_before);
            assert!(matches!(s.memory_mut().grow(b, 20), Err(Error::Device { .. })));
            assert_eq!((s.memory().n_past(b).unwrap(), s.stats().state_bytes), (15, bytes));
        }
        // In a batch nobody advances, and nothing is torn.
        backend.fail_later(Fault::Commit, 0);
        assert!(hybrid::try_step(&mut s, &[(a, &[4]), (b, &tokens(2, 9))]).is_err());
        assert_eq!((s.memory().n_past(a).unwrap(), s.memory().n_past(b).unwrap()), (3, 15));
        assert_eq!(hybrid::states(&s, a), states);
        s.memory_mut().release(b);
        let b = s.memory_mut().acquire_at(b.index()).unwrap();
        let mut fresh = open_model(SEED, &[Arc::clone(&backend) as _], SessionOptions { n_ctx: 64, ..options() });
        let [x, y] = [(); 2].map(|()| fresh.memory_mut().acquire().unwrap());
        step(&mut fresh, &[(x, &tokens(1, 3)), (y, &tokens(2, 15))]);
        fresh.memory_mut().release(y);
        let y = fresh.memory_mut().acquire().unwrap();
        for round in 0..20 {
            let ids = [tokens(round, 1), tokens(round + 50, 1)];
            let got = step(&mut s, &[(a, &ids[0]), (b, &ids[1])]);
            assert_eq!(got, step(&mut fresh, &[(x, &ids[0]), (y, &ids[1])]));
        }
    }
}

#[test]
fn where_nothing_can_be_reserved_growth_copies_and_says_so() {
    for inner in backends() {
        // Room for what a context of 600 positions needs at once, not for the largest one.
        let most = hybrid::N_SLOTS * 600 * POSITION_BYTES / 2;
        let backend = Private::limited(Arc::clone(&inner), most);
        let small = SessionOptions { n_ctx: 20, ..session_options() };
        let small = SessionOptions { n_slots: hybrid::N_SLOTS, kv_dtype: engine::DType::F32, ..small };
        let mut s = open_model(SEED, &[Arc::clone(&backend) as _], small.clone());
        let mut want = open_model(SEED, &[inner], SessionOptions { n_ctx: 600, ..small });
        let slots = [(); 2].map(|()| s.memory_mut().acquire().unwrap());
        let wanted = [(); 2].map(|()| want.memory_mut().acquire().unwrap());
        let mut moves = 0;
        for (i, n_ctx) in [20, 20, 40, 41, 41, 300, 600].into_iter().enumerate() {
            s.reserve_context(n_ctx).unwrap();
            moves += u64::from([2, 3, 5, 6].contains(&i));
            assert_eq!(s.stats().state_moves, moves);
            let ids = [tokens(i as u64, 3), tokens(i as u64 + 9, 5)];
            let got = step(&mut s, &[(slots[0], &ids[0]), (slots[1], &ids[1])]);
            assert_eq!(got, step(&mut want, &[(wanted[0], &ids[0]), (wanted[1], &ids[1])]), "context {n_ctx}");
            assert_eq!(s.stats().builds_for(BuildReason::Context), moves);
        }
        // More than there is room for is refused, and nothing is lost.
        assert!(matches!(s.reserve_context(700), Err(Error::OutOfMemory { .. })));
        assert_eq!(s.options().n_ctx, 600);
        let got = step(&mut s, &[(slots[0], &[3]), (slots[1], &[4])]);
        assert_eq!(got, step(&mut want, &[(wanted[0], &[3]), (wanted[1], &[4])]));
    }
}

#[test]
fn spare_memory_is_taken_over_and_given_up_where_it_is_needed() {
    for inner in backends() {
        let backend = Faulty::new(Arc::clone(&inner), |_| false);
        let options = SessionOptions { n_ctx: 64, spare_bytes: usize::MAX, ..options() };
        let mut s = open_model(SEED, &[Arc::clone(&backend) as _], options.clone());
        // What a sequence finds there, of this one or of another, is never read.
        let run = |s: &mut Session, seed: u64, n: usize| {
            let slot = s.memory_mut().acquire().unwrap();
            let got = [step(s, &[(slot, &tokens(seed, n))]), step(s, &[(slot, &[7])])];
            (slot, got)
        };
        let (slot, want) = run(&mut s, 1, 30);
        let bytes = s.stats().state_bytes;
        s.memory_mut().release(slot);
        assert_eq!(s.stats().state_bytes, bytes, "kept");
        for (seed, n) in [(2, 31), (1, 30)] {
            let (slot, got) = run(&mut s, seed, n);
            assert_eq!((s.stats().state_bytes, got == want), (bytes, seed == 1));
            s.memory_mut().release(slot);
        }
        // Another slot gets no memory until the spare one is given back.
        let other = s.memory_mut().acquire_at(slot.index() + 1).unwrap();
        backend.fail_later(Fault::Commit, 0);
        s.memory_mut().grow(other, 5).unwrap();
        let grown = s.stats().state_bytes;
        assert!(grown < bytes, "{grown} of {bytes}");
        assert!(grown == step_bytes(&mut s, other), "growing asked for no more");
        // A limit below what a sequence had keeps nothing.
        s.memory_mut().keep_spare(grown - 1);
        s.memory_mut().release(other);
        assert_eq!(s.stats().state_bytes, 0);
    }
}

/// Committed bytes after a step for which there is memory.
fn step_bytes(s: &mut Session, slot: Slot) -> usize {
    step(s, &[(slot, &tokens(5, 5))]);
    s.stats().state_bytes
}
