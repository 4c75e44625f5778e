//! Drops nodes that no output and no state write needs.

use crate::graph::Graph;
use crate::pass::fuse::renumber;

/// Removes nodes whose results nobody reads and that write no state.
pub(crate) fn prune(graph: &mut Graph) {
    let mut needed = vec![false; graph.tensors.len()];
    for &out in &graph.outputs {
        needed[graph.root(out).index()] = true;
    }
    let mut keep = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        keep[i] = node.op.spec().mutates.is_some() || node.outs.iter().any(|o| needed[o.index()]);
        if keep[i] {
            for &arg in &node.args {
                needed[graph.root(arg).index()] = true;
            }
        }
    }
    if keep.iter().all(|&kept| kept) {
        return;
    }
    let mut keep = keep.into_iter();
    graph.nodes.retain(|_| keep.next().unwrap_or(true));
    renumber(graph);
}
