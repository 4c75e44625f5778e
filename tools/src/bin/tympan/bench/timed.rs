//! [`Timed`]: a row as comparisons see it: what was measured, and how long it took. Read from json, so that rows of this
//! run, of earlier ones and of llama-bench are the same thing.

use std::path::Path;

use serde_json::{Map, Value};

use super::measure::Test;
use super::statistics::{mean, percentile};

/// Fields in which rows of language models have to agree, besides the name of the model's file.
const TEXT_FIELDS: [&str; 12] = [
    "model_type",
    "backends",
    "n_threads",
    "n_batch",
    "n_ubatch",
    "type_k",
    "type_v",
    "graph_reuse",
    "n_prompt",
    "n_gen",
    "n_depth",
    "n_parallel",
];
/// Those of clips. Another number of tokens is another amount of work.
const CLIP_FIELDS: [&str; 8] =
    ["model_type", "backends", "n_threads", "type_k", "type_v", "graph_reuse", "audio_file", "generated_tokens"];
/// What a row says that does not say it: llama-bench has no such fields, always reuses graphs, and measures one sequence.
const DEFAULTS: [(&str, &str); 2] = [("graph_reuse", "on"), ("n_parallel", "1")];
/// How far a mean may be from that of its samples: figures are rounded when they are written.
const MAX_DISAGREEMENT: f64 = 0.005;

/// A measured row.
#[derive(Clone, Debug)]
pub(super) struct Timed {
    /// Name of the model's file, then the fields of its kind.
    identity: Vec<(&'static str, String)>,
    /// Tokens of a repetition; none for clips.
    n_tokens: Option<f64>,
    /// Seconds of every repetition.
    seconds: Vec<f64>,
}

impl Timed {
    /// Reads a row that this program or llama-bench has written.
    ///
    /// Errors: fields that are missing or of another type, samples that are none, figures that contradict each other.
    pub(super) fn read(row: &Map<String, Value>) -> Result<Self, String> {
        let is_clip = row.contains_key("audio_file");
        let file = text(row, "model_filename")?;
        let file = Path::new(&file).file_name().map_or(file.clone(), |name| name.to_string_lossy().into_owned());
        let mut identity = vec![("model_filename", file)];
        for field in if is_clip { &CLIP_FIELDS[..] } else { &TEXT_FIELDS[..] } {
            identity.push((field, text(row, field)?));
        }
        if is_clip {
            let seconds = samples(row, "samples_ms")?.iter().map(|ms| ms / 1e3).collect();
            return Ok(Self { identity, n_tokens: None, seconds });
        }
        let n_parallel = if row.contains_key("n_parallel") { number(row, "n_parallel")? } else { 1.0 };
        let n_tokens = n_parallel * (number(row, "n_prompt")? + number(row, "n_gen")?);
        let ns = samples(row, "samples_ns")?;
        agree(row, "avg_ns", mean(&ns), "samples_ns")?;
        let rates: Vec<f64> = ns.iter().map(|ns| 1e9 * n_tokens / ns).collect();
        agree(row, "avg_ts", mean(&rates), "samples_ns")?;
        Ok(Self { identity, n_tokens: Some(n_tokens), seconds: ns.iter().map(|ns| ns / 1e9).collect() })
    }

    /// Whether both are measurements of the same thing.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// The first field in which they are not measurements of the same thing, with both values.
    pub(super) fn difference(&self, other: &Self) -> Option<String> {
        if self.identity.len() != other.identity.len() {
            return Some("one is a clip and the other is not".to_owned());
        }
        let (ours, theirs) = self.identity.iter().zip(&other.identity).find(|(a, b)| a != b)?;
        Some(format!("{} is {} here and {} there", ours.0, ours.1, theirs.1))
    }

    /// Takes in the samples of a row like this one.
    pub(super) fn extend(&mut self, other: &Self) {
        self.seconds.extend(&other.seconds);
    }

    /// The median, in seconds.
    pub(super) fn median(&self) -> f64 {
        percentile(&self.seconds, 0.5)
    }

    /// The fastest repetition, in seconds.
    pub(super) fn fastest(&self) -> f64 {
        percentile(&self.seconds, 0.0)
    }

