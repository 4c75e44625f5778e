//! [`MemoryPlan`]: where every activation lies that a backend makes or reads, fixed before the first run. [`verify`] checks a
//! plan without using anything that made it.
//!
//! A graph that is cut has a plan for each backend. What a backend reads of another's results arrives before the first cut
//! that reads it and has a place of its own from then on; where it was made, its place is kept until it has left.
//!
//! Nodes that a backend runs as one have no order in time: what such a group reads or makes is kept until its end, and
//! nothing in it is written over anything else of it.

use std::cmp::Reverse;
use std::ops::Range;

use crate::graph::{Graph, Node};
use crate::pass::assign::Cut;
use crate::tensor::{NodeId, Source, TensorDesc, TensorId};

/// Where a tensor's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the arena.
    Arena {
        /// First byte.
        offset: usize,
        /// Number of bytes.
        bytes: usize,
    },
    /// In a weight's or a state's buffer, or in what the tensor is a view of.
    Elsewhere,
    /// Nowhere: no node of the backend makes or reads it.
    Unused,
}

/// Offsets of all activations, inputs and scratch regions of one graph on one backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryPlan {
    /// Size of the arena.
    pub arena_bytes: usize,
    /// Size of the input block at offset 0.
    pub input_bytes: usize,
    places: Vec<Place>,
    scratch: Vec<Range<usize>>,
    /// Bytes that die, in the order of the nodes after which they do.
    dead: Vec<Range<usize>>,
    /// Where each node's part of `dead` ends.
    dead_ends: Vec<usize>,
}

impl MemoryPlan {
    /// Where the tensor lies. Views and state aliases are [`Place::Elsewhere`].
    pub fn place(&self, id: TensorId) -> Place {
        self.places[id.index()]
    }

    /// The arena offset of an input or a node's result; 0 for what is not in the arena.
    pub fn offset(&self, id: TensorId) -> usize {
        match self.place(id) {
            Place::Arena { offset, .. } => offset,
            Place::Elsewhere | Place::Unused => 0,
        }
    }

    /// The bytes of an input or a node's result in the arena; `None` for what is not in the arena.
    fn range(&self, id: TensorId) -> Option<Range<usize>> {
        match self.place(id) {
            Place::Arena { offset, bytes } => Some(offset..offset + bytes),
            Place::Elsewhere | Place::Unused => None,
        }
    }

    /// Scratch bytes of a node.
    pub fn scratch(&self, node: NodeId) -> Range<usize> {
        self.scratch[node.index()].clone()
    }

    /// Bytes that nobody reads any more once this node has run.
    pub fn dead_after(&self, node: NodeId) -> &[Range<usize>] {
        let start = node.index().checked_sub(1).map_or(0, |before| self.dead_ends[before]);
        &self.dead[start..self.dead_ends[node.index()]]
    }

    /// Whether two tensors were given the same first byte.
    pub fn share(&self, a: TensorId, b: TensorId) -> bool {
        match (self.place(a), self.place(b)) {
            (Place::Arena { offset: x, .. }, Place::Arena { offset: y, .. }) => x == y,
            (Place::Arena { .. } | Place::Elsewhere | Place::Unused, _) => false,
        }
    }
}

/// Bytes that are alive from node `first` to node `last`, inclusive.
struct Interval {
    first: usize,
    last: usize,
    bytes: usize,
    /// Node whose scratch this is.
    scratch: Option<usize>,
}

