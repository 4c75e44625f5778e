//! From the key of a call to a graph that is bound to memory: built, rewritten, cut, planned, lowered, and kept.

use std::sync::Arc;

use super::output::{Arena, Place};
use super::{MAX_CONTEXT, Reuse, Session, WORD};
use crate::backend::{Backend, Bindings, Buffer, Executable, Prepared, Segment, WeightData};
use crate::builder::GraphBuilder;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::key::{GraphKey, Stage};
use crate::pass::FuseCounts;
use crate::pass::assign::{self, Cut, Homes};
use crate::pass::fuse::fuse;
use crate::pass::prune::prune;
use crate::plan::{MemoryPlan, plan};
use crate::stats::BuildReason;
use crate::tensor::{Input, Source, TensorId};
use crate::weights::WeightId;

/// Rows of a call, or frames of features: far above what memory holds, far below what makes a graph that takes long to
/// build.
const MAX_KEY_TOKENS: u32 = 1 << 22;
/// [`MAX_CONTEXT`] as keys have it.
const MAX_KEY_CONTEXT: u32 = MAX_CONTEXT as u32;

/// A compiled graph, bound to arenas of its own generation.
pub(super) struct Compiled {
    pub(super) described: Described,
    /// First word and number of words of each input in the input block, in the order of [`Input::ALL`].
    pub(super) layout: [(u32, u32); Input::ALL.len()],
    /// Words of the input block.
    pub(super) n_words: usize,
    /// The first output; none where the call only fills memory, or where it cannot be read in one piece.
    pub(super) output: Option<Place>,
    pub(super) stages: Vec<CompiledStage>,
    /// The arena of every backend: an index into [`Session::arenas`].
    pub(super) arenas: Vec<Option<usize>>,
}

impl Compiled {
    /// The first output of the last run: logits or embeddings.
    ///
    /// Errors: as for [`Self::place`], and those of the backend.
    pub(super) fn results(&mut self) -> Result<&[f32]> {
        let Some(Place { stage, bytes, .. }) = &self.output else { return self.place(0).map(|_| &[][..]) };
        let bytes = self.stages[*stage].executable.results(bytes.clone())?;
        bytemuck::try_cast_slice(bytes).map_err(|_| misaligned())
    }

    /// Nobody looks at results any more.
    #[inline]
    pub(super) fn end_results(&mut self) {
        self.stages.iter_mut().for_each(|stage| stage.executable.end_results());
    }

    /// Where output number `at` lies.
    ///
    /// Errors: `Graph` where there is none, or none that can be read in one piece.
    #[cold]
    pub(super) fn place(&self, at: usize) -> Result<Place> {
        let Described { graph, .. } = &self.described;
        let stage = graph.outputs.get(at).map_or(0, |&id| self.described.maker(id));
        let backend = self.described.cuts.get(stage).map_or(0, |cut| cut.backend);
        Place::of(graph, self.described.plan(backend), at, stage, self.arenas[backend])
    }
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
    /// Where the tensors lie that a backend makes or reads, for every backend of the session that has a cut.
    pub plans: Vec<Option<MemoryPlan>>,
}

impl Described {
    /// The plan of a backend, by its index in the session's list.
    pub fn plan(&self, backend: usize) -> Option<&MemoryPlan> {
        self.plans.get(backend).and_then(Option::as_ref)
    }

    /// The cut that makes a tensor; the first for one that no node makes.
    fn maker(&self, id: TensorId) -> usize {
        let made = |cut: &Cut| self.graph.producer(id).is_none_or(|n| cut.nodes.contains(&n.index()));
        self.cuts.iter().position(made).unwrap_or(0)
    }
}

/// A run of nodes of one backend, ready to run.
pub(super) struct CompiledStage {
    pub(super) executable: Box<dyn Executable>,
    /// Whether it is its backend's first one, which brings the input block into the arena.
    is_first: bool,
    transfers: Vec<Transfer>,
}

/// Bytes that cross from one arena to another before a stage runs.
struct Transfer {
    /// Arena and offset.
    from: (usize, usize),
    to: (usize, usize),
    staging: Vec<u8>,
}

impl CompiledStage {
    /// Brings what earlier stages made on other backends.
    #[inline]
    pub(super) fn transfer(&mut self, arenas: &[Arena], backends: &[Arc<dyn Backend>]) -> Result<()> {
        for Transfer { from, to, staging } in &mut self.transfers {
            let (source, target) = (&arenas[from.0], &arenas[to.0]);
            backends[source.backend].read(&source.buffer, from.1, staging)?;
            backends[target.backend].write(&target.buffer, to.1, staging)?;
        }
        Ok(())
    }

