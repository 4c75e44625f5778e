//! [`Session`]: a model on its backends with memory and compiled graphs. One call is [`Session::step`] for the language
//! model or [`Session::encode`] for the audio encoder: find the graph of the call's key, write the input block, run, read.
//!
//! A call that finds its graph allocates nothing, and what it costs besides the arithmetic does not depend on the length of
//! the context. A graph is built when its key comes for the first time, after [`SessionOptions::cached_graphs`] others were
//! used since, and after states moved. Results are read where the executable offers them, and are gone
//! with the next call.

mod compile;
mod inputs;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::backend::Backend;
use crate::batch::{Batch, Embeddings, Features, Logits, Rows, Sequence, Tokens};
use crate::builder::GraphBuilder;
use crate::cache::GraphCache;
use crate::devices::{Compiled, Devices};
use crate::dtype::DType;
use crate::error::{Result, refuse};
use crate::key::{Buckets, GraphKey, Stage};
use crate::memory::{Memory, Slot};
use crate::model::Model;
use crate::parallel::Parallel;
use crate::pass::CompileOptions;
use crate::pass::assign::place_states;
use crate::planned::Planned;
use crate::profile::Profile;
use crate::shape::Shape;
use crate::snapshot::model_identity;
pub use crate::state::{MAX_CONTEXT, MAX_PENDING};
use crate::state::{Role, StateOptions};
use crate::stats::History;
use crate::weights::WeightStore;
use inputs::slice_tokens;

pub use crate::stats::Stats;

/// Whether compiled graphs are used again.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Reuse {
    /// Every call builds.
    Off,
    /// A call whose key was compiled before runs that graph.
    #[default]
    On,
    /// As `On`; at every use the graph is built, fused and planned once more, and a difference is
    /// [`crate::Error::StaleGraph`].
    Verified,
}

/// Sizes and switches of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionOptions {
    /// Sequences that can be held at once.
    pub n_slots: usize,
    /// Positions per sequence.
    pub n_ctx: usize,
    /// Format of attention keys and values: F16 or F32.
    pub kv_dtype: DType,
    /// Tokens of a sequence that can be taken back from states that fold what came before ([`Rows::Drafts`]), at most
    /// [`MAX_PENDING`]. Each costs a row of inputs in every layer of every slot with a sequence, and nothing where a model has
    /// no such states.
    pub n_pending: usize,
    /// Whether such states have two rows in every slot, which calls write in turns, so that a sequence can go back to where it was
    /// before its last call ([`Memory::rewind`]) with nothing copied. It doubles their memory.
    pub two_rows: bool,
    /// Most tokens in one call of [`Session::step`], those of all its sequences together.
    pub max_tokens: usize,
    /// How sizes of calls are rounded up.
    pub buckets: Buckets,
    /// Compiled graphs kept.
    pub cached_graphs: usize,
    /// Whether compiled graphs are used again.
    pub reuse: Reuse,
    /// Which backend has a layer and its states, by index into the session's list; layers past the end prefer the first.
    pub placement: Vec<usize>,
    /// How graphs are compiled.
    pub compile: CompileOptions,
    /// Whether [`Stats::run_ns`] is kept: two readings of the clock in every call.
    pub timed: bool,
    /// Bytes of ended sequences that the next ones take over, in place of going back to the system ([`Memory::keep_spare`]).
    pub spare_bytes: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            n_slots: 1,
            n_ctx: 1024,
            kv_dtype: DType::F16,
            n_pending: 0,
            two_rows: false,
            max_tokens: 512,
            buckets: Buckets::default(),
            cached_graphs: 32,
            reuse: Reuse::default(),
            placement: Vec::new(),
            compile: CompileOptions::default(),
            timed: false,
            spare_bytes: 0,
        }
    }
}

impl SessionOptions {
    fn states(&self) -> StateOptions {
        let Self { n_slots, n_ctx, kv_dtype, n_pending, two_rows, .. } = *self;
        StateOptions { n_slots, n_ctx, kv_dtype, n_pending, two_rows }
    }
}

