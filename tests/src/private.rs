//! [`Private`]: a device as tests want one. Its memory cannot be reached but through the backend's methods; states have
//! memory only where it was committed, and hold garbage before they are written; results are copied. It also remembers what
//! every compiled segment was bound to.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::backend::{Backend, Bindings, Buffer, Caps, Executable, Prepared, Segment, WeightData};
use engine::graph::Graph;
use engine::op::Op;
use engine::parallel::Parallel;
use engine::tensor::{Input, TensorDesc};
use engine::{Error, Result};

use crate::rng::Rng;

/// What fresh and lost bytes of states hold: no number in any format.
const GARBAGE: u8 = 0xff;

/// Another backend behind a wall.
pub struct Private {
    inner: Arc<dyn Backend>,
    name: String,
    /// Most bytes of a buffer that [`Backend::reserve`] gives.
    most_reserved: usize,
    /// Most nodes that it runs as one.
    most_grouped: usize,
    bound: Arc<Mutex<BTreeMap<usize, Vec<Bound>>>>,
    n_compiled: AtomicUsize,
}

/// Where a segment's memory was when it ran.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bound {
    /// The buffer of the arena.
    pub arena: usize,
    /// The buffers of all states of this backend.
    pub states: Vec<usize>,
    /// Where inputs begin in the arena.
    pub inputs: Vec<(Input, usize)>,
}

/// Memory of the wrapped backend, which nobody else finds behind a buffer.
struct Memory {
    inner: Buffer,
    /// Ranges that have memory, in order and apart; `None` where all of it has.
    committed: Option<Mutex<Vec<Range<usize>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(msg: impl Into<String>) -> Error {
    Error::Refused { backend: "private".into(), what: msg.into() }
}

impl Memory {
    fn of(buffer: &Buffer) -> Result<Arc<Self>> {
        buffer.storage::<Self>().ok_or_else(|| failed("a buffer of another backend"))
    }

    fn check(&self, range: &Range<usize>) -> Result<()> {
        let Some(committed) = &self.committed else { return Ok(()) };
        let has = range.is_empty() || lock(committed).iter().any(|c| c.start <= range.start && range.end <= c.end);
        if has { Ok(()) } else { Err(failed(format!("bytes {range:?} have no memory"))) }
    }
}

impl Private {
    /// `inner` behind a wall.
    pub fn new(inner: Arc<dyn Backend>) -> Arc<Self> {
        Self::limited(inner, usize::MAX)
    }

    /// The same, on a system that reserves at most so many bytes at once.
    pub fn limited(inner: Arc<dyn Backend>, most_reserved: usize) -> Arc<Self> {
        Arc::new(Self::with(inner, most_reserved, 1))
    }

    /// The same, which asks for pieces of up to so many nodes.
    pub fn grouping(inner: Arc<dyn Backend>, most_grouped: usize) -> Arc<Self> {
        Arc::new(Self::with(inner, usize::MAX, most_grouped))
    }

    fn with(inner: Arc<dyn Backend>, most_reserved: usize, most_grouped: usize) -> Self {
        let name = format!("private {}", inner.name());
        Self { inner, name, most_reserved, most_grouped, bound: Arc::default(), n_compiled: AtomicUsize::new(0) }
    }

    /// For every segment that was compiled, in order, the different places that it was bound to in its runs.
    pub fn bound(&self) -> BTreeMap<usize, Vec<Bound>> {
        lock(&self.bound).clone()
    }

    /// Segments that were compiled.
    pub fn n_compiled(&self) -> usize {
        self.n_compiled.load(Ordering::Relaxed)
    }

