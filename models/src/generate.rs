//! [`Generator`]: text to text. A prompt is fed to a language model, which continues it token by token. The command line only
//! parses arguments and prints.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::backend::Backend;
use engine::batch::{Batch, Rows, Sequence, Tokens};
use engine::memory::Slot;
use engine::session::{MAX_CONTEXT, Reuse, Session, SessionOptions, Stats};
use engine::{DType, Error, Result};

use crate::Loaded;
use crate::sample::{Sampler, Sampling};
use crate::tokenizer::{Special, TokenKind, Tokenizer};

/// Slots grow in steps of this many positions, so that prompts of similar length share compiled graphs.
const CONTEXT_STEP: usize = 256;

/// Control tokens that end a turn or a text in the vocabularies of the published models.
const STOP: [&str; 5] = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "</s>"];

/// Most bytes of the logits of a prompt that are kept.
const MAX_LOGITS_BYTES: usize = 4 << 30;

/// What is to be continued, and how.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// At least one token.
    pub prompt: &'a [u32],
    /// Most tokens that are generated, at least one.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Goes on past tokens that end a text.
    pub ignore_stop: bool,
    /// Keeps the logits of every token of the prompt.
    pub prompt_logits: bool,
}

/// What came out.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Generated {
    /// The new tokens. A token that ends the text is not among them.
    pub ids: Vec<u32>,
    /// Their text, without control tokens.
    pub text: String,
    /// Whether a token came that ends the text.
    pub stopped: bool,
    /// `[n_tokens, n_vocab]` for the tokens of the prompt, where they were asked for.
    pub prompt_logits: Vec<f32>,
    /// The prompt up to the first choice.
    pub prefill: Duration,
    /// Everything after it.
    pub decode: Duration,
}

/// What a caller watches a run with.
pub type Observer<'a> = dyn FnMut(u32, &str) -> ControlFlow<()> + Send + 'a;

/// A language model ready to continue prompt after prompt.
pub struct Generator {
    session: Session,
    tokenizer: Tokenizer,
    stop: Vec<u32>,
    n_ctx: usize,
}

impl Generator {
    /// Opens a session on these backends. `kv_dtype` is the type of the attention cache.
    ///
    /// Errors: a vocabulary that the tokenizer refuses, a context length that makes no sense.
    pub fn open(loaded: &Loaded, backends: &[Arc<dyn Backend>], kv_dtype: DType) -> Result<Self> {
        let file = &loaded.files[0];
        let tokenizer = Tokenizer::from_gguf(file)?;
        let context_key = format!("{}.context_length", file.get_str("general.architecture")?);
        let n_ctx = if file.contains(&context_key) {
            (file.get_u32(&context_key)? as usize).min(MAX_CONTEXT)
        } else {
            MAX_CONTEXT
        };
        if n_ctx == 0 {
            return Err(Error::BadValue { key: context_key, what: "want a positive number, got 0".into() });
        }
        const END_OF_TURN_KEY: &str = "tokenizer.ggml.eot_token_id";
        let end_of_turn = if file.contains(END_OF_TURN_KEY) { Some(file.get_u32(END_OF_TURN_KEY)?) } else { None };
        let is_control = |id: &u32| tokenizer.kind(*id) == Some(TokenKind::Control);
        let by_text = STOP.iter().filter_map(|text| tokenizer.id_of(text)).filter(is_control);
        let stop = tokenizer.eos().into_iter().chain(end_of_turn).chain(by_text).collect();
        let options = SessionOptions { n_ctx: CONTEXT_STEP.min(n_ctx), kv_dtype, ..SessionOptions::default() };
        let session = Session::open(Arc::clone(&loaded.model), &loaded.weights, backends, options)?;
        Ok(Self { session, tokenizer, stop, n_ctx })
    }

    /// Switches the reuse of compiled graphs.
    pub fn set_reuse(&mut self, reuse: Reuse) {
        self.session.set_reuse(reuse);
    }

