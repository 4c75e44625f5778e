//! Text to text: `/completion` as llama.cpp's server, `/v1/completions` and `/v1/chat/completions` as OpenAI's.

mod chat;
mod fields;
mod reasoning;
mod reply;
mod spoken;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use models::generate::Request;
use models::scheduler::Seat;
use serde_json::{Value, json};

use self::fields::{Asking, Kind};
use self::reply::{Naming, Shaped, Streamed};
use super::fields::Fields;
use crate::App;
use crate::api::error::ApiError;
use crate::http::body::read;
use crate::http::events::{died, respond};
use crate::http::exchange::{Asked, json};
use crate::http::log::{Record, rounded};
use crate::mailbox::Reader;
use crate::work::{Answer, Reply, TextAnswer, TextWork, Work};

pub(crate) use chat::apply_template;

/// Continues prompts as llama.cpp's server does. Source: llama.cpp, `tools/server/README.md`.
pub(crate) async fn completion(asked: Asked) -> Result<Response<Body>, ApiError> {
    complete(asked, Kind::Native).await
}

/// Continues prompts as OpenAI does. Source: OpenAI, API reference, "Completions".
pub(crate) async fn completions(asked: Asked) -> Result<Response<Body>, ApiError> {
    complete(asked, Kind::Completion).await
}

/// Continues conversations as OpenAI does. Source: OpenAI, API reference, "Chat completions".
pub(crate) async fn chat_completions(asked: Asked) -> Result<Response<Body>, ApiError> {
    complete(asked, Kind::Chat).await
}

/// The fields of a request's body.
///
/// Errors: 408, 413, 429; 400 where it is no JSON object.
pub(crate) async fn fields(app: &Arc<App>, request: axum::extract::Request) -> Result<Fields, ApiError> {
    let mut holding = app.held.begin();
    let body_time = app.options.body_time;
    let reading = read(request.into_body(), app.options.max_upload_bytes, &mut holding);
    let body = tokio::time::timeout(body_time, reading).await;
    let body = body.unwrap_or_else(|_| Err(ApiError::slow(body_time.as_secs())))?;
    Fields::read(&body, holding)
}

async fn complete(asked: Asked, kind: Kind) -> Result<Response<Body>, ApiError> {
    let Asked { app, request, record } = asked;
    let arrived = (app.clock)();
    app.has_room(1)?;
    let fields = fields(&app, request).await?;
    if kind == Kind::Chat && spoken::is_asked(&fields) {
        return spoken::answer(app, fields, record, arrived).await;
    }
    let prepared = {
        // Long texts take a while to tokenize.
        let _permit = app.decoding.acquire().await;
        let app = Arc::clone(&app);
        let prepared = tokio::task::spawn_blocking(move || prepare(&app, &fields, kind));
        prepared.await.unwrap_or_else(|_| Err(ApiError::server("the prompt could not be prepared")))?
    };
    let Prepared { works, asking, prompts, starts_in_thought } = prepared;
    let mut readers = app.submit(works, arrived)?;
    let naming = Naming::new(&app, kind, starts_in_thought);
    if asking.is_streamed {
        let Some(reader) = readers.pop() else { return Err(died()) };
        return respond(reader, Streamed::new(app, naming, asking, prompts), record).await;
    }
    let answers = all(readers).await?;
    count(&record, &answers);
    let shaped = Shaped { app: &app, naming: &naming, asking: &asking, prompts: &prompts };
    Ok(json(&shaped.whole(&answers)))
}

/// The answers of all readers. When one fails, the others are not waited for.
async fn all(readers: Vec<Reader<Reply>>) -> Result<Vec<TextAnswer>, ApiError> {
    let mut answers = Vec::new();
    for mut reader in readers {
        loop {
            match reader.next().await {
                Some(Reply::Piece(_)) => {}
                Some(Reply::Done(answer)) => match *answer {
                    Answer::Text(answer) => {
                        answers.push(answer);
                        break;
                    }
                    Answer::Speech(_) | Answer::Slot(_) => {
                        return Err(ApiError::server("the answer is of another request"));
                    }
                },
                Some(Reply::Failed(error)) => return Err(error),
                None => return Err(died()),
            }
        }
    }
    Ok(answers)
}

