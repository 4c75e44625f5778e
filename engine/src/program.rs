//! [`Program`]: a graph that is nobody's model, with inputs and outputs of one's own names. It has no memory between runs
//! and no sequences; a [`crate::session::Session`] has both.
//!
//! ```text
//! let mut program = Program::compile(&backends, &weights, &CompileOptions::default(), |g| {
//!     let x = g.values("x", [n_rows, n_in]);
//!     g.output(g.name(g.linear(x, matrix), "y"));
//! })?;
//! program.set("x", &values)?;
//! program.run()?;
//! let y = program.values("y")?;
//! ```

use std::ops::Range;
use std::sync::Arc;

use crate::backend::Backend;
use crate::builder::GraphBuilder;
use crate::devices::{Compiled, Devices, WORD};
use crate::dtype::DType;
use crate::error::{Error, Result, refuse};
use crate::graph::Graph;
use crate::op::Op;
use crate::pass::CompileOptions;
use crate::pass::assign::Homes;
use crate::planned::Planned;
use crate::shape::Shape;
use crate::state::{MAX_CONTEXT, NO_STATES};
use crate::tensor::{Input, Source, TensorId};
use crate::weights::WeightStore;

/// Values of an input.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// For inputs of [`GraphBuilder::values`].
    F32(&'a [f32]),
    /// For inputs of [`GraphBuilder::integers`].
    I32(&'a [i32]),
}

impl<'a> From<&'a [f32]> for Values<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a [i32]> for Values<'a> {
    fn from(values: &'a [i32]) -> Self {
        Self::I32(values)
    }
}

impl<'a> From<&'a Vec<f32>> for Values<'a> {
    fn from(values: &'a Vec<f32>) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a Vec<i32>> for Values<'a> {
    fn from(values: &'a Vec<i32>) -> Self {
        Self::I32(values)
    }
}

impl<'a, const N: usize> From<&'a [f32; N]> for Values<'a> {
    fn from(values: &'a [f32; N]) -> Self {
        Self::F32(values)
    }
}

impl<'a, const N: usize> From<&'a [i32; N]> for Values<'a> {
    fn from(values: &'a [i32; N]) -> Self {
        Self::I32(values)
    }
}

/// An input of one's own.
struct Own {
    name: String,
    dtype: DType,
    shape: Shape,
    /// Its words in the input block.
    words: Range<usize>,
    /// What its integers may be: what reads them trusts them.
    allowed: Range<i32>,
    is_set: bool,
}

/// A graph on its backends with its inputs.
pub struct Program {
    devices: Devices,
    compiled: Compiled,
    inputs: Vec<Own>,
    words: Vec<u32>,
    has_run: bool,
}

