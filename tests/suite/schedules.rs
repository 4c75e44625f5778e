//! Random schedules of everything that can happen to sequences, run in several ways that must not matter.
//!
//! A schedule starts, feeds, copies, rewinds, snapshots, restores, breaks and releases up to eight sequences; a call mixes
//! prompts, audio and single tokens. Every way to run it gives the same bits: graphs reused or built for every call, one graph
//! kept or many, other slots, other bytes in memory before. What a sequence gives is what it gives when every call is its
//! alone, and nothing but a slot's own new rows ever changes.
//!
//! A tenth of the schedules runs by default. `TYMPAN_SCHEDULES` sets how many each test runs, or is `full`;
//! `TYMPAN_SCHEDULE_SEED` sets the first one's seed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;

use convert::FileType;
use engine::Error;
use engine::backend::{Backend, Buffer};
use engine::batch::{Batch, Rows, Sequence, Tokens};
use engine::memory::Slot;
use engine::session::{Reuse, Session, SessionOptions};
use engine::state::StateSpec;
use models::LoadOptions;
use models::sample::greedy;
use tests::compare::nmse;
use tests::faulty::{Fault, Faulty};
use tests::rng::Rng;

use crate::checkpoint::converted;
use crate::hybrid;

/// Most sequences of a schedule.
const MAX_SEQS: usize = 8;
/// Slots of a session: one more than sequences, so that permutations leave holes.
const N_SLOTS: usize = MAX_SEQS + 1;
const N_CTX: usize = 64;
/// Most tokens of one sequence in one call.
const MAX_TOKENS: usize = 20;
/// Bytes that lie in memory before the first token; f32 words of the last are NaN.
const FILLS: [u8; 3] = [0x00, 0x3e, 0xff];
/// Relative difference of logits between a sequence alone and in a batch: sums in another order.
const CLOSE: f32 = 1e-4;
/// The same as a normalised squared error where weights are quantized: calls of few rows round activations to 8 bits in other
/// groups than calls of many.
const QUANTIZED_NMSE: f64 = 5e-4;
/// One of so many schedules runs by default.
const SHARE: u64 = 10;

/// How the logits of a sequence in company may differ from those it has alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Company {
    /// Not at all.
    Same,
    /// By [`CLOSE`].
    Close,
    /// By [`QUANTIZED_NMSE`], with the same first choice wherever two choices are not closer than that.
    Quantized,
}

/// A model to run schedules on.
struct Subject {
    open: Box<dyn Fn(Arc<dyn Backend>, SessionOptions) -> Session>,
    inner: Box<dyn Fn() -> Arc<dyn Backend>>,
    n_vocab: usize,
    n_embd: usize,
    steps: usize,
    company: Company,
}

/// What one position is fed with.
#[derive(Clone, Copy, Debug)]
enum Token {
    Id(u32),
    /// A vector made from this seed.
    Vector(u64),
    /// A vector of NaN.
    Nan,
}

#[derive(Clone, Debug)]
enum Op {
    Start(usize),
    /// The next tokens of some sequences, and which of them get logits.
    Feed {
        seqs: Vec<(usize, Vec<Token>, Rows)>,
    },
    /// A call of one token each that goes wrong; its sequences then start again.
    Fail {
        seqs: Vec<usize>,
        fault: Fault,
    },
    Copy {
        from: usize,
        to: usize,
    },
    /// To position 0, to where it is, or in between, which is refused.
    Rewind {
        seq: usize,
        n_past: usize,
        refused: bool,
    },
    Snapshot {
        seq: usize,
    },
    Restore {
        seq: usize,
        i_snapshot: usize,
    },
    Release(usize),
}

/// What a sequence has been fed with.
#[derive(Clone, Default, Debug)]
struct History(Vec<Token>);

impl History {
    fn is_tainted(&self) -> bool {
        self.0.iter().any(|t| matches!(t, Token::Nan))
    }
}

struct Schedule {
    ops: Vec<Op>,
    /// Histories of the sequences that are left.
    left: BTreeMap<usize, History>,
}

