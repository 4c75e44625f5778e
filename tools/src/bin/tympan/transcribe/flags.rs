//! [`TranscribeArgs`]: the flags of `tympan transcribe`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use engine::session::MAX_CONTEXT;
use models::qwen3_asr::AudioAttention;
use models::speech::SEGMENT_RANGE;
use models::transcribe::USUAL_PARALLEL;
use serde_json::{Value, json};

use super::cues::CueArgs;
use super::formats::Format;
use super::inputs::Selection;
use super::outputs::{Existing, Wanted};
use crate::args::{DeviceArgs, KvType, ModelArgs};
use crate::model::files_of;

/// Most tokens that `--max-tokens` accepts: those of the longest context. The model's own may be shorter.
const MAX_TOKENS: u64 = MAX_CONTEXT as u64;

/// Most segments at once: more gain nothing.
const MAX_PARALLEL: u64 = 64;

/// Transcribe audio files.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Examples:
  tympan transcribe talk.mp3
  tympan transcribe -m Qwen3-ASR-0.6B-Q8_0.gguf --language German -f srt,json -o out interviews/
  ffmpeg -i film.mkv -ac 1 -ar 16000 -f wav - | tympan transcribe -m MODEL.gguf -

Exit codes: 0 done, 1 some of several inputs failed or an output cannot be written, 2 usage, 3 an input cannot be read, \
4 model, 5 memory, 6 a text was cut at the token limit, 129, 130, 143 ended by HUP, INT, TERM.")]
pub(crate) struct TranscribeArgs {
    /// Audio files, directories, or - for standard input
    #[arg(value_name = "FILES|DIRS|-", required = true)]
    pub(super) inputs: Vec<PathBuf>,

    #[command(flatten)]
    pub(super) model: ModelArgs,

    #[command(flatten)]
    pub(super) device: DeviceArgs,

    /// Output formats, separated by commas: text, json, jsonl, srt, vtt, csv, lrc, tsv
    #[arg(
        short,
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "text",
        hide_possible_values = true
    )]
    pub(super) format: Vec<Format>,

    /// Write one file per input and format into this directory, named after the input [default: standard output]
    #[arg(short, long, value_name = "DIR")]
    pub(super) output: Option<PathBuf>,

    /// Replace outputs that exist
    #[arg(long, conflicts_with = "skip_existing")]
    pub(super) overwrite: bool,

    /// Leave inputs alone whose outputs exist [default: where an output exists, nothing is done]
    #[arg(long)]
    pub(super) skip_existing: bool,

    #[command(flatten)]
    pub(super) selection: Selection,

    /// Language spoken: name, ISO code (de, deu) or tag (de-AT) from the model's list, or auto. Qwen3-ASR finds the language with auto; LFM2-Audio
    /// is asked in English with auto, and names no language
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(super) language: String,

    /// Names and terms to expect (Qwen3-ASR only)
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(super) context: String,

    /// Times in the output: none or segment [default: none for text, else segment]
    #[arg(long, value_name = "KIND", hide_possible_values = true)]
    pub(super) timestamps: Option<Timestamps>,

    #[command(flatten)]
    pub(super) cues: CueArgs,

    /// Most generated tokens per segment; a text cut there is exit code 6 [default: max(64, ceil(16 * seconds) + 32)]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_TOKENS))]
    pub(super) max_tokens: Option<u64>,

    /// Cut long audio near this length at a quiet place: 2 to 3600 seconds, pieces of at least half of it; 0 never cuts
    /// [default: what the model file states, else 60 for Qwen3-ASR, 30 for LFM2-Audio]
    #[arg(long, value_name = "SECONDS", value_parser = parse_segment, allow_negative_numbers = true)]
    pub(super) segment: Option<f64>,

    /// Segments of long audio, and of the files after it, that are decoded at once, with the same text; each takes the memory of
    /// its states meanwhile (Qwen3-ASR 0.6B: about 115 MB for a minute of speech)
    #[arg(long, value_name = "N", default_value_t = USUAL_PARALLEL.get() as u64, value_parser = clap::value_parser!(u64).range(1..=MAX_PARALLEL))]
    pub(super) parallel: u64,

    /// Add the generated token ids to JSON (json and jsonl only)
    #[arg(long)]
    pub(super) token_ids: bool,

    /// What audio attends to in the encoder of Qwen3-ASR: windowed (8 s, as trained) or full (the whole clip) [default:
    /// windowed]
    #[arg(long, value_name = "KIND", hide_possible_values = true)]
    pub(super) audio_attention: Option<AttentionArg>,

    /// Type of the attention cache: f16 or f32
    #[arg(long, value_name = "TYPE", default_value = "f16", hide_possible_values = true)]
    pub(super) kv_type: KvType,

    /// Say the time of every stage on standard error, one line each
    #[arg(long)]
    pub(super) timings: bool,

    /// Write mel, audio embeddings, prompt ids and first logits of every input as safetensors into this directory
    #[arg(long, value_name = "DIR")]
    pub(super) dump: Option<PathBuf>,

    /// Say nothing but errors on standard error
    #[arg(short, long)]
    pub(super) quiet: bool,

    /// Say more on standard error
    #[arg(short, long, conflicts_with = "quiet")]
    pub(super) verbose: bool,
}

impl TranscribeArgs {
    /// The files that are asked for.
    pub(super) fn wanted(&self) -> Wanted<'_> {
        let existing = match (self.overwrite, self.skip_existing) {
            (true, _) => Existing::Overwrite,
            (false, true) => Existing::Skip,
            (false, false) => Existing::Refuse,
        };
        Wanted {
            folder: self.output.as_deref(),
            formats: &self.format,
            dump: self.dump.as_deref(),
            existing,
            model: self.model.model.iter().chain(&self.model.mmproj).flat_map(|model| files_of(model)).collect(),
        }
    }

    /// What a text depends on besides the audio and the model.
    pub(super) fn text_options(&self) -> Value {
        json!({
            "language": self.language,
            "context": self.context,
            "segment": self.segment,
            "max_tokens": self.max_tokens,
            "full_attention": self.audio_attention == Some(AttentionArg::Full),
            "kv_type": self.kv_type.name(),
        })
    }

    /// Whether segments carry times in this format.
    pub(super) fn has_timestamps(&self, format: Format) -> bool {
        self.timestamps.map_or(format != Format::Text, |kind| kind == Timestamps::Segment)
    }
}

/// What has times in the output.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Timestamps {
    None,
    Segment,
    /// Refused.
    #[value(hide = true)]
    Word,
}

/// `--audio-attention`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AttentionArg {
    Windowed,
    Full,
}

impl From<AttentionArg> for AudioAttention {
    fn from(arg: AttentionArg) -> Self {
        match arg {
            AttentionArg::Windowed => Self::Windowed,
            AttentionArg::Full => Self::Full,
        }
    }
}

fn parse_segment(text: &str) -> Result<f64, String> {
    let (least, most) = (f64::from(*SEGMENT_RANGE.start()), f64::from(*SEGMENT_RANGE.end()));
    let seconds = text.parse().ok().filter(|s| *s == 0.0 || (least..=most).contains(s));
    seconds.ok_or_else(|| format!("want 0 (never cut) or {least} to {most} seconds"))
}
