//! [`Places`]: what slots keep of sequences that are over, for prompts that begin as these did. Attention is taken back to any
//! position; where states fold what came before, to checkpoints, which are made where prompts are likely to part.

use engine::memory::{Memory, Slot};

use crate::draft::NO_TOKEN;

/// Checkpoints that are kept however near they are to each other: those of the last messages.
const N_LAST: usize = 4;

/// Where a sequence goes, and what it takes over.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Seat {
    /// This place; without one, a place that keeps nothing, or else the one that was used least recently.
    pub place: Option<usize>,
    /// Whether the prompt's first tokens are not fed as far as the place has them in memory.
    pub reuses: bool,
    /// Whether the place keeps the sequence when it is over, as far as it went.
    pub keeps: bool,
    /// Numbers of tokens of the prompt up to which later prompts may be the same, such as ends of messages.
    pub boundaries: Vec<usize>,
}

/// What bounds checkpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckpointLimits {
    /// Most of a place.
    pub n: usize,
    /// Bytes of all places together.
    pub bytes: usize,
}

impl Default for CheckpointLimits {
    /// As llama.cpp's server, but for the bytes, which it does not bound.
    fn default() -> Self {
        Self { n: 32, bytes: 1 << 30 }
    }
}

/// What a place has of a prompt.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Shared {
    /// Tokens that the prompt and the place have in common, the prompt's last one not counted: something has to be fed.
    pub n_common: usize,
    /// Those of them that need not be fed.
    pub n_reused: usize,
    /// Whether a checkpoint decides how many.
    pub by_checkpoint: bool,
}

/// Numbers of checkpoints so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CheckpointCounts {
    /// Made.
    pub made: u64,
    /// Put back.
    pub restored: u64,
    /// Dropped for others, or because there are too many.
    pub evicted: u64,
}

/// A sequence that is over.
pub(super) struct Kept {
    pub slot: Slot,
    /// The tokens in its memory.
    pub tokens: Vec<u32>,
    /// Sequences that had been over before.
    since: u64,
}

/// What the places keep.
pub(super) struct Places {
    kept: Vec<Option<Kept>>,
    pub limits: CheckpointLimits,
    pub counts: CheckpointCounts,
    n_over: u64,
}

impl Places {
    pub(super) fn new(n_places: usize) -> Self {
        let kept = (0..n_places).map(|_| None).collect();
        Self { kept, limits: CheckpointLimits::default(), counts: CheckpointCounts::default(), n_over: 0 }
    }

    /// What a place keeps.
    pub(super) fn kept(&self, place: usize) -> Option<&Kept> {
        self.kept.get(place)?.as_ref()
    }

    /// The same, which it keeps no longer.
    pub(super) fn take(&mut self, place: usize) -> Option<Kept> {
        self.kept.get_mut(place)?.take()
    }

    /// Keeps a sequence in the place of its slot.
    pub(super) fn keep(&mut self, slot: Slot, tokens: Vec<u32>) {
        self.n_over += 1;
        self.kept[slot.index()] = Some(Kept { slot, tokens, since: self.n_over });
    }

    /// The place among these that was used least recently, of those that keep something.
    pub(super) fn oldest(&self, mut among: impl FnMut(usize) -> bool) -> Option<usize> {
        let places = self.kept.iter().enumerate().filter_map(|(i, kept)| Some((kept.as_ref()?.since, i)));
        places.filter(|&(_, i)| among(i)).min().map(|(_, i)| i)
    }

    /// What a place has of a prompt.
    pub(super) fn shared(&self, memory: &Memory, place: usize, prompt: &[i32]) -> Shared {
        let Some(kept) = self.kept(place) else { return Shared::default() };
        let is_same = |(had, id): &(&u32, &i32)| **had != NO_TOKEN && id.cast_unsigned() == **had;
        let n_common = kept.tokens.iter().zip(prompt).take_while(is_same).count();
        let n_common = n_common.min(prompt.len().saturating_sub(1));
        let n_reused = memory.reachable(kept.slot, n_common).unwrap_or(0);
        let by_checkpoint = n_reused > 0 && memory.rewindable(kept.slot).is_ok_and(|first| n_reused < first);
        Shared { n_common, n_reused, by_checkpoint }
    }

