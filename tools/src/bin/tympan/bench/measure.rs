//! Runs the tests of language models: prompts, continuations, and both behind a filled context.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::backend::Backend;
use engine::batch::{Batch, Rows, Sequence, Tokens};
use engine::gguf::Gguf;
use engine::memory::Slot;
use engine::session::{Reuse, Session, SessionOptions};
use engine::{DType, Result};
use models::Loaded;

use super::profile::Breakdown;

/// Seed of the random tokens: any will do, the same ones every time.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a test consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Test {
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Tokens fed one by one after it.
    pub n_gen: usize,
    /// Tokens that the context holds before.
    pub n_depth: usize,
    /// Sequences of these sizes at once.
    pub n_parallel: usize,
}

impl Test {
    /// `pp512`, `tg128`, `pp512+tg128`, with ` @ d4096` behind.
    pub(super) fn name(&self) -> String {
        let mut name = match (self.n_prompt, self.n_gen) {
            (p, 0) => format!("pp{p}"),
            (0, g) => format!("tg{g}"),
            (p, g) => format!("pp{p}+tg{g}"),
        };
        if self.n_depth > 0 {
            name.push_str(&format!(" @ d{}", self.n_depth));
        }
        name
    }

    /// The same, with the number of sequences where there are several: what says it where no column does.
    pub(super) fn full_name(&self) -> String {
        match self.n_parallel {
            1 => self.name(),
            n => format!("{}, {n} sequences", self.name()),
        }
    }

    /// Tokens that the context of a sequence has to hold.
    pub(super) fn n_ctx(&self) -> usize {
        self.n_prompt + self.n_gen + self.n_depth
    }

    /// Tokens that are timed, those of all sequences together.
    pub(super) fn n_tokens(&self) -> usize {
        self.n_parallel * (self.n_prompt + self.n_gen)
    }
}

/// How a session is opened for tests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    /// Most tokens of a batch.
    pub n_batch: usize,
    /// Most tokens of a piece of it.
    pub n_ubatch: usize,
    /// Format of keys and values.
    pub kv_dtype: DType,
    /// Whether compiled graphs are used again.
    pub reuse: Reuse,
}

/// What a test took.
#[derive(Clone, Default, Debug)]
pub(super) struct Measured {
    /// Nanoseconds of every repetition.
    pub samples_ns: Vec<u64>,
    /// Nanoseconds of every call of all repetitions.
    pub steps_ns: Vec<u64>,
    /// Graphs built, and used again.
    pub graphs: [u64; 2],
    /// Mean microseconds of a call outside of the compiled graph.
    pub host_us_per_step: f64,
    /// Bytes of states of fixed extent that a step read and wrote, in the mean.
    pub state_bytes_per_step: f64,
}

/// A session with a context of `test`'s size, and where its random tokens come from.
pub(super) struct Bench {
    session: Session,
    tokens: RandomTokens,
    setup: Setup,
    test: Test,
}

impl Bench {
    /// Opens a session for one test.
    ///
    /// Errors: a context that is too long, too little memory.
    pub(super) fn open(loaded: &Loaded, backend: &Arc<dyn Backend>, setup: Setup, test: Test) -> Result<Self> {
        let options = SessionOptions {
            // One sequence holds the filled context, the others are timed.
            n_slots: test.n_parallel + usize::from(test.n_depth > 0),
            n_ctx: test.n_ctx().max(1),
            kv_dtype: setup.kv_dtype,
            max_tokens: setup.n_ubatch.min(setup.n_batch).max(1),
            reuse: setup.reuse,
            timed: true,
            // As programs that clear a cache keep its memory.
            spare_bytes: usize::MAX,
            ..SessionOptions::default()
        };
        let session =
            Session::open(Arc::clone(&loaded.model), &loaded.weights, std::slice::from_ref(backend), options)?;
        let tokens = RandomTokens::new(&loaded.files[0], loaded.model.n_vocab());
        Ok(Self { session, tokens, setup, test })
    }

    /// An untimed prompt and an untimed step, as far as the test has them.
    ///
    /// Errors: those of the session.
    pub(super) fn warm_up(&mut self) -> Result<()> {
        let n_prompt = self.test.n_prompt;
        let steps = usize::from(self.test.n_gen > 0);
        let slots = self.acquire()?;
        let result = self.run(&slots, n_prompt, steps, &mut Vec::new());
        self.release(slots);
        result
    }

    /// Fills the context and times `repetitions` runs.
    ///
    /// Errors: those of the session.
    pub(super) fn measure(&mut self, repetitions: usize) -> Result<Measured> {
        let filled = if self.test.n_depth > 0 { Some(self.fill()?) } else { None };
        self.repeat(repetitions, filled)
    }

