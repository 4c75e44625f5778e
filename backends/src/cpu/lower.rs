//! Lowering: every node becomes steps with all addresses resolved.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use engine::Error;
use engine::backend::{Bindings, Segment};
use engine::error::Result;

use super::NAME;
use super::context::{At, Lowering, Prepared};
use super::machine::Machine;
use super::pool::Pool;
use super::region::Step;

/// What a segment becomes.
pub(super) struct Lowered {
    /// Steps in order.
    pub(super) steps: Vec<Box<dyn Step>>,
    /// The number of each step's node.
    pub(super) nodes: Vec<usize>,
    /// Bytes of memory that belongs to the steps alone.
    pub(super) own_bytes: usize,
    /// Bytes of states that the steps have read and written.
    pub(super) state_traffic: Arc<AtomicU64>,
}

/// The steps of a segment.
pub(super) fn lower(machine: Machine, pool: &Arc<Pool>, segment: Segment<'_>, bind: &Bindings<'_>) -> Result<Lowered> {
    let (graph, plan) = (segment.graph(), segment.plan()?);
    let Segment { cut, prepared, poison, .. } = segment;
    let range = cut.nodes.clone();
    let mut nodes = Vec::new();
    let mut cx = Lowering::new(machine, pool, graph, plan, bind)?;
    if poison && range.start == 0 {
        cx.poison(std::slice::from_ref(&(plan.input_bytes..plan.arena_bytes)))?;
    }
    if prepared.len() != range.len() {
        return Err(foreign());
    }
    for ((id, node), prepared) in graph.walk().skip(range.start).zip(prepared) {
        let Prepared { needs, bind } = prepared.into_inside().ok_or_else(foreign)?;
        bind(&mut cx, At { id, node, needs })?;
        if poison {
            cx.poison(plan.dead_after(id))?;
        }
        nodes.resize(cx.n_steps(), id.index());
    }
    Ok(Lowered { nodes, own_bytes: cx.own_bytes(), state_traffic: cx.state_traffic(), steps: cx.finish() })
}

#[cold]
fn foreign() -> Error {
    Error::Refused { backend: NAME.into(), what: "nodes that another backend prepared".into() }
}
