//! [`Lowering`]: what ops are lowered with. It knows where tensors lie, and takes the steps that an op becomes.

use std::sync::Arc;

use bytemuck::Pod;
use engine::Error;
use engine::backend::{Bindings, Segment};
use engine::error::Result;
use engine::graph::{Graph, Node};
use engine::op::Rope;
use engine::plan::{MemoryPlan, Place};
use engine::tensor::{NodeId, Source, TensorDesc, TensorId};
use kernels::cpu::Kernels;

use super::NAME;
use super::angles::RopeTable;
use super::mem::{ALIGNMENT, Storage, View, ViewMut, Window, WorkerScratch};
use super::pool::Pool;
use super::region::{Step, Worker};
use super::weights::CpuBuffer;

/// What decides how an op is cut into chunks and how much scratch memory it wants.
#[derive(Clone, Copy)]
pub(super) struct Machine {
    pub(super) kernels: Kernels,
    pub(super) n_workers: usize,
    /// Whether products of many rows keep the precision of their activations.
    pub(super) precise: bool,
}

/// Scratch memory of a node, in f32s.
#[derive(Clone, Copy, Default)]
pub(super) struct Needs {
    /// Seen by all threads.
    pub(super) shared: usize,
    /// Of every thread.
    pub(super) worker: usize,
}

impl Needs {
    fn shared_bytes(self) -> usize {
        (self.shared * size_of::<f32>()).next_multiple_of(ALIGNMENT)
    }

    /// Bytes of all of it.
    pub(super) fn bytes(self, n_workers: usize) -> usize {
        if self.shared + self.worker == 0 {
            return 0;
        }
        self.shared_bytes() + WorkerScratch::bytes(n_workers, self.worker)
    }
}

/// A node and its number.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) id: NodeId,
    pub(super) node: &'a Node,
}

impl At<'_> {
    /// Operand `i`.
    pub(super) fn arg(&self, i: usize) -> TensorId {
        self.node.args[i]
    }

    /// Result `i`.
    pub(super) fn out(&self, i: usize) -> TensorId {
        self.node.outs[i]
    }
}

/// What ops are lowered with: where tensors lie, and the steps so far.
pub(super) struct Lowering<'a> {
    pub(super) machine: Machine,
    graph: &'a Graph,
    plan: &'a MemoryPlan,
    pool: &'a Arc<Pool>,
    bind: &'a Bindings<'a>,
    arena: Arc<Storage>,
    tables: Vec<(TensorId, Rope, RopeTable)>,
    steps: Vec<Box<dyn Step>>,
}

impl<'a> Lowering<'a> {
    /// No steps yet.
    pub(super) fn new(
        machine: Machine,
        pool: &'a Arc<Pool>,
        segment: &Segment<'a>,
        plan: &'a MemoryPlan,
        bind: &'a Bindings<'a>,
    ) -> Result<Self> {
        let arena = Arc::clone(&CpuBuffer::of(bind.arena, pool)?.storage);
        let machine = Machine { precise: segment.precise, ..machine };
        Ok(Self { machine, graph: segment.graph, plan, pool, bind, arena, tables: Vec::new(), steps: Vec::new() })
    }

    /// Steps so far.
    pub(super) fn n_steps(&self) -> usize {
        self.steps.len()
    }

    /// All steps, in order.
    pub(super) fn finish(self) -> Vec<Box<dyn Step>> {
        self.steps
    }

    /// Appends a step.
    pub(super) fn push(&mut self, step: impl Step + 'static) {
        self.steps.push(Box::new(step));
    }

    /// The tensor's description.
    pub(super) fn desc(&self, id: TensorId) -> &TensorDesc {
        self.graph.tensor(id)
    }

    /// Descriptions of a node's operands.
    pub(super) fn descs(&self, at: At<'_>) -> Vec<TensorDesc> {
        at.node.args.iter().map(|&a| *self.desc(a)).collect()
    }

