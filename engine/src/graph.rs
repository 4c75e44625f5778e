//! [`Graph`]: an arena of tensors and nodes. Nodes are in execution order because they were built in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

use smallvec::SmallVec;

use crate::op::Op;
use crate::tensor::{Input, NodeId, Source, TensorDesc, TensorId};

/// Operands or results of a node; usual numbers of them need no memory of their own.
pub type TensorIds = SmallVec<[TensorId; 6]>;

/// One operation with its operands and results.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Operands, in the order the op documents.
    pub args: TensorIds,
    /// Results, in the order the op documents.
    pub outs: TensorIds,
}

/// A computation: what is computed from which tensors, without where anything lies.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Graph {
    /// All tensors.
    pub tensors: Vec<TensorDesc>,
    /// All nodes in execution order.
    pub nodes: Vec<Node>,
    /// Tensors that the caller reads after a run, taps included.
    pub outputs: Vec<TensorId>,
    /// Names that models gave to tensors.
    pub names: BTreeMap<String, TensorId>,
}

impl Graph {
    /// The tensor's description.
    pub fn tensor(&self, id: TensorId) -> &TensorDesc {
        &self.tensors[id.index()]
    }

    /// The node with this index.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Nodes with their indices, in execution order.
    pub fn walk(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        (0..).map(NodeId).zip(&self.nodes)
    }

    /// The tensor that owns the bytes: itself, or what a view looks into.
    pub fn root(&self, id: TensorId) -> TensorId {
        match self.tensor(id).source {
            Source::View { of, .. } => of,
            Source::Weight(_) | Source::State(_) | Source::Input(_) | Source::Node(..) => id,
        }
    }

    /// Descriptions of tensors.
    pub fn descs(&self, ids: &[TensorId]) -> SmallVec<[&TensorDesc; 6]> {
        ids.iter().map(|&id| self.tensor(id)).collect()
    }

    /// The node that writes the tensor's bytes; none for weights, states and inputs.
    pub fn producer(&self, id: TensorId) -> Option<NodeId> {
        match self.tensor(self.root(id)).source {
            Source::Node(node, _) => Some(node),
            Source::Weight(_) | Source::State(_) | Source::Input(_) | Source::View { .. } => None,
        }
    }

    /// The graph's inputs in the order of the input block.
    pub fn inputs(&self) -> Vec<(Input, TensorId)> {
        let mut inputs: Vec<_> = (0..)
            .map(TensorId)
            .zip(&self.tensors)
            .filter_map(|(id, t)| match t.source {
                Source::Input(input) => Some((input, id)),
                Source::Weight(_) | Source::State(_) | Source::Node(..) | Source::View { .. } => None,
            })
            .collect();
        inputs.sort_unstable();
        inputs
    }

    /// How many operands and outputs look at the tensor's bytes, through views or directly, for every root.
    pub fn readers(&self) -> Vec<u32> {
        let mut readers = vec![0; self.tensors.len()];
        for node in &self.nodes {
            for &arg in &node.args {
                readers[self.root(arg).index()] += 1;
            }
        }
        for &out in &self.outputs {
            readers[self.root(out).index()] += 1;
        }
        readers
    }

    /// A hash of everything that decides what the graph computes. Equal keys must give equal fingerprints.
    pub fn fingerprint(&self) -> u64 {
        let mut h = DefaultHasher::new();
        self.tensors.hash(&mut h);
        for node in &self.nodes {
            hash_op(&node.op, &mut h);
            node.args.hash(&mut h);
            node.outs.hash(&mut h);
        }
        self.outputs.hash(&mut h);
        h.finish()
    }

    /// The graph as text, one node a line.
    pub fn dump(&self) -> String {
        let labels: BTreeMap<TensorId, &str> = self.names.iter().map(|(n, &id)| (id, n.as_str())).collect();
        let mut out = String::new();
        for (id, node) in self.walk() {
            let outs: Vec<String> = node.outs.iter().map(|&t| self.label(t)).collect();
            let args: Vec<String> = node.args.iter().map(|&t| self.label(t)).collect();
            let name = node.outs.iter().find_map(|t| labels.get(t)).map_or(String::new(), |n| format!("  # {n}"));
            writeln!(out, "{:4} {} = {:?}({}){name}", id.0, outs.join(", "), node.op, args.join(", "))
                .expect("writing to a string does not fail");
        }
        let outputs: Vec<String> = self.outputs.iter().map(|&t| self.label(t)).collect();
        writeln!(out, "outputs {}", outputs.join(", ")).expect("writing to a string does not fail");
        out
    }

    fn label(&self, id: TensorId) -> String {
        let t = self.tensor(id);
        let what = match t.source {
            Source::Weight(w) => format!("w{}", w.0),
            Source::State(s) => format!("s{}", s.0),
            Source::Input(i) => format!("{i:?}").to_lowercase(),
            Source::Node(..) => format!("t{}", id.0),
            Source::View { of, offset } => format!("t{}[{offset}..]", of.0),
        };
        format!("{what}:{}{}", t.dtype, t.shape)
    }
}

/// Hashes an op by its debug text, which spells out every parameter: floats have no `Hash`.
fn hash_op(op: &Op, h: &mut DefaultHasher) {
    struct Sink<'a>(&'a mut DefaultHasher);
    impl std::fmt::Write for Sink<'_> {
        fn write_str(&mut self, s: &str) -> std::fmt::Result {
            self.0.write(s.as_bytes());
            Ok(())
        }
    }
    write!(Sink(h), "{op:?}").expect("hashing does not fail");
}
