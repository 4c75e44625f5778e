//! [`Backend`]: what the engine asks of a device. Backends know ops and buffers, not models, files or sessions.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::graph::Graph;
use crate::op::Op;
use crate::plan::MemoryPlan;
use crate::tensor::{TensorDesc, TensorId};
use crate::weights::{WeightDesc, WeightId, WeightStore};

/// What a buffer is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// Activations of one graph at a time.
    Arena,
    /// State rows of all slots.
    State,
}

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
    /// Bytes that can still be allocated, where known.
    pub free_bytes: Option<usize>,
    /// Whether launch geometry depends on the length of the context, so that it must be in the key.
    pub kv_buckets: bool,
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
    /// The whole graph.
    pub graph: &'a Graph,
    /// Indices of the nodes of this segment.
    pub nodes: Range<usize>,
    /// Tensors read here that lie in the arena and are written elsewhere: inputs of the graph and results of earlier
    /// segments.
    pub inputs: Vec<TensorId>,
    /// Tensors written here that are read after the segment ends.
    pub outputs: Vec<TensorId>,
    /// What [`Backend::prepare`] gave for each of the nodes, in their order.
    pub prepared: Vec<Prepared>,
    /// Whether to fill bytes with NaN as soon as they are dead.
    pub poison: bool,
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
    pub fn scratch_bytes(&self) -> usize {
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

/// The right to read a buffer in place. While its bytes are lent, the backend refuses to write them and to run what might.
pub trait Loan: Send + Sync {
    /// Lends a range of the buffer, until [`Loan::end`].
    ///
    /// Errors: a range that does not fit; a backend that is busy with another thread of the same request.
    fn bytes(&self, range: Range<usize>) -> Result<&[u8]>;

    /// Takes back what was lent. The exclusive borrow proves that nobody looks at it any more.
    fn end(&mut self);
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

    /// Zeroed memory.
    fn alloc(&self, bytes: usize, usage: Usage) -> Result<Buffer>;

    /// Makes a weight ready for kernels: borrows the mapping, changes the layout or uploads. The layout is the backend's
    /// private business.
    fn import_weight(&self, w: &WeightData<'_>) -> Result<Buffer>;

    /// Copies host bytes into a buffer.
    fn write(&self, dst: &Buffer, offset: usize, src: &[u8]) -> Result<()>;

    /// Copies a buffer's bytes to the host.
    fn read(&self, src: &Buffer, offset: usize, dst: &mut [u8]) -> Result<()>;

    /// A loan of a buffer of [`Usage::Arena`], where the host can read it in place.
    fn loan(&self, _buf: &Buffer) -> Option<Box<dyn Loan>> {
        None
    }

    /// Copies inside a buffer; the ranges do not overlap.
    fn copy(&self, buf: &Buffer, from: Range<usize>, to: usize) -> Result<()>;

    /// Fills a range with zero bytes.
    fn zero(&self, buf: &Buffer, range: Range<usize>) -> Result<()>;

    /// Bytes that an imported weight holds besides the mapped file: copies, and layouts made when graphs were compiled.
    fn weight_bytes(&self, weight: &Buffer) -> usize;

    /// Lowers nodes to steps with every address bound.
    fn compile(&self, segment: Segment<'_>, plan: &MemoryPlan, bind: &Bindings<'_>) -> Result<Box<dyn Executable>>;

    /// Runs a whole request where [`Executable::run`] starts cheapest, such as inside the backend's thread pool.
    fn enter(&self, request: &mut (dyn FnMut() + Send)) {
        request();
    }
}

/// A compiled segment. All addresses were bound when it was compiled.
pub trait Executable: Send {
    /// Copies `inputs` to the start of the arena, then runs every node once.
    fn run(&mut self, inputs: &[u8]) -> Result<()>;

    /// As [`Executable::run`], and adds the nanoseconds of node `i` of the graph to `node_ns[i]`; what lies between two nodes
    /// belongs to the later one. A backend that cannot tell its nodes apart adds nothing.
    fn run_timed(&mut self, inputs: &[u8], node_ns: &mut [u64]) -> Result<()> {
        let _ = node_ns;
        self.run(inputs)
    }

    /// Bytes of memory that belong to this segment alone and lie outside of the arena.
    fn own_bytes(&self) -> usize;
}