    /// The slowest repetition, in seconds.
    pub(super) fn slowest(&self) -> f64 {
        percentile(&self.seconds, 1.0)
    }

    /// What users read of so many seconds: tokens per second, or milliseconds of a clip.
    pub(super) fn figure(&self, seconds: f64) -> f64 {
        self.n_tokens.map_or(seconds * 1e3, |n| n / seconds)
    }

    /// The median as users read it.
    pub(super) fn rate(&self) -> String {
        format!("{:.2} {}", self.figure(self.median()), self.unit())
    }

    /// The unit of [`Timed::figure`].
    pub(super) fn unit(&self) -> &'static str {
        if self.n_tokens.is_some() { "t/s" } else { "ms" }
    }

    fn field(&self, name: &str) -> &str {
        self.identity.iter().find(|(field, _)| *field == name).map_or("", |(_, value)| value)
    }

    /// The model: type and file.
    pub(super) fn model(&self) -> String {
        format!("{} ({})", self.field("model_type"), self.field("model_filename"))
    }

    /// Number of threads.
    pub(super) fn threads(&self) -> &str {
        self.field("n_threads")
    }

    /// What was measured, with what is not as usual.
    pub(super) fn test(&self) -> String {
        let n = |field| self.field(field).parse::<f64>().map_or(0, |n| n as usize);
        let mut name = match self.n_tokens {
            Some(_) => {
                let [n_prompt, n_gen, n_depth, n_parallel] = ["n_prompt", "n_gen", "n_depth", "n_parallel"].map(n);
                Test { n_prompt, n_gen, n_depth, n_parallel }.full_name()
            }
            None => format!("{}, {} tokens", self.field("audio_file"), self.field("generated_tokens")),
        };
        let usual = [("n_batch", "2048"), ("n_ubatch", "512"), ("type_k", "f16"), ("type_v", "f16")];
        for (field, value) in usual {
            let is = self.field(field);
            if !is.is_empty() && is != value {
                name += &format!(", {field} {is}");
            }
        }
        if self.field("graph_reuse") == "off" {
            name += ", no graph reuse";
        }
        name
    }

    /// All of it on one line.
    pub(super) fn name(&self) -> String {
        let threads = self.threads();
        let s = if threads == "1" { "" } else { "s" };
        format!("{}, {threads} thread{s}, {}", self.model(), self.test())
    }
}

fn field<'a>(row: &'a Map<String, Value>, name: &str) -> Result<&'a Value, String> {
    row.get(name).ok_or_else(|| format!("{name} is missing"))
}

/// A text or a number, as text.
fn text(row: &Map<String, Value>, name: &str) -> Result<String, String> {
    if let Some((_, default)) = DEFAULTS.iter().find(|(field, _)| *field == name && !row.contains_key(name)) {
        return Ok((*default).to_owned());
    }
    match field(row, name)? {
        Value::String(text) => Ok(text.clone()),
        Value::Number(n) => Ok(n.to_string()),
        other => Err(format!("{name}: want a text or a number, got {}", kind(other))),
    }
}

fn number(row: &Map<String, Value>, name: &str) -> Result<f64, String> {
    let value = field(row, name)?;
    value
        .as_f64()
        .filter(|n| n.is_finite() && *n >= 0.0)
        .ok_or_else(|| format!("{name}: want a number, got {}", kind(value)))
}

/// Times, all of them above 0.
fn samples(row: &Map<String, Value>, name: &str) -> Result<Vec<f64>, String> {
    let value = field(row, name)?;
    let list = value.as_array().ok_or_else(|| format!("{name}: want a list, got {}", kind(value)))?;
    if list.is_empty() {
        return Err(format!("{name}: no samples"));
    }
    let time = |value: &Value| {
        let time = value.as_f64().filter(|t| t.is_finite() && *t > 0.0);
        time.ok_or_else(|| format!("{name}: want times above 0, got {value}"))
    };
    list.iter().map(time).collect()
}

/// Errors: a row whose figures are not those of its own samples.
fn agree(row: &Map<String, Value>, name: &str, want: f64, of: &str) -> Result<(), String> {
    let got = number(row, name)?;
    if (got / want - 1.0).abs() <= MAX_DISAGREEMENT {
        return Ok(());
    }
    Err(format!("{name} is {got:.3}, but {of} give {want:.3}"))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
