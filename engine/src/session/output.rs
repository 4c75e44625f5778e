//! Results of a run, read where they lie or copied.

use std::ops::Range;
use std::sync::Arc;

use super::WORD;
use super::compile::{Arena, Compiled, Described};
use crate::backend::Backend;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Source;

/// The graph's first output: in place where the backend lends it, copied to `values` elsewhere.
pub(super) fn output<'a>(
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
pub(super) struct Place {
    arena: usize,
    bytes: Range<usize>,
}

impl Place {
    /// Output number `at` of a graph.
    ///
    /// Errors: `Graph` where there is none, or none that can be read in one piece.
    pub(super) fn of(compiled: &Compiled, at: usize) -> Result<Self> {
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

    pub(super) fn read(&self, arenas: &[Arena], backends: &[Arc<dyn Backend>], values: &mut Vec<f32>) -> Result<()> {
        values.clear();
        values.resize(self.bytes.len() / WORD, 0.0);
        let Arena { backend, buffer, .. } = &arenas[self.arena];
        backends[*backend].read(buffer, self.bytes.start, bytemuck::cast_slice_mut(values))
    }
}
