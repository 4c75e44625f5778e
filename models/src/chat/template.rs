//! [`Template`]: the chat template of a model's file, in the language of Jinja as transformers sets it up.
//! Source: transformers, `utils/chat_template_utils.py`, `_compile_jinja_template`.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use engine::gguf::Gguf;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Environment, ErrorKind};

use super::python::{self, Json};
use super::{DateTime, Value};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Where model files keep the template.
const KEY: &str = "tokenizer.chat_template";
/// Name of the one template of an environment.
const NAME: &str = "chat";
/// Steps that a template may take: some hundred for a message.
const FUEL: u64 = 10_000_000;
/// Bytes that a template may print.
const MAX_BYTES: usize = 64 << 20;
/// Levels of indentation that `tojson` accepts.
const MAX_INDENT: usize = 16;
/// A text that no template contains.
const PROBE: &str = "tympan-probe-7f3a";

/// Texts of tokens that templates name.
#[derive(Clone, Default, Debug)]
pub struct SpecialTokens {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// `pad_token`.
    pub padding: Option<String>,
}

impl SpecialTokens {
    /// Those of a vocabulary.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let text = |id: Option<u32>| id.map(|id| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned());
        Self { bos: text(tokenizer.bos()), eos: text(tokenizer.eos()), padding: text(tokenizer.padding()) }
    }
}

/// What a message says.
#[derive(Clone, PartialEq, Debug)]
pub enum Content {
    /// A text.
    Text(String),
    /// Parts with a `type` each.
    Parts(Vec<Value>),
    /// Nothing.
    None,
}

/// One turn of a conversation.
#[derive(Clone, PartialEq, Debug)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`.
    pub role: String,
    /// What is said.
    pub content: Content,
    /// What else templates look for, such as `reasoning_content` or `tool_calls`.
    pub more: Vec<(String, Value)>,
}

impl From<&Message> for Jinja {
    fn from(message: &Message) -> Self {
        let content = match &message.content {
            Content::Text(text) => Self::from(text.as_str()),
            Content::Parts(parts) => parts.iter().map(Self::from).collect(),
            Content::None => Self::from(()),
        };
        let own = [("role", Self::from(message.role.as_str())), ("content", content)];
        let more = message.more.iter().map(|(name, value)| (name.as_str(), Self::from(value)));
        Self::from_pairs(own.into_iter().chain(more))
    }
}

/// How a conversation is written.
#[derive(Clone, Copy, Debug)]
pub struct Rendering<'a> {
    /// Whether the text ends where the model's answer begins.
    pub add_generation_prompt: bool,
    /// What `strftime_now` writes.
    pub now: DateTime,
    /// Other variables, such as `enable_thinking` or `tools`.
    pub variables: &'a [(String, Value)],
}

/// A template that was read.
pub struct Template {
    environment: Environment<'static>,
    tokens: SpecialTokens,
    wants_parts: bool,
}