/// A model on its backends with memory and compiled graphs.
pub struct Session {
    model: Arc<dyn Model>,
    devices: Devices,
    options: SessionOptions,
    /// Of the model, as `n_embd` is: a call asks for them more than once.
    n_vocab: usize,
    n_embd: usize,
    memory: Memory,
    cache: GraphCache<Compiled>,
    history: History,
    last_run: Option<usize>,
    /// The graph whose results the caller may look at, until the next call.
    lent: Option<usize>,
    words: Vec<u32>,
    /// How many of them the call needs.
    n_words: usize,
    /// Where the results of every sequence or clip of the last call are: first row, number of rows.
    parts: Vec<(u32, u32)>,
    stats: Stats,
    /// Where the time goes, while somebody wants to know.
    profile: Option<Profile>,
    /// What snapshots are of; made when the first one is asked for.
    identity: OnceLock<u64>,
}

impl Session {
    /// Prepares a model on backends in order of preference. The states of a layer live on the first backend that runs what
    /// touches them, the one that [`SessionOptions::placement`] names before others. Weights are imported when the first
    /// graph that reads them is compiled.
    pub fn open(
        model: Arc<dyn Model>,
        weights: &WeightStore,
        backends: &[Arc<dyn Backend>],
        options: SessionOptions,
    ) -> Result<Self> {
        if backends.is_empty() {
            return refuse(format_args!("a session needs at least one backend"));
        }
        if let Some(backend) = options.placement.iter().find(|&&b| b >= backends.len()) {
            return refuse(format_args!("backend {backend} of {} has a layer", backends.len()));
        }
        if !matches!(options.kv_dtype, DType::F16 | DType::F32) {
            return refuse(format_args!("attention cache: want F16 or F32, got {}", options.kv_dtype));
        }
        check_context(options.n_ctx)?;
        let homes = homes(&*model, backends, &options)?;
        let mut memory = Memory::new(backends, homes, model.states(), &options.states())?;
        memory.keep_spare(options.spare_bytes);
        Ok(Self {
            n_vocab: model.n_vocab(),
            n_embd: model.n_embd(),
            model,
            devices: Devices::new(backends, weights),
            memory,
            cache: GraphCache::new(options.cached_graphs),
            history: History::default(),
            last_run: None,
            lent: None,
            words: Vec::new(),
            n_words: 0,
            parts: Vec::new(),
            stats: Stats::default(),
            profile: None,
            identity: OnceLock::new(),
            options,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<dyn Model> {
        &self.model
    }

    /// Slots and their states.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Slots and their states, to acquire, release, copy and rewind.
    pub fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// The sequence in a slot as bytes, to be given to [`Session::restore`] of any session of this model.
    ///
    /// Errors: a slot without a sequence or with a torn one.
    pub fn snapshot(&self, slot: Slot) -> Result<Vec<u8>> {
        self.memory.snapshot(slot, self.identity())
    }

    /// Makes an acquired slot hold the sequence of a snapshot, in place of its own. The slot, the number of slots and the
    /// context need not be those of the session that made the snapshot.
    ///
    /// Errors: `Snapshot` for damaged bytes or those of another model, another type of attention cache included;
    /// `ContextFull` for more tokens than a slot holds. The slot is then as before.
    pub fn restore(&mut self, slot: Slot, snapshot: &[u8]) -> Result<()> {
        let identity = self.identity();
        self.memory.restore(slot, snapshot, identity)
    }

    fn identity(&self) -> u64 {
        let of = || model_identity(self.model.arch(), self.memory.specs(), self.devices.weights());
        *self.identity.get_or_init(of)
    }

    /// The session's options.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Switches reuse. Compiled graphs are dropped when it is switched off.
    pub fn set_reuse(&mut self, reuse: Reuse) {
        self.options.reuse = reuse;
        if reuse == Reuse::Off {
            self.drop_graphs();
        }
    }

    /// Counters since the session was opened.
    pub fn stats(&self) -> Stats {
        Stats {
            state_bytes: self.memory.bytes(),
            state_moves: self.memory.n_moves(),
            graph_bytes: self.graph_bytes(),
            state_traffic: self.state_traffic(),
            weight_bytes: self.devices.weight_bytes(),
            arena_bytes: self.devices.arena_bytes(),
            ..self.stats
        }
    }

    /// Switches timing of every node on or off. Switching it on where it is on sets all times to 0.
    pub fn set_profiling(&mut self, on: bool) {
        match (&mut self.profile, on) {
            (Some(profile), true) => profile.reset(),
            (profile, true) => *profile = Some(Profile::default()),
            (profile, false) => *profile = None,
        }
    }

    /// Times of every node since profiling was switched on.
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    /// Lets every sequence have at least `n_ctx` positions. Slots keep what they hold, and graphs stay, unless the system
    /// reserves no addresses without memory: [`Stats::state_moves`] then counts a move.
    pub fn reserve_context(&mut self, n_ctx: usize) -> Result<()> {
        if n_ctx <= self.options.n_ctx {
            return Ok(());
        }
        check_context(n_ctx)?;
        if self.memory.raise_context(self.model.states(), n_ctx)? {
            self.drop_graphs();
        }
        self.options.n_ctx = n_ctx;
        Ok(())
    }

    /// The threads that graphs run on, for work outside of graphs.
    pub fn parallel(&self) -> &dyn Parallel {
        self.devices.backends[0].parallel()
    }

    /// Feeds a batch and returns logits of the rows it asks for.
    ///
    /// Errors: a slot without a sequence or twice in the batch, a token outside the vocabulary, more tokens than the
    /// context or one call holds. After an error no sequence has advanced; if a backend failed half-way, slots whose
    /// recurrent states may have changed are torn, as [`crate::memory`] says.
    pub fn step(&mut self, batch: &Batch<'_>) -> Result<Logits<'_>> {
        let key = self.key(batch)?;
        for seq in batch.seqs {
            self.memory.grow(seq.slot, seq.tokens.len())?;
        }
        let index = self.compiled(&key)?;
        self.begin(index, batch, &key);
        self.run(&key, index)?;
        let Self { cache, lent, memory, n_vocab, parts, .. } = self;
        let values = match key.n_outputs {
            0 => &[],
            _ => {
                *lent = Some(index);
                cache.get_mut(index).results()?
            }
        };
        for seq in batch.seqs {
            memory.commit(seq.slot, seq.tokens.len(), seq.rows.n_drafts());
        }
        Ok(Logits::new(values, *n_vocab, parts))
    }

    /// Feeds any number of tokens to one sequence in calls of at most `max_tokens`, and returns the logits of the last
    /// token. After an error the sequence has advanced by the calls before the failed one.
    pub fn feed(&mut self, slot: Slot, tokens: Tokens<'_>) -> Result<&[f32]> {
        let n_embd = self.n_embd;
        let (total, max) = (tokens.len(), self.options.max_tokens);
        self.memory.check_room(slot, total)?;
        let mut done = 0;
        while total - done > max {
            let part = slice_tokens(tokens, done..done + max, n_embd);
            self.step(&Batch { seqs: &[Sequence { slot, tokens: part, rows: Rows::None }] })?;
            done += max;
        }
        let part = slice_tokens(tokens, done..total, n_embd);
        let logits = self.step(&Batch { seqs: &[Sequence { slot, tokens: part, rows: Rows::Last }] })?;
        Ok(logits.last(0))
    }

    /// Audio embeddings of some clips. Each clip's are what it would have by itself.
    ///
    /// Errors: a model without an encoder, no clip, features of another number of bands or without a frame.
    pub fn encode(&mut self, clips: &[Features<'_>]) -> Result<Embeddings<'_>> {
        let Some(encoder) = self.model.encoder() else {
            return refuse(format_args!("the model has no audio encoder"));
        };
        let key = self.clips_key(clips, &encoder)?;
        let index = self.compiled(&key)?;
        self.begin_clips(index, clips, &key, &encoder);
        self.run(&key, index)?;
        self.lent = Some(index);
        let values = self.cache.get_mut(index).results()?;
        Ok(Embeddings::new(values, self.n_embd, &self.parts))
    }

    /// A named tensor of the last run, as [`CompileOptions::taps`] asked for it: its values, integers too, and its shape.
    pub fn tap(&self, name: &str) -> Result<Option<(Vec<f32>, Shape)>> {
        let Some(compiled) = self.last_run.map(|i| self.cache.peek(i)) else { return Ok(None) };
        let Some(id) = compiled.planned.graph().named(name) else { return Ok(None) };
        let Some(at) = compiled.planned.graph().outputs.iter().position(|&o| o == id) else { return Ok(None) };
        let mut values = self.devices.read(compiled, at)?;
        let desc = compiled.planned.graph().tensor(id);
        if desc.dtype == DType::I32 {
            values.iter_mut().for_each(|v| *v = v.to_bits().cast_signed() as f32);
        }
        Ok(Some((values, desc.shape)))
    }

    /// What a call of this shape runs: compiled if it was not yet.
    ///
    /// Errors: as for [`Session::describe`].
    pub fn graph(&mut self, key: &GraphKey) -> Result<&Planned> {
        let index = self.compiled(key)?;
        Ok(&self.cache.peek(index).planned)
    }

    /// Whoever calls again looks at no results any more.
    #[inline]
    fn end_results(&mut self) {
        if let Some(index) = self.lent.take() {
            self.cache.get_mut(index).end_results();
        }
    }

    /// Runs a graph on the input block in `words`.
    fn run(&mut self, key: &GraphKey, index: usize) -> Result<()> {
        self.end_results();
        self.last_run = Some(index);
        if self.options.timed || self.profile.is_some() {
            return self.run_timed(key, index);
        }
        let Self { cache, devices, words, n_words, .. } = self;
        devices.run(cache.get_mut(index), &words[..*n_words])
    }

    /// As [`Self::run`], with a clock around it, and one at every node where there is a profile.
    #[inline(never)]
    fn run_timed(&mut self, key: &GraphKey, index: usize) -> Result<()> {
        let Self { cache, devices, words, n_words, profile, stats, .. } = self;
        let words = &words[..*n_words];
        let compiled = cache.get_mut(index);
        let mut times = profile.as_mut().map(|profile| profile.of(key, compiled.planned.graph()));
        let start = Instant::now();
        match &mut times {
            None => devices.run(compiled, words)?,
            Some(times) => devices.run_timed(compiled, words, times.node_ns_mut())?,
        }
        let run_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        stats.run_ns += run_ns;
        if let Some(times) = times {
            times.count(run_ns);
        }
        Ok(())
    }
}

/// The backend of every state.
fn homes(model: &dyn Model, backends: &[Arc<dyn Backend>], options: &SessionOptions) -> Result<Vec<usize>> {
    let layout = model.states().layout(&options.states())?;
    let layers: Vec<u32> = layout.specs().iter().map(|spec| spec.layer).collect();
    if backends.len() == 1 {
        return Ok(vec![0; layers.len()]);
    }
    let builder = GraphBuilder::new(&layout);
    let n_kv = u32::try_from(options.n_ctx).expect("contexts are checked");
    let n_pending = u32::from(layout.specs().iter().any(|spec| spec.role == Role::Pending));
    model.build(&builder, &GraphKey { stage: Stage::Tokens, n_seqs: 1, n_tokens: 1, n_kv, n_outputs: 1, n_pending });
    Ok(place_states(&builder.finish()?, backends, &options.placement, &layers))
}

fn check_context(n_ctx: usize) -> Result<()> {
    if (1..=MAX_CONTEXT).contains(&n_ctx) {
        return Ok(());
    }
    refuse(format_args!("want a context of 1 to {MAX_CONTEXT} tokens, got {n_ctx}"))
}
