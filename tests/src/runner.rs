//! Runs op cases: every one on every backend and instruction set, fused and unfused, with operands that can and that
//! cannot be overwritten, with poison, and with guard bytes wherever nothing lies.

use std::collections::{BTreeSet, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

use backends::cpu::{CpuBackend, CpuOptions};
use backends::reference::ReferenceBackend;
use engine::Result;
use engine::backend::{Backend, Bindings, Buffer, Prepared, Segment, WeightData};
use engine::builder::{BatchInputs, GraphBuilder};
use engine::graph::Graph;
use engine::op::Precision;
use engine::pass::assign::Homes;
use engine::pass::fuse::fuse;
use engine::pass::{CompileOptions, FuseCounts};
use engine::plan::{MemoryPlan, Place};
use engine::planned::Planned;
use engine::tensor::{Input, Source, TensorId};
use engine::weights::{Weight, WeightStore};
use kernels::cpu::Kernels;

use crate::case::{Args, Arithmetic, BatchArg, OpCase, Sequence};
use crate::compare::state_value;
use crate::files::{self, WeightBytes};

/// Bytes of an input word.
const WORD: usize = 4;
/// What guard bytes hold: no number that arithmetic makes by chance.
const GUARD: u8 = 0xa5;
/// Guard bytes behind every buffer.
const GUARD_BYTES: usize = 256;
/// Alignment of tensors: larger than any backend's, so that there are bytes between them that belong to nobody.
const ALIGNMENT: usize = 256;
/// Failures that are printed.
const MAX_REPORTED: usize = 20;

/// A backend as the table runs it.
pub struct Tested {
    /// Backend, instruction set and number of threads.
    pub name: String,
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// How it computes.
    pub arithmetic: Arithmetic,
}

/// The f64 interpreter.
pub fn reference() -> Tested {
    let backend = ReferenceBackend::new(None).expect("the system gives threads");
    Tested { name: "reference".into(), backend: Arc::new(backend), arithmetic: Arithmetic::Double }
}

/// The CPU backend with every instruction set of this machine.
pub fn cpus(threads: usize) -> Vec<Tested> {
    let one = |kernels: Kernels| {
        let options = CpuOptions { threads: NonZeroUsize::new(threads), isa: Some(kernels.isa()) };
        let backend = CpuBackend::new(&options).expect("the system gives threads");
        assert_eq!(backend.isa(), kernels.isa());
        let name = format!("cpu {} with {threads} threads", kernels.isa());
        Tested { name, backend: Arc::new(backend), arithmetic: Arithmetic::Cpu(kernels) }
    };
    Kernels::available().map(one).collect()
}

/// How a case is compiled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Variation {
    /// Whether fusion rules apply.
    pub fuse: bool,
    /// Whether activations are results of nodes, which may be overwritten in place, or inputs, which may not.
    pub copied: bool,
    /// Whether dead bytes are filled with NaN.
    pub poison: bool,
}

/// What a case left behind.
#[derive(Clone, PartialEq)]
pub struct Outcome {
    /// Outputs of the builder closure.
    pub outputs: Vec<Vec<f32>>,
    /// States of all slots.
    pub states: Vec<Vec<u8>>,
    /// Fusion rules that applied.
    pub fused: FuseCounts,
}

/// Runs all cases and panics with the list of those that fail.
pub fn run_table(cases: Vec<OpCase>) {
    if cfg!(miri) {
        return run_smallest(cases);
    }
    let cases = &cases[..];
    static BACKENDS: OnceLock<(Tested, Vec<(Tested, Tested)>)> = OnceLock::new();
    let (reference, cpus) =
        BACKENDS.get_or_init(|| (reference(), cpus(1).into_iter().zip(cpus(3)).collect::<Vec<_>>()));
    let names: HashSet<&str> = cases.iter().map(|c| &*c.name).collect();
    assert_eq!(names.len(), cases.len(), "names of cases differ");
    assert!(!cases.is_empty());
    let table = Table::new(cases);
    let mut failures = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        if let Err(e) = table.check(i, reference, cpus) {
            failures.push(format!("{}: {e}", case.name));
        }
    }
    let shown = failures[..failures.len().min(MAX_REPORTED)].join("\n");
    assert!(failures.is_empty(), "{} of {} cases fail:\n{shown}", failures.len(), cases.len());
}

/// Cases of a family that run under Miri, unless this variable says how many.
const CASES_UNDER_MIRI: usize = 6;
const MIRI_CASES_VARIABLE: &str = "TYMPAN_MIRI_CASES";

