//! [`Core`]: the jobs of all clients on one scheduler. It does one thing at a time, a call of the decoder or a slice of the
//! encoder, and looks for what clients want in between. It knows no threads and no sockets, and no clock but the one it is
//! given.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use models::draft::{Drafters, Statistics};
use models::scheduler::{CheckpointLimits, Scheduler, Seat};

use super::task::{End, Task};
use super::text::chosen;
use super::{AudioCache, Clock, Job, Work};
use crate::api::error::ApiError;
use crate::figures::{Begun, Figures, SlotView, WorkView};

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
        self.waiting.push_back(Task::new(job));
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
        let (mut drafts, mut accepted) = (Statistics::default(), Vec::new());
        let result = scheduler.step(&mut |progress| {
            let Some(task) = running.iter_mut().find(|task| task.sequence == Some(progress.id)) else { return };
            n_busy += 1;
            if let Some(so_far) = progress.statistics {
                let last = task.drafted(so_far);
                // A call tells of one draft; those that were given up before it have no right tokens.
                accepted.push(usize::try_from(last.accepted).unwrap_or_default());
                drafts.add(&last);
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
        accepted.into_iter().for_each(|n| numbers.count_accepted(n));
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

#[cfg(test)]
#[path = "schedules.rs"]
mod schedules;
