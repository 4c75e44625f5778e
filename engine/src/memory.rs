//! [`Memory`]: arrays indexed `[slot, ..]`, one slot per sequence, the same slot in every layer. There is no class for
//! caches, recurrent states or hybrids: what a model remembers is its list of [`StateSpec`]s.
//!
//! A call that fails after it began to run may have changed recurrent states of its sequences. Their slots are *torn*:
//! only [`Memory::release`] and rewinding to 0 are accepted for them. Attention rows past a sequence's length are never
//! read, so a sequence without recurrent state, or without a past, is what it was before the call.

use std::sync::Arc;

use crate::backend::{Backend, Buffer, Usage};
use crate::error::{Error, Result, refuse};
use crate::snapshot;
use crate::state::StateSpec;

/// Most slots of one memory.
const MAX_SLOTS: usize = 4096;

/// A sequence's place in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Slot(pub(crate) u32);

impl Slot {
    /// Position in every state buffer.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The sequence in a slot.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Tokens seen.
    n_past: usize,
    /// Whether a call began to change recurrent states and has not ended well.
    torn: bool,
}

/// State buffers of all slots, and which slots hold a sequence of what length.
pub struct Memory {
    backend: Arc<dyn Backend>,
    specs: Vec<StateSpec>,
    buffers: Vec<Buffer>,
    /// `None`: free.
    slots: Vec<Option<Held>>,
    n_ctx: usize,
    has_recurrent: bool,
}

impl Memory {
    /// Buffers for `n_slots` slots of these states.
    pub fn new(backend: Arc<dyn Backend>, specs: Vec<StateSpec>, n_slots: usize, n_ctx: usize) -> Result<Self> {
        if n_slots == 0 || n_slots > MAX_SLOTS {
            return refuse(format_args!("want 1 to {MAX_SLOTS} slots, got {n_slots}"));
        }
        let buffers = specs
            .iter()
            .map(|spec| {
                // Kernels index states with 32-bit element counts, as graphs do.
                let fits = u32::try_from(spec.shape.elements().saturating_mul(n_slots)).is_ok();
                let bytes = spec.bytes().saturating_mul(n_slots);
                if !fits {
                    let what = format!("{:?} state of layer {}", spec.role, spec.layer);
                    return Err(Error::OutOfMemory { what, wanted: bytes, free: None });
                }
                backend.alloc(bytes, Usage::State)
            })
            .collect::<Result<_>>()?;
        let has_recurrent = specs.iter().any(|s| s.role.is_recurrent());
        Ok(Self { backend, specs, buffers, slots: vec![None; n_slots], n_ctx, has_recurrent })
    }

    /// What every slot holds.
    pub fn specs(&self) -> &[StateSpec] {
        &self.specs
    }

    /// State buffers, in the order of the specs.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// Number of slots.
    pub fn n_slots(&self) -> usize {
        self.slots.len()
    }

