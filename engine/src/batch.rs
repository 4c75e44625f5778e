//! [`Batch`]: the sequences and tokens of one call.

use crate::key::Rows;
use crate::memory::Slot;

/// What a sequence is fed with.
#[derive(Clone, Copy, Debug)]
pub enum Tokens<'a> {
    /// Token ids.
    Ids(&'a [u32]),
    /// Token ids, and vectors in place of their embeddings where the id is -1: audio in the middle of a prompt.
    Mixed {
        /// One per token; -1 takes the next vector.
        ids: &'a [i32],
        /// `[n, n_embd]` for the `n` ids that are -1, in order.
        embeddings: &'a [f32],
    },
}

impl Tokens<'_> {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Mixed { ids, .. } => ids.len(),
        }
    }

    /// Id of token `i` in 32 bits, -1 included.
    pub(crate) fn id(&self, i: usize) -> u32 {
        match self {
            Self::Ids(ids) => ids[i],
            Self::Mixed { ids, .. } => ids[i].cast_unsigned(),
        }
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The next tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Where the sequence's memory is.
    pub slot: Slot,
    /// At least one token.
    pub tokens: Tokens<'a>,
}

/// One call: the next tokens of some sequences, all of the same kind.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Sequences in different slots; lengths may differ.
    pub seqs: &'a [Sequence<'a>],
    /// Which rows get logits.
    pub rows: Rows,
}

/// Features of one clip for the audio encoder.
#[derive(Clone, Copy, Debug)]
pub struct Features<'a> {
    /// Bands per frame.
    pub n_mels: usize,
    /// Frames.
    pub n_frames: usize,
    /// `[n_mels, n_frames]`.
    pub values: &'a [f32],
}

/// Logits of one call; lives until the next one.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) n_vocab: usize,
    /// Rows per sequence in `values`: 1, or the padded number of tokens.
    pub(crate) stride: usize,
}

impl<'a> Logits<'a> {
    /// `[n_vocab]` for the last token of sequence `i_seq`, when the batch asked for [`Rows::Last`].
    pub fn last(&self, i_seq: usize) -> &'a [f32] {
        self.row(i_seq, 0)
    }

    /// `[n_vocab]` for token `i_token` of sequence `i_seq`, when the batch asked for [`Rows::All`].
    pub fn row(&self, i_seq: usize, i_token: usize) -> &'a [f32] {
        let at = (i_seq * self.stride + i_token) * self.n_vocab;
        &self.values[at..at + self.n_vocab]
    }
}