/// Plans a graph's cuts on one backend: lifetimes, in-place reuse, offsets. Inputs come first, in the order of the input
/// block, and are never reused; the rest is sorted by size and each interval placed at the lowest offset that is free over
/// its lifetime.
///
/// `scratch` gives the bytes that a node's kernels want; `alignment` is in bytes.
pub(crate) fn plan(
    graph: &Graph,
    cuts: &[Cut],
    backend: usize,
    alignment: usize,
    scratch: &dyn Fn(NodeId) -> usize,
) -> MemoryPlan {
    let mut places = vec![Place::Unused; graph.tensors.len()];
    let mut input_bytes = 0;
    for (_, id) in graph.inputs() {
        let bytes = graph.tensor(id).bytes();
        places[id.index()] = Place::Arena { offset: input_bytes, bytes };
        input_bytes = (input_bytes + bytes).next_multiple_of(alignment);
    }
    for (id, t) in ids(graph) {
        match t.source {
            Source::Weight(_) | Source::State(_) | Source::View { .. } => places[id.index()] = Place::Elsewhere,
            Source::Node(n, 0) if graph.nodes.get(n.index()).is_some_and(|n| n.op.spec().aliases.is_some()) => {
                places[id.index()] = Place::Elsewhere;
            }
            Source::Node(..) | Source::Input(_) => {}
        }
    }
    let (intervals, interval_of) = lifetimes(graph, cuts, backend, scratch);
    let offsets = place(&intervals, input_bytes, alignment);
    let mut arena_bytes = input_bytes;
    for (place, interval) in places.iter_mut().zip(interval_of) {
        if let Some(i) = interval {
            *place = Place::Arena { offset: offsets[i], bytes: intervals[i].bytes };
        }
    }
    let n_nodes = graph.nodes.len();
    let mut scratch = vec![0..0; n_nodes];
    let mut dead_ends = vec![0; n_nodes];
    for (interval, &offset) in intervals.iter().zip(&offsets) {
        let end = offset + interval.bytes;
        arena_bytes = arena_bytes.max(end.next_multiple_of(alignment));
        if let Some(node) = interval.scratch {
            scratch[node] = offset..end;
        }
        if let Some(n) = dead_ends.get_mut(interval.last) {
            *n += 1;
        }
    }
    let mut dead_starts = Vec::with_capacity(n_nodes);
    let mut n_dead = 0;
    for n in &mut dead_ends {
        dead_starts.push(n_dead);
        n_dead += *n;
        *n = n_dead;
    }
    let mut dead = vec![0..0; n_dead];
    for (interval, &offset) in intervals.iter().zip(&offsets) {
        if let Some(next) = dead_starts.get_mut(interval.last) {
            dead[*next] = offset..offset + interval.bytes;
            *next += 1;
        }
    }
    MemoryPlan { arena_bytes, input_bytes, places, scratch, dead, dead_ends }
}

fn ids(graph: &Graph) -> impl Iterator<Item = (TensorId, &TensorDesc)> {
    (0..).map(TensorId).zip(&graph.tensors)
}

/// The last node of the group that reads each tensor last, or the first node of the cut before which it leaves.
fn last_reads(graph: &Graph, cuts: &[Cut], backend: usize) -> Vec<usize> {
    let mut last_read = vec![0; graph.tensors.len()];
    for cut in cuts {
        if cut.backend == backend {
            for group in &cut.groups {
                let args = graph.nodes[group.clone()].iter().flat_map(|node| &node.args);
                args.for_each(|&arg| last_read[graph.root(arg).index()] = group.end - 1);
            }
        } else {
            let leaving = cut.copies.iter().filter(|(_, from)| *from == backend);
            leaving.for_each(|(t, _)| last_read[t.index()] = cut.nodes.start);
        }
    }
    last_read
}