impl Schedule {
    fn new(rng: &mut Rng, subject: &Subject) -> Self {
        let n_seqs = 1 + rng.below(MAX_SEQS);
        let mut live: BTreeMap<usize, History> = BTreeMap::new();
        let mut snapshots: Vec<History> = Vec::new();
        let mut ops = Vec::new();
        for _ in 0..subject.steps {
            let held: Vec<usize> = live.keys().copied().collect();
            let free: Vec<usize> = (0..n_seqs).filter(|s| !live.contains_key(s)).collect();
            let kind = rng.below(20);
            if held.is_empty() || kind < 4 && !free.is_empty() {
                let seq = *rng.pick(&free);
                live.insert(seq, History::default());
                ops.push(Op::Start(seq));
                continue;
            }
            let seq = *rng.pick(&held);
            match kind {
                0..=12 => ops.extend(Self::feed(rng, subject, &mut live)),
                13 => {
                    let roomy: Vec<usize> = held.into_iter().filter(|s| live[s].0.len() < N_CTX).collect();
                    if roomy.is_empty() {
                        continue;
                    }
                    let seqs = some_of(rng, &roomy);
                    seqs.iter().for_each(|s| live.entry(*s).or_default().0.clear());
                    ops.push(Op::Fail { seqs, fault: *rng.pick(&[Fault::BeforeRun, Fault::AfterRun]) });
                }
                14 => {
                    let to = *rng.pick(&held);
                    let copied = live[&seq].clone();
                    live.insert(to, copied);
                    ops.push(Op::Copy { from: seq, to });
                }
                15 => {
                    let now = live[&seq].0.len();
                    let n_past = *rng.pick(&[0, now / 2, now]);
                    let refused = n_past > 0 && n_past < now;
                    if !refused {
                        live.entry(seq).or_default().0.truncate(n_past);
                    }
                    ops.push(Op::Rewind { seq, n_past, refused });
                }
                16 => {
                    snapshots.push(live[&seq].clone());
                    ops.push(Op::Snapshot { seq });
                }
                17 if !snapshots.is_empty() => {
                    let i_snapshot = rng.below(snapshots.len());
                    live.insert(seq, snapshots[i_snapshot].clone());
                    ops.push(Op::Restore { seq, i_snapshot });
                }
                _ => {
                    live.remove(&seq);
                    ops.push(Op::Release(seq));
                }
            }
        }
        Self { ops, left: live }
    }

    fn feed(rng: &mut Rng, subject: &Subject, live: &mut BTreeMap<usize, History>) -> Option<Op> {
        let roomy: Vec<usize> = live.iter().filter(|(_, h)| h.0.len() + MAX_TOKENS <= N_CTX).map(|(s, _)| *s).collect();
        if roomy.is_empty() {
            return None;
        }
        // Steps of decode alone, and steps in which some sequences bring prompts, half of them with audio.
        let longest = *rng.pick(&[1, 1, 1, 3, 8, MAX_TOKENS]);
        let seqs = some_of(rng, &roomy).into_iter().map(|seq| {
            let n = if rng.below(2) == 0 { 1 } else { 1 + rng.below(longest) };
            let vectors = n > 1 && rng.below(2) == 0;
            let poison = vectors && rng.below(12) == 0;
            let token = |rng: &mut Rng| match rng.below(2) {
                0 if poison => Token::Nan,
                0 if vectors => Token::Vector(rng.next_u64()),
                _ => Token::Id(u32::try_from(rng.below(subject.n_vocab)).unwrap()),
            };
            let tokens: Vec<Token> = (0..n).map(|_| token(rng)).collect();
            live.entry(seq).or_default().0.extend(&tokens);
            let tail = Rows::Tail(1 + rng.below(n));
            (seq, tokens, *rng.pick(&[Rows::Last, Rows::Last, Rows::All, Rows::None, tail]))
        });
        Some(Op::Feed { seqs: seqs.collect() })
    }
}

/// Ids, the last of which gets logits.
fn last_of(slot: Slot, ids: &[u32]) -> Sequence<'_> {
    Sequence { slot, tokens: Tokens::Ids(ids), rows: Rows::Last }
}

/// At least one of them, in random order.
fn some_of(rng: &mut Rng, all: &[usize]) -> Vec<usize> {
    let mut rest = all.to_vec();
    let n = 1 + rng.below(all.len());
    (0..n).map(|_| rest.swap_remove(rng.below(rest.len()))).collect()
}

