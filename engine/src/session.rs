//! [`Session`]: a model on its backends with memory and compiled graphs. One call is [`Session::step`] for the language
//! model or [`Session::encode`] for the audio encoder: find the graph of the call's key, write the input block, run, read.
//!
//! A call that finds its graph allocates nothing, and what it costs besides the arithmetic does not depend on the length of
//! the context. A graph is built when its key comes for the first time, after [`SessionOptions::cached_graphs`] others were
//! used since, and after the memory has grown. Results are read where the backend left them if it lends them, and are gone
//! with the next call.

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::backend::{Backend, Bindings, Buffer, Executable, Loan, Segment, Usage, WeightData};
use crate::batch::{Batch, Features, Logits, Sequence, Tokens};
use crate::builder::GraphBuilder;
use crate::cache::GraphCache;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::key::{Buckets, GraphKey, Rows, Stage};
use crate::memory::{Memory, Slot, StateOptions};
use crate::model::Model;
use crate::pass::assign::{Cut, assign};
use crate::pass::fuse::fuse;
use crate::pass::prune::prune;
use crate::pass::{CompileOptions, FuseCounts};
use crate::plan::{MemoryPlan, plan, verify};
use crate::profile::Profile;
use crate::shape::Shape;
use crate::snapshot::model_identity;
use crate::stats::{BuildReason, History};
use crate::tensor::{Input, Source, TensorId};
use crate::weights::{WeightId, WeightStore};

pub use crate::stats::Stats;

/// Most positions of a slot: states of usual widths then have far fewer elements than a shape can count.
pub const MAX_CONTEXT: usize = 1 << 17;

/// Bytes of an input word: ids, positions and f32 values alike.
const WORD: usize = 4;

/// Whether compiled graphs are used again.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Reuse {
    /// Every call builds.
    Off,
    /// A call whose key was compiled before runs that graph.
    #[default]
    On,
    /// As `On`; at every use the graph is built, fused and planned once more, and a difference is
    /// [`Error::StaleGraph`].
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
    /// Most tokens of one sequence in one call of [`Session::step`].
    pub max_tokens: usize,
    /// Compiled graphs kept.
    pub cached_graphs: usize,
    /// Whether compiled graphs are used again.
    pub reuse: Reuse,
    /// How graphs are compiled.
    pub compile: CompileOptions,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            n_slots: 1,
            n_ctx: 1024,
            kv_dtype: DType::F16,
            max_tokens: 512,
            cached_graphs: 32,
            reuse: Reuse::default(),
            compile: CompileOptions::default(),
        }
    }
}

/// A compiled graph, bound to arenas of its own generation.
struct Compiled {
    described: Described,
    /// First word and number of words of each input in the input block, in the order of [`Input::ALL`].
    layout: [(u32, u32); Input::ALL.len()],
    /// Words of the input block.
    n_words: usize,
    /// The first output; none where the call only fills memory, or where it cannot be read in one piece.
    output: Option<Place>,
    stages: Vec<CompiledStage>,
    /// The arena of every backend: an index into [`Session::arenas`].
    arenas: Vec<Option<usize>>,
    /// Backend that makes each output, in the order of the graph's outputs.
    output_owners: Vec<usize>,
}

/// Activations of the graphs that were compiled while it was the largest: a graph keeps the arena it was bound to when
/// later ones need a larger one. Only one graph runs at a time, and between runs nothing lives there but its results.
struct Arena {
    backend: usize,
    buffer: Buffer,
    /// How results are read in place, where the backend can do that.
    loan: Option<Box<dyn Loan>>,
}

/// What a call of one shape computes, on which backends, and where everything lies. Equal keys give equal ones.
#[derive(Clone, PartialEq, Debug)]
pub struct Described {
    /// The graph as the passes leave it.
    pub graph: Graph,
    /// How often each fusion rule applied.
    pub fused: FuseCounts,
    /// Which nodes run on which backend of the session, in execution order.
    pub cuts: Vec<Cut>,
    /// Where its tensors lie.
    pub plan: MemoryPlan,
}

