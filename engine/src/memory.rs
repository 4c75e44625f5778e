//! [`Memory`]: arrays indexed `[slot, ..]`, one slot per sequence, the same slot in every layer. There is no class for
//! caches, recurrent states or hybrids: what a model remembers is its list of [`StateSpec`]s.

use std::sync::Arc;

use crate::backend::{Backend, Buffer, Usage};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::Shape;

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

/// State buffers of all slots, and which slots hold a sequence of what length.
pub struct Memory {
    backend: Arc<dyn Backend>,
    specs: Vec<StateSpec>,
    buffers: Vec<Buffer>,
    /// Tokens seen by the sequence in each slot; `None`: free.
    n_past: Vec<Option<usize>>,
    n_ctx: usize,
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
        Ok(Self { backend, specs, buffers, n_past: vec![None; n_slots], n_ctx })
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
        self.n_past.len()
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
        let free = self.n_past.iter().position(Option::is_none);
        let i = free.ok_or(Error::NoFreeSlot { n_slots: self.n_past.len() })?;
        self.n_past[i] = Some(0);
        Ok(Slot(u32::try_from(i).expect("below MAX_SLOTS")))
    }

    /// This slot, if it is free.
    pub fn acquire_at(&mut self, index: usize) -> Result<Slot> {
        match self.n_past.get_mut(index) {
            Some(n_past @ None) => {
                *n_past = Some(0);
                Ok(Slot(u32::try_from(index).expect("below MAX_SLOTS")))
            }
            Some(Some(_)) | None => Err(Error::NoFreeSlot { n_slots: self.n_past.len() }),
        }
    }

    /// Frees a slot. What it held is overwritten by its next owner, never read.
    pub fn release(&mut self, slot: Slot) {
        self.n_past[slot.index()] = None;
    }

    /// Tokens that the sequence in this slot has seen.
    pub fn n_past(&self, slot: Slot) -> Result<usize> {
        let n_past = self.n_past.get(slot.index()).copied().flatten();
        n_past.ok_or_else(|| Error::Batch { what: format!("slot {} holds no sequence", slot.0) })
    }

    /// Room for `n_tokens` more tokens, or [`Error::ContextFull`].
    pub(crate) fn check_room(&self, slot: Slot, n_tokens: usize) -> Result<()> {
        let wanted = self.n_past(slot)?.saturating_add(n_tokens);
        if wanted > self.n_ctx { Err(Error::ContextFull { capacity: self.n_ctx, wanted }) } else { Ok(()) }
    }

    pub(crate) fn advance(&mut self, slot: Slot, n_tokens: usize) {
        if let Some(n_past) = &mut self.n_past[slot.index()] {
            *n_past += n_tokens;
        }
    }

    /// Makes `to` a copy of the sequence in `from`.
    pub fn copy(&mut self, from: Slot, to: Slot) -> Result<()> {
        let n_past = self.n_past(from)?;
        self.n_past(to)?;
        if from == to {
            return Ok(());
        }
        for (spec, buffer) in self.specs.iter().zip(&self.buffers) {
            let bytes = spec.bytes();
            let start = from.index() * bytes;
            self.backend.copy(buffer, start..start + bytes, to.index() * bytes)?;
        }
        self.n_past[to.index()] = Some(n_past);
        Ok(())
    }

    /// Drops the tokens from position `n_past` on: exact, or [`Error::NotRewindable`] where a recurrent state folds them.
    pub fn rewind(&mut self, slot: Slot, n_past: usize) -> Result<()> {
        let now = self.n_past(slot)?;
        if n_past > now {
            return Err(Error::Batch { what: format!("cannot rewind from {now} forward to {n_past}") });
        }
        // Position 0 is exact for every state: the first step reads zeros.
        let exact = n_past == now || n_past == 0 || !self.specs.iter().any(|s| s.role.is_recurrent());
        if !exact {
            return Err(Error::NotRewindable);
        }
        self.n_past[slot.index()] = Some(n_past);
        Ok(())
    }

    /// The bytes of one state of one slot.
    pub fn read_state(&self, slot: Slot, state: usize) -> Result<Vec<u8>> {
        let bytes = self.specs[state].bytes();
        let mut out = vec![0; bytes];
        self.backend.read(&self.buffers[state], slot.index() * bytes, &mut out)?;
        Ok(out)
    }
}