    /// What the stage brings into its arena of the words of an input block.
    #[inline]
    pub(super) fn inputs<'a>(&self, words: &'a [u32]) -> &'a [u8] {
        if self.is_first { bytemuck::cast_slice(words) } else { &[] }
    }
}

impl Session {
    /// Index in the cache of the compiled graph for this key.
    pub(super) fn compiled(&mut self, key: &GraphKey) -> Result<usize> {
        if self.options.reuse != Reuse::Off
            && let Some(index) = self.cache.find(key)
        {
            if self.options.reuse == Reuse::Verified {
                self.check_kept(key, index)?;
            }
            self.stats.hits += 1;
            return Ok(index);
        }
        self.compile_new(key)
    }

    /// As [`Self::compiled`], for a key whose graph is not kept. Apart from it, so that finding one is little code.
    #[cold]
    fn compile_new(&mut self, key: &GraphKey) -> Result<usize> {
        self.last_run = None;
        // Making room moves graphs.
        self.end_results();
        if self.options.reuse == Reuse::Off {
            self.drop_graphs();
        }
        let compiled = self.compile(key)?;
        let off = (self.options.reuse == Reuse::Off).then_some(BuildReason::ReuseOff);
        self.stats.count_build(off.unwrap_or_else(|| self.history.reason(key)));
        let (index, evicted) = self.cache.insert(*key, compiled);
        self.stats.evictions += u64::from(evicted);
        self.count_bytes();
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
    /// Errors: `Key` for a shape that no call has; one that the model or the backends cannot do.
    pub fn describe(&self, key: &GraphKey) -> Result<Described> {
        self.prepare(key).map(|(described, _)| described)
    }

    /// As [`Self::describe`], with what the backends decided about every node.
    fn prepare(&self, key: &GraphKey) -> Result<(Described, Vec<Prepared>)> {
        self.check_key(key)?;
        let builder = GraphBuilder::new(self.memory.layout());
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
        let backends = &self.backends[..];
        let homes = Homes { layers: &self.options.placement, states: self.memory.homes() };
        let mut owners = assign::assign(&graph, backends, homes)?;
        let mut fused = FuseCounts::new();
        if self.options.compile.fuse {
            fused = fuse(&mut graph, &mut owners, &|owner, op, args| backends[owner].prepare(op, args).is_some());
        }
        let prepared = assign::prepare(&graph, backends, &owners)?;
        let cuts = assign::cuts(&graph, &owners);
        // One for all backends: the input block is the same for each.
        let alignment = backends.iter().map(|b| b.caps().alignment).max().unwrap_or(WORD);
        let plan = |backend: usize| {
            let runs = cuts.iter().any(|cut| cut.backend == backend);
            runs.then(|| plan(&graph, &cuts, backend, alignment, &|id| prepared[id.index()].scratch_bytes()))
        };
        let plans = (0..backends.len()).map(plan).collect();
        Ok((Described { graph, fused, cuts, plans }, prepared))
    }

    /// Whether a call of this shape exists: models count on it.
    fn check_key(&self, key: &GraphKey) -> Result<()> {
        let refused = |what: String| Err(Error::Key { key: *key, what });
        let GraphKey { n_seqs, n_tokens, n_outputs, .. } = *key;
        if n_tokens == 0 || n_tokens > MAX_KEY_TOKENS || !(1..=n_tokens).contains(&n_seqs) || n_outputs > n_tokens {
            return refused(format!("want 1 to {MAX_KEY_TOKENS} rows, and no more sequences or outputs than rows"));
        }
        match (key.stage, self.model.encoder()) {
            (Stage::Tokens | Stage::Embeddings, _) => match key.n_kv {
                1..=MAX_KEY_CONTEXT => Ok(()),
                n_kv => refused(format!("want a context of 1 to {MAX_KEY_CONTEXT} tokens, got {n_kv}")),
            },
            (Stage::Encode, None) => refused("the model has no audio encoder".into()),
            (Stage::Encode, Some(encoder)) => match n_tokens as usize % encoder.clip_frames {
                0 => Ok(()),
                _ => refused(format!("want a multiple of {} frames", encoder.clip_frames)),
            },
        }
    }

    fn compile(&mut self, key: &GraphKey) -> Result<Compiled> {
        let (described, prepared) = self.prepare(key)?;
        let mut prepared = prepared.into_iter();
        let Described { graph, plans, cuts, .. } = &described;
        let arenas = self.arenas_for(plans)?;
        let mut stages = Vec::with_capacity(cuts.len());
        for (i, cut) in cuts.iter().enumerate() {
            let is_first = cuts[..i].iter().all(|before| before.backend != cut.backend);
            let (executable, transfers) =
                self.lower(&described, cut, prepared.by_ref().take(cut.nodes.len()).collect(), &arenas)?;
            stages.push(CompiledStage { executable, is_first, transfers });
        }
        let mut layout = [(0, 0); Input::ALL.len()];
        let mut n_words = 0;
        let word = |n: usize| u32::try_from(n).expect("inputs are tensors with 32-bit element counts");
        // The input block is the same in every plan.
        if let Some(plan) = plans.iter().flatten().next() {
            for (input, id) in graph.inputs() {
                layout[input as usize] = (word(plan.offset(id) / WORD), word(graph.tensor(id).shape.elements()));
            }
            n_words = plan.input_bytes / WORD;
        }
        let mut compiled = Compiled { layout, n_words, output: None, arenas, stages, described };
        compiled.output = compiled.place(0).ok();
        Ok(compiled)
    }

    fn lower(
        &mut self,
        described: &Described,
        cut: &Cut,
        prepared: Vec<Prepared>,
        arenas: &[Option<usize>],
    ) -> Result<(Box<dyn Executable>, Vec<Transfer>)> {
        let Described { graph, plans, cuts, .. } = described;
        let plan_of = |backend: usize| plans[backend].as_ref().expect("every cut's backend has a plan");
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
            cuts,
            backend: cut.backend,
            nodes: cut.nodes.clone(),
            inputs: cut.inputs.clone(),
            outputs: cut.outputs.clone(),
            prepared,
            poison: self.options.compile.poison,
        };
        let arena_of = |backend: usize| arenas[backend].expect("every cut has an arena");
        let arena = &self.arenas[arena_of(cut.backend)].buffer;
        let bind = Bindings { arena, weights: &self.imported[cut.backend], states: self.memory.buffers() };
        let executable = backend.compile(segment, plan_of(cut.backend), &bind)?;
        let transfer = |&(id, from): &(TensorId, usize)| Transfer {
            from: (arena_of(from), plan_of(from).offset(id)),
            to: (arena_of(cut.backend), plan_of(cut.backend).offset(id)),
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

    /// An arena for every backend that has a plan, at least as large as it asks for.
    fn arenas_for(&mut self, plans: &[Option<MemoryPlan>]) -> Result<Vec<Option<usize>>> {
        let mut found = vec![None; self.backends.len()];
        for (backend, plan) in plans.iter().enumerate() {
            let Some(bytes) = plan.as_ref().map(|plan| plan.arena_bytes) else { continue };
            let newest = self.arenas.iter().rposition(|a| a.backend == backend);
            found[backend] = newest.filter(|&i| self.arenas[i].buffer.bytes() >= bytes);
            if found[backend].is_none() {
                // Powers of two: all arenas together are less than twice the largest.
                let buffer = self.backends[backend].alloc(bytes.next_power_of_two())?;
                self.stats.arena_bytes += buffer.bytes();
                found[backend] = Some(self.arenas.len());
                self.arenas.push(Arena { backend, buffer });
            }
        }
        Ok(found)
    }

    /// Drops every compiled graph, and arenas that only dropped ones are bound to.
    pub(super) fn drop_graphs(&mut self) {
        self.cache.clear();
        self.last_run = None;
        self.lent = None;
        let mut newest: Vec<Arena> = Vec::new();
        for arena in self.arenas.drain(..).rev() {
            if newest.iter().all(|a| a.backend != arena.backend) {
                newest.push(arena);
            }
        }
        self.stats.arena_bytes = newest.iter().map(|a| a.buffer.bytes()).sum();
        self.arenas = newest;
        self.count_bytes();
    }

    /// Counts what graphs and weights hold outside of arenas. To be called when either changed.
    fn count_bytes(&mut self) {
        let executables = self.cache.iter().flat_map(|c| &c.stages).map(|stage| stage.executable.own_bytes());
        self.stats.graph_bytes = executables.sum();
        let held = |(backend, weights): (&Arc<dyn Backend>, &Vec<Option<Buffer>>)| -> usize {
            weights.iter().flatten().map(|w| backend.weight_bytes(w)).sum()
        };
        self.stats.weight_bytes = self.backends.iter().zip(&self.imported).map(held).sum();
    }
}

#[cold]
fn misaligned() -> Error {
    Error::Graph { at: "session".into(), op: "output", msg: "a backend gave results at an odd address".into() }
}
