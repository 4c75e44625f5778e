//! [`Compiled`]: a graph that is bound to memory, and how it runs.

use std::sync::Arc;

use super::output::{Arena, Place};
use crate::backend::{Backend, Executable};
use crate::error::{Error, Result};
use crate::planned::Planned;
use crate::tensor::Input;

/// A compiled graph, bound to arenas of its own generation.
pub(crate) struct Compiled {
    pub(crate) planned: Planned,
    /// First word and number of words of each input of a call in the input block, in the order of [`Input::ALL`].
    pub(crate) layout: [(u32, u32); Input::ALL.len()],
    /// Words of the input block.
    pub(crate) n_words: usize,
    /// The first output; none where the call only fills memory, or where it cannot be read in one piece.
    pub(crate) output: Option<Place>,
    pub(crate) stages: Vec<CompiledStage>,
    /// The arena of every backend, by its index among those of the [`super::Devices`].
    pub(super) arenas: Vec<Option<usize>>,
}

impl Compiled {
    /// The first output of the last run: logits or embeddings.
    ///
    /// Errors: as for [`Self::place`], and those of the backend.
    pub(crate) fn results(&mut self) -> Result<&[f32]> {
        let Some(Place { stage, bytes, .. }) = &self.output else { return self.place(0).map(|_| &[][..]) };
        let bytes = self.stages[*stage].executable.results(bytes.clone())?;
        bytemuck::try_cast_slice(bytes).map_err(|_| misaligned())
    }

    /// Nobody looks at results any more.
    #[inline]
    pub(crate) fn end_results(&mut self) {
        self.stages.iter_mut().for_each(|stage| stage.executable.end_results());
    }

    /// Where output number `at` lies.
    ///
    /// Errors: `Graph` where there is none, or none that can be read in one piece.
    #[cold]
    pub(crate) fn place(&self, at: usize) -> Result<Place> {
        let Self { planned, arenas, .. } = self;
        let graph = planned.graph();
        let stage = graph.outputs.get(at).map_or(0, |&id| planned.maker(id));
        let backend = planned.cuts().get(stage).map_or(0, |cut| cut.backend);
        Place::of(graph, planned.plan(backend), at, stage, arenas[backend])
    }
}

/// A run of nodes of one backend, ready to run.
pub(crate) struct CompiledStage {
    pub(crate) executable: Box<dyn Executable>,
    /// Whether it is its backend's first one, which brings the input block into the arena.
    pub(super) is_first: bool,
    pub(super) transfers: Vec<Transfer>,
}

/// Bytes that cross from one arena to another before a stage runs.
pub(super) struct Transfer {
    /// Arena and offset.
    pub(super) from: (usize, usize),
    pub(super) to: (usize, usize),
    pub(super) staging: Vec<u8>,
}

impl CompiledStage {
    /// Brings what earlier stages made on other backends.
    #[inline]
    pub(crate) fn transfer(&mut self, arenas: &[Arena], backends: &[Arc<dyn Backend>]) -> Result<()> {
        for Transfer { from, to, staging } in &mut self.transfers {
            let (source, target) = (&arenas[from.0], &arenas[to.0]);
            backends[source.backend].read(&source.buffer, from.1, staging)?;
            backends[target.backend].write(&target.buffer, to.1, staging)?;
        }
        Ok(())
    }

    /// What the stage brings into its arena of the words of an input block.
    #[inline]
    pub(crate) fn inputs<'a>(&self, words: &'a [u32]) -> &'a [u8] {
        if self.is_first { bytemuck::cast_slice(words) } else { &[] }
    }
}

#[cold]
fn misaligned() -> Error {
    Error::Graph { at: "session".into(), op: "output", msg: "a backend gave results at an odd address".into() }
}
