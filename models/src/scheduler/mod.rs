//! [`Scheduler`]: many sequences on one session. It owns the slots, makes one batch after the other from what the sequences
//! want to be fed with, and hands every sequence the logits that are its own. What fails, fails for its sequence alone.
//!
//! A sequence that is over may leave its tokens in memory, for a prompt that begins as it did ([`Seat`]).

mod places;
mod rollback;
mod saved;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use engine::batch::{Batch, Logits, Sequence};
use engine::key::Buckets;
use engine::memory::Slot;
use engine::session::{MAX_CONTEXT, Session};

use crate::decoding::{Decoding, Event, Finish};
use crate::draft::{Costs, NO_TOKEN, Room, Speculation, Statistics, Step};
use crate::error::{Error, Result};
use places::{Kept, Places};
use rollback::{Undo, Verdict};

pub use places::{CheckpointCounts, CheckpointLimits, Seat, Shared};
pub use rollback::Rollback;

/// Slots grow in steps of this many positions, so that sequences of similar length share compiled graphs.
const CONTEXT_STEP: usize = 256;

/// What drivers of one request after another keep of the memory of a sequence for the next one: more than a segment of
/// speech or a page of text needs in the largest models.
pub(crate) const SPARE_BYTES: usize = 256 << 20;

/// A sequence of a scheduler; no number is given twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SequenceId(u64);

/// What became of a sequence in a call.
#[derive(Debug)]
pub struct Progress<'a> {
    /// The sequence.
    pub id: SequenceId,
    /// What happened, or why the sequence cannot go on. After an error or a finish its slot is free.
    pub result: Result<&'a Event>,
    /// The rows of logits that the sequence asked for, `[n_rows, n_vocab]`.
    pub logits: &'a [f32],
    /// What came of the sequence's drafts so far, where it has drafters.
    pub statistics: Option<&'a Statistics>,
}

/// A sequence that was given a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seated {
    /// The sequence.
    pub id: SequenceId,
    /// Where it is.
    pub place: usize,
    /// What it takes over.
    pub shared: Shared,
}

/// A sequence that has a slot.
struct Running {
    id: SequenceId,
    slot: Slot,
    decoding: Decoding,
    speculation: Option<Box<Speculation>>,
    undo: Undo,
    /// All tokens so far, where the slot keeps them.
    history: Option<Vec<u32>>,
    /// Where its prompt is cut, for checkpoints.
    cuts: VecDeque<usize>,
    /// Rows of the call that is being made beside those of its own drafts.
    n_others: usize,
    /// Tokens of the call that is being made; 0 where it has no part in it.
    n_feeding: usize,
    /// Its number in the call that has been made, where something came of its part.
    i_seq: Option<usize>,
    /// Tokens in its memory.
    n_past: usize,
    error: Option<Error>,
    is_over: bool,
}

/// Sequences that share a session.
pub struct Scheduler {
    session: Session,
    running: Vec<Running>,
    places: Places,
    n_submitted: u64,
    /// What calls without prompts take.
    costs: Costs,
    /// Most tokens of prompts in a call in which sequences decode.
    prompt_piece: usize,
    /// Whether a prompt has its calls to itself.
    reads_apart: bool,
    rollback: Rollback,
}

impl Scheduler {
    /// A scheduler without sequences. The session's slots are its own from now on.
    pub fn new(session: Session) -> Self {
        let places = Places::new(session.memory().n_slots());
        let (running, costs) = (Vec::new(), Costs::default());
        let rollback = Rollback::Ring;
        let (prompt_piece, reads_apart) = (usize::MAX, false);
        Self { session, running, places, n_submitted: 0, costs, prompt_piece, reads_apart, rollback }
    }

    /// How wrong guesses of drafters are taken back from recurrent states, from now on.
    pub fn set_rollback(&mut self, rollback: Rollback) {
        self.rollback = rollback;
    }

    /// Bytes that a sequence has of states beside its own, to come back from wrong guesses: copies, or second rows.
    pub fn copied_bytes(&self) -> usize {
        self.rollback.copied_bytes(self.session.memory())
    }

