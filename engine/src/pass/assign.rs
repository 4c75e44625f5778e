//! Chooses a backend for every node, and cuts the graph into the segments that backends run.
//!
//! A node that touches a state runs where the state lies. Any other runs on the backend of its layer, or else on the first
//! of the session that supports it. Maximal runs of equal backend become segments. Every backend has a plan and an arena of
//! its own, so a tensor that crosses a cut has an offset on each side; it is copied once to each backend that reads it.

use std::ops::Range;
use std::sync::Arc;

use crate::backend::{Backend, Prepared};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node};
use crate::tensor::{Source, StateId, TensorId};

/// Which backend of a session has what, by index into its list.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Homes<'a> {
    /// That of every layer; layers past the end, and nodes outside of layers, prefer the first.
    pub layers: &'a [usize],
    /// That of every state.
    pub states: &'a [usize],
}

/// A run of nodes of one backend, before it is compiled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    /// Index of the backend in the session's list.
    pub backend: usize,
    /// Indices of the nodes.
    pub nodes: Range<usize>,
    /// Results of other cuts and inputs of the graph that are read here.
    pub inputs: Vec<TensorId>,
    /// Results that are read after this cut.
    pub outputs: Vec<TensorId>,
    /// Results of other backends that no earlier cut of this one read: the tensor, and the backend that made it.
    pub copies: Vec<(TensorId, usize)>,
    /// The nodes in pieces of which each runs as one, as [`Backend::groups`] says.
    pub groups: Vec<Range<usize>>,
}

impl Cut {
    /// The group of one of its nodes.
    pub(crate) fn group(&self, node: usize) -> Range<usize> {
        let at = self.groups.partition_point(|group| group.end <= node);
        self.groups.get(at).cloned().unwrap_or(node..node + 1)
    }
}

/// The backend of every node.
///
/// Errors: `Unsupported` for a node that no backend takes where it may run.
pub(crate) fn assign(graph: &Graph, backends: &[Arc<dyn Backend>], homes: Homes<'_>) -> Result<Vec<usize>> {
    if backends.len() == 1 {
        // Whether it takes all of them shows when they are prepared.
        return Ok(vec![0; graph.nodes.len()]);
    }
    let owner = |node: &Node| {
        let states = node.args.iter().filter_map(|&arg| state_of(graph, arg));
        let mut bound = states.map(|s| homes.states.get(s.index()).copied().unwrap_or(0));
        let candidates: Vec<usize> = match bound.next() {
            Some(home) => [home].into_iter().filter(|&home| bound.all(|other| other == home)).collect(),
            None => in_order(homes, node.layer, backends.len()).collect(),
        };
        let args = graph.descs(&node.args);
        let takes = |&b: &usize| backends[b].prepare(&node.op, &args).is_some();
        candidates.iter().copied().find(takes).ok_or_else(|| unsupported(graph, node, backends, &candidates))
    };
    graph.nodes.iter().map(owner).collect()
}

/// Backends in the order in which a node of this layer prefers them.
fn in_order(homes: Homes<'_>, layer: Option<u32>, n_backends: usize) -> impl Iterator<Item = usize> {
    let first = layer.and_then(|layer| homes.layers.get(layer as usize)).copied().unwrap_or(0);
    std::iter::once(first).chain((0..n_backends).filter(move |&b| b != first))
}

/// A backend for each of `n_states` states: the first that takes every node of this graph which touches it, the one of its
/// layer before others.
pub(crate) fn place_states(graph: &Graph, backends: &[Arc<dyn Backend>], layers: &[usize], of: &[u32]) -> Vec<usize> {
    let homes = Homes { layers, states: &[] };
    let home = |(state, &layer): (u32, &u32)| {
        let touches = |n: &&Node| n.args.iter().any(|&arg| state_of(graph, arg) == Some(StateId(state)));
        let takes = |&b: &usize| {
            let takes = |n: &Node| backends[b].prepare(&n.op, &graph.descs(&n.args)).is_some();
            graph.nodes.iter().filter(touches).all(takes)
        };
        let mut candidates = in_order(homes, Some(layer), backends.len());
        candidates.find(takes).or_else(|| in_order(homes, Some(layer), 1).next()).unwrap_or(0)
    };
    (0..).zip(of).map(home).collect()
}

