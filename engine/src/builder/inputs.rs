//! The inputs that calls of models have, as handles: [`BatchInputs`] of a language model, [`ClipInputs`] of an audio encoder.

use super::GraphBuilder;
use crate::key::{GraphKey, Stage};
use crate::op::Op;
use crate::tensor::{Input, Tensor};
use crate::weights::Weight;

/// Which rows of a call belong to which of its sequences or clips.
#[derive(Clone, Copy, Debug)]
pub struct Spans {
    /// The sequence of every row, `[n_tokens]`.
    pub sequences: Tensor,
    /// The first row and the end of every sequence, `[n_seqs, 2]`.
    pub ranges: Tensor,
}

impl Spans {
    /// All rows of a [`crate::program::Program`] as one sequence.
    #[track_caller]
    pub fn whole(g: &GraphBuilder<'_>, n_tokens: usize) -> Self {
        Self::new(g, 1, n_tokens)
    }

    #[track_caller]
    fn new(g: &GraphBuilder<'_>, n_seqs: usize, n_tokens: usize) -> Self {
        Self { sequences: g.input(Input::Sequences, [n_tokens]), ranges: g.input(Input::Ranges, [n_seqs, 2]) }
    }
}

/// The inputs of a language model's graph: what differs from call to call.
#[derive(Clone, Copy, Debug)]
pub struct BatchInputs {
    /// `[n_tokens]`.
    pub positions: Tensor,
    /// `[n_seqs]`.
    pub slots: Tensor,
    /// `[n_seqs]`.
    pub reads: Tensor,
    /// `[n_seqs]`: `slots`, unless states have two rows in every slot.
    pub(super) writes: Tensor,
    /// `[n_seqs]`.
    pub kept: Tensor,
    /// The rows of every sequence.
    pub spans: Spans,
    /// Where pending rows come before new ones.
    pub(super) joined: Option<Joined>,
    key: GraphKey,
}

/// Pending and new rows together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Joined {
    /// Those of every sequence, `[n_seqs, 2]`.
    pub ranges: Tensor,
    /// Where new rows are among them, `[n_tokens]`.
    pub new_rows: Tensor,
    /// Their number, padding included.
    pub n_rows: u32,
}

impl BatchInputs {
    /// The inputs of a call of this shape.
    #[track_caller]
    pub fn new(g: &GraphBuilder<'_>, key: &GraphKey) -> Self {
        let (n_seqs, n_tokens) = (key.n_seqs as usize, key.n_tokens as usize);
        let slots = g.input(Input::Slots, [n_seqs]);
        Self {
            positions: g.input(Input::Positions, [n_tokens]),
            slots,
            reads: g.input(Input::Reads, [n_seqs]),
            writes: if g.has_two_rows() { g.input(Input::Writes, [n_seqs]) } else { slots },
            kept: g.input(Input::Kept, [n_seqs]),
            spans: Spans::new(g, n_seqs, n_tokens),
            joined: (key.n_pending > 0).then(|| Joined {
                ranges: g.input(Input::Joined, [n_seqs, 2]),
                new_rows: g.input(Input::NewRows, [n_tokens]),
                n_rows: key.n_tokens + key.n_pending,
            }),
            key: *key,
        }
    }

    /// How sequences pass through a state of fixed extent: the rows that they read and write, `kept` and `ranges`, the arguments
    /// behind the state.
    pub(super) fn passages(&self) -> [Tensor; 4] {
        [self.reads, self.writes, self.kept, self.joined.map_or(self.spans.ranges, |joined| joined.ranges)]
    }

    /// `[n_tokens, n_embd]`: rows of `table` for token ids, and the caller's vectors where the call has some.
    #[track_caller]
    pub fn embed(&self, g: &GraphBuilder<'_>, table: Weight) -> Tensor {
        let n_tokens = self.key.n_tokens as usize;
        let ids = g.input(Input::Tokens, [n_tokens]);
        match self.key.stage {
            Stage::Embeddings => {
                let rows = g.input(Input::Embeddings, [n_tokens, g.shape(g.weight(table)).last()]);
                g.push1(Op::Embed, &[g.weight(table), ids, rows])
            }
            Stage::Tokens | Stage::Encode => g.get_rows(table, ids),
        }
    }

    /// The rows of `x [n_tokens, n_embd]` that reach the head, `[n_outputs, n_embd]`; none if the call only fills memory.
    #[track_caller]
    pub fn output_rows(&self, g: &GraphBuilder<'_>, x: Tensor) -> Option<Tensor> {
        match self.key.n_outputs {
            0 => None,
            n if n == self.key.n_tokens => Some(x),
            n => Some(g.select_rows(x, g.input(Input::OutRows, [n as usize]))),
        }
    }
}

/// The inputs of an audio encoder's graph: the clips that lie in a line.
#[derive(Clone, Copy, Debug)]
pub struct ClipInputs {
    /// Features, f32 `[n_mels, n_frames]`.
    pub features: Tensor,
    /// `[n_seqs, 2]`: the frames of every clip.
    pub frames: Tensor,
    /// The audio tokens of every clip.
    pub spans: Spans,
}

impl ClipInputs {
    /// The inputs of a call of this shape, whose frames become `n_tokens` audio tokens, padding included.
    #[track_caller]
    pub fn new(g: &GraphBuilder<'_>, key: &GraphKey, n_mels: usize, n_tokens: usize) -> Self {
        let (n_clips, n_frames) = (key.n_seqs as usize, key.n_tokens as usize);
        Self {
            features: g.input(Input::Features, [n_mels, n_frames]),
            frames: g.input(Input::Frames, [n_clips, 2]),
            spans: Spans::new(g, n_clips, n_tokens),
        }
    }
}
