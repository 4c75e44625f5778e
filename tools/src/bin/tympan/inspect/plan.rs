//! The memory plan of a call as text: what lies where, from when to when.

use std::ops::Range;

use engine::plan::{MemoryPlan, Place};
use engine::tensor::TensorId;

use super::graph::Shown;
use super::listing::{size, table};

/// Something in the arena.
struct Occupant {
    what: String,
    bytes: Range<usize>,
    /// First and last node during which it is needed; the number of nodes stands for the end of the call.
    alive: [usize; 2],
    /// The operand whose bytes it takes over.
    replaces: Option<TensorId>,
}

/// The plan of every backend: sizes, and a line for everything in the arena.
pub(super) fn text(shown: &Shown<'_>) -> String {
    let plans: Vec<_> = (0..shown.backends.len()).filter_map(|i| Some((i, shown.planned.plan(i)?))).collect();
    match plans[..] {
        [(_, plan)] => of(shown, plan),
        _ => plans.iter().map(|(i, plan)| format!("{}\n{}\n", shown.backends[*i].name(), of(shown, plan))).collect(),
    }
}

fn of(shown: &Shown<'_>, plan: &MemoryPlan) -> String {
    let graph = &shown.planned.graph();
    let occupants = occupants(shown, plan);
    let sum: usize = occupants.iter().filter(|o| o.replaces.is_none()).map(|o| o.bytes.len()).sum();
    let all: usize = occupants.iter().map(|o| o.bytes.len()).sum();
    let peak = (0..=graph.nodes.len()).map(|node| needed(&occupants, node)).max().unwrap_or_default();
    let scratch = graph.walk().map(|(id, _)| plan.scratch(id).len()).max().unwrap_or_default();
    let bytes = |n: usize| size(n as u64);
    let lines = [
        format!(
            "arena: {} ({} bytes), of which the input block: {} bytes",
            bytes(plan.arena_bytes),
            plan.arena_bytes,
            plan.input_bytes
        ),
        format!("results and scratch memory if each had its own place: {}", bytes(all)),
        format!("without those that take over an operand's place: {}", bytes(sum)),
        format!("needed at once, input block included: {}", bytes(plan.input_bytes + peak)),
        format!("largest scratch memory of a node: {}", bytes(scratch)),
    ];
    let end = graph.nodes.len();
    let row = |o: &Occupant| {
        let until = if o.alive[1] == end { "end".to_owned() } else { o.alive[1].to_string() };
        let replaces = o.replaces.map_or(String::new(), |t| format!("in place of t{}", t.index()));
        vec![
            o.alive[0].to_string(),
            until,
            o.bytes.start.to_string(),
            o.bytes.len().to_string(),
            o.what.clone(),
            replaces,
        ]
    };
    let rows: Vec<Vec<String>> = occupants.iter().map(row).collect();
    format!(
        "{}\n\n{}",
        lines.join("\n"),
        table(&["node", "until", "offset", "bytes", "what", ""], &rows, &[0, 1, 2, 3])
    )
}

/// Bytes that are needed while a node runs.
fn needed(occupants: &[Occupant], node: usize) -> usize {
    let mut ranges: Vec<Range<usize>> =
        occupants.iter().filter(|o| o.alive[0] <= node && node <= o.alive[1]).map(|o| o.bytes.clone()).collect();
    // What takes over an operand's place lies on it.
    ranges.sort_by_key(|r| r.start);
    let (mut total, mut end) = (0, 0);
    for range in ranges {
        total += range.end.saturating_sub(range.start.max(end));
        end = end.max(range.end);
    }
    total
}

/// Results and scratch memory in the order of their nodes.
fn occupants(shown: &Shown<'_>, plan: &MemoryPlan) -> Vec<Occupant> {
    let graph = &shown.planned.graph();
    let mut last_read = vec![0; graph.tensors.len()];
    for (id, node) in graph.walk() {
        node.args.iter().for_each(|&arg| last_read[graph.root(arg).index()] = id.index());
    }
    graph.outputs.iter().for_each(|&out| last_read[graph.root(out).index()] = graph.nodes.len());
    let mut occupants = Vec::new();
    for (id, node) in graph.walk() {
        let at = id.index();
        for &out in &node.outs {
            let Place::Arena { offset, bytes } = plan.place(out) else { continue };
            let replaces = node.args.iter().map(|&a| graph.root(a)).find(|&root| plan.share(root, out));
            occupants.push(Occupant {
                what: format!("{} = {}", shown.tensor(out), node.op.spec().name),
                bytes: offset..offset + bytes,
                alive: [at, last_read[out.index()].max(at)],
                replaces,
            });
        }
        let scratch = plan.scratch(id);
        if !scratch.is_empty() {
            let what = format!("scratch memory of {}", node.op.spec().name);
            occupants.push(Occupant { what, bytes: scratch, alive: [at, at], replaces: None });
        }
    }
    occupants
}
