//! Results of a run, read where they lie or copied.

use std::ops::Range;
use std::sync::Arc;

use super::WORD;
use crate::backend::{Backend, Buffer, Loan};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::plan::MemoryPlan;
use crate::tensor::Source;

/// Activations of the graphs that were compiled while it was the largest: a graph keeps the arena it was bound to when
/// later ones need a larger one. Only one graph runs at a time, and between runs nothing lives there but its results.
pub(super) struct Arena {
    pub(super) backend: usize,
    pub(super) buffer: Buffer,
    /// How results are read in place, where the backend can do that.
    pub(super) loan: Option<Box<dyn Loan>>,
}

/// An output's values: in place where the backend lends them, copied to `values` elsewhere.
pub(super) fn output<'a>(
    place: &Place,
    arenas: &'a [Arena],
    backends: &[Arc<dyn Backend>],
    values: &'a mut Vec<f32>,
    lent: &mut Option<usize>,
) -> Result<&'a [f32]> {
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
#[derive(Clone)]
pub(super) struct Place {
    arena: usize,
    bytes: Range<usize>,
}

impl Place {
    /// Output number `at` of a graph, which its backend makes in this arena.
    ///
    /// Errors: `Graph` where there is none, or none that can be read in one piece.
    pub(super) fn of(graph: &Graph, plan: &MemoryPlan, at: usize, arena: Option<usize>) -> Result<Self> {
        let refused = |msg: String| Error::Graph { at: "session".into(), op: "output", msg };
        let &id = graph.outputs.get(at).ok_or_else(|| refused("the graph has no output".into()))?;
        let desc = graph.tensor(id);
        let start = match desc.source {
            Source::View { offset, .. } => offset as usize * WORD,
            Source::Weight(_) | Source::State(_) | Source::Input(_) | Source::Node(..) => 0,
        };
        let readable = matches!(desc.dtype, DType::F32 | DType::I32) && desc.is_contiguous();
        let Some(arena) = arena.filter(|_| readable) else {
            return Err(refused(format!("{}{} cannot be read", desc.dtype, desc.shape)));
        };
        let start = plan.offset(graph.root(id)) + start;
        Ok(Self { arena, bytes: start..start + desc.shape.elements() * WORD })
    }

    /// Copies the values.
    pub(super) fn read(&self, arenas: &[Arena], backends: &[Arc<dyn Backend>], values: &mut Vec<f32>) -> Result<()> {
        values.clear();
        values.resize(self.bytes.len() / WORD, 0.0);
        let Arena { backend, buffer, .. } = &arenas[self.arena];
        backends[*backend].read(buffer, self.bytes.start, bytemuck::cast_slice_mut(values))
    }
}