    /// Most tokens of a guess that can be taken back.
    pub fn revocable(&self) -> usize {
        self.rollback.revocable(self.session.memory())
    }

    /// Bounds how long sequences that decode wait for the prompts of others: so many tokens of these at most, at least one, go
    /// into a call with them.
    pub fn set_prompt_piece(&mut self, n_tokens: usize) {
        self.prompt_piece = n_tokens.max(1);
    }

    /// Prompts are read one after the other from now on, in calls of their own, for which sequences that decode wait: all calls
    /// of a sequence are then what they are without the others, or have a row of each, so that its logits are the same bits.
    pub fn read_apart(&mut self) {
        self.reads_apart = true;
    }

    /// The session, for what is not a sequence: the encoder, counters, switches.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// As [`Self::session`].
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Number of sequences that are not at their end.
    pub fn n_running(&self) -> usize {
        self.running.iter().filter(|r| !r.is_over).count()
    }

    /// Gives a sequence a slot. It takes part in the calls that follow, behind those that came before.
    ///
    /// Errors: no slot is free; more tokens than a slot can hold; a prompt that the model cannot be fed with.
    pub fn submit(&mut self, decoding: Decoding) -> Result<SequenceId> {
        self.submit_with(decoding, None)
    }

    /// As [`Self::submit`], with drafters for the sequence. They change nothing but how many calls it takes. Where states cannot
    /// be taken back, they are not asked.
    pub fn submit_with(&mut self, decoding: Decoding, speculation: Option<Speculation>) -> Result<SequenceId> {
        self.submit_in(&Seat::default(), decoding, speculation).map(|seated| seated.id)
    }

    /// As [`Self::submit_with`], in a place of choice, with what that has in memory of the prompt.
    ///
    /// Errors: as [`Self::submit`], where the place that is wanted is not free too.
    pub fn submit_in(
        &mut self,
        seat: &Seat,
        mut decoding: Decoding,
        speculation: Option<Speculation>,
    ) -> Result<Seated> {
        self.sweep();
        let model = self.session.model();
        if let Some(what) = decoding.unfit(model.n_vocab(), model.n_embd()) {
            return Err(Error::Argument { name: "prompt", what });
        }
        let n_most = decoding.n_most();
        let stepped = n_most.min(MAX_CONTEXT).next_multiple_of(CONTEXT_STEP).min(MAX_CONTEXT);
        self.session.reserve_context(n_most.max(stepped))?;
        let (slot, shared) = self.occupy(seat, &decoding)?;
        decoding.skip(shared.n_reused);
        let ids = decoding.prompt_ids();
        let cuts = self.places.cuts(self.session.memory_mut(), slot, seat, ids.len()).into();
        let token = |id: &i32| u32::try_from(*id).unwrap_or(NO_TOKEN);
        let history = seat.keeps.then(|| ids.iter().map(token).collect());
        let id = SequenceId(self.n_submitted);
        self.n_submitted += 1;
        self.running.push(Running {
            id,
            slot,
            decoding,
            speculation: speculation.map(Box::new),
            undo: Undo::default(),
            history,
            cuts,
            n_others: 0,
            n_feeding: 0,
            i_seq: None,
            n_past: shared.n_reused,
            error: None,
            is_over: false,
        });
        Ok(Seated { id, place: slot.index(), shared })
    }

