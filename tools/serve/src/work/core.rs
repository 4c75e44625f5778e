//! [`Core`]: the jobs of all clients on one scheduler. It does one thing at a time, a call of the decoder or a slice of the
//! encoder, and looks for what clients want in between. It knows no threads and no sockets, and no clock but the one it is
//! given.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use models::decoding::{Decoding, Event};
use models::draft::{Drafters, Statistics};
use models::scheduler::{CheckpointLimits, Scheduler, Seat, SequenceId};

use super::text::chosen;
use super::{Answer, AudioCache, Clock, Job, Reply, SpeechWork, TextWork, Work};
use crate::api::error::ApiError;
use crate::figures::{Begun, Figures, SlotView, WorkView};
use crate::mailbox::Mailbox;

/// A call in which sequences decode takes about so long at most, whatever prompts are fed beside them.
const MOST_STEP_S: f64 = 0.4;
/// Tokens of prompts that go into a call however long that takes.
const LEAST_PIECE: usize = 16;

/// The same before it is known how long prompts take.
const FIRST_PIECE: usize = 64;

/// What bounds jobs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoreOptions {
    /// Jobs that are worked on at once, each with a slot.
    pub n_slots: usize,
    /// A client that reads nothing for so long is gone.
    pub stall: Duration,
    /// Seconds after which a job is late, for its message.
    pub timeout: Duration,
    /// Bytes that the states of all sequences may have together, where that is bounded.
    pub state_bytes: Option<usize>,
    /// Bytes of the vectors of clips that are kept.
    pub audio_cache_bytes: usize,
    /// Bounds of checkpoints of prompts.
    pub checkpoints: CheckpointLimits,
    /// The part of a prompt that a slot must have for it to go there, and not where the slot was used least recently.
    pub similarity: f32,
}

/// A job that was taken.
pub(super) struct Task {
    id: u64,
    pub(super) reply: Mailbox<Reply>,
    arrived: Duration,
    deadline: Duration,
    pub(super) work: Work,
    /// Its sequence, while there is one.
    sequence: Option<SequenceId>,
    /// The slot that is its own while it runs.
    pub(super) i_slot: usize,
    /// Tokens of its sequence's prompt that are not in memory.
    prompt_left: usize,
    /// Bytes of states that are promised to it.
    pub(super) promised: usize,
    /// What came of its drafts, where it had any, and of those of the sequence at hand.
    drafts: Option<Statistics>,
    of_sequence: Statistics,
    pub(super) end: Option<End>,
}

/// How a job ended.
pub(super) enum End {
    Done,
    Failed(ApiError),
    /// Nobody waits for an answer, or it has been given.
    Gone,
}

/// The jobs, and the session that computes them.
pub(crate) struct Core {
    pub(super) scheduler: Scheduler,
    pub(super) waiting: VecDeque<Task>,
    pub(super) running: Vec<Task>,
    audio_cache: AudioCache,
    pub(super) options: CoreOptions,
    clock: Clock,
    pub(super) figures: Arc<Figures>,
    /// What guesses the next tokens of every sequence.
    pub(super) drafters: Option<Drafters>,
    /// How the last prompt of every slot began, where it was one of text.
    begun: Vec<Option<Begun>>,
    /// Whether the encoder is next where both have something to do.
    encoder_is_next: bool,
    /// Jobs that ended since this was asked for.
    n_ended: usize,
}

impl Core {
    /// Without jobs. All slots of the scheduler's session are its own.
    pub(crate) fn new(mut scheduler: Scheduler, options: CoreOptions, clock: Clock, figures: Arc<Figures>) -> Self {
        scheduler.set_prompt_piece(FIRST_PIECE);
        scheduler.set_checkpoint_limits(options.checkpoints);
        figures.lock().slots = vec![SlotView::default(); options.n_slots];
        Self {
            scheduler,
            waiting: VecDeque::new(),
            running: Vec::new(),
            audio_cache: AudioCache::new(options.audio_cache_bytes),
            options,
            clock,
            figures,
            drafters: None,
            begun: vec![None; options.n_slots],
            encoder_is_next: true,
            n_ended: 0,
        }
    }

    /// The same with drafters for every sequence, which change how long an answer takes and nothing else.
    pub(crate) fn with_drafters(mut self, drafters: Option<Drafters>) -> Self {
        self.drafters = drafters;
        self
    }

