//! [`Region`]: a list of steps that all threads walk together.
//!
//! Threads meet once per run, not once per step: each reads the cursor, claims the chunks it shows and runs them; whoever
//! finishes a step's last chunk moves the cursor to the next step. A late thread joins where the others are, and nobody
//! waits for a thread that holds no chunk, at the end of a run neither: a thread may still be on its way out, or on its way
//! in, when the next run of the same region starts, and then takes part in that. What a chunk is belongs to the step, so
//! results do not depend on the number of threads.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::team::Team;
use super::trace::Trace;

/// Pauses before a waiting thread yields: about 2 us.
const SPINS: u32 = 40;

/// Most chunks that a thread claims at once. Chunks that follow each other often read what lies behind each other, and the
/// first reads of a new place are slow; with too many, the others may have to wait for a thread that lost its core.
const MAX_CLAIM: u32 = 8;

/// A thread's part in a run. Numbers count from 0; each belongs to one thread, 0 to the one that runs the region.
pub(super) struct Worker(usize);

impl Worker {
    /// The part of the thread with this number.
    pub(super) fn new(index: usize) -> Self {
        Self(index)
    }

    /// The number.
    pub(super) fn index(&self) -> usize {
        self.0
    }
}

/// A piece of a compiled graph that runs between two moments at which all threads agree.
pub(super) trait Step: Send + Sync {
    /// Number of chunks, which can run at the same time and in any order.
    fn chunks(&self) -> usize;

    /// Runs one chunk. Allocates nothing.
    fn run(&self, chunk: usize, worker: &mut Worker);
}

/// Part number `chunk` of `0..n` cut into pieces of `size`.
pub(super) fn piece(chunk: usize, size: usize, n: usize) -> Range<usize> {
    chunk * size..n.min((chunk + 1) * size)
}

struct Entry {
    step: Box<dyn Step>,
    chunks: u32,
    /// Number of the step among those that the region was made of.
    given: u32,
}

/// Steps in order, and how far a run is.
pub(super) struct Region {
    /// Shared with [`Region::traced`].
    steps: Arc<[Entry]>,
    n_threads: u32,
    /// Step in the upper half, next unclaimed chunk in the lower.
    cursor: AtomicU64,
    /// Finished chunks of the cursor's step.
    finished: AtomicU32,
    /// Helpers that may hold a chunk.
    n_helping: AtomicU32,
    has_panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    trace: Option<Arc<Trace>>,
}

/// A cursor behind every step.
const END: u64 = pack(u32::MAX, 0);

const fn pack(step: u32, chunk: u32) -> u64 {
    (step as u64) << 32 | chunk as u64
}

const fn unpack(cursor: u64) -> (u32, u32) {
    ((cursor >> 32) as u32, cursor as u32)
}

impl Region {
    /// The steps that have chunks, in this order, for up to `n_threads` threads. Panics on a step with 2^32 chunks.
    pub(super) fn new(steps: Vec<Box<dyn Step>>, n_threads: usize, trace: Option<Arc<Trace>>) -> Self {
        let entry = |(given, step): (u32, Box<dyn Step>)| {
            let chunks = u32::try_from(step.chunks()).expect("chunks are larger than a byte");
            (chunks > 0).then_some(Entry { step, chunks, given })
        };
        let steps = (0..).zip(steps).filter_map(entry).collect();
        Self::of(steps, u32::try_from(n_threads).unwrap_or(u32::MAX).max(1), trace)
    }

    fn of(steps: Arc<[Entry]>, n_threads: u32, trace: Option<Arc<Trace>>) -> Self {
        Self {
            steps,
            n_threads,
            cursor: AtomicU64::new(END),
            finished: AtomicU32::new(0),
            n_helping: AtomicU32::new(0),
            has_panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
            trace,
        }
    }

    /// The same steps with a clock. Only one of the two may run at a time.
    pub(super) fn traced(&self) -> (Self, Arc<Trace>) {
        let trace = Arc::new(Trace::new(self.steps.len()));
        (Self::of(Arc::clone(&self.steps), self.n_threads, Some(Arc::clone(&trace))), trace)
    }

    /// For every step that runs, its number among those that the region was made of.
    pub(super) fn given(&self) -> impl Iterator<Item = usize> {
        self.steps.iter().map(|entry| entry.given as usize)
    }

    /// Begins a run: from now on whoever walks takes part. To be called when no run is going on.
    pub(super) fn start(&self) {
        self.finished.store(0, Ordering::Relaxed);
        self.cursor.store(pack(0, 0), Ordering::Release);
    }