    /// Takes a place, with as much of the prompt as it has.
    fn occupy(&mut self, seat: &Seat, decoding: &Decoding) -> Result<(Slot, Shared)> {
        let Self { session, places, .. } = self;
        let memory = session.memory_mut();
        let place = match seat.place {
            None if memory.n_free() == 0 => places.oldest(|_| true),
            place => place,
        };
        if let Some(Kept { slot, .. }) = place.and_then(|place| places.kept(place)) {
            let slot = *slot;
            let ids = decoding.prompt_ids();
            let is_wanted = seat.reuses && !decoding.wants_prompt_logits();
            let shared = if is_wanted { places.shared(memory, slot.index(), ids) } else { Shared::default() };
            places.take(slot.index());
            if shared.n_reused > 0 && memory.rewind(slot, shared.n_reused).is_ok() {
                places.counts.restored += u64::from(shared.by_checkpoint);
                return Ok((slot, shared));
            }
            // Nothing of it is of use: its memory is the next one's.
            memory.release(slot);
            return Ok((memory.acquire_at(slot.index())?, Shared { n_reused: 0, ..shared }));
        }
        let slot = match place {
            Some(place) => memory.acquire_at(place)?,
            None => memory.acquire()?,
        };
        Ok((slot, Shared::default()))
    }

    /// Whether a place has no sequence that is not at its end.
    pub fn is_free(&self, place: usize) -> bool {
        !self.running.iter().any(|r| !r.is_over && r.slot.index() == place)
    }

    /// What a place that keeps a sequence has of a prompt, whose ids below 0 stand for vectors.
    pub fn shared(&self, place: usize, prompt: &[i32]) -> Shared {
        self.places.shared(self.session.memory(), place, prompt)
    }

    /// Tokens of the sequence that a place keeps.
    pub fn kept(&self, place: usize) -> Option<&[u32]> {
        self.places.kept(place).map(|kept| &*kept.tokens)
    }

    /// Positions of the checkpoints of the sequence that a place keeps.
    pub fn checkpoints(&self, place: usize) -> Vec<usize> {
        let made = self.places.kept(place).and_then(|kept| self.session.memory().checkpoints(kept.slot).ok());
        made.map(Iterator::collect).unwrap_or_default()
    }

    /// The place that keeps the sequence which has been over for longest, among some places.
    pub fn oldest_kept(&self, among: impl FnMut(usize) -> bool) -> Option<usize> {
        self.places.oldest(among)
    }

    /// Gives back the memory of the sequence that a place keeps. Returns its number of tokens.
    pub fn forget(&mut self, place: usize) -> usize {
        let Some(kept) = self.places.take(place) else { return 0 };
        self.session.memory_mut().release(kept.slot);
        kept.tokens.len()
    }

    /// Bounds checkpoints.
    pub fn set_checkpoint_limits(&mut self, limits: CheckpointLimits) {
        self.places.limits = limits;
    }

    /// What became of checkpoints so far.
    pub fn checkpoint_counts(&self) -> CheckpointCounts {
        self.places.counts
    }

    /// Ends a sequence and frees its slot. Nothing happens where it is at its end already.
    pub fn cancel(&mut self, id: SequenceId) {
        self.running.iter_mut().filter(|r| r.id == id).for_each(|r| r.is_over = true);
        self.sweep();
    }

    /// A sequence that is not at its end, to give it drafts.
    pub fn sequence(&mut self, id: SequenceId) -> Option<&mut Decoding> {
        self.running.iter_mut().find(|r| r.id == id && !r.is_over).map(|r| &mut r.decoding)
    }