    /// The buffer that holds the tensor's bytes.
    pub(super) fn buffer(&self, id: TensorId) -> Result<&'a CpuBuffer> {
        let unbound = || self.fail("a tensor without a buffer");
        let buffer = match self.desc(self.graph.root(id)).source {
            Source::Weight(w) => self.bind.weights.get(w.0 as usize).and_then(Option::as_ref).ok_or_else(unbound)?,
            Source::State(s) => self.bind.states.get(s.index()).ok_or_else(unbound)?,
            Source::Node(n, k) => match self.aliased(n, k) {
                Some(arg) => return self.buffer(arg),
                None => self.bind.arena,
            },
            Source::Input(_) => self.bind.arena,
            Source::View { .. } => return Err(unbound()),
        };
        CpuBuffer::of(buffer, self.pool)
    }

    /// The operand whose storage is this result.
    fn aliased(&self, n: NodeId, k: u8) -> Option<TensorId> {
        let node = self.graph.node(n);
        node.op.spec().aliases.filter(|_| k == 0).map(|i| node.args[i])
    }

    /// The tensor's first byte in its buffer.
    fn start(&self, id: TensorId) -> Result<usize> {
        let desc = self.desc(id);
        let offset = match desc.source {
            Source::View { offset, .. } => offset as usize,
            Source::Weight(_) | Source::State(_) | Source::Input(_) | Source::Node(..) => 0,
        };
        let block = desc.dtype.block();
        if !offset.is_multiple_of(block.len) {
            return Err(self.fail("a view that begins inside a block"));
        }
        let root = self.graph.root(id);
        let base = match self.plan.place(root) {
            Place::Arena { offset, .. } => offset,
            Place::Elsewhere => 0,
            Place::Unused => return Err(self.fail("a tensor without a place")),
        };
        Ok(base + offset / block.len * block.bytes)
    }

    /// Where the tensor lies, counted in elements.
    fn window(&self, id: TensorId) -> Result<Window> {
        let desc = self.desc(id);
        let rank = desc.shape.rank();
        let mut window = Window::contiguous(self.start(id)?, 1, desc.shape.last());
        window.inner = if rank == 0 { 1 } else { desc.strides[rank - 1] as usize };
        for i in 1..rank {
            let outer = (desc.shape.dim(rank - 1 - i), desc.strides[rank - 1 - i] as usize);
            window.outer[window.outer.len() - i] = outer;
        }
        Ok(window)
    }

    /// A tensor of plain elements to read.
    pub(super) fn view<T: Pod>(&self, id: TensorId) -> Result<View<T>> {
        self.check_size::<T>(id)?;
        View::new(&self.buffer(id)?.storage, self.window(id)?)
    }

    /// A tensor of plain elements to write.
    pub(super) fn result<T: Pod>(&self, id: TensorId) -> Result<ViewMut<T>> {
        self.check_size::<T>(id)?;
        ViewMut::new(&self.buffer(id)?.storage, self.window(id)?)
    }

    /// Rows of a result from `first` on, which are as many and as long as those of `like`.
    pub(super) fn result_part(&self, id: TensorId, first: usize, like: &View<f32>) -> Result<ViewMut<f32>> {
        let byte = self.start(id)? + first * size_of::<f32>();
        ViewMut::new(&self.buffer(id)?.storage, Window::contiguous(byte, like.n_rows(), like.row_len()))
    }

    fn check_size<T>(&self, id: TensorId) -> Result<()> {
        let block = self.desc(id).dtype.block();
        if block.len == 1 && block.bytes == size_of::<T>() {
            Ok(())
        } else {
            Err(self.fail("elements of another size"))
        }
    }

    /// The bytes of a tensor of any format, row by row.
    pub(super) fn bytes(&self, id: TensorId) -> Result<View<u8>> {
        let desc = self.desc(id);
        let block = desc.dtype.block();
        let mut window = self.window(id)?;
        let bytes = |n: usize| n.is_multiple_of(block.len).then(|| n / block.len * block.bytes);
        let strided = || self.fail("rows that are not whole blocks");
        if window.inner != 1 && window.row_len != 1 {
            return Err(strided());
        }
        window.inner = 1;
        window.row_len = bytes(window.row_len).ok_or_else(strided)?;
        for (extent, stride) in &mut window.outer {
            *stride = if *extent == 1 { 0 } else { bytes(*stride).ok_or_else(strided)? };
        }
        View::new(&self.buffer(id)?.storage, window)
    }

    /// The operand to read, or `None` where the plan lets the result take over its bytes.
    pub(super) fn unless_in_place(&self, arg: TensorId, out: TensorId) -> Result<Option<View<f32>>> {
        if self.plan.share(self.graph.root(arg), out) { Ok(None) } else { self.view(arg).map(Some) }
    }

    /// The node's scratch memory, of the size that [`needs`] gave for it.
    pub(super) fn scratch(&self, at: At<'_>, needs: Needs) -> Result<(ViewMut<f32>, WorkerScratch)> {
        let range = self.plan.scratch(at.id);
        if needs.bytes(self.machine.n_workers) > range.len() {
            return Err(self.fail("less scratch memory than was asked for"));
        }
        let shared = ViewMut::new(&self.arena, Window::contiguous(range.start, 1, needs.shared.max(1)))?;
        let behind = range.start + needs.shared_bytes();
        Ok((shared, WorkerScratch::new(&self.arena, behind, self.machine.n_workers, needs.worker)?))
    }

    /// Cosines and sines for these positions, made by a step that comes before the first reader.
    pub(super) fn rope_table(&mut self, positions: TensorId, rope: Rope) -> Result<RopeTable> {
        if let Some((.., table)) = self.tables.iter().find(|(p, r, _)| *p == positions && *r == rope) {
            return Ok(table.clone());
        }
        let table = RopeTable::new(self.desc(positions).shape.elements(), &rope)?;
        let step = table.filled_by(self.view(positions)?, &rope);
        self.push(step);
        self.tables.push((positions, rope, table.clone()));
        Ok(table)
    }

    /// Fills these bytes of the arena with NaN.
    pub(super) fn poison(&mut self, ranges: &[std::ops::Range<usize>]) -> Result<()> {
        let part = |r: &std::ops::Range<usize>| {
            ViewMut::new(&self.arena, Window::contiguous(r.start, 1, r.len() / size_of::<u32>()))
        };
        let parts = ranges.iter().filter(|r| r.len() >= size_of::<u32>()).map(part).collect::<Result<_>>()?;
        self.push(Poison { parts });
        Ok(())
    }

    /// A graph, plan or buffer that does not fit this backend.
    pub(super) fn fail(&self, msg: &str) -> Error {
        Error::Device { backend: NAME.into(), msg: msg.into() }
    }
}

/// Fills dead or fresh memory with NaN, so that whoever reads it shows.
pub(super) struct Poison {
    pub(super) parts: Vec<ViewMut<u32>>,
}

/// A NaN as f32, f16 and bf16.
const NAN: u32 = u32::MAX;

#[allow(unsafe_code, reason = "writes rows of results")]
impl Step for Poison {
    fn chunks(&self) -> usize {
        self.parts.len()
    }

    fn run(&self, chunk: usize, _worker: &mut Worker) {
        // SAFETY: nothing that is alive lies in these bytes, and each part has one chunk.
        unsafe { self.parts[chunk].row_mut(0) }.fill(NAN);
    }
}
