//! The table of rewrite rules. A rule looks at one node and what feeds it, and says which nodes become which one.
//!
//! A rewrite is applied where no tensor that would disappear has another reader or is an output, and where all its nodes
//! were assigned to one backend, which supports the fused op. The fused node takes the place of the first node it replaces.

use smallvec::{SmallVec, smallvec};

use crate::backend::Prepared;
use crate::graph::{Graph, Node, TensorIds};
use crate::op::{Binary, Op};
use crate::pass::FuseCounts;
use crate::tensor::{NodeId, Source, TensorDesc, TensorId};

/// Nodes to remove and the node that replaces them.
struct Rewrite {
    remove: SmallVec<[NodeId; 4]>,
    op: Op,
    args: TensorIds,
    outs: TensorIds,
}

/// A graph while rules are applied. What a rewrite removes leaves a node without results behind until the end, so that
/// numbers of nodes stay what they are.
struct Fusing<'a> {
    graph: &'a mut Graph,
    /// The backend of every node.
    owners: &'a [usize],
    /// How many operands and outputs look at each root.
    readers: Vec<u32>,
    /// What backends decided about nodes that rewrites made.
    prepared: Vec<Option<Prepared>>,
}

/// A rule: the op of the node it looks at, and the rewrite, if what feeds the node is what the rule wants.
struct Rule {
    name: &'static str,
    at: fn(&Op) -> bool,
    rewrite: fn(&Fusing<'_>, NodeId) -> Option<Rewrite>,
}

/// In priority order: a gate and its `up` are one op before products of the same `x` are grouped.
const RULES: [Rule; 5] = [
    Rule { name: "glu_epilogue", at: |op| matches!(op, Op::Glu(_)), rewrite: glu_epilogue },
    Rule { name: "linear_epilogue", at: |op| matches!(op, Op::Unary(_)), rewrite: linear_epilogue },
    Rule { name: "conv_act", at: |op| matches!(op, Op::Unary(_)), rewrite: conv_act },
    Rule { name: "linear_group", at: |op| matches!(op, Op::Linear { .. }), rewrite: linear_group },
    Rule { name: "add_norm", at: |op| matches!(op, Op::RmsNorm { .. } | Op::LayerNorm { .. }), rewrite: add_norm },
];

/// What the backend with this index decides about an op on these operands.
type Prepare<'a> = &'a dyn Fn(usize, &Op, &[&TensorDesc]) -> Option<Prepared>;

/// What [`fuse`] did.
#[derive(Default)]
pub struct Fused {
    /// How often each rule applied.
    pub counts: FuseCounts,
    /// What the backends decided about the nodes that are left, where they were asked.
    pub prepared: Vec<Option<Prepared>>,
}

/// Applies every rule wherever it matches. `owners` has the backend of every node, before and after.
pub fn fuse(graph: &mut Graph, owners: &mut Vec<usize>, prepare: Prepare<'_>) -> Fused {
    let mut counts = FuseCounts::new();
    let readers = graph.readers();
    let prepared = std::iter::repeat_with(|| None).take(graph.nodes.len()).collect();
    let mut fusing = Fusing { graph, owners, readers, prepared };
    for Rule { name, at: is_of, rewrite } in RULES {
        for at in 0..fusing.graph.nodes.len() {
            let id = NodeId(u32::try_from(at).expect("graphs have far fewer nodes"));
            // What another rewrite removed has no results.
            if !is_of(&fusing.graph.nodes[at].op) || fusing.graph.nodes[at].outs.is_empty() {
                continue;
            }
            let Some(rewrite) = rewrite(&fusing, id) else { continue };
            if let Some(prepared) = fusing.prepare(&rewrite, prepare) {
                fusing.apply(rewrite, prepared);
                *counts.entry(name).or_default() += 1;
            }
        }
    }
    let Fusing { mut prepared, .. } = fusing;
    let is_left = |nodes: &mut std::slice::Iter<'_, Node>| nodes.next().is_some_and(|n| !n.outs.is_empty());
    let mut nodes = graph.nodes.iter();
    owners.retain(|_| is_left(&mut nodes));
    let mut nodes = graph.nodes.iter();
    prepared.retain(|_| is_left(&mut nodes));
    graph.nodes.retain(|n| !n.outs.is_empty());
    renumber(graph);
    Fused { counts, prepared }
}

impl Fusing<'_> {
    /// What the backend decides about the fused op; `None` where the rewrite does not apply.
    fn prepare(&self, rewrite: &Rewrite, prepare: Prepare<'_>) -> Option<Prepared> {
        let owner = self.owners[rewrite.remove[0].index()];
        let first = rewrite.remove.iter().min().copied();
        let is_ready = |&arg: &TensorId| self.graph.producer(arg).is_none_or(|maker| Some(maker) < first);
        let applies = rewrite.remove.iter().all(|n| self.owners[n.index()] == owner)
            && rewrite.args.iter().all(is_ready)
            && !self.loses_a_read_tensor(rewrite);
        applies.then(|| prepare(owner, &rewrite.op, &self.graph.descs(&rewrite.args))).flatten()
    }

