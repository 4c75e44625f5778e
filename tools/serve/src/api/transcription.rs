//! Speech to text: `/v1/audio/transcriptions` as OpenAI's, `/inference` as whisper.cpp's server.

mod fields;
mod reply;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Response, header};
use engine::parallel::Serial;
use models::audio::{Audio, Features, Loss};
use models::transcribe::{RATE_HZ, Request, Transcript};

use self::fields::{Asking, Format};
use self::reply::{Deltas, Reply as Shaped, Tokens};
use crate::App;
use crate::api::error::ApiError;
use crate::http::body::Holding;
use crate::http::events::{died, respond};
use crate::http::form::Form;
use crate::http::log::{Record, rounded};
use crate::http::router::{Asked, json, typed};
use crate::work::{Answer, Reply, SpeechAnswer, SpeechWork, Work};

/// What a client's recording is called in messages.
const NAME: &str = "file";

/// A whole answer with what is known of its recording.
pub(crate) struct Heard {
    pub answer: SpeechAnswer,
    /// What of the recording could not be decoded.
    pub losses: Vec<Loss>,
    /// Length of the recording by its own clock, in seconds.
    pub duration_s: f64,
    /// From the request to the answer.
    pub total: Duration,
}

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
    if app.model.speech.is_none() {
        return Err(ApiError::cannot(format!("{} does not hear: it is a text model", app.model.arch)));
    }
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
    let prepared = {
        // So many decode at once as there are threads for it.
        let _permit = app.decoding.acquire().await;
        let app = Arc::clone(&app);
        let prepared = tokio::task::spawn_blocking(move || prepare(&app, &file, &asking, &holding));
        prepared.await.unwrap_or_else(|_| Err(ApiError::server("the recording could not be decoded")))?
    };
    let Prepared { work, losses, duration_s, holding } = prepared;
    record.set("audio_s", rounded(duration_s));
    let work = Work::Speech(Box::new(work));
    let mut reader = app.submit_one(work, arrived)?;
    let ending = Ending { app: Arc::clone(&app), losses, duration_s, arrived, _holding: holding };
    match format {
        Format::Stream => return respond(reader, Deltas(ending), record).await,
        Format::StreamingVerboseJson => return respond(reader, Tokens::new(ending), record).await,
        Format::Json | Format::Text | Format::Srt | Format::Vtt | Format::VerboseJson => {}
    }
    loop {
        match reader.next().await {
            Some(Reply::Piece(_)) => {}
            Some(Reply::Done(answer)) => {
                let heard = ending.heard(*answer, &record)?;
                return Ok(match reply::whole(format, &heard) {
                    Shaped::Json(value) => json(&value),
                    Shaped::Text(content_type, text) => typed(content_type, text),
                });
            }
            Some(Reply::Failed(error)) => return Err(error),
            None => return Err(died()),
        }
    }
}

/// What is kept of a request until its answer is there.
struct Ending {
    app: Arc<App>,
    losses: Vec<Loss>,
    duration_s: f64,
    arrived: Duration,
    _holding: Arc<Mutex<Holding>>,
}

impl Ending {
    /// The answer with what is known of its recording; the log learns what it took.
    ///
    /// Errors: an answer of another kind.
    fn heard(&self, answer: Answer, record: &Record) -> Result<Heard, ApiError> {
        let Answer::Speech(answer) = answer else { return Err(ApiError::server("the answer is of another request")) };
        let total = (self.app.clock)() - self.arrived;
        let timings = &answer.transcript.timings;
        let ms = |time: Duration| rounded(time.as_secs_f64() * 1000.0);
        record.set("prompt_tokens", timings.prompt_tokens);
        record.set("audio_tokens", timings.audio_tokens);
        record.set("generated_tokens", timings.generated_tokens);
        record.set("encode_ms", ms(timings.encode));
        record.set("prefill_ms", ms(timings.prefill));
        record.set("decode_ms", ms(timings.decode));
        record.set_drafts(answer.drafts.as_ref());
        if answer.transcript.truncated() {
            record.set("truncated", true);
        }
        let lost_s: f64 = self.losses.iter().map(Loss::seconds).sum();
        if lost_s > 0.0 {
            record.set("lost_s", rounded(lost_s));
        }
        Ok(Heard { answer, losses: self.losses.clone(), duration_s: self.duration_s, total })
    }
}

/// A recording on its way to the engine.
struct Prepared {
    work: SpeechWork,
    losses: Vec<Loss>,
    duration_s: f64,
    holding: Arc<Mutex<Holding>>,
}

/// Decodes a recording and computes what the encoder takes, on this thread.
fn prepare(app: &App, file: &[u8], asking: &Asking, holding: &Arc<Mutex<Holding>>) -> Result<Prepared, ApiError> {
    let Some((listener, encoder)) = &app.model.speech else { return Err(ApiError::cannot("the model does not hear")) };
    let format = listener.format();
    let find = |wanted: &String| format.find_language(wanted);
    let language = asking.language.as_ref().map(find).transpose();
    let language = language.map_err(|error| ApiError::field("language", format!("language: {error}")))?;
    if !asking.context.is_empty() && !format.takes_context() {
        let arch = app.model.arch;
        return Err(ApiError::field("prompt", format!("prompt: {arch} has no place for names and terms")));
    }
    let audio = Audio::of_bytes(NAME, file, app.options.max_audio_s)?;
    let Audio { samples, start_s, losses, .. } = audio;
    let hold = |bytes: usize| holding.lock().unwrap_or_else(PoisonError::into_inner).grow(bytes);
    hold(size_of_val(&samples[..]))?;
    let duration_s = start_s + samples.len() as f64 / f64::from(RATE_HZ);
    let request = Request {
        language: language.as_deref(),
        context: &asking.context,
        max_tokens: asking.max_tokens,
        start_s,
        ..Request::default()
    };
    let transcription = listener.begin(samples, &request)?;
    let mut features = VecDeque::new();
    let mut n_most = 0;
    for (samples, max_tokens) in transcription.segments() {
        let segment: Features = listener.features(samples, &Serial)?;
        hold(size_of_val(&segment.values[..]))?;
        let n_prompt = transcription.n_prompt((encoder.tokens)(segment.n_frames));
        if n_prompt + max_tokens > app.model.n_ctx {
            let message = format!(
                "a segment needs {n_prompt} tokens and up to {max_tokens} for its answer; a slot holds {}",
                app.model.n_ctx
            );
            return Err(ApiError::context(n_prompt, app.model.n_ctx, message));
        }
        n_most = n_most.max(n_prompt + max_tokens);
        features.push_back(segment);
    }
    let work = SpeechWork::new(transcription, features, n_most)
        .streamed(asking.format.is_streamed())
        .in_slices(encoder.window_frames)
        .with_confidence(asking.format == Format::VerboseJson);
    Ok(Prepared { work, losses, duration_s, holding: Arc::clone(holding) })
}
