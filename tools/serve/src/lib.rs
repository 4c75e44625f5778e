//! The server of tympan: one model, many clients, over HTTP. [`Server`] is where to start.
//!
//! `work` is what is computed, on one thread that owns the session; `api` what endpoints take and answer; `http` who may ask,
//! and how bytes come and go. Knows no command line.

#![warn(unreachable_pub)]

mod allocator;
mod api;
mod figures;
mod http;
mod mailbox;
mod model;
mod options;
mod page;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use engine::DType;
use engine::backend::Backend;
use engine::session::{MAX_PENDING, Reuse, Session, SessionOptions};
use engine::state::{Role, StateOptions, StateSpec};
use models::Loaded;
use models::draft::Drafters;
use models::scheduler::{Rollback, Scheduler};
use tokio::sync::Semaphore;

use api::error::ApiError;
use figures::Figures;
use http::body::Held;
use mailbox::{Reader, mailbox};
use model::Served;
use work::{Clock, Core, CoreOptions, EngineThread, Inbox, Job, Refusal, Reply, Work};

pub use allocator::keep_large_blocks_apart;
pub use http::listen::Stopped;
pub use http::log::Log;
pub use options::Options;

/// Bytes of ended sequences that the next ones take over.
const SPARE_BYTES: usize = 64 << 20;

/// What requests share.
pub(crate) struct App {
    options: Options,
    model: Served,
    inbox: Arc<Inbox>,
    figures: Arc<Figures>,
    clock: Clock,
    log: Log,
    held: Arc<Held>,
    /// So many recordings are decoded at once.
    decoding: Semaphore,
    /// A sequence as bytes may be as large as all states of a slot: one at a time is saved or restored.
    saving: Semaphore,
    /// New requests are refused: the server is about to end.
    is_draining: AtomicBool,
    /// Requests whose answer has not gone.
    open_requests: AtomicUsize,
    n_ids: AtomicU64,
    /// States of a sequence as long as the context.
    state_bytes: usize,
}

impl App {
    /// A number that was not given before.
    fn next_id(&self) -> u64 {
        self.n_ids.fetch_add(1, Ordering::SeqCst)
    }

    /// Whether the queue has room for `n` more jobs.
    ///
    /// Errors: as [`Self::submit`].
    fn has_room(&self, n: usize) -> Result<(), ApiError> {
        self.inbox.has_room(n).map_err(|refusal| self.refused(refusal))
    }

    /// Queues jobs that belong together. Returns where their answers come.
    ///
    /// Errors: 429 where the queue is full, 503 where the server is about to end.
    fn submit(&self, works: Vec<Work>, arrived: Duration) -> Result<Vec<Reader<Reply>>, ApiError> {
        let deadline = arrived + self.options.timeout;
        let (jobs, readers) = works
            .into_iter()
            .map(|work| {
                let (reply, reader) = mailbox();
                (Job { id: self.next_id(), work, reply, arrived, deadline }, reader)
            })
            .unzip();
        self.inbox.submit(jobs).map_err(|refusal| self.refused(refusal))?;
        Ok(readers)
    }

    /// As [`Self::submit`], for one.
    ///
    /// Errors: as there.
    fn submit_one(&self, work: Work, arrived: Duration) -> Result<Reader<Reply>, ApiError> {
        let readers = self.submit(vec![work], arrived)?;
        readers.into_iter().next().ok_or_else(|| ApiError::server("a request without an answer"))
    }

    fn refused(&self, refusal: Refusal) -> ApiError {
        match refusal {
            Refusal::Full => {
                let n = self.inbox.capacity();
                ApiError::busy(format!("{n} requests are worked on or wait already"))
            }
            Refusal::Closed if self.inbox.is_dead() => ApiError::unavailable("the engine has stopped"),
            Refusal::Closed => ApiError::unavailable("the server is about to end"),
        }
    }
}

/// What a server computes on.
#[derive(Clone)]
pub struct Computing {
    /// Backends in order of preference.
    pub backends: Vec<Arc<dyn Backend>>,
    /// Type of the attention cache: F16 or F32.
    pub kv_dtype: DType,
    /// Whether compiled graphs are used again.
    pub reuse: Reuse,
    /// What guesses the next tokens of every answer, where there are to be drafts.
    pub drafters: Option<Drafters>,
    /// How wrong guesses are taken back from recurrent states.
    pub rollback: Rollback,
}

impl Computing {
    /// Tokens that are taken back from recurrent states at most.
    fn n_pending(&self) -> usize {
        let largest = self.drafters.as_ref().map_or(0, |drafters| drafters.parameters().largest().min(MAX_PENDING));
        self.rollback.n_pending(largest)
    }

    /// Whether states are copied before a guess is verified, or there are two of each.
    fn copies_states(&self) -> bool {
        self.drafters.is_some() && self.rollback != Rollback::Ring
    }
}

/// What a server needs of memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// The model's files.
    pub weights: usize,
    /// Those of the draft model.
    pub draft_weights: usize,
    /// States of one sequence as long as the context, those of the draft model among them.
    pub states: usize,
    /// Of these, what is kept to take drafts back from recurrent states.
    pub rings: usize,
    /// States that free slots keep.
    pub spare: usize,
    /// Checkpoints of prompts.
    pub checkpoints: usize,
    /// Bodies and decoded audio of all requests together.
    pub held: usize,
    /// The encoder's vectors of clips that came before; none of a model that does not hear.
    pub audio_cache: usize,
}

