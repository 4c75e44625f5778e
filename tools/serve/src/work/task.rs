//! [`Task`]: a job from when it is taken until it is answered.

use std::ops::ControlFlow;
use std::time::Duration;

use models::decoding::{Decoding, Event};
use models::draft::{Drafters, Statistics};
use models::scheduler::{Scheduler, Seat, SequenceId};

use super::{Answer, Job, Reply, SpeechWork, TextWork, Work};
use crate::api::error::ApiError;
use crate::figures::{Begun, Figures};
use crate::mailbox::Mailbox;

/// A job that was taken.
pub(super) struct Task {
    pub(super) id: u64,
    pub(super) reply: Mailbox<Reply>,
    pub(super) arrived: Duration,
    pub(super) deadline: Duration,
    pub(super) work: Work,
    /// Its sequence, while there is one.
    pub(super) sequence: Option<SequenceId>,
    /// The slot that is its own while it runs.
    pub(super) i_slot: usize,
    /// Tokens of its sequence's prompt that are not in memory.
    pub(super) prompt_left: usize,
    /// Bytes of states that are promised to it.
    pub(super) promised: usize,
    /// What came of its drafts, where it had any, and of those of the sequence at hand.
    pub(super) drafts: Option<Statistics>,
    pub(super) of_sequence: Statistics,
    pub(super) end: Option<End>,
}

/// How a job ended.
pub(super) enum End {
    Done,
    Failed(ApiError),
    /// Nobody waits for an answer, or it has been given.
    Gone,
}

impl Task {
    /// One that has not begun.
    pub(super) fn new(job: Job) -> Self {
        let Job { id, work, reply, arrived, deadline } = job;
        Self {
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
        }
    }

    pub(super) fn needs_encoder(&self) -> bool {
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
    pub(super) fn drafted(&mut self, so_far: &Statistics) -> Statistics {
        let last = so_far.since(&self.of_sequence);
        self.of_sequence = *so_far;
        self.drafts.get_or_insert_default().add(&last);
        last
    }

    /// Takes what came of a call for its sequence.
    pub(super) fn advance(&mut self, event: &Event, logits: &[f32], n_vocab: usize, now: Duration) -> ControlFlow<()> {
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

    pub(super) fn n_tokens(&self) -> (usize, usize) {
        match &self.work {
            Work::Speech(work) => work.n_tokens(),
            Work::Text(work) => work.n_tokens(),
            Work::Slot(_) => (0, 0),
        }
    }

    pub(super) fn state(&self) -> &'static str {
        match &self.work {
            _ if self.needs_encoder() => "encoding",
            Work::Text(work) if work.n_tokens().1 == 0 => "prompt",
            Work::Speech(_) | Work::Text(_) | Work::Slot(_) => "generating",
        }
    }

    /// Tells the client how it ended.
    pub(super) fn answer(self, figures: &Figures, now: Duration) {
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