    /// Takes a job, which waits for a slot.
    pub(crate) fn take(&mut self, job: Job) {
        let Job { id, work, reply, arrived, deadline } = job;
        self.waiting.push_back(Task {
            id,
            reply,
            arrived,
            deadline,
            work,
            sequence: None,
            i_slot: 0,
            prompt_left: 0,
            promised: 0,
            drafts: None,
            of_sequence: Statistics::default(),
            end: None,
        });
    }

    /// Whether there are no jobs.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Number of jobs that have ended since this was asked for last.
    pub(crate) fn take_ended(&mut self) -> usize {
        std::mem::take(&mut self.n_ended)
    }

    /// Ends all jobs with an error.
    pub(crate) fn abort(&mut self) {
        let error = || End::Failed(ApiError::unavailable("the server ends, and the answer was not finished in time"));
        self.waiting.iter_mut().chain(&mut self.running).for_each(|task| task.end = Some(error()));
    }

    /// Does the next thing, if there is one: a call of the decoder, or a slice of the encoder.
    pub(crate) fn step(&mut self) -> bool {
        let now = (self.clock)();
        self.look_at_clients(now);
        self.sweep(now);
        self.admit(now);
        self.publish();
        let encodes = self.running.iter().any(|task| task.needs_encoder());
        let decodes = self.scheduler.n_running() > 0;
        let is_busy = encodes || decodes;
        if encodes && (self.encoder_is_next || !decodes) {
            self.encode();
        } else if decodes {
            self.decode();
        }
        self.encoder_is_next = !self.encoder_is_next;
        let now = (self.clock)();
        self.sweep(now);
        self.publish();
        is_busy
    }

    /// Ends the jobs of clients that went, do not read, or waited too long.
    fn look_at_clients(&mut self, now: Duration) {
        for task in self.waiting.iter_mut().chain(&mut self.running).filter(|task| task.end.is_none()) {
            let has_stalled =
                task.reply.unread_since().is_some_and(|since| now.saturating_sub(since) >= self.options.stall);
            if task.reply.is_gone() || has_stalled {
                task.end = Some(End::Gone);
            } else if now >= task.deadline {
                task.end = Some(End::Failed(ApiError::late(self.options.timeout.as_secs())));
            }
        }
    }

    /// Bytes of states of a sequence of so many tokens.
    pub(super) fn state_bytes(&self, n_tokens: usize) -> usize {
        let specs = self.scheduler.session().memory().specs().iter();
        let of_drafters = |drafters: &Drafters| drafters.state_bytes(n_tokens) + self.scheduler.copied_bytes();
        let of_drafts = self.drafters.as_ref().map_or(0, of_drafters);
        specs.map(|spec| spec.used_bytes(n_tokens)).sum::<usize>() + of_drafts
    }

    /// Encodes a slice of the first clip that needs it; the others come before it is their turn again.
    fn encode(&mut self) {
        let Self { scheduler, running, audio_cache, clock, figures, drafters, .. } = self;
        let Some(i) = running.iter().position(Task::needs_encoder) else { return };
        let task = &mut running[i];
        let Work::Speech(work) = &mut task.work else { return };
        let start = clock();
        let n_hits = audio_cache.figures().hits;
        let result = work.encode(scheduler.session_mut(), audio_cache, start);
        let now = clock();
        match result {
            Ok(Some(decoding)) => {
                work.submitted(now);
                let seat = Seat { place: Some(task.i_slot), ..Seat::default() };
                task.submit(scheduler, &seat, decoding, drafters.as_ref());
            }
            Ok(None) => {}
            Err(error) => task.end = Some(End::Failed(error.into())),
        }
        running[i..].rotate_left(1);
        let mut numbers = figures.lock();
        numbers.audio_cache = audio_cache.figures();
        if numbers.audio_cache.hits == n_hits {
            numbers.n_encode += 1;
            numbers.encode_seconds += (now - start).as_secs_f64();
        }
    }