/// Runs the smallest cases on the CPU backend, on one thread and on several: what Miri, thousands of times slower than the
/// CPU, can look at. It has no vector instructions, and numbers are compared where it does not run.
fn run_smallest(mut cases: Vec<OpCase>) {
    cases.sort_by_key(OpCase::n_elements);
    let n = std::env::var(MIRI_CASES_VARIABLE).map(|n| n.parse().expect("a number of cases"));
    cases.truncate(n.unwrap_or(CASES_UNDER_MIRI));
    let table = Table::new(&cases);
    for tested in [cpus(1), cpus(3)].iter().flatten() {
        for (i, case) in cases.iter().enumerate() {
            let variation = Variation { fuse: true, copied: true, poison: false };
            table.run(i, tested, variation).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        }
    }
}

/// Cases with their weights in one file.
pub struct Table<'a> {
    cases: &'a [OpCase],
    store: WeightStore,
}

impl<'a> Table<'a> {
    /// Writes and maps the weights.
    pub fn new(cases: &'a [OpCase]) -> Self {
        let mut weights = Vec::new();
        for (i, case) in cases.iter().enumerate() {
            for (k, (arg, bytes)) in case.weights.iter().zip(case.weight_bytes()).enumerate() {
                weights.push(WeightBytes { name: weight_name(i, k), dtype: arg.dtype, shape: arg.shape, bytes });
            }
        }
        Self { cases, store: files::store(&weights) }
    }