/// One interval per group of tensors that share bytes and per scratch region, in execution order, and the interval of every
/// tensor.
fn lifetimes(
    graph: &Graph,
    cuts: &[Cut],
    backend: usize,
    scratch: &dyn Fn(NodeId) -> usize,
) -> (Vec<Interval>, Vec<Option<usize>>) {
    let mut last_read = last_reads(graph, cuts, backend);
    let mut is_output = vec![false; graph.tensors.len()];
    for &out in &graph.outputs {
        let root = graph.root(out).index();
        is_output[root] = true;
        last_read[root] = graph.nodes.len();
    }
    let mut intervals: Vec<Interval> = Vec::new();
    let mut interval_of = vec![None; graph.tensors.len()];
    let mut is_foreign = vec![false; graph.tensors.len()];
    for (arrives, group, id, node) in walk(graph, cuts, backend) {
        let (at, is_alone) = (id.index(), group.len() == 1);
        let end = group.end - 1;
        for &(t, _) in arrives {
            is_foreign[t.index()] = true;
            interval_of[t.index()] = Some(intervals.len());
            let last = last_read[t.index()].max(end);
            intervals.push(Interval { first: at, last, bytes: graph.tensor(t).bytes(), scratch: None });
        }
        let spec = node.op.spec();
        for (k, &out) in node.outs.iter().enumerate() {
            if k == 0 && spec.aliases.is_some() {
                continue;
            }
            let last = last_read[out.index()].max(end);
            let bytes = graph.tensor(out).bytes();
            let taken = spec.inplace.filter(|_| k == 0 && is_alone).map(|i| node.args[i]).filter(|&arg| {
                let (root, desc) = (graph.root(arg), graph.tensor(arg));
                let dies = last_read[root.index()] == at && !is_output[root.index()] && !is_foreign[root.index()];
                dies && desc.bytes() == bytes
                    && graph.tensor(root).bytes() == bytes
                    && desc.is_contiguous()
                    && node.args.iter().filter(|&&a| graph.root(a) == root).count() == 1
            });
            let shared: Option<usize> = taken.and_then(|arg| interval_of[graph.root(arg).index()]);
            let interval = shared.unwrap_or_else(|| {
                intervals.push(Interval { first: at, last, bytes, scratch: None });
                intervals.len() - 1
            });
            intervals[interval].last = intervals[interval].last.max(last);
            interval_of[out.index()] = Some(interval);
        }
        let bytes = scratch(id);
        if bytes > 0 {
            intervals.push(Interval { first: at, last: end, bytes, scratch: Some(at) });
        }
    }
    (intervals, interval_of)
}

/// The nodes of a backend, each with what arrives before it and with its group.
fn walk<'a>(
    graph: &'a Graph,
    cuts: &'a [Cut],
    backend: usize,
) -> impl Iterator<Item = (&'a [(TensorId, usize)], Range<usize>, NodeId, &'a Node)> {
    cuts.iter().filter(move |cut| cut.backend == backend).flat_map(|cut| {
        let arrives = std::iter::once(&cut.copies[..]).chain(std::iter::repeat(&[][..]));
        let nodes = graph.walk().skip(cut.nodes.start).take(cut.nodes.len());
        arrives.zip(nodes).map(|(arrives, (id, node))| (arrives, cut.group(id.index()), id, node))
    })
}

/// The offset of every interval, above `floor`.
fn place(intervals: &[Interval], floor: usize, alignment: usize) -> Vec<usize> {
    // Largest first, and where sizes are equal, as they mostly are, in execution order.
    let mut order: Vec<(usize, &Interval)> = intervals.iter().enumerate().collect();
    order.sort_by_key(|(_, interval)| Reverse(interval.bytes));
    let n_nodes = intervals.iter().map(|i| i.last + 1).max().unwrap_or(0);
    let mut alive = ByNode::new(n_nodes, 2 * intervals.len());
    let mut beginning = ByNode::new(n_nodes, intervals.len());
    let mut offsets = vec![0; intervals.len()];
    let mut taken = Vec::new();
    for (i, &Interval { first, last, bytes, .. }) in order {
        taken.clear();
        taken.extend(alive.at(first));
        (first + 1..=last).for_each(|node| taken.extend(beginning.at(node)));
        taken.sort_unstable();
        let mut start = floor;
        for &(other, end) in &taken {
            if start + bytes <= other {
                break;
            }
            start = start.max(end.next_multiple_of(alignment));
        }
        offsets[i] = start;
        let bytes = (start, start + bytes);
        (first..=last).for_each(|node| alive.add(node, bytes));
        beginning.add(first, bytes);
    }
    offsets
}