/// Tokens as a call takes them.
struct Fed {
    ids: Vec<u32>,
    mixed: Vec<i32>,
    embeddings: Vec<f32>,
}

impl Fed {
    fn new(tokens: &[Token], n_embd: usize) -> Self {
        let mut fed = Self { ids: Vec::new(), mixed: Vec::new(), embeddings: Vec::new() };
        for token in tokens {
            match token {
                Token::Id(id) => fed.ids.push(*id),
                Token::Vector(seed) => fed.embeddings.extend(Rng::new(*seed).floats(n_embd, [-1.0, 1.0])),
                Token::Nan => fed.embeddings.extend(vec![f32::NAN; n_embd]),
            }
            fed.mixed.push(if let Token::Id(id) = token { i32::try_from(*id).unwrap() } else { -1 });
        }
        fed
    }

    fn tokens(&self) -> Tokens<'_> {
        if self.embeddings.is_empty() {
            Tokens::Ids(&self.ids)
        } else {
            Tokens::Mixed { ids: &self.mixed, embeddings: &self.embeddings }
        }
    }
}

/// One way to run a schedule.
struct Way {
    name: &'static str,
    options: SessionOptions,
    /// Slot of every sequence.
    slots: Vec<usize>,
    fill: u8,
    checks_memory: bool,
    /// Whether every sequence of a call has a call of its own.
    apart: bool,
}

fn ways(rng: &mut Rng) -> [Way; 5] {
    let identity: Vec<usize> = (0..N_SLOTS).collect();
    let mut permuted = identity.clone();
    (1..N_SLOTS).rev().for_each(|i| permuted.swap(i, rng.below(i + 1)));
    let options = || SessionOptions { n_slots: N_SLOTS, n_ctx: N_CTX, ..hybrid::options() };
    let way = |name, reuse, cached_graphs| Way {
        name,
        options: SessionOptions { reuse, cached_graphs, ..options() },
        slots: identity.clone(),
        fill: 0,
        checks_memory: false,
        apart: false,
    };
    [
        Way { checks_memory: true, ..way("verified reuse", Reuse::Verified, 32) },
        way("no reuse", Reuse::Off, 32),
        way("one kept graph", Reuse::On, 1),
        Way { slots: permuted, fill: *rng.pick(&FILLS), ..way("other slots and other bytes", Reuse::On, 32) },
        Way { apart: true, ..way("every sequence alone", Reuse::On, 32) },
    ]
}

/// A session in the middle of a schedule.
struct Run<'a> {
    subject: &'a Subject,
    way: &'a Way,
    backend: Arc<Faulty>,
    session: Session,
    slots: BTreeMap<usize, Slot>,
    tainted: BTreeMap<usize, bool>,
    snapshots: Vec<(Vec<u8>, bool)>,
    /// Logits of every call, in order.
    logits: Vec<Vec<f32>>,
    /// Logits of every sequence's last token, where its last call gave some.
    last: BTreeMap<usize, Vec<f32>>,
}

impl<'a> Run<'a> {
    fn new(subject: &'a Subject, way: &'a Way) -> Self {
        let backend = Faulty::new((subject.inner)(), |_| false);
        let session = (subject.open)(Arc::clone(&backend) as _, way.options.clone());
        for (spec, buffer) in session.memory().specs().iter().zip(session.memory().buffers()) {
            let bytes = vec![way.fill; spec.used_bytes(N_CTX)];
            (0..N_SLOTS).for_each(|slot| backend.write(buffer, slot * spec.bytes(), &bytes).unwrap());
        }
        let (slots, tainted, last) = Default::default();
        Self { subject, way, backend, session, slots, tainted, snapshots: Vec::new(), logits: Vec::new(), last }
    }