    /// Ends a run after the caller's walk. A panic in a step is raised again here.
    pub(super) fn finish(&self) {
        if self.has_panicked.load(Ordering::Acquire) {
            self.raise();
        }
    }

    #[cold]
    fn raise(&self) {
        // The cursor went to the end while others may have held chunks.
        let mut spins = 0;
        while self.n_helping.load(Ordering::Acquire) > 0 {
            pause(&mut spins);
        }
        self.has_panicked.store(false, Ordering::Relaxed);
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Takes part in the run that is going on, if there is one.
    pub(super) fn help(&self, worker: &mut Worker) {
        self.n_helping.fetch_add(1, Ordering::AcqRel);
        self.walk(worker);
        self.n_helping.fetch_sub(1, Ordering::AcqRel);
    }

    /// Claims chunks until there are none. When the caller's walk ends without a panic, every chunk is finished.
    pub(super) fn walk(&self, worker: &mut Worker) {
        // What a panicking step leaves half done is in the arena, which the next run overwrites.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.claim_chunks(worker))) {
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            self.has_panicked.store(true, Ordering::Release);
            // The panicking chunk is never finished, so nobody else moves the cursor.
            self.cursor.store(END, Ordering::Release);
        }
    }

    fn claim_chunks(&self, worker: &mut Worker) {
        let mut spins = 0;
        loop {
            let cursor = self.cursor.load(Ordering::Acquire);
            let (i_step, chunk) = unpack(cursor);
            let Some(Entry { step, chunks, .. }) = self.steps.get(i_step as usize) else { return };
            if chunk >= *chunks {
                pause(&mut spins);
                continue;
            }
            let n = ((chunks - chunk) / (2 * self.n_threads)).clamp(1, MAX_CLAIM);
            // The cursor only grows in a run, so nothing can have happened in between if it still shows the same; or a run
            // has ended and another begun, and then the chunk is that one's.
            let next = cursor + u64::from(n);
            if self.cursor.compare_exchange_weak(cursor, next, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            spins = 0;
            if let (0, Some(trace)) = (chunk, &self.trace) {
                trace.begins(i_step);
            }
            for chunk in chunk..chunk + n {
                step.run(chunk as usize, worker);
            }
            // Acquire and release make every chunk's writes visible to whoever reads the moved cursor.
            if self.finished.fetch_add(n, Ordering::AcqRel) + n == *chunks {
                if let Some(trace) = &self.trace {
                    trace.ends(i_step);
                }
                self.finished.store(0, Ordering::Relaxed);
                self.cursor.store(pack(i_step + 1, 0), Ordering::Release);
            }
        }
    }
}

/// Calls `task` once with every number below `n` on `n_threads` threads of a team, and returns when all calls have ended. A
/// panic in one ends them early and is raised again here. Panics from 2^32 on.
#[allow(unsafe_code, reason = "a borrowed closure in a step, which owns what it uses")]
pub(super) fn for_each(team: &Team, n_threads: usize, n: usize, task: &(dyn Fn(usize) + Sync)) {
    struct Tasks {
        n: usize,
        /// Where the reference to the closure is: its lifetime has no place in a step.
        task: *const (),
    }
    // SAFETY: the closure may be called from any thread, and from several.
    unsafe impl Send for Tasks {}
    // SAFETY: as above.
    unsafe impl Sync for Tasks {}

    impl Step for Tasks {
        fn chunks(&self) -> usize {
            self.n
        }

        fn run(&self, chunk: usize, _worker: &mut Worker) {
            // SAFETY: chunks run between the beginning and the end of a run alone, and the one run of this step lies inside
            // `for_each`, where the reference is.
            let task = unsafe { *self.task.cast::<&(dyn Fn(usize) + Sync)>() };
            task(chunk);
        }
    }

    let tasks = Tasks { n, task: std::ptr::from_ref(&task).cast() };
    team.run(&Arc::new(Region::new(vec![Box::new(tasks)], n_threads, None)));
}

/// Waits a little, and lets other threads of the machine run when it was long.
pub(super) fn pause(spins: &mut u32) {
    if *spins < SPINS {
        *spins += 1;
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    /// Counts runs of every chunk and checks that all chunks of the step before are done.
    struct Counting {
        counts: Arc<Vec<Vec<AtomicUsize>>>,
        i_step: usize,
        round: Arc<AtomicUsize>,
    }

    impl Step for Counting {
        fn chunks(&self) -> usize {
            self.counts[self.i_step].len()
        }

        fn run(&self, chunk: usize, _worker: &mut Worker) {
            let round = self.round.load(Ordering::Relaxed);
            if let Some(before) = self.i_step.checked_sub(1) {
                for count in &self.counts[before] {
                    assert_eq!(count.load(Ordering::Relaxed), round);
                }
            }
            assert_eq!(self.counts[self.i_step][chunk].fetch_add(1, Ordering::Relaxed), round - 1);
        }
    }

    #[test]
    fn every_chunk_runs_once_and_after_the_step_before() {
        for n_threads in [1, 2, 3, 8] {
            let sizes = (0..200).map(|i| i * 37 % 101);
            let counts: Vec<Vec<AtomicUsize>> = sizes.map(|n| (0..n).map(|_| AtomicUsize::new(0)).collect()).collect();
            let (counts, round) = (Arc::new(counts), Arc::new(AtomicUsize::new(0)));
            let steps = (0..counts.len()).map(|i_step| {
                let (counts, round) = (Arc::clone(&counts), Arc::clone(&round));
                Box::new(Counting { counts, i_step, round }) as Box<dyn Step>
            });
            let region = Arc::new(Region::new(steps.collect(), n_threads, None));
            let team = Team::new(n_threads - 1).unwrap();
            for i in 1..=100 {
                round.store(i, Ordering::Relaxed);
                team.run(&region);
            }
            assert!(counts.iter().flatten().all(|c| c.load(Ordering::Relaxed) == 100));
        }
    }

    struct Numbers(Arc<Mutex<Vec<bool>>>);

    impl Step for Numbers {
        fn chunks(&self) -> usize {
            64
        }

        fn run(&self, _chunk: usize, worker: &mut Worker) {
            let was_taken = std::mem::replace(&mut self.0.lock().unwrap()[worker.index()], true);
            assert!(!was_taken);
            std::thread::yield_now();
            self.0.lock().unwrap()[worker.index()] = false;
        }
    }

    #[test]
    fn a_worker_number_is_held_by_one_thread_at_a_time() {
        for n_threads in [1, 2, 3, 8] {
            let taken = Arc::new(Mutex::new(vec![false; n_threads]));
            let region = Arc::new(Region::new(vec![Box::new(Numbers(taken))], n_threads, None));
            Team::new(n_threads - 1).unwrap().run(&region);
        }
    }

    struct Failing(Arc<AtomicUsize>);

    impl Step for Failing {
        fn chunks(&self) -> usize {
            100
        }

        fn run(&self, chunk: usize, _worker: &mut Worker) {
            assert!(chunk != 50 || self.0.load(Ordering::Relaxed) > 0, "chunk fifty");
        }
    }

    #[test]
    fn a_panic_ends_the_run_and_is_raised_again() {
        for n_threads in [1, 2, 3, 8] {
            let (healthy, after) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let counting =
                Counting { counts: Arc::new(vec![vec![AtomicUsize::new(0)]]), i_step: 0, round: Arc::clone(&after) };
            let counts = Arc::clone(&counting.counts);
            let steps: Vec<Box<dyn Step>> = vec![Box::new(Failing(Arc::clone(&healthy))), Box::new(counting)];
            let region = Arc::new(Region::new(steps, n_threads, None));
            let team = Team::new(n_threads - 1).unwrap();
            let panic = catch_unwind(AssertUnwindSafe(|| team.run(&region))).unwrap_err();
            assert_eq!(*panic.downcast::<&str>().unwrap(), "chunk fifty");
            assert_eq!(counts[0][0].load(Ordering::Relaxed), 0);
            healthy.store(1, Ordering::Relaxed);
            after.store(1, Ordering::Relaxed);
            team.run(&region);
            assert_eq!(counts[0][0].load(Ordering::Relaxed), 1);
        }
    }

    /// Runs of one chunk follow each other faster than helpers come and go: whoever has the chunk, it runs once.
    #[test]
    fn helpers_may_come_and_go_between_runs() {
        for n_threads in [2, 3, 8] {
            let counts: Vec<Vec<AtomicUsize>> = (0..3).map(|_| vec![AtomicUsize::new(0)]).collect();
            let (counts, round) = (Arc::new(counts), Arc::new(AtomicUsize::new(0)));
            let steps = (0..3).map(|i_step| {
                let (counts, round) = (Arc::clone(&counts), Arc::clone(&round));
                Box::new(Counting { counts, i_step, round }) as Box<dyn Step>
            });
            let region = Arc::new(Region::new(steps.collect(), n_threads, None));
            let team = Team::new(n_threads - 1).unwrap();
            for i in 1..=20_000 {
                round.store(i, Ordering::Relaxed);
                team.run(&region);
                assert!(counts.iter().all(|c| c[0].load(Ordering::Relaxed) == i));
            }
        }
    }
}
