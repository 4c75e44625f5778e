//! [`Planned`]: the passes in their order, from a graph to cuts with a memory plan each.

use std::sync::Arc;

use crate::backend::{Backend, Prepared};
use crate::error::Result;
use crate::graph::Graph;
use crate::pass::assign::{self, Cut, Homes};
use crate::pass::fuse::{Fused, fuse};
use crate::pass::prune::prune;
use crate::pass::{CompileOptions, FuseCounts};
use crate::plan::{MemoryPlan, PlanError, plan, verify};
use crate::tensor::TensorId;

/// A graph as the passes leave it, which of its nodes run on which backend, and where everything lies.
///
/// Only the passes make one and nothing changes it, so that no backend is ever given the plan of another graph. Backends
/// write through the addresses of a plan and count on that.
#[derive(Clone, PartialEq, Debug)]
pub struct Planned {
    graph: Graph,
    fused: FuseCounts,
    cuts: Vec<Cut>,
    plans: Vec<Option<MemoryPlan>>,
}

impl Planned {
    /// Names taps as outputs, prunes, assigns, fuses, cuts and plans a graph for these backends. With it comes what the
    /// backends decided about every node that is left.
    ///
    /// Errors: `Unsupported` for a node that no backend takes where it may run; `Refused` for a backend that leaves nodes out
    /// of its groups.
    pub fn new(
        mut graph: Graph,
        backends: &[Arc<dyn Backend>],
        homes: Homes<'_>,
        options: &CompileOptions,
    ) -> Result<(Self, Vec<Prepared>)> {
        for name in &options.taps {
            if let Some(id) = graph.named(name)
                && !graph.outputs.contains(&id)
            {
                graph.outputs.push(id);
            }
        }
        prune(&mut graph);
        let mut owners = assign::assign(&graph, backends, homes)?;
        let mut fused = Fused::default();
        if options.fuse {
            fused = fuse(&mut graph, &mut owners, &|owner, op, args| backends[owner].prepare(op, args));
        }
        let Fused { counts: fused, prepared } = fused;
        let prepared = assign::prepare(&graph, backends, &owners, prepared)?;
        let mut cuts = assign::cuts(&graph, &owners);
        assign::group(&graph, backends, &mut cuts)?;
        // One for all backends: the input block is the same for each.
        let alignment = backends.iter().map(|b| b.caps().alignment).fold(options.alignment, usize::max);
        let plan = |backend: usize| {
            let runs = cuts.iter().any(|cut| cut.backend == backend);
            runs.then(|| plan(&graph, &cuts, backend, alignment, &|id| prepared[id.index()].scratch_bytes()))
        };
        let plans = (0..backends.len()).map(plan).collect();
        Ok((Self { graph, fused, cuts, plans }, prepared))
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// How often each fusion rule applied.
    pub fn fused(&self) -> &FuseCounts {
        &self.fused
    }

    /// Which nodes run on which backend of the session, in execution order.
    pub fn cuts(&self) -> &[Cut] {
        &self.cuts
    }

    /// Where the tensors lie that a backend makes or reads, by its index in the session's list; `None` without a cut of it.
    pub fn plan(&self, backend: usize) -> Option<&MemoryPlan> {
        self.plans.get(backend).and_then(Option::as_ref)
    }

    /// The plan of every backend of the session that has a cut.
    pub fn plans(&self) -> &[Option<MemoryPlan>] {
        &self.plans
    }

    /// Checks all plans by replaying the graph, independently of what made them.
    ///
    /// Errors: tensors that would meet. There are none unless the passes are at fault.
    pub fn verify(&self) -> Result<(), PlanError> {
        let plans = (0..).zip(&self.plans).filter_map(|(backend, plan)| Some((backend, plan.as_ref()?)));
        for (backend, plan) in plans {
            verify(&self.graph, &self.cuts, backend, plan)?;
        }
        Ok(())
    }

    /// The cut that makes a tensor; the first for one that no node makes.
    pub(crate) fn maker(&self, id: TensorId) -> usize {
        let made = |cut: &Cut| self.graph.producer(id).is_none_or(|n| cut.nodes.contains(&n.index()));
        self.cuts.iter().position(made).unwrap_or(0)
    }
}
