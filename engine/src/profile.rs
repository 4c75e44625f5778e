//! [`Profile`]: where the time of compiled graphs goes, node by node. A session makes one while
//! [`crate::session::Session::set_profiling`] is on; without, runs are not timed.

use std::collections::BTreeMap;

use crate::graph::{Graph, Node};
use crate::key::GraphKey;
use crate::tensor::{Source, TensorDesc};

/// Times of every graph that ran, by key.
#[derive(Clone, Default, Debug)]
pub struct Profile {
    graphs: BTreeMap<GraphKey, GraphTimes>,
}

/// Times of all runs of one graph.
#[derive(Clone, Debug)]
pub struct GraphTimes {
    labels: Vec<(&'static str, String)>,
    node_ns: Vec<u64>,
    runs: u64,
    run_ns: u64,
}

/// A node of a graph, and the time that it took in all runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeTime<'a> {
    /// Name of the op.
    pub op: &'static str,
    /// Its matrices as they are stored, such as `[1, 1024] x Q8_0[3072, 1024]`; the shape of its result where it has none.
    pub operands: &'a str,
    /// Nanoseconds. What lies between two nodes belongs to the later one.
    pub ns: u64,
}

impl Profile {
    /// Every graph that ran, in the order of the keys.
    pub fn graphs(&self) -> impl Iterator<Item = (&GraphKey, &GraphTimes)> {
        self.graphs.iter().filter(|(_, times)| times.runs > 0)
    }

    /// Sets all times to 0. What is known of the graphs is kept, so that their next runs are not charged with finding it
    /// out.
    pub(crate) fn reset(&mut self) {
        for times in self.graphs.values_mut() {
            times.node_ns.fill(0);
            (times.runs, times.run_ns) = (0, 0);
        }
    }

    /// The times of the graph with this key, to be added to.
    pub(crate) fn of(&mut self, key: &GraphKey, graph: &Graph) -> &mut GraphTimes {
        let entry = self.graphs.entry(*key);
        entry.or_insert_with(|| GraphTimes {
            labels: graph.nodes.iter().map(|n| (n.op.spec().name, operands(graph, n))).collect(),
            node_ns: vec![0; graph.nodes.len()],
            runs: 0,
            run_ns: 0,
        })
    }
}

impl GraphTimes {
    /// Every node, in execution order.
    pub fn nodes(&self) -> impl Iterator<Item = NodeTime<'_>> {
        self.labels.iter().zip(&self.node_ns).map(|((op, operands), &ns)| NodeTime { op, operands, ns })
    }

    /// Number of runs.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// Nanoseconds from the beginning to the end of the runs: those of the nodes, and what starting them took.
    pub fn run_ns(&self) -> u64 {
        self.run_ns
    }

    pub(crate) fn node_ns_mut(&mut self) -> &mut [u64] {
        &mut self.node_ns
    }

    pub(crate) fn count(&mut self, run_ns: u64) {
        self.runs += 1;
        self.run_ns += run_ns;
    }
}

/// What decides how long a node takes.
fn operands(graph: &Graph, node: &Node) -> String {
    let matrix = |t: &TensorDesc| matches!(t.source, Source::Weight(_)) && t.shape.rank() > 1;
    let descs = || node.args.iter().map(|&a| graph.tensor(a));
    let matrices: Vec<String> = descs().filter(|t| matrix(t)).map(|t| format!("{}{}", t.dtype, t.shape)).collect();
    if !matrices.is_empty() {
        let x = descs().find(|t| !matches!(t.source, Source::Weight(_)));
        let x = x.map_or(String::new(), |x| format!("{} x ", x.shape));
        return x + &matrices.join(", ");
    }
    // What an op writes into a state is its operand, not its result.
    let result = match node.op.spec().aliases {
        Some(_) => node.args.first(),
        None => node.outs.first(),
    };
    result.map_or(String::new(), |&t| graph.tensor(t).shape.to_string())
}
