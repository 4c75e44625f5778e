//! [`Lowering`]: what ops are lowered with. It knows where tensors lie, and takes the steps that an op becomes.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytemuck::Pod;
use engine::Error;
use engine::backend::Bindings;
use engine::error::Result;
use engine::graph::{Graph, Node};
use engine::op::Rope;
use engine::plan::{MemoryPlan, Place};
use engine::tensor::{NodeId, Source, TensorDesc, TensorId};
use engine::weights::WeightId;

use super::NAME;
use super::angles::RopeTable;
use super::machine::Machine;
use super::mem::{ALIGNMENT, OUTER, Storage, View, ViewMut, Window, WorkerScratch};
use super::pool::Pool;
use super::region::{Step, Worker};
use super::weights::CpuBuffer;

/// Scratch memory of a node, in f32s.
#[derive(Clone, Copy, Default)]
pub(super) struct Needs {
    /// Seen by all threads.
    pub(super) shared: usize,
    /// Of every thread.
    pub(super) worker: usize,
}

impl Needs {
    /// Enough for either.
    pub(super) fn max(self, other: Self) -> Self {
        Self { shared: self.shared.max(other.shared), worker: self.worker.max(other.worker) }
    }

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

/// Appends a node's steps.
type Bind = Box<dyn FnOnce(&mut Lowering<'_>, At<'_>) -> Result<()> + Send>;

/// How a node becomes steps: decided from its op and operands alone, before memory is planned.
pub(super) struct Prepared {
    pub(super) needs: Needs,
    pub(super) bind: Bind,
}

impl Prepared {
    /// A node with this scratch memory, and what appends its steps.
    pub(super) fn new(
        needs: Needs,
        bind: impl FnOnce(&mut Lowering<'_>, At<'_>) -> Result<()> + Send + 'static,
    ) -> Self {
        Self { needs, bind: Box::new(bind) }
    }

    /// A node that becomes one step.
    pub(super) fn step<S: Step + 'static>(
        needs: Needs,
        make: impl FnOnce(&mut Lowering<'_>, At<'_>) -> Result<S> + Send + 'static,
    ) -> Self {
        Self::new(needs, move |cx, at| {
            let step = make(cx, at)?;
            cx.push(step);
            Ok(())
        })
    }

    /// A node that becomes one step and wants no scratch memory.
    pub(super) fn without_scratch<S: Step + 'static>(
        make: impl FnOnce(&mut Lowering<'_>, At<'_>) -> Result<S> + Send + 'static,
    ) -> Self {
        Self::step(Needs::default(), make)
    }
}

/// A node, its number, and the scratch memory that was planned for it.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) id: NodeId,
    pub(super) node: &'a Node,
    pub(super) needs: Needs,
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

/// What angles depend on: positions, factors and parameters.
type TableKey = (TensorId, Option<TensorId>, Rope);

/// What ops are lowered with: where tensors lie, and the steps so far.
pub(super) struct Lowering<'a> {
    pub(super) machine: Machine,
    graph: &'a Graph,
    plan: &'a MemoryPlan,
    pool: &'a Arc<Pool>,
    bind: &'a Bindings<'a>,
    arena: Arc<Storage>,
    tables: Vec<(TableKey, RopeTable)>,
    state_traffic: Arc<AtomicU64>,
    steps: Vec<Box<dyn Step>>,
}

impl<'a> Lowering<'a> {
    /// No steps yet.
    pub(super) fn new(
        machine: Machine,
        pool: &'a Arc<Pool>,
        graph: &'a Graph,
        plan: &'a MemoryPlan,
        bind: &'a Bindings<'a>,
    ) -> Result<Self> {
        let arena = Arc::clone(&CpuBuffer::of(bind.arena, pool)?.storage);
        let (tables, state_traffic, steps) = (Vec::new(), Arc::default(), Vec::new());
        Ok(Self { machine, graph, plan, pool, bind, arena, tables, state_traffic, steps })
    }

