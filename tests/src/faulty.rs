//! [`Faulty`]: a backend that leaves some ops to others and fails when it is told to.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use engine::backend::{Backend, Bindings, Buffer, Caps, Executable, Prepared, Segment, WeightData};
use engine::op::Op;
use engine::parallel::Parallel;
use engine::tensor::TensorDesc;
use engine::{Error, Result};

/// How a run goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing is computed.
    BeforeRun = 1,
    /// Everything is computed, and an error returned.
    AfterRun = 2,
    /// Everything is computed, then a panic.
    Panic = 3,
    /// No memory is committed.
    Commit = 4,
}

/// Another backend with faults.
pub struct Faulty {
    inner: Arc<dyn Backend>,
    refuses: fn(&Op) -> bool,
    next: Arc<Next>,
    /// Names of the ops that were compiled for this backend.
    compiled: Mutex<Vec<&'static str>>,
}

/// The next fault.
#[derive(Default)]
struct Next {
    fault: AtomicU8,
    /// Runs or commits that succeed before.
    skip: AtomicUsize,
}

impl Next {
    /// Whether this fault is due, which is then over.
    fn takes(&self, fault: Fault) -> bool {
        let skips = |n: usize| n.checked_sub(1);
        self.fault.load(Ordering::SeqCst) == fault as u8
            && self.skip.fetch_update(Ordering::SeqCst, Ordering::SeqCst, skips).is_err()
            && self.fault.compare_exchange(fault as u8, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

impl Faulty {
    /// `inner` without the ops that `refuses` names.
    pub fn new(inner: Arc<dyn Backend>, refuses: fn(&Op) -> bool) -> Arc<Self> {
        Arc::new(Self { inner, refuses, next: Arc::default(), compiled: Mutex::default() })
    }

    /// Lets the next run go wrong.
    pub fn fail(&self, fault: Fault) {
        self.fail_later(fault, 0);
    }

    /// Lets a run or a commit go wrong, after so many that do not.
    pub fn fail_later(&self, fault: Fault, n_before: usize) {
        self.next.skip.store(n_before, Ordering::SeqCst);
        self.next.fault.store(fault as u8, Ordering::SeqCst);
    }

    /// Whether it refuses this op.
    pub fn refuses(&self, op: &Op) -> bool {
        (self.refuses)(op)
    }

    /// Names of the ops that were compiled for this backend, with repetitions.
    pub fn compiled(&self) -> Vec<&'static str> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn error() -> Error {
    Error::Device { backend: "faulty".into(), msg: "told to fail".into(), source: None }
}

impl Backend for Faulty {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn prepare(&self, op: &Op, args: &[&TensorDesc]) -> Option<Prepared> {
        if self.refuses(op) { None } else { self.inner.prepare(op, args) }
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        self.inner.alloc(bytes)
    }

    fn reserve(&self, bytes: usize) -> Result<Buffer> {
        self.inner.reserve(bytes)
    }

    fn commit(&self, buf: &Buffer, range: Range<usize>) -> Result<()> {
        if self.next.takes(Fault::Commit) {
            return Err(error());
        }
        self.inner.commit(buf, range)
    }

    fn decommit(&self, buf: &Buffer, range: Range<usize>) {
        self.inner.decommit(buf, range);
    }

    fn import_weight(&self, w: &WeightData<'_>) -> Result<Buffer> {
        self.inner.import_weight(w)
    }

    fn write(&self, dst: &Buffer, offset: usize, src: &[u8]) -> Result<()> {
        self.inner.write(dst, offset, src)
    }

    fn read(&self, src: &Buffer, offset: usize, dst: &mut [u8]) -> Result<()> {
        self.inner.read(src, offset, dst)
    }

    fn copy(&self, buf: &Buffer, from: Range<usize>, to: usize) -> Result<()> {
        self.inner.copy(buf, from, to)
    }

    fn zero(&self, buf: &Buffer, range: Range<usize>) -> Result<()> {
        self.inner.zero(buf, range)
    }

    fn weight_bytes(&self, weight: &Buffer) -> usize {
        self.inner.weight_bytes(weight)
    }

    fn compile(&self, segment: Segment<'_>, bind: &Bindings<'_>) -> Result<Box<dyn Executable>> {
        let ops = segment.graph().nodes[segment.cut.nodes.clone()].iter().map(|n| n.op.spec().name);
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner).extend(ops);
        let inner = self.inner.compile(segment, bind)?;
        Ok(Box::new(FaultyRun { inner, next: Arc::clone(&self.next) }))
    }

    fn parallel(&self) -> &dyn Parallel {
        self.inner.parallel()
    }
}

struct FaultyRun {
    inner: Box<dyn Executable>,
    next: Arc<Next>,
}

impl Executable for FaultyRun {
    fn run(&mut self, inputs: &[u8]) -> Result<()> {
        if self.next.takes(Fault::BeforeRun) {
            return Err(error());
        }
        self.inner.run(inputs)?;
        assert!(!self.next.takes(Fault::Panic), "told to fail");
        if self.next.takes(Fault::AfterRun) { Err(error()) } else { Ok(()) }
    }

    fn results(&mut self, bytes: Range<usize>) -> Result<&[u8]> {
        self.inner.results(bytes)
    }

    fn end_results(&mut self) {
        self.inner.end_results();
    }

    fn own_bytes(&self) -> usize {
        self.inner.own_bytes()
    }

    fn state_traffic(&self) -> u64 {
        self.inner.state_traffic()
    }
}
