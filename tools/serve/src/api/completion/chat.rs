//! Conversations: messages as the model's template writes them.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::Response;
use models::chat::{Content, DateTime, Message, Rendering, Template, Value};
use serde_json::{Value as Json, json};

use super::fields;
use crate::App;
use crate::api::error::ApiError;
use crate::api::fields::Fields;
use crate::http::exchange::{Asked, json};

/// Most messages of a conversation.
const MAX_MESSAGES: usize = 4096;

/// Writes a conversation and does nothing else.
pub(crate) async fn apply_template(asked: Asked) -> Result<Response<Body>, ApiError> {
    let Asked { app, request, .. } = asked;
    let fields = fields(&app, request).await?;
    let text = tokio::task::spawn_blocking(move || Conversation::read(&app, &fields)?.text()).await;
    let text = text.unwrap_or_else(|_| Err(ApiError::server("the template stumbled")))?;
    Ok(json(&json!({"prompt": text})))
}

/// A request's conversation, and all that its template is told.
pub(super) struct Conversation<'a> {
    template: &'a Template,
    messages: Vec<Message>,
    variables: Vec<(String, Value)>,
    now: DateTime,
    add_generation_prompt: bool,
}

impl<'a> Conversation<'a> {
    /// That of a request.
    ///
    /// Errors: 501 for a model without a template, 400 for what are no messages.
    pub(super) fn read(app: &'a App, fields: &Fields) -> Result<Self, ApiError> {
        let template = match &app.model.template {
            Ok(template) => template,
            Err(why) => return Err(ApiError::cannot(format!("chat: {why}"))),
        };
        let messages = messages(fields, template)?;
        let mut variables = Vec::new();
        match fields.get("chat_template_kwargs") {
            None => {}
            Some(Json::Object(map)) => variables.extend(map.iter().map(|(name, x)| (name.clone(), value(x)))),
            Some(_) => return Err(ApiError::field("chat_template_kwargs", "chat_template_kwargs: want an object")),
        }
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = DateTime::from_unix(i64::try_from(seconds).unwrap_or(i64::MAX));
        let add_generation_prompt = fields.flag("add_generation_prompt")?.unwrap_or(true);
        Ok(Self { template, messages, variables, now, add_generation_prompt })
    }

    /// As the model reads it.
    ///
    /// Errors: 400 for messages that make no sense to the template.
    pub(super) fn text(&self) -> Result<String, ApiError> {
        Ok(self.written(self.messages.len(), self.add_generation_prompt)?)
    }

    /// Where messages end in its text, in bytes and ascending: the last ones, and those before at doubling distances.
    pub(super) fn ends(&self, text: &str) -> Vec<usize> {
        // Templates may write earlier messages another way once others follow: such ends are none.
        let end = |n: usize| self.written(n, false).ok().filter(|start| text.starts_with(&**start));
        let mut ends: Vec<usize> = of_interest(self.messages.len()).filter_map(end).map(|start| start.len()).collect();
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    /// The text of its first `n` messages.
    fn written(&self, n: usize, add_generation_prompt: bool) -> models::Result<String> {
        let rendering = Rendering { add_generation_prompt, now: self.now, variables: &self.variables };
        self.template.render(&self.messages[..n], &rendering)
    }
}

/// Numbers of messages whose end may be where the next conversation parts from this one: near its own end each, and further
/// back fewer and fewer.
fn of_interest(n_messages: usize) -> impl Iterator<Item = usize> {
    const N_LAST: usize = 4;
    let doubling = std::iter::successors(Some(N_LAST), |back| back.checked_mul(2));
    let back = (0..N_LAST).chain(doubling.take_while(move |&back| back < n_messages));
    // The first one is what many conversations begin with.
    back.filter_map(move |back| n_messages.checked_sub(back).filter(|&n| n > 1)).chain([1])
}

fn messages(fields: &Fields, template: &Template) -> Result<Vec<Message>, ApiError> {
    let wrong = |what: &str| ApiError::field("messages", format!("messages: {what}"));
    let list = fields.get("messages").and_then(Json::as_array);
    let list = list.filter(|list| !list.is_empty()).ok_or_else(|| wrong("want a list of at least one message"))?;
    if list.len() > MAX_MESSAGES {
        return Err(wrong(&format!("want at most {MAX_MESSAGES}")));
    }
    let message = |message: &Json| {
        let map = message.as_object().ok_or_else(|| wrong("want objects"))?;
        let role = map.get("role").and_then(Json::as_str).ok_or_else(|| wrong("every message needs a role"))?;
        let content = match map.get("content") {
            None | Some(Json::Null) => Content::None,
            Some(Json::String(text)) => template.message(role, text).content,
            Some(Json::Array(parts)) => template.message(role, &text_of(parts)?).content,
            Some(_) => return Err(wrong("content: want a text or a list of parts")),
        };
        let more = map.iter().filter(|(name, _)| !matches!(name.as_str(), "role" | "content"));
        let more = more.map(|(name, x)| (name.clone(), value(x))).collect();
        Ok(Message { role: role.to_owned(), content, more })
    };
    list.iter().map(message).collect()
}

/// The texts of parts, one after the other.
pub(super) fn text_of<'p>(parts: impl IntoIterator<Item = &'p Json>) -> Result<String, ApiError> {
    let mut all = String::new();
    for part in parts {
        match part.get("type").and_then(Json::as_str) {
            Some("text") => {
                let text = part.get("text").and_then(Json::as_str);
                all.push_str(text.ok_or_else(|| ApiError::field("messages", "messages: a part of text without text"))?);
            }
            Some(kind) => {
                let kind: String = kind.chars().take(40).collect();
                return Err(ApiError::unsupported_field(&format!("messages: parts of type {kind:?}")));
            }
            None => return Err(ApiError::field("messages", "messages: every part needs a type")),
        }
    }
    Ok(all)
}

/// A value as templates take it.
fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::None,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(number) => match number.as_i64() {
            Some(n) => Value::Integer(n),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(list) => Value::List(list.iter().map(value).collect()),
        Json::Object(map) => Value::Map(map.iter().map(|(name, x)| (name.clone(), value(x))).collect()),
    }
}
