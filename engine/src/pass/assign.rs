//! Chooses a backend for every node and cuts the graph into segments.
//!
//! A node runs on the first backend of the session that supports it. Maximal runs of equal backend become segments. All
//! backends use the same plan, each in an arena of its own, so a tensor that crosses a cut is copied at its own offset.

use std::ops::Range;

use crate::backend::{Backend, Prepared};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::tensor::{Source, TensorId};

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
    /// For every result of another backend read here: the tensor, and the backend that made it.
    pub copies: Vec<(TensorId, usize)>,
}

/// The cuts of a graph in execution order, and for every node what its backend decided about it. States live on the first
/// backend: a node that touches one must run there.
pub fn assign(graph: &Graph, backends: &[std::sync::Arc<dyn Backend>]) -> Result<(Vec<Cut>, Vec<Prepared>)> {
    let mut owner: Vec<usize> = Vec::with_capacity(graph.nodes.len());
    let mut prepared = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let args = graph.descs(&node.args);
        let bound = backends.len() > 1 && node.args.iter().any(|&a| is_state(graph, a));
        let candidates = if bound { &backends[..1] } else { backends };
        let found = candidates.iter().enumerate().find_map(|(i, b)| b.prepare(&node.op, &args).map(|p| (i, p)));
        let (backend, node) = found.ok_or_else(|| Error::Unsupported {
            op: node.op.spec().name,
            backend: candidates.iter().map(|b| b.name()).collect::<Vec<_>>().join(", "),
            why: format!(
                "operands {}",
                args.iter().map(|a| format!("{}{}", a.dtype, a.shape)).collect::<Vec<_>>().join(" ")
            ),
        })?;
        owner.push(backend);
        prepared.push(node);
    }
    let mut cuts = Vec::new();
    let mut start = 0;
    while start < owner.len() {
        let len = owner[start..].iter().take_while(|&&o| o == owner[start]).count();
        cuts.push(cut(graph, &owner, start..start + len));
        start += len;
    }
    Ok((cuts, prepared))
}

fn is_state(graph: &Graph, t: TensorId) -> bool {
    match graph.tensor(graph.root(t)).source {
        Source::State(_) => true,
        Source::Node(n, _) => graph.node(n).op.spec().aliases.is_some(),
        Source::Weight(_) | Source::Input(_) | Source::View { .. } => false,
    }
}

fn cut(graph: &Graph, owner: &[usize], nodes: Range<usize>) -> Cut {
    let backend = owner[nodes.start];
    let (mut inputs, mut outputs, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    for &arg in graph.nodes[nodes.clone()].iter().flat_map(|n| &n.args) {
        let root = graph.root(arg);
        let maker = match graph.tensor(root).source {
            Source::Input(_) => None,
            Source::Node(n, _) if !nodes.contains(&n.index()) && !is_state(graph, root) => Some(n),
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
        if made_here && !is_state(graph, root) && !outputs.contains(&root) {
            outputs.push(root);
        }
    }
    Cut { backend, nodes, inputs, outputs, copies }
}