struct CompiledStage {
    executable: Box<dyn Executable>,
    backend: usize,
    /// Whether it is its backend's first one, which brings the input block into the arena.
    is_first: bool,
    copies: Vec<Transfer>,
}

/// Bytes that cross from one backend's arena to another's before a stage runs.
struct Transfer {
    from: usize,
    offset: usize,
    staging: Vec<u8>,
}

/// A model on its backends with memory and compiled graphs.
pub struct Session {
    model: Arc<dyn Model>,
    weights: WeightStore,
    backends: Vec<Arc<dyn Backend>>,
    options: SessionOptions,
    buckets: Buckets,
    memory: Memory,
    /// Imported weights of each backend.
    imported: Vec<Vec<Option<Buffer>>>,
    arenas: Vec<Arena>,
    cache: GraphCache<Compiled>,
    history: History,
    last_run: Option<usize>,
    /// The arena whose results are lent to the caller, until the next call.
    lent: Option<usize>,
    words: Vec<u32>,
    /// Results of a backend that lends none.
    values: Vec<f32>,
    stats: Stats,
    /// Where the time goes, while somebody wants to know.
    profile: Option<Profile>,
    /// What snapshots are of; made when the first one is asked for.
    identity: OnceLock<u64>,
}

impl Session {
    /// Prepares a model on backends in order of preference; states live on the first. Weights are imported when the
    /// first graph that reads them is compiled.
    pub fn open(
        model: Arc<dyn Model>,
        weights: &WeightStore,
        backends: &[Arc<dyn Backend>],
        options: SessionOptions,
    ) -> Result<Self> {
        let Some(first) = backends.first() else {
            return Err(Error::Batch { what: "a session needs at least one backend".into() });
        };
        if !matches!(options.kv_dtype, DType::F16 | DType::F32) {
            return Err(Error::Batch { what: format!("attention cache: want F16 or F32, got {}", options.kv_dtype) });
        }
        check_context(options.n_ctx)?;
        let specs = model.states(&StateOptions { n_ctx: options.n_ctx, kv_dtype: options.kv_dtype });
        let memory = Memory::new(Arc::clone(first), specs, options.n_slots, options.n_ctx)?;
        let stats = Stats { state_bytes: memory.bytes(), ..Stats::default() };
        let n_weights = weights.len();
        Ok(Self {
            model,
            weights: weights.clone(),
            backends: backends.to_vec(),
            buckets: Buckets::default(),
            memory,
            imported: vec![vec![None; n_weights]; backends.len()],
            arenas: Vec::new(),
            cache: GraphCache::new(options.cached_graphs),
            history: History::default(),
            last_run: None,
            lent: None,
            words: Vec::new(),
            values: Vec::new(),
            stats,
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
        let of = || model_identity(self.model.arch(), self.memory.specs(), &self.weights);
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
        self.stats
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

    /// Makes every slot hold at least `n_ctx` positions. What the slots held is lost and all of them are free again if
    /// the memory had to grow.
    pub fn reserve_context(&mut self, n_ctx: usize) -> Result<()> {
        if n_ctx <= self.options.n_ctx {
            return Ok(());
        }
        check_context(n_ctx)?;
        let specs = self.model.states(&StateOptions { n_ctx, kv_dtype: self.options.kv_dtype });
        let n_slots = self.options.n_slots;
        self.drop_graphs();
        self.memory = Memory::new(Arc::clone(&self.backends[0]), specs, n_slots, n_ctx)?;
        self.options.n_ctx = n_ctx;
        self.stats.state_bytes = self.memory.bytes();
        Ok(())
    }

    /// Runs a whole request where steps start cheapest: inside the thread pool of the first backend.
    pub fn enter<R: Send>(&mut self, request: impl FnOnce(&mut Self) -> R + Send) -> R {
        let backend = Arc::clone(&self.backends[0]);
        let (mut request, mut result) = (Some(request), None);
        backend.enter(&mut || {
            if let Some(request) = request.take() {
                result = Some(request(self));
            }
        });
        result.expect("a backend runs the request it is given")
    }

    /// Feeds a batch and returns logits of the rows it asks for.
    ///
    /// Errors: a slot without a sequence or twice in the batch, a token outside the vocabulary, more tokens than the
    /// context or one call holds. After an error no sequence has advanced; if a backend failed half-way, slots whose
    /// recurrent states may have changed are torn, as [`crate::memory`] says.
    pub fn step(&mut self, batch: &Batch<'_>) -> Result<Logits<'_>> {
        let key = self.key(batch)?;
        let index = self.compiled(&key)?;
        self.write_batch(index, batch, &key)?;
        for seq in batch.seqs {
            self.memory.begin(seq.slot);
        }
        self.run(&key, index)?;
        let Self { cache, arenas, backends, values, lent, memory, model, .. } = self;
        let stride = match batch.rows {
            Rows::None => 0,
            Rows::Last => 1,
            Rows::All => key.n_tokens as usize,
        };
        let values = match batch.rows {
            Rows::None => &[],
            Rows::Last | Rows::All => output(cache.peek(index), arenas, backends, values, lent)?,
        };
        for seq in batch.seqs {
            memory.commit(seq.slot, seq.tokens.len());
        }
        Ok(Logits { values, n_vocab: model.n_vocab(), stride })
    }

    /// Feeds any number of tokens to one sequence in calls of at most `max_tokens`, and returns the logits of the last
    /// token. After an error the sequence has advanced by the calls before the failed one.
    pub fn feed(&mut self, slot: Slot, tokens: Tokens<'_>, rows: Rows) -> Result<&[f32]> {
        let n_embd = self.model.n_embd();
        let (total, max) = (tokens.len(), self.options.max_tokens);
        self.memory.check_room(slot, total)?;
        let mut done = 0;
        while total - done > max {
            let part = slice_tokens(tokens, done..done + max, n_embd);
            self.step(&Batch { seqs: &[Sequence { slot, tokens: part }], rows: Rows::None })?;
            done += max;
        }
        let part = slice_tokens(tokens, done..total, n_embd);
        let logits = self.step(&Batch { seqs: &[Sequence { slot, tokens: part }], rows })?;
        Ok(if rows == Rows::Last { logits.last(0) } else { &[] })
    }

    /// Audio embeddings of one clip, `[n_tokens, n_embd]`, for `n_tokens` as the model's encoder counts them.
    pub fn encode(&mut self, features: &Features<'_>) -> Result<&[f32]> {
        let encoder =
            self.model.encoder().ok_or_else(|| Error::Batch { what: "the model has no audio encoder".into() })?;
        let Features { n_mels, n_frames, values } = *features;
        if n_mels != encoder.n_mels || n_frames == 0 || values.len() != n_mels * n_frames {
            let what = format!("want features [{}, n_frames], got [{n_mels}, {n_frames}]", encoder.n_mels);
            return Err(Error::Batch { what });
        }
        let padded = n_frames.next_multiple_of(encoder.chunk_frames);
        let too_long = || Error::Batch { what: format!("{n_frames} frames are too many for one call") };
        let n_tokens = (encoder.tokens)(n_frames);
        let key = GraphKey {
            stage: Stage::Encode,
            n_seqs: 1,
            n_tokens: u32::try_from(padded).map_err(|_| too_long())?,
            n_kv: 0,
            rows: Rows::All,
        };
        let index = self.compiled(&key)?;
        self.clear_words(index);
        self.fill(index, Input::Features, |words| {
            for (row, band) in words.chunks_exact_mut(padded).zip(values.chunks_exact(n_frames)) {
                let (real, padding) = row.split_at_mut(n_frames);
                real.iter_mut().zip(band).for_each(|(w, v)| *w = v.to_bits());
                padding.fill(0);
            }
        });
        self.fill(index, Input::Lengths, |words| words[0] = u32::try_from(n_tokens).unwrap_or(u32::MAX));
        self.fill(index, Input::Frames, |words| words[0] = u32::try_from(n_frames).unwrap_or(u32::MAX));
        self.run(&key, index)?;
        let Self { cache, arenas, backends, values, lent, model, .. } = self;
        let values = output(cache.peek(index), arenas, backends, values, lent)?;
        Ok(&values[..n_tokens * model.n_embd()])
    }

    /// A named tensor of the last run, as [`CompileOptions::taps`] asked for it: its values, integers too, and its shape.
    pub fn tap(&self, name: &str) -> Result<Option<(Vec<f32>, Shape)>> {
        let Some(compiled) = self.last_run.map(|i| self.cache.peek(i)) else { return Ok(None) };
        let Some(id) = compiled.described.graph.named(name) else { return Ok(None) };
        let Some(at) = compiled.described.graph.outputs.iter().position(|&o| o == id) else { return Ok(None) };
        let mut values = Vec::new();
        Place::of(compiled, at)?.read(&self.arenas, &self.backends, &mut values)?;
        let desc = compiled.described.graph.tensor(id);
        if desc.dtype == DType::I32 {
            values.iter_mut().for_each(|v| *v = v.to_bits().cast_signed() as f32);
        }
        Ok(Some((values, desc.shape)))
    }

    /// The graph that a call of this shape runs, and how often each fusion rule applied to it.
    pub fn graph(&mut self, key: &GraphKey) -> Result<(&Graph, &MemoryPlan, &FuseCounts)> {
        let index = self.compiled(key)?;
        let compiled = self.cache.peek(index);
        let Described { graph, plan, fused, .. } = &compiled.described;
        Ok((graph, plan, fused))
    }

    /// The key of a batch, after checking everything that kernels rely on.
    fn key(&self, batch: &Batch<'_>) -> Result<GraphKey> {
        let bad = |what: String| Err(Error::Batch { what });
        let Some(first) = batch.seqs.first() else { return bad("an empty batch".into()) };
        let stage = |t: &Tokens<'_>| match t {
            Tokens::Ids(_) => Stage::Tokens,
            Tokens::Mixed { .. } => Stage::Embeddings,
        };
        let mut longest = 0;
        for (i, seq) in batch.seqs.iter().enumerate() {
            let n_tokens = seq.tokens.len();
            longest = longest.max(n_tokens);
            if stage(&seq.tokens) != stage(&first.tokens) {
                return bad("a batch of token ids and embeddings".into());
            }
            if batch.seqs[..i].iter().any(|s| s.slot == seq.slot) {
                return bad(format!("slot {} is twice in a batch", seq.slot.index()));
            }
            let n_vocab = self.model.n_vocab();
            let outside = |id: u32| format!("token {id} is outside the vocabulary of {n_vocab}");
            match seq.tokens {
                Tokens::Ids(ids) => {
                    if let Some(&id) = ids.iter().find(|&&id| id as usize >= n_vocab) {
                        return bad(outside(id));
                    }
                }
                Tokens::Mixed { ids, embeddings } => {
                    let real = ids.iter().filter(|&&id| id != -1);
                    if let Some(&id) = real.clone().find(|&&id| !usize::try_from(id).is_ok_and(|id| id < n_vocab)) {
                        return bad(outside(id.cast_unsigned()));
                    }
                    let (want, got) = ((ids.len() - real.count()) * self.model.n_embd(), embeddings.len());
                    if want != got {
                        return bad(format!("want {want} values for the positions without an id, got {got}"));
                    }
                }
            }
            if n_tokens == 0 || n_tokens > self.options.max_tokens {
                return bad(format!("want 1 to {} tokens per sequence, got {n_tokens}", self.options.max_tokens));
            }
            self.memory.check_room(seq.slot, n_tokens)?;
        }
        let size =
            |n: usize| u32::try_from(n).map_err(|_| Error::Batch { what: format!("{n} is too large for one call") });
        Ok(GraphKey {
            stage: stage(&first.tokens),
            n_seqs: size(self.buckets.seqs(batch.seqs.len()))?,
            n_tokens: size(self.buckets.tokens(longest))?,
            n_kv: size(self.memory.n_ctx())?,
            rows: batch.rows,
        })
    }

    /// Index in the cache of the compiled graph for this key.
    fn compiled(&mut self, key: &GraphKey) -> Result<usize> {
        let kept = if self.options.reuse == Reuse::Off { None } else { self.cache.find(key) };
        if let Some(index) = kept {
            if self.options.reuse == Reuse::Verified {
                self.check_kept(key, index)?;
            }
            self.stats.hits += 1;
            return Ok(index);
        }
        self.last_run = None;
        if self.options.reuse == Reuse::Off {
            self.drop_graphs();
        }
        let compiled = self.compile(key)?;
        let off = (self.options.reuse == Reuse::Off).then_some(BuildReason::ReuseOff);
        self.stats.count_build(off.unwrap_or_else(|| self.history.reason(key)));
        let (index, evicted) = self.cache.insert(*key, compiled);
        self.stats.evictions += u64::from(evicted);
        Ok(index)
    }

    /// Builds a kept graph once more. Errors: `StaleGraph` where it comes out otherwise.
    fn check_kept(&self, key: &GraphKey, index: usize) -> Result<()> {
        let (kept, rebuilt) = (&self.cache.peek(index).described, self.describe(key)?);
        if *kept == rebuilt {
            return Ok(());
        }
        let (kept_text, text) = (kept.graph.dump(), rebuilt.graph.dump());
        let lines = kept_text.lines().chain([""]).zip(text.lines().chain([""]));
        let line = lines.filter(|(a, b)| a != b).map(|(a, b)| format!("kept {a:?}, built {b:?}")).next();
        let what = line.unwrap_or_else(|| {
            let part = if kept.graph != rebuilt.graph { "layout of its tensors" } else { "plan or its backends" };
            format!("the {part} differs")
        });
        Err(Error::StaleGraph { what: format!("{key:?}: {what}") })
    }

    /// What a call of this shape computes, where, and where everything lies: a function of the key alone. Nothing is
    /// compiled, and no weight is touched.
    ///
    /// Errors: a shape that the model or the backends cannot do.
    pub fn describe(&self, key: &GraphKey) -> Result<Described> {
        let builder = GraphBuilder::new(self.memory.specs(), self.options.n_slots);
        self.model.build(&builder, key);
        let mut graph = builder.finish()?;
        for name in &self.options.compile.taps {
            if let Some(id) = graph.named(name)
                && !graph.outputs.contains(&id)
            {
                graph.outputs.push(id);
            }
        }
        prune(&mut graph);
        let mut fused = FuseCounts::new();
        if self.options.compile.fuse {
            let preferred = Arc::clone(&self.backends[0]);
            fused = fuse(&mut graph, &|op, args| preferred.supports(op, args));
        }
        let cuts = assign(&graph, &self.backends)?;
        let alignment = self.backends.iter().map(|b| b.caps().alignment).max().unwrap_or(WORD);
        let precise = is_precise(key.stage);
        let plan = plan(&graph, alignment, &|id| {
            let node = graph.node(id);
            self.backends[owner(&cuts, id.index())].scratch_bytes(&node.op, &graph.descs(&node.args), precise)
        });
        Ok(Described { graph, fused, cuts, plan })
    }

    fn compile(&mut self, key: &GraphKey) -> Result<Compiled> {
        let described = self.describe(key)?;
        let Described { graph, plan, cuts, .. } = &described;
        if cfg!(debug_assertions) || self.options.compile.poison {
            verify(graph, plan).map_err(|e| Error::Graph { at: "plan".into(), op: "verify", msg: e.0 })?;
        }
        let arenas = self.arenas_for(cuts, plan.arena_bytes)?;
        let mut stages = Vec::with_capacity(cuts.len());
        for (i, cut) in cuts.iter().enumerate() {
            let is_first = cuts[..i].iter().all(|before| before.backend != cut.backend);
            let (executable, copies) = self.lower(key.stage, graph, plan, cut, &arenas)?;
            stages.push(CompiledStage { executable, backend: cut.backend, is_first, copies });
        }
        let maker = |&o: &TensorId| graph.producer(o).map_or(0, |n| owner(cuts, n.index()));
        let output_owners = graph.outputs.iter().map(maker).collect();
        let mut layout = [(0, 0); Input::ALL.len()];
        let word = |n: usize| u32::try_from(n).expect("inputs are tensors with 32-bit element counts");
        for (input, id) in graph.inputs() {
            layout[input as usize] = (word(plan.offset(id) / WORD), word(graph.tensor(id).shape.elements()));
        }
        let n_words = plan.input_bytes / WORD;
        let mut compiled = Compiled { layout, n_words, output: None, arenas, stages, output_owners, described };
        compiled.output = Place::of(&compiled, 0).ok();
        Ok(compiled)
    }

    fn lower(
        &mut self,
        stage: Stage,
        graph: &Graph,
        plan: &MemoryPlan,
        cut: &Cut,
        arenas: &[Option<usize>],
    ) -> Result<(Box<dyn Executable>, Vec<Transfer>)> {
        let backend = Arc::clone(&self.backends[cut.backend]);
        for node in &graph.nodes[cut.nodes.clone()] {
            for &arg in &node.args {
                if let Source::Weight(id) = graph.tensor(graph.root(arg)).source {
                    self.import(cut.backend, id)?;
                }
            }
        }
        let segment = Segment {
            graph,
            nodes: cut.nodes.clone(),
            inputs: cut.inputs.clone(),
            outputs: cut.outputs.clone(),
            poison: self.options.compile.poison,
            precise: is_precise(stage),
        };
        let arena = &self.arenas[arenas[cut.backend].expect("every cut has an arena")].buffer;
        let bind = Bindings { arena, weights: &self.imported[cut.backend], states: self.memory.buffers() };
        let executable = backend.compile(&segment, plan, &bind)?;
        let transfer = |&(id, from): &(TensorId, usize)| Transfer {
            from,
            offset: plan.offset(id),
            staging: vec![0; graph.tensor(id).bytes()],
        };
        Ok((executable, cut.copies.iter().map(transfer).collect()))
    }

    fn import(&mut self, backend: usize, id: WeightId) -> Result<()> {
        let slot = &mut self.imported[backend][id.0 as usize];
        if slot.is_none() {
            let data = WeightData { store: &self.weights, id };
            *slot = Some(self.backends[backend].import_weight(&data)?);
        }
        Ok(())
    }

    /// An arena of at least `bytes` for the backend of every cut.
    fn arenas_for(&mut self, cuts: &[Cut], bytes: usize) -> Result<Vec<Option<usize>>> {
        let mut found = vec![None; self.backends.len()];
        for backend in cuts.iter().map(|c| c.backend) {
            let newest = self.arenas.iter().rposition(|a| a.backend == backend);
            found[backend] = newest.filter(|&i| self.arenas[i].buffer.bytes() >= bytes);
            if found[backend].is_none() {
                // Powers of two: all arenas together are less than twice the largest.
                let buffer = self.backends[backend].alloc(bytes.next_power_of_two(), Usage::Arena)?;
                self.stats.arena_bytes += buffer.bytes();
                let loan = self.backends[backend].loan(&buffer);
                found[backend] = Some(self.arenas.len());
                self.arenas.push(Arena { backend, buffer, loan });
            }
        }
        Ok(found)
    }

    /// Drops every compiled graph, and arenas that only dropped ones are bound to.
    fn drop_graphs(&mut self) {
        self.cache.clear();
        self.last_run = None;
        self.lent = None;
        let mut newest: Vec<Arena> = Vec::new();
        for arena in self.arenas.drain(..).rev() {
            if newest.iter().all(|a| a.backend != arena.backend) {
                newest.push(arena);
            }
        }
        newest.iter_mut().filter_map(|a| a.loan.as_mut()).for_each(|loan| loan.end());
        self.stats.arena_bytes = newest.iter().map(|a| a.buffer.bytes()).sum();
        self.arenas = newest;
    }

    fn write_batch(&mut self, index: usize, batch: &Batch<'_>, key: &GraphKey) -> Result<()> {
        let (n_tokens, n_embd) = (key.n_tokens as usize, self.model.n_embd());
        self.clear_words(index);
        // Values were checked against the context and the vocabulary, both far below 2^31.
        let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        for (i, seq) in batch.seqs.iter().enumerate() {
            let n = seq.tokens.len();
            let n_past = self.memory.n_past(seq.slot)?;
            match seq.tokens {
                Tokens::Ids(ids) => self.fill(index, Input::Tokens, |w| w[i * n_tokens..][..n].copy_from_slice(ids)),
                Tokens::Mixed { ids, embeddings } => {
                    self.fill(index, Input::Tokens, |w| {
                        for (w, id) in w[i * n_tokens..].iter_mut().zip(ids) {
                            *w = id.cast_unsigned();
                        }
                    });
                    self.fill(index, Input::Embeddings, |w| {
                        let rows = w[i * n_tokens * n_embd..].chunks_exact_mut(n_embd).zip(ids);
                        let places = rows.filter(|(_, id)| **id == -1).map(|(row, _)| row);
                        for (row, vector) in places.zip(embeddings.chunks_exact(n_embd)) {
                            for (w, v) in row.iter_mut().zip(vector) {
                                *w = v.to_bits();
                            }
                        }
                    });
                }
            }
            self.fill(index, Input::Positions, |w| {
                for (t, w) in w[i * n_tokens..][..n].iter_mut().enumerate() {
                    *w = word(n_past + t);
                }
            });
            self.fill(index, Input::Slots, |w| w[i] = word(seq.slot.index()));
            self.fill(index, Input::Lengths, |w| w[i] = word(n));
            self.fill(index, Input::OutRows, |w| w[i] = word(i * n_tokens + n - 1));
        }
        Ok(())
    }

    /// Zeroes the integers of the input block. Vectors are written by whoever has some, and never read elsewhere.
    fn clear_words(&mut self, index: usize) {
        let compiled = self.cache.peek(index);
        self.words.resize(compiled.n_words, 0);
        for (input, &(start, len)) in Input::ALL.iter().zip(&compiled.layout) {
            if input.dtype() == DType::I32 {
                self.words[start as usize..][..len as usize].fill(0);
            }
        }
    }

    /// Lets `write` fill the words of one input, if the graph has it.
    fn fill(&mut self, index: usize, input: Input, write: impl FnOnce(&mut [u32])) {
        let (start, len) = self.cache.peek(index).layout[input as usize];
        if len > 0 {
            write(&mut self.words[start as usize..][..len as usize]);
        }
    }

    /// Runs a graph on the input block in `words`.
    fn run(&mut self, key: &GraphKey, index: usize) -> Result<()> {
        if let Some(loan) = self.lent.take().and_then(|i| self.arenas[i].loan.as_mut()) {
            loan.end();
        }
        self.last_run = Some(index);
        let Compiled { stages, arenas, described, .. } = self.cache.get_mut(index);
        let mut times = self.profile.as_mut().map(|profile| profile.of(key, &described.graph));
        let start = Instant::now();
        for stage in stages {
            for copy in &mut stage.copies {
                let (Some(from), Some(to)) = (arenas[copy.from], arenas[stage.backend]) else { continue };
                self.backends[copy.from].read(&self.arenas[from].buffer, copy.offset, &mut copy.staging)?;
                self.backends[stage.backend].write(&self.arenas[to].buffer, copy.offset, &copy.staging)?;
            }
            let inputs = if stage.is_first { bytemuck::cast_slice(&self.words) } else { &[] };
            match &mut times {
                None => stage.executable.run(inputs)?,
                Some(times) => stage.executable.run_timed(inputs, times.node_ns_mut())?,
            }
        }
        let run_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.stats.run_ns += run_ns;
        if let Some(times) = times {
            times.count(run_ns);
        }
        Ok(())
    }
}

/// The graph's first output: in place where the backend lends it, copied to `values` elsewhere.
fn output<'a>(
    compiled: &Compiled,
    arenas: &'a [Arena],
    backends: &[Arc<dyn Backend>],
    values: &'a mut Vec<f32>,
    lent: &mut Option<usize>,
) -> Result<&'a [f32]> {
    let place = match &compiled.output {
        Some(place) => place,
        None => &Place::of(compiled, 0)?,
    };
    if let Some(loan) = &arenas[place.arena].loan {
        *lent = Some(place.arena);
        let bytes = loan.bytes(place.bytes.clone())?;
        if let Ok(lent) = bytemuck::try_cast_slice(bytes) {
            return Ok(lent);
        }
    }
    place.read(arenas, backends, values)?;
    Ok(values)
}

/// Where an output of a graph lies.
struct Place {
    arena: usize,
    bytes: Range<usize>,
}

impl Place {
    /// Output number `at` of a graph.
    ///
    /// Errors: `Graph` where there is none, or none that can be read in one piece.
    fn of(compiled: &Compiled, at: usize) -> Result<Self> {
        let Described { graph, plan, .. } = &compiled.described;
        let refused = |msg: String| Error::Graph { at: "session".into(), op: "output", msg };
        let &id = graph.outputs.get(at).ok_or_else(|| refused("the graph has no output".into()))?;
        let desc = graph.tensor(id);
        let start = match desc.source {
            Source::View { offset, .. } => offset as usize * WORD,
            Source::Weight(_) | Source::State(_) | Source::Input(_) | Source::Node(..) => 0,
        };
        let arena = compiled.arenas[compiled.output_owners[at]];
        let readable = matches!(desc.dtype, DType::F32 | DType::I32) && desc.is_contiguous();
        let Some(arena) = arena.filter(|_| readable) else {
            return Err(refused(format!("{}{} cannot be read", desc.dtype, desc.shape)));
        };
        let start = plan.offset(graph.root(id)) + start;
        Ok(Self { arena, bytes: start..start + desc.shape.elements() * WORD })
    }

