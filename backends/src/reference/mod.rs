//! `reference`: a plain f64 interpreter of graphs, so that every op has a meaning that shares nothing with the kernels.
//!
//! Weights are decoded exactly, activations are f64 from the segment's inputs to its outputs, and only states are
//! rounded to the type that they are stored in. Outputs that belong to padding are NaN where an op knows the lengths, so
//! that a reader of padding shows. No speed beyond what makes tests bearable. Read [`ReferenceBackend`], then `compute`.

mod attention;
mod conv;
mod delta;
mod linear;
mod math;
mod moe;
mod operands;
mod pointwise;
mod rows;
mod state;

use std::num::NonZeroUsize;
use std::ops::{DerefMut, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use engine::backend::{Backend, Bindings, Buffer, Caps, Executable, Prepared, Segment, WeightData};
use engine::graph::{Graph, Node};
use engine::op::{Binary, Op};
use engine::parallel::Parallel;
use engine::tensor::{TensorDesc, TensorId};
use engine::weights::{WeightId, WeightStore};
use engine::{DType, Error, Result};
use memmap2::MmapOptions;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use self::operands::Operands;

/// Bytes of an f32 or i32 in the arena.
const WORD: usize = 4;

/// Alignment of tensors in the arena, in bytes: that of the CPU's cache lines, so that plans look alike.
const ALIGNMENT: usize = 64;

/// The f64 interpreter.
pub struct ReferenceBackend {
    pool: Arc<ThreadPool>,
}

impl ReferenceBackend {
    /// Starts the threads: `threads`, or as many as this process may run at once. Callers wait while they compute.
    ///
    /// Errors: `Device` if the system gives none.
    pub fn new(threads: Option<NonZeroUsize>) -> Result<Self> {
        let builder = ThreadPoolBuilder::new().num_threads(threads.map_or(0, NonZeroUsize::get));
        let pool = builder.thread_name(|i| format!("tympan-ref-{i}")).build();
        let pool = pool.map_err(|e| Error::Device {
            backend: "reference".into(),
            msg: "starting threads".into(),
            source: Some(e.into()),
        })?;
        Ok(Self { pool: Arc::new(pool) })
    }
}

/// Host bytes of an arena or of a state.
struct HostMemory(Mutex<Bytes>);

/// From the allocator, or straight from the system, which gives memory to what is touched.
type Bytes = Box<dyn DerefMut<Target = [u8]> + Send>;

impl HostMemory {
    fn lock(&self) -> MutexGuard<'_, Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A weight as it lies in the file.
struct StoredWeight {
    store: WeightStore,
    id: WeightId,
}

fn failed(what: impl Into<String>) -> Error {
    Error::Refused { backend: "reference".into(), what: what.into() }
}

fn host(buffer: &Buffer) -> Result<Arc<HostMemory>> {
    buffer.storage::<HostMemory>().ok_or_else(|| failed("a buffer of another backend"))
}

fn out_of_memory(what: &str, wanted: usize) -> Error {
    Error::OutOfMemory { what: format!("{what} of backend reference"), wanted, free: None }
}

fn outside(range: &Range<usize>, len: usize) -> Error {
    failed(format!("bytes {range:?} of a buffer of {len}"))
}

impl Backend for ReferenceBackend {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn caps(&self) -> Caps {
        Caps { alignment: ALIGNMENT }
    }

    fn prepare(&self, _op: &Op, _args: &[&TensorDesc]) -> Option<Prepared> {
        Some(Prepared::new(0, ()))
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        let mut memory = Vec::new();
        memory.try_reserve_exact(bytes).map_err(|_| out_of_memory("activations", bytes))?;
        memory.resize(bytes, 0);
        Ok(Buffer::new(bytes, Arc::new(HostMemory(Mutex::new(Box::new(memory))))))
    }

    fn reserve(&self, bytes: usize) -> Result<Buffer> {
        let map = MmapOptions::new().len(bytes.max(1)).no_reserve_swap().map_anon();
        let memory = map.map_err(|_| out_of_memory("states", bytes))?;
        Ok(Buffer::new(bytes, Arc::new(HostMemory(Mutex::new(Box::new(memory))))))
    }

    fn import_weight(&self, w: &WeightData<'_>) -> Result<Buffer> {
        Ok(Buffer::new(w.bytes().len(), Arc::new(StoredWeight { store: w.store.clone(), id: w.id })))
    }

    fn write(&self, dst: &Buffer, offset: usize, src: &[u8]) -> Result<()> {
        let memory = host(dst)?;
        let mut bytes = memory.lock();
        let (len, range) = (bytes.len(), offset..offset.saturating_add(src.len()));
        bytes.get_mut(range.clone()).ok_or_else(|| outside(&range, len))?.copy_from_slice(src);
        Ok(())
    }

    fn read(&self, src: &Buffer, offset: usize, dst: &mut [u8]) -> Result<()> {
        let memory = host(src)?;
        let bytes = memory.lock();
        let range = offset..offset.saturating_add(dst.len());
        dst.copy_from_slice(bytes.get(range.clone()).ok_or_else(|| outside(&range, bytes.len()))?);
        Ok(())
    }

    fn copy(&self, buf: &Buffer, from: Range<usize>, to: usize) -> Result<()> {
        let memory = host(buf)?;
        let mut bytes = memory.lock();
        let target = to..to.saturating_add(from.len());
        for range in [&from, &target] {
            if bytes.get(range.clone()).is_none() {
                return Err(outside(range, bytes.len()));
            }
        }
        bytes.copy_within(from, to);
        Ok(())
    }

    fn zero(&self, buf: &Buffer, range: Range<usize>) -> Result<()> {
        let memory = host(buf)?;
        let mut bytes = memory.lock();
        let len = bytes.len();
        bytes.get_mut(range.clone()).ok_or_else(|| outside(&range, len))?.fill(0);
        Ok(())
    }

    fn weight_bytes(&self, _weight: &Buffer) -> usize {
        0
    }

    fn compile(&self, segment: Segment<'_>, bind: &Bindings<'_>) -> Result<Box<dyn Executable>> {
        let (graph, plan, cut) = (segment.graph(), segment.plan()?, segment.cut);
        let place = |&id: &TensorId| (id, plan.offset(id));
        let mut last_read = vec![0; graph.tensors.len()];
        for i in cut.nodes.clone() {
            let node = &graph.nodes[i];
            node.args.iter().chain(&node.outs).for_each(|&t| last_read[graph.root(t).index()] = i);
        }
        for &out in &cut.outputs {
            last_read[out.index()] = usize::MAX;
        }
        Ok(Box::new(Interpreter {
            graph: graph.clone(),
            nodes: cut.nodes.clone(),
            inputs: cut.inputs.iter().map(place).collect(),
            outputs: cut.outputs.iter().map(place).collect(),
            last_read,
            arena: host(bind.arena)?,
            weights: bind.weights.iter().map(|w| w.as_ref().and_then(Buffer::storage)).collect(),
            states: bind.states.iter().map(Buffer::storage).collect(),
            results: Vec::new(),
            pool: Arc::clone(&self.pool),
        }))
    }

    fn parallel(&self) -> &dyn Parallel {
        self
    }
}

impl Parallel for ReferenceBackend {
    fn for_each(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        self.pool.install(|| (0..n).into_par_iter().for_each(task));
    }
}

/// A segment with its buffers.
struct Interpreter {
    graph: Graph,
    nodes: Range<usize>,
    /// Tensors read from the arena and written to it, each with its offset.
    inputs: Vec<(TensorId, usize)>,
    outputs: Vec<(TensorId, usize)>,
    /// For every root the last node that reads or makes it: its values are dropped there.
    last_read: Vec<usize>,
    arena: Arc<HostMemory>,
    weights: Vec<Option<Arc<StoredWeight>>>,
    states: Vec<Option<Arc<HostMemory>>>,
    /// Results for the caller, of whole words.
    results: Vec<u32>,
    pool: Arc<ThreadPool>,
}

impl Interpreter {
    /// Computes every node; `done` is told when one is.
    fn compute(&self, inputs: &[u8], mut done: impl FnMut(usize)) -> Result<()> {
        let mut values = vec![None; self.graph.tensors.len()];
        {
            let mut arena = self.arena.lock();
            let block = arena.get_mut(..inputs.len()).ok_or_else(|| failed("inputs that do not fit the arena"))?;
            block.copy_from_slice(inputs);
            for &(id, offset) in &self.inputs {
                let desc = self.graph.tensor(id);
                let bytes = arena.get(offset..).and_then(|b| b.get(..desc.shape.elements() * WORD));
                let bytes = bytes.ok_or_else(|| failed("an input outside of the arena"))?;
                values[id.index()] = Some(operands::decode(desc.dtype, bytes, desc.shape.elements())?);
            }
        }
        for i in self.nodes.clone() {
            let node = &self.graph.nodes[i];
            let cx = Operands { graph: &self.graph, values: &values, weights: &self.weights, states: &self.states };
            let results = compute(&cx, node)?;
            for (out, result) in node.outs.iter().zip(results) {
                values[out.index()] = Some(result);
            }
            for &t in node.args.iter().chain(&node.outs) {
                let root = self.graph.root(t).index();
                if self.last_read[root] <= i {
                    values[root] = None;
                }
            }
            done(i);
        }
        let mut arena = self.arena.lock();
        for &(id, offset) in &self.outputs {
            let values = values[id.index()].as_ref().ok_or_else(|| failed("an output that no node made"))?;
            let bytes = arena.get_mut(offset..).and_then(|b| b.get_mut(..values.len() * WORD));
            let bytes = bytes.ok_or_else(|| failed("an output outside of the arena"))?;
            let is_integer = self.graph.tensor(id).dtype == DType::I32;
            for (word, v) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                *word = if is_integer { (*v as i32).to_le_bytes() } else { (*v as f32).to_le_bytes() };
            }
        }
        Ok(())
    }
}

impl Executable for Interpreter {
    fn run(&mut self, inputs: &[u8]) -> Result<()> {
        self.pool.install(|| self.compute(inputs, |_| ()))
    }

    fn results(&mut self, bytes: Range<usize>) -> Result<&[u8]> {
        let arena = self.arena.lock();
        let found = arena.get(bytes.clone()).ok_or_else(|| outside(&bytes, arena.len()))?;
        self.results.resize(found.len().div_ceil(WORD), 0);
        let results = &mut bytemuck::cast_slice_mut(&mut self.results)[..found.len()];
        results.copy_from_slice(found);
        Ok(results)
    }

    fn run_timed(&mut self, inputs: &[u8], node_ns: &mut [u64]) -> Result<()> {
        let mut start = Instant::now();
        let done = |node: usize| {
            let now = Instant::now();
            node_ns[node] += u64::try_from((now - start).as_nanos()).unwrap_or(u64::MAX);
            start = now;
        };
        self.pool.install(|| self.compute(inputs, done))
    }

    fn own_bytes(&self) -> usize {
        0
    }
}

/// Every result of a node; nothing for [`Op::KvWrite`], whose result is the state.
#[deny(clippy::wildcard_enum_match_arm)]
fn compute(cx: &Operands<'_>, node: &Node) -> Result<Vec<Vec<f64>>> {
    let args = &node.args;
    let x = || cx.values(args[0]);
    let row_len = || cx.desc(args[0]).shape.last();
    Ok(match node.op {
        Op::GetRows => vec![rows::get_rows(cx, args)?],
        Op::Embed => vec![rows::embed(cx, args)?],
        Op::Linear { bias, act, .. } => {
            let mut y = linear::linear(cx, args[0], args[1], bias.then(|| args[2]))?;
            if let Some(act) = act {
                pointwise::unary(act, &mut y);
            }
            vec![y]
        }
        Op::LinearGroup { n, bias, .. } => {
            let n = usize::from(n);
            let product = |i: usize| linear::linear(cx, args[0], args[1 + i], bias.then(|| args[1 + n + i]));
            (0..n).map(product).collect::<Result<_>>()?
        }
        Op::LinearGlu { act, .. } => {
            let mut gate = linear::linear(cx, args[0], args[1], None)?;
            let up = linear::linear(cx, args[0], args[2], None)?;
            pointwise::unary(act, &mut gate);
            pointwise::binary(Binary::Mul, &mut gate, &up);
            vec![gate]
        }
        Op::RmsNorm { eps } => {
            let mut y = x()?.into_owned();
            pointwise::rms_norm(&mut y, row_len(), &cx.values(args[1])?, eps);
            vec![y]
        }
        Op::AddRmsNorm { eps } => {
            let mut sum = x()?.into_owned();
            pointwise::binary(Binary::Add, &mut sum, &cx.values(args[1])?);
            let mut y = sum.clone();
            pointwise::rms_norm(&mut y, row_len(), &cx.values(args[2])?, eps);
            vec![sum, y]
        }
        Op::LayerNorm { eps } => {
            let mut y = x()?.into_owned();
            pointwise::layer_norm(&mut y, row_len(), [&cx.values(args[1])?, &cx.values(args[2])?], eps);
            vec![y]
        }
        Op::AddLayerNorm { eps } => {
            let mut sum = x()?.into_owned();
            pointwise::binary(Binary::Add, &mut sum, &cx.values(args[1])?);
            let mut y = sum.clone();
            pointwise::layer_norm(&mut y, row_len(), [&cx.values(args[2])?, &cx.values(args[3])?], eps);
            vec![sum, y]
        }
        Op::Binary(op) => {
            let mut y = x()?.into_owned();
            pointwise::binary(op, &mut y, &cx.values(args[1])?);
            vec![y]
        }
        Op::Unary(act) => {
            let mut y = x()?.into_owned();
            pointwise::unary(act, &mut y);
            vec![y]
        }
        Op::Glu(act) => {
            let mut y = x()?.into_owned();
            pointwise::unary(act, &mut y);
            pointwise::binary(Binary::Mul, &mut y, &cx.values(args[1])?);
            vec![y]
        }
        Op::Rope(rope) => {
            let mut y = x()?.into_owned();
            let [_, n_head, head_dim] = cx.dims(args[0])?;
            let factors = args.get(2).map(|&factors| cx.values(factors)).transpose()?;
            pointwise::rope(rope, factors.as_deref(), &mut y, &cx.values(args[1])?, n_head, head_dim);
            vec![y]
        }
        Op::KvWrite => {
            attention::kv_write(cx, args)?;
            Vec::new()
        }
        Op::CachedAttention { scale } => vec![attention::cached(cx, args, scale)?],
        Op::Attention { scale, window } => vec![attention::windowed(cx, args, scale, window)?],
        Op::SsmScan { decay } => vec![state::ssm_scan(cx, args, decay)?],
        Op::CausalConv1d { bias, act } => {
            let mut y = conv::causal_conv1d(cx, args, bias)?;
            if let Some(act) = act {
                pointwise::unary(act, &mut y);
            }
            vec![y]
        }
        Op::GatedDelta { heads, rule } => vec![delta::gated_delta(cx, args, heads, rule)?],
        Op::JoinPending { n, n_rows } => state::join_pending(cx, args, usize::from(n), n_rows as usize)?,
        Op::Conv2d { stride, pad, act, .. } => {
            let mut y = conv::conv2d(cx, args, usize::from(stride), usize::from(pad))?;
            if let Some(act) = act {
                pointwise::unary(act, &mut y);
            }
            vec![y]
        }
        Op::DepthwiseConv2d { stride, pad } => {
            vec![conv::depthwise_conv2d(cx, args, usize::from(stride), usize::from(pad))?]
        }
        Op::DepthwiseConv1d => vec![conv::depthwise_conv1d(cx, args)?],
        Op::MaskRows { unit } => vec![conv::mask_rows(cx, args, unit as usize)?],
        Op::Scale { factor } => {
            let mut y = x()?.into_owned();
            y.iter_mut().for_each(|v| *v *= f64::from(factor));
            vec![y]
        }
        Op::AddScaled { scale } => {
            let mut y = x()?.into_owned();
            y.iter_mut().zip(cx.values(args[1])?.iter()).for_each(|(y, b)| *y += f64::from(scale) * b);
            vec![y]
        }
        Op::RelPositions => vec![attention::rel_positions(cx, args)?],
        Op::RelPosAttention { scale } => vec![attention::rel_pos(cx, args, scale)?],
        Op::Route(route) => moe::route(cx, args, route)?.into(),
        Op::ExpertLinear => vec![moe::linear(cx, args)?],
        Op::ExpertSum => vec![moe::sum(cx, args)?],
        Op::Copy => vec![x()?.into_owned()],
        Op::Concat => vec![[x()?, cx.values(args[1])?].concat()],
    })
}