    fn wrap(inner: Buffer, committed: Option<Mutex<Vec<Range<usize>>>>) -> Buffer {
        Buffer::new(inner.bytes(), Arc::new(Memory { inner, committed }))
    }
}

impl Backend for Private {
    fn name(&self) -> &str {
        &self.name
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn prepare(&self, op: &Op, args: &[&TensorDesc]) -> Option<Prepared> {
        self.inner.prepare(op, args)
    }

    fn groups(&self, _graph: &Graph, nodes: Range<usize>) -> Vec<Range<usize>> {
        let mut rng = Rng::new(nodes.start as u64);
        let mut groups = Vec::new();
        let mut start = nodes.start;
        while start < nodes.end {
            let end = nodes.end.min(start + 1 + rng.below(self.most_grouped));
            groups.push(start..end);
            start = end;
        }
        groups
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        Ok(Self::wrap(self.inner.alloc(bytes)?, None))
    }

    fn reserve(&self, bytes: usize) -> Result<Buffer> {
        if bytes > self.most_reserved {
            return Err(Error::OutOfMemory { what: "states".into(), wanted: bytes, free: Some(self.most_reserved) });
        }
        Ok(Self::wrap(self.inner.reserve(bytes)?, Some(Mutex::default())))
    }

    fn commit(&self, buf: &Buffer, range: Range<usize>) -> Result<()> {
        let memory = Memory::of(buf)?;
        let committed = memory.committed.as_ref().ok_or_else(|| failed("a buffer that was not reserved"))?;
        if range.is_empty() {
            return Ok(());
        }
        self.inner.commit(&memory.inner, range.clone())?;
        let mut committed = lock(committed);
        if committed.iter().any(|c| c.start < range.end && range.start < c.end) {
            return Err(failed(format!("bytes {range:?} have memory already")));
        }
        self.inner.write(&memory.inner, range.start, &vec![GARBAGE; range.len()])?;
        committed.push(range);
        committed.sort_by_key(|c| c.start);
        let joined = committed.drain(..).fold(Vec::<Range<usize>>::new(), |mut all, next| {
            match all.last_mut().filter(|last| last.end == next.start) {
                Some(last) => last.end = next.end,
                None => all.push(next),
            }
            all
        });
        *committed = joined;
        Ok(())
    }

    fn decommit(&self, buf: &Buffer, range: Range<usize>) {
        let memory = Memory::of(buf).expect("buffers go back to who made them");
        let mut committed = lock(memory.committed.as_ref().expect("a reserved buffer"));
        let mut kept = Vec::new();
        for c in committed.drain(..) {
            let lost = c.start.max(range.start)..c.end.min(range.end);
            if lost.is_empty() {
                kept.push(c);
                continue;
            }
            self.inner.write(&memory.inner, lost.start, &vec![GARBAGE; lost.len()]).expect("it has memory");
            kept.extend([c.start..lost.start, lost.end..c.end].into_iter().filter(|rest| !rest.is_empty()));
        }
        *committed = kept;
        drop(committed);
        self.inner.decommit(&memory.inner, range);
    }

    fn import_weight(&self, w: &WeightData<'_>) -> Result<Buffer> {
        Ok(Self::wrap(self.inner.import_weight(w)?, None))
    }

    fn write(&self, dst: &Buffer, offset: usize, src: &[u8]) -> Result<()> {
        let memory = Memory::of(dst)?;
        memory.check(&(offset..offset + src.len()))?;
        self.inner.write(&memory.inner, offset, src)
    }

    fn read(&self, src: &Buffer, offset: usize, dst: &mut [u8]) -> Result<()> {
        let memory = Memory::of(src)?;
        memory.check(&(offset..offset + dst.len()))?;
        self.inner.read(&memory.inner, offset, dst)
    }

    fn copy(&self, buf: &Buffer, from: Range<usize>, to: usize) -> Result<()> {
        let memory = Memory::of(buf)?;
        memory.check(&from)?;
        memory.check(&(to..to + from.len()))?;
        self.inner.copy(&memory.inner, from, to)
    }

    fn zero(&self, buf: &Buffer, range: Range<usize>) -> Result<()> {
        let memory = Memory::of(buf)?;
        memory.check(&range)?;
        self.inner.zero(&memory.inner, range)
    }

    fn weight_bytes(&self, weight: &Buffer) -> usize {
        Memory::of(weight).map_or(0, |memory| self.inner.weight_bytes(&memory.inner))
    }

    fn compile(&self, segment: Segment<'_>, bind: &Bindings<'_>) -> Result<Box<dyn Executable>> {
        let inside = |buffer: &Option<Buffer>| buffer.as_ref().map(|b| Ok(Memory::of(b)?.inner.clone())).transpose();
        let weights: Vec<Option<Buffer>> = bind.weights.iter().map(inside).collect::<Result<_>>()?;
        // States of layers that are elsewhere stay what they are: whoever touched one would be refused.
        let own = |buffer: &Buffer| Memory::of(buffer).map_or_else(|_| buffer.clone(), |memory| memory.inner.clone());
        let states: Vec<Buffer> = bind.states.iter().map(own).collect();
        let arena = Memory::of(bind.arena)?;
        let (graph, plan) = (segment.graph(), segment.plan()?);
        let inputs = graph.inputs().into_iter().map(|(input, id)| (input, plan.offset(id))).collect();
        let n_results = graph.outputs.iter().map(|&id| graph.tensor(id).bytes()).max();
        let bindings = Bindings { arena: &arena.inner, weights: &weights, states: &states };
        let inner = self.inner.compile(segment, &bindings)?;
        Ok(Box::new(Run {
            inner,
            number: self.n_compiled.fetch_add(1, Ordering::Relaxed),
            arena,
            states: bind.states.iter().filter_map(|b| Memory::of(b).ok()).collect(),
            inputs,
            bound: Arc::clone(&self.bound),
            results: Vec::with_capacity(n_results.unwrap_or(0).div_ceil(size_of::<u32>())),
        }))
    }

    fn parallel(&self) -> &dyn Parallel {
        self.inner.parallel()
    }
}

struct Run {
    inner: Box<dyn Executable>,
    number: usize,
    arena: Arc<Memory>,
    states: Vec<Arc<Memory>>,
    inputs: Vec<(Input, usize)>,
    bound: Arc<Mutex<BTreeMap<usize, Vec<Bound>>>>,
    /// Made once.
    results: Vec<u32>,
}

impl Run {
    /// Remembers where the memory is now.
    fn remember(&self) {
        let address = |memory: &Arc<Memory>| Arc::as_ptr(memory) as usize;
        let states = self.states.iter().map(address).collect();
        let now = Bound { arena: address(&self.arena), states, inputs: self.inputs.clone() };
        let mut bound = lock(&self.bound);
        let seen = bound.entry(self.number).or_default();
        if !seen.contains(&now) {
            seen.push(now);
        }
    }
}

impl Executable for Run {
    fn run(&mut self, inputs: &[u8]) -> Result<()> {
        self.remember();
        self.inner.run(inputs)
    }

    fn results(&mut self, bytes: Range<usize>) -> Result<&[u8]> {
        let found = self.inner.results(bytes)?;
        let n_words = found.len().div_ceil(size_of::<u32>());
        if n_words > self.results.capacity() {
            return Err(failed("results that no output has"));
        }
        self.results.resize(n_words, 0);
        let results = &mut bytemuck::cast_slice_mut(&mut self.results)[..found.len()];
        results.copy_from_slice(found);
        self.inner.end_results();
        Ok(results)
    }

    fn own_bytes(&self) -> usize {
        self.inner.own_bytes()
    }

    fn state_traffic(&self) -> u64 {
        self.inner.state_traffic()
    }
}