/// What the backends decide about the nodes that were assigned to them; `known` has it for those that were asked about.
///
/// Errors: `Unsupported` for a node that its backend does not take.
pub(crate) fn prepare(
    graph: &Graph,
    backends: &[Arc<dyn Backend>],
    owners: &[usize],
    known: Vec<Option<Prepared>>,
) -> Result<Vec<Prepared>> {
    let mut prepared = Vec::with_capacity(graph.nodes.len());
    let known = known.into_iter().chain(std::iter::repeat_with(|| None));
    for ((node, &owner), known) in graph.nodes.iter().zip(owners).zip(known) {
        let asked = known.or_else(|| backends[owner].prepare(&node.op, &graph.descs(&node.args)));
        prepared.push(asked.ok_or_else(|| unsupported(graph, node, backends, &[owner]))?);
    }
    Ok(prepared)
}

#[cold]
fn unsupported(graph: &Graph, node: &Node, backends: &[Arc<dyn Backend>], candidates: &[usize]) -> Error {
    let args = graph.descs(&node.args);
    let operands: Vec<String> = args.iter().map(|a| format!("{}{}", a.dtype, a.shape)).collect();
    Error::Unsupported {
        op: node.op.spec().name,
        backend: candidates.iter().map(|&b| backends[b].name()).collect::<Vec<_>>().join(", "),
        why: format!("operands {}", operands.join(" ")),
    }
}

/// The state whose bytes a tensor is.
fn state_of(graph: &Graph, t: TensorId) -> Option<StateId> {
    match graph.tensor(graph.root(t)).source {
        Source::State(s) => Some(s),
        Source::Node(n, 0) => {
            let node = graph.node(n);
            state_of(graph, node.args[node.op.spec().aliases?])
        }
        Source::Node(..) | Source::Weight(_) | Source::Input(_) | Source::View { .. } => None,
    }
}

/// The cuts of a graph in execution order.
pub(crate) fn cuts(graph: &Graph, owners: &[usize]) -> Vec<Cut> {
    let mut cuts: Vec<Cut> = Vec::new();
    let mut start = 0;
    for run in owners.chunk_by(|a, b| a == b) {
        let nodes = start..start + run.len();
        start = nodes.end;
        let mut next = cut(graph, owners, nodes);
        let earlier = cuts.iter().filter(|c| c.backend == next.backend);
        let arrived: Vec<TensorId> = earlier.flat_map(|c| &c.copies).map(|&(t, _)| t).collect();
        next.copies.retain(|(t, _)| !arrived.contains(t));
        cuts.push(next);
    }
    cuts
}

fn cut(graph: &Graph, owner: &[usize], nodes: Range<usize>) -> Cut {
    let backend = owner[nodes.start];
    let (mut inputs, mut outputs, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    let is_state = |t: TensorId| state_of(graph, t).is_some();
    for &arg in graph.nodes[nodes.clone()].iter().flat_map(|n| &n.args) {
        let root = graph.root(arg);
        let maker = match graph.tensor(root).source {
            Source::Input(_) => None,
            Source::Node(n, _) if !nodes.contains(&n.index()) && !is_state(root) => Some(n),
            Source::Node(..) | Source::Weight(_) | Source::State(_) | Source::View { .. } => continue,
        };
        if !inputs.contains(&root) {
            inputs.push(root);
            copies.extend(maker.map(|n| (root, owner[n.index()])).filter(|&(_, from)| from != backend));
        }
    }
    let later = graph.nodes[nodes.end..].iter().flat_map(|n| &n.args).chain(&graph.outputs);
    for root in later.map(|&t| graph.root(t)) {
        let made_here = graph.producer(root).is_some_and(|n| nodes.contains(&n.index()));
        if made_here && !is_state(root) && !outputs.contains(&root) {
            outputs.push(root);
        }
    }
    let groups = nodes.clone().map(|node| node..node + 1).collect();
    Cut { backend, nodes, inputs, outputs, copies, groups }
}

/// Lets the backends say which nodes they run as one.
///
/// Errors: `Refused` for groups that leave out a node of a cut, or have one twice or out of order.
pub(crate) fn group(graph: &Graph, backends: &[Arc<dyn Backend>], cuts: &mut [Cut]) -> Result<()> {
    for cut in cuts {
        let backend = &backends[cut.backend];
        let groups = backend.groups(graph, cut.nodes.clone());
        let end = groups.iter().try_fold(cut.nodes.start, |end, group| {
            let follows = group.start == end && group.end > end;
            follows.then_some(group.end)
        });
        if end != Some(cut.nodes.end) {
            let what = format!("groups that are not nodes {:?} in order", cut.nodes);
            return Err(Error::Refused { backend: backend.name().into(), what });
        }
        cut.groups = groups;
    }
    Ok(())
}