/// Bytes that are taken, first and end, by node. Intervals are short, so that few of all have to be looked at to place
/// one. The lists of all nodes are linked inside one vector.
struct ByNode {
    /// One more than the newest entry of every node; 0 where there is none.
    heads: Vec<u32>,
    /// The bytes, and the head before.
    entries: Vec<((usize, usize), u32)>,
}

impl ByNode {
    fn new(n_nodes: usize, capacity: usize) -> Self {
        Self { heads: vec![0; n_nodes], entries: Vec::with_capacity(capacity) }
    }

    fn at(&self, node: usize) -> impl Iterator<Item = (usize, usize)> {
        let mut head = self.heads[node];
        std::iter::from_fn(move || {
            let (bytes, before) = self.entries[head.checked_sub(1)? as usize];
            head = before;
            Some(bytes)
        })
    }

    fn add(&mut self, node: usize, bytes: (usize, usize)) {
        self.entries.push((bytes, self.heads[node]));
        self.heads[node] = u32::try_from(self.entries.len()).expect("graphs have far fewer intervals");
    }
}

/// A plan that would let two live tensors share bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlanError(pub String);

impl std::fmt::Display for PlanError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PlanError {}

/// Checks the plan of a backend by replaying the graph: every byte remembers who wrote it last, and every read must find its
/// own, also that of a copy to another backend.
pub fn verify(graph: &Graph, cuts: &[Cut], backend: usize, plan: &MemoryPlan) -> Result<(), PlanError> {
    let n_nodes = graph.nodes.len();
    if plan.places.len() != graph.tensors.len() || plan.scratch.len() != n_nodes || plan.dead_ends.len() != n_nodes {
        return Err(PlanError("it is of another graph".into()));
    }
    let mut writers = Writers::new(graph.tensors.len());
    for (_, id) in graph.inputs() {
        writers.write(graph, plan, id, "input")?;
    }
    let mut cut = 0;
    let mut is_own = vec![false; graph.tensors.len()];
    for (id, node) in graph.walk() {
        if cuts.get(cut).is_some_and(|cut| cut.nodes.end == id.index()) {
            cut += 1;
        }
        let Some(cut) = cuts.get(cut) else { return Err(PlanError(format!("node {} is in no cut", id.0))) };
        if cut.nodes.start == id.index() {
            for &(t, from) in &cut.copies {
                if cut.backend == backend {
                    writers.write(graph, plan, t, "a copy")?;
                } else if from == backend {
                    writers.check(graph, plan, t, Some((id, "copy")))?;
                }
            }
        }
        if cut.backend != backend {
            continue;
        }
        let spec = node.op.spec();
        let group = cut.group(id.index());
        if group.start == id.index() {
            verify_group(graph, plan, group)?;
        }
        for &arg in &node.args {
            writers.check(graph, plan, arg, Some((id, spec.name)))?;
        }
        node.outs.iter().for_each(|out| is_own[out.index()] = true);
        let scratch = plan.scratch(id);
        if scratch.end > plan.arena_bytes {
            return Err(PlanError(format!("scratch of node {} ends at {} of {}", id.0, scratch.end, plan.arena_bytes)));
        }
        for &arg in &node.args {
            let root = graph.root(arg);
            let Some(operand) = plan.range(root) else { continue };
            // One that is read element by element in the order it is written, and by nothing else of the node.
            let is_taken_over = |k: usize, result: &Range<usize>| {
                k == 0
                    && *result == operand
                    && spec.inplace.is_some_and(|i| graph.root(node.args[i]) == root)
                    && is_own[root.index()]
                    && graph.tensor(arg).is_contiguous()
                    && node.args.iter().filter(|&&a| graph.root(a) == root).count() == 1
            };
            let is_written = node.outs.iter().enumerate().any(|(k, &out)| {
                let result = plan.range(out).filter(|result| overlap(result, &operand));
                result.is_some_and(|result| !is_taken_over(k, &result))
            });
            if is_written || overlap(&scratch, &operand) {
                return Err(PlanError(format!("node {} writes over its operand {}", id.0, root.0)));
            }
        }
        for (k, result) in node.outs.iter().enumerate().filter_map(|(k, &out)| Some((k, plan.range(out)?))) {
            let mut before = node.outs[..k].iter().filter_map(|&out| plan.range(out));
            if overlap(&scratch, &result) || before.any(|other| overlap(&other, &result)) {
                return Err(PlanError(format!("results of node {} overlap", id.0)));
            }
        }
        if !scratch.is_empty() {
            writers.clear(&scratch);
        }
        for &out in &node.outs {
            writers.write(graph, plan, out, spec.name)?;
        }
    }
    for &out in &graph.outputs {
        let root = graph.root(out);
        if is_own[root.index()] || graph.producer(root).is_none() {
            writers.check(graph, plan, out, None)?;
        }
    }
    Ok(())
}

