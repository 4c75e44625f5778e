//! [`Devices`]: the backends of a session or program with what lies on them, and the way from a plan to a graph that is bound
//! to memory there.

mod compiled;
mod output;

use std::sync::Arc;

use crate::backend::{Backend, Bindings, Buffer, Executable, Prepared, Segment, WeightData};
use crate::error::Result;
use crate::plan::MemoryPlan;
use crate::planned::Planned;
use crate::tensor::{Input, Source, TensorId};
use crate::weights::{WeightId, WeightStore};
pub(crate) use compiled::Compiled;
use compiled::{CompiledStage, Transfer};
use output::Arena;

/// Bytes of an input word: ids, positions and f32 values alike.
pub(crate) const WORD: usize = 4;

/// Backends in order of preference, the weights of a model as each of them keeps them, and memory for activations.
pub(crate) struct Devices {
    pub(crate) backends: Vec<Arc<dyn Backend>>,
    weights: WeightStore,
    /// Imported weights of each backend.
    imported: Vec<Vec<Option<Buffer>>>,
    arenas: Vec<Arena>,
}

impl Devices {
    /// Nothing is imported yet.
    pub(crate) fn new(backends: &[Arc<dyn Backend>], weights: &WeightStore) -> Self {
        let imported = vec![vec![None; weights.len()]; backends.len()];
        Self { backends: backends.to_vec(), weights: weights.clone(), imported, arenas: Vec::new() }
    }

    /// The weights of the model.
    pub(crate) fn weights(&self) -> &WeightStore {
        &self.weights
    }

    /// Compiles a plan and binds it to these states. `prepared` is what came with the plan, `poison` that of
    /// [`crate::pass::CompileOptions`].
    pub(crate) fn bind(
        &mut self,
        planned: Planned,
        prepared: Vec<Prepared>,
        states: &[Buffer],
        poison: bool,
    ) -> Result<Compiled> {
        let mut prepared = prepared.into_iter();
        let arenas = self.arenas_for(planned.plans())?;
        let mut stages = Vec::with_capacity(planned.cuts().len());
        for (i, cut) in planned.cuts().iter().enumerate() {
            let is_first = planned.cuts()[..i].iter().all(|before| before.backend != cut.backend);
            let prepared = prepared.by_ref().take(cut.nodes.len()).collect();
            let segment = Segment { planned: &planned, cut, prepared, poison };
            let (executable, transfers) = self.lower(segment, &arenas, states)?;
            stages.push(CompiledStage { executable, is_first, transfers });
        }
        let mut layout = [(0, 0); Input::ALL.len()];
        let mut n_words = 0;
        let word = |n: usize| u32::try_from(n).expect("inputs are tensors with 32-bit element counts");
        // The input block is the same in every plan.
        if let Some(plan) = planned.plans().iter().flatten().next() {
            for (input, id) in planned.graph().inputs() {
                let n = planned.graph().tensor(id).shape.elements();
                if let Some(place) = layout.get_mut(input.number()) {
                    *place = (word(plan.offset(id) / WORD), word(n));
                }
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
        states: &[Buffer],
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
        let bind = Bindings { arena, weights: &self.imported[cut.backend], states };
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
                found[backend] = Some(self.arenas.len());
                self.arenas.push(Arena { backend, buffer });
            }
        }
        Ok(found)
    }

    /// Runs a graph on the words of an input block.
    #[inline]
    pub(crate) fn run(&self, compiled: &mut Compiled, words: &[u32]) -> Result<()> {
        for stage in &mut compiled.stages {
            stage.transfer(&self.arenas, &self.backends)?;
            stage.executable.run(stage.inputs(words))?;
        }
        Ok(())
    }

    /// As [`Self::run`], and adds the time of every node.
    pub(crate) fn run_timed(&self, compiled: &mut Compiled, words: &[u32], node_ns: &mut [u64]) -> Result<()> {
        for stage in &mut compiled.stages {
            stage.transfer(&self.arenas, &self.backends)?;
            let inputs = stage.inputs(words);
            stage.executable.run_timed(inputs, node_ns)?;
        }
        Ok(())
    }

    /// The values of output number `at` of a graph that ran last, as they lie in memory.
    ///
    /// Errors: `Graph` for an output that is not there or cannot be read in one piece.
    pub(crate) fn read(&self, compiled: &Compiled, at: usize) -> Result<Vec<f32>> {
        compiled.place(at)?.read(&self.arenas, &self.backends)
    }

    /// Drops arenas that only graphs were bound to which are no more: all but the newest of every backend.
    pub(crate) fn drop_arenas(&mut self) {
        let mut newest: Vec<Arena> = Vec::new();
        for arena in self.arenas.drain(..).rev() {
            if newest.iter().all(|a| a.backend != arena.backend) {
                newest.push(arena);
            }
        }
        self.arenas = newest;
    }

    /// Bytes of memory for activations.
    pub(crate) fn arena_bytes(&self) -> usize {
        self.arenas.iter().map(|arena| arena.buffer.bytes()).sum()
    }

    /// Bytes that imported weights hold besides the mapped files.
    pub(crate) fn weight_bytes(&self) -> usize {
        let held = |(backend, weights): (&Arc<dyn Backend>, &Vec<Option<Buffer>>)| -> usize {
            weights.iter().flatten().map(|w| backend.weight_bytes(w)).sum()
        };
        self.backends.iter().zip(&self.imported).map(held).sum()
    }
}