impl Program {
    /// Compiles what `build` describes, for backends in order of preference.
    ///
    /// Inputs are made with [`GraphBuilder::values`] and [`GraphBuilder::integers`]. Ops that want to know the sequence of every
    /// row get [`crate::builder::Spans::whole`], and positions from [`Input::Positions`]: all rows are one sequence. Results that are to be read are named and marked with [`GraphBuilder::output`].
    ///
    /// Errors: `Graph` for operands that do not fit each other, an input that only a model's call has, integers that nothing
    /// can check; `Unsupported` for what no backend runs; no backend.
    pub fn compile(
        backends: &[Arc<dyn Backend>],
        weights: &WeightStore,
        options: &CompileOptions,
        build: impl FnOnce(&GraphBuilder<'_>),
    ) -> Result<Self> {
        if backends.is_empty() {
            return refuse(format_args!("a program needs at least one backend"));
        }
        let builder = GraphBuilder::new(&NO_STATES);
        build(&builder);
        let graph = builder.finish()?;
        check_outputs(&graph)?;
        let homes = Homes { layers: &[], states: &[] };
        let (planned, prepared) = Planned::new(graph, backends, homes, options)?;
        if cfg!(debug_assertions) {
            planned.verify().expect("the passes make plans that hold");
        }
        let mut devices = Devices::new(backends, weights);
        let compiled = devices.bind(planned, prepared, &[], options.poison)?;
        let mut words = vec![0; compiled.n_words];
        let inputs = inputs(&compiled, &mut words)?;
        Ok(Self { devices, compiled, inputs, words, has_run: false })
    }

    /// The graph after all passes, and where its tensors lie.
    pub fn planned(&self) -> &Planned {
        &self.compiled.planned
    }

    /// Gives an input its values, which stay until others are given.
    ///
    /// Errors: `Batch` for a name that no input has, values of another type or number, integers that are no rows of what they
    /// select from.
    pub fn set<'a>(&mut self, name: &str, values: impl Into<Values<'a>>) -> Result<()> {
        let Some(at) = self.inputs.iter().position(|input| input.name == name) else {
            let known: Vec<&str> = self.inputs.iter().map(|input| input.name.as_str()).collect();
            return refuse(format_args!("no input is called {name} (inputs: {})", known.join(", ")));
        };
        let Self { inputs, words, .. } = self;
        let input = &mut inputs[at];
        let words = &mut words[input.words.clone()];
        let (dtype, n) = match values.into() {
            Values::F32(values) if input.dtype == DType::F32 && values.len() == words.len() => {
                words.iter_mut().zip(values).for_each(|(word, value)| *word = value.to_bits());
                input.is_set = true;
                return Ok(());
            }
            Values::I32(values) if input.dtype == DType::I32 && values.len() == words.len() => {
                let Range { start, end } = input.allowed;
                if let Some(value) = values.iter().find(|value| !input.allowed.contains(value)) {
                    return refuse(format_args!("{name}: want {start} to {}, got {value}", end - 1));
                }
                words.iter_mut().zip(values).for_each(|(word, value)| *word = value.cast_unsigned());
                input.is_set = true;
                return Ok(());
            }
            Values::F32(values) => (DType::F32, values.len()),
            Values::I32(values) => (DType::I32, values.len()),
        };
        let Own { dtype: want, shape, .. } = input;
        refuse(format_args!("{name}: want {want}{shape}, {} values, got {n} of {dtype}", words.len()))
    }

    /// Runs the graph once.
    ///
    /// Errors: an input that has no values yet; those of the backends.
    pub fn run(&mut self) -> Result<()> {
        if let Some(input) = self.inputs.iter().find(|input| !input.is_set) {
            return refuse(format_args!("{} has no values", input.name));
        }
        self.has_run = false;
        self.devices.run(&mut self.compiled, &self.words)?;
        self.has_run = true;
        Ok(())
    }

    /// The values of an output, f32, of the last run.
    ///
    /// Errors: `Batch` before the first run, for a name that no output has, for integers.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        self.read(name, DType::F32)
    }

    /// As [`Program::values`], i32.
    pub fn integers(&self, name: &str) -> Result<Vec<i32>> {
        Ok(self.read(name, DType::I32)?.into_iter().map(|value| value.to_bits().cast_signed()).collect())
    }

    /// The shape of a named input or output.
    pub fn shape(&self, name: &str) -> Option<Shape> {
        let graph = self.planned().graph();
        Some(graph.tensor(graph.named(name)?).shape)
    }

    fn read(&self, name: &str, want: DType) -> Result<Vec<f32>> {
        let graph = self.planned().graph();
        let found = graph.named(name).and_then(|id| graph.outputs.iter().position(|&output| output == id));
        let Some(at) = found else {
            let known: Vec<String> = graph.outputs.iter().filter_map(|&id| name_of(graph, id)).collect();
            return refuse(format_args!("no output is called {name} (outputs: {})", known.join(", ")));
        };
        let dtype = graph.tensor(graph.outputs[at]).dtype;
        if dtype != want {
            return refuse(format_args!("{name}: want {want}, got {dtype}"));
        }
        if !self.has_run {
            return refuse(format_args!("the program has not run"));
        }
        self.devices.read(&self.compiled, at)
    }
}

