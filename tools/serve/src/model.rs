//! [`Served`]: the model as requests need it. The network itself is the engine thread's.

use std::sync::Arc;

use engine::model::EncoderSpec;
use models::Loaded;
use models::chat::Template;
use models::generate::Writer;
use models::transcription::Listener;
use serde_json::{Value, json};

/// A model that is served.
pub(crate) struct Served {
    /// Its name in replies.
    pub alias: String,
    /// The name of its architecture.
    pub arch: &'static str,
    /// Where it hears: prompts and answers of audio.
    pub speech: Option<(Arc<Listener>, EncoderSpec)>,
    /// Prompts and answers of text.
    pub writer: Arc<Writer>,
    /// How conversations are written; where there is none, why.
    pub template: Result<Template, String>,
    /// Tokens of a request, prompt and answer together.
    pub n_ctx: usize,
    /// Rows of the head.
    pub n_vocab: usize,
    /// Whether it remembers in states that fold the past, which cannot be cut at any token.
    pub is_recurrent: bool,
    /// What `/v1/models` tells.
    pub meta: Value,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
}

impl Served {
    /// What of a model needs no session.
    ///
    /// Errors: those of [`Listener::open`] and [`Writer::open`].
    pub(crate) fn open(loaded: &Loaded, alias: String, n_ctx: usize, created: u64) -> models::Result<Self> {
        let speech = match loaded.model.encoder() {
            Some(encoder) => Some((Arc::new(Listener::open(loaded)?), encoder)),
            None => None,
        };
        let writer = match &speech {
            Some((listener, _)) => Writer::with(loaded, Arc::clone(listener.tokenizer()))?,
            None => Writer::open(loaded)?,
        };
        let template = match writer.template() {
            Ok(Some(template)) => Ok(template),
            Ok(None) => Err("the model's file has no chat template".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let file_bytes: usize = loaded.files.iter().map(engine::gguf::Gguf::file_bytes).sum();
        let n_vocab = loaded.model.n_vocab();
        let is_recurrent = loaded.model.states().declarations().iter().any(|state| state.role.is_recurrent());
        let meta = json!({
            "arch": loaded.arch.name, "n_vocab": n_vocab, "n_embd": loaded.model.n_embd(),
            "n_ctx_train": writer.n_ctx(), "n_ctx": n_ctx, "size": file_bytes, "audio": speech.is_some(),
        });
        Ok(Self {
            alias,
            arch: loaded.arch.name,
            speech,
            writer: Arc::new(writer),
            template,
            n_ctx,
            n_vocab,
            is_recurrent,
            meta,
            created,
        })
    }
}
