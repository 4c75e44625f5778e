//! [`Generator`]: text to text. A prompt is fed to a language model, which continues it token by token. The command line only
//! parses arguments and prints.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::DType;
use engine::backend::Backend;
use engine::gguf::Gguf;
use engine::session::{MAX_PENDING, Reuse, Session, SessionOptions, Stats};

use crate::Loaded;
use crate::chat::Template;
use crate::decoding::{Decoding, Event, Finish, Prompt, Rules};
use crate::draft::{Drafters, Statistics};
use crate::error::{Error, Result};
use crate::hparams::context_length;
use crate::sample::Sampling;
use crate::scheduler::{Rollback, SPARE_BYTES, Scheduler};
use crate::stop::StopTexts;
use crate::tokenizer::{Special, TokenKind, Tokenizer, Unfinished};

/// Positions of a slot before the first request says how many it needs.
const FIRST_CONTEXT: usize = 256;

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
    /// Texts that end the answer; nothing of them is in it.
    pub stop: &'a [String],
    /// Keeps the logits of every token of the prompt.
    pub prompt_logits: bool,
}

/// What came out.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Generated {
    /// The new tokens. A token that ends the text is not among them, nor is one with anything of a stop text.
    pub ids: Vec<u32>,
    /// Their text, without control tokens.
    pub text: String,
    /// Tokens that were chosen, those that are left out included.
    pub n_chosen: usize,
    /// What ended it.
    pub end: End,
    /// `[n_tokens, n_vocab]` for the tokens of the prompt, where they were asked for.
    pub prompt_logits: Vec<f32>,
    /// The prompt up to the first choice.
    pub prefill: Duration,
    /// Everything after it.
    pub decode: Duration,
    /// Tokens that came behind a stop text, in the step that ended it.
    pub n_cut: usize,
    /// What came of drafts, where there were drafters.
    pub speculation: Option<Statistics>,
}

/// What ended an answer.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum End {
    /// As many tokens came as were asked for, or whoever watched wanted no more.
    #[default]
    Limit,
    /// A token that ends a text.
    Token(u32),
    /// This text, of those that were to end it.
    Text(String),
}

/// What a caller watches a run with: new tokens, and the text so far. What may be the beginning of a stop text is held back.
pub type Observer<'a> = dyn FnMut(&[u32], &str) -> ControlFlow<()> + 'a;

/// All of a language model but its network: the vocabulary, the template, what ends a text. It can be shared.
pub struct Writer {
    tokenizer: Arc<Tokenizer>,
    stop: Vec<u32>,
    n_ctx: usize,
    n_vocab: usize,
    n_embd: usize,
    file: Gguf,
}

impl Writer {
    /// That of a model; of a speech model, that of its language model.
    ///
    /// Errors: a vocabulary that the tokenizer refuses, a context length that makes no sense.
    pub fn open(loaded: &Loaded) -> Result<Self> {
        let tokenizer = Arc::new(Tokenizer::from_gguf(&loaded.files[0])?);
        Self::with(loaded, tokenizer)
    }

    /// As [`Writer::open`], with the vocabulary of the model's file, which was read before.
    ///
    /// Errors: a context length that makes no sense.
    pub fn with(loaded: &Loaded, tokenizer: Arc<Tokenizer>) -> Result<Self> {
        let file = &loaded.files[0];
        let n_ctx = context_length(file)?;
        const END_OF_TURN_KEY: &str = "tokenizer.ggml.eot_token_id";
        let end_of_turn = if file.contains(END_OF_TURN_KEY) { Some(file.get_u32(END_OF_TURN_KEY)?) } else { None };
        let is_control = |id: &u32| tokenizer.kind(*id) == Some(TokenKind::Control);
        let by_text = STOP.iter().filter_map(|text| tokenizer.id_of(text)).filter(is_control);
        let stop = tokenizer.eos().into_iter().chain(end_of_turn).chain(by_text).collect();
        let (n_vocab, n_embd) = (loaded.model.n_vocab(), loaded.model.n_embd());
        Ok(Self { tokenizer, stop, n_ctx, n_vocab, n_embd, file: file.clone() })
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
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

    /// The chat template of the model's file; `None` where it has none.
    ///
    /// Errors: one that cannot be read.
    pub fn template(&self) -> Result<Option<Template>> {
        Template::of_model(&self.file, &self.tokenizer)
    }

    /// The tokens of a conversation that a template wrote: nothing is added to it.
    pub fn chat_prompt(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, Special::Parse)
    }

