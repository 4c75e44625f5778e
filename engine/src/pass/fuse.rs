//! The table of rewrite rules. A rule looks at one node and what feeds it, and says which nodes become which one.
//!
//! A rewrite is applied where no tensor that would disappear has another reader or is an output, and where the backend
//! supports the fused op. The fused node takes the place of the first node it replaces.

use crate::graph::{Graph, Node};
use crate::op::{Binary, Op};
use crate::pass::FuseCounts;
use crate::tensor::{NodeId, Source, TensorDesc, TensorId};

/// Nodes to remove and the node that replaces them.
struct Rewrite {
    remove: Vec<NodeId>,
    op: Op,
    args: Vec<TensorId>,
    outs: Vec<TensorId>,
}

type Rule = fn(&Graph, NodeId) -> Option<Rewrite>;

/// In priority order: a gate and its `up` are one op before products of the same `x` are grouped.
const RULES: [(&str, Rule); 5] = [
    ("glu_epilogue", glu_epilogue),
    ("linear_epilogue", linear_epilogue),
    ("conv_act", conv_act),
    ("linear_group", linear_group),
    ("add_norm", add_norm),
];

/// Applies every rule wherever it matches. `supports` answers for the backend that the node will run on.
pub fn fuse(graph: &mut Graph, supports: &dyn Fn(&Op, &[&TensorDesc]) -> bool) -> FuseCounts {
    let mut counts = FuseCounts::new();
    for (name, rule) in RULES {
        let mut at = 0;
        while at < graph.nodes.len() {
            let id = NodeId(u32::try_from(at).expect("graphs have far fewer nodes"));
            match rule(graph, id).filter(|r| applies(graph, r, supports)) {
                Some(rewrite) => {
                    at = apply(graph, &rewrite);
                    *counts.entry(name).or_default() += 1;
                }
                None => at += 1,
            }
        }
    }
    counts
}

fn applies(graph: &Graph, rewrite: &Rewrite, supports: &dyn Fn(&Op, &[&TensorDesc]) -> bool) -> bool {
    let args: Vec<&TensorDesc> = rewrite.args.iter().map(|&a| graph.tensor(a)).collect();
    let first = rewrite.remove.iter().min().copied();
    let ready = rewrite.args.iter().all(|&a| graph.producer(a).is_none_or(|p| Some(p) < first));
    ready && supports(&rewrite.op, &args) && !loses_a_read_tensor(graph, rewrite)
}

/// Whether somebody else reads a tensor that the rewrite no longer makes.
fn loses_a_read_tensor(graph: &Graph, rewrite: &Rewrite) -> bool {
    let lost: Vec<TensorId> = rewrite
        .remove
        .iter()
        .flat_map(|&n| graph.node(n).outs.iter().copied())
        .filter(|t| !rewrite.outs.contains(t))
        .collect();
    let is_lost = |t: TensorId| lost.contains(&graph.root(t));
    let read = graph.walk().any(|(id, n)| !rewrite.remove.contains(&id) && n.args.iter().any(|&a| is_lost(a)));
    read || graph.outputs.iter().any(|&t| is_lost(t))
}

/// Replaces the nodes; returns the index after the new one.
fn apply(graph: &mut Graph, rewrite: &Rewrite) -> usize {
    let first = rewrite.remove.iter().min().expect("a rewrite removes something").index();
    let fused = Node { op: rewrite.op, args: rewrite.args.clone(), outs: rewrite.outs.clone() };
    graph.nodes[first] = fused;
    let mut index = 0;
    graph.nodes.retain(|_| {
        let keep = index == first || !rewrite.remove.iter().any(|r| r.index() == index);
        index += 1;
        keep
    });
    renumber(graph);
    first + 1
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
fn glu_epilogue(graph: &Graph, at: NodeId) -> Option<Rewrite> {
    let glu = graph.node(at);
    let Op::Glu(act) = glu.op else { return None };
    let plain = Op::Linear { bias: false, act: None };
    let (gate_id, gate) = maker(graph, glu.args[0]).filter(|(_, n)| n.op == plain)?;
    let (up_id, up) = maker(graph, glu.args[1]).filter(|(_, n)| n.op == plain && n.args[0] == gate.args[0])?;
    Some(Rewrite {
        remove: vec![gate_id, up_id, at],
        op: Op::LinearGlu { act },
        args: vec![gate.args[0], gate.args[1], up.args[1]],
        outs: glu.outs.clone(),
    })
}

/// A pointwise function of a product.
fn linear_epilogue(graph: &Graph, at: NodeId) -> Option<Rewrite> {
    let unary = graph.node(at);
    let Op::Unary(act) = unary.op else { return None };
    let (id, linear) = maker(graph, unary.args[0])?;
    let Op::Linear { bias, act: None } = linear.op else { return None };
    Some(Rewrite {
        remove: vec![id, at],
        op: Op::Linear { bias, act: Some(act) },
        args: linear.args.clone(),
        outs: unary.outs.clone(),
    })
}

/// A pointwise function of a convolution.
fn conv_act(graph: &Graph, at: NodeId) -> Option<Rewrite> {
    let unary = graph.node(at);
    let Op::Unary(act) = unary.op else { return None };
    let (id, conv) = maker(graph, unary.args[0])?;
    let Op::Conv2d { stride, pad, act: None } = conv.op else { return None };
    Some(Rewrite {
        remove: vec![id, at],
        op: Op::Conv2d { stride, pad, act: Some(act) },
        args: conv.args.clone(),
        outs: unary.outs.clone(),
    })
}

/// Products of the same `x`: it is converted once, and their rows are one step. Matches at the first of them.
fn linear_group(graph: &Graph, at: NodeId) -> Option<Rewrite> {
    let first = graph.node(at);
    let Op::Linear { bias, act: None } = first.op else { return None };
    let members: Vec<(NodeId, &Node)> =
        graph.walk().filter(|(id, n)| *id >= at && n.op == first.op && n.args[0] == first.args[0]).collect();
    let n = u8::try_from(members.len()).ok().filter(|&n| n > 1)?;
    let mut args = vec![first.args[0]];
    args.extend(members.iter().map(|(_, m)| m.args[1]));
    if bias {
        args.extend(members.iter().map(|(_, m)| m.args[2]));
    }
    Some(Rewrite {
        remove: members.iter().map(|(id, _)| *id).collect(),
        op: Op::LinearGroup { n, bias },
        args,
        outs: members.iter().map(|(_, m)| m.outs[0]).collect(),
    })
}

/// Residual add followed by a norm. The sum keeps its other readers: it is the fused node's first result.
fn add_norm(graph: &Graph, at: NodeId) -> Option<Rewrite> {
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
    let mut args = vec![x, residual];
    args.extend(&norm.args[1..]);
    Some(Rewrite { remove: vec![add_id, at], op, args, outs: vec![norm.args[0], norm.outs[0]] })
}