    /// Positions per slot.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(Buffer::bytes).sum()
    }

    /// The lowest free slot, for a sequence that starts from zeros.
    pub fn acquire(&mut self) -> Result<Slot> {
        let free = self.slots.iter().position(Option::is_none);
        self.acquire_at(free.unwrap_or(self.slots.len()))
    }

    /// This slot, if it is free.
    pub fn acquire_at(&mut self, index: usize) -> Result<Slot> {
        match self.slots.get_mut(index) {
            Some(free @ None) => {
                *free = Some(Held { n_past: 0, torn: false });
                Ok(Slot(u32::try_from(index).expect("below MAX_SLOTS")))
            }
            Some(Some(_)) | None => Err(Error::NoFreeSlot { n_slots: self.slots.len() }),
        }
    }

    /// Frees a slot. What it held is overwritten by its next owner, never read.
    pub fn release(&mut self, slot: Slot) {
        if let Some(held) = self.slots.get_mut(slot.index()) {
            *held = None;
        }
    }

    /// Tokens that the sequence in this slot has seen.
    ///
    /// Errors: `Batch` for a free slot, `TornSlot` after a call that failed half-way.
    pub fn n_past(&self, slot: Slot) -> Result<usize> {
        match self.slots.get(slot.index()) {
            Some(Some(Held { n_past, torn: false })) => Ok(*n_past),
            Some(Some(Held { torn: true, .. })) => Err(Error::TornSlot { slot: slot.index() }),
            Some(None) | None => no_sequence(slot),
        }
    }

    /// Room for `n_tokens` more tokens, or [`Error::ContextFull`].
    pub(crate) fn check_room(&self, slot: Slot, n_tokens: usize) -> Result<()> {
        let wanted = self.n_past(slot)?.saturating_add(n_tokens);
        if wanted > self.n_ctx { Err(Error::ContextFull { capacity: self.n_ctx, wanted }) } else { Ok(()) }
    }

    /// A call is about to change this slot's states; until [`Self::commit`] the slot counts as torn where that matters.
    /// Returns the tokens that its sequence has seen; a free slot has none.
    pub(crate) fn begin(&mut self, slot: Slot) -> usize {
        let Some(held) = &mut self.slots[slot.index()] else { return 0 };
        held.torn = self.has_recurrent && held.n_past > 0;
        held.n_past
    }

    /// The call has ended well and the sequence is `n_tokens` longer.
    pub(crate) fn commit(&mut self, slot: Slot, n_tokens: usize) {
        if let Some(held) = &mut self.slots[slot.index()] {
            *held = Held { n_past: held.n_past + n_tokens, torn: false };
        }
    }

    /// Makes `to` a copy of the sequence in `from`.
    ///
    /// Errors: either slot free or torn. If the backend fails, `to` is torn.
    pub fn copy(&mut self, from: Slot, to: Slot) -> Result<()> {
        let n_past = self.n_past(from)?;
        self.n_past(to)?;
        if from == to {
            return Ok(());
        }
        self.slots[to.index()] = Some(Held { n_past, torn: true });
        for (spec, buffer) in self.specs.iter().zip(&self.buffers) {
            let start = from.index() * spec.bytes();
            let bytes = spec.used_bytes(n_past);
            self.backend.copy(buffer, start..start + bytes, to.index() * spec.bytes())?;
        }
        self.slots[to.index()] = Some(Held { n_past, torn: false });
        Ok(())
    }

    /// Drops the tokens from position `n_past` on: exact, or [`Error::NotRewindable`] where a recurrent state folds them.
    pub fn rewind(&mut self, slot: Slot, n_past: usize) -> Result<()> {
        // Position 0 is exact for every state, torn ones too: the first step reads zeros.
        if n_past > 0 {
            let now = self.n_past(slot)?;
            if n_past > now {
                return refuse(format_args!("cannot rewind from {now} forward to {n_past}"));
            }
            if n_past < now && self.has_recurrent {
                return Err(Error::NotRewindable);
            }
        } else if !matches!(self.slots.get(slot.index()), Some(Some(_))) {
            return no_sequence(slot);
        }
        self.slots[slot.index()] = Some(Held { n_past, torn: false });
        Ok(())
    }

    /// The bytes of one state of one slot.
    pub fn read_state(&self, slot: Slot, state: usize) -> Result<Vec<u8>> {
        self.read_part(slot, state, self.specs[state].bytes())
    }

    /// The first `bytes` bytes of one state of one slot.
    fn read_part(&self, slot: Slot, state: usize, bytes: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; bytes];
        self.backend.read(&self.buffers[state], slot.index() * self.specs[state].bytes(), &mut out)?;
        Ok(out)
    }

    /// The sequence in a slot as bytes; `model` says of which model.
    pub(crate) fn snapshot(&self, slot: Slot, model: u64) -> Result<Vec<u8>> {
        let n_past = self.n_past(slot)?;
        let mut writer = snapshot::Writer::new(model, n_past, self.specs.len());
        for (i, spec) in self.specs.iter().enumerate() {
            writer.section(&self.read_part(slot, i, spec.used_bytes(n_past))?);
        }
        Ok(writer.finish())
    }

    /// Makes the slot hold the sequence of a snapshot of the same model. The slot is as before after every error but one
    /// of the backend, which leaves it torn.
    pub(crate) fn restore(&mut self, slot: Slot, bytes: &[u8], model: u64) -> Result<()> {
        self.n_past(slot)?;
        let snapshot = snapshot::read(bytes, model)?;
        let n_past = snapshot.n_past;
        if n_past > self.n_ctx {
            return Err(Error::ContextFull { capacity: self.n_ctx, wanted: n_past });
        }
        let sections = snapshot.sections(self.specs.iter().map(|s| s.used_bytes(n_past)))?;
        self.slots[slot.index()] = Some(Held { n_past, torn: true });
        for ((spec, buffer), section) in self.specs.iter().zip(&self.buffers).zip(sections) {
            self.backend.write(buffer, slot.index() * spec.bytes(), section)?;
        }
        self.slots[slot.index()] = Some(Held { n_past, torn: false });
        Ok(())
    }
}

fn no_sequence<T>(slot: Slot) -> Result<T> {
    refuse(format_args!("slot {} holds no sequence", slot.0))
}
