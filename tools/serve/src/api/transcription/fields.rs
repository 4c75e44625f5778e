//! [`Asking`]: what the fields of a form ask for, and those that are refused.

use crate::api::error::ApiError;
use crate::http::form::Form;

/// Most generated tokens per segment that can be asked for.
const MAX_TOKENS: usize = 1 << 20;

/// What the reply looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    Json,
    Text,
    Srt,
    Vtt,
    VerboseJson,
    /// Events with more of the text each.
    Stream,
    /// Events with tokens.
    StreamingVerboseJson,
}

impl Format {
    /// Whether the text is sent as it grows.
    pub(crate) fn is_streamed(self) -> bool {
        matches!(self, Self::Stream | Self::StreamingVerboseJson)
    }
}

/// What is to be transcribed, and how.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Asking {
    /// As the client named it.
    pub language: Option<String>,
    /// Names and terms to expect.
    pub context: String,
    pub format: Format,
    pub max_tokens: Option<usize>,
}

/// Fields of whisper.cpp's server that are not built, with the values that change nothing.
const WHISPER: &[(&str, &[&str])] = &[
    ("offset_t", &["0"]),
    ("offset_n", &["0"]),
    ("duration", &["0"]),
    ("max_context", &["-1"]),
    ("max_len", &["0"]),
    ("split_on_word", &["false"]),
    ("audio_ctx", &["0"]),
    ("translate", &["false"]),
    ("diarize", &["false"]),
    ("tinydiarize", &["false"]),
    ("token_timestamps", &["false"]),
    ("detect_language", &["false"]),
    ("carry_initial_prompt", &["false"]),
    ("suppress_nst", &["false"]),
    ("vad", &["false"]),
    // How Whisper searches, and when it starts anew with another temperature: the one way that there is here stays it.
    ("temperature_inc", &["0", "0.0", "0.2", "0.20"]),
    ("best_of", &["1", "2"]),
    ("beam_size", &["-1", "1"]),
    ("no_language_probabilities", &["true", "false"]),
    ("no_timestamps", &["true", "false"]),
];

impl Asking {
    /// The fields of OpenAI's endpoint.
    ///
    /// Errors: 400 for values that make no sense, 501 for fields that are not built.
    pub(crate) fn of_openai(form: &Form) -> Result<Self, ApiError> {
        let mut asking = Self::common(form)?;
        let is_streamed = match form.text("stream") {
            None | Some("false" | "False" | "0") => false,
            Some("true" | "True" | "1") => true,
            Some(_) => return Err(ApiError::field("stream", "stream: want true or false")),
        };
        let granularities = ["timestamp_granularities[]", "timestamp_granularities"];
        for value in granularities.iter().flat_map(|name| form.all(name)) {
            match value {
                "segment" => {}
                "word" => {
                    let message = "timestamp_granularities: no word times: there is no aligner; want segment";
                    return Err(ApiError::field("timestamp_granularities", message));
                }
                _ => {
                    let message = "timestamp_granularities: want segment";
                    return Err(ApiError::field("timestamp_granularities", message));
                }
            }
            if asking.format != Format::VerboseJson {
                let message = "timestamp_granularities: only with response_format=verbose_json";
                return Err(ApiError::field("timestamp_granularities", message));
            }
        }
        if ["include[]", "include"].iter().any(|name| form.text(name).is_some()) {
            return Err(ApiError::unsupported_field("include"));
        }
        // `auto` cuts long audio at quiet places, which is done here anyway.
        if form.text("chunking_strategy").is_some_and(|value| value.trim_matches('"') != "auto") {
            return Err(ApiError::unsupported_field("chunking_strategy"));
        }
        if is_streamed {
            asking.format = match asking.format {
                Format::Json | Format::Text => Format::Stream,
                Format::StreamingVerboseJson => Format::StreamingVerboseJson,
                _ => return Err(ApiError::field("stream", "stream: only with response_format json or text")),
            };
        }
        Ok(asking)
    }

    /// The fields of whisper.cpp's endpoint.
    ///
    /// Errors: as [`Self::of_openai`].
    pub(crate) fn of_whisper(form: &Form) -> Result<Self, ApiError> {
        for (name, neutral) in WHISPER {
            if form.text(name).is_some_and(|value| !neutral.contains(&value)) {
                return Err(ApiError::unsupported_field(name));
            }
        }
        Self::common(form)
    }

    fn common(form: &Form) -> Result<Self, ApiError> {
        let format = match form.text("response_format").unwrap_or("json") {
            "json" => Format::Json,
            "text" => Format::Text,
            "srt" => Format::Srt,
            "vtt" => Format::Vtt,
            "verbose_json" => Format::VerboseJson,
            "streaming_verbose_json" => Format::StreamingVerboseJson,
            _ => {
                let message = "response_format: want json, text, srt, vtt, verbose_json or streaming_verbose_json";
                return Err(ApiError::field("response_format", message));
            }
        };
        if let Some(text) = form.text("temperature") {
            let temperature: f64 = text.parse().unwrap_or(f64::NAN);
            if !(0.0..=2.0).contains(&temperature) {
                return Err(ApiError::field("temperature", "temperature: want 0 to 2"));
            }
            if temperature > 0.0 {
                return Err(ApiError::unsupported_field("temperature"));
            }
        }
        let max_tokens = match form.text("max_tokens") {
            None => None,
            Some(text) => {
                let n = text.parse::<usize>().ok().filter(|n| (1..=MAX_TOKENS).contains(n));
                let message = format!("max_tokens: want 1 to {MAX_TOKENS}");
                Some(n.ok_or_else(|| ApiError::field("max_tokens", message))?)
            }
        };
        let language = form.text("language").filter(|language| !language.eq_ignore_ascii_case("auto"));
        Ok(Self {
            language: language.map(str::to_owned),
            context: form.text("prompt").unwrap_or_default().to_owned(),
            format,
            max_tokens,
        })
    }
}