    fn op(&mut self, op: &Op) {
        match op {
            Op::Start(seq) => {
                let slot = self.session.memory_mut().acquire_at(self.way.slots[*seq]).unwrap();
                self.slots.insert(*seq, slot);
                self.tainted.insert(*seq, false);
                self.last.remove(seq);
            }
            Op::Feed { seqs } if self.way.apart => seqs.chunks(1).for_each(|seq| self.feed(seq)),
            Op::Feed { seqs } => self.feed(seqs),
            Op::Fail { seqs, fault } => self.fail(seqs, *fault),
            Op::Copy { from, to } => {
                self.session.memory_mut().copy(self.slots[from], self.slots[to]).unwrap();
                self.tainted.insert(*to, self.tainted[from]);
                self.inherit(*to, self.last.get(from).cloned());
            }
            Op::Rewind { seq, n_past, refused } => {
                let result = self.session.memory_mut().rewind(self.slots[seq], *n_past);
                assert_eq!(matches!(result, Err(Error::NotRewindable)), *refused, "{result:?}");
                if *n_past == 0 {
                    self.tainted.insert(*seq, false);
                    self.last.remove(seq);
                }
            }
            Op::Snapshot { seq } => {
                let bytes = self.session.snapshot(self.slots[seq]).unwrap();
                self.snapshots.push((bytes, self.tainted[seq]));
            }
            Op::Restore { seq, i_snapshot } => {
                let (bytes, tainted) = &self.snapshots[*i_snapshot];
                self.session.restore(self.slots[seq], bytes).unwrap();
                self.tainted.insert(*seq, *tainted);
                self.last.remove(seq);
            }
            Op::Release(seq) => self.release(*seq),
        }
    }

    fn inherit(&mut self, seq: usize, last: Option<Vec<f32>>) {
        match last {
            Some(last) => self.last.insert(seq, last),
            None => self.last.remove(&seq),
        };
    }

    fn release(&mut self, seq: usize) {
        let slot = self.slots.remove(&seq).unwrap();
        self.session.memory_mut().release(slot);
        self.last.remove(&seq);
    }

    fn feed(&mut self, seqs: &[(usize, Vec<Token>, Rows)]) {
        let fed: Vec<Fed> = seqs.iter().map(|(_, tokens, _)| Fed::new(tokens, self.subject.n_embd)).collect();
        let batch: Vec<Sequence<'_>> = seqs
            .iter()
            .zip(&fed)
            .map(|((seq, _, rows), fed)| Sequence { slot: self.slots[seq], tokens: fed.tokens(), rows: *rows })
            .collect();
        let before = self.way.checks_memory.then(|| self.memory());
        let past: Vec<usize> = batch.iter().map(|s| self.session.memory().n_past(s.slot).unwrap()).collect();
        let logits = self.session.step(&Batch { seqs: &batch }).unwrap();
        for (i, (seq, tokens, rows)) in seqs.iter().enumerate() {
            *self.tainted.get_mut(seq).unwrap() |= tokens.iter().any(|t| matches!(t, Token::Nan));
            let n_rows = rows.count(tokens.len());
            let last = (n_rows > 0).then(|| logits.last(i));
            if let Some(last) = last {
                let finite = last.iter().all(|v| v.is_finite());
                assert!(finite || self.tainted[seq], "sequence {seq} was never fed NaN");
                assert!(!finite || !self.tainted[seq], "sequence {seq} forgets that it was fed NaN");
            }
            match last {
                Some(last) => self.last.insert(*seq, last.to_vec()),
                None => self.last.remove(seq),
            };
            self.logits.extend((0..n_rows).map(|row| logits.row(i, row).to_vec()));
        }
        if let Some(before) = before {
            let changed: Vec<(usize, usize, usize)> =
                batch.iter().zip(past).map(|(s, past)| (s.slot.index(), past, past + s.tokens.len())).collect();
            self.check_memory(&before, &changed);
        }
    }

    /// The bytes of all states that sequences of these lengths can reach.
    fn memory(&self) -> Vec<Vec<u8>> {
        let read = |(spec, buffer): (&StateSpec, &Buffer)| {
            let n = spec.used_bytes(N_CTX);
            let mut bytes = vec![0; N_SLOTS * n];
            for (slot, bytes) in bytes.chunks_exact_mut(n).enumerate() {
                self.backend.read(buffer, slot * spec.bytes(), bytes).unwrap();
            }
            bytes
        };
        let memory = self.session.memory();
        memory.specs().iter().zip(memory.buffers()).map(read).collect()
    }

