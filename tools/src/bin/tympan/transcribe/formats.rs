//! A transcript in a [`Format`]: JSON here, the others in [`transcripts`].

use clap::ValueEnum;
use models::audio::{Loss, TrackChoice};
use models::transcribe::{Segment, Transcript};
use serde_json::{Map, Number, Value, json};
use transcripts::{Limits, clock, csv, cues, lrc, srt, tsv, vtt};

use crate::samples::Condition;

/// An output format.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Format {
    /// The text alone.
    #[value(alias = "txt")]
    Text,
    /// One indented document per input.
    Json,
    /// One line per input.
    Jsonl,
    /// SubRip subtitles.
    Srt,
    /// WebVTT subtitles.
    Vtt,
    /// Comma-separated values.
    Csv,
    /// Lyrics.
    Lrc,
    /// Tab-separated values, as Whisper writes them.
    Tsv,
}

impl Format {
    /// File extension, also the name on the command line but for text.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::Text => "txt",
            Self::Json => "json",
            Self::Jsonl => "jsonl",
            Self::Srt => "srt",
            Self::Vtt => "vtt",
            Self::Csv => "csv",
            Self::Lrc => "lrc",
            Self::Tsv => "tsv",
        }
    }

    /// Whether it is made of cues, which have times.
    pub(super) fn has_cues(self) -> bool {
        match self {
            Self::Text | Self::Json | Self::Jsonl => false,
            Self::Srt | Self::Vtt | Self::Csv | Self::Lrc | Self::Tsv => true,
        }
    }
}

/// Everything that JSON says besides the transcript itself.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// The input as the user named it.
    pub file: String,
    /// Architecture of the model.
    pub architecture: String,
    /// The model's file.
    pub model_file: String,
    /// Type of most of the model's tensors.
    pub dtype: String,
    /// Device that computed.
    pub device: String,
    /// Threads that computed.
    pub threads: usize,
    /// How the samples stand to the file.
    pub condition: Condition,
    /// Whether generated ids are shown.
    pub token_ids: bool,
    /// Whether segments carry times.
    pub timestamps: bool,
    /// Milliseconds to load the model.
    pub load_ms: f64,
    /// Milliseconds to decode the file.
    pub decode_audio_ms: f64,
    /// Milliseconds to resample.
    pub resample_ms: f64,
    /// Milliseconds from opening the file to the text.
    pub total_ms: f64,
    /// Largest resident set so far.
    pub peak_rss_bytes: Option<u64>,
}

/// The transcript in one format, with a final line break.
pub(super) fn render(format: Format, transcript: &Transcript, facts: &Facts, limits: &Limits) -> String {
    match format {
        Format::Text if facts.timestamps => timed_lines(&transcript.segments),
        Format::Text => transcripts::text(transcript),
        Format::Json => format!("{:#}\n", json(transcript, facts)),
        Format::Jsonl => format!("{}\n", json(transcript, facts)),
        Format::Srt => srt(&cues(transcript, limits)),
        Format::Vtt => vtt(&cues(transcript, limits)),
        Format::Csv => csv(&cues(transcript, limits)),
        Format::Lrc => lrc(&cues(transcript, limits)),
        Format::Tsv => tsv(&cues(transcript, limits)),
    }
}

/// Segments on lines of their own, with their times.
pub(super) fn timed_lines(segments: &[Segment]) -> String {
    // Durations of audio files are far below 2^53 ms.
    let time = |seconds: f64| clock((seconds * 1000.0).round() as u64, '.');
    let line = |s: &Segment| format!("[{} --> {}] {}\n", time(s.start_s), time(s.end_s), s.text);
    segments.iter().map(line).collect()
}

