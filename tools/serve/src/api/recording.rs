//! A recording from a request to its transcript, whatever endpoint asks for it: [`submit`] on the way to the engine, [`Ending`] on
//! the way back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::parallel::Serial;
use models::audio::{Audio, Loss};
use models::transcribe::{RATE_HZ, Request};

use super::error::ApiError;
use crate::App;
use crate::http::body::Holding;
use crate::http::events::died;
use crate::http::log::{Record, rounded};
use crate::mailbox::Reader;
use crate::model::Served;
use crate::work::{Answer, Clip, Reply, SpeechAnswer, SpeechWork, Work};

/// What a client's recording is called in messages.
const NAME: &str = "file";

/// What a request holds while it is there.
pub(super) type SharedHolding = Arc<Mutex<Holding>>;

/// A recording and how it is to be transcribed.
pub(super) struct Wanted {
    /// The bytes of the file.
    pub file: Vec<u8>,
    /// The field that it came in, to blame.
    pub param: &'static str,
    /// As the model writes it, where it is known.
    pub language: Option<String>,
    /// Names and terms to expect.
    pub context: String,
    /// Most tokens of a segment.
    pub max_tokens: Option<usize>,
    /// Most tokens of all segments together.
    pub max_answer: Option<usize>,
    /// Goes on past tokens that end an answer.
    pub ignore_stop: bool,
    /// Whether the text is sent as it grows.
    pub is_streamed: bool,
    /// Whether it is wanted how sure the model was.
    pub wants_confidence: bool,
}

/// A whole answer with what is known of its recording.
pub(super) struct Heard {
    pub answer: SpeechAnswer,
    /// What of the recording could not be decoded.
    pub losses: Vec<Loss>,
    /// Length of the recording by its own clock, in seconds.
    pub duration_s: f64,
    /// From the request to the answer.
    pub total: Duration,
}

/// What is kept of a request until its answer is there.
pub(super) struct Ending {
    app: Arc<App>,
    losses: Vec<Loss>,
    duration_s: f64,
    arrived: Duration,
    _holding: SharedHolding,
}

impl Ending {
    /// The answer with what is known of its recording; the log learns what it took.
    ///
    /// Errors: an answer of another kind.
    pub(super) fn heard(&self, answer: Answer, record: &Record) -> Result<Heard, ApiError> {
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

    /// Waits for the whole answer.
    ///
    /// Errors: what the engine says instead.
    pub(super) async fn whole(&self, mut reader: Reader<Reply>, record: &Record) -> Result<Heard, ApiError> {
        loop {
            match reader.next().await {
                Some(Reply::Piece(_)) => {}
                Some(Reply::Done(answer)) => return self.heard(*answer, record),
                Some(Reply::Failed(error)) => return Err(error),
                None => return Err(died()),
            }
        }
    }
}

/// Why a model hears nothing, where it does not.
///
/// Errors: 501.
pub(super) fn check_hears(model: &Served) -> Result<(), ApiError> {
    match model.speech {
        Some(_) => Ok(()),
        None => Err(ApiError::cannot(format!("{} does not hear: it is a text model", model.arch))),
    }
}

/// Reads a recording and queues it. `wanted` reads the request, on a thread that may take its time. Returns where the answer
/// comes, and what is kept until then.
///
/// Errors: those of `wanted`; 400 and 413 for the recording, 429, 503.
pub(super) async fn submit(
    app: &Arc<App>,
    record: &Record,
    arrived: Duration,
    holding: SharedHolding,
    wanted: impl FnOnce(&App, &SharedHolding) -> Result<Wanted, ApiError> + Send + 'static,
) -> Result<(Reader<Reply>, Ending), ApiError> {
    let prepared = {
        // So many decode at once as there are threads for it.
        let _permit = app.decoding.acquire().await;
        let (app, holding) = (Arc::clone(app), Arc::clone(&holding));
        let prepared = tokio::task::spawn_blocking(move || prepare(&app, &wanted(&app, &holding)?, &holding));
        prepared.await.unwrap_or_else(|_| Err(ApiError::server("the recording could not be decoded")))?
    };
    let Prepared { work, losses, duration_s } = prepared;
    record.set("audio_s", rounded(duration_s));
    let reader = app.submit_one(Work::Speech(Box::new(work)), arrived)?;
    Ok((reader, Ending { app: Arc::clone(app), losses, duration_s, arrived, _holding: holding }))
}

/// A recording on its way to the engine.
struct Prepared {
    work: SpeechWork,
    losses: Vec<Loss>,
    duration_s: f64,
}

/// Decodes a recording and computes what the encoder takes, on this thread.
fn prepare(app: &App, wanted: &Wanted, holding: &SharedHolding) -> Result<Prepared, ApiError> {
    let Some((listener, encoder)) = &app.model.speech else { return Err(ApiError::cannot("the model does not hear")) };
    let audio = Audio::of_bytes(NAME, &wanted.file, app.options.max_audio_s);
    let Audio { samples, start_s, losses, .. } = audio.map_err(|error| ApiError::audio(&error, wanted.param))?;
    let hold = |bytes: usize| holding.lock().unwrap_or_else(PoisonError::into_inner).grow(bytes);
    hold(size_of_val(&samples[..]))?;
    let duration_s = start_s + samples.len() as f64 / f64::from(RATE_HZ);
    let request = Request {
        language: wanted.language.as_deref(),
        context: &wanted.context,
        max_tokens: wanted.max_tokens,
        max_answer: wanted.max_answer,
        ignore_stop: wanted.ignore_stop,
        start_s,
        ..Request::default()
    };
    let transcription = listener.begin(samples, &request)?;
    let mut clips = VecDeque::new();
    let mut n_most = 0;
    for (samples, max_tokens) in transcription.segments() {
        let features = listener.features(samples, &Serial)?;
        hold(size_of_val(&features.values[..]))?;
        let n_prompt = transcription.n_prompt((encoder.tokens)(features.n_frames));
        if n_prompt + max_tokens > app.model.n_ctx {
            let message = format!(
                "a segment needs {n_prompt} tokens and up to {max_tokens} for its answer; a slot holds {}",
                app.model.n_ctx
            );
            return Err(ApiError::context(n_prompt, app.model.n_ctx, message));
        }
        n_most = n_most.max(n_prompt + max_tokens);
        clips.push_back(Clip::new(features));
    }
    let work = SpeechWork::new(transcription, clips, n_most)
        .streamed(wanted.is_streamed)
        .in_slices(encoder.window_frames)
        .with_confidence(wanted.wants_confidence);
    Ok(Prepared { work, losses, duration_s })
}