    fn read(&self, arenas: &[Arena], backends: &[Arc<dyn Backend>], values: &mut Vec<f32>) -> Result<()> {
        values.clear();
        values.resize(self.bytes.len() / WORD, 0.0);
        let Arena { backend, buffer, .. } = &arenas[self.arena];
        backends[*backend].read(buffer, self.bytes.start, bytemuck::cast_slice_mut(values))
    }
}

/// Whether a stage keeps the precision of its activations: encoders do, as [`Segment::precise`] says.
fn is_precise(stage: Stage) -> bool {
    stage == Stage::Encode
}

/// Backend of a node.
fn owner(cuts: &[Cut], node: usize) -> usize {
    cuts.iter().find(|c| c.nodes.contains(&node)).map_or(0, |c| c.backend)
}

fn check_context(n_ctx: usize) -> Result<()> {
    if (1..=MAX_CONTEXT).contains(&n_ctx) {
        return Ok(());
    }
    Err(Error::Batch { what: format!("want a context of 1 to {MAX_CONTEXT} tokens, got {n_ctx}") })
}

fn slice_tokens<'a>(tokens: Tokens<'a>, range: std::ops::Range<usize>, n_embd: usize) -> Tokens<'a> {
    match tokens {
        Tokens::Ids(ids) => Tokens::Ids(&ids[range]),
        Tokens::Mixed { ids, embeddings } => {
            let vectors = |ids: &[i32]| ids.iter().filter(|&&id| id == -1).count() * n_embd;
            let start = vectors(&ids[..range.start]);
            let len = vectors(&ids[range.clone()]);
            Tokens::Mixed { ids: &ids[range], embeddings: embeddings.get(start..start + len).unwrap_or_default() }
        }
    }
}
