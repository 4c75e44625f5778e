//! [`ModelDrafter`]: a smaller model of the same vocabulary guesses what the larger one will say.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::DType;
use engine::backend::Backend;
use engine::batch::Tokens;
use engine::gguf::Gguf;
use engine::key::Buckets;
use engine::memory::Slot;
use engine::session::{Session, SessionOptions};

use super::{Drafter, NO_TOKEN, common};
use crate::Loaded;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Tokens whose probabilities are compared with the least one that is asked for: the largest logits.
const TOP: usize = 10;
/// Vocabularies may differ by so many tokens at their end.
const MAX_DIFFERENCE: usize = 128;
/// Tokens before this one may have other texts: they are control tokens of many kinds.
const FIRST_COMPARED: u32 = 5;
/// Positions of a slot at first.
const FIRST_CONTEXT: usize = 256;

/// Whether the tokens of one vocabulary are those of another.
///
/// Errors: `Argument` with what differs. Source: llama.cpp, `common_speculative_are_compatible`.
fn check_vocabulary(target: &Tokenizer, draft: &Tokenizer) -> Result<()> {
    let bad = |what: String| Err(Error::Argument { name: "draft model", what });
    let marks = |t: &Tokenizer| (t.bos(), t.eos(), t.add_bos());
    if marks(target) != marks(draft) {
        return bad(format!("want begin and end tokens {:?}, got {:?}", marks(target), marks(draft)));
    }
    let [n, n_draft] = [target.n_vocab(), draft.n_vocab()];
    if n.abs_diff(n_draft) > MAX_DIFFERENCE {
        return bad(format!("want a vocabulary of about {n} tokens, got {n_draft}"));
    }
    let end = u32::try_from(n.min(n_draft)).expect("vocabularies have far fewer tokens");
    match (FIRST_COMPARED..end).find(|&id| target.token_bytes(id) != draft.token_bytes(id)) {
        Some(id) => {
            let text = |t: &Tokenizer| String::from_utf8_lossy(t.token_bytes(id)).into_owned();
            bad(format!("token {id}: want {:?}, got {:?}", text(target), text(draft)))
        }
        None => Ok(()),
    }
}

/// A model that guesses for several sequences.
pub struct DraftModel {
    inner: Mutex<Inner>,
    weights_bytes: usize,
}

struct Inner {
    session: Session,
    /// A slot for guesses where states cannot be cut back.
    scratch: Option<Slot>,
    /// Why there are no more guesses.
    error: Option<engine::Error>,
}

impl DraftModel {
    /// Opens a session for the guesses of `n_sequences` sequences of a model with the vocabulary `target`.
    ///
    /// Errors: another vocabulary; a model that cannot be opened.
    pub fn open(
        loaded: &Loaded,
        target: &Tokenizer,
        backends: &[Arc<dyn Backend>],
        kv_dtype: DType,
        n_sequences: usize,
    ) -> Result<Self> {
        check_vocabulary(target, &Tokenizer::from_gguf(&loaded.files[0])?)?;
        let options = SessionOptions {
            n_slots: n_sequences + 1,
            n_ctx: FIRST_CONTEXT,
            kv_dtype,
            buckets: Buckets::Coarse,
            ..SessionOptions::default()
        };
        let session = Session::open(Arc::clone(&loaded.model), &loaded.weights, backends, options)?;
        let weights_bytes = loaded.files.iter().map(Gguf::file_bytes).sum();
        Ok(Self { inner: Mutex::new(Inner { session, scratch: None, error: None }), weights_bytes })
    }

    /// Bytes of its files.
    pub fn weights_bytes(&self) -> usize {
        self.weights_bytes
    }

    /// Bytes of what it remembers of a sequence of so many tokens.
    pub fn state_bytes(&self, n_tokens: usize) -> usize {
        let inner = self.lock();
        inner.session.memory().specs().iter().map(|spec| spec.used_bytes(n_tokens)).sum()
    }

