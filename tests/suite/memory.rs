//! Slots: snapshots, failed calls, and what is refused.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use engine::backend::Backend;
use engine::batch::{Batch, Rows, Sequence, Tokens};
use engine::memory::Slot;
use engine::op::{Op, Precision};
use engine::session::{Session, SessionOptions};
use engine::{DType, Error};
use tests::faulty::{Fault, Faulty};
use tests::rng::Rng;

use crate::hybrid::{SEED, backends, close, open_attention_only, open_model, options, states, step, tokens};

fn open(backend: &Arc<dyn Backend>) -> Session {
    open_model(SEED, std::slice::from_ref(backend), options())
}

/// Bit patterns of the logits of eight greedy steps after `id`.
fn continuation(s: &mut Session, slot: Slot, id: u32) -> Vec<Vec<u32>> {
    let mut id = id;
    let mut all = Vec::new();
    for _ in 0..8 {
        let logits = step(s, &[(slot, &[id])]).remove(0);
        id = u32::try_from((0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap()).unwrap();
        all.push(logits.iter().map(|v| v.to_bits()).collect());
    }
    all
}

#[test]
fn a_restored_snapshot_goes_on_with_the_same_bits() {
    for backend in backends() {
        let mut s = open(&backend);
        let slot = s.memory_mut().acquire_at(2).unwrap();
        step(&mut s, &[(slot, &tokens(1, 11))]);
        let snapshot = s.snapshot(slot).unwrap();
        let want = continuation(&mut s, slot, 3);

        // The same slot, in which the sequence went on.
        s.restore(slot, &snapshot).unwrap();
        assert_eq!(s.memory().n_past(slot).unwrap(), 11);
        assert_eq!(continuation(&mut s, slot, 3), want, "{}", backend.name());
        // Another slot, which held another sequence.
        let other = s.memory_mut().acquire_at(5).unwrap();
        step(&mut s, &[(other, &tokens(2, 20))]);
        s.restore(other, &snapshot).unwrap();
        assert_eq!(s.snapshot(other).unwrap(), snapshot);
        assert_eq!(continuation(&mut s, other, 3), want, "{}", backend.name());
        // Sessions with another context and another number of slots.
        for (n_ctx, n_slots) in [(19, 1), (500, 3)] {
            let options = SessionOptions { n_ctx, n_slots, ..options() };
            let mut s = open_model(SEED, std::slice::from_ref(&backend), options);
            let slot = s.memory_mut().acquire_at(n_slots - 1).unwrap();
            s.restore(slot, &snapshot).unwrap();
            assert_eq!(continuation(&mut s, slot, 3), want, "context {n_ctx} on {}", backend.name());
        }
    }
}

#[test]
fn a_snapshot_of_a_new_sequence_starts_from_zeros() {
    let backend = &backends()[0];
    let mut s = open(backend);
    let (empty, used) = (s.memory_mut().acquire().unwrap(), s.memory_mut().acquire().unwrap());
    let snapshot = s.snapshot(empty).unwrap();
    step(&mut s, &[(used, &tokens(1, 30))]);
    s.restore(used, &snapshot).unwrap();
    assert_eq!(continuation(&mut s, used, 3), continuation(&mut s, empty, 3));
}

#[test]
fn only_used_rows_are_in_a_snapshot() {
    let backend = &backends()[0];
    let bytes = |n_ctx| {
        let mut s = open_model(SEED, std::slice::from_ref(backend), SessionOptions { n_ctx, ..options() });
        let slot = s.memory_mut().acquire().unwrap();
        step(&mut s, &[(slot, &tokens(1, 9))]);
        s.snapshot(slot).unwrap()
    };
    assert_eq!(bytes(64), bytes(4096));
}

#[test]
fn damaged_and_foreign_snapshots_are_refused_and_change_nothing() {
    for backend in backends() {
        let mut s = open(&backend);
        let (from, to) = (s.memory_mut().acquire().unwrap(), s.memory_mut().acquire().unwrap());
        step(&mut s, &[(from, &tokens(1, 12))]);
        step(&mut s, &[(to, &tokens(2, 7))]);
        let snapshot = s.snapshot(from).unwrap();
        let before = states(&s, to);
        let mut refused = |bytes: &[u8], what: &str| {
            let refusal = s.restore(to, bytes);
            assert!(matches!(refusal, Err(Error::Snapshot { .. })), "{what} on {}: {refusal:?}", backend.name());
            assert_eq!(s.memory().n_past(to).unwrap(), 7, "{what}");
            assert_eq!(states(&s, to), before, "{what}");
        };
        let mut rng = Rng::new(3);
        for n in (0..48).chain((0..40).map(|_| rng.below(snapshot.len()))) {
            refused(&snapshot[..n], &format!("the first {n} bytes"));
        }
        for bit in (0..48 * 8).chain((0..200).map(|_| rng.below(snapshot.len() * 8))) {
            let mut flipped = snapshot.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            refused(&flipped, &format!("bit {bit} flipped"));
        }
        refused(&[&snapshot[..], &[0]].concat(), "a byte more");
        refused(&rng.bytes(snapshot.len()), "random bytes");
        // The same shapes with other weights, and the same weights with another type of attention cache.
        let foreign = [(SEED + 1, DType::F32), (SEED, DType::F16)].map(|(seed, kv_dtype)| {
            let options = SessionOptions { kv_dtype, ..options() };
            let mut s = open_model(seed, std::slice::from_ref(&backend), options);
            let slot = s.memory_mut().acquire().unwrap();
            step(&mut s, &[(slot, &tokens(1, 12))]);
            s.snapshot(slot).unwrap()
        });
        refused(&foreign[0], "other weights");
        refused(&foreign[1], "another cache type");
    }
}

#[test]
fn a_snapshot_needs_room_and_a_slot() {
    let backend = &backends()[0];
    let mut s = open(backend);
    let slot = s.memory_mut().acquire().unwrap();
    step(&mut s, &[(slot, &tokens(1, 40))]);
    let snapshot = s.snapshot(slot).unwrap();
    s.memory_mut().release(slot);
    assert!(matches!(s.snapshot(slot), Err(Error::Batch { .. })));
    assert!(matches!(s.restore(slot, &snapshot), Err(Error::Batch { .. })));
    let mut small = open_model(SEED, std::slice::from_ref(backend), SessionOptions { n_ctx: 39, ..options() });
    let slot = small.memory_mut().acquire().unwrap();
    assert!(matches!(small.restore(slot, &snapshot), Err(Error::ContextFull { capacity: 39, wanted: 40 })));
    assert_eq!(small.memory().n_past(slot).unwrap(), 0);
}

fn advance(s: &mut Session, slots: &[Slot]) -> Result<(), Error> {
    let seqs: Vec<Sequence<'_>> =
        slots.iter().map(|&slot| Sequence { slot, tokens: Tokens::Ids(&[4]), rows: Rows::Last }).collect();
    s.step(&Batch { seqs: &seqs }).map(|_| ())
}

#[test]
fn a_call_that_fails_half_way_tears_recurrent_slots() {
    for fault in [Fault::BeforeRun, Fault::AfterRun, Fault::Panic] {
        for inner in backends() {
            let backend = Faulty::new(inner, |_| false);
            let dyn_backend: Arc<dyn Backend> = Arc::clone(&backend) as _;
            let mut s = open(&dyn_backend);
            let [a, b, fresh, outside] = [(); 4].map(|()| s.memory_mut().acquire().unwrap());
            step(&mut s, &[(a, &tokens(1, 5)), (b, &tokens(2, 6)), (outside, &tokens(3, 4))]);
            let kept = states(&s, outside);
            backend.fail(fault);
            let result = catch_unwind(AssertUnwindSafe(|| advance(&mut s, &[a, b, fresh])));
            assert!(!matches!(result, Ok(Ok(()))), "{fault:?}");

            for slot in [a, b] {
                let torn = |r: Result<(), Error>| assert!(matches!(r, Err(Error::TornSlot { .. })), "{fault:?}: {r:?}");
                torn(s.memory().n_past(slot).map(|_| ()));
                torn(advance(&mut s, &[slot]));
                torn(s.snapshot(slot).map(|_| ()));
                torn(s.memory_mut().copy(slot, fresh));
                torn(s.memory_mut().copy(fresh, slot));
                torn(s.memory_mut().rewind(slot, 5));
            }
            // What the call had not begun to change is as before: other slots, and a sequence without a past.
            assert_eq!((s.memory().n_past(outside).unwrap(), s.memory().n_past(fresh).unwrap()), (4, 0));
            assert_eq!(states(&s, outside), kept);
            // Both ways out end in a sequence that knows nothing of the old one.
            s.memory_mut().rewind(a, 0).unwrap();
            s.memory_mut().release(b);
            let b = s.memory_mut().acquire_at(b.index()).unwrap();
            let [x, y, z] = [a, b, fresh].map(|slot| continuation(&mut s, slot, 9));
            assert!(x == y && y == z, "{fault:?} on {}", dyn_backend.name());
        }
    }
}

#[test]
fn checkpoints_are_a_way_back_from_a_failed_call() {
    for fault in [Fault::BeforeRun, Fault::AfterRun] {
        for inner in backends() {
            let backend = Faulty::new(inner, |_| false);
            let dyn_backend: Arc<dyn Backend> = Arc::clone(&backend) as _;
            let mut s = open(&dyn_backend);
            let [a, b] = [(); 2].map(|()| s.memory_mut().acquire().unwrap());
            step(&mut s, &[(a, &tokens(1, 5)), (b, &tokens(1, 5))]);
            assert_eq!(s.memory().checkpoint_bytes(), 0);
            s.memory_mut().checkpoint(a).unwrap();
            assert_eq!(s.memory().checkpoint_bytes(), s.memory().bytes_of_checkpoint());
            step(&mut s, &[(a, &tokens(2, 3))]);
            backend.fail(fault);
            assert!(advance(&mut s, &[a]).is_err());
            assert_eq!([4, 5, 7, 8].map(|at| s.memory().reachable(a, at).unwrap()), [0, 5, 5, 5]);
            assert!(matches!(s.memory_mut().rewind(a, 7), Err(Error::TornSlot { .. })));
            s.memory_mut().rewind(a, 5).unwrap();
            let [got, want] = [a, b].map(|slot| continuation(&mut s, slot, 2));
            assert_eq!(got, want, "{fault:?} on {}", dyn_backend.name());
            // Nothing of it is left for the place's next owner.
            s.memory_mut().release(a);
            let a = s.memory_mut().acquire_at(a.index()).unwrap();
            assert_eq!((s.memory().checkpoints(a).unwrap().len(), s.memory().checkpoint_bytes()), (0, 0));
        }
    }
}

#[test]
fn attention_alone_rewinds_anywhere_and_survives_failed_calls() {
    for inner in backends() {
        let backend = Faulty::new(inner, |_| false);
        let mut s = open_attention_only(&[Arc::clone(&backend) as _]);
        let [a, b] = [(); 2].map(|()| s.memory_mut().acquire().unwrap());
        step(&mut s, &[(a, &tokens(1, 5)), (b, &tokens(1, 5))]);
        let want = continuation(&mut s, b, 2);
        for fault in [Fault::BeforeRun, Fault::AfterRun] {
            backend.fail(fault);
            assert!(advance(&mut s, &[a]).is_err());
            assert_eq!(s.memory().n_past(a).unwrap(), 5);
        }
        assert_eq!(continuation(&mut s, a, 2), want, "{}", backend.name());
        assert!(matches!(s.memory_mut().rewind(a, 14), Err(Error::Batch { .. })), "forward");
        s.memory_mut().rewind(a, 5).unwrap();
        assert_eq!(continuation(&mut s, a, 2), want, "{}", backend.name());
        s.memory_mut().release(a);
        assert!(matches!(s.memory_mut().rewind(a, 0), Err(Error::Batch { .. })), "a free slot");
    }
}

#[test]
fn two_backends_give_the_logits_of_one() {
    let [cpu, other] = [0, 0].map(|i| Arc::clone(&backends()[i]));
    let reference = Arc::clone(&backends()[1]);
    let want = {
        let mut s = open(&cpu);
        let slot = s.memory_mut().acquire().unwrap();
        [step(&mut s, &[(slot, &tokens(1, 9))]), step(&mut s, &[(slot, &[5])])].concat()
    };
    // States live on the first backend, so it keeps the ops that touch them.
    let no_products: fn(&Op) -> bool =
        |op| matches!(op, Op::Linear { .. } | Op::LinearGroup { .. } | Op::LinearGlu { .. });
    let no_norms: fn(&Op) -> bool = |op| matches!(op, Op::RmsNorm { .. } | Op::AddRmsNorm { .. } | Op::Rope(_));
    for second in [other, reference] {
        for refuses in [no_products, no_norms] {
            let first = Faulty::new(Arc::clone(&cpu), refuses);
            let second = Faulty::new(Arc::clone(&second), |op| matches!(op, Op::CachedAttention { .. }));
            let both: [Arc<dyn Backend>; 2] = [Arc::clone(&first) as _, Arc::clone(&second) as _];
            let mut s = open_model(SEED, &both, options());
            let slot = s.memory_mut().acquire().unwrap();
            let got = [step(&mut s, &[(slot, &tokens(1, 9))]), step(&mut s, &[(slot, &[5])])].concat();
            assert!(first.compiled().len() > 4 && second.compiled().len() > 2);
            assert!(second.compiled().contains(&if first.refuses(&Op::Linear {
                bias: false,
                act: None,
                precision: Precision::Fast
            }) {
                "linear"
            } else {
                "rope"
            }));
            if second.name() == "cpu" {
                assert_eq!(got, want);
            } else {
                got.iter().zip(&want).for_each(|(got, want)| close(second.name(), got, want));
            }
            // An op that no backend takes is named.
            let neither: [Arc<dyn Backend>; 2] = [Arc::clone(&first) as _, Arc::clone(&first) as _];
            let mut s = open_model(SEED, &neither, options());
            let slot = s.memory_mut().acquire().unwrap();
            assert!(matches!(advance(&mut s, &[slot]), Err(Error::Unsupported { .. })));
        }
    }
}

#[test]
fn a_released_slot_never_reaches_the_next_owner() {
    for backend in backends() {
        let mut s = open(&backend);
        let [stale, other] = [(); 2].map(|()| s.memory_mut().acquire().unwrap());
        step(&mut s, &[(stale, &tokens(1, 5)), (other, &tokens(2, 6))]);
        let snapshot = s.snapshot(stale).unwrap();
        s.memory_mut().release(stale);
        let owner = s.memory_mut().acquire_at(stale.index()).unwrap();
        assert!(owner != stale && owner.index() == stale.index());
        step(&mut s, &[(owner, &tokens(3, 7))]);
        let before = states(&s, owner);

        s.memory_mut().release(stale);
        let mut refused = vec![
            ("n_past", s.memory().n_past(stale).map(|_| ())),
            ("read_state", s.memory().read_state(stale, 0).map(|_| ())),
            ("rewind", s.memory_mut().rewind(stale, 0)),
            ("rewind to a position", s.memory_mut().rewind(stale, 2)),
            ("copy from", s.memory_mut().copy(stale, other)),
            ("copy to", s.memory_mut().copy(other, stale)),
            ("snapshot", s.snapshot(stale).map(|_| ())),
            ("restore", s.restore(stale, &snapshot)),
            ("step", advance(&mut s, &[other, stale])),
            ("step beside the owner", advance(&mut s, &[owner, stale])),
        ];
        refused.push(("feed", s.feed(stale, Tokens::Ids(&[1])).map(|_| ())));
        for (what, result) in refused {
            assert!(matches!(result, Err(Error::Batch { .. })), "{what} on {}: {result:?}", backend.name());
        }
        assert_eq!((s.memory().n_past(owner).unwrap(), s.memory().n_past(other).unwrap()), (7, 6));
        assert_eq!(states(&s, owner), before, "{}", backend.name());
        assert!(s.memory().read_state(owner, 99).is_err(), "a state that the model does not have");
    }
}
