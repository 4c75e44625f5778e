//! [`States`]: what a model remembers of a sequence, declared once, when the model is loaded. A declaration has no sizes
//! of a session; [`StateLayout`] is what the declarations become with them.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::dtype::DType;
use crate::error::{Error, Result, refuse};
use crate::shape::Shape;
use crate::tensor::StateId;

/// Most slots of one memory.
const MAX_SLOTS: usize = 4096;

/// Most positions of a slot.
pub const MAX_CONTEXT: usize = 1 << 17;

/// Most tokens that can be taken back: with the one before them, a call still has room for others.
pub const MAX_PENDING: usize = 255;

/// Columns of a tile of a delta net's matrices: two vectors of the widest instruction set, and few enough that a tile of 128
/// rows, which a row of a call passes twice, stays in the nearest cache.
const DELTA_COLUMNS: usize = 32;

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
    /// Inputs of recurrences that their states do not fold yet, one row per token.
    Pending,
}

impl Role {
    /// Whether the state folds the past, so that it cannot be cut at a position.
    #[deny(clippy::wildcard_enum_match_arm)]
    pub const fn is_recurrent(self) -> bool {
        match self {
            Self::Key | Self::Value => false,
            Self::Conv | Self::Ssm | Self::Pending => true,
        }
    }

    /// Whether it folds what came before, and is no input that waits to be folded.
    pub const fn is_folded(self) -> bool {
        match self {
            Self::Key | Self::Value | Self::Pending => false,
            Self::Conv | Self::Ssm => true,
        }
    }
}

/// How much of a state there is. `Declaration::in_slot` and [`StateSpec::used_bytes`] are all that look at it: a window
/// over positions is another extent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Extent {
    /// A row of these extents for every position, in the session's format of attention caches.
    Positions(Vec<usize>),
    /// These extents for a sequence of any length, f32.
    Fixed(Vec<usize>),
    /// A row of so many elements for every token that the session can take back, f32.
    Pending(usize),
}

/// One state of one layer, whatever the sizes of a session are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Declaration {
    /// Index of the layer.
    pub layer: u32,
    /// What it is.
    pub role: Role,
    /// How much of it there is.
    pub extent: Extent,
}

/// A [`States`] among all of the process; 0 is none of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Owner(u32);

/// Handle to a state, which only the [`States`] that declared it gives. A builder refuses those of another model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    pub(crate) id: StateId,
    pub(crate) owner: Owner,
}

/// Handle to the attention cache of one layer: two states.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvCache {
    pub(crate) k: State,
    pub(crate) v: State,
}

/// Handle to the inputs of a layer's recurrences that are kept while they may be taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pending {
    /// Among those of its kind, which come behind all other states.
    index: u32,
    owner: Owner,
}

/// The states of a model in the order in which they were declared.
#[derive(Debug)]
pub struct States {
    owner: Owner,
    declarations: Vec<Declaration>,
    pending: Vec<Declaration>,
}

impl Default for States {
    fn default() -> Self {
        Self::new()
    }
}

