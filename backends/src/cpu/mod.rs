//! The CPU backend: nodes are lowered once to steps on the kernels' functions, and all threads walk the list of steps
//! together. Read [`CpuBackend`] first, then `region` for how a graph runs and `lower` for what it becomes.

mod angles;
mod context;
mod loan;
mod lower;
mod machine;
mod mem;
mod ops;
mod pool;
mod region;
mod team;
mod trace;
mod weights;

pub use trace::RunTimes;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::Error;
use engine::backend::{Backend, Bindings, Buffer, Caps, Executable, Prepared, Segment, WeightData};
use engine::error::Result;
use engine::op::Op;
use engine::parallel::Parallel;
use engine::tensor::TensorDesc;
use kernels::cpu::{Isa, Kernels};

use self::loan::CpuLoan;
use self::lower::Lowered;
use self::machine::Machine;
use self::mem::Storage;
use self::pool::Pool;
use self::region::Region;
use self::trace::Trace;
use self::weights::{CpuBuffer, Kind};

/// The name by which users choose this backend.
pub const NAME: &str = "cpu";

/// Most threads that are started, whatever is asked for.
const MAX_THREADS: usize = 512;

/// How the CPU is used.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CpuOptions {
    /// Number of threads; without it, as many as this process may run at once.
    pub threads: Option<NonZeroUsize>,
    /// Highest instruction set to use; without it, the best of this CPU, or what `TYMPAN_ISA` caps it to.
    pub isa: Option<Isa>,
}

/// All cores of this machine.
pub struct CpuBackend {
    machine: Machine,
    pool: Arc<Pool>,
    trace: Option<Arc<Trace>>,
}

impl CpuBackend {
    /// Starts the threads, one less than are used: whoever calls computes too.
    ///
    /// Errors: `Device` if the system gives no threads or `TYMPAN_ISA` names no instruction set.
    pub fn new(options: &CpuOptions) -> Result<Self> {
        let kernels = match options.isa {
            Some(cap) => Kernels::available().filter(|k| k.isa() <= cap).last(),
            None => {
                let detected = Kernels::detect();
                Some(detected.map_err(|e| Error::Device {
                    backend: NAME.into(),
                    msg: "choosing kernels".into(),
                    source: Some(e.into()),
                })?)
            }
        };
        let kernels = kernels.expect("scalar kernels run everywhere");
        let threads = options.threads.or_else(|| std::thread::available_parallelism().ok());
        let n_workers = threads.map_or(1, NonZeroUsize::get).min(MAX_THREADS);
        Ok(Self { machine: Machine { kernels, n_workers }, pool: Arc::new(Pool::new(n_workers)?), trace: None })
    }

    /// The backend with a clock in every graph that it compiles from now on: two readings per step.
    pub fn traced(mut self) -> Self {
        self.trace = Some(Arc::default());
        self
    }

    /// Times of the last run, if the backend is traced and one has finished.
    pub fn last_run(&self) -> Option<RunTimes> {
        self.trace.as_ref().and_then(|t| t.times())
    }

    /// Number of threads.
    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// The instruction set of the kernels.
    pub fn isa(&self) -> Isa {
        self.machine.kernels.isa()
    }

    fn range(buffer: &Buffer, offset: usize, len: usize) -> Result<Range<usize>> {
        let end = offset.checked_add(len).filter(|&end| end <= buffer.bytes());
        end.map(|end| offset..end).ok_or_else(|| Error::Refused {
            backend: NAME.into(),
            what: format!("{len} bytes at {offset} of a buffer of {}", buffer.bytes()),
        })
    }
}

