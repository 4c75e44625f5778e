//! Where the results of a run lie.

use std::ops::Range;
use std::sync::Arc;

use super::WORD;
use crate::backend::{Backend, Buffer};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::plan::MemoryPlan;
use crate::tensor::Source;

/// Activations of the graphs that were compiled while it was the largest: a graph keeps the arena it was bound to when
/// later ones need a larger one. Only one graph runs at a time, and between runs nothing lives there but its results.
pub(crate) struct Arena {
    pub(crate) backend: usize,
    pub(crate) buffer: Buffer,
}

/// Where an output of a graph lies.
#[derive(Clone)]
pub(crate) struct Place {
    /// The stage that makes it.
    pub(crate) stage: usize,
    pub(crate) arena: usize,
    pub(crate) bytes: Range<usize>,
}

impl Place {
    /// Output number `at` of a graph, which a stage makes in this arena.
    ///
    /// Errors: `Graph` where there is none, or none that can be read in one piece.
    pub(crate) fn of(
        graph: &Graph,
        plan: Option<&MemoryPlan>,
        at: usize,
        stage: usize,
        arena: Option<usize>,
    ) -> Result<Self> {
        let refused = |msg: String| Error::Graph { at: "session".into(), op: "output", msg };
        let &id = graph.outputs.get(at).ok_or_else(|| refused("the graph has no output".into()))?;
        let desc = graph.tensor(id);
        let start = match desc.source {
            Source::View { offset, .. } => offset as usize * WORD,
            Source::Weight(_) | Source::State(_) | Source::Input(_) | Source::Node(..) => 0,
        };
        let readable = matches!(desc.dtype, DType::F32 | DType::I32) && desc.is_contiguous();
        let Some((plan, arena)) = plan.zip(arena).filter(|_| readable) else {
            return Err(refused(format!("{}{} cannot be read", desc.dtype, desc.shape)));
        };
        let start = plan.offset(graph.root(id)) + start;
        Ok(Self { stage, arena, bytes: start..start + desc.shape.elements() * WORD })
    }

    /// Copies the values.
    pub(crate) fn read(&self, arenas: &[Arena], backends: &[Arc<dyn Backend>]) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.bytes.len() / WORD];
        let Arena { backend, buffer } = &arenas[self.arena];
        backends[*backend].read(buffer, self.bytes.start, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
}
