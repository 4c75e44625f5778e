//! What a batch becomes: the key of its graph, and the words of the graph's input block.

use std::ops::Range;

use super::Session;
use crate::batch::{Batch, Tokens};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::key::{GraphKey, Stage};
use crate::tensor::Input;

impl Session {
    /// The key of a batch, after checking everything that kernels rely on.
    pub(super) fn key(&self, batch: &Batch<'_>) -> Result<GraphKey> {
        let bad = |what: String| Err(Error::Batch { what });
        let Some(first) = batch.seqs.first() else { return bad("an empty batch".into()) };
        let stage = |t: &Tokens<'_>| match t {
            Tokens::Ids(_) => Stage::Tokens,
            Tokens::Mixed { .. } => Stage::Embeddings,
        };
        let mut longest = 0;
        for (i, seq) in batch.seqs.iter().enumerate() {
            let n_tokens = seq.tokens.len();
            longest = longest.max(n_tokens);
            if stage(&seq.tokens) != stage(&first.tokens) {
                return bad("a batch of token ids and embeddings".into());
            }
            if batch.seqs[..i].iter().any(|s| s.slot == seq.slot) {
                return bad(format!("slot {} is twice in a batch", seq.slot.index()));
            }
            let n_vocab = self.model.n_vocab();
            let outside = |id: u32| format!("token {id} is outside the vocabulary of {n_vocab}");
            match seq.tokens {
                Tokens::Ids(ids) => {
                    if let Some(&id) = ids.iter().find(|&&id| id as usize >= n_vocab) {
                        return bad(outside(id));
                    }
                }
                Tokens::Mixed { ids, embeddings } => {
                    let real = ids.iter().filter(|&&id| id != -1);
                    if let Some(&id) = real.clone().find(|&&id| !usize::try_from(id).is_ok_and(|id| id < n_vocab)) {
                        return bad(outside(id.cast_unsigned()));
                    }
                    let (want, got) = ((ids.len() - real.count()) * self.model.n_embd(), embeddings.len());
                    if want != got {
                        return bad(format!("want {want} values for the positions without an id, got {got}"));
                    }
                }
            }
            if n_tokens == 0 || n_tokens > self.options.max_tokens {
                return bad(format!("want 1 to {} tokens per sequence, got {n_tokens}", self.options.max_tokens));
            }
            self.memory.check_room(seq.slot, n_tokens)?;
        }
        let size =
            |n: usize| u32::try_from(n).map_err(|_| Error::Batch { what: format!("{n} is too large for one call") });
        Ok(GraphKey {
            stage: stage(&first.tokens),
            n_seqs: size(self.buckets.seqs(batch.seqs.len()))?,
            n_tokens: size(self.buckets.tokens(longest))?,
            n_kv: size(self.memory.n_ctx())?,
            rows: batch.rows,
        })
    }

    pub(super) fn write_batch(&mut self, index: usize, batch: &Batch<'_>, key: &GraphKey) -> Result<()> {
        let (n_tokens, n_embd) = (key.n_tokens as usize, self.model.n_embd());
        self.clear_words(index);
        // Values were checked against the context and the vocabulary, both far below 2^31.
        let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        for (i, seq) in batch.seqs.iter().enumerate() {
            let n = seq.tokens.len();
            let n_past = self.memory.n_past(seq.slot)?;
            match seq.tokens {
                Tokens::Ids(ids) => self.fill(index, Input::Tokens, |w| w[i * n_tokens..][..n].copy_from_slice(ids)),
                Tokens::Mixed { ids, embeddings } => {
                    self.fill(index, Input::Tokens, |w| {
                        for (w, id) in w[i * n_tokens..].iter_mut().zip(ids) {
                            *w = id.cast_unsigned();
                        }
                    });
                    self.fill(index, Input::Embeddings, |w| {
                        let rows = w[i * n_tokens * n_embd..].chunks_exact_mut(n_embd).zip(ids);
                        let places = rows.filter(|(_, id)| **id == -1).map(|(row, _)| row);
                        for (row, vector) in places.zip(embeddings.chunks_exact(n_embd)) {
                            for (w, v) in row.iter_mut().zip(vector) {
                                *w = v.to_bits();
                            }
                        }
                    });
                }
            }
            self.fill(index, Input::Positions, |w| {
                for (t, w) in w[i * n_tokens..][..n].iter_mut().enumerate() {
                    *w = word(n_past + t);
                }
            });
            self.fill(index, Input::Slots, |w| w[i] = word(seq.slot.index()));
            self.fill(index, Input::Lengths, |w| w[i] = word(n));
            self.fill(index, Input::OutRows, |w| w[i] = word(i * n_tokens + n - 1));
        }
        Ok(())
    }

    /// Zeroes the integers of the input block. Vectors are written by whoever has some, and never read elsewhere.
    pub(super) fn clear_words(&mut self, index: usize) {
        let compiled = self.cache.peek(index);
        self.words.resize(compiled.n_words, 0);
        for (input, &(start, len)) in Input::ALL.iter().zip(&compiled.layout) {
            if input.dtype() == DType::I32 {
                self.words[start as usize..][..len as usize].fill(0);
            }
        }
    }

    /// Lets `write` fill the words of one input, if the graph has it.
    pub(super) fn fill(&mut self, index: usize, input: Input, write: impl FnOnce(&mut [u32])) {
        let (start, len) = self.cache.peek(index).layout[input as usize];
        if len > 0 {
            write(&mut self.words[start as usize..][..len as usize]);
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