    /// Fails unless everything is as `before` but for the rows of `(slot, first, end)` and their recurrent states.
    fn check_memory(&self, before: &[Vec<u8>], changed: &[(usize, usize, usize)]) {
        let after = self.memory();
        for ((spec, before), after) in self.session.memory().specs().iter().zip(before).zip(&after) {
            let n = spec.used_bytes(N_CTX);
            let slots = before.chunks_exact(n).zip(after.chunks_exact(n));
            for (slot, (before, after)) in slots.enumerate() {
                let range = match changed.iter().find(|(s, ..)| *s == slot) {
                    None => 0..0,
                    Some(_) if spec.role.is_recurrent() => 0..n,
                    Some(&(_, first, end)) => spec.used_bytes(first)..spec.used_bytes(end),
                };
                let same = before[..range.start] == after[..range.start] && before[range.end..] == after[range.end..];
                assert!(same, "{:?} of layer {}: slot {slot} changed outside of {range:?}", spec.role, spec.layer);
            }
        }
    }

    fn fail(&mut self, seqs: &[usize], fault: Fault) {
        let batch: Vec<Sequence<'_>> = seqs.iter().map(|seq| last_of(self.slots[seq], &[0])).collect();
        let past: Vec<usize> = batch.iter().map(|s| self.session.memory().n_past(s.slot).unwrap()).collect();
        self.backend.fail(fault);
        assert!(self.session.step(&Batch { seqs: &batch }).is_err());
        for (seq, past) in seqs.iter().zip(past) {
            let slot = self.slots[seq];
            match self.session.memory().n_past(slot) {
                Ok(n) => assert_eq!((n, past), (0, 0)),
                Err(e) => assert!(matches!(e, Error::TornSlot { .. }) && past > 0, "{e}"),
            }
            self.session.memory_mut().rewind(slot, 0).unwrap();
            self.tainted.insert(*seq, false);
            self.last.remove(seq);
        }
    }

    /// Fails unless every sequence that is left gave what it gives alone in one piece.
    fn check_alone(&mut self, left: &BTreeMap<usize, History>) {
        for (seq, history) in left {
            let n_past = self.session.memory().n_past(self.slots[seq]).unwrap();
            assert_eq!(n_past, history.0.len(), "length of sequence {seq}");
            let Some(last) = self.last.get(seq).filter(|_| !history.is_tainted()) else { continue };
            let fed = Fed::new(&history.0, self.subject.n_embd);
            let slot = self.session.memory_mut().acquire_at(self.way.slots[N_SLOTS - 1]).unwrap();
            let alone = self.session.feed(slot, fed.tokens()).unwrap();
            if self.subject.company != Company::Quantized {
                close(last, alone);
            }
            self.session.memory_mut().release(slot);
        }
    }
}

/// Fails unless logits agree to [`CLOSE`].
fn close(got: &[f32], want: &[f32]) {
    let largest = want.iter().fold(1.0f32, |a, b| a.max(b.abs()));
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= CLOSE * largest, "{worst} off what the sequence gives alone");
}

/// Fails unless logits agree to [`QUANTIZED_NMSE`] and in the largest one, where that is clear.
fn close_enough(got: &[f32], want: &[f32]) {
    let error = nmse(got, want);
    assert!(error <= QUANTIZED_NMSE, "off by {error:e} from what the sequence gives alone");
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let mut sorted = want.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    assert!(sorted[0] - sorted[1] <= 2.0 * worst || greedy(got) == greedy(want), "another first choice");
}

/// Compares logits in company with those of every sequence alone. A sequence that was fed NaN has none to compare.
fn compare_company(company: Company, got: &[Vec<f32>], alone: &[Vec<f32>]) {
    if company == Company::Same {
        assert!(bits(got) == bits(alone), "other bits than every sequence alone");
        return;
    }
    assert_eq!(got.len(), alone.len());
    for (got, alone) in got.iter().zip(alone) {
        let is_nan = |row: &[f32]| row.iter().any(|v| v.is_nan());
        assert_eq!(is_nan(got), is_nan(alone));
        match company {
            _ if is_nan(got) => {}
            Company::Quantized => close_enough(got, alone),
            Company::Same | Company::Close => close(got, alone),
        }
    }
}

/// The bit patterns, with one pattern for NaN.
fn bits(logits: &[Vec<f32>]) -> Vec<Vec<u32>> {
    let bits = |v: &f32| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() };
    logits.iter().map(|row| row.iter().map(bits).collect()).collect()
}