impl States {
    /// No states yet.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Self { owner: Owner(NEXT.fetch_add(1, Ordering::Relaxed)), declarations: Vec::new(), pending: Vec::new() }
    }

    /// Keys and values of an attention layer: two states with rows `[n_head_kv, head_dim]`.
    pub fn kv(&mut self, layer: usize, n_head_kv: usize, head_dim: usize) -> KvCache {
        let [k, v] = [Role::Key, Role::Value]
            .map(|role| self.declare(layer, role, Extent::Positions(vec![n_head_kv, head_dim])));
        KvCache { k, v }
    }

    /// The last `d_conv - 1` inputs of a convolution of this width, whose `d_conv` is at least 2.
    pub fn conv(&mut self, layer: usize, d_conv: usize, width: usize) -> State {
        self.declare(layer, Role::Conv, Extent::Fixed(vec![d_conv.saturating_sub(1), width]))
    }

    /// The state of a selective scan, `[n_head, d_state, head_dim]`.
    pub fn ssm(&mut self, layer: usize, n_head: usize, d_state: usize, head_dim: usize) -> State {
        self.declare(layer, Role::Ssm, Extent::Fixed(vec![n_head, d_state, head_dim]))
    }

    /// The matrices `[k_dim, v_dim]` of a delta net's value heads, as [`crate::op::Op::GatedDelta`] has them: in tiles, where
    /// columns make whole ones.
    pub fn delta(&mut self, layer: usize, n_head: usize, k_dim: usize, v_dim: usize) -> State {
        let width = if v_dim.is_multiple_of(DELTA_COLUMNS) { DELTA_COLUMNS } else { v_dim };
        self.declare(layer, Role::Ssm, Extent::Fixed(vec![n_head * (v_dim / width.max(1)), k_dim, width]))
    }

    /// Inputs of the recurrences of a layer, `width` elements for a token: what [`crate::op::Op::JoinPending`] keeps. Sessions
    /// that take no tokens back have none.
    pub fn pending(&mut self, layer: usize, width: usize) -> Pending {
        let number = |n: usize| u32::try_from(n).expect("models have far fewer layers");
        let index = number(self.pending.len());
        let (layer, extent) = (number(layer), Extent::Pending(width));
        self.pending.push(Declaration { layer, role: Role::Pending, extent });
        Pending { index, owner: self.owner }
    }

    /// A state of any kind.
    fn declare(&mut self, layer: usize, role: Role, extent: Extent) -> State {
        let number = |n: usize| u32::try_from(n).expect("models have far fewer layers");
        let id = StateId(number(self.declarations.len()));
        self.declarations.push(Declaration { layer: number(layer), role, extent });
        State { id, owner: self.owner }
    }

    /// All of them but pending inputs; a state's id is its position.
    pub fn declarations(&self) -> &[Declaration] {
        &self.declarations
    }

    /// Most positions that a slot can have: shapes count the elements of a slot in 32 bits.
    pub(crate) fn largest_context(&self) -> usize {
        let positions = |d: &Declaration| match &d.extent {
            Extent::Positions(row) => {
                let row_len = row.iter().fold(1usize, |n, d| n.saturating_mul(*d));
                (u32::MAX as usize / row_len.max(1)).max(1)
            }
            Extent::Fixed(_) | Extent::Pending(_) => MAX_CONTEXT,
        };
        self.declarations.iter().map(positions).fold(MAX_CONTEXT, usize::min)
    }

    /// Whether every layer with a recurrent state keeps its inputs.
    fn takes_back(&self) -> bool {
        let keeps = |layer| self.pending.iter().any(|p| p.layer == layer);
        self.declarations.iter().filter(|d| d.role.is_recurrent()).all(|d| keeps(d.layer))
    }

    /// What slots of these sizes hold. Where a layer with a recurrent state declares no pending inputs, no token can be taken back.
    ///
    /// Errors: `Batch` for no slots or too many, `OutOfMemory` for more elements than can be counted.
    pub fn layout(&self, options: &StateOptions) -> Result<StateLayout> {
        let n_slots = options.n_slots;
        if n_slots == 0 || n_slots > MAX_SLOTS {
            return refuse(format_args!("want 1 to {MAX_SLOTS} slots, got {n_slots}"));
        }
        if options.n_pending > MAX_PENDING {
            return refuse(format_args!("want at most {MAX_PENDING} tokens to take back, got {}", options.n_pending));
        }
        let n_pending = if self.takes_back() { options.n_pending } else { 0 };
        let pending = self.pending.iter().filter(|_| n_pending > 0);
        let specs = self.declarations.iter().chain(pending).map(|d| d.in_slot(options)).collect::<Result<_>>()?;
        let n_kept = self.declarations.len();
        Ok(StateLayout { owner: self.owner, n_slots, n_pending, n_kept, specs })
    }
}

/// Sizes that decide the shape of states and are constant for a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateOptions {
    /// Sequences that can be held at once.
    pub n_slots: usize,
    /// Positions per slot: as many as there is address space for.
    pub n_ctx: usize,
    /// Format of attention keys and values: F16 or F32.
    pub kv_dtype: DType,
    /// Tokens that can be taken back from states that fold what came before; 0: none, and nothing is kept for it.
    pub n_pending: usize,
    /// Whether these states have two rows in every slot, which calls write in turns: a sequence can go back to where it was before
    /// its last call.
    pub two_rows: bool,
}

impl Declaration {
    /// The state as one slot holds it. Errors: `OutOfMemory` for more elements than a shape can count.
    fn in_slot(&self, options: &StateOptions) -> Result<StateSpec> {
        let (dims, dtype) = match &self.extent {
            Extent::Positions(row) => ([&[options.n_ctx], &row[..]].concat(), options.kv_dtype),
            Extent::Fixed(dims) => (dims.clone(), DType::F32),
            Extent::Pending(width) => (vec![options.n_pending, *width], DType::F32),
        };
        let n_rows = if options.two_rows && self.role.is_folded() { 2 } else { 1 };
        let n_stacked = options.n_slots * n_rows;
        match Shape::new(&dims).filter(|shape| shape.stacked(n_stacked).is_some()) {
            Some(shape) => Ok(StateSpec { layer: self.layer, role: self.role, shape, dtype, n_rows }),
            None => {
                let elements = dims.iter().fold(n_stacked, |n, d| n.saturating_mul(*d));
                let wanted = elements.saturating_mul(dtype.row_bytes(dtype.block().len));
                let what = format!("{:?} state of layer {}", self.role, self.layer);
                Err(Error::OutOfMemory { what, wanted, free: None })
            }
        }
    }
}

/// The states of a model in the sizes of a session: what memory makes buffers of, and graphs see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StateLayout {
    pub(crate) owner: Owner,
    pub(crate) n_slots: usize,
    /// Tokens that can be taken back from states that fold what came before.
    pub(crate) n_pending: usize,
    /// Specs that are no pending inputs: the first ones.
    pub(crate) n_kept: usize,
    pub(crate) specs: Vec<StateSpec>,
}

