//! Which job gets which slot. A slot keeps the sequence of its last job, and goes first to a prompt that begins as that did;
//! what slots keep counts against what all sequences may have, and makes room for those that run.

use std::time::Duration;

use models::scheduler::{Seat, Shared};

use super::core::Core;
use super::slot::SlotWork;
use super::task::{End, Task};
use super::{Answer, Reply, Work};
use crate::api::error::ApiError;

/// Why a job is not given a slot.
enum Refusal {
    /// What it needs is in use.
    Later,
    /// It needs more than there is.
    Never { wanted: usize, most: usize },
}

impl Core {
    /// Gives slots to jobs that wait, in the order in which they came. One whose states do not fit beside those that are
    /// promised to others waits, and those behind it with it: none waits for ever. Only one that wants a slot of its own
    /// choice, which is in use, is passed by.
    pub(super) fn admit(&mut self, now: Duration) {
        let mut i = 0;
        while self.running.len() < self.options.n_slots && i < self.waiting.len() {
            let Some(place) = self.place_for(&self.waiting[i]) else {
                i += 1;
                continue;
            };
            let wanted = self.wanted(&self.waiting[i]);
            let refusal = self.make_room(place, wanted).err();
            if matches!(refusal, Some(Refusal::Later)) {
                return;
            }
            let Some(mut task) = self.waiting.remove(i) else { return };
            if let Some(Refusal::Never { wanted, most }) = refusal {
                let message =
                    format!("prompt and answer need {wanted} bytes of states; all requests together have {most}");
                task.end = Some(End::Failed(ApiError::too_large(message)));
                // It is answered with those that run.
                self.running.push(task);
                self.sweep(now);
                continue;
            }
            task.promised = wanted;
            task.i_slot = place;
            self.begin(task, now);
        }
    }

    /// Lets a job begin in its slot.
    fn begin(&mut self, mut task: Task, now: Duration) {
        match &mut task.work {
            // The slot is its own while it is encoded.
            Work::Speech(_) => {
                self.scheduler.forget(task.i_slot);
            }
            Work::Text(work) => {
                if let Some(decoding) = work.begin(now) {
                    let seat = Seat { place: Some(task.i_slot), ..work.seat().clone() };
                    task.submit(&mut self.scheduler, &seat, decoding, self.drafters.as_ref());
                    let n_reused = task.begun().map_or(0, |begun| begun.shared.n_reused);
                    self.figures.lock().reused_tokens += n_reused as u64;
                }
            }
            Work::Slot(work) => {
                let done = work.carry_out(&mut self.scheduler, task.i_slot);
                let reply = match done {
                    Ok(answer) => Reply::Done(Box::new(Answer::Slot(answer))),
                    Err(error) => Reply::Failed(error),
                };
                task.reply.put(reply, now);
                task.end = Some(End::Gone);
            }
        }
        self.running.push(task);
        self.sweep(now);
    }

    /// The free slot that suits a job best; none where it has to wait for one.
    fn place_for(&self, task: &Task) -> Option<usize> {
        let is_free = |place: usize| self.running.iter().all(|other| other.i_slot != place);
        let seat = match &task.work {
            Work::Text(work) => Some((work.seat(), work.prompt_ids())),
            Work::Slot(work) => return Some(work.place()).filter(|&place| is_free(place)),
            Work::Speech(_) => None,
        };
        if let Some(place) = seat.and_then(|(seat, _)| seat.place) {
            return Some(place).filter(|&place| is_free(place));
        }
        let free = || (0..self.options.n_slots).filter(|&place| is_free(place));
        let similar = seat.filter(|(seat, _)| seat.reuses).and_then(|(_, ids)| {
            let shared = free().map(|place| (self.scheduler.shared(place, ids), place));
            let is_similar = |shared: &Shared| shared.n_common as f32 >= self.options.similarity * ids.len() as f32;
            let best = shared.filter(|(shared, _)| shared.n_reused > 0 && is_similar(shared));
            best.max_by_key(|(shared, place)| (shared.n_reused, std::cmp::Reverse(*place)))
        });
        let empty = || free().find(|&place| self.scheduler.kept(place).is_none());
        similar.map(|(_, place)| place).or_else(empty).or_else(|| self.scheduler.oldest_kept(is_free))
    }

    /// Bytes of states that a job needs.
    fn wanted(&self, task: &Task) -> usize {
        match &task.work {
            Work::Speech(work) => self.state_bytes(work.n_most()),
            Work::Text(work) => self.state_bytes(work.n_most()),
            Work::Slot(SlotWork::Restore { bytes, .. }) => bytes.len(),
            Work::Slot(SlotWork::Save { .. } | SlotWork::Erase { .. }) => 0,
        }
    }

    /// Sees to it that so many bytes fit beside what is promised to others: what other slots keep is given back as far as it
    /// must be, that of the slot which was used least recently first.
    fn make_room(&mut self, place: usize, wanted: usize) -> Result<(), Refusal> {
        let Some(most) = self.options.state_bytes else { return Ok(()) };
        let promised: usize = self.running.iter().map(|task| task.promised).sum();
        if promised + wanted > most {
            let is_alone = self.running.is_empty();
            return Err(if is_alone { Refusal::Never { wanted, most } } else { Refusal::Later });
        }
        while promised + wanted + self.kept_bytes(place) > most {
            let Some(oldest) = self.scheduler.oldest_kept(|other| other != place) else { break };
            self.scheduler.forget(oldest);
        }
        Ok(())
    }

    /// Bytes of what slots keep, but for one.
    pub(super) fn kept_bytes(&self, place: usize) -> usize {
        let kept = (0..self.options.n_slots).filter(|&other| other != place);
        kept.filter_map(|other| self.scheduler.kept(other)).map(|tokens| self.state_bytes(tokens.len())).sum()
    }
}
