//! [`Backend`]: what the engine asks of a device. Backends know ops and buffers, not models, files or sessions.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::op::Op;
use crate::parallel::Parallel;
use crate::pass::assign::Cut;
use crate::plan::MemoryPlan;
use crate::planned::Planned;
use crate::tensor::TensorDesc;
use crate::weights::{WeightDesc, WeightId, WeightStore};

/// Device memory. Clones share it.
#[derive(Clone)]
pub struct Buffer {
    bytes: usize,
    storage: Arc<dyn Any + Send + Sync>,
}

impl Buffer {
    /// Wraps a backend's own storage of `bytes` bytes.
    pub fn new(bytes: usize, storage: Arc<dyn Any + Send + Sync>) -> Self {
        Self { bytes, storage }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The backend's own storage, if it is a `T`.
    pub fn storage<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(&self.storage).downcast().ok()
    }

    /// The same, without sharing it.
    pub fn storage_ref<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.storage.downcast_ref()
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes)
    }
}

/// Properties of a device that the engine plans with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caps {
    /// Alignment of tensors in the arena, in bytes; a power of two.
    pub alignment: usize,
}

/// A weight to be made ready for kernels.
#[derive(Clone, Copy, Debug)]
pub struct WeightData<'a> {
    /// Where its mapped bytes are; a backend that borrows them keeps a clone.
    pub store: &'a WeightStore,
    /// Which weight.
    pub id: WeightId,
}

impl<'a> WeightData<'a> {
    /// Name, format and shape.
    pub fn desc(&self) -> &'a WeightDesc {
        self.store.desc(self.id)
    }

    /// The mapped bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.store.bytes(self.id)
    }
}

/// A run of nodes that one backend executes.
pub struct Segment<'a> {
    /// The whole graph, its cuts and their plans.
    pub planned: &'a Planned,
    /// One of the cuts.
    pub cut: &'a Cut,
    /// What [`Backend::prepare`] gave for each node of the cut, in their order.
    pub prepared: Vec<Prepared>,
    /// Whether to fill bytes with NaN as soon as they are dead.
    pub poison: bool,
}

impl<'a> Segment<'a> {
    /// The whole graph.
    pub fn graph(&self) -> &'a Graph {
        self.planned.graph()
    }

    /// Where tensors lie.
    ///
    /// Errors: `Refused` for a cut of another graph.
    pub fn plan(&self) -> Result<&'a MemoryPlan> {
        let is_own = self.planned.cuts().iter().any(|cut| std::ptr::eq(cut, self.cut));
        self.planned.plan(self.cut.backend).filter(|_| is_own).ok_or_else(|| Error::Refused {
            backend: self.cut.backend.to_string(),
            what: "a cut of another graph".into(),
        })
    }

    /// The nodes of the cut in pieces, as [`Backend::groups`] gave them. Nothing inside a piece writes over what the piece
    /// reads or makes, so that it may run in any order that its results allow.
    pub fn groups(&self) -> &'a [Range<usize>] {
        &self.cut.groups
    }
}

/// What a backend decided about a node when it was asked whether it takes it: how much scratch memory its kernels want, and
/// whatever the backend itself needs to know again when it binds the node to memory.
pub struct Prepared {
    scratch_bytes: usize,
    inside: Box<dyn Any + Send>,
}

impl Prepared {
    /// A node whose kernels want `scratch_bytes` bytes while it runs. `inside` is the backend's own business.
    pub fn new<T: Any + Send>(scratch_bytes: usize, inside: T) -> Self {
        Self { scratch_bytes, inside: Box::new(inside) }
    }

    /// Bytes of scratch memory that the node's kernels want while it runs.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.scratch_bytes
    }

    /// The backend's own business, if it is a `T`.
    pub fn into_inside<T: Any>(self) -> Option<T> {
        self.inside.downcast().ok().map(|inside| *inside)
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prepared({} bytes of scratch memory)", self.scratch_bytes)
    }
}

/// The buffers that a compiled segment is bound to. Slices are indexed by weight and by state; weights that the segment
/// does not read are `None`.
pub struct Bindings<'a> {
    /// Activations and inputs, at the offsets of the plan.
    pub arena: &'a Buffer,
    /// Imported weights.
    pub weights: &'a [Option<Buffer>],
    /// State rows of all slots.
    pub states: &'a [Buffer],
}

/// A device: memory, weights and compiled graphs.
pub trait Backend: Send + Sync {
    /// The name by which users choose it: `cpu`, `cuda:0`.
    fn name(&self) -> &str;