    /// Why it guesses no more, once: what failed.
    pub fn take_error(&self) -> Option<engine::Error> {
        self.lock().error.take()
    }

    /// A panic leaves at most slots that are torn, which are refused.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The drafter `draft-simple`: greedy decoding with a draft model, up to a token that it finds less likely than `p_min`.
///
/// Source: llama.cpp, `common_speculative_state_draft`.
pub struct ModelDrafter {
    model: Arc<DraftModel>,
    slot: Slot,
    p_min: f32,
    /// Tokens in the slot.
    fed: Vec<u32>,
    is_broken: bool,
}

impl ModelDrafter {
    /// A drafter for one sequence.
    ///
    /// Errors: no slot is free.
    pub fn new(model: Arc<DraftModel>, p_min: f32) -> Result<Self> {
        let slot = model.lock().session.memory_mut().acquire()?;
        Ok(Self { model, slot, p_min, fed: Vec::new(), is_broken: false })
    }

    fn guess(&mut self, history: &[u32], max: usize, guess: &mut Vec<u32>) -> engine::Result<()> {
        let Self { model, slot, p_min, fed, .. } = self;
        let mut inner = model.lock();
        let Inner { session, scratch, .. } = &mut *inner;
        let n_vocab = session.model().n_vocab();
        if max == 0 || history.iter().any(|&id| id == NO_TOKEN || id as usize >= n_vocab) {
            return Ok(());
        }
        session.reserve_context(history.len() + max)?;
        // The last token is fed again where it was: its logits are wanted.
        let kept = common(fed, history).min(history.len() - 1);
        if kept < fed.len() {
            match session.memory_mut().rewind(*slot, kept) {
                Err(engine::Error::NotRewindable) => {
                    session.memory_mut().rewind(*slot, 0)?;
                    fed.clear();
                }
                result => {
                    result?;
                    fed.truncate(kept);
                }
            }
        }
        let new = history[fed.len()..].to_vec();
        fed.extend_from_slice(&new);
        let mut next = choice(session.feed(*slot, Tokens::Ids(&new))?, *p_min);
        let mut at = *slot;
        for i in 1.. {
            let Some(id) = next else { break };
            guess.push(id);
            if i == max {
                break;
            }
            if i == 1 && session.memory().revocable() == 0 {
                at = match *scratch {
                    Some(scratch) => scratch,
                    None => *scratch.insert(session.memory_mut().acquire()?),
                };
                session.memory_mut().copy(*slot, at)?;
            }
            if at == *slot {
                fed.push(id);
            }
            next = choice(session.feed(at, Tokens::Ids(&[id]))?, *p_min);
        }
        Ok(())
    }
}

/// The token with the largest logit, if it is likely enough among those with the largest ones.
fn choice(logits: &[f32], p_min: f32) -> Option<u32> {
    let best = crate::sample::greedy(logits).ok()?;
    if p_min > 0.0 {
        let mut top = logits.to_vec();
        top.sort_unstable_by(|a, b| b.total_cmp(a));
        let sum: f32 = top.iter().take(TOP).map(|x| (x - logits[best]).exp()).sum();
        if 1.0 / sum < p_min {
            return None;
        }
    }
    u32::try_from(best).ok()
}

impl Drafter for ModelDrafter {
    fn begin(&mut self, _: &[u32]) {}

    fn is_cheap(&self) -> bool {
        false
    }

    fn draft(&mut self, history: &[u32], max: usize, guess: &mut Vec<u32>) {
        if self.is_broken || history.is_empty() {
            return;
        }
        let first = guess.len();
        if let Err(error) = self.guess(history, max, guess) {
            // The text goes on without it; whoever asked for it is told.
            self.is_broken = true;
            guess.truncate(first);
            self.model.lock().error.get_or_insert(error);
        }
    }
}

impl Drop for ModelDrafter {
    fn drop(&mut self) {
        self.model.lock().session.memory_mut().release(self.slot);
    }
}
