//! What a batch becomes: the key of its graph, and the words of the graph's input block.
//!
//! A decoder's step comes through here between two runs, when little of this is in a cache. What a step of one token needs
//! is therefore kept short, and what it does not need has functions of its own.

use std::ops::Range;

use super::Session;
use crate::batch::{Batch, Features, Rows, Sequence, Tokens};
use crate::devices::Compiled;
use crate::dtype::DType;
use crate::error::{Result, refuse};
use crate::key::{GraphKey, Stage};
use crate::model::EncoderSpec;
use crate::tensor::Input;

/// -1: the sequence of a row that belongs to none, and the row of states that a new sequence reads.
const NONE: u32 = u32::MAX;

/// Rows of a batch before they are rounded up.
#[derive(Default)]
struct Totals {
    n_tokens: usize,
    n_outputs: usize,
    has_vectors: bool,
    /// Pending rows that are folded.
    n_folded: usize,
    /// Whether some rows are kept, to be folded later.
    keeps: bool,
}

impl Session {
    /// The key of a batch, after checking everything that kernels rely on.
    #[inline(never)]
    pub(super) fn key(&self, batch: &Batch<'_>) -> Result<GraphKey> {
        let mut totals = Totals::default();
        for (i, seq) in batch.seqs.iter().enumerate() {
            self.check(seq, &mut totals)?;
            if batch.seqs[..i].iter().any(|s| s.slot == seq.slot) {
                return refuse(format_args!("slot {} is twice in a batch", seq.slot.index()));
            }
        }
        let Totals { n_tokens, n_outputs, has_vectors, n_folded, keeps } = totals;
        let max = self.options.max_tokens;
        if n_tokens == 0 || n_tokens > max {
            return refuse(format_args!("want 1 to {max} tokens in a batch, got {n_tokens}"));
        }
        let stage = if has_vectors { Stage::Embeddings } else { Stage::Tokens };
        let key = self.key_of(stage, n_tokens, n_outputs)?;
        if n_folded == 0 && !keeps {
            return Ok(key);
        }
        Ok(GraphKey { n_pending: size(self.options.buckets.pending(n_folded))?, ..key })
    }

    /// The key of a call of the language model with so many rows, `n_outputs` of which get logits, whatever sequences they
    /// belong to.
    ///
    /// Errors: sizes that no graph counts.
    pub fn key_of(&self, stage: Stage, n_tokens: usize, n_outputs: usize) -> Result<GraphKey> {
        let n_rows = self.options.buckets.tokens(n_tokens);
        Ok(GraphKey {
            stage,
            n_seqs: size(n_rows.min(self.options.n_slots))?,
            n_tokens: size(n_rows)?,
            n_kv: size(self.memory.reserved_context())?,
            n_outputs: size(self.options.buckets.outputs(n_outputs, n_rows))?,
            n_pending: 0,
        })
    }