impl Template {
    /// Reads a template.
    ///
    /// Errors: `Template` where it is not written as the language wants.
    pub fn new(source: &str, tokens: SpecialTokens) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| malformed(&e))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, _, value| Ok(out.write_str(&python::printed(value))?));
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, source.to_owned()).map_err(|e| malformed(&e))?;
        let mut template = Self { environment, tokens, wants_parts: false };
        template.wants_parts = !template.prints(Content::Text(PROBE.into())) && template.prints(parts(PROBE));
        Ok(template)
    }

    /// Its text.
    pub fn source(&self) -> String {
        self.environment.get_template(NAME).map_or_else(|_| String::new(), |template| template.source().to_owned())
    }

    /// The template of a model's file; `None` where it has none.
    ///
    /// Errors: as [`Template::new`]; a key of another type.
    pub fn of_model(file: &Gguf, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        if !file.contains(KEY) {
            return Ok(None);
        }
        Self::new(file.get_str(KEY)?, SpecialTokens::of(tokenizer)).map(Some)
    }

    /// A message with this text, as a text or as parts, whatever the template prints.
    pub fn message(&self, role: &str, text: &str) -> Message {
        let content = if self.wants_parts { parts(text) } else { Content::Text(text.to_owned()) };
        Message { role: role.to_owned(), content, more: Vec::new() }
    }

    /// The text of a conversation, with everything that stands in it: no token is added to it.
    ///
    /// Errors: `Template` for a conversation that the template does not accept, with its own words, and for one that it cannot
    /// write.
    pub fn render(&self, messages: &[Message], rendering: &Rendering<'_>) -> Result<String> {
        let now = rendering.now;
        let raised = Arc::new(Mutex::new(None));
        let raise = {
            let raised = Arc::clone(&raised);
            move |message: String| {
                *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
                Err::<Jinja, _>(minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception"))
            }
        };
        let token = |text: &Option<String>| text.as_deref().map_or_else(Jinja::default, Jinja::from);
        let known = [
            ("messages", messages.iter().map(Jinja::from).collect()),
            ("tools", Jinja::from(())),
            ("documents", Jinja::from(())),
            ("add_generation_prompt", Jinja::from(rendering.add_generation_prompt)),
            ("bos_token", token(&self.tokens.bos)),
            ("eos_token", token(&self.tokens.eos)),
            ("pad_token", token(&self.tokens.padding)),
            ("raise_exception", Jinja::from_function(raise)),
            ("strftime_now", Jinja::from_function(move |format: String| now.format(&format))),
        ];
        let given = rendering.variables.iter().map(|(name, value)| (name.as_str(), Jinja::from(value)));
        let given: Vec<(&str, Jinja)> = given.collect();
        let is_given = |name: &str| given.iter().any(|(other, _)| *other == name);
        // A token that the vocabulary lacks is not defined at all.
        let known = known.into_iter().filter(|(name, value)| !value.is_undefined() && !is_given(name));
        let context = Jinja::from_pairs(known.chain(given.clone()));
        let mut out = Limited::default();
        let template = self.environment.get_template(NAME).map_err(|e| malformed(&e))?;
        let result = template.render_captured_to(context, &mut out);
        match (result, raised.lock().unwrap_or_else(PoisonError::into_inner).take()) {
            (Ok(_), _) => Ok(String::from_utf8(out.bytes).expect("templates write texts")),
            (Err(_), Some(what)) => Err(Error::Template { what }),
            (Err(_), None) if out.is_full => {
                Err(Error::Template { what: format!("prints more than {MAX_BYTES} bytes") })
            }
            (Err(error), None) => Err(malformed(&error)),
        }
    }

    /// Whether the probe appears in a conversation of one such message.
    fn prints(&self, content: Content) -> bool {
        let message = Message { role: "user".into(), content, more: Vec::new() };
        let now = DateTime::from_unix(0);
        let rendering = Rendering { add_generation_prompt: true, now, variables: &[] };
        self.render(&[message], &rendering).is_ok_and(|text| text.contains(PROBE))
    }
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").field("tokens", &self.tokens).field("wants_parts", &self.wants_parts).finish()
    }
}

/// One part, a text.
fn parts(text: &str) -> Content {
    Content::Parts(vec![Value::map([("type", "text".into()), ("text", text.into())])])
}

/// Bytes up to a limit.
#[derive(Default)]
struct Limited {
    bytes: Vec<u8>,
    /// Whether there were more.
    is_full: bool,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.is_full = bytes.len() > MAX_BYTES - self.bytes.len();
        if self.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn to_json(value: &Jinja, options: Kwargs) -> Result<String, minijinja::Error> {
    let bad = |what: &str| minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"));
    let indent = match options.get::<Option<Jinja>>("indent")?.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) if text.len() <= MAX_INDENT => Some(text.to_owned()),
            (None, Some(n)) if n <= MAX_INDENT => Some(" ".repeat(n)),
            _ => return Err(bad("want an indentation of at most 16")),
        },
    };
    let given = options.get::<Option<Vec<String>>>("separators")?;
    let between = if indent.is_some() { "," } else { ", " };
    let separators = given.unwrap_or_else(|| vec![between.into(), ": ".into()]);
    let separators = <[String; 2]>::try_from(separators).map_err(|_| bad("want two separators"))?;
    let flag = |name| options.get::<Option<bool>>(name).map(Option::unwrap_or_default);
    let json = Json { separators, indent, sort_keys: flag("sort_keys")?, ensure_ascii: flag("ensure_ascii")? };
    options.assert_all_used()?;
    Ok(json.write(value))
}

/// The error about a template, in one line.
fn malformed(error: &minijinja::Error) -> Error {
    let place = error.line().map_or(String::new(), |line| format!("line {line}: "));
    let what = error.detail().map_or(String::new(), |detail| format!(": {detail}"));
    Error::Template { what: format!("{place}{}{what}", error.kind()).replace('\n', " ") }
}