    /// What the engine plans with.
    fn caps(&self) -> Caps;

    /// Decides how this op runs on these operands, which fit it; `None` if the backend cannot do it. What it gives goes to
    /// [`Backend::compile`] with the node.
    fn prepare(&self, op: &Op, args: &[&TensorDesc]) -> Option<Prepared>;

    /// Cuts a run of nodes that it executes into pieces, in their order, each of which it runs as one. The plan keeps what a
    /// piece reads or makes until the whole piece has run, and lets nothing in it take over the bytes of an operand. Without
    /// an opinion every node is a piece. A function of the graph alone, as all that the plan depends on.
    fn groups(&self, _graph: &Graph, nodes: Range<usize>) -> Vec<Range<usize>> {
        nodes.map(|node| node..node + 1).collect()
    }

    /// Zeroed memory for the activations of one graph at a time.
    fn alloc(&self, bytes: usize) -> Result<Buffer>;

    /// Addresses for states, which never change. Nothing may touch a byte of them before [`Backend::commit`].
    ///
    /// Errors: `OutOfMemory` also where the system cannot reserve addresses without memory; callers then ask for what they
    /// need at once.
    fn reserve(&self, bytes: usize) -> Result<Buffer>;

    /// Gives memory to a range of a reserved buffer; bytes that had some keep what they hold, others hold anything.
    fn commit(&self, _buf: &Buffer, _range: Range<usize>) -> Result<()> {
        Ok(())
    }

    /// Takes memory back from a range of a reserved buffer, as far as no byte outside of the range loses its own. What the
    /// range held is lost.
    fn decommit(&self, _buf: &Buffer, _range: Range<usize>) {}

    /// Makes a weight ready for kernels: borrows the mapping, changes the layout or uploads. The layout is the backend's
    /// private business.
    fn import_weight(&self, w: &WeightData<'_>) -> Result<Buffer>;

    /// Copies host bytes into a buffer.
    fn write(&self, dst: &Buffer, offset: usize, src: &[u8]) -> Result<()>;

    /// Copies a buffer's bytes to the host.
    fn read(&self, src: &Buffer, offset: usize, dst: &mut [u8]) -> Result<()>;

    /// Copies inside a buffer; the ranges do not overlap.
    fn copy(&self, buf: &Buffer, from: Range<usize>, to: usize) -> Result<()>;

    /// Fills a range with zero bytes.
    fn zero(&self, buf: &Buffer, range: Range<usize>) -> Result<()>;

    /// Bytes that an imported weight holds besides the mapped file: copies, and layouts made when graphs were compiled.
    fn weight_bytes(&self, weight: &Buffer) -> usize;

    /// Lowers nodes to steps with every address bound. What it returns keeps the buffers that it is bound to: the caller may
    /// drop its own.
    fn compile(&self, segment: Segment<'_>, bind: &Bindings<'_>) -> Result<Box<dyn Executable>>;

    /// The host's threads that graphs run on, for work outside of graphs.
    fn parallel(&self) -> &dyn Parallel;
}

/// A compiled segment. All addresses were bound when it was compiled.
pub trait Executable: Send {
    /// Copies `inputs` to the start of the arena, then runs every node once.
    fn run(&mut self, inputs: &[u8]) -> Result<()>;

    /// Bytes of the arena as the last run left them, which lie where the plan says: in place where the host can read them
    /// there, or else in memory that the executable makes once. They are aligned as f32s are, and stay as they are until
    /// [`Executable::end_results`], before which nothing may run in the arena.
    ///
    /// Errors: bytes outside of the arena; something that writes the arena at this moment.
    fn results(&mut self, bytes: Range<usize>) -> Result<&[u8]>;

    /// Nobody looks at results any more.
    fn end_results(&mut self) {}

    /// As [`Executable::run`], and adds the nanoseconds of node `i` of the graph to `node_ns[i]`; what lies between two nodes
    /// belongs to the later one. A backend that cannot tell its nodes apart adds nothing.
    fn run_timed(&mut self, inputs: &[u8], node_ns: &mut [u64]) -> Result<()> {
        let _ = node_ns;
        self.run(inputs)
    }

    /// Bytes of memory that belong to this segment alone and lie outside of the arena.
    fn own_bytes(&self) -> usize;

    /// Bytes of states of fixed extent that all runs so far have read and written; 0 where the backend does not count.
    fn state_traffic(&self) -> u64 {
        0
    }
}
