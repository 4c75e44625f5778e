//! [`Graph`]: an arena of tensors and nodes. Nodes are in execution order because they were built in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

use smallvec::SmallVec;

use crate::op::Op;
use crate::tensor::{Input, NodeId, Source, TensorDesc, TensorId};

/// Operands or results of a node; usual numbers of them need no memory of their own.
pub type TensorIds = SmallVec<[TensorId; 6]>;

/// Descriptions of a node's operands.
pub type Operands<'a> = SmallVec<[&'a TensorDesc; 6]>;

/// One operation with its operands and results.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Operands, in the order the op documents.
    pub args: TensorIds,
    /// Results, in the order the op documents.
    pub outs: TensorIds,
    /// The layer that it belongs to, for whoever places layers.
    pub layer: Option<u32>,
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
    /// Names that models gave to tensors; the last one counts where a name was given twice.
    pub names: Vec<(Name, TensorId)>,
}

/// What a model calls a tensor: `norm`, or with a number `blk.3.out`. Text is made of it when somebody reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name {
    scope: &'static str,
    numbered: Option<(usize, &'static str)>,
}

impl From<&'static str> for Name {
    fn from(name: &'static str) -> Self {
        Self { scope: name, numbered: None }
    }
}

/// `("blk", 3, "out")` is `blk.3.out`.
impl From<(&'static str, usize, &'static str)> for Name {
    fn from((scope, number, part): (&'static str, usize, &'static str)) -> Self {
        Self { scope, numbered: Some((number, part)) }
    }
}

/// `("gelu", 3)` is `gelu.3`.
impl From<(&'static str, usize)> for Name {
    fn from((scope, number): (&'static str, usize)) -> Self {
        Self::from((scope, number, ""))
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.numbered {
            None => f.write_str(self.scope),
            Some((number, "")) => write!(f, "{}.{number}", self.scope),
            Some((number, part)) => write!(f, "{}.{number}.{part}", self.scope),
        }
    }
}

impl Graph {
    /// Adds a tensor.
    pub(crate) fn push(&mut self, desc: TensorDesc) -> TensorId {
        let id = TensorId(u32::try_from(self.tensors.len()).expect("graphs have far fewer tensors"));
        self.tensors.push(desc);
        id
    }

    /// The tensor's description.
    pub fn tensor(&self, id: TensorId) -> &TensorDesc {
        &self.tensors[id.index()]
    }

    /// The tensor with this name.
    pub fn named(&self, name: &str) -> Option<TensorId> {
        self.names.iter().rev().find(|(n, _)| n.to_string() == name).map(|&(_, id)| id)
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
    pub(crate) fn descs(&self, ids: &[TensorId]) -> Operands<'_> {
        let mut descs = Operands::new();
        for &id in ids {
            descs.push(self.tensor(id));
        }
        descs
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
    pub(crate) fn readers(&self) -> Vec<u32> {
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
        let labels: BTreeMap<TensorId, Name> = self.names.iter().map(|&(name, id)| (id, name)).collect();
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