    fn check(&self, i: usize, reference: &Tested, cpus: &[(Tested, Tested)]) -> Result<(), String> {
        let case = &self.cases[i];
        let plain = Variation { fuse: false, copied: false, poison: false };
        let want = self.run(i, reference, plain)?;
        check_padding(case, &want)?;
        for fuse in [false, true] {
            for copied in [false, true] {
                let variation = Variation { fuse, copied, poison: false };
                if variation != plain {
                    compare(case, reference, variation, &self.run(i, reference, variation)?, &want)?;
                }
                for (single, several) in cpus {
                    let got = self.run_twice(i, single, variation, &want)?;
                    compare(case, single, variation, &got, &want)?;
                    let poisoned = Variation { poison: true, ..variation };
                    same_bits(&self.run(i, single, poisoned)?, &got, &want)
                        .map_err(|e| format!("{}, {variation:?}: poison gives {e}", single.name))?;
                    if fuse && copied {
                        same_bits(&self.run(i, several, variation)?, &got, &want)
                            .map_err(|e| format!("{}, {variation:?}: {e} than one thread", several.name))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Names of the ops that the graphs of all cases have, fused or not.
    ///
    /// Errors: a case whose graph is wrong.
    pub fn ops(&self) -> Result<BTreeSet<&'static str>> {
        let mut names = BTreeSet::new();
        for (i, case) in self.cases.iter().enumerate() {
            let mut graph = build(case, self.weights(i), true)?;
            for fused in [false, true] {
                if fused {
                    let mut owners = vec![0; graph.nodes.len()];
                    fuse(&mut graph, &mut owners, &|_, _, _| Some(Prepared::new(0, ())));
                }
                names.extend(graph.nodes.iter().map(|node| node.op.spec().name));
            }
        }
        Ok(names)
    }

    fn weights(&self, i: usize) -> Vec<Weight> {
        let weights = self.cases[i].weights.iter().enumerate();
        weights.map(|(k, arg)| files::weight(&self.store, &weight_name(i, k), arg.shape)).collect()
    }

    /// Compiles a case, runs it, and checks everything that it must not touch.
    pub fn run(&self, i: usize, tested: &Tested, variation: Variation) -> Result<Outcome, String> {
        let compiled = Compiled::new(self, i, tested, variation).map_err(|e| e.to_string());
        compiled.and_then(|mut c| c.run()).map_err(|e| format!("{}, {variation:?}: {e}", tested.name))
    }

    /// The same with a second run on what the first one left behind, which must give the same bits.
    fn run_twice(&self, i: usize, tested: &Tested, variation: Variation, want: &Outcome) -> Result<Outcome, String> {
        let run = || {
            let mut compiled = Compiled::new(self, i, tested, variation).map_err(|e| e.to_string())?;
            let first = compiled.run()?;
            same_bits(&compiled.run()?, &first, want).map_err(|e| format!("the second run has {e}"))?;
            Ok(first)
        };
        run().map_err(|e: String| format!("{}, {variation:?}: {e}", tested.name))
    }
}

fn weight_name(case: usize, weight: usize) -> String {
    format!("case.{case}.{weight}")
}

/// A case bound to buffers.
pub struct Compiled<'a> {
    case: &'a OpCase,
    backend: &'a dyn Backend,
    planned: Planned,
    words: Vec<u32>,
    arena: Buffer,
    states: Vec<Buffer>,
    executable: Box<dyn engine::backend::Executable>,
    /// Whether bytes that belong to nobody must keep what they hold.
    guarded: bool,
}

impl<'a> Compiled<'a> {
    /// Compiles a case.
    pub fn new(table: &'a Table<'_>, i: usize, tested: &'a Tested, variation: Variation) -> Result<Self> {
        let (case, backend) = (&table.cases[i], &tested.backend);
        assert!(backend.caps().alignment <= ALIGNMENT);
        let Variation { fuse, poison, .. } = variation;
        let options = CompileOptions { fuse, poison, alignment: ALIGNMENT, ..CompileOptions::default() };
        let graph = build(case, table.weights(i), variation.copied)?;
        let (planned, prepared) = Planned::new(graph, &[Arc::clone(backend)], Homes::default(), &options)?;
        planned.verify().expect("plans are sound");
        let graph = planned.graph();
        let ([cut], Some(plan)) = (planned.cuts(), planned.plan(0)) else { panic!("one backend makes one cut") };
        let arena = backend.alloc(plan.arena_bytes + GUARD_BYTES)?;
        let state_buffer = |bytes: &Vec<u8>| {
            let buffer = backend.reserve(bytes.len() + GUARD_BYTES)?;
            backend.commit(&buffer, 0..buffer.bytes()).map(|()| buffer)
        };
        let states = case.state_bytes().iter().map(state_buffer).collect::<Result<Vec<_>>>()?;
        let mut imported = vec![None; table.store.len()];
        for node in &graph.nodes {
            for &arg in &node.args {
                if let Source::Weight(id) = graph.tensor(graph.root(arg)).source {
                    imported[id.0 as usize] = Some(backend.import_weight(&WeightData { store: &table.store, id })?);
                }
            }
        }
        let segment = Segment { planned: &planned, cut, prepared, poison: variation.poison };
        let bind = Bindings { arena: &arena, weights: &imported, states: &states };
        let executable = backend.compile(segment, &bind)?;
        let words = input_words(case, graph, plan);
        let guarded = !variation.poison;
        Ok(Self { case, backend: &**backend, words, arena, states, executable, guarded, planned })
    }

    /// The graph as the passes left it.
    pub fn graph(&self) -> &Graph {
        self.planned.graph()
    }

    fn plan(&self) -> &MemoryPlan {
        self.planned.plan(0).expect("one backend makes one cut")
    }

    /// Runs it once from the case's initial states.
    pub fn run(&mut self) -> Result<Outcome, String> {
        let text = |e: engine::Error| e.to_string();
        let mut bytes = vec![GUARD; self.plan().arena_bytes + GUARD_BYTES];
        self.backend.write(&self.arena, 0, &bytes).map_err(text)?;
        for (buffer, initial) in self.states.iter().zip(self.case.state_bytes()) {
            let guarded = [initial, vec![GUARD; GUARD_BYTES]].concat();
            self.backend.write(buffer, 0, &guarded).map_err(text)?;
        }
        self.execute()?;
        self.backend.read(&self.arena, 0, &mut bytes).map_err(text)?;
        self.check_guards(&bytes)?;
        let outputs = self.graph().outputs.iter().map(|&id| self.output(id, &bytes)).collect();
        let mut states = Vec::new();
        for buffer in &self.states {
            let mut bytes = vec![0; buffer.bytes()];
            self.backend.read(buffer, 0, &mut bytes).map_err(text)?;
            let tail = bytes.split_off(bytes.len() - GUARD_BYTES);
            if tail.iter().any(|&b| b != GUARD) {
                return Err("writes behind a state".into());
            }
            states.push(bytes);
        }
        Ok(Outcome { outputs, states, fused: self.planned.fused().clone() })
    }

    /// Runs the nodes once, for timing.
    pub fn execute(&mut self) -> Result<(), String> {
        self.executable.run(bytemuck::cast_slice(&self.words)).map_err(|e| e.to_string())
    }

    fn check_guards(&self, arena: &[u8]) -> Result<(), String> {
        let inputs = 0..self.plan().input_bytes;
        let mut owned = vec![inputs];
        if !self.guarded {
            owned.push(0..self.plan().arena_bytes);
        }
        for (id, node) in self.graph().walk() {
            owned.push(self.plan().scratch(id));
            for &out in &node.outs {
                if let Place::Arena { offset, bytes } = self.plan().place(out) {
                    owned.push(offset..offset + bytes);
                }
            }
        }
        owned.push(arena.len()..arena.len());
        owned.sort_by_key(|range| range.start);
        let inputs: &[u8] = bytemuck::cast_slice(&self.words);
        if arena[..inputs.len()] != *inputs {
            return Err("writes to its inputs".into());
        }
        let mut end = 0;
        for range in owned {
            let gap = end.min(range.start)..range.start;
            if let Some(at) = arena[gap.clone()].iter().position(|&b| b != GUARD) {
                return Err(format!("writes byte {} of the arena, which belongs to nobody", gap.start + at));
            }
            end = end.max(range.end);
        }
        Ok(())
    }

    fn output(&self, id: TensorId, arena: &[u8]) -> Vec<f32> {
        let desc = self.graph().tensor(id);
        assert!(desc.is_contiguous(), "cases copy strided results");
        let view = match desc.source {
            Source::View { offset, .. } => offset as usize * WORD,
            Source::Weight(_) | Source::State(_) | Source::Input(_) | Source::Node(..) => 0,
        };
        let start = self.plan().offset(self.graph().root(id)) + view;
        let bytes = &arena[start..start + desc.shape.elements() * WORD];
        bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }
}

/// First element of every activation in the flat input, and its length: they lie one element apart, so that they have no
/// alignment and reading past one shows.
fn layout(case: &OpCase) -> (Vec<usize>, usize) {
    let mut end = 1;
    let place = |shape: engine::Shape| {
        let start = end;
        end += shape.elements() + 1;
        start
    };
    (case.inputs.iter().map(|i| i.shape).map(place).collect(), end)
}

fn build(case: &OpCase, weights: Vec<Weight>, copied: bool) -> Result<Graph> {
    let memory = case.layout();
    let g = GraphBuilder::new(&memory);
    match case.precision {
        Precision::Fast => {}
        Precision::Kept => g.precise_products(),
        Precision::Alone => g.rows_alone(),
    }
    let (starts, total) = layout(case);
    let mut x = Vec::new();
    let flat = (!case.inputs.is_empty()).then(|| g.values("inputs", [total]));
    for ((input, start), flat) in case.inputs.iter().zip(starts).zip(flat.into_iter().cycle()) {
        let view = g.reshape(g.slice(flat, 0, start, input.shape.elements()), input.shape);
        x.push(if copied { g.copy(view) } else { view });
    }
    let args = Args {
        x,
        w: weights,
        s: case.s.clone(),
        kv: case.kv.clone(),
        pending: case.pending.clone(),
        batch: case.batch.as_ref().map(|b| BatchInputs::new(&g, &b.key(case.stage))),
        raw: case.raw.iter().map(|(input, shape, _)| g.input(*input, *shape)).collect(),
    };
    for output in (case.build)(&g, &args) {
        g.output(output);
    }
    g.finish()
}

fn input_words(case: &OpCase, graph: &Graph, plan: &MemoryPlan) -> Vec<u32> {
    let mut words = vec![u32::MAX; plan.input_bytes / WORD];
    for (input, id) in graph.inputs() {
        let start = plan.offset(id) / WORD;
        let words = &mut words[start..][..graph.tensor(id).shape.elements()];
        if let Some((_, _, given)) = case.raw.iter().find(|(i, ..)| *i == input) {
            words.copy_from_slice(given);
            continue;
        }
        let batch = || case.batch.as_ref().expect("the case has a batch");
        match input {
            Input::Values(_) => {
                words.fill(f32::NAN.to_bits());
                for (start, values) in layout(case).0.into_iter().zip(case.input_values()) {
                    words[start..].iter_mut().zip(values).for_each(|(w, v)| *w = v.to_bits());
                }
            }
            Input::Positions => {
                words.fill(0);
                for (rows, seq) in batch().ranges().into_iter().zip(&batch().seqs) {
                    words[rows].iter_mut().zip(seq.n_past..).for_each(|(w, p)| *w = p as u32);
                }
            }
            // Rows of padding keep the -1 that is there.
            Input::Sequences => {
                for (s, rows) in batch().ranges().into_iter().enumerate() {
                    words[rows].fill(s as u32);
                }
            }
            Input::Slots | Input::Writes => words.iter_mut().zip(&batch().seqs).for_each(|(w, s)| *w = s.slot as u32),
            Input::Reads => {
                let read = |s: &Sequence| if s.n_past > 0 { s.read as u32 } else { u32::MAX };
                words.iter_mut().zip(&batch().seqs).for_each(|(w, s)| *w = read(s));
            }
            Input::Kept => words.iter_mut().zip(&batch().seqs).for_each(|(w, s)| *w = s.kept as u32),
            Input::Ranges => {
                let ends = batch().ranges().into_iter().flat_map(|r| [r.start as u32, r.end as u32]);
                words.iter_mut().zip(ends).for_each(|(w, end)| *w = end);
            }
            Input::Joined => {
                let ends = batch().joined().into_iter().flat_map(|r| [r.start as u32, r.end as u32]);
                words.iter_mut().zip(ends).for_each(|(w, end)| *w = end);
            }
            Input::NewRows => {
                // Padding reads padding.
                words.fill((batch().n_tokens + batch().n_pending() - 1) as u32);
                for ((seq, new), joined) in batch().seqs.iter().zip(batch().ranges()).zip(batch().joined()) {
                    words[new].iter_mut().zip(joined.start + seq.n_pending..).for_each(|(w, row)| *w = row as u32);
                }
            }
            Input::Tokens
            | Input::Embeddings
            | Input::OutRows
            | Input::Frames
            | Input::Features
            | Input::Integers(_) => {
                panic!("{}: no words for {input:?}", case.name)
            }
        }
    }
    words
}

/// In the reference's results exactly the padding is NaN, so that comparing skips nothing else.
fn check_padding(case: &OpCase, want: &Outcome) -> Result<(), String> {
    for values in &want.outputs {
        let n_nan = values.iter().filter(|v| v.is_nan()).count();
        let padding = |b: &BatchArg| {
            let n_real: usize = b.seqs.iter().map(|s| s.length).sum();
            values.len() / b.n_tokens * (b.n_tokens - n_real)
        };
        let allowed = case.batch.as_ref().map_or(0, padding);
        if n_nan > allowed || values.iter().any(|v| v.is_infinite()) {
            return Err(format!("reference: {n_nan} of {} results are NaN, {allowed} are padding", values.len()));
        }
    }
    Ok(())
}

/// Fails unless two runs agree bit for bit where `want` has a number: padding is undefined.
fn same_bits(a: &Outcome, b: &Outcome, want: &Outcome) -> Result<(), String> {
    for (i, ((a, b), want)) in a.outputs.iter().zip(&b.outputs).zip(&want.outputs).enumerate() {
        let differs = |((a, b), want): ((&f32, &f32), &f32)| !want.is_nan() && a.to_bits() != b.to_bits();
        if let Some(at) = a.iter().zip(b).zip(want).position(differs) {
            return Err(format!("other bits at {at} of output {i}: {} and {}", a[at], b[at]));
        }
    }
    if a.states == b.states { Ok(()) } else { Err("other bits in a state".into()) }
}

fn compare(case: &OpCase, tested: &Tested, variation: Variation, got: &Outcome, want: &Outcome) -> Result<(), String> {
    let at = format!("{}, {variation:?}", tested.name);
    let rules: Vec<&str> = got.fused.keys().copied().collect();
    let expected: Vec<&str> = case.rule.into_iter().filter(|_| variation.fuse).collect();
    if rules != expected {
        return Err(format!("{at}: want the rules {expected:?}, got {rules:?}"));
    }
    let check = |what: String, is_state: bool, got: &[f32], want: &[f32]| {
        let [error, allowed] = case.tolerance.error(tested.arithmetic, is_state, got, want);
        // A NaN is not below anything.
        if error <= allowed { Ok(()) } else { Err(format!("{at}: {what} is off by {error:e}, allowed {allowed:e}")) }
    };
    for (i, (got, want)) in got.outputs.iter().zip(&want.outputs).enumerate() {
        check(format!("output {i}"), false, got, want)?;
    }
    let initial = case.state_bytes();
    for (i, spec) in case.layout().specs().iter().enumerate() {
        let element = spec.dtype.block().bytes;
        let bytes = [&initial[i], &got.states[i], &want.states[i]];
        if bytes.iter().any(|b| b.len() != initial[i].len()) {
            return Err(format!("{at}: state {i} has another size"));
        }
        let [before, got, want] = bytes.map(|b| b.chunks_exact(element));
        let value = |e: &[u8]| state_value(spec.dtype, e);
        let (mut got_values, mut want_values) = (Vec::new(), Vec::new());
        for ((before, got), want) in before.zip(got).zip(want) {
            if want != before {
                got_values.push(value(got));
                want_values.push(value(want));
            } else if got != before {
                return Err(format!("{at}: state {i} is changed where it must not be"));
            }
        }
        if want_values.iter().any(|v| v.is_nan()) {
            return Err(format!("reference: a NaN in state {i}"));
        }
        check(format!("state {i}"), true, &got_values, &want_values)?;
    }
    Ok(())
}
