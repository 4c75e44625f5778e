//! What slots do and keep, and what may be done with what they keep.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::http::Response;
use serde_json::json;

use crate::App;
use crate::api::completion::fields;
use crate::api::error::ApiError;
use crate::http::exchange::{Asked, json};
use crate::http::log::rounded;
use crate::work::{Answer, Reply, SlotAnswer, SlotWork, Work};

/// Most bytes of a file's name.
const MAX_NAME: usize = 200;
/// A saved sequence has so much more than its states: its tokens, and headers.
const BYTES_OF_TOKEN: usize = 4;
const BYTES_OF_HEADERS: usize = 1 << 20;

/// What the slots do.
///
/// Errors: 501 where they are not shown; 503 with `fail_on_no_slot=1` and no free one.
pub(crate) fn slots(app: &App, request: &Request) -> Result<Response<Body>, ApiError> {
    if !app.options.has_slots {
        return Err(ApiError::cannot("slots are not shown (--no-slots)"));
    }
    let numbers = app.figures.lock();
    if query(request, "fail_on_no_slot") == Some("1") && numbers.slots.iter().all(|slot| slot.work.is_some()) {
        return Err(ApiError::unavailable("no slot is free"));
    }
    Ok(json(&numbers.slots((app.clock)(), app.model.n_ctx)))
}

/// A value of a request's query.
fn query<'r>(request: &'r Request, name: &str) -> Option<&'r str> {
    let pairs = request.uri().query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(other, _)| *other == name).map(|(_, value)| value)
}

/// Saves, restores or erases what a slot keeps, as llama.cpp's server does: `POST /slots/ID?action=save`. It is done once
/// the slot is free. Source: llama.cpp, `tools/server/README.md`.
///
/// Errors: 501 without a directory for it; 404 for no such slot or file; 400 for other actions and names, for a slot that keeps
/// nothing, and for files that are no sequence of this model; 500 where a file cannot be written.
pub(crate) async fn act(asked: Asked) -> Result<Response<Body>, ApiError> {
    let Asked { app, request, .. } = asked;
    let arrived = (app.clock)();
    let id = request.uri().path().rsplit('/').next().unwrap_or_default();
    let place = id.parse::<usize>().ok().filter(|&place| place < app.options.n_slots);
    let place = place.ok_or_else(|| ApiError::not_found("no such slot"))?;
    let Some(folder) = app.options.slot_save_path.clone() else {
        return Err(ApiError::cannot("slots are saved where --slot-save-path names a directory"));
    };
    let action = query(&request, "action").unwrap_or_default().to_owned();
    if action == "erase" {
        let SlotAnswer { n_tokens, .. } = carried_out(&app, SlotWork::Erase { place }, arrived).await?;
        return Ok(json(&json!({"id_slot": place, "n_erased": n_tokens})));
    }
    if action != "save" && action != "restore" {
        return Err(ApiError::field("action", "action: want save, restore or erase"));
    }
    let fields = fields(&app, request).await?;
    let name = fields.text("filename")?.unwrap_or_default().to_owned();
    let path = file_in(&folder, &name)?;
    let _permit = app.saving.acquire().await;
    let start = Instant::now();
    let ms = |start: Instant| rounded(start.elapsed().as_secs_f64() * 1000.0);
    if action == "save" {
        let SlotAnswer { n_tokens, bytes } = carried_out(&app, SlotWork::Save { place }, arrived).await?;
        let n_bytes = bytes.len();
        let partial = folder.join(format!(".{name}.{:x}.partial", app.next_id()));
        blocking(move || write(&partial, &path, &bytes)).await?;
        Ok(json(&json!({
            "id_slot": place, "filename": name, "n_saved": n_tokens, "n_written": n_bytes,
            "timings": {"save_ms": ms(start)},
        })))
    } else {
        let states = app.state_bytes.saturating_add(app.model.n_ctx * BYTES_OF_TOKEN + BYTES_OF_HEADERS);
        let bytes = blocking(move || read(&path, states)).await?;
        let n_bytes = bytes.len();
        let SlotAnswer { n_tokens, .. } = carried_out(&app, SlotWork::Restore { place, bytes }, arrived).await?;
        Ok(json(&json!({
            "id_slot": place, "filename": name, "n_restored": n_tokens, "n_read": n_bytes,
            "timings": {"restore_ms": ms(start)},
        })))
    }
}

/// What came of something that the engine's thread does.
async fn carried_out(app: &App, work: SlotWork, arrived: std::time::Duration) -> Result<SlotAnswer, ApiError> {
    let mut reader = app.submit_one(Work::Slot(work), arrived)?;
    loop {
        match reader.next().await {
            Some(Reply::Piece(_)) => {}
            Some(Reply::Failed(error)) => return Err(error),
            Some(Reply::Done(answer)) => match *answer {
                Answer::Slot(answer) => return Ok(answer),
                Answer::Speech(_) | Answer::Text(_) => {
                    return Err(ApiError::server("the answer is of another request"));
                }
            },
            None => return Err(crate::http::events::died()),
        }
    }
}

/// A file of this directory. Names lead nowhere else: they are plain, and no name of a file that is being written.
fn file_in(folder: &Path, name: &str) -> Result<PathBuf, ApiError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > MAX_NAME || name.starts_with('.') || !name.bytes().all(is_plain) {
        let want =
            format!("want up to {MAX_NAME} letters, digits, dots, dashes and underscores, no dot at the beginning");
        return Err(ApiError::field("filename", format!("filename: {want}")));
    }
    Ok(folder.join(name))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(ApiError::server("a file could not be worked on")))
}

/// Writes a file whole or not at all.
fn write(partial: &Path, path: &Path, bytes: &[u8]) -> Result<(), ApiError> {
    let written = fs::write(partial, bytes).and_then(|()| fs::rename(partial, path));
    written.map_err(|error| {
        // There may be none.
        let _ = fs::remove_file(partial);
        ApiError::server(format!("filename: cannot be written: {error}"))
    })
}

fn read(path: &Path, most: usize) -> Result<Vec<u8>, ApiError> {
    let missing = |error: std::io::Error| ApiError::not_found(format!("filename: cannot be read: {error}"));
    // Before it is opened: a pipe would be waited for.
    if !fs::metadata(path).map_err(missing)?.is_file() {
        return Err(ApiError::not_found("filename: no file"));
    }
    let file = fs::File::open(path).map_err(missing)?;
    let mut bytes = Vec::new();
    let n = file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(missing)?;
    if n > most {
        return Err(ApiError::field("filename", "filename: it has more than a slot of this model holds"));
    }
    Ok(bytes)
}
