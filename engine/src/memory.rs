//! [`Memory`]: arrays indexed `[slot, ..]`, one slot per sequence, the same slot in every layer. There is no class for
//! caches, recurrent states or hybrids: what a model remembers is what it declared in its [`States`].
//!
//! A [`Slot`] is the right to one sequence. Once it is released, every method refuses it, whoever has the place since.
//!
//! A call that fails after it began to run may have changed recurrent states of its sequences. Their slots are *torn*:
//! only [`Memory::release`] and rewinding to 0 are accepted for them. Attention rows past a sequence's length are never
//! read, so a sequence without recurrent state, or without a past, is what it was before the call.

use std::sync::Arc;

use crate::backend::{Backend, Buffer, Usage};
use crate::error::{Error, Result, refuse};
use crate::snapshot;
use crate::state::{StateLayout, StateOptions, StateSpec, States};

/// The place of one sequence in memory, until it is released.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Slot {
    index: u32,
    /// How often the place was given away before.
    generation: u32,
}

impl Slot {
    /// Position in every state buffer.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

/// A place for a sequence.
#[derive(Clone, Copy, Default, Debug)]
struct Place {
    /// That of the slot that holds it, or of the next one.
    generation: u32,
    /// `None`: free.
    held: Option<Held>,
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
    layout: StateLayout,
    buffers: Vec<Buffer>,
    places: Vec<Place>,
    n_ctx: usize,
    has_recurrent: bool,
}

impl Memory {
    /// Buffers for slots of these states and sizes.
    ///
    /// Errors: as for [`States::layout`], and those of the backend.
    pub fn new(backend: Arc<dyn Backend>, states: &States, options: &StateOptions) -> Result<Self> {
        let (layout, n_slots) = (states.layout(options)?, options.n_slots);
        let buffer = |spec: &StateSpec| backend.alloc(spec.bytes() * n_slots, Usage::State);
        let buffers = layout.specs().iter().map(buffer).collect::<Result<_>>()?;
        let has_recurrent = layout.specs().iter().any(|s| s.role.is_recurrent());
        let places = vec![Place::default(); n_slots];
        Ok(Self { backend, layout, buffers, places, n_ctx: options.n_ctx, has_recurrent })
    }

    /// The states as graphs see them.
    pub fn layout(&self) -> &StateLayout {
        &self.layout
    }

    /// What every slot holds.
    pub fn specs(&self) -> &[StateSpec] {
        self.layout.specs()
    }

    /// State buffers, in the order of the specs.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// Number of slots.
    pub fn n_slots(&self) -> usize {
        self.places.len()
    }

    /// Positions per slot.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(Buffer::bytes).sum()
    }

    /// Number of slots without a sequence.
    pub fn n_free(&self) -> usize {
        self.places.iter().filter(|place| place.held.is_none()).count()
    }

    /// The lowest free slot, for a sequence that starts from zeros.
    pub fn acquire(&mut self) -> Result<Slot> {
        let free = self.places.iter().position(|place| place.held.is_none());
        self.acquire_at(free.unwrap_or(self.places.len()))
    }

    /// This slot, if it is free.
    pub fn acquire_at(&mut self, index: usize) -> Result<Slot> {
        match self.places.get_mut(index) {
            Some(Place { generation, held: held @ None }) => {
                *held = Some(Held { n_past: 0, torn: false });
                let index = u32::try_from(index).expect("layouts have far fewer slots");
                Ok(Slot { index, generation: *generation })
            }
            Some(Place { held: Some(_), .. }) | None => Err(Error::NoFreeSlot { n_slots: self.places.len() }),
        }
    }

    /// Frees a slot; one that was released before stays so. What it held is overwritten by the place's next owner, never
    /// read.
    pub fn release(&mut self, slot: Slot) {
        if self.held(slot).is_ok() {
            let Place { generation, held } = &mut self.places[slot.index()];
            (*generation, *held) = (generation.wrapping_add(1), None);
        }
    }

    /// The sequence of a slot. Errors: `Batch` for a slot that was released, or is of a larger memory.
    #[inline]
    fn held(&self, slot: Slot) -> Result<&Held> {
        match self.places.get(slot.index()) {
            Some(Place { generation, held: Some(held) }) if *generation == slot.generation => Ok(held),
            Some(_) | None => no_sequence(slot),
        }
    }