/// Checks that no node of a group writes where another one of it reads or writes: they may run at the same time.
fn verify_group(graph: &Graph, plan: &MemoryPlan, group: Range<usize>) -> Result<(), PlanError> {
    if group.len() == 1 {
        return Ok(());
    }
    let nodes = || graph.walk().skip(group.start).take(group.len());
    let reads = |node: &Node| -> Vec<TensorId> { node.args.iter().map(|&arg| graph.root(arg)).collect() };
    for (writer, node) in nodes() {
        let results = node.outs.iter().filter_map(|&out| Some((Some(out), plan.range(out)?)));
        for (own, written) in results.chain([(None, plan.scratch(writer))]) {
            let is_met = |&t: &TensorId| own != Some(t) && plan.range(t).is_some_and(|other| overlap(&written, &other));
            for (other, met) in nodes() {
                let is_lost = reads(met).iter().chain(&met.outs).any(is_met);
                if is_lost || (other != writer && overlap(&written, &plan.scratch(other))) {
                    let message = format!("node {} writes over what node {} of its group has", writer.0, other.0);
                    return Err(PlanError(message));
                }
            }
        }
    }
    Ok(())
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Which tensors lie untouched where they were written, and where, in the order of their bytes. What is partly written over
/// is lost as a whole: nobody reads the rest.
struct Writers {
    whole: Vec<(Range<usize>, TensorId)>,
    is_whole: Vec<bool>,
}

impl Writers {
    fn new(n_tensors: usize) -> Self {
        Self { whole: Vec::new(), is_whole: vec![false; n_tensors] }
    }

    /// Forgets what lies in a range, and gives the place in the order that it would have.
    fn clear(&mut self, range: &Range<usize>) -> usize {
        let first = self.whole.partition_point(|(other, _)| other.end <= range.start);
        let lost = self.whole[first..].iter().take_while(|(other, _)| other.start < range.end).count();
        for (_, owner) in self.whole.drain(first..first + lost) {
            self.is_whole[owner.index()] = false;
        }
        first
    }

    fn write(&mut self, graph: &Graph, plan: &MemoryPlan, id: TensorId, by: &str) -> Result<(), PlanError> {
        let Place::Arena { offset, bytes } = plan.place(id) else { return Ok(()) };
        let wanted = graph.tensor(id).bytes();
        if bytes < wanted {
            return Err(PlanError(format!("result of {by} has {bytes} bytes, {wanted} are needed")));
        }
        if offset + bytes > plan.arena_bytes {
            return Err(PlanError(format!("result of {by} ends at {} of {}", offset + bytes, plan.arena_bytes)));
        }
        let range = offset..offset + bytes;
        let at = self.clear(&range);
        self.is_whole[id.index()] = true;
        self.whole.insert(at, (range, id));
        Ok(())
    }

    /// A read by a node, with its op's name, or by the caller.
    fn check(
        &self,
        graph: &Graph,
        plan: &MemoryPlan,
        id: TensorId,
        by: Option<(NodeId, &str)>,
    ) -> Result<(), PlanError> {
        let root = graph.root(id);
        let wrong = |why: &str| {
            let reader = by.map_or("the caller".into(), |(id, name)| format!("node {} ({name})", id.0));
            Err(PlanError(format!("{reader} reads tensor {} {why}", root.0)))
        };
        match plan.place(root) {
            Place::Elsewhere => Ok(()),
            Place::Unused => wrong("that has no place"),
            Place::Arena { .. } if self.is_whole[root.index()] => Ok(()),
            Place::Arena { .. } => wrong("after it was overwritten"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::GraphBuilder;
    use crate::op::Unary;
    use crate::pass::assign::cuts;
    use crate::state::NO_STATES;
    use crate::tensor::Input;

    const ALIGNMENT: usize = 32;

    /// One cut with all nodes.
    fn alone(graph: &Graph) -> Vec<Cut> {
        cuts(graph, &vec![0; graph.nodes.len()])
    }

    fn planned_alone(graph: &Graph) -> MemoryPlan {
        plan(graph, &alone(graph), 0, ALIGNMENT, &|_| 0)
    }

    /// `silu(a) * b + b` with `a`, `b` functions of the input, and its plan.
    fn planned() -> (Graph, MemoryPlan) {
        let g = GraphBuilder::new(&NO_STATES);
        let x = g.input(Input::Features, [4, 8]);
        let a = g.unary(Unary::Relu, x);
        let b = g.unary(Unary::Sigmoid, x);
        let product = g.mul(g.unary(Unary::Silu, a), b);
        g.output(g.add(product, b));
        let graph = g.finish().unwrap();
        let plan = planned_alone(&graph);
        (graph, plan)
    }

    fn result(graph: &Graph, node: usize) -> usize {
        graph.nodes[node].outs[0].index()
    }

    fn refused(graph: &Graph, plan: &MemoryPlan) -> String {
        verify(graph, &alone(graph), 0, plan).unwrap_err().0
    }

    #[test]
    fn a_dying_operand_is_taken_over() {
        let (graph, plan) = planned();
        verify(&graph, &alone(&graph), 0, &plan).unwrap();
        let place = |node| plan.places[result(&graph, node)];
        assert_eq!(place(0), place(2), "silu in place of relu");
        assert_eq!(place(2), place(3), "product in place of silu");
        assert_ne!(place(1), place(3), "b is read later");
    }

    #[test]
    fn verify_finds_results_on_live_tensors() {
        let (graph, mut plan) = planned();
        plan.places[result(&graph, 2)] = plan.places[result(&graph, 1)];
        assert_eq!(refused(&graph, &plan), "node 3 (mul) reads tensor 2 after it was overwritten");
    }

    #[test]
    fn verify_finds_partial_overlap() {
        let (graph, mut plan) = planned();
        let Place::Arena { offset, bytes } = plan.places[result(&graph, 1)] else { panic!("b is in the arena") };
        plan.places[result(&graph, 2)] = Place::Arena { offset: offset + bytes - 4, bytes };
        plan.arena_bytes = offset + 2 * bytes;
        assert_eq!(refused(&graph, &plan), "node 3 (mul) reads tensor 2 after it was overwritten");
    }

    #[test]
    fn verify_finds_results_on_operands_that_are_not_taken_over() {
        let (graph, mut plan) = planned();
        // The second operand of the product.
        plan.places[result(&graph, 3)] = plan.places[result(&graph, 1)];
        assert_eq!(refused(&graph, &plan), "node 3 writes over its operand 2");
    }

    #[test]
    fn verify_finds_scratch_on_operands() {
        let (graph, mut plan) = planned();
        let Place::Arena { offset, .. } = plan.places[result(&graph, 0)] else { panic!("a is in the arena") };
        plan.scratch[2] = offset..offset + 1;
        assert_eq!(refused(&graph, &plan), "node 2 writes over its operand 1");
    }

    #[test]
    fn verify_finds_scratch_on_tensors_that_live_across() {
        let (graph, mut plan) = planned();
        let Place::Arena { offset, .. } = plan.places[result(&graph, 1)] else { panic!("b is in the arena") };
        plan.scratch[2] = offset..offset + 1;
        assert_eq!(refused(&graph, &plan), "node 3 (mul) reads tensor 2 after it was overwritten");
    }

    #[test]
    fn verify_finds_scratch_on_results() {
        let (graph, mut plan) = planned();
        let Place::Arena { offset, .. } = plan.places[result(&graph, 4)] else { panic!("the sum is in the arena") };
        plan.scratch[4] = offset + 4..offset + 8;
        assert!(verify(&graph, &alone(&graph), 0, &plan).is_err());
    }

    #[test]
    fn verify_finds_results_outside_of_the_arena() {
        let (graph, mut plan) = planned();
        plan.arena_bytes -= 1;
        let message = refused(&graph, &plan);
        assert!(message.starts_with("result of unary ends at"), "{message}");
    }

    #[test]
    fn verify_finds_tensors_without_a_place() {
        let (graph, mut plan) = planned();
        plan.places[result(&graph, 0)] = Place::Unused;
        assert_eq!(refused(&graph, &plan), "node 2 (unary) reads tensor 1 that has no place");
    }

    #[test]
    fn an_operand_that_is_read_twice_is_not_taken_over() {
        let g = GraphBuilder::new(&NO_STATES);
        let x = g.unary(Unary::Relu, g.input(Input::Features, [4, 8]));
        // The first row is added to all rows: in place, the second row would see the changed first one.
        let row = g.reshape(g.slice(x, 0, 0, 1), [8]);
        g.output(g.add(x, row));
        let graph = g.finish().unwrap();
        let mut plan = planned_alone(&graph);
        verify(&graph, &alone(&graph), 0, &plan).unwrap();
        assert!(!plan.share(graph.nodes[0].outs[0], graph.nodes[1].outs[0]));
        plan.places[result(&graph, 1)] = plan.places[result(&graph, 0)];
        assert_eq!(refused(&graph, &plan), "node 1 writes over its operand 1");
    }

    #[test]
    fn a_transposed_operand_is_not_taken_over() {
        let g = GraphBuilder::new(&NO_STATES);
        let x = g.unary(Unary::Relu, g.input(Input::Features, [8, 8, 1]));
        g.output(g.unary(Unary::Silu, g.permute(x, [1, 0, 2])));
        let graph = g.finish().unwrap();
        let mut plan = planned_alone(&graph);
        verify(&graph, &alone(&graph), 0, &plan).unwrap();
        assert!(!plan.share(graph.nodes[0].outs[0], graph.nodes[1].outs[0]));
        plan.places[result(&graph, 1)] = plan.places[result(&graph, 0)];
        assert!(refused(&graph, &plan).contains("writes over its operand"));
    }

    #[test]
    fn a_group_keeps_what_it_reads_and_makes() {
        let (graph, one_by_one) = planned();
        let mut grouped = alone(&graph);
        // relu | sigmoid, silu, product | sum.
        grouped[0].groups = vec![0..1, 1..4, 4..5];
        let scratch = |id: NodeId| if id.index() == 2 { 64 } else { 0 };
        let whole = plan(&graph, &grouped, 0, ALIGNMENT, &scratch);
        verify(&graph, &grouped, 0, &whole).unwrap();
        verify(&graph, &alone(&graph), 0, &whole).unwrap();
        let message = verify(&graph, &grouped, 0, &one_by_one).unwrap_err().0;
        assert_eq!(message, "node 2 writes over what node 2 of its group has", "silu takes over relu");
        let place = |node| whole.places[result(&graph, node)];
        assert!(place(0) != place(2) && place(2) != place(3), "nothing is taken over inside");
        // What only the group reads is dead when all of it has run, and so is its scratch.
        let dead = |node| whole.dead_after(NodeId(node)).len();
        assert_eq!([0, 1, 2, 3, 4].map(dead), [0, 0, 0, 3, 1]);
        // The sum is alone and takes over the product, which the group made.
        assert_eq!(place(3), place(4));
    }

    #[test]
    fn verify_finds_scratch_that_others_of_a_group_have() {
        let (graph, _) = planned();
        let mut grouped = alone(&graph);
        grouped[0].groups = vec![0..2, 2..5];
        let mut plan = plan(&graph, &grouped, 0, ALIGNMENT, &|_| 32);
        verify(&graph, &grouped, 0, &plan).unwrap();
        plan.scratch[2] = plan.scratch[3].clone();
        assert_eq!(
            verify(&graph, &grouped, 0, &plan).unwrap_err().0,
            "node 2 writes over what node 3 of its group has"
        );
        // One after the other they may.
        verify(&graph, &alone(&graph), 0, &plan).unwrap();
    }

    /// A chain whose nodes change the backend: `relu` on 0, `silu` and a sum with it on 1, `sigmoid` on 0, which reads the
    /// `relu` too.
    fn planned_apart() -> (Graph, Vec<Cut>, [MemoryPlan; 2]) {
        let g = GraphBuilder::new(&NO_STATES);
        let x = g.input(Input::Features, [4, 8]);
        let a = g.unary(Unary::Relu, x);
        let b = g.unary(Unary::Silu, a);
        let c = g.add(b, a);
        let d = g.unary(Unary::Sigmoid, c);
        g.output(g.mul(d, a));
        let graph = g.finish().unwrap();
        let cuts = cuts(&graph, &[0, 1, 1, 0, 0]);
        let plans = [0, 1].map(|backend| plan(&graph, &cuts, backend, ALIGNMENT, &|_| 0));
        (graph, cuts, plans)
    }

    #[test]
    fn every_backend_has_a_plan_of_its_own_nodes() {
        let (graph, cuts, plans) = planned_apart();
        assert_eq!(cuts.len(), 3);
        let [a, b, c, d, product] = [0, 1, 2, 3, 4].map(|node| graph.nodes[node].outs[0]);
        assert_eq!(cuts[1].copies, [(a, 0)]);
        assert_eq!(cuts[2].copies, [(c, 1)]);
        for (backend, plan) in plans.iter().enumerate() {
            verify(&graph, &cuts, backend, plan).unwrap();
        }
        let is_placed = |plan: &MemoryPlan| [a, b, c, d, product].map(|t| plan.place(t) != Place::Unused);
        assert_eq!(is_placed(&plans[0]), [true, false, true, true, true]);
        assert_eq!(is_placed(&plans[1]), [true, true, true, false, false]);
        // What came from elsewhere is not taken over, what was made here is.
        assert!(!plans[0].share(c, d) && plans[0].share(d, product) && plans[1].share(b, c));
        // Each of two tensors, and three, instead of the five of the whole.
        assert_eq!(plans.map(|p| (p.arena_bytes - p.input_bytes) / graph.tensor(a).bytes()), [3, 2]);
    }

    #[test]
    fn verify_finds_a_tensor_that_is_overwritten_before_it_leaves_or_after_it_arrived() {
        let (graph, cuts, [mut first, mut second]) = planned_apart();
        let [a, b, c, d] = [0, 1, 2, 3].map(|node| graph.nodes[node].outs[0]);
        second.places[b.index()] = second.places[a.index()];
        let message = verify(&graph, &cuts, 1, &second).unwrap_err().0;
        assert!(message.starts_with("node 1 writes over its operand"), "{message}");
        first.places[d.index()] = first.places[c.index()];
        let message = verify(&graph, &cuts, 0, &first).unwrap_err().0;
        assert!(message.starts_with("node 3 writes over its operand"), "{message}");
        first.places[c.index()] = first.places[a.index()];
        let message = verify(&graph, &cuts, 0, &first).unwrap_err().0;
        assert!(message.contains("reads tensor"), "{message}");
        let (.., [_, mut second]) = planned_apart();
        second.places[c.index()] = Place::Unused;
        let message = verify(&graph, &cuts, 1, &second).unwrap_err().0;
        assert_eq!(message, format!("node 3 (copy) reads tensor {} that has no place", c.index()));
    }
}