#[allow(unsafe_code, reason = "copies to and from memory that the pool's turn guards")]
impl Backend for CpuBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn caps(&self) -> Caps {
        Caps { alignment: mem::ALIGNMENT }
    }

    fn prepare(&self, op: &Op, args: &[&TensorDesc]) -> Option<Prepared> {
        let prepared = ops::prepare(self.machine, op, args)?;
        Some(Prepared::new(prepared.needs.bytes(self.machine.n_workers), prepared))
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        Ok(CpuBuffer::wrap(bytes, Storage::zeroed(bytes, "activations")?.in_large_pages(), Kind::Arena, &self.pool))
    }

    fn reserve(&self, bytes: usize) -> Result<Buffer> {
        Ok(CpuBuffer::wrap(bytes, Storage::reserved(bytes, "states")?, Kind::State, &self.pool))
    }

    fn decommit(&self, buf: &Buffer, range: Range<usize>) {
        let (Ok(range), Ok(buffer)) = (Self::range(buf, range.start, range.len()), CpuBuffer::of(buf, &self.pool))
        else {
            return;
        };
        // Memory that cannot be given back now stays: the next owner of the range uses it.
        let _ = self.pool.alone(|| {
            let _writing = buffer.writing()?;
            // SAFETY: whoever reads is inside `alone` too, or has lent the buffer, which `writing` excludes.
            unsafe { buffer.storage.give_back(range) };
            Ok::<_, Error>(())
        });
    }

    fn import_weight(&self, w: &WeightData<'_>) -> Result<Buffer> {
        Ok(CpuBuffer::borrow(w, &self.pool))
    }

    fn write(&self, dst: &Buffer, offset: usize, src: &[u8]) -> Result<()> {
        let (range, buffer) = (Self::range(dst, offset, src.len())?, CpuBuffer::of(dst, &self.pool)?);
        self.pool.alone(|| {
            let _writing = buffer.writing()?;
            // SAFETY: whoever reads is inside `alone` too, or has lent the buffer, which `writing` excludes.
            unsafe { buffer.storage.bytes_mut(range) }.copy_from_slice(src);
            Ok(())
        })
    }

    fn read(&self, src: &Buffer, offset: usize, dst: &mut [u8]) -> Result<()> {
        let (range, buffer) = (Self::range(src, offset, dst.len())?, CpuBuffer::of(src, &self.pool)?);
        self.pool.alone(|| {
            // SAFETY: nobody writes, since who does is inside `alone` or inside a run.
            dst.copy_from_slice(unsafe { buffer.storage.bytes(range) });
        });
        Ok(())
    }

    fn copy(&self, buf: &Buffer, from: Range<usize>, to: usize) -> Result<()> {
        let from = Self::range(buf, from.start, from.len())?;
        let to = Self::range(buf, to, from.len())?;
        if from.start < to.end && to.start < from.end {
            return Err(Error::Refused { backend: NAME.into(), what: "a copy onto itself".into() });
        }
        let buffer = CpuBuffer::of(buf, &self.pool)?;
        self.pool.alone(|| {
            let _writing = buffer.writing()?;
            // SAFETY: whoever reads is inside `alone` too, or has lent the buffer, which `writing` excludes; and the ranges
            // do not overlap.
            let from = unsafe { buffer.storage.bytes(from) };
            // SAFETY: as above.
            unsafe { buffer.storage.bytes_mut(to) }.copy_from_slice(from);
            Ok(())
        })
    }

    fn zero(&self, buf: &Buffer, range: Range<usize>) -> Result<()> {
        let (range, buffer) = (Self::range(buf, range.start, range.len())?, CpuBuffer::of(buf, &self.pool)?);
        self.pool.alone(|| {
            let _writing = buffer.writing()?;
            // SAFETY: whoever reads is inside `alone` too, or has lent the buffer, which `writing` excludes.
            unsafe { buffer.storage.bytes_mut(range) }.fill(0);
            Ok(())
        })
    }

    fn weight_bytes(&self, weight: &Buffer) -> usize {
        CpuBuffer::of(weight, &self.pool).map_or(0, CpuBuffer::derived_bytes)
    }

    fn compile(&self, segment: Segment<'_>, bind: &Bindings<'_>) -> Result<Box<dyn Executable>> {
        let Lowered { steps, nodes, own_bytes, state_traffic } = lower::lower(self.machine, &self.pool, segment, bind)?;
        let region = Arc::new(Region::new(steps, self.pool.n_threads(), self.trace.clone()));
        Ok(Box::new(CpuExecutable {
            region,
            nodes,
            own_bytes,
            state_traffic,
            timed: None,
            arena: CpuLoan::new(CpuBuffer::arena(bind.arena, &self.pool)?),
            pool: Arc::clone(&self.pool),
        }))
    }

    fn parallel(&self) -> &dyn Parallel {
        &*self.pool
    }
}

/// Steps bound to memory, and the threads to run them on.
struct CpuExecutable {
    region: Arc<Region>,
    /// The node of every step that the region was made of.
    nodes: Vec<usize>,
    own_bytes: usize,
    /// Bytes of states that the steps have read and written.
    state_traffic: Arc<AtomicU64>,
    /// The same steps with a clock, once somebody asked for times.
    timed: Option<(Arc<Region>, Arc<Trace>)>,
    /// What the steps write, besides states.
    arena: CpuLoan,
    pool: Arc<Pool>,
}

#[allow(unsafe_code, reason = "writes inputs to memory that the pool's turn guards")]
impl CpuExecutable {
    fn run_region(&self, region: &Arc<Region>, inputs: &[u8]) -> Result<()> {
        let Self { arena, pool, .. } = self;
        let arena = arena.buffer();
        if inputs.len() > arena.storage.len() {
            return Err(mem::outside(0, arena.storage.len()));
        }
        pool.run(region, || {
            let writing = arena.writing()?;
            // SAFETY: steps do not run yet, nothing else happens in this memory, and `writing` says that it is not lent.
            unsafe { arena.storage.bytes_mut(0..inputs.len()) }.copy_from_slice(inputs);
            Ok(writing)
        })
    }
}

impl Executable for CpuExecutable {
    fn run(&mut self, inputs: &[u8]) -> Result<()> {
        self.run_region(&self.region, inputs)
    }

    fn run_timed(&mut self, inputs: &[u8], node_ns: &mut [u64]) -> Result<()> {
        let (timed, trace) = self.timed.take().unwrap_or_else(|| {
            let (region, trace) = self.region.traced();
            (Arc::new(region), trace)
        });
        trace.starts();
        let result = self.run_region(&timed, inputs);
        for (given, ns) in timed.given().zip(trace.step_ns()) {
            node_ns[self.nodes[given]] += ns;
        }
        self.timed = Some((timed, trace));
        result
    }

    fn results(&mut self, bytes: Range<usize>) -> Result<&[u8]> {
        self.arena.bytes(bytes)
    }

    fn end_results(&mut self) {
        self.arena.end();
    }

    fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    fn state_traffic(&self) -> u64 {
        self.state_traffic.load(Ordering::Relaxed)
    }
}