    /// Makes a call of the decoder, and tells everybody what came of it.
    fn decode(&mut self) {
        let n_vocab = self.scheduler.session().model().n_vocab();
        let start = (self.clock)();
        let Self { scheduler, running, clock, figures, .. } = self;
        let run_ns = scheduler.session().stats().run_ns;
        let mut cancelled = Vec::new();
        let (mut n_busy, mut n_prompt, mut n_predicted) = (0, 0, 0);
        let mut drafts = Statistics::default();
        let result = scheduler.step(&mut |progress| {
            let Some(task) = running.iter_mut().find(|task| task.sequence == Some(progress.id)) else { return };
            n_busy += 1;
            if let Some(so_far) = progress.statistics {
                drafts.add(&task.drafted(so_far));
            }
            match progress.result {
                Ok(event) => {
                    if task.prompt_left > 0 {
                        task.prompt_left = task.prompt_left.saturating_sub(event.accepted);
                        n_prompt += event.accepted;
                    }
                    n_predicted += chosen(event).count();
                    if task.advance(event, progress.logits, n_vocab, clock()).is_break() && event.finish.is_none() {
                        cancelled.push(progress.id);
                    }
                }
                Err(error) => {
                    task.sequence = None;
                    task.end = Some(End::Failed(error.into()));
                }
            }
        });
        cancelled.into_iter().for_each(|id| scheduler.cancel(id));
        if let Err(error) = result {
            let error = ApiError::from(error);
            for task in running.iter_mut() {
                if task.sequence.take_if(|id| scheduler.sequence(*id).is_none()).is_some() && task.end.is_none() {
                    task.end = Some(End::Failed(error.clone()));
                }
            }
        }
        let seconds = (clock() - start).as_secs_f64();
        if n_prompt >= LEAST_PIECE {
            // How fast prompts are now says how much of the next one fits.
            let fits = (MOST_STEP_S * n_prompt as f64 / seconds.max(1e-9)) as usize;
            scheduler.set_prompt_piece(fits.max(LEAST_PIECE));
        }
        let stats = scheduler.session().stats();
        let mut numbers = figures.lock();
        numbers.n_decode += 1;
        numbers.n_busy += n_busy;
        numbers.count_host(seconds - (stats.run_ns - run_ns) as f64 * 1e-9);
        numbers.stats = stats;
        // A call with tokens of prompts is one about prompts.
        if n_prompt > 0 {
            numbers.prompt_seconds += seconds;
        } else {
            numbers.predicted_seconds += seconds;
        }
        numbers.prompt_tokens += n_prompt as u64;
        numbers.predicted_tokens += n_predicted as u64;
        numbers.drafts.add(&drafts);
    }

    /// Answers the jobs that ended, whose slots are free by then.
    pub(super) fn sweep(&mut self, now: Duration) {
        let Self { waiting, running, .. } = self;
        let mut ended = Vec::new();
        let mut i = 0;
        while i < waiting.len() {
            if waiting[i].end.is_some() {
                ended.extend(waiting.remove(i));
            } else {
                i += 1;
            }
        }
        ended.extend(running.extract_if(.., |task| task.end.is_some()));
        if ended.is_empty() {
            return;
        }
        ended.iter_mut().filter_map(|task| task.sequence.take()).for_each(|id| self.scheduler.cancel(id));
        // Before anybody is told: who then looks sees what is left.
        self.publish();
        self.n_ended += ended.len();
        ended.into_iter().for_each(|task| task.answer(&self.figures, now));
    }

    /// Shows what the slots do and keep.
    fn publish(&mut self) {
        let Self { scheduler, running, waiting, figures, begun, .. } = self;
        let mut numbers = figures.lock();
        numbers.processing = running.len();
        numbers.deferred = waiting.len();
        numbers.checkpoints = scheduler.checkpoint_counts();
        numbers.checkpoint_bytes = scheduler.session().memory().checkpoint_bytes();
        for (place, begun) in begun.iter_mut().enumerate() {
            let task = running.iter().find(|task| task.i_slot == place);
            if let Some(task) = task {
                let (n_prompt, n_generated) = task.n_tokens();
                numbers.n_tokens_max = numbers.n_tokens_max.max((n_prompt + n_generated) as u64);
                *begun = task.begun();
            }
            let work = task.map(|task| {
                let (n_prompt, n_generated) = task.n_tokens();
                WorkView { job: task.id, state: task.state(), n_prompt, n_generated, since: task.arrived }
            });
            let n_kept = scheduler.kept(place).map_or(0, <[u32]>::len);
            let checkpoints = scheduler.checkpoints(place);
            numbers.slots[place] = SlotView { work, begun: *begun, n_kept, checkpoints };
        }
    }
}