    /// Whether somebody else reads a tensor that the rewrite no longer makes.
    fn loses_a_read_tensor(&self, rewrite: &Rewrite) -> bool {
        let removed = || rewrite.remove.iter().map(|&n| self.graph.node(n));
        let mut lost = removed().flat_map(|n| &n.outs).filter(|t| !rewrite.outs.contains(t));
        lost.any(|&t| {
            let own = removed().flat_map(|n| &n.args).filter(|&&a| self.graph.root(a) == t).count();
            self.readers[t.index()] as usize > own
        })
    }

    /// Puts the new node in the place of the first one that it replaces.
    fn apply(&mut self, rewrite: Rewrite, prepared: Prepared) {
        let Rewrite { remove, op, args, outs } = rewrite;
        let first = *remove.iter().min().expect("a rewrite removes something");
        for node in &remove {
            self.prepared[node.index()] = None;
            let node = &mut self.graph.nodes[node.index()];
            node.outs.clear();
            for arg in std::mem::take(&mut node.args) {
                self.readers[self.graph.root(arg).index()] -= 1;
            }
        }
        for &arg in &args {
            self.readers[self.graph.root(arg).index()] += 1;
        }
        for (k, &out) in (0u8..).zip(&outs) {
            self.graph.tensors[out.index()].source = Source::Node(first, k);
        }
        let layer = self.graph.nodes[first.index()].layer;
        self.graph.nodes[first.index()] = Node { op, args, outs, layer };
        self.prepared[first.index()] = Some(prepared);
    }
}

/// Makes every node result name its node again after nodes moved.
pub(super) fn renumber(graph: &mut Graph) {
    for (i, node) in (0..).zip(&graph.nodes) {
        for (k, &out) in (0u8..).zip(&node.outs) {
            graph.tensors[out.index()].source = Source::Node(NodeId(i), k);
        }
    }
}

/// The node that makes exactly this tensor, not one that it is a view of.
fn maker(graph: &Graph, t: TensorId) -> Option<(NodeId, &Node)> {
    match graph.tensor(t).source {
        Source::Node(id, _) => Some((id, graph.node(id))),
        Source::Weight(_) | Source::State(_) | Source::Input(_) | Source::View { .. } => None,
    }
}

/// `act(gate) * up` of two products of the same `x`.
fn glu_epilogue(Fusing { graph, .. }: &Fusing<'_>, at: NodeId) -> Option<Rewrite> {
    let glu = graph.node(at);
    let Op::Glu(act) = glu.op else { return None };
    let (gate_id, gate) = maker(graph, glu.args[0])?;
    let Op::Linear { bias: false, act: None, precision } = gate.op else { return None };
    let (up_id, up) = maker(graph, glu.args[1]).filter(|(_, n)| n.op == gate.op && n.args[0] == gate.args[0])?;
    Some(Rewrite {
        remove: smallvec![gate_id, up_id, at],
        op: Op::LinearGlu { act, precision },
        args: smallvec![gate.args[0], gate.args[1], up.args[1]],
        outs: glu.outs.clone(),
    })
}

