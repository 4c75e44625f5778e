//! Conversations about a clip: a part of type `input_audio` in the user's turn is answered with its transcript, as
//! `/v1/audio/transcriptions` makes it. What the system's turns say goes where the model's own prompt has a place for it
//! ([`models::speech::SpeechFormat::wanted`]).
//!
//! The answer's text is the transcript alone: what a model writes before it, as Qwen3-ASR names the language, is left out, as in
//! its official code.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet, decoded_len_estimate};
use models::Error;
use serde_json::{Value, json};

use super::chat::text_of;
use super::fields::{Asking, Kind};
use super::reply::{END, Naming, timings};
use crate::App;
use crate::api::drafts::tell_drafts;
use crate::api::error::ApiError;
use crate::api::fields::Fields;
use crate::api::recording::{self, Ending, Heard, SharedHolding, Wanted, check_hears};
use crate::http::events::{Shape, respond};
use crate::http::exchange::json as reply_of;
use crate::http::log::Record;
use crate::work::{Answer, Piece};

/// The type of parts that are a clip.
const TYPE: &str = "input_audio";
/// The field that the clip is in.
const FIELD: &str = "messages";

/// Whether a conversation has a clip.
pub(super) fn is_asked(fields: &Fields) -> bool {
    let messages = fields.get(FIELD).and_then(Value::as_array);
    messages.into_iter().flatten().any(|message| parts_of(message).iter().any(is_clip))
}

/// Answers a conversation that has a clip.
///
/// Errors: 501 for what is not built, 400 for what makes no sense, 413 for a clip that is too long.
pub(super) async fn answer(
    app: Arc<App>,
    fields: Fields,
    record: Record,
    arrived: Duration,
) -> Result<Response<Body>, ApiError> {
    check_hears(&app.model)?;
    refuse(&fields)?;
    let asking = Asking::of(&fields, Kind::Chat, &app)?;
    let (is_streamed, wants_usage) = (asking.is_streamed, asking.wants_usage);
    let holding = Arc::new(Mutex::new(app.held.begin()));
    let wanted = move |app: &App, holding: &SharedHolding| wanted(app, &fields, &asking, holding);
    let (reader, ending) = recording::submit(&app, &record, arrived, holding, wanted).await?;
    let naming = Naming::new(&app, Kind::Chat, false);
    if is_streamed {
        return respond(reader, Spoken { app, naming, ending, wants_usage, has_begun: false }, record).await;
    }
    let heard = ending.whole(reader, &record).await?;
    let transcript = &heard.answer.transcript;
    let choice = json!({
        "index": 0, "message": {"role": "assistant", "content": transcript.text},
        "finish_reason": finish_reason(&heard), "logprobs": null,
    });
    let mut reply = naming.reply(&app, false, json!([choice]));
    reply["usage"] = usage(&heard);
    reply["timings"] = times(&heard);
    Ok(reply_of(&reply))
}

/// Refuses what changes how tokens are chosen, or needs more of them than the text: transcripts are the most likely ones.
fn refuse(fields: &Fields) -> Result<(), ApiError> {
    let nothing = || vec![json!([]), json!(""), json!({})];
    for (name, changes_nothing) in [
        ("temperature", vec![json!(0)]),
        ("n", vec![json!(1)]),
        ("n_cmpl", vec![json!(1)]),
        ("stop", nothing()),
        ("logprobs", vec![json!(false)]),
        ("logit_bias", nothing()),
        ("repeat_penalty", vec![json!(1)]),
        ("presence_penalty", vec![json!(0)]),
        ("frequency_penalty", vec![json!(0)]),
        ("t_max_predict_ms", vec![json!(0)]),
        ("add_generation_prompt", vec![json!(true)]),
        ("chat_template_kwargs", nothing()),
    ] {
        if let Err(error) = fields.refuse(name, &changes_nothing) {
            let message = format!("{name}: not in this version for conversations about a clip");
            return Err(ApiError { message, ..error });
        }
    }
    Ok(())
}