impl Task {
    fn needs_encoder(&self) -> bool {
        match &self.work {
            Work::Speech(work) => self.end.is_none() && self.sequence.is_none() && work.needs_encoder(),
            Work::Text(_) | Work::Slot(_) => false,
        }
    }

    /// How its prompt began.
    pub(super) fn begun(&self) -> Option<Begun> {
        match &self.work {
            Work::Text(work) => Some(work.begun()),
            Work::Speech(_) | Work::Slot(_) => None,
        }
    }

    /// Gives its sequence to the scheduler.
    pub(super) fn submit(
        &mut self,
        scheduler: &mut Scheduler,
        seat: &Seat,
        decoding: Decoding,
        drafters: Option<&Drafters>,
    ) {
        self.of_sequence = Statistics::default();
        let speculation = drafters.map(|drafters| drafters.speculation(decoding.prompt_ids())).transpose();
        let n_prompt = decoding.prompt_left();
        match speculation.and_then(|speculation| scheduler.submit_in(seat, decoding, speculation)) {
            Ok(seated) => {
                self.sequence = Some(seated.id);
                self.prompt_left = n_prompt - seated.shared.n_reused;
                if let Work::Text(work) = &mut self.work {
                    work.submitted(seated);
                }
            }
            Err(error) => self.end = Some(End::Failed(error.into())),
        }
    }

    /// Takes what came of the drafts of its sequence so far, and returns what of it is not counted yet.
    fn drafted(&mut self, so_far: &Statistics) -> Statistics {
        let last = so_far.since(&self.of_sequence);
        self.of_sequence = *so_far;
        self.drafts.get_or_insert_default().add(&last);
        last
    }

    /// Takes what came of a call for its sequence.
    fn advance(&mut self, event: &Event, logits: &[f32], n_vocab: usize, now: Duration) -> ControlFlow<()> {
        let (piece, flow, is_over) = match &mut self.work {
            Work::Speech(work) => {
                let piece = work.advance(event, logits, n_vocab, now);
                (piece, ControlFlow::Continue(()), event.finish.is_some() && work.is_over())
            }
            Work::Text(work) => {
                let (piece, flow) = work.advance(event, logits, n_vocab, now);
                (piece, flow, event.finish.is_some() || flow.is_break())
            }
            Work::Slot(_) => return ControlFlow::Break(()),
        };
        if let Some(piece) = piece {
            self.reply.put(Reply::Piece(piece), now);
        }
        if event.finish.is_some() || flow.is_break() {
            self.sequence = None;
        }
        if is_over {
            self.end = Some(End::Done);
        }
        flow
    }

    fn n_tokens(&self) -> (usize, usize) {
        match &self.work {
            Work::Speech(work) => work.n_tokens(),
            Work::Text(work) => work.n_tokens(),
            Work::Slot(_) => (0, 0),
        }
    }

    fn state(&self) -> &'static str {
        match &self.work {
            _ if self.needs_encoder() => "encoding",
            Work::Text(work) if work.n_tokens().1 == 0 => "prompt",
            Work::Speech(_) | Work::Text(_) | Work::Slot(_) => "generating",
        }
    }

    /// Tells the client how it ended.
    fn answer(self, figures: &Figures, now: Duration) {
        let Self { reply, work, end, drafts, .. } = self;
        let event = match end {
            Some(End::Done) => {
                let answer = match work {
                    Work::Speech(work) => Some(SpeechWork::into_answer(*work, drafts)),
                    Work::Text(work) => TextWork::into_answer(*work, drafts),
                    Work::Slot(_) => None,
                };
                if let Some(Answer::Speech(answer)) = &answer {
                    figures.lock().audio_seconds += answer.transcript.duration_s;
                }
                match answer {
                    Some(answer) => Reply::Done(Box::new(answer)),
                    None => Reply::Failed(ApiError::server("the answer was lost")),
                }
            }
            Some(End::Failed(error)) => Reply::Failed(error),
            Some(End::Gone) | None => return,
        };
        reply.put(event, now);
    }
}

#[cfg(test)]
#[path = "schedules.rs"]
mod schedules;