/// The name that a tensor was given first.
fn name_of(graph: &Graph, id: TensorId) -> Option<String> {
    graph.names.iter().find(|(_, named)| *named == id).map(|(name, _)| name.to_string())
}

fn wrong(op: &'static str, msg: String) -> Error {
    Error::Graph { at: "program".into(), op, msg }
}

/// Whether every output can be read later.
fn check_outputs(graph: &Graph) -> Result<()> {
    if graph.nodes.is_empty() || graph.outputs.is_empty() {
        return Err(wrong("output", "a program computes something and has an output".into()));
    }
    for &id in &graph.outputs {
        if name_of(graph, id).is_none() {
            return Err(wrong("output", format!("output {} has no name", graph.tensor(id).shape)));
        }
        if matches!(graph.tensor(graph.root(id)).source, Source::Weight(_) | Source::State(_)) {
            return Err(wrong("output", "a weight is no output: copy it".into()));
        }
    }
    Ok(())
}

/// The inputs of one's own; writes the others into the input block.
fn inputs(compiled: &Compiled, words: &mut [u32]) -> Result<Vec<Own>> {
    let graph = compiled.planned.graph();
    let mut own = Vec::new();
    let Some(plan) = compiled.planned.plans().iter().flatten().next() else { return Ok(own) };
    for (input, id) in graph.inputs() {
        let (dtype, shape) = (graph.tensor(id).dtype, graph.tensor(id).shape);
        let start = plan.offset(id) / WORD;
        let range = start..start + shape.elements();
        match input {
            Input::Values(_) | Input::Integers(_) => {
                let allowed = if dtype == DType::I32 { allowed(graph, id)? } else { 0..0 };
                let name = name_of(graph, id).unwrap_or_default();
                own.push(Own { name, dtype, shape, words: range, allowed, is_set: false });
            }
            Input::Positions => words[range].iter_mut().zip(0..).for_each(|(word, position)| *word = position),
            Input::Sequences => words[range].fill(0),
            Input::Ranges if shape.dims() == [1, 2] => {
                let rows = graph.inputs().into_iter().find(|(input, _)| *input == Input::Sequences);
                let n_rows = rows.map_or(0, |(_, id)| graph.tensor(id).shape.dim(0));
                let n_rows = u32::try_from(n_rows).expect("extents have 32 bits");
                words[range].copy_from_slice(&[0, n_rows]);
            }
            Input::Ranges
            | Input::Tokens
            | Input::Slots
            | Input::Reads
            | Input::Writes
            | Input::Kept
            | Input::Joined
            | Input::NewRows
            | Input::OutRows
            | Input::Frames
            | Input::Embeddings
            | Input::Features => {
                let msg = format!("{input:?}{shape} is an input of a model's call: a program has no sequences");
                return Err(wrong("input", msg));
            }
        }
    }
    Ok(own)
}

/// What the integers of an input may be, by all that reads them.
///
/// Errors: `Graph` where something reads them that trusts more than that they are in a range.
fn allowed(graph: &Graph, id: TensorId) -> Result<Range<i32>> {
    let mut allowed = 0..i32::MAX;
    for node in &graph.nodes {
        for at in (0..node.args.len()).filter(|&at| graph.root(node.args[at]) == id) {
            let rows_of = |table: usize| graph.tensor(node.args[table]).shape.dim(0);
            let end = match (&node.op, at) {
                (Op::GetRows, 1) => rows_of(0),
                (Op::ExpertLinear, 2) => rows_of(1),
                (Op::Rope(_), 1) => MAX_CONTEXT,
                (op, _) => {
                    let name = op.spec().name;
                    let msg = format!(
                        "integers of one's own are rows of a table, experts or positions, not what {name} reads"
                    );
                    return Err(wrong("integers", msg));
                }
            };
            allowed.end = allowed.end.min(i32::try_from(end).unwrap_or(i32::MAX));
        }
    }
    Ok(allowed)
}