    /// Makes one call with tokens of every sequence that has some to feed, and tells `observer` what became of each.
    /// Without sequences nothing happens.
    ///
    /// Should `observer` panic, every sequence is as if it had been told: the caller may go on, or cancel some.
    ///
    /// Errors: a call that failed for all of its sequences, which are over then.
    pub fn step(&mut self, observer: &mut dyn FnMut(Progress<'_>)) -> Result<()> {
        self.sweep();
        self.plan();
        self.grow();
        self.save_states();
        let Self { session, running, costs, .. } = self;
        tell_failed(running, observer);
        let feeding = |r: &&Running| r.n_feeding > 0;
        let seqs: Vec<Sequence<'_>> = running.iter().filter(feeding).map(Running::feed).collect();
        if seqs.is_empty() {
            return Ok(());
        }
        let n_vocab = session.model().n_vocab();
        let start = running.iter().any(|r| r.speculation.is_some()).then(Instant::now);
        let logits = match session.step(&Batch { seqs: &seqs }) {
            Ok(logits) => logits,
            Err(error) => {
                drop(seqs);
                running.iter_mut().filter(|r| r.n_feeding > 0).for_each(|r| r.is_over = true);
                self.sweep();
                return Err(error.into());
            }
        };
        drop(seqs);
        let time = start.map(|start| start.elapsed());
        if let Some(time) = time
            && running.iter().filter(|r| r.n_feeding > 0).all(|r| r.decoding.prompt_left() == 0)
        {
            costs.record(running.iter().map(|r| r.n_feeding).sum(), time);
        }
        // All sequences advance before anybody is told: a panic of the observer leaves none of them behind its memory.
        for (i, r) in running.iter_mut().filter(|r| r.n_feeding > 0).enumerate() {
            r.advance(i, logits.rows(i), n_vocab, time.map(|time| (time, &*costs)));
        }
        tell(running, &logits, observer);
        tell_failed(running, observer);
        self.sweep();
        Ok(())
    }

    /// Runs one sequence from its prompt to its end, or until `observer` breaks; it sees every event of this sequence, with
    /// the logits that the sequence asked for. Other sequences go on beside it. However this ends, by a panic of the
    /// observer too, the slot is free afterwards.
    ///
    /// Errors: those of [`Self::submit`] and [`Self::step`], and what ended the sequence.
    pub fn run(
        &mut self,
        decoding: Decoding,
        observer: &mut dyn FnMut(&Event, &[f32]) -> ControlFlow<()>,
    ) -> Result<()> {
        self.run_with(decoding, None, observer).map(|_| ())
    }

    /// As [`Self::run`], with drafters for the sequence; returns what came of them.
    pub fn run_with(
        &mut self,
        decoding: Decoding,
        speculation: Option<Speculation>,
        observer: &mut dyn FnMut(&Event, &[f32]) -> ControlFlow<()>,
    ) -> Result<Option<Statistics>> {
        let id = self.submit_with(decoding, speculation)?;
        let guard = Cancelled { scheduler: self, id };
        let mut outcome = None;
        let mut statistics = None;
        while outcome.is_none() {
            guard.scheduler.step(&mut |progress| {
                if progress.id == id {
                    statistics = progress.statistics.copied();
                    outcome = match progress.result {
                        Ok(event) => {
                            let is_over = observer(event, progress.logits).is_break() || event.finish.is_some();
                            is_over.then_some(Ok(()))
                        }
                        Err(error) => Some(Err(error)),
                    };
                }
            })?;
        }
        outcome.unwrap_or(Ok(())).map(|()| statistics)
    }

    /// Memory for what sequences feed, here because a call would fail for all of them. What ended sequences left makes room.
    fn grow(&mut self) {
        let Self { session, running, places, .. } = self;
        let memory = session.memory_mut();
        for r in running.iter_mut().filter(|r| r.n_feeding > 0) {
            let mut result = memory.grow(r.slot, r.n_feeding);
            while let Err(engine::Error::OutOfMemory { .. }) = result
                && let Some(kept) = places.oldest(|_| true).and_then(|place| places.take(place))
            {
                memory.release(kept.slot);
                result = memory.grow(r.slot, r.n_feeding);
            }
            if let Err(error) = result {
                r.fail(error.into());
            }
        }
    }

    /// Keeps what has to come back where guesses turn out wrong.
    fn save_states(&mut self) {
        let Self { session, running, rollback, .. } = self;
        let verifies = |r: &&mut Running| r.n_feeding > 1 && r.decoding.prompt_left() == 0 && r.speculation.is_some();
        for r in running.iter_mut().filter(verifies) {
            let guess = (&r.decoding, r.n_feeding - 1);
            if let Err(error) = r.undo.save(*rollback, session.memory_mut(), r.slot, guess) {
                r.fail(error);
            }
        }
    }

    /// Frees the slots of sequences that are over, takes back from memory what was a wrong guess, and makes the checkpoints
    /// whose positions were reached.
    fn sweep(&mut self) {
        let Self { session, running, places, .. } = self;
        let memory = session.memory_mut();
        for r in running.iter_mut() {
            (r.n_feeding, r.i_seq) = (0, None);
            let is_whole = match memory.n_past(r.slot) {
                Ok(n) if n > r.n_past => r.undo.settle(memory, r.slot, r.n_past).is_ok(),
                Ok(n) => n == r.n_past,
                Err(_) => false,
            };
            r.undo.drop_stale(memory, r.slot);
            if let Some(speculation) = &mut r.speculation {
                speculation.undone(&r.undo.take_undone());
            }
            r.is_over |= !is_whole;
            if is_whole && r.cuts.pop_front_if(|at| *at == r.n_past).is_some() {
                places.checkpoint(memory, r.slot);
            }
            if r.is_over {
                match r.history.take().filter(|_| is_whole && r.n_past > 0) {
                    Some(mut tokens) => {
                        tokens.truncate(r.n_past);
                        places.keep(r.slot, tokens);
                    }
                    None => memory.release(r.slot),
                }
            }
        }
        running.retain(|r| !r.is_over);
    }

    /// Decides how many tokens every sequence feeds in the next call: all that decode their next ones, and behind them
    /// prompts in the order in which they came, in pieces that fill a graph.
    fn plan(&mut self) {
        let options = self.session.options();
        let (max, buckets) = (options.max_tokens, options.buckets);
        if self.reads_apart
            && let Some(r) = self.running.iter_mut().find(|r| r.decoding.prompt_left() > 0)
        {
            let left = r.decoding.prompt_left();
            r.n_feeding = piece(buckets, 0, left.min(max)).min(r.until_cut());
            return;
        }
        let revocable = self.session.memory().revocable();
        let mut n_tokens = 0;
        for r in self.running.iter_mut().filter(|r| r.decoding.prompt_left() == 0) {
            r.decoding.keep_drafts(revocable);
            let n = r.decoding.n_waiting();
            if n_tokens + n <= max {
                r.n_feeding = n;
                n_tokens += n;
            }
        }
        n_tokens += self.speculate(n_tokens, max);
        let prompts = self.running.iter_mut().filter(|r| r.decoding.prompt_left() > 0);
        let left: usize = prompts.map(|r| r.decoding.prompt_left()).sum();
        let most = if n_tokens > 0 { self.prompt_piece } else { usize::MAX };
        let mut room = piece(buckets, n_tokens, left.min(max - n_tokens).min(most));
        for r in self.running.iter_mut().filter(|r| r.decoding.prompt_left() > 0) {
            r.n_feeding = r.decoding.prompt_left().min(room).min(r.until_cut());
            room -= r.n_feeding;
        }
    }

    /// Adds the drafts of sequences that have drafters to a call that has `n_tokens` rows and may have `max`. Returns how many
    /// rows it added.
    fn speculate(&mut self, n_tokens: usize, max: usize) -> usize {
        let revocable = self.revocable();
        let Self { running, costs, .. } = self;
        let mut n_added = 0;
        for r in running.iter_mut().filter(|r| r.n_feeding == 1 && r.decoding.prompt_left() == 0) {
            let Some(speculation) = &mut r.speculation else { continue };
            r.n_others = n_tokens + n_added;
            let of_text = r.decoding.draft_room();
            let of_step = of_text.min(max - r.n_others).min(revocable);
            match r.undo.guess() {
                Some(replay) if !replay.is_empty() => r.decoding.draft(&replay[..replay.len().min(of_step)]),
                pause => {
                    let of_step = if pause.is_some() { 0 } else { of_step };
                    r.decoding.draft(speculation.propose(Room { of_text, of_step }, r.n_others, costs));
                }
            }
            let n_drafts = r.decoding.n_waiting() - 1;
            r.n_feeding += n_drafts;
            n_added += n_drafts;
        }
        n_added
    }
}

impl Running {
    /// Tokens up to where its prompt is cut next.
    fn until_cut(&self) -> usize {
        self.cuts.front().map_or(usize::MAX, |at| at - self.n_past)
    }