/// A pointwise function of a product.
fn linear_epilogue(Fusing { graph, .. }: &Fusing<'_>, at: NodeId) -> Option<Rewrite> {
    let unary = graph.node(at);
    let Op::Unary(act) = unary.op else { return None };
    let (id, linear) = maker(graph, unary.args[0])?;
    let Op::Linear { bias, act: None, precision } = linear.op else { return None };
    Some(Rewrite {
        remove: smallvec![id, at],
        op: Op::Linear { bias, act: Some(act), precision },
        args: linear.args.clone(),
        outs: unary.outs.clone(),
    })
}

/// A pointwise function of a convolution.
fn conv_act(Fusing { graph, .. }: &Fusing<'_>, at: NodeId) -> Option<Rewrite> {
    let unary = graph.node(at);
    let Op::Unary(act) = unary.op else { return None };
    let act = Some(act);
    let (id, conv) = maker(graph, unary.args[0])?;
    let op = if let Op::Conv2d { stride, pad, act: None, precision } = conv.op {
        Op::Conv2d { stride, pad, act, precision }
    } else if let Op::CausalConv1d { bias, act: None } = conv.op {
        Op::CausalConv1d { bias, act }
    } else {
        return None;
    };
    Some(Rewrite { remove: smallvec![id, at], op, args: conv.args.clone(), outs: unary.outs.clone() })
}

/// Products of the same `x` on one backend: it is converted once, and their rows are one step. Matches at the first of them.
fn linear_group(Fusing { graph, owners, readers, .. }: &Fusing<'_>, at: NodeId) -> Option<Rewrite> {
    let first = graph.node(at);
    let Op::Linear { bias, act: None, precision } = first.op else { return None };
    let x = first.args[0];
    // Readers come soon after each other: the search ends with the last of them, or with the graph if some came before.
    let mut unseen = readers[graph.root(x).index()];
    if unseen < 2 {
        return None;
    }
    let mut members: SmallVec<[(NodeId, &Node); 4]> = SmallVec::new();
    for (id, node) in graph.walk().skip(at.index()) {
        if unseen == 0 {
            break;
        }
        let reads = node.args.iter().filter(|&&a| graph.root(a) == graph.root(x)).count();
        unseen -= u32::try_from(reads).expect("counted among them");
        // What another rewrite removed has no operands.
        if node.op == first.op && node.args.first() == Some(&x) && owners[id.index()] == owners[at.index()] {
            members.push((id, node));
        }
    }
    let n = u8::try_from(members.len()).ok().filter(|&n| n > 1)?;
    let mut args: TensorIds = smallvec![first.args[0]];
    args.extend(members.iter().map(|(_, m)| m.args[1]));
    if bias {
        args.extend(members.iter().map(|(_, m)| m.args[2]));
    }
    Some(Rewrite {
        remove: members.iter().map(|(id, _)| *id).collect(),
        op: Op::LinearGroup { n, bias, precision },
        args,
        outs: members.iter().map(|(_, m)| m.outs[0]).collect(),
    })
}

/// Residual add followed by a norm. The sum keeps its other readers: it is the fused node's first result.
fn add_norm(Fusing { graph, .. }: &Fusing<'_>, at: NodeId) -> Option<Rewrite> {
    let norm = graph.node(at);
    let op = if let Op::RmsNorm { eps } = norm.op {
        Op::AddRmsNorm { eps }
    } else if let Op::LayerNorm { eps } = norm.op {
        Op::AddLayerNorm { eps }
    } else {
        return None;
    };
    let (add_id, add) = maker(graph, norm.args[0]).filter(|(_, n)| n.op == Op::Binary(Binary::Add))?;
    let [x, residual] = add.args[..] else { return None };
    if graph.tensor(x).shape != graph.tensor(residual).shape {
        return None;
    }
    let mut args: TensorIds = smallvec![x, residual];
    args.extend_from_slice(&norm.args[1..]);
    Some(Rewrite { remove: smallvec![add_id, at], op, args, outs: smallvec![norm.args[0], norm.outs[0]] })
}