    /// Times `repetitions` runs behind the context of `filled`, which is free again afterwards.
    fn repeat(&mut self, repetitions: usize, filled: Option<Slot>) -> Result<Measured> {
        let mut measured = Measured::default();
        let before = self.session.stats();
        for _ in 0..repetitions {
            let slots = self.acquire()?;
            if let Some(filled) = filled {
                slots.iter().try_for_each(|&slot| self.session.memory_mut().copy(filled, slot))?;
            }
            let start = Instant::now();
            let result = self.run(&slots, self.test.n_prompt, self.test.n_gen, &mut measured.steps_ns);
            measured.samples_ns.push(nanoseconds(start));
            self.release(slots);
            result?;
        }
        if let Some(filled) = filled {
            self.session.memory_mut().release(filled);
        }
        let after = self.session.stats();
        measured.graphs = [after.builds - before.builds, after.hits - before.hits];
        let total: u64 = measured.steps_ns.iter().sum();
        let outside = total.saturating_sub(after.run_ns - before.run_ns);
        let n_steps = measured.steps_ns.len().max(1) as f64;
        measured.host_us_per_step = outside as f64 / 1e3 / n_steps;
        // Graphs that were dropped in between took their count with them.
        measured.state_bytes_per_step = after.state_traffic.saturating_sub(before.state_traffic) as f64 / n_steps;
        Ok(measured)
    }

    /// Runs `repetitions` more with a clock at every op.
    ///
    /// Errors: those of the session.
    pub(super) fn profile(&mut self, repetitions: usize) -> Result<Breakdown> {
        self.session.set_profiling(true);
        self.warm_up()?;
        let filled = if self.test.n_depth > 0 { Some(self.fill()?) } else { None };
        // From here on: what came before made graphs known.
        self.session.set_profiling(true);
        let steps_ns = self.repeat(repetitions, filled)?.steps_ns;
        let elapsed = Duration::from_nanos(steps_ns.iter().sum());
        let breakdown = Breakdown::of(self.session.profile().expect("it is on"), "", elapsed, |_| true);
        self.session.set_profiling(false);
        Ok(breakdown)
    }

    /// A sequence of as many tokens as the test wants before it begins.
    fn fill(&mut self) -> Result<Slot> {
        let slot = self.session.memory_mut().acquire()?;
        let n_depth = self.test.n_depth;
        self.run(&[slot], n_depth, 0, &mut Vec::new())?;
        Ok(slot)
    }

    /// The slots of the sequences that are timed.
    fn acquire(&mut self) -> Result<Vec<Slot>> {
        let memory = self.session.memory_mut();
        (0..self.test.n_parallel).map(|_| memory.acquire()).collect()
    }

    fn release(&mut self, slots: Vec<Slot>) {
        slots.into_iter().for_each(|slot| self.session.memory_mut().release(slot));
    }

    /// Feeds every sequence with `n_prompt` random tokens, all prompts behind each other in batches, then with `n_gen` tokens one
    /// by one, those of all sequences in one call.
    fn run(&mut self, slots: &[Slot], n_prompt: usize, n_gen: usize, steps_ns: &mut Vec<u64>) -> Result<()> {
        let Self { session, tokens, setup, .. } = self;
        let ids: Vec<u32> = slots.iter().flat_map(|_| tokens.prompt(n_prompt)).collect();
        let mut at = 0;
        while at < ids.len() {
            let batch_end = (at / setup.n_batch + 1) * setup.n_batch;
            let end = (at + setup.n_ubatch).min(batch_end).min(ids.len());
            let part = |i: usize| {
                let (first, last) = (at.max(i * n_prompt), end.min((i + 1) * n_prompt));
                let has_logits = last == (i + 1) * n_prompt || last == batch_end;
                let rows = if has_logits { Rows::Last } else { Rows::None };
                Sequence { slot: slots[i], tokens: Tokens::Ids(&ids[first..last]), rows }
            };
            let seqs: Vec<_> = (at / n_prompt..=(end - 1) / n_prompt).map(part).collect();
            step(session, &seqs, steps_ns)?;
            at = end;
        }
        for _ in 0..n_gen {
            let ids: Vec<u32> = slots.iter().map(|_| tokens.next()).collect();
            let next = |(&slot, id)| Sequence { slot, tokens: Tokens::Ids(std::slice::from_ref(id)), rows: Rows::Last };
            let seqs: Vec<_> = slots.iter().zip(&ids).map(next).collect();
            step(session, &seqs, steps_ns)?;
        }
        Ok(())
    }
}

fn step(session: &mut Session, seqs: &[Sequence<'_>], steps_ns: &mut Vec<u64>) -> Result<()> {
    let start = Instant::now();
    session.step(&Batch { seqs })?;
    steps_ns.push(nanoseconds(start));
    Ok(())
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Token ids that look like nothing.
pub(super) struct RandomTokens {
    n_vocab: usize,
    /// What a prompt begins with, where the model wants something.
    bos: Option<u32>,
    state: u64,
}

impl RandomTokens {
    pub(super) fn new(file: &Gguf, n_vocab: usize) -> Self {
        let adds = file.get_bool("tokenizer.ggml.add_bos_token").unwrap_or(false);
        let bos = file.get_u32("tokenizer.ggml.bos_token_id").ok().filter(|&id| adds && (id as usize) < n_vocab);
        Self { n_vocab, bos, state: SEED }
    }

    /// Source: Vigna, "splitmix64".
    fn next(&mut self) -> u32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let id = (z ^ (z >> 31)) % self.n_vocab as u64;
        u32::try_from(id).expect("vocabularies have far fewer rows")
    }

    pub(super) fn prompt(&mut self, n: usize) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..n).map(|_| self.next()).collect();
        if let (Some(first), Some(bos)) = (ids.first_mut(), self.bos) {
            *first = bos;
        }
        ids
    }
}