impl Memory {
    /// What a server with these options will need of this model.
    ///
    /// Errors: a context that no memory has.
    pub fn of(loaded: &Loaded, computing: &Computing, options: &Options) -> models::Result<Self> {
        let (n_ctx, kv_dtype, n_pending) = (options.n_ctx, computing.kv_dtype, computing.n_pending());
        // The second rows of states count as copies.
        let sizes = StateOptions { n_slots: 1, n_ctx, kv_dtype, n_pending, two_rows: false };
        let layout = loaded.model.states().layout(&sizes)?;
        let specs = || layout.specs().iter();
        let drafters = computing.drafters.as_ref();
        let of_drafts = drafters.map_or(0, |drafters| drafters.state_bytes(n_ctx));
        let folded: usize = specs().filter(|spec| spec.role.is_folded()).map(StateSpec::bytes).sum();
        let n_checkpoints =
            if options.keeps_prompts { options.checkpoints.n.saturating_mul(options.n_slots) } else { 0 };
        let rings: usize = specs().filter(|spec| spec.role == Role::Pending).map(|spec| spec.used_bytes(n_ctx)).sum();
        let copies = if computing.copies_states() { folded } else { 0 };
        let states: usize = specs().map(|spec| spec.used_bytes(n_ctx)).sum();
        Ok(Self {
            weights: loaded.files.iter().map(engine::gguf::Gguf::file_bytes).sum(),
            draft_weights: drafters.map_or(0, Drafters::weights_bytes),
            states: states.saturating_add(copies).saturating_add(of_drafts),
            rings: rings + copies,
            spare: SPARE_BYTES,
            checkpoints: folded.saturating_mul(n_checkpoints).min(options.checkpoints.bytes),
            held: options.max_held_bytes,
            audio_cache: loaded.model.encoder().map_or(0, |_| options.audio_cache_bytes),
        })
    }

    /// All of it, without states.
    pub fn fixed(&self) -> usize {
        let all = [self.weights, self.draft_weights, self.spare, self.checkpoints, self.held, self.audio_cache];
        all.into_iter().fold(0, usize::saturating_add)
    }
}

/// A model that answers requests.
pub struct Server {
    app: Arc<App>,
    engine: EngineThread,
}

impl Server {
    /// Opens a session and starts the thread that owns it.
    ///
    /// Errors: a vocabulary that is refused, no memory, no thread.
    pub fn open(loaded: &Loaded, computing: &Computing, options: Options, log: Log) -> models::Result<Self> {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let model = Served::open(loaded, options.alias.clone(), options.n_ctx, created)?;
        let session_options = SessionOptions {
            n_slots: options.n_slots,
            n_ctx: options.n_ctx,
            kv_dtype: computing.kv_dtype,
            n_pending: computing.n_pending(),
            two_rows: computing.copies_states() && computing.rollback.two_rows(),
            spare_bytes: SPARE_BYTES,
            reuse: computing.reuse,
            timed: true,
            ..SessionOptions::default()
        };
        let session = Session::open(Arc::clone(&loaded.model), &loaded.weights, &computing.backends, session_options)?;
        let state_bytes = session.memory().specs().iter().map(|spec| spec.used_bytes(options.n_ctx)).sum();
        let start = Instant::now();
        let clock: Clock = Arc::new(move || start.elapsed());
        let figures = Arc::new(Figures::default());
        let core_options = CoreOptions {
            n_slots: options.n_slots,
            stall: options.stall,
            timeout: options.timeout,
            state_bytes: options.max_state_bytes,
            audio_cache_bytes: options.audio_cache_bytes,
            checkpoints: options.checkpoints,
            similarity: options.slot_similarity,
        };
        let mut scheduler = Scheduler::new(session);
        scheduler.set_rollback(computing.rollback);
        let core = Core::new(scheduler, core_options, Arc::clone(&clock), Arc::clone(&figures))
            .with_drafters(computing.drafters.clone());
        let inbox = Arc::new(Inbox::new(options.n_slots + options.max_queue));
        let engine = EngineThread::start(core, Arc::clone(&inbox)).map_err(|source| {
            let msg = "the engine's thread".to_owned();
            engine::Error::Device { backend: "serve".into(), msg, source: Some(source.into()) }
        })?;
        let app = Arc::new(App {
            model,
            inbox,
            figures,
            clock,
            log,
            held: Held::new(options.max_held_bytes),
            decoding: Semaphore::new(options.threads_http),
            saving: Semaphore::new(1),
            is_draining: AtomicBool::new(false),
            open_requests: AtomicUsize::new(0),
            n_ids: AtomicU64::new(0),
            state_bytes,
            options,
        });
        Ok(Self { app, engine })
    }

    /// The endpoints, to be asked without a network.
    pub fn router(&self) -> Router {
        http::router::router(&self.app)
    }

    /// Answers connections until `is_stopped`, and then what was asked by then.
    ///
    /// Errors: the system gives no threads.
    pub fn serve(
        self,
        listener: std::net::TcpListener,
        is_stopped: &(dyn Fn() -> bool + Send + Sync),
    ) -> std::io::Result<Stopped> {
        let Self { app, engine } = self;
        http::listen::serve(&app, engine, listener, is_stopped)
    }

    /// Ends it: what is being answered gets an error. Whether the engine thread was in order.
    pub fn close(self) -> bool {
        self.app.inbox.abort();
        self.engine.join()
    }
}

/// Every endpoint with its method and what is said of it: nothing where it is another name of one, or is not built.
pub fn endpoints() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    http::router::ENDPOINTS.iter().map(|&(method, path, _, what)| (method, path, what))
}