    fn feed(&self) -> Sequence<'_> {
        let (tokens, rows) = self.decoding.next(self.n_feeding);
        Sequence { slot: self.slot, tokens, rows: self.undo.rows(rows) }
    }

    /// Takes the logits of its part of a call, in which it was sequence `i_seq`. `timed`: what the call took, and calls do.
    fn advance(&mut self, i_seq: usize, logits: &[f32], n_vocab: usize, timed: Option<(Duration, &Costs)>) {
        let step = self.decoding.n_generated();
        let was_prompt = self.decoding.prompt_left() > 0;
        if let Err(source) = self.decoding.advance(self.n_feeding, logits, n_vocab) {
            return self.fail(Error::NotFinite { sequence: self.id.0, step, source });
        }
        let Some((time, costs)) = timed else { return self.stay(i_seq) };
        let n_others = self.n_others;
        if was_prompt {
            self.stay(i_seq);
            self.speculation.iter_mut().for_each(|speculation| speculation.began(&self.decoding.event().tokens));
            return;
        }
        let verdict = self.undo.judge(&mut self.decoding, self.n_feeding, time);
        let event = self.decoding.event();
        let (tokens, n_drafts, time) = match verdict {
            Verdict::Again => return,
            Verdict::GivenUp { n_drafts, time } => (&[][..], n_drafts, time),
            Verdict::Stays { n_drafts, time } => (&event.tokens[..], n_drafts, time),
        };
        if let Some(speculation) = &mut self.speculation {
            let stop = match event.finish {
                Some(Finish::Stop(id)) => Some(id),
                Some(Finish::Limit) | None => None,
            };
            speculation.judged(n_drafts, tokens, stop, Step { n_others, time, costs });
        }
        if matches!(verdict, Verdict::Stays { .. }) {
            self.stay(i_seq);
        }
    }