    /// Whether a sequence can be fed with these tokens; adds them to the totals.
    #[inline(never)]
    fn check(&self, seq: &Sequence<'_>, totals: &mut Totals) -> Result<()> {
        let n_tokens = seq.tokens.len();
        if n_tokens == 0 {
            return refuse(format_args!("a sequence without tokens"));
        }
        match seq.tokens {
            Tokens::Ids(ids) => {
                if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.n_vocab) {
                    return self.outside(id);
                }
            }
            Tokens::Mixed { ids, embeddings } => {
                self.check_mixed(ids, embeddings)?;
                totals.has_vectors |= !embeddings.is_empty();
            }
        }
        totals.n_tokens = totals.n_tokens.saturating_add(n_tokens);
        totals.n_outputs += check_rows(seq.rows, n_tokens)?;
        self.check_drafts(seq, totals)?;
        self.memory.check_room(seq.slot, n_tokens)
    }

    /// Counts what is pending of a sequence, and what will be.
    fn check_drafts(&self, seq: &Sequence<'_>, totals: &mut Totals) -> Result<()> {
        let (n, most) = (seq.rows.n_drafts(), self.memory.revocable());
        if n > most {
            return refuse(format_args!("{n} drafts, of which the session takes back {most}"));
        }
        totals.n_folded += self.memory.n_pending(seq.slot);
        totals.keeps |= n > 0 && most < usize::MAX;
        Ok(())
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

    /// Writes the inputs of a batch that was checked, and marks its slots as about to change. Remembers where each
    /// sequence's logits will be.
    #[inline(never)]
    pub(super) fn begin(&mut self, index: usize, batch: &Batch<'_>, key: &GraphKey) {
        self.parts.clear();
        let mut block = InputBlock::new(&mut self.words, self.cache.peek(index));
        block.clear_unless_full(batch, key);
        let (mut row, mut out, mut joined) = (0, 0, 0);
        let all_rows = key.n_outputs == key.n_tokens;
        for (i, seq) in batch.seqs.iter().enumerate() {
            let n = seq.tokens.len();
            let n_pending = self.memory.n_pending(seq.slot);
            let n_past = self.memory.begin(seq.slot);
            match seq.tokens {
                Tokens::Ids(ids) => {
                    for (t, &id) in ids.iter().enumerate() {
                        block.set(Input::Tokens, row + t, id as usize);
                    }
                }
                Tokens::Mixed { ids, embeddings } => block.set_mixed(row, ids, embeddings, self.n_embd),
            }
            for t in 0..n {
                block.set(Input::Positions, row + t, n_past + t);
                block.set(Input::Sequences, row + t, i);
            }
            block.set(Input::Slots, i, seq.slot.index());
            let [read, written] = self.memory.rows(seq.slot);
            block.set(Input::Reads, i, if n_past == 0 { NONE as usize } else { read });
            block.set(Input::Writes, i, written);
            block.set(Input::Kept, i, n_pending + n - seq.rows.n_drafts());
            if key.n_pending > 0 {
                block.set(Input::Joined, 2 * i, joined);
                (0..n).for_each(|t| block.set(Input::NewRows, row + t, joined + n_pending + t));
                joined += n_pending + n;
                block.set(Input::Joined, 2 * i + 1, joined);
            }
            block.set(Input::Ranges, 2 * i, row);
            block.set(Input::Ranges, 2 * i + 1, row + n);
            row += n;
            let n_rows = seq.rows.count(n);
            for k in 0..n_rows {
                block.set(Input::OutRows, out + k, row - n_rows + k);
            }
            let first = if all_rows { row - n_rows } else { out };
            self.parts.push((first as u32, n_rows as u32));
            out += n_rows;
        }
        self.n_words = block.n_words();
    }

    /// The key of a call of the encoder with clips that end at frame `end` of their line.
    ///
    /// Errors: sizes that no graph counts.
    pub fn key_of_clips(&self, spec: &EncoderSpec, n_clips: usize, end: usize) -> Result<GraphKey> {
        let n_frames = end.next_multiple_of(spec.line_frames);
        Ok(GraphKey {
            stage: Stage::Encode,
            n_seqs: size(self.options.buckets.clips(n_clips))?,
            n_tokens: size(n_frames)?,
            n_kv: 0,
            n_outputs: size((spec.tokens)(n_frames))?,
            n_pending: 0,
        })
    }

    /// The key of some clips in a line. Remembers the first frame of each.
    pub(super) fn clips_key(&mut self, clips: &[Features<'_>], spec: &EncoderSpec) -> Result<GraphKey> {
        if clips.is_empty() {
            return refuse(format_args!("no clip"));
        }
        self.parts.clear();
        let mut end = 0usize;
        for Features { n_mels, n_frames, values } in clips {
            let want = spec.n_mels;
            if *n_mels != want || *n_frames == 0 || values.len() != n_mels * n_frames {
                return refuse(format_args!("want features [{want}, n_frames], got [{n_mels}, {n_frames}]"));
            }
            let gap = if end == 0 { 0 } else { spec.gap_frames };
            let first = (end + gap).next_multiple_of(spec.clip_frames);
            end = first + n_frames;
            self.parts.push((size(first)?, size(*n_frames)?));
        }
        self.key_of_clips(spec, clips.len(), end)
    }

    /// Writes the inputs of the clips whose key [`Self::clips_key`] just made. Remembers where each clip's tokens will be.
    pub(super) fn begin_clips(&mut self, index: usize, clips: &[Features<'_>], key: &GraphKey, spec: &EncoderSpec) {
        let n_line = key.n_tokens as usize;
        let mut block = InputBlock::new(&mut self.words, self.cache.peek(index));
        block.clear();
        block.of(Input::Features).fill(0);
        for (i, (clip, part)) in clips.iter().zip(&mut self.parts).enumerate() {
            let first = part.0 as usize;
            let rows = block.of(Input::Features).chunks_exact_mut(n_line);
            for (row, band) in rows.zip(clip.values.chunks_exact(clip.n_frames)) {
                row[first..][..clip.n_frames].iter_mut().zip(band).for_each(|(w, v)| *w = v.to_bits());
            }
            block.set(Input::Frames, 2 * i, first);
            block.set(Input::Frames, 2 * i + 1, first + clip.n_frames);
            let (token, n_tokens) = ((spec.tokens)(first), (spec.tokens)(clip.n_frames));
            block.set(Input::Ranges, 2 * i, token);
            block.set(Input::Ranges, 2 * i + 1, token + n_tokens);
            (token..token + n_tokens).for_each(|t| block.set(Input::Sequences, t, i));
            *part = (token as u32, n_tokens as u32);
        }
        self.n_words = block.words.len();
    }
}

/// How many tokens of a sequence get logits.
fn check_rows(rows: Rows, n_tokens: usize) -> Result<usize> {
    match rows {
        Rows::Tail(n) if n == 0 || n > n_tokens => {
            refuse(format_args!("want logits of 1 to {n_tokens} tokens at the end, got {n}"))
        }
        Rows::Drafts(n) if n >= n_tokens => {
            refuse(format_args!("want a token before the drafts, got {n} drafts of {n_tokens} tokens"))
        }
        Rows::None | Rows::Last | Rows::Tail(_) | Rows::Drafts(_) | Rows::All => Ok(rows.count(n_tokens)),
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
struct InputBlock<'a> {
    words: &'a mut [u32],
    layout: &'a [(u32, u32); Input::ALL.len()],
    /// Values of vectors written so far.
    n_values: usize,
    n_vectors: usize,
}

impl<'a> InputBlock<'a> {
    /// The block of a graph, made of `words`. What it holds does not matter yet.
    fn new(words: &'a mut Vec<u32>, compiled: &'a Compiled) -> Self {
        if words.len() != compiled.n_words {
            resize(words, compiled.n_words);
        }
        Self { words, layout: &compiled.layout, n_values: 0, n_vectors: 0 }
    }

    /// The words of one input; none if the graph does not have it.
    fn of(&mut self, input: Input) -> &mut [u32] {
        let (start, len) = self.layout[input.number()];
        &mut self.words[start as usize..][..len as usize]
    }

    /// Sets word number `i` of an input, if the graph has it.
    #[inline(never)]
    fn set(&mut self, input: Input, i: usize, n: usize) {
        if let Some(w) = self.of(input).get_mut(i) {
            // What comes here was checked against sizes far below 2^31.
            *w = n as u32;
        }
    }

    /// Clears the integers for a batch that does not fill them.
    fn clear_unless_full(&mut self, batch: &Batch<'_>, key: &GraphKey) {
        let is_one = key.n_tokens == 1;
        if !is_one && !is_full(batch, key) {
            self.clear();
        }
    }

    /// Makes every row padding. Vectors are never read where none was written.
    #[inline(never)]
    fn clear(&mut self) {
        for input in Input::ALL.into_iter().filter(|input| input.dtype() == DType::I32) {
            self.of(input).fill(if input == Input::Sequences { NONE } else { 0 });
        }
    }

    /// Sets ids of the rows from number `row` on, and the vectors of those whose id is -1.
    #[inline(never)]
    fn set_mixed(&mut self, row: usize, ids: &[i32], embeddings: &[f32], n_embd: usize) {
        let mut n_vectors = self.n_vectors;
        for (word, &id) in self.of(Input::Tokens)[row..].iter_mut().zip(ids) {
            *word = id.cast_unsigned();
            if id == -1 {
                // -1 - n in two's complement.
                *word = !(n_vectors as u32);
                n_vectors += 1;
            }
        }
        let first = self.n_vectors * n_embd;
        if let Some(words) = self.of(Input::Embeddings).get_mut(first..) {
            words.iter_mut().zip(embeddings).for_each(|(w, v)| *w = v.to_bits());
        }
        self.n_vectors = n_vectors;
        self.n_values += embeddings.len();
    }

    /// Words up to the last one that the call needs.
    fn n_words(&self) -> usize {
        let (start, len) = self.layout[Input::Embeddings.number()];
        if len == 0 { self.words.len() } else { start as usize + self.n_values }
    }
}

/// Whether a batch leaves no row and no sequence of its graph to padding.
fn is_full(batch: &Batch<'_>, key: &GraphKey) -> bool {
    let n_tokens: usize = batch.seqs.iter().map(|s| s.tokens.len()).sum();
    let n_outputs: usize = batch.seqs.iter().map(|s| s.rows.count(s.tokens.len())).sum();
    [n_tokens, batch.seqs.len(), n_outputs] == [key.n_tokens, key.n_seqs, key.n_outputs].map(|n| n as usize)
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