    /// Numbers of tokens that make these beginnings of the text that the tokens were made of, given by their bytes in ascending
    /// order. What ends inside a token has none.
    pub fn positions(&self, ids: &[u32], text: &str, bytes: &[usize]) -> Vec<usize> {
        let text = text.as_bytes();
        let mut wanted = bytes.iter().copied().peekable();
        let mut positions = Vec::new();
        let mut at = 0;
        for (i, &id) in ids.iter().enumerate() {
            let mut token = self.tokenizer.token_bytes(id);
            if i == 0 && token.first() == Some(&b' ') && text.first() != Some(&b' ') {
                // Some vocabularies begin with a space of their own.
                token = &token[1..];
            }
            if !text[at..].starts_with(token) {
                break;
            }
            at += token.len();
            while wanted.next_if(|&byte| byte < at).is_some() {}
            if wanted.next_if_eq(&at).is_some() {
                positions.push(i + 1);
            }
        }
        positions
    }

    /// Whether a request can be carried out.
    ///
    /// Errors: `Argument` for an empty prompt or one with ids outside the vocabulary, for no new tokens, for logits that no
    /// memory holds, for a stop text without text; `ContextFull`.
    pub fn check(&self, request: &Request<'_>) -> Result<()> {
        let bad = |name, what: String| Err(Error::Argument { name, what });
        let n_vocab = self.n_vocab;
        if request.prompt.is_empty() {
            return bad("prompt", "want at least one token, got none".into());
        }
        if let Some(id) = request.prompt.iter().find(|&&id| id as usize >= n_vocab) {
            return bad("prompt", format!("token {id} is outside the vocabulary of {n_vocab}"));
        }
        if request.max_tokens == 0 {
            return bad("number of tokens", "want at least 1, got 0".into());
        }
        if request.stop.iter().any(String::is_empty) {
            return bad("stop text", "want some text, got none".into());
        }
        let wanted = request.prompt.len().saturating_add(request.max_tokens);
        if wanted > self.n_ctx {
            return Err(engine::Error::ContextFull { capacity: self.n_ctx, wanted }.into());
        }
        let logits_bytes = request.prompt.len().saturating_mul(n_vocab).saturating_mul(size_of::<f32>());
        if request.prompt_logits && logits_bytes > MAX_LOGITS_BYTES {
            return bad("prompt logits", format!("want at most {MAX_LOGITS_BYTES} bytes, got {logits_bytes}"));
        }
        Ok(())
    }

    /// The sequence that continues a prompt, and what becomes of its tokens.
    ///
    /// Errors: as [`Writer::check`].
    pub fn begin(&self, request: &Request<'_>) -> Result<(Continuation, Decoding)> {
        self.check(request)?;
        let rules = Rules {
            sampling: request.sampling,
            stop: self.stop.clone(),
            ignore_stop: request.ignore_stop,
            max_tokens: request.max_tokens,
            // As the official code does, rows that pad the head included.
            n_usable: self.n_vocab,
            prompt_logits: request.prompt_logits,
        };
        let continuation = Continuation {
            tokenizer: Arc::clone(&self.tokenizer),
            unfinished: Unfinished::new(true),
            stops: StopTexts::new(request.stop),
            ends: Vec::new(),
            n_shown: 0,
            generated: Generated::default(),
        };
        Ok((continuation, Decoding::new(Prompt::of_ids(request.prompt), self.n_embd, rules)))
    }
}

/// The answer to a request between two calls of the decoder.
pub struct Continuation {
    tokenizer: Arc<Tokenizer>,
    unfinished: Unfinished,
    stops: StopTexts,
    /// Bytes of the text after every token.
    ends: Vec<usize>,
    /// Tokens that were shown.
    n_shown: usize,
    generated: Generated,
}

impl Continuation {
    /// Takes what came of a call. `observer` sees new tokens, with the text so far as it is complete. Breaks where a stop text
    /// came or the observer wants no more.
    pub fn advance(&mut self, event: &Event, observer: &mut Observer<'_>) -> ControlFlow<()> {
        let Self { tokenizer, unfinished, stops, ends, n_shown, generated } = self;
        if let Some(Finish::Stop(id)) = event.finish {
            generated.n_chosen += 1;
            generated.end = End::Token(id);
        }
        for (i, &id) in event.tokens.iter().enumerate() {
            generated.n_chosen += 1;
            generated.ids.push(id);
            unfinished.push(tokenizer, id, &mut generated.text);
            ends.push(generated.text.len() + unfinished.n_pending());
            if let Some((at, stop)) = stops.find(&generated.text) {
                generated.end = End::Text(stop.to_owned());
                generated.n_cut = event.tokens.len() - i - 1;
                generated.text.truncate(at);
                generated.ids.truncate(ends.partition_point(|&end| end <= at));
                return ControlFlow::Break(());
            }
            let n_safe = stops.n_safe(&generated.text);
            let n_ids = ends.partition_point(|&end| end <= n_safe);
            observer(&generated.ids[*n_shown..n_ids], &generated.text[..n_safe])?;
            *n_shown = n_ids;
        }
        ControlFlow::Continue(())
    }

