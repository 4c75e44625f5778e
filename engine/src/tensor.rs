//! What a tensor is and where its bytes come from. Read [`TensorDesc`] first; [`Tensor`] is a handle that model code
//! passes around, `weights::Weight` and `state::State` are the others.

use crate::dtype::DType;
use crate::shape::{MAX_RANK, Shape};
use crate::weights::WeightId;

/// Index of a tensor in its graph.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TensorId(pub(crate) u32);

impl TensorId {
    /// Position in [`crate::graph::Graph::tensors`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Index of a node in its graph; nodes are in execution order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub(crate) u32);

impl NodeId {
    /// Position in [`crate::graph::Graph::nodes`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Index of a state in the model's [`crate::state::States`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StateId(pub u32);

impl StateId {
    /// Position in the model's list.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Handle to a tensor of the graph being built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tensor(pub(crate) TensorId);

impl Tensor {
    /// The tensor's index in the graph.
    pub const fn id(self) -> TensorId {
        self.0
    }
}

/// What the caller supplies for every call. All of one graph's inputs lie in one block at the start of the arena, vectors
/// last, so that a call copies only as many of them as it has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Input {
    /// Token ids, i32 `[n_tokens]`; `-1 - i` where vector number `i` of the call stands in place of an embedding.
    Tokens,
    /// Position of every token in its sequence, i32 `[n_tokens]`.
    Positions,
    /// Sequence of every row, i32 `[n_tokens]`; -1 for rows that are padding. For encoders, clip of every audio token.
    Sequences,
    /// Memory slot of every sequence, i32 `[n_seqs]`.
    Slots,
    /// Row of its states of fixed extent that every sequence continues from, i32 `[n_seqs]`; -1: from zeros.
    Reads,
    /// Row of its states of fixed extent that every sequence's are stored in, i32 `[n_seqs]`: where slots have two rows in turns,
    /// the one that it does not continue from.
    Writes,
    /// After how many of its rows every sequence's states of fixed extent are stored, i32 `[n_seqs]`: of pending and new ones
    /// together.
    Kept,
    /// First row of every sequence and the end of its rows, i32 `[n_seqs, 2]`; equal where a sequence is padding.
    Ranges,
    /// As `Ranges`, among pending and new rows together: those of a sequence that are pending come before its new ones.
    Joined,
    /// Of every row its place among pending and new rows together, i32 `[n_tokens]`.
    NewRows,
    /// Rows that reach the output head, i32 `[n_outputs]`.
    OutRows,
    /// First frame of every clip and the end of its frames, i32 `[n_seqs, 2]`; equal where a clip is padding.
    Frames,
    /// The vectors of a call, f32 `[n_tokens, n_embd]`, of which the first come from the caller.
    Embeddings,
    /// Features of the audio encoder, clips in a line, f32 `[n_mels, n_frames]`.
    Features,
    /// An input of a [`crate::program::Program`], by its number among them: f32 of any shape.
    Values(u16),
    /// As `Values`, i32.
    Integers(u16),
}

impl Input {
    /// Every input that a call of a model has, in the order of the input block.
    pub const ALL: [Self; 14] = [
        Self::Tokens,
        Self::Positions,
        Self::Sequences,
        Self::Slots,
        Self::Reads,
        Self::Writes,
        Self::Kept,
        Self::Ranges,
        Self::Joined,
        Self::NewRows,
        Self::OutRows,
        Self::Frames,
        Self::Embeddings,
        Self::Features,
    ];

    /// The element format of this input.
    pub const fn dtype(self) -> DType {
        match self {
            Self::Embeddings | Self::Features | Self::Values(_) => DType::F32,
            Self::Tokens
            | Self::Positions
            | Self::Sequences
            | Self::Slots
            | Self::Reads
            | Self::Writes
            | Self::Kept
            | Self::Ranges
            | Self::Joined
            | Self::NewRows
            | Self::OutRows
            | Self::Frames
            | Self::Integers(_) => DType::I32,
        }
    }

    /// Place in [`Input::ALL`]; inputs of programs come after all of those.
    pub(crate) const fn number(self) -> usize {
        match self {
            Self::Tokens => 0,
            Self::Positions => 1,
            Self::Sequences => 2,
            Self::Slots => 3,
            Self::Reads => 4,
            Self::Writes => 5,
            Self::Kept => 6,
            Self::Ranges => 7,
            Self::Joined => 8,
            Self::NewRows => 9,
            Self::OutRows => 10,
            Self::Frames => 11,
            Self::Embeddings => 12,
            Self::Features => 13,
            Self::Values(n) | Self::Integers(n) => Self::ALL.len() + n as usize,
        }
    }

    /// Whether it belongs to a program: no call of a model has it.
    pub(crate) const fn is_own(self) -> bool {
        self.number() >= Self::ALL.len()
    }
}

/// Where a tensor's bytes come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    /// A tensor of the model file.
    Weight(WeightId),
    /// The rows of all slots of one state.
    State(StateId),
    /// Supplied by the caller.
    Input(Input),
    /// Result number `.1` of a node.
    Node(NodeId, u8),
    /// A window into another tensor that is not itself a view. `offset` counts elements.
    View {
        /// The tensor that owns the bytes.
        of: TensorId,
        /// Elements before the first one of the view.
        offset: u32,
    },
}

/// Format, extents, layout and origin of a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TensorDesc {
    /// Element format.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Shape,
    /// Distance of neighbours along each extent, in elements.
    pub strides: [u32; MAX_RANK],
    /// Where the bytes come from.
    pub source: Source,
}

impl TensorDesc {
    /// A contiguous tensor.
    pub fn contiguous(dtype: DType, shape: Shape, source: Source) -> Self {
        Self { dtype, shape, strides: shape.strides(), source }
    }

    /// Whether the elements lie in one piece in the order of the shape.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1u32;
        self.shape.dims().iter().zip(&self.strides).rev().all(|(&extent, &stride)| {
            let is_dense = extent == 1 || stride == step;
            // As in [`Shape::strides`].
            step = step.wrapping_mul(extent);
            is_dense
        })
    }

    /// Whether each innermost row lies in one piece.
    pub fn has_contiguous_rows(&self) -> bool {
        let rank = self.shape.rank();
        rank == 0 || self.shape.last() == 1 || self.strides[rank - 1] == 1
    }

    /// Bytes of the elements when stored contiguously.
    pub fn bytes(&self) -> usize {
        self.shape.rows() * self.dtype.row_bytes(self.shape.last())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_numbered_by_their_place() {
        for (i, input) in Input::ALL.into_iter().enumerate() {
            assert_eq!(input.number(), i);
            assert!(!input.is_own());
        }
    }
}