/// The JSON document of the contract.
fn json(transcript: &Transcript, facts: &Facts) -> Value {
    let t = &transcript.timings;
    let seconds = |s: f64| if facts.timestamps { rounded(s) } else { Value::Null };
    let segments: Vec<Value> = transcript
        .segments
        .iter()
        .enumerate()
        .map(|(i, s)| {
            let mut object = Map::new();
            object.insert("id".into(), json!(i));
            object.insert("start".into(), seconds(s.start_s));
            object.insert("end".into(), seconds(s.end_s));
            object.insert("timing".into(), if facts.timestamps { json!("estimated") } else { Value::Null });
            object.insert("text".into(), json!(s.text));
            object.insert("language".into(), json!(s.language));
            object.insert("truncated".into(), json!(s.truncated));
            object.insert("guard".into(), Value::Null);
            object.insert("suspect".into(), Value::Null);
            // Cuts are at quiet places; whether nobody speaks there is not asked.
            let is_last = i + 1 == transcript.segments.len();
            object.insert("cut".into(), json!(if is_last { "end" } else { "quiet" }));
            object.insert("token_ids".into(), if facts.token_ids { json!(s.token_ids) } else { Value::Null });
            Value::Object(object)
        })
        .collect();
    let ms = |d: std::time::Duration| rounded(d.as_secs_f64() * 1000.0);
    let rtf = facts.total_ms / 1000.0 / transcript.duration_s;
    json!({
        "file": facts.file,
        "duration": rounded(facts.condition.start_s + transcript.duration_s),
        "language": transcript.language,
        "text": transcript.text,
        "segments": segments,
        "words": null,
        "truncated": transcript.truncated(),
        "damaged": facts.condition.losses.iter().map(damaged).collect::<Vec<_>>(),
        "skipped": [],
        "track": facts.condition.track.as_ref().map(track),
        "model": {"architecture": facts.architecture, "file": facts.model_file, "dtype": facts.dtype},
        "device": facts.device,
        "threads": facts.threads,
        "timings": {
            "load_ms": rounded(facts.load_ms),
            "decode_audio_ms": rounded(facts.decode_audio_ms),
            "resample_ms": rounded(facts.resample_ms),
            "mel_ms": ms(t.mel),
            "encode_ms": ms(t.encode),
            "prefill_ms": ms(t.prefill),
            "decode_ms": ms(t.decode),
            "total_ms": rounded(facts.total_ms),
            "audio_tokens": t.audio_tokens,
            "prompt_tokens": t.prompt_tokens,
            "generated_tokens": t.generated_tokens,
            "rtf": rounded(rtf),
            "peak_rss_bytes": facts.peak_rss_bytes,
        },
    })
}

fn damaged(loss: &Loss) -> Value {
    json!({"start": rounded(loss.start_s), "end": rounded(loss.end_s), "what": loss.what})
}

fn track(track: &TrackChoice) -> Value {
    json!({"index": track.index, "codec": track.codec, "left_out": track.left_out})
}

/// A number with three decimals.
fn rounded(x: f64) -> Value {
    Number::from_f64((x * 1000.0).round() / 1000.0).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::transcribe::Timings;

    fn transcript() -> Transcript {
        let segment = |start_s: f64, end_s: f64, text: &str| Segment {
            start_s,
            end_s,
            text: text.into(),
            loud: vec![start_s..end_s],
            language: Some("English".into()),
            truncated: false,
            token_ids: vec![1, 2],
        };
        Transcript {
            duration_s: 3725.5,
            language: Some("English".into()),
            text: "a <b> c".into(),
            segments: vec![segment(0.0, 1.2345, "a <b>"), segment(1.2345, 2.0, ""), segment(3600.0, 3725.5, "c\n\nd")],
            timings: Timings::default(),
        }
    }

    fn facts() -> Facts {
        Facts {
            file: "x.wav".into(),
            architecture: "m".into(),
            model_file: "m.gguf".into(),
            dtype: "F32".into(),
            device: "cpu".into(),
            threads: 2,
            condition: Condition::default(),
            token_ids: false,
            timestamps: true,
            load_ms: 1.0,
            decode_audio_ms: 0.0,
            resample_ms: 0.0,
            total_ms: 10.0,
            peak_rss_bytes: None,
        }
    }

    #[test]
    fn json_lines_are_lines() {
        let line = render(Format::Jsonl, &transcript(), &facts(), &Limits::USUAL);
        assert_eq!(line.lines().count(), 1);
        assert!(line.contains("\"duration\":3725.5,") && line.contains("\"end\":1.235,"), "{line}");
    }
}