fn parts_of(message: &Value) -> &[Value] {
    message.get("content").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_clip(part: &Value) -> bool {
    part.get("type").and_then(Value::as_str) == Some(TYPE)
}

fn wrong(what: &str) -> ApiError {
    ApiError::field(FIELD, format!("{FIELD}: {what}"))
}

fn not_built(what: &str) -> ApiError {
    ApiError { param: Some(FIELD.to_owned()), ..ApiError::cannot(format!("{FIELD}: {what}")) }
}

/// What the conversation asks of the model.
///
/// Errors: 400, 501; 429 where the clip is more than may be held.
fn wanted(app: &App, fields: &Fields, asking: &Asking, holding: &SharedHolding) -> Result<Wanted, ApiError> {
    let Some((listener, _)) = &app.model.speech else { return Err(ApiError::cannot("the model does not hear")) };
    let messages = fields.get(FIELD).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let (last, before) = messages.split_last().ok_or_else(|| wrong("want a list of at least one message"))?;
    let mut system = String::new();
    for message in before {
        match message.get("role").and_then(Value::as_str) {
            Some("system" | "developer") => system.push_str(&text(message)?),
            Some(_) => return Err(not_built("a clip stands in the first turn of the user, which is the last one")),
            None => return Err(wrong("every message needs a role")),
        }
    }
    if last.get("role").and_then(Value::as_str) != Some("user") {
        return Err(wrong("a clip stands in the turn of the user, which is the last one"));
    }
    let (clips, texts): (Vec<&Value>, Vec<&Value>) = parts_of(last).iter().partition(|part| is_clip(part));
    let beside = text_of(texts)?;
    let clip = match &clips[..] {
        [clip] => clip,
        [] => return Err(wrong("a clip stands in the turn of the user, which is the last one")),
        _ => return Err(not_built("want one clip, got several")),
    };
    let asked = listener.format().wanted(&system, &beside).map_err(|error| match error {
        Error::Argument { what, .. } => not_built(&what),
        error => error.into(),
    })?;
    Ok(Wanted {
        file: bytes(clip, holding)?,
        param: FIELD,
        language: asked.language,
        context: asked.context,
        max_tokens: None,
        max_answer: asking.max_tokens,
        ignore_stop: asking.ignore_eos,
        is_streamed: asking.is_streamed,
        wants_confidence: false,
    })
}

/// The text of a message without clips.
fn text(message: &Value) -> Result<String, ApiError> {
    match message.get("content") {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => text_of(parts),
        Some(_) => Err(wrong("content: want a text or a list of parts")),
    }
}

/// The file of a part. What it is, its bytes say: `format` is not needed.
fn bytes(part: &Value, holding: &SharedHolding) -> Result<Vec<u8>, ApiError> {
    let audio = part.get(TYPE).and_then(Value::as_object);
    let audio = audio.ok_or_else(|| wrong("input_audio: want an object with data and format"))?;
    if audio.get("format").is_some_and(|format| !format.is_string() && !format.is_null()) {
        return Err(wrong("input_audio: format: want a text, such as wav or mp3"));
    }
    let data = audio.get("data").and_then(Value::as_str).filter(|data| !data.is_empty());
    let data = data.ok_or_else(|| wrong("input_audio: data: want a recording in base64"))?;
    holding.lock().unwrap_or_else(PoisonError::into_inner).grow(decoded_len_estimate(data.len()))?;
    // Some clients leave the padding out.
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let engine = GeneralPurpose::new(&alphabet::STANDARD, config);
    engine.decode(data).map_err(|error| wrong(&format!("input_audio: data: not base64: {error}")))
}

fn finish_reason(heard: &Heard) -> &'static str {
    if heard.answer.transcript.truncated() { "length" } else { "stop" }
}

fn usage(heard: &Heard) -> Value {
    let t = &heard.answer.transcript.timings;
    json!({
        "prompt_tokens": t.prompt_tokens, "completion_tokens": t.generated_tokens,
        "total_tokens": t.prompt_tokens + t.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": t.audio_tokens},
    })
}

/// The prompt's time is that of the encoder too.
fn times(heard: &Heard) -> Value {
    let t = &heard.answer.transcript.timings;
    let mut timings = timings((t.prompt_tokens, t.encode + t.prefill), (t.generated_tokens, t.decode));
    tell_drafts(&mut timings, heard.answer.drafts.as_ref());
    timings
}

/// A transcript in pieces, as the clients of chats read them.
struct Spoken {
    app: Arc<App>,
    naming: Naming,
    ending: Ending,
    wants_usage: bool,
    /// Whether the role was told.
    has_begun: bool,
}

impl Spoken {
    fn delta(&self, delta: &Value, finish_reason: Option<&str>) -> Value {
        let choice = json!([{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": null}]);
        self.naming.reply(&self.app, true, choice)
    }

    /// The first piece has the role.
    fn begin(&mut self) -> Option<Value> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        is_first.then(|| self.delta(&json!({"role": "assistant", "content": ""}), None))
    }
}

impl Shape for Spoken {
    fn piece(&mut self, piece: Piece) -> Vec<Value> {
        let first = self.begin();
        first.into_iter().chain([self.delta(&json!({"content": piece.text}), None)]).collect()
    }

    fn done(&mut self, answer: Answer, record: &Record) -> Vec<Value> {
        let heard = match self.ending.heard(answer, record) {
            Ok(heard) => heard,
            Err(error) => return vec![error.body()],
        };
        let mut events: Vec<Value> = self.begin().into_iter().collect();
        let mut last = self.delta(&json!({}), Some(finish_reason(&heard)));
        if self.wants_usage {
            events.push(last);
            last = self.naming.reply(&self.app, true, json!([]));
            last["usage"] = usage(&heard);
        }
        last["timings"] = times(&heard);
        events.push(last);
        events
    }

    fn end(&self) -> &'static str {
        END
    }
}