fn run(subject: &Subject, seed: u64) {
    let mut rng = Rng::new(seed);
    let schedule = Schedule::new(&mut rng, subject);
    let mut first: Option<Vec<Vec<f32>>> = None;
    for way in ways(&mut rng) {
        let mut run = Run::new(subject, &way);
        let result = catch_unwind(AssertUnwindSafe(|| {
            schedule.ops.iter().for_each(|op| run.op(op));
            if way.checks_memory {
                run.check_alone(&schedule.left);
            }
            let logits = std::mem::take(&mut run.logits);
            match &first {
                None => first = Some(logits),
                Some(first) if way.apart => compare_company(subject.company, first, &logits),
                Some(first) => assert!(bits(first) == bits(&logits), "other bits than the first way"),
            }
        }));
        if let Err(panic) = result {
            let mut text = format!("seed {seed}, {}:\n", way.name);
            schedule.ops.iter().for_each(|op| writeln!(text, "  {op:?}").unwrap());
            let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
            resume_unwind(panic);
        }
    }
}

/// Runs a share of `n` schedules, or as many as the environment says, from a seed of the test's own on.
fn run_many(subject: &Subject, test: u64, n: u64) {
    let variable = |name: &str| std::env::var(name).ok();
    let first = variable("TYMPAN_SCHEDULE_SEED").map_or(test << 32, |v| v.parse().expect("a number"));
    let n = match variable("TYMPAN_SCHEDULES").as_deref() {
        None => n.div_ceil(SHARE),
        Some("full") => n,
        Some(number) => number.parse().expect("a number, or full"),
    };
    (first..first + n).for_each(|seed| run(subject, seed));
}

fn cpu(threads: usize) -> Arc<dyn Backend> {
    backends::open("cpu", &backends::Options { threads: NonZeroUsize::new(threads) }).unwrap()
}

/// The model of one attention and one convolution layer.
fn small(backend: Arc<dyn Backend>) -> Subject {
    Subject {
        company: if backend.name() == "reference" { Company::Same } else { Company::Close },
        open: Box::new(|backend, options| hybrid::open_model(hybrid::SEED, &[backend], options)),
        inner: Box::new(move || Arc::clone(&backend)),
        n_vocab: hybrid::N_VOCAB,
        n_embd: hybrid::N_EMBD,
        steps: 24,
    }
}

#[test]
fn schedules_on_one_thread() {
    run_many(&small(cpu(1)), 1, 1000);
}

#[test]
fn more_schedules_on_one_thread() {
    run_many(&small(cpu(1)), 2, 900);
}

#[test]
fn schedules_on_two_threads() {
    run_many(&small(cpu(2)), 3, 60);
}

#[test]
fn schedules_on_the_reference() {
    run_many(&small(backends::open("reference", &backends::Options::default()).unwrap()), 4, 40);
}

