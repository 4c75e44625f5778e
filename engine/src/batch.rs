//! [`Batch`]: the sequences and rows of one call.

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

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Which tokens of a sequence get logits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rows {
    /// None: the call only fills memory.
    None,
    /// The last one.
    Last,
    /// So many at the end, at least one and at most all.
    Tail(usize),
    /// One and so many behind it at the end: drafts, which [`crate::memory::Memory::rewind`] can take back, from states that fold
    /// what came before too. There are as many at most as the session was opened for, and fewer than tokens.
    Drafts(usize),
    /// Every one.
    All,
}

impl Rows {
    /// How many of `n_tokens` tokens get logits.
    pub fn count(self, n_tokens: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Last => n_tokens.min(1),
            Self::Tail(n) => n,
            Self::Drafts(n) => n + 1,
            Self::All => n_tokens,
        }
    }

    /// How many tokens at the end are to be taken back, perhaps.
    pub(crate) fn n_drafts(self) -> usize {
        match self {
            Self::Drafts(n) => n,
            Self::None | Self::Last | Self::Tail(_) | Self::All => 0,
        }
    }
}

/// The next tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Where the sequence's memory is.
    pub slot: Slot,
    /// At least one token.
    pub tokens: Tokens<'a>,
    /// Which of them get logits.
    pub rows: Rows,
}

/// One call: the next tokens of some sequences. Lengths, kinds of tokens and rows with logits may differ.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Sequences in different slots.
    pub seqs: &'a [Sequence<'a>],
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

/// Results of one call, some rows for every sequence or clip of it; lives until the next one.
#[derive(Clone, Copy, Debug)]
struct Results<'a> {
    values: &'a [f32],
    width: usize,
    /// First row of every part, and its number of rows.
    parts: &'a [(u32, u32)],
}

impl<'a> Results<'a> {
    fn part(&self, i: usize) -> &'a [f32] {
        let (first, n) = self.parts[i];
        &self.values[first as usize * self.width..][..n as usize * self.width]
    }
}

/// Logits of one call; lives until the next one.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a>(Results<'a>);

impl<'a> Logits<'a> {
    pub(crate) fn new(values: &'a [f32], n_vocab: usize, parts: &'a [(u32, u32)]) -> Self {
        Self(Results { values, width: n_vocab, parts })
    }

    /// `[n_vocab]` for the last token of sequence `i_seq` of the batch. Panics where it asked for no logits.
    pub fn last(&self, i_seq: usize) -> &'a [f32] {
        let rows = self.0.part(i_seq);
        &rows[rows.len() - self.0.width..]
    }

    /// `[n_vocab]` for row `i` of those that sequence `i_seq` asked for. Panics past their number.
    pub fn row(&self, i_seq: usize, i: usize) -> &'a [f32] {
        &self.0.part(i_seq)[i * self.0.width..][..self.0.width]
    }

    /// `[n_rows, n_vocab]`: all rows that sequence `i_seq` asked for.
    pub fn rows(&self, i_seq: usize) -> &'a [f32] {
        self.0.part(i_seq)
    }
}

/// Audio embeddings of one call; lives until the next one.
#[derive(Clone, Copy, Debug)]
pub struct Embeddings<'a>(Results<'a>);

impl<'a> Embeddings<'a> {
    pub(crate) fn new(values: &'a [f32], n_embd: usize, parts: &'a [(u32, u32)]) -> Self {
        Self(Results { values, width: n_embd, parts })
    }

    /// `[n_tokens, n_embd]` of clip `i_clip`, for `n_tokens` as the model's encoder counts them.
    pub fn clip(&self, i_clip: usize) -> &'a [f32] {
        self.0.part(i_clip)
    }
}