    /// Counters of the session.
    pub fn stats(&self) -> Stats {
        self.session.stats()
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens that the model was made for, prompt and continuation together.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// The tokens of a text, control tokens written in it included. The begin-of-text token comes first where the model
    /// wants one and the text does not have it.
    pub fn prompt(&self, text: &str) -> Vec<u32> {
        let mut ids = self.tokenizer.encode(text, Special::Parse);
        if let Some(bos) = self.tokenizer.bos().filter(|_| self.tokenizer.add_bos())
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }

    /// Whether a request can be carried out.
    ///
    /// Errors: `BadValue` for an empty prompt or one with ids outside the vocabulary, for no new tokens, for logits that no
    /// memory holds; `ContextFull`.
    pub fn check(&self, request: &Request<'_>) -> Result<()> {
        let bad = |key: &str, what: String| Err(Error::BadValue { key: key.into(), what });
        let n_vocab = self.session.model().n_vocab();
        if request.prompt.is_empty() {
            return bad("prompt", "want at least one token, got none".into());
        }
        if let Some(id) = request.prompt.iter().find(|&&id| id as usize >= n_vocab) {
            return bad("prompt", format!("token {id} is outside the vocabulary of {n_vocab}"));
        }
        if request.max_tokens == 0 {
            return bad("number of tokens", "want at least 1, got 0".into());
        }
        let wanted = request.prompt.len().saturating_add(request.max_tokens);
        if wanted > self.n_ctx {
            return Err(Error::ContextFull { capacity: self.n_ctx, wanted });
        }
        let logits_bytes = request.prompt.len().saturating_mul(n_vocab).saturating_mul(size_of::<f32>());
        if request.prompt_logits && logits_bytes > MAX_LOGITS_BYTES {
            return bad("prompt logits", format!("want at most {MAX_LOGITS_BYTES} bytes, got {logits_bytes}"));
        }
        Ok(())
    }

    /// Continues a prompt. `observer` sees every new token, with the text so far as it is complete, and ends the run early by
    /// breaking.
    ///
    /// Errors: as [`Generator::check`].
    pub fn generate(&mut self, request: &Request<'_>, observer: &mut Observer<'_>) -> Result<Generated> {
        self.check(request)?;
        let n_ctx = (request.prompt.len() + request.max_tokens).next_multiple_of(CONTEXT_STEP).min(self.n_ctx);
        self.session.reserve_context(n_ctx)?;
        let slot = self.session.memory_mut().acquire()?;
        let Self { session, tokenizer, stop, .. } = self;
        let generated = session.enter(|session| Run { session, slot, tokenizer, stop }.generate(request, observer));
        self.session.memory_mut().release(slot);
        generated
    }
}

/// One request in its slot.
struct Run<'a> {
    session: &'a mut Session,
    slot: Slot,
    tokenizer: &'a Tokenizer,
    stop: &'a [u32],
}

impl Run<'_> {
    fn generate(&mut self, request: &Request<'_>, observer: &mut Observer<'_>) -> Result<Generated> {
        let mut generated = Generated::default();
        let mut sampler = Sampler::new(request.sampling);
        let mut decoder = self.tokenizer.decoder(true);
        let start = Instant::now();
        let mut next = if request.prompt_logits {
            generated.prompt_logits = self.all_logits(request.prompt)?;
            let first_of_last = generated.prompt_logits.len() - self.session.model().n_vocab();
            sampler.choose(&generated.prompt_logits[first_of_last..])
        } else {
            self.choose(&mut sampler, request.prompt)?
        };
        generated.prefill = start.elapsed();
        let start = Instant::now();
        loop {
            let id = u32::try_from(next).expect("vocabularies have far fewer rows");
            if !request.ignore_stop && self.stop.contains(&id) {
                generated.stopped = true;
                break;
            }
            generated.ids.push(id);
            decoder.push(id, &mut generated.text);
            if observer(id, &generated.text).is_break() || generated.ids.len() == request.max_tokens {
                break;
            }
            next = self.choose(&mut sampler, &[id])?;
        }
        decoder.finish(&mut generated.text);
        generated.decode = start.elapsed();
        Ok(generated)
    }

    /// Feeds tokens, in pieces where they are many, and chooses the one that follows.
    fn choose(&mut self, sampler: &mut Sampler, ids: &[u32]) -> Result<usize> {
        Ok(sampler.choose(self.session.feed(self.slot, Tokens::Ids(ids))?))
    }

    /// Feeds tokens and returns the logits of each, `[n_tokens, n_vocab]`.
    fn all_logits(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(ids.len() * self.session.model().n_vocab());
        let max = self.session.options().max_tokens;
        for piece in ids.chunks(max) {
            let sequence = Sequence { slot: self.slot, tokens: Tokens::Ids(piece), rows: Rows::All };
            let logits = self.session.step(&Batch { seqs: &[sequence] })?;
            all.extend_from_slice(logits.rows(0));
        }
        Ok(all)
    }
}