/// Tells the log what the answers took.
fn count(record: &Record, answers: &[TextAnswer]) {
    let sum = |n: &dyn Fn(&TextAnswer) -> usize| answers.iter().map(n).sum::<usize>();
    let ms = |time: &dyn Fn(&TextAnswer) -> Duration| {
        rounded(answers.iter().map(time).map(|time| time.as_secs_f64() * 1000.0).sum())
    };
    record.set("prompt_tokens", sum(&|answer| answer.n_prompt));
    record.set("cached_tokens", sum(&|answer| answer.n_cached));
    record.set("generated_tokens", sum(&|answer| answer.generated.n_chosen));
    record.set("prefill_ms", ms(&|answer| answer.prompt_time));
    record.set("decode_ms", ms(&|answer| answer.decode_time));
    let all = answers.iter().filter_map(|answer| answer.drafts.as_deref().copied()).reduce(|mut sum, drafts| {
        sum.add(&drafts);
        sum
    });
    record.set_drafts(all.as_ref());
}

/// Requests on their way to the engine.
struct Prepared {
    works: Vec<Work>,
    asking: Asking,
    /// Of every answer, as it was given or written by the template.
    prompts: Vec<Value>,
    /// Whether the prompt ends within the model's reasoning.
    starts_in_thought: bool,
}

/// Where a prompt without messages may be taken up: before its last token, for when the same is asked again. What is read in an
/// instant is not worth a call of its own.
fn own_boundary(n_tokens: usize) -> Vec<usize> {
    const LONG: usize = 64;
    if n_tokens >= LONG { vec![n_tokens - 1] } else { Vec::new() }
}

fn prepare(app: &App, fields: &Fields, kind: Kind) -> Result<Prepared, ApiError> {
    let model = &app.model;
    let asking = Asking::of(fields, kind, app)?;
    let mut boundaries = Vec::new();
    let (prompts, starts_in_thought) = match kind {
        Kind::Native | Kind::Completion => (fields::prompts(fields, &model.writer)?, false),
        Kind::Chat => {
            let conversation = chat::Conversation::read(app, fields)?;
            let text = conversation.text()?;
            let starts_in_thought = reasoning::ends_in_thought(&text);
            let ids = model.writer.chat_prompt(&text);
            // Attention is taken up anywhere.
            if model.is_recurrent && asking.caches_prompt {
                boundaries = model.writer.positions(&ids, &text, &conversation.ends(&text));
            }
            (vec![(ids, json!(text))], starts_in_thought)
        }
    };
    let n_answers = prompts.len() * asking.n;
    if n_answers > app.inbox.capacity() {
        return Err(ApiError::field("prompt", format!("want at most {} answers at once", app.inbox.capacity())));
    }
    if asking.is_streamed && n_answers > 1 {
        return Err(ApiError::field("stream", "stream: only one answer can be streamed"));
    }
    let mut works = Vec::new();
    let mut shown = Vec::new();
    for (ids, prompt) in &prompts {
        if ids.is_empty() {
            return Err(ApiError::field("prompt", "prompt: want at least one token, got none"));
        }
        let room = model.n_ctx.checked_sub(ids.len()).filter(|&room| room > 0).ok_or_else(|| {
            let message = format!("the prompt has {} tokens; a slot holds {}", ids.len(), model.n_ctx);
            ApiError::context(ids.len(), model.n_ctx, message)
        })?;
        let max_tokens = asking.max_tokens.unwrap_or(room).min(room);
        let seat = Seat {
            place: asking.id_slot,
            reuses: asking.caches_prompt,
            keeps: asking.caches_prompt,
            boundaries: if boundaries.is_empty() { own_boundary(ids.len()) } else { boundaries.clone() },
        };
        for i in 0..asking.n {
            let mut sampling = asking.sampling;
            sampling.seed = sampling.seed.wrapping_add(i as u64);
            let request = Request {
                prompt: ids,
                max_tokens: max_tokens.max(1),
                sampling,
                ignore_stop: asking.ignore_eos,
                stop: &asking.stop,
                prompt_logits: false,
            };
            let (continuation, decoding) = model.writer.begin(&request)?;
            let decoding = decoding.with_bias(&asking.bias);
            let work = TextWork::new(continuation, decoding, ids.len(), ids.len() + max_tokens)
                .seated(seat.clone())
                .streamed(asking.is_streamed)
                .with_probabilities(asking.n_probs)
                .within(asking.most);
            works.push(Work::Text(Box::new(work)));
            shown.push(prompt.clone());
        }
    }
    Ok(Prepared { works, asking, prompts: shown, starts_in_thought })
}