/// The layout of a graph that touches no memory.
pub(crate) static NO_STATES: StateLayout =
    StateLayout { owner: Owner(0), n_slots: 1, n_pending: 0, n_kept: 0, specs: Vec::new() };

impl StateLayout {
    /// What every slot holds, in the order of the declarations; pending inputs come last.
    pub fn specs(&self) -> &[StateSpec] {
        &self.specs
    }

    /// Number of slots.
    pub fn n_slots(&self) -> usize {
        self.n_slots
    }

    /// The state that holds pending inputs; none for those of another model, and where nothing can be taken back.
    pub(crate) fn pending(&self, pending: Pending) -> Option<State> {
        let id = StateId(u32::try_from(self.n_kept).expect("models have far fewer layers") + pending.index);
        let is_here = self.n_pending > 0 && pending.owner == self.owner && id.index() < self.specs.len();
        is_here.then_some(State { id, owner: self.owner })
    }

    /// What a slot holds of a state; nothing for one of another model.
    pub(crate) fn spec(&self, state: State) -> Option<&StateSpec> {
        self.specs.get(state.id.index()).filter(|_| state.owner == self.owner)
    }
}

/// One state of one layer, as one slot holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateSpec {
    /// Index of the layer.
    pub layer: u32,
    /// What it is.
    pub role: Role,
    /// Shape of one slot; positions come first where it has some.
    pub shape: Shape,
    /// Element format.
    pub dtype: DType,
    /// Rows of this shape that a slot has, of which a sequence is in one: 1, or 2 for states that fold what came before.
    pub n_rows: usize,
}

impl StateSpec {
    /// Bytes of one row, which is all that a slot has unless [`Self::n_rows`] says otherwise.
    pub fn bytes(&self) -> usize {
        self.shape.rows() * self.dtype.row_bytes(self.shape.last())
    }

    /// Bytes at the start of a slot that matter for a sequence of `n_past` tokens: nothing before the first token, then
    /// the rows of its positions or the whole recurrent state.
    pub fn used_bytes(&self, n_past: usize) -> usize {
        match self.role {
            Role::Key | Role::Value => self.bytes() / self.shape.dim(0) * n_past,
            Role::Conv | Role::Ssm | Role::Pending if n_past == 0 => 0,
            Role::Conv | Role::Ssm | Role::Pending => self.bytes(),
        }
    }

    /// Those of them that hold something, where `n_pending` tokens of the sequence are pending.
    pub fn held_bytes(&self, n_past: usize, n_pending: usize) -> usize {
        match self.role {
            Role::Pending => self.bytes() / self.shape.dim(0) * n_pending,
            Role::Key | Role::Value | Role::Conv | Role::Ssm => self.used_bytes(n_past),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_get_the_sizes_of_the_session() {
        let mut states = States::new();
        let conv = states.conv(0, 3, 8);
        let cache = states.kv(1, 2, 16);
        assert_eq!([conv, cache.k, cache.v].map(|s| s.id), [0, 1, 2].map(StateId));
        let options = StateOptions { n_slots: 5, n_ctx: 40, kv_dtype: DType::F16, n_pending: 0, two_rows: false };
        let layout = states.layout(&options).unwrap();
        let shapes: Vec<_> = layout.specs().iter().map(|s| (s.layer, s.role, s.shape, s.dtype)).collect();
        let row = Shape::from([40, 2, 16]);
        let conv = (0, Role::Conv, Shape::from([2, 8]), DType::F32);
        assert_eq!(shapes, [conv, (1, Role::Key, row, DType::F16), (1, Role::Value, row, DType::F16)]);
        let used = |n_past| layout.specs().iter().map(|s| s.used_bytes(n_past)).collect::<Vec<_>>();
        assert_eq!((used(0), used(3)), (vec![0, 0, 0], vec![64, 192, 192]));
    }

    #[test]
    fn sizes_that_cannot_be_counted_are_refused() {
        let mut states = States::new();
        states.kv(0, 1 << 12, 1 << 12);
        let refused = |n_slots, n_ctx| {
            states
                .layout(&StateOptions { n_slots, n_ctx, kv_dtype: DType::F16, n_pending: 0, two_rows: false })
                .unwrap_err()
        };
        assert!(matches!(refused(0, 1), Error::Batch { .. }));
        assert!(matches!(refused(MAX_SLOTS + 1, 1), Error::Batch { .. }));
        assert!(matches!(refused(1, 1 << 10), Error::OutOfMemory { .. }));
        let most = states.largest_context();
        assert_eq!(most, (1 << 8) - 1);
        let layout = |n_ctx| {
            states.layout(&StateOptions {
                n_slots: MAX_SLOTS,
                n_ctx,
                kv_dtype: DType::F16,
                n_pending: 0,
                two_rows: false,
            })
        };
        assert_eq!(layout(most).unwrap().specs()[0].bytes(), most << 25);
        assert!(matches!(layout(most + 1), Err(Error::OutOfMemory { .. })));
        assert_eq!(States::new().largest_context(), MAX_CONTEXT);
    }
}
