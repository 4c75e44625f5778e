//! Checkpoints: recurrent states as they were at earlier positions of a sequence. Rows of attention stay where they are, so
//! that a checkpoint of a hybrid is as small as one of its recurrent part; it belongs to its slot, and counts as long as the
//! rows before it are those that it was made beside.

use super::{Held, Memory, Slot};
use crate::error::Result;
use crate::state::StateSpec;

/// The recurrent states of one sequence after some tokens.
pub(super) struct Checkpoint {
    /// So many.
    n_past: usize,
    /// One per recurrent state, in the order of the specs.
    states: Vec<Vec<u8>>,
}

impl Checkpoint {
    fn bytes(&self) -> usize {
        self.states.iter().map(Vec::len).sum()
    }
}

impl Memory {
    /// Whether some states fold what came before, so that sequences come back to an earlier position by a checkpoint alone.
    pub fn needs_checkpoints(&self) -> bool {
        self.has_recurrent
    }

    /// Bytes that a checkpoint takes.
    pub fn bytes_of_checkpoint(&self) -> usize {
        self.specs().iter().filter(|spec| spec.role.is_folded()).map(StateSpec::bytes).sum()
    }

    /// Keeps the recurrent states of the sequence in this slot, so that it can be rewound to where they are: behind its last
    /// token, or where some are pending, before the first of these. Nothing happens where that is possible already. It is
    /// dropped when the sequence is rewound to before it, and when the slot is released or becomes a copy of another.
    ///
    /// Errors: as [`Self::n_past`]; those of the backend.
    pub fn checkpoint(&mut self, slot: Slot) -> Result<()> {
        let n_past = self.rewindable(slot)?;
        let made = &self.checkpoints[slot.index()];
        let at = made.partition_point(|checkpoint| checkpoint.n_past < n_past);
        if !self.has_recurrent || n_past == 0 || made.get(at).is_some_and(|checkpoint| checkpoint.n_past == n_past) {
            return Ok(());
        }
        let folded = self.specs().iter().enumerate().filter(|(_, spec)| spec.role.is_folded());
        let states = folded.map(|(i, spec)| self.read_part(slot, i, spec.bytes())).collect::<Result<_>>()?;
        self.checkpoints[slot.index()].insert(at, Checkpoint { n_past, states });
        Ok(())
    }

    /// Positions of the checkpoints of the sequence in this slot, in ascending order.
    ///
    /// Errors: `Batch` for a slot that was released.
    pub fn checkpoints(&self, slot: Slot) -> Result<impl ExactSizeIterator<Item = usize>> {
        self.held(slot)?;
        Ok(self.checkpoints[slot.index()].iter().map(|checkpoint| checkpoint.n_past))
    }

    /// Drops the checkpoints whose positions are not wanted.
    ///
    /// Errors: `Batch` for a slot that was released.
    pub fn keep_checkpoints(&mut self, slot: Slot, mut is_wanted: impl FnMut(usize) -> bool) -> Result<()> {
        self.held(slot)?;
        self.checkpoints[slot.index()].retain(|checkpoint| is_wanted(checkpoint.n_past));
        Ok(())
    }

    /// Bytes of the checkpoints of all slots.
    pub fn checkpoint_bytes(&self) -> usize {
        self.checkpoints.iter().flatten().map(Checkpoint::bytes).sum()
    }

    /// The last position not behind `n_past` that the sequence in this slot can be rewound to, torn or not.
    ///
    /// Errors: `Batch` for a slot that was released.
    pub fn reachable(&self, slot: Slot, n_past: usize) -> Result<usize> {
        let held = *self.held(slot)?;
        let wanted = n_past.min(held.n_past);
        if !held.torn && wanted >= self.rewindable(slot)? {
            return Ok(wanted);
        }
        let made = &self.checkpoints[slot.index()];
        let at = made.partition_point(|checkpoint| checkpoint.n_past <= wanted);
        let made = at.checked_sub(1).map_or(0, |i| made[i].n_past);
        let in_row = held.before.filter(|&before| !held.torn && before <= wanted);
        Ok(in_row.map_or(made, |before| before.max(made)))
    }

    /// Puts the states of the checkpoint at a position back. Returns whether there is one.
    ///
    /// Errors: those of the backend, which leave the slot torn.
    pub(super) fn resume(&mut self, slot: Slot, n_past: usize) -> Result<bool> {
        let made = &self.checkpoints[slot.index()];
        let Ok(at) = made.binary_search_by_key(&n_past, |checkpoint| checkpoint.n_past) else { return Ok(false) };
        let held = *self.held(slot)?;
        self.set(slot, Held { torn: true, ..held });
        let folded = self.states.iter(&self.homes).filter(|(spec, ..)| spec.role.is_folded());
        for ((spec, buffer, backend), bytes) in folded.zip(&self.checkpoints[slot.index()][at].states) {
            backend.write(buffer, self.start(slot, spec), bytes)?;
        }
        Ok(true)
    }

    /// Drops the checkpoints behind a position: what they were made beside will be overwritten.
    pub(super) fn cut_checkpoints(&mut self, slot: Slot, n_past: usize) {
        let made = &mut self.checkpoints[slot.index()];
        made.truncate(made.partition_point(|checkpoint| checkpoint.n_past <= n_past));
    }
}