    /// Changes what is known of a slot that [`Self::held`] found.
    fn set(&mut self, slot: Slot, held: Held) {
        self.places[slot.index()].held = Some(held);
    }

    /// Tokens that the sequence in this slot has seen.
    ///
    /// Errors: `Batch` for a slot that was released, `TornSlot` after a call that failed half-way.
    pub fn n_past(&self, slot: Slot) -> Result<usize> {
        match *self.held(slot)? {
            Held { n_past, torn: false } => Ok(n_past),
            Held { torn: true, .. } => Err(Error::TornSlot { slot: slot.index() }),
        }
    }

    /// Room for `n_tokens` more tokens, or [`Error::ContextFull`].
    pub(crate) fn check_room(&self, slot: Slot, n_tokens: usize) -> Result<()> {
        let wanted = self.n_past(slot)?.saturating_add(n_tokens);
        if wanted > self.n_ctx { Err(Error::ContextFull { capacity: self.n_ctx, wanted }) } else { Ok(()) }
    }

    /// A call, which was checked, is about to change this slot's states; until [`Self::commit`] the slot counts as torn
    /// where that matters. Returns the tokens that its sequence has seen.
    pub(crate) fn begin(&mut self, slot: Slot) -> usize {
        let Some(held) = &mut self.places[slot.index()].held else { return 0 };
        held.torn = self.has_recurrent && held.n_past > 0;
        held.n_past
    }

    /// The call has ended well and the sequence is `n_tokens` longer.
    pub(crate) fn commit(&mut self, slot: Slot, n_tokens: usize) {
        if let Some(held) = &mut self.places[slot.index()].held {
            *held = Held { n_past: held.n_past + n_tokens, torn: false };
        }
    }

    /// Makes `to` a copy of the sequence in `from`.
    ///
    /// Errors: either slot released or torn. If the backend fails, `to` is torn.
    pub fn copy(&mut self, from: Slot, to: Slot) -> Result<()> {
        let n_past = self.n_past(from)?;
        self.n_past(to)?;
        if from == to {
            return Ok(());
        }
        self.set(to, Held { n_past, torn: true });
        for (spec, buffer) in self.layout.specs().iter().zip(&self.buffers) {
            let start = from.index() * spec.bytes();
            let bytes = spec.used_bytes(n_past);
            self.backend.copy(buffer, start..start + bytes, to.index() * spec.bytes())?;
        }
        self.set(to, Held { n_past, torn: false });
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
        } else {
            self.held(slot)?;
        }
        self.set(slot, Held { n_past, torn: false });
        Ok(())
    }

    /// The bytes of one state of one slot, torn or not.
    ///
    /// Errors: `Batch` for a slot that was released, or a state that the model does not have.
    pub fn read_state(&self, slot: Slot, state: usize) -> Result<Vec<u8>> {
        self.held(slot)?;
        match self.specs().get(state) {
            Some(spec) => self.read_part(slot, state, spec.bytes()),
            None => refuse(format_args!("state {state} of a model of {} states", self.specs().len())),
        }
    }

    /// The first `bytes` bytes of one state of one slot.
    fn read_part(&self, slot: Slot, state: usize, bytes: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; bytes];
        self.backend.read(&self.buffers[state], slot.index() * self.specs()[state].bytes(), &mut out)?;
        Ok(out)
    }

    /// The sequence in a slot as bytes; `model` says of which model.
    pub(crate) fn snapshot(&self, slot: Slot, model: u64) -> Result<Vec<u8>> {
        let n_past = self.n_past(slot)?;
        let mut writer = snapshot::Writer::new(model, n_past, self.specs().len());
        for (i, spec) in self.specs().iter().enumerate() {
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
        let sections = snapshot.sections(self.specs().iter().map(|s| s.used_bytes(n_past)))?;
        self.set(slot, Held { n_past, torn: true });
        for ((spec, buffer), section) in self.layout.specs().iter().zip(&self.buffers).zip(sections) {
            self.backend.write(buffer, slot.index() * spec.bytes(), section)?;
        }
        self.set(slot, Held { n_past, torn: false });
        Ok(())
    }
}

#[cold]
fn no_sequence<T>(slot: Slot) -> Result<T> {
    refuse(format_args!("slot {} holds no sequence, or another one than when it was acquired", slot.index))
}
