//! [`Memory`]: arrays indexed `[slot, ..]`, one slot per sequence, the same slot in every layer. There is no class for
//! caches, recurrent states or hybrids: what a model remembers is its list of [`StateSpec`]s.
//!
//! A call that fails after it began to run may have changed recurrent states of its sequences. Their slots are *torn*:
//! only [`Memory::release`] and rewinding to 0 are accepted for them. Attention rows past a sequence's length are never
//! read, so a sequence without recurrent state, or without a past, is what it was before the call.

use std::sync::Arc;

use crate::backend::{Backend, Buffer, Usage};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::snapshot;

/// Most slots of one memory.
const MAX_SLOTS: usize = 4096;

/// What a state is, which decides how it can be taken back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Attention keys, one row per position.
    Key,
    /// Attention values, one row per position.
    Value,
    /// The last inputs of a convolution.
    Conv,
    /// The state of a recurrence.
    Ssm,
}

impl Role {
    /// Whether the state folds the past, so that it cannot be cut at a position.
    #[deny(clippy::wildcard_enum_match_arm)]
    pub const fn is_recurrent(self) -> bool {
        match self {
            Self::Key | Self::Value => false,
            Self::Conv | Self::Ssm => true,
        }
    }
}

/// Sizes that decide the shape of states and are constant for a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateOptions {
    /// Positions per slot.
    pub n_ctx: usize,
    /// Format of attention keys and values: F16 or F32.
    pub kv_dtype: DType,
}

/// One state of one layer, as one slot holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateSpec {
    /// Index of the layer.
    pub layer: u32,
    /// What it is.
    pub role: Role,
    /// Shape of one slot.
    pub shape: Shape,
    /// Element format.
    pub dtype: DType,
}

impl StateSpec {
    /// Keys and values of one attention layer: two states of `[n_ctx, n_head_kv, head_dim]`.
    pub fn kv(layer: usize, n_head_kv: usize, head_dim: usize, options: &StateOptions) -> [Self; 2] {
        [Role::Key, Role::Value].map(|role| Self {
            layer: layer_number(layer),
            role,
            shape: Shape::from([options.n_ctx, n_head_kv, head_dim]),
            dtype: options.kv_dtype,
        })
    }

    /// The last `d_conv - 1` inputs of a convolution of this width, f32.
    pub fn conv(layer: usize, d_conv: usize, width: usize) -> Self {
        Self {
            layer: layer_number(layer),
            role: Role::Conv,
            shape: Shape::from([d_conv - 1, width]),
            dtype: DType::F32,
        }
    }

    /// Bytes of one slot.
    pub fn bytes(&self) -> usize {
        self.shape.rows() * self.dtype.row_bytes(self.shape.last())
    }

    /// Bytes at the start of a slot that matter for a sequence of `n_past` tokens: nothing before the first token, then
    /// the rows of its positions or the whole recurrent state.
    pub fn used_bytes(&self, n_past: usize) -> usize {
        match self.role {
            Role::Key | Role::Value => self.bytes() / self.shape.dim(0) * n_past,
            Role::Conv | Role::Ssm if n_past == 0 => 0,
            Role::Conv | Role::Ssm => self.bytes(),
        }
    }
}

fn layer_number(layer: usize) -> u32 {
    u32::try_from(layer).expect("models have far fewer layers")
}

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
            return Err(Error::Batch { what: format!("want 1 to {MAX_SLOTS} slots, got {n_slots}") });
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
        let held = self.held(slot)?;
        if held.torn { Err(Error::TornSlot { slot: slot.index() }) } else { Ok(held.n_past) }
    }

    fn held(&self, slot: Slot) -> Result<Held> {
        let held = self.slots.get(slot.index()).copied().flatten();
        held.ok_or_else(|| Error::Batch { what: format!("slot {} holds no sequence", slot.0) })
    }

    /// Room for `n_tokens` more tokens, or [`Error::ContextFull`].
    pub(crate) fn check_room(&self, slot: Slot, n_tokens: usize) -> Result<()> {
        let wanted = self.n_past(slot)?.saturating_add(n_tokens);
        if wanted > self.n_ctx { Err(Error::ContextFull { capacity: self.n_ctx, wanted }) } else { Ok(()) }
    }

    /// A call is about to change this slot's states; until [`Self::commit`] the slot counts as torn where that matters.
    pub(crate) fn begin(&mut self, slot: Slot) {
        if let Some(held) = &mut self.slots[slot.index()] {
            held.torn = self.has_recurrent && held.n_past > 0;
        }
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
                return Err(Error::Batch { what: format!("cannot rewind from {now} forward to {n_past}") });
            }
            if n_past < now && self.has_recurrent {
                return Err(Error::NotRewindable);
            }
        } else {
            self.held(slot)?;
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