    /// Steps so far.
    pub(super) fn n_steps(&self) -> usize {
        self.steps.len()
    }

    /// Bytes of the memory that belongs to the steps so far and is not planned: tables of rotary angles.
    pub(super) fn own_bytes(&self) -> usize {
        self.tables.iter().map(|(.., table)| table.bytes()).sum()
    }

    /// Where steps count the bytes of states that they read and write.
    pub(super) fn state_traffic(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.state_traffic)
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
    pub(super) fn desc(&self, id: TensorId) -> &'a TensorDesc {
        self.graph.tensor(id)
    }

    /// A weight's buffer.
    pub(super) fn weight(&self, id: TensorId) -> Result<&'a CpuBuffer> {
        match self.desc(self.graph.root(id)).source {
            Source::Weight(w) => self.imported(w),
            Source::State(_) | Source::Input(_) | Source::Node(..) | Source::View { .. } => {
                Err(self.fail("an operand that is no weight"))
            }
        }
    }

    fn imported(&self, id: WeightId) -> Result<&'a CpuBuffer> {
        let buffer = self.bind.weights.get(id.0 as usize).and_then(Option::as_ref);
        CpuBuffer::of(buffer.ok_or_else(|| self.fail("a weight that was not imported"))?, self.pool)
    }

    /// The memory that holds the tensor, and its first byte there.
    fn locate(&self, id: TensorId) -> Result<(&Arc<Storage>, usize)> {
        let desc = self.desc(id);
        match desc.source {
            Source::Weight(w) => Ok((&self.imported(w)?.storage, 0)),
            Source::State(s) => {
                let buffer = self.bind.states.get(s.index()).ok_or_else(|| self.fail("an unbound state"))?;
                Ok((&CpuBuffer::of(buffer, self.pool)?.storage, 0))
            }
            Source::Input(_) | Source::Node(..) => match self.plan.place(id) {
                Place::Arena { offset, .. } => Ok((&self.arena, offset)),
                Place::Elsewhere => self.locate(self.aliased(id)?),
                Place::Unused => Err(self.fail("a tensor without a place")),
            },
            Source::View { of, offset } => {
                let ((storage, start), block) = (self.locate(of)?, desc.dtype.block());
                let offset = offset as usize;
                if !offset.is_multiple_of(block.len) {
                    return Err(self.fail("a view that begins inside a block"));
                }
                Ok((storage, start + offset / block.len * block.bytes))
            }
        }
    }

    /// The operand of the node that makes this tensor whose storage the tensor is.
    fn aliased(&self, id: TensorId) -> Result<TensorId> {
        let node = self.graph.producer(id).map(|n| self.graph.node(n));
        let arg = node.and_then(|node| node.op.spec().aliases.map(|i| node.args[i]));
        arg.ok_or_else(|| self.fail("a result without a place"))
    }

    /// A tensor of plain elements to read.
    pub(super) fn view<T: Pod>(&self, id: TensorId) -> Result<View<T>> {
        let (desc, (storage, byte)) = (self.desc(id), self.locate(id)?);
        let block = desc.dtype.block();
        if block.len != 1 || block.bytes != size_of::<T>() {
            return Err(self.fail("elements of another size"));
        }
        if desc.is_contiguous() {
            return View::dense(storage, byte, desc.shape.rows(), desc.shape.last());
        }
        View::new(storage, strided(desc, byte))
    }

    /// A tensor of plain elements to write.
    pub(super) fn result<T: Pod>(&self, id: TensorId) -> Result<ViewMut<T>> {
        ViewMut::of(self.view(id)?)
    }

    /// Rows of a result from `first` on, which are as many and as long as those of `like`.
    pub(super) fn result_part(&self, id: TensorId, first: usize, like: &View<f32>) -> Result<ViewMut<f32>> {
        let (storage, byte) = self.locate(id)?;
        ViewMut::dense(storage, byte + first * size_of::<f32>(), like.n_rows(), like.row_len())
    }

    /// The bytes of a tensor of any format, row by row.
    pub(super) fn bytes(&self, id: TensorId) -> Result<View<u8>> {
        let (desc, (storage, byte)) = (self.desc(id), self.locate(id)?);
        let block = desc.dtype.block();
        let partial = || self.fail("rows that are not whole blocks");
        let bytes = |n: usize| n.is_multiple_of(block.len).then(|| n / block.len * block.bytes).ok_or_else(partial);
        let row_bytes = bytes(desc.shape.last())?;
        if desc.is_contiguous() {
            return View::dense(storage, byte, desc.shape.rows(), row_bytes);
        }
        if !desc.has_contiguous_rows() {
            return Err(partial());
        }
        let mut window = Window { inner: 1, row_len: row_bytes, ..strided(desc, byte) };
        for (extent, stride) in &mut window.outer {
            *stride = if *extent == 1 { 0 } else { bytes(*stride)? };
        }
        View::new(storage, window)
    }

    /// The operand to read, or `None` where the plan lets the result take over its bytes.
    pub(super) fn unless_in_place(&self, arg: TensorId, out: TensorId) -> Result<Option<View<f32>>> {
        if self.plan.share(self.graph.root(arg), out) { Ok(None) } else { self.view(arg).map(Some) }
    }

    /// The node's scratch memory.
    pub(super) fn scratch(&self, At { id, needs, .. }: At<'_>) -> Result<(ViewMut<f32>, WorkerScratch)> {
        let range = self.plan.scratch(id);
        if needs.bytes(self.machine.n_workers) > range.len() {
            return Err(self.fail("less scratch memory than was asked for"));
        }
        let shared = ViewMut::dense(&self.arena, range.start, 1, needs.shared.max(1))?;
        let behind = range.start + needs.shared_bytes();
        Ok((shared, WorkerScratch::new(&self.arena, behind, self.machine.n_workers, needs.worker)?))
    }

    /// Cosines and sines for these positions, made by a step that comes before the first reader.
    pub(super) fn rope_table(
        &mut self,
        positions: TensorId,
        factors: Option<TensorId>,
        rope: Rope,
    ) -> Result<RopeTable> {
        let key: TableKey = (positions, factors, rope);
        if let Some((_, table)) = self.tables.iter().find(|(other, _)| *other == key) {
            return Ok(table.clone());
        }
        let table = RopeTable::new(self.desc(positions).shape.elements(), &rope)?;
        let factors = factors.map(|factors| self.view(factors)).transpose()?;
        let step = table.filled_by(self.view(positions)?, factors, &rope);
        self.push(step);
        self.tables.push((key, table.clone()));
        Ok(table)
    }

    /// Fills these bytes of the arena with NaN.
    pub(super) fn poison(&mut self, ranges: &[std::ops::Range<usize>]) -> Result<()> {
        let part = |r: &std::ops::Range<usize>| ViewMut::dense(&self.arena, r.start, 1, r.len() / size_of::<u32>());
        let parts = ranges.iter().filter(|r| r.len() >= size_of::<u32>()).map(part).collect::<Result<_>>()?;
        self.push(Poison { parts });
        Ok(())
    }

    /// A graph, plan or buffer that does not fit this backend.
    pub(super) fn fail(&self, what: &str) -> Error {
        Error::Refused { backend: NAME.into(), what: what.into() }
    }
}

/// Where the elements of a tensor lie that are not in one piece, from `byte` on.
fn strided(desc: &TensorDesc, byte: usize) -> Window {
    let rank = desc.shape.rank();
    let mut window = Window { byte, row_len: desc.shape.last(), inner: 1, outer: [(1, 0); OUTER] };
    if let Some(&inner) = desc.strides[..rank].last() {
        window.inner = inner as usize;
    }
    for i in 1..rank {
        window.outer[OUTER - i] = (desc.shape.dim(rank - 1 - i), desc.strides[rank - 1 - i] as usize);
    }
    window
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
