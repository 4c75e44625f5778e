//! Speech to text: `/v1/audio/transcriptions` as OpenAI's, `/inference` as whisper.cpp's server.

mod fields;
mod reply;

use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{Response, header};

use self::fields::{Asking, Format};
use self::reply::{Deltas, Reply as Shaped, Tokens};
use super::recording::{self, Wanted, check_hears};
use crate::App;
use crate::api::error::ApiError;
use crate::http::events::respond;
use crate::http::exchange::{Asked, json, typed};
use crate::http::form::{FILE, Form};

/// Answers as OpenAI does. Source: OpenAI, API reference, "Create transcription".
pub(crate) async fn transcriptions(asked: Asked) -> Result<Response<Body>, ApiError> {
    transcribe(asked, Asking::of_openai).await
}

/// Answers as whisper.cpp's server does. Source: whisper.cpp, `examples/server/server.cpp`.
pub(crate) async fn inference(asked: Asked) -> Result<Response<Body>, ApiError> {
    transcribe(asked, Asking::of_whisper).await
}

async fn transcribe(asked: Asked, read: fn(&Form) -> Result<Asking, ApiError>) -> Result<Response<Body>, ApiError> {
    let Asked { app, request, record } = asked;
    let arrived = (app.clock)();
    check_hears(&app.model)?;
    app.has_room(1)?;
    let (parts, body) = request.into_parts();
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let holding = Arc::new(Mutex::new(app.held.begin()));
    let reading =
        Form::read(body, content_type.unwrap_or_default(), app.options.max_upload_bytes, Arc::clone(&holding));
    let body_time = app.options.body_time;
    let form = tokio::time::timeout(body_time, reading).await;
    let mut form = form.unwrap_or_else(|_| Err(ApiError::slow(body_time.as_secs())))?;
    let asking = read(&form)?;
    let file = form.file()?;
    let format = asking.format;
    let wanted = move |app: &App, _: &_| wanted(app, asking, file);
    let (reader, ending) = recording::submit(&app, &record, arrived, holding, wanted).await?;
    match format {
        Format::Stream => respond(reader, Deltas(ending), record).await,
        Format::StreamingVerboseJson => respond(reader, Tokens::new(ending), record).await,
        Format::Json | Format::Text | Format::Srt | Format::Vtt | Format::VerboseJson => {
            let heard = ending.whole(reader, &record).await?;
            Ok(match reply::whole(format, &heard) {
                Shaped::Json(value) => json(&value),
                Shaped::Text(content_type, text) => typed(content_type, text),
            })
        }
    }
}

/// What the fields of a form mean to the model.
///
/// Errors: a language or context that it cannot be asked for.
fn wanted(app: &App, asking: Asking, file: Vec<u8>) -> Result<Wanted, ApiError> {
    let Some((listener, _)) = &app.model.speech else { return Err(ApiError::cannot("the model does not hear")) };
    let format = listener.format();
    let find = |wanted: &String| format.find_language(wanted);
    let language = asking.language.as_ref().map(find).transpose();
    let language = language.map_err(|error| ApiError::field("language", format!("language: {error}")))?;
    if !asking.context.is_empty() && !format.takes_context() {
        let arch = app.model.arch;
        return Err(ApiError::field("prompt", format!("prompt: {arch} has no place for names and terms")));
    }
    Ok(Wanted {
        file,
        param: FILE,
        language,
        context: asking.context,
        max_tokens: asking.max_tokens,
        max_answer: None,
        ignore_stop: false,
        is_streamed: asking.format.is_streamed(),
        wants_confidence: asking.format == Format::VerboseJson,
    })
}