    /// Decides where a prompt is cut for checkpoints. That of where its slot is now, behind an earlier answer, is made at once;
    /// those that are not wanted any more are dropped.
    pub(super) fn cuts(&mut self, memory: &mut Memory, slot: Slot, seat: &Seat, n_prompt: usize) -> Vec<usize> {
        if !memory.needs_checkpoints() || !seat.keeps {
            return Vec::new();
        }
        let made: Vec<usize> = memory.checkpoints(slot).map(Iterator::collect).unwrap_or_default();
        let (n_past, now) = (memory.n_past(slot).unwrap_or(0), memory.rewindable(slot).unwrap_or(0));
        let new = seat.boundaries.iter().copied().filter(|&at| at > n_past && at < n_prompt);
        let mut all: Vec<usize> = made.iter().copied().chain(Some(now).filter(|&at| at > 0)).chain(new).collect();
        all.sort_unstable();
        all.dedup();
        thin(&mut all, n_prompt, self.limits.n);
        self.counts.evicted += made.iter().filter(|at| !all.contains(at)).count() as u64;
        // A slot that was just taken is there.
        let _ = memory.keep_checkpoints(slot, |at| all.contains(&at));
        if all.contains(&now) {
            self.checkpoint(memory, slot);
        }
        all.retain(|&at| at > n_past);
        all
    }

    /// Makes a checkpoint of the sequence in this slot, if it has room beside those of all places. Those that make room are of
    /// the place that was used least recently, and else the earliest of its own.
    pub(super) fn checkpoint(&mut self, memory: &mut Memory, slot: Slot) {
        let wanted = memory.bytes_of_checkpoint();
        let Ok(at) = memory.rewindable(slot) else { return };
        let is_made = memory.checkpoints(slot).is_ok_and(|mut made| made.any(|other| other == at));
        if !memory.needs_checkpoints() || at == 0 || is_made || wanted > self.limits.bytes || self.limits.n == 0 {
            return;
        }
        while memory.checkpoint_bytes() + wanted > self.limits.bytes {
            let others = |i: usize| self.kept[i].as_ref().is_some_and(|kept| has_checkpoint(memory, kept.slot));
            let victim = self.oldest(others).and_then(|i| self.kept(i)).map_or(slot, |kept| kept.slot);
            if !self.drop_first(memory, victim) {
                return;
            }
        }
        // Without it, a later prompt is fed from further back, and that is all.
        self.counts.made += u64::from(memory.checkpoint(slot).is_ok());
    }

    /// Drops the earliest checkpoint of a slot. Returns whether there was one.
    fn drop_first(&mut self, memory: &mut Memory, slot: Slot) -> bool {
        let first = memory.checkpoints(slot).ok().and_then(|mut made| made.next());
        let Some(first) = first else { return false };
        self.counts.evicted += 1;
        memory.keep_checkpoints(slot, |at| at != first).is_ok()
    }
}

fn has_checkpoint(memory: &Memory, slot: Slot) -> bool {
    memory.checkpoints(slot).is_ok_and(|made| made.len() > 0)
}

/// Chooses among positions of a sequence, in ascending order, which get checkpoints: at most `n`, the last ones, and before
/// them one for every doubling of the distance from `end`. What has to be fed again is then about as long as what is new.
fn thin(positions: &mut Vec<usize>, end: usize, n: usize) {
    let n_spread = positions.len().saturating_sub(N_LAST);
    let doublings = |at: usize| end.saturating_sub(at).max(1).ilog2();
    let mut i = 0;
    let mut last = None;
    positions.retain(|&at| {
        i += 1;
        let class = doublings(at);
        // The first one of a class is on its way into the next.
        i > n_spread || last.replace(class) != Some(class)
    });
    while positions.len() > n {
        // The one without which least has to be fed again, for its distance. The last ones are the last to go.
        let cost = |i: usize| {
            let before = if i == 0 { 0 } else { positions[i - 1] };
            (positions[i] - before) as f64 / end.saturating_sub(positions[i]).max(1) as f64
        };
        let cheapest = (0..positions.len()).min_by(|&a, &b| cost(a).total_cmp(&cost(b)));
        positions.remove(cheapest.expect("there are more than some"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_stay_and_the_others_thin_out() {
        let mut all: Vec<usize> = (1..=100).map(|i| i * 10).collect();
        thin(&mut all, 1005, 32);
        assert_eq!(all, [10, 500, 750, 880, 950, 970, 980, 990, 1000]);
        // Wherever a prompt parts from this one, no more is fed again than twice what is new.
        for at in 10..=1000 {
            let from = all.iter().rev().find(|&&made| made <= at).unwrap();
            assert!(at - from <= 2 * (1005 - at), "{at} from {from}");
        }
        let mut few = all.clone();
        thin(&mut few, 1005, 3);
        assert_eq!((few.len(), few[2]), (3, 1000));
        thin(&mut few, 1005, 0);
        assert!(few.is_empty());
    }

    #[test]
    fn positions_that_come_one_by_one_stay_spread() {
        let mut made = Vec::new();
        for i in 1..=1000 {
            made.push(i * 50);
            thin(&mut made, i * 50 + 5, 12);
            assert!(made.len() <= 12);
            let end = i * 50 + 5;
            for at in (50..end).step_by(25) {
                let from = made.iter().rev().find(|&&m| m <= at).copied().unwrap_or(0);
                assert!(at - from <= 4 * (end - at) + 200, "{at} of {end} from {from}: {made:?}");
            }
        }
    }
}
