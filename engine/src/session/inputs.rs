//! What a batch becomes: the key of its graph, and the words of the graph's input block.
//!
//! A decoder's step comes through here between two runs, when little of this is in a cache. What a step of one token needs
//! is therefore kept short, and what it does not need has functions of its own.

use std::ops::Range;

use super::Session;
use super::compile::Compiled;
use crate::batch::{Batch, Sequence, Tokens};
use crate::dtype::DType;
use crate::error::{Result, refuse};
use crate::key::{GraphKey, Stage};
use crate::tensor::Input;

impl Session {
    /// The key of a batch, after checking everything that kernels rely on.
    #[inline(never)]
    pub(super) fn key(&self, batch: &Batch<'_>) -> Result<GraphKey> {
        let Some(first) = batch.seqs.first() else { return refuse(format_args!("an empty batch")) };
        let stage = stage(&first.tokens);
        let mut longest = 0;
        for (i, seq) in batch.seqs.iter().enumerate() {
            self.check(seq, stage)?;
            longest = longest.max(seq.tokens.len());
            if batch.seqs[..i].iter().any(|s| s.slot == seq.slot) {
                return refuse(format_args!("slot {} is twice in a batch", seq.slot.index()));
            }
        }
        Ok(GraphKey {
            stage,
            n_seqs: size(self.buckets.seqs(batch.seqs.len()))?,
            n_tokens: size(self.buckets.tokens(longest))?,
            n_kv: size(self.memory.n_ctx())?,
            rows: batch.rows,
        })
    }

    /// Whether a sequence can be fed with these tokens.
    #[inline(never)]
    fn check(&self, seq: &Sequence<'_>, of: Stage) -> Result<()> {
        let (n_tokens, max) = (seq.tokens.len(), self.options.max_tokens);
        if n_tokens == 0 || n_tokens > max {
            return refuse(format_args!("want 1 to {max} tokens per sequence, got {n_tokens}"));
        }
        if stage(&seq.tokens) != of {
            return refuse(format_args!("a batch of token ids and embeddings"));
        }
        match seq.tokens {
            Tokens::Ids(ids) => {
                if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.n_vocab) {
                    return self.outside(id);
                }
            }
            Tokens::Mixed { ids, embeddings } => self.check_mixed(ids, embeddings)?,
        }
        self.memory.check_room(seq.slot, n_tokens)
    }

    #[cold]
    fn outside(&self, id: u32) -> Result<()> {
        refuse(format_args!("token {id} is outside the vocabulary of {}", self.n_vocab))
    }

    #[inline(never)]
    fn check_mixed(&self, ids: &[i32], embeddings: &[f32]) -> Result<()> {
        let real = ids.iter().filter(|&&id| id != -1);
        if let Some(&id) = real.clone().find(|id| id.cast_unsigned() as usize >= self.n_vocab) {
            return self.outside(id.cast_unsigned());
        }
        let (want, got) = ((ids.len() - real.count()) * self.n_embd, embeddings.len());
        if want == got {
            return Ok(());
        }
        refuse(format_args!("want {want} values for the positions without an id, got {got}"))
    }

    /// Writes the inputs of a batch that was checked, and marks its slots as about to change.
    #[inline(never)]
    pub(super) fn begin(&mut self, index: usize, batch: &Batch<'_>, key: &GraphKey) {
        let n_tokens = key.n_tokens as usize;
        let mut block = InputBlock::new(&mut self.words, self.cache.peek(index));
        if batch.seqs.len() != key.n_seqs as usize || batch.seqs.iter().any(|s| s.tokens.len() != n_tokens) {
            block.clear();
        }
        for (i, seq) in batch.seqs.iter().enumerate() {
            let (first, n) = (i * n_tokens, seq.tokens.len());
            let n_past = self.memory.begin(seq.slot);
            for t in 0..n {
                block.set(Input::Tokens, first + t, seq.tokens.id(t) as usize);
                block.set(Input::Positions, first + t, n_past + t);
            }
            block.set(Input::Slots, i, seq.slot.index());
            block.set(Input::Lengths, i, n);
            block.set(Input::OutRows, i, first + n - 1);
            if let Tokens::Mixed { ids, embeddings } = seq.tokens {
                block.set_vectors(first, ids, embeddings, self.n_embd);
            }
        }
    }
}

fn stage(tokens: &Tokens<'_>) -> Stage {
    match tokens {
        Tokens::Ids(_) => Stage::Tokens,
        Tokens::Mixed { .. } => Stage::Embeddings,
    }
}

fn size(n: usize) -> Result<u32> {
    u32::try_from(n).or_else(|_| refuse(format_args!("{n} is too large for one call")))
}

#[cold]
fn resize(words: &mut Vec<u32>, n_words: usize) {
    words.resize(n_words, 0);
}

/// The words of a graph's input block, found by input.
pub(super) struct InputBlock<'a> {
    words: &'a mut [u32],
    layout: &'a [(u32, u32); Input::ALL.len()],
}

impl<'a> InputBlock<'a> {
    /// The block of a graph, made of `words`. What it holds does not matter yet.
    pub(super) fn new(words: &'a mut Vec<u32>, compiled: &'a Compiled) -> Self {
        if words.len() != compiled.n_words {
            resize(words, compiled.n_words);
        }
        Self { words, layout: &compiled.layout }
    }

    /// The words of one input; none if the graph does not have it.
    pub(super) fn of(&mut self, input: Input) -> &mut [u32] {
        let (start, len) = self.layout[input as usize];
        &mut self.words[start as usize..][..len as usize]
    }

    /// Sets word number `i` of an input, if the graph has it.
    #[inline(never)]
    pub(super) fn set(&mut self, input: Input, i: usize, n: usize) {
        if let Some(w) = self.of(input).get_mut(i) {
            // What comes here was checked against sizes far below 2^31, or is the id -1.
            *w = n as u32;
        }
    }

    /// Zeroes the integers, for a batch that does not fill them. Vectors are never read where none was written.
    #[inline(never)]
    fn clear(&mut self) {
        for input in Input::ALL.into_iter().filter(|input| input.dtype() == DType::I32) {
            self.of(input).fill(0);
        }
    }

    /// Sets vectors of the tokens from number `first` on: those whose id is -1.
    #[inline(never)]
    fn set_vectors(&mut self, first: usize, ids: &[i32], embeddings: &[f32], n_embd: usize) {
        let rows = self.of(Input::Embeddings)[first * n_embd..].chunks_exact_mut(n_embd);
        let places = rows.zip(ids).filter(|(_, id)| **id == -1).map(|(row, _)| row);
        for (row, vector) in places.zip(embeddings.chunks_exact(n_embd)) {
            for (w, v) in row.iter_mut().zip(vector) {
                *w = v.to_bits();
            }
        }
    }
}

/// Some of the tokens, with the vectors that belong to them.
pub(super) fn slice_tokens<'a>(tokens: Tokens<'a>, range: Range<usize>, n_embd: usize) -> Tokens<'a> {
    match tokens {
        Tokens::Ids(ids) => Tokens::Ids(&ids[range]),
        Tokens::Mixed { ids, embeddings } => {
            let vectors = |ids: &[i32]| ids.iter().filter(|&&id| id == -1).count() * n_embd;
            let start = vectors(&ids[..range.start]);
            let len = vectors(&ids[range.clone()]);
            Tokens::Mixed { ids: &ids[range], embeddings: embeddings.get(start..start + len).unwrap_or_default() }
        }
    }
}