    /// What came of a call stays.
    fn stay(&mut self, i_seq: usize) {
        let event = self.decoding.event();
        self.i_seq = Some(i_seq);
        self.n_past += event.accepted;
        self.history.iter_mut().for_each(|history| history.extend_from_slice(&event.tokens));
        self.is_over = event.finish.is_some();
    }

    fn statistics(&self) -> Option<&Statistics> {
        self.speculation.as_ref().map(|speculation| speculation.statistics())
    }

    /// Ends the sequence. Whoever watches is still to be told.
    fn fail(&mut self, error: Error) {
        self.error = Some(error);
        // What is in memory may be the reason.
        self.history = None;
        self.n_feeding = 0;
        self.is_over = true;
    }
}

/// A sequence that is cancelled when this is dropped.
struct Cancelled<'a> {
    scheduler: &'a mut Scheduler,
    id: SequenceId,
}

impl Drop for Cancelled<'_> {
    fn drop(&mut self) {
        self.scheduler.cancel(self.id);
    }
}

/// Tells what became of the sequences of a call.
fn tell(running: &[Running], logits: &Logits<'_>, observer: &mut dyn FnMut(Progress<'_>)) {
    for r in running {
        if let Some(i) = r.i_seq {
            let (result, statistics) = (Ok(r.decoding.event()), r.statistics());
            observer(Progress { id: r.id, result, logits: logits.rows(i), statistics });
        }
    }
}

/// Tells why sequences cannot go on.
fn tell_failed(running: &mut [Running], observer: &mut dyn FnMut(Progress<'_>)) {
    for r in running {
        if let Some(error) = r.error.take() {
            observer(Progress { id: r.id, result: Err(error), logits: &[], statistics: r.statistics() });
        }
    }
}

/// How many of `n` tokens of prompts go into a call that has `n_others` already.
fn piece(buckets: Buckets, n_others: usize, n: usize) -> usize {
    let full = buckets.fill(n_others + n);
    if full > n_others { full - n_others } else { n }
}