/// A golden checkpoint with weights of this type.
fn golden(name: &str, file_type: FileType, company: Company) -> Subject {
    let file = converted(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden").join(name), file_type);
    let loaded = models::load(vec![file], LoadOptions::default()).unwrap();
    let (n_vocab, n_embd) = (loaded.model.n_vocab(), loaded.model.n_embd());
    let open =
        move |backend, options| Session::open(Arc::clone(&loaded.model), &loaded.weights, &[backend], options).unwrap();
    let backend = cpu(1);
    let inner = Box::new(move || Arc::clone(&backend));
    Subject { open: Box::new(open), inner, n_vocab, n_embd, steps: 24, company }
}

#[test]
fn schedules_of_a_real_architecture() {
    run_many(&golden("lfm2", FileType::F32, Company::Close), 5, 60);
}

#[test]
fn schedules_of_delta_nets() {
    run_many(&golden("qwen3_5", FileType::F32, Company::Close), 8, 60);
    run_many(&golden("qwen3_5_moe", FileType::F32, Company::Close), 9, 60);
    run_many(&golden("qwen3_next", FileType::F32, Company::Close), 10, 60);
}

#[test]
fn schedules_of_state_space_models() {
    for (seed, name) in (11..).zip(["mamba", "mamba2", "jamba", "granitemoehybrid", "granitemoehybrid_moe"]) {
        run_many(&golden(name, FileType::F32, Company::Close), seed, 60);
    }
}

#[test]
fn schedules_of_quantized_weights() {
    run_many(&golden("lfm2", FileType::Q8_0, Company::Quantized), 6, 60);
    run_many(&golden("lfm2", FileType::Q4_0, Company::Quantized), 7, 60);
}

/// Greedy ids of one sequence alone.
fn alone(prompt: &[u32], n: usize) -> Vec<u32> {
    let mut s = hybrid::open_model(hybrid::SEED, &[cpu(1)], hybrid::options());
    let slot = s.memory_mut().acquire().unwrap();
    let mut ids = vec![pick(s.feed(slot, Tokens::Ids(prompt)).unwrap())];
    while ids.len() < n {
        ids.push(pick(s.feed(slot, Tokens::Ids(&ids[ids.len() - 1..])).unwrap()));
    }
    ids
}

fn pick(logits: &[f32]) -> u32 {
    u32::try_from(greedy(logits).unwrap()).unwrap()
}

#[test]
fn eight_sequences_that_join_one_after_another_give_the_ids_each_gives_alone() {
    const N_IDS: usize = 40;
    let prompts: Vec<Vec<u32>> = (0..8).map(|i| hybrid::tokens(100 + i, 3 + 2 * i as usize)).collect();
    let want: Vec<Vec<u32>> = prompts.iter().map(|p| alone(p, N_IDS)).collect();
    for seed in 0..4 {
        let mut rng = Rng::new(seed);
        let options = SessionOptions { n_slots: N_SLOTS, ..hybrid::options() };
        let mut s = hybrid::open_model(hybrid::SEED, &[cpu(2)], options);
        let mut waiting: Vec<usize> = (0..8).collect();
        let mut running: Vec<(usize, Slot)> = Vec::new();
        let mut ids: Vec<Vec<u32>> = vec![Vec::new(); 8];
        while !waiting.is_empty() || !running.is_empty() {
            while !waiting.is_empty() && (running.is_empty() || rng.below(3) == 0) {
                let i = waiting.swap_remove(rng.below(waiting.len()));
                running.insert(rng.below(running.len() + 1), (i, s.memory_mut().acquire().unwrap()));
            }
            // New sequences bring their whole prompt, the others one token.
            let seqs: Vec<Sequence<'_>> = running
                .iter()
                .map(|&(i, slot)| {
                    let next = if ids[i].is_empty() { &prompts[i] } else { &ids[i][ids[i].len() - 1..] };
                    last_of(slot, next)
                })
                .collect();
            let logits = s.step(&Batch { seqs: &seqs }).unwrap();
            let next: Vec<u32> = (0..seqs.len()).map(|k| pick(logits.last(k))).collect();
            running.iter().zip(next).for_each(|((i, _), id)| ids[*i].push(id));
            running.retain(|&(i, slot)| {
                if ids[i].len() == N_IDS {
                    s.memory_mut().release(slot);
                }
                ids[i].len() < N_IDS
            });
        }
        assert_eq!(ids, want, "seed {seed}");
    }
}

#[test]
fn equal_prompts_at_the_same_time_have_one_answer() {
    let prompt = hybrid::tokens(7, 9);
    let want = alone(&prompt, 24);
    for n in [2, 4, 8] {
        let options = SessionOptions { n_slots: n, ..hybrid::options() };
        let mut s = hybrid::open_model(hybrid::SEED, &[cpu(2)], options);
        let slots: Vec<Slot> = (0..n).map(|_| s.memory_mut().acquire().unwrap()).collect();
        let mut ids: Vec<Vec<u32>> = vec![prompt.clone(); n];
        let mut fed = 0;
        for _ in 0..want.len() {
            let seqs: Vec<Sequence<'_>> =
                slots.iter().zip(&ids).map(|(&slot, ids)| last_of(slot, &ids[fed..])).collect();
            let logits = s.step(&Batch { seqs: &seqs }).unwrap();
            let next: Vec<u32> = (0..n).map(|i| pick(logits.last(i))).collect();
            fed = ids[0].len();
            ids.iter_mut().zip(next).for_each(|(ids, id)| ids.push(id));
        }
        assert!(ids.iter().all(|ids| ids[prompt.len()..] == want), "{n} sequences");
    }
}

/// Twelve sequences of thirteen: the one that pads the batch has no rows and names slot 0.
#[test]
fn sequences_that_pad_a_batch_change_nothing() {
    for name in ["cpu", "reference"] {
        let backend = backends::open(name, &backends::Options::default()).unwrap();
        let options = SessionOptions { n_slots: 13, ..hybrid::options() };
        let mut s = hybrid::open_model(hybrid::SEED, &[backend], options);
        let slots: Vec<Slot> = (0..13).map(|_| s.memory_mut().acquire().unwrap()).collect();
        hybrid::step(&mut s, &[(slots[0], &hybrid::tokens(1, 5))]);
        let before = hybrid::states(&s, slots[0]);
        let seqs: Vec<(Slot, &[u32])> = slots[1..].iter().map(|&slot| (slot, &[3, 4][..])).collect();
        let logits = hybrid::step(&mut s, &seqs);
        assert_eq!(hybrid::states(&s, slots[0]), before, "{name}");
        assert!(logits.iter().all(|l| *l == logits[0]), "{name}");
    }
}

/// A session for calls that only count.
fn counted(n_slots: usize) -> Session {
    let options = SessionOptions { n_slots, n_ctx: 600, ..hybrid::options() };
    hybrid::open_model(hybrid::SEED, &[cpu(1)], options)
}

#[track_caller]
fn assert_hit_rate(s: &Session, least: f64) {
    let stats = s.stats();
    assert!(stats.hit_rate() >= least, "{} of {} calls, {stats:?}", stats.hits, stats.hits + stats.builds);
}

#[test]
fn steady_decode_reuses_its_graph() {
    let mut s = counted(1);
    let slot = s.memory_mut().acquire().unwrap();
    hybrid::step(&mut s, &[(slot, &hybrid::tokens(1, 100))]);
    for _ in 0..400 {
        hybrid::step(&mut s, &[(slot, &[5])]);
    }
    assert_eq!(s.stats().builds, 2);
    assert_hit_rate(&s, 0.99);
}

/// Prompts of any length up to 500 tokens, answers of 20 to 80.
#[test]
fn sequences_that_join_and_leave_at_random_reuse_graphs() {
    for seed in 0..3 {
        let mut s = counted(4);
        let mut rng = Rng::new(seed);
        let mut running: Vec<(Slot, usize)> = Vec::new();
        for _ in 0..1500 {
            if running.len() < 4 && rng.below(8) == 0 {
                let slot = s.memory_mut().acquire().unwrap();
                hybrid::step(&mut s, &[(slot, &hybrid::tokens(seed, 1 + rng.below(500)))]);
                running.push((slot, 20 + rng.below(60)));
            }
            if !running.is_empty() {
                let seqs: Vec<(Slot, &[u32])> = running.iter().map(|&(slot, _)| (slot, &[7][..])).collect();
                hybrid::step(&mut s, &seqs);
            }
            running.iter_mut().for_each(|(_, left)| *left -= 1);
            running.retain(|&(slot, left)| {
                if left == 0 {
                    s.memory_mut().release(slot);
                }
                left > 0
            });
        }
        assert_hit_rate(&s, 0.9);
    }
}

#[test]
fn alternating_batch_sizes_reuse_graphs() {
    const SIZES: [usize; 4] = [1, 4, 16, 48];
    // So many sequences of one token, and one sequence of so many tokens.
    let mut s = counted(48);
    let slots: Vec<Slot> = (0..48).map(|_| s.memory_mut().acquire().unwrap()).collect();
    for round in 0..25 {
        for n in SIZES {
            let seqs: Vec<(Slot, &[u32])> = slots[48 - n..].iter().map(|&slot| (slot, &[7][..])).collect();
            hybrid::step(&mut s, &seqs);
            if round == 0 {
                continue;
            }
            s.memory_mut().rewind(slots[0], 0).unwrap();
            hybrid::step(&mut s, &[(slots[0], &hybrid::tokens(3, n))]);
        }
    }
    // Four sizes of each kind, where a single token is the same call either way.
    assert_eq!(s.stats().builds, 7);
    assert_hit_rate(&s, 0.9);
}
