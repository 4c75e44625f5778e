//! A transcript as the clients of several servers read it.

use models::audio::Loss;
use models::transcribe::Transcript;
use serde_json::{Value, json};
use transcripts::{Limits, cues, srt, vtt};

use super::fields::Format;
use crate::api::drafts::tell_drafts;
use crate::api::recording::{Ending, Heard};
use crate::http::events::Shape;
use crate::http::log::{Record, rounded};
use crate::work::{Answer, Piece};

/// A whole reply.
pub(crate) enum Reply {
    Json(Value),
    /// Text of this type.
    Text(&'static str, String),
}

/// The reply in a format that is not streamed.
pub(crate) fn whole(format: Format, heard: &Heard) -> Reply {
    let transcript = &heard.answer.transcript;
    let cues = || cues(transcript, &Limits::USUAL);
    match format {
        Format::Text => Reply::Text("text/plain; charset=utf-8", transcripts::text(transcript)),
        Format::Srt => Reply::Text("application/x-subrip", srt(&cues())),
        Format::Vtt => Reply::Text("text/vtt; charset=utf-8", vtt(&cues())),
        Format::VerboseJson => Reply::Json(verbose(heard)),
        Format::Json | Format::Stream | Format::StreamingVerboseJson => {
            let mut value = json!({"text": transcript.text, "usage": usage(transcript)});
            // What is missing is said, also to those who did not ask for details.
            if transcript.truncated() {
                value["truncated"] = json!(true);
            }
            if !heard.losses.is_empty() {
                value["damaged"] = damaged(&heard.losses);
            }
            Reply::Json(value)
        }
    }
}

fn usage(transcript: &Transcript) -> Value {
    let t = &transcript.timings;
    json!({
        "type": "tokens",
        "input_tokens": t.prompt_tokens,
        "output_tokens": t.generated_tokens,
        "total_tokens": t.prompt_tokens + t.generated_tokens,
        "input_token_details": {"audio_tokens": t.audio_tokens, "text_tokens": t.prompt_tokens - t.audio_tokens},
    })
}

fn damaged(losses: &[Loss]) -> Value {
    let loss = |l: &Loss| json!({"start": rounded(l.start_s), "end": rounded(l.end_s), "what": l.what});
    losses.iter().map(loss).collect()
}

/// Fields that cannot be computed here are null: `compression_ratio`, `no_speech_prob`.
fn verbose(heard: &Heard) -> Value {
    let Heard { answer, losses, duration_s, total } = heard;
    let transcript = &answer.transcript;
    let segments = transcript.segments.iter().enumerate().map(|(id, segment)| {
        json!({
            "id": id,
            // Whisper counts in hundredths of a second.
            "seek": (segment.start_s * 100.0).round() as u64,
            "start": rounded(segment.start_s),
            "end": rounded(segment.end_s),
            "text": segment.text,
            "tokens": segment.token_ids,
            "temperature": 0.0,
            "avg_logprob": answer.confidence.get(id).copied().flatten(),
            "compression_ratio": null,
            "no_speech_prob": null,
            "truncated": segment.truncated,
        })
    });
    let ms = |time: std::time::Duration| rounded(time.as_secs_f64() * 1000.0);
    let t = &transcript.timings;
    let mut timings = json!({
        "perf_total_ms": ms(*total),
        "perf_encode_ms": ms(t.encode),
        "perf_prefill_ms": ms(t.prefill),
        "perf_decode_ms": ms(t.decode),
        "x_rtf": rounded(total.as_secs_f64() / transcript.duration_s),
    });
    tell_drafts(&mut timings, answer.drafts.as_ref());
    json!({
        "task": "transcribe",
        "language": transcript.language.as_ref().map(|language| language.to_lowercase()),
        "duration": rounded(*duration_s),
        "text": transcript.text,
        "segments": segments.collect::<Vec<_>>(),
        "truncated": transcript.truncated(),
        "damaged": damaged(losses),
        "usage": {"type": "duration", "seconds": duration_s.ceil() as u64},
        "timings": timings,
    })
}

/// Events as OpenAI sends them. Source: OpenAI, API reference, "Transcription stream events".
pub(super) struct Deltas(pub Ending);

impl Shape for Deltas {
    fn piece(&mut self, piece: Piece) -> Vec<Value> {
        vec![json!({"type": "transcript.text.delta", "delta": piece.text})]
    }

    fn done(&mut self, answer: Answer, record: &Record) -> Vec<Value> {
        let heard = match self.0.heard(answer, record) {
            Ok(heard) => heard,
            Err(error) => return vec![error.body()],
        };
        let mut done = match whole(Format::Json, &heard) {
            Reply::Json(value) => value,
            Reply::Text(..) => Value::Null,
        };
        done["type"] = json!("transcript.text.done");
        vec![done]
    }
}

/// Events as local-ai-server sends them.
pub(super) struct Tokens {
    ending: Ending,
    n_bytes: usize,
}

impl Tokens {
    pub(super) fn new(ending: Ending) -> Self {
        Self { ending, n_bytes: 0 }
    }
}

impl Shape for Tokens {
    fn piece(&mut self, piece: Piece) -> Vec<Value> {
        let byte_offset = self.n_bytes;
        self.n_bytes += piece.text.len();
        let audio_ms = (piece.at_s * 1000.0).round() as u64;
        vec![json!({"token": piece.text, "audio_ms": audio_ms, "byte_offset": byte_offset})]
    }

    fn done(&mut self, answer: Answer, record: &Record) -> Vec<Value> {
        let heard = match self.ending.heard(answer, record) {
            Ok(heard) => heard,
            Err(error) => return vec![error.body()],
        };
        let transcript = &heard.answer.transcript;
        let ms = |time: std::time::Duration| rounded(time.as_secs_f64() * 1000.0);
        vec![json!({
            "done": true,
            "text": transcript.text,
            "duration": rounded(heard.duration_s),
            "perf_total_ms": ms(heard.total),
            "perf_encode_ms": ms(transcript.timings.encode),
            "perf_decode_ms": ms(transcript.timings.decode),
            "words": null,
            "segments": transcript.segments.iter().map(|segment| {
                json!({"start": rounded(segment.start_s), "end": rounded(segment.end_s), "text": segment.text})
            }).collect::<Vec<_>>(),
            "truncated": transcript.truncated(),
            "damaged": damaged(&heard.losses),
        })]
    }
}
