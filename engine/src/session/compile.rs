//! From the key of a call to a graph that is bound to memory: built, rewritten, cut, planned, lowered, and kept.

use std::sync::Arc;

use super::output::{Arena, Place};
use super::{MAX_CONTEXT, Reuse, Session, WORD};
use crate::backend::{Backend, Bindings, Buffer, Executable, Prepared, Segment, WeightData};
use crate::builder::GraphBuilder;
use crate::error::{Error, Result};
use crate::key::{GraphKey, Stage};
use crate::pass::assign::Homes;
use crate::plan::MemoryPlan;
use crate::planned::Planned;
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
    pub(super) planned: Planned,
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
        let Self { planned, arenas, .. } = self;
        let graph = planned.graph();
        let stage = graph.outputs.get(at).map_or(0, |&id| planned.maker(id));
        let backend = planned.cuts().get(stage).map_or(0, |cut| cut.backend);
        Place::of(graph, planned.plan(backend), at, stage, arenas[backend])
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
        Ok(index)
    }

    /// Builds a kept graph once more. Errors: `StaleGraph` where it comes out otherwise.
    fn check_kept(&self, key: &GraphKey, index: usize) -> Result<()> {
        let (kept, rebuilt) = (&self.cache.peek(index).planned, self.describe(key)?);
        if *kept == rebuilt {
            return Ok(());
        }
        let (kept_text, text) = (kept.graph().dump(), rebuilt.graph().dump());
        let lines = kept_text.lines().chain([""]).zip(text.lines().chain([""]));
        let line = lines.filter(|(a, b)| a != b).map(|(a, b)| format!("kept {a:?}, built {b:?}")).next();
        let what = line.unwrap_or_else(|| {
            let part = if kept.graph() != rebuilt.graph() { "layout of its tensors" } else { "plan or its backends" };
            format!("the {part} differs")
        });
        Err(Error::StaleGraph { what: format!("{key:?}: {what}") })
    }

    /// What a call of this shape computes, where, and where everything lies: a function of the key alone. Nothing is
    /// compiled, and no weight is touched.
    ///
    /// Errors: `Key` for a shape that no call has; one that the model or the backends cannot do.
    pub fn describe(&self, key: &GraphKey) -> Result<Planned> {
        self.plan(key).map(|(planned, _)| planned)
    }

    /// As [`Self::describe`], with what the backends decided about every node.
    fn plan(&self, key: &GraphKey) -> Result<(Planned, Vec<Prepared>)> {
        self.check_key(key)?;
        let builder = GraphBuilder::new(self.memory.layout());
        self.model.build(&builder, key);
        let homes = Homes { layers: &self.options.placement, states: self.memory.homes() };
        let (planned, prepared) = Planned::new(builder.finish()?, &self.backends, homes, &self.options.compile)?;
        if cfg!(debug_assertions) || self.options.reuse == Reuse::Verified {
            planned.verify().expect("the passes make plans that hold");
        }
        Ok((planned, prepared))
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
        let (planned, prepared) = self.plan(key)?;
        let mut prepared = prepared.into_iter();
        let arenas = self.arenas_for(planned.plans())?;
        let mut stages = Vec::with_capacity(planned.cuts().len());
        for (i, cut) in planned.cuts().iter().enumerate() {
            let is_first = planned.cuts()[..i].iter().all(|before| before.backend != cut.backend);
            let prepared = prepared.by_ref().take(cut.nodes.len()).collect();
            let segment = Segment { planned: &planned, cut, prepared, poison: self.options.compile.poison };
            let (executable, transfers) = self.lower(segment, &arenas)?;
            stages.push(CompiledStage { executable, is_first, transfers });
        }
        let mut layout = [(0, 0); Input::ALL.len()];
        let mut n_words = 0;
        let word = |n: usize| u32::try_from(n).expect("inputs are tensors with 32-bit element counts");
        // The input block is the same in every plan.
        if let Some(plan) = planned.plans().iter().flatten().next() {
            for (input, id) in planned.graph().inputs() {
                let n = planned.graph().tensor(id).shape.elements();
                layout[input as usize] = (word(plan.offset(id) / WORD), word(n));
            }
            n_words = plan.input_bytes / WORD;
        }
        let mut compiled = Compiled { layout, n_words, output: None, arenas, stages, planned };
        compiled.output = compiled.place(0).ok();
        Ok(compiled)
    }

    fn lower(
        &mut self,
        segment: Segment<'_>,
        arenas: &[Option<usize>],
    ) -> Result<(Box<dyn Executable>, Vec<Transfer>)> {
        let Segment { planned, cut, .. } = segment;
        let graph = planned.graph();
        let plan_of = |backend: usize| planned.plan(backend).expect("every cut's backend has a plan");
        let backend = Arc::clone(&self.backends[cut.backend]);
        for node in &graph.nodes[cut.nodes.clone()] {
            for &arg in &node.args {
                if let Source::Weight(id) = graph.tensor(graph.root(arg)).source {
                    self.import(cut.backend, id)?;
                }
            }
        }
        let arena_of = |backend: usize| arenas[backend].expect("every cut has an arena");
        let arena = &self.arenas[arena_of(cut.backend)].buffer;
        let bind = Bindings { arena, weights: &self.imported[cut.backend], states: self.memory.buffers() };
        let executable = backend.compile(segment, &bind)?;
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
    }

    /// Bytes that compiled graphs hold outside of arenas.
    pub(super) fn graph_bytes(&self) -> usize {
        self.cache.iter().flat_map(|c| &c.stages).map(|stage| stage.executable.own_bytes()).sum()
    }

    /// Bytes that imported weights hold besides the mapped files.
    pub(super) fn weight_bytes(&self) -> usize {
        let held = |(backend, weights): (&Arc<dyn Backend>, &Vec<Option<Buffer>>)| -> usize {
            weights.iter().flatten().map(|w| backend.weight_bytes(w)).sum()
        };
        self.backends.iter().zip(&self.imported).map(held).sum()
    }
}

#[cold]
fn misaligned() -> Error {
    Error::Graph { at: "session".into(), op: "output", msg: "a backend gave results at an odd address".into() }
}