    /// What came out; the rest of the text is in it that was held back.
    pub fn finish(mut self) -> Generated {
        if !matches!(self.generated.end, End::Text(_)) {
            self.unfinished.finish(&mut self.generated.text);
        }
        self.generated
    }
}

/// A language model ready to continue prompt after prompt.
pub struct Generator {
    scheduler: Scheduler,
    writer: Writer,
    drafters: Option<Drafters>,
}

impl Generator {
    /// Opens a session on these backends. `kv_dtype` is the type of the attention cache.
    ///
    /// Errors: as [`Writer::open`]; those of the session.
    pub fn open(loaded: &Loaded, backends: &[Arc<dyn Backend>], kv_dtype: DType) -> Result<Self> {
        Self::open_with(loaded, backends, kv_dtype, 0, Rollback::Ring)
    }

    /// As [`Generator::open`], for drafts of at most `n_drafts` tokens, which are taken back from recurrent states in this way; for
    /// none nothing is kept.
    pub fn open_with(
        loaded: &Loaded,
        backends: &[Arc<dyn Backend>],
        kv_dtype: DType,
        n_drafts: usize,
        rollback: Rollback,
    ) -> Result<Self> {
        let writer = Writer::open(loaded)?;
        let options = SessionOptions {
            n_ctx: FIRST_CONTEXT.min(writer.n_ctx),
            kv_dtype,
            n_pending: rollback.n_pending(n_drafts).min(MAX_PENDING),
            two_rows: rollback.two_rows() && n_drafts > 0,
            spare_bytes: SPARE_BYTES,
            ..SessionOptions::default()
        };
        let session = Session::open(Arc::clone(&loaded.model), &loaded.weights, backends, options)?;
        let mut scheduler = Scheduler::new(session);
        scheduler.set_rollback(rollback);
        Ok(Self { scheduler, writer, drafters: None })
    }

    /// Switches the reuse of compiled graphs.
    pub fn set_reuse(&mut self, reuse: Reuse) {
        self.scheduler.session_mut().set_reuse(reuse);
    }

    /// Gives every text that follows these drafters, which change how long it takes and nothing else.
    ///
    /// Errors: `Argument` where recurrent states cannot be taken back: the generator was not opened for drafts.
    pub fn set_drafters(&mut self, drafters: Drafters) -> Result<()> {
        if self.scheduler.revocable() == 0 {
            let what = "the session keeps no inputs of the model's recurrent states, which drafts need".into();
            return Err(Error::Argument { name: "drafters", what });
        }
        self.drafters = Some(drafters);
        Ok(())
    }

    /// Counters of the session.
    pub fn stats(&self) -> Stats {
        self.scheduler.session().stats()
    }

    /// Vocabulary, template, and what can be asked for.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Continues a prompt. `observer` sees new tokens, with the text so far as it is complete, and ends the run early by breaking.
    ///
    /// Errors: as [`Writer::check`]; logits that no token can be chosen from.
    pub fn generate(&mut self, request: &Request<'_>, observer: &mut Observer<'_>) -> Result<Generated> {
        let Self { scheduler, writer, drafters } = self;
        let (mut continuation, decoding) = writer.begin(request)?;
        let ids: Vec<i32> = request.prompt.iter().map(|id| id.cast_signed()).collect();
        let speculation = drafters.as_ref().map(|drafters| drafters.speculation(&ids)).transpose()?;
        let mut prompt_logits = Vec::new();
        let mut prefill = Duration::ZERO;
        let mut prompt_left = request.prompt.len();
        let mut start = Instant::now();
        let statistics = scheduler.run_with(decoding, speculation, &mut |event, logits| {
            if prompt_left > 0 {
                prompt_left -= event.accepted;
                if request.prompt_logits {
                    prompt_logits.extend_from_slice(logits);
                }
                if prompt_left == 0 {
                    prefill = start.elapsed();
                    start = Instant::now();
                }
            }
            continuation.advance(event, observer)
        })?;
        let decode = start.elapsed();
        let generated = continuation.finish();
        let speculation = statistics.map(|s| Statistics { cut: s.cut + generated.n_cut as u64, ..s });
        Ok(Generated { prompt_logits, prefill, decode, speculation, ..generated })
    }
}
