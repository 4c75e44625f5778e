//! Rows of speech recognition: a clip from file to text, stage by stage.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use engine::DType;
use engine::backend::Backend;
use engine::session::Reuse;
use models::transcribe::{Request, Transcriber};
use serde_json::{Map, Value};

use super::baseline::Baseline;
use super::json::object;
use super::markdown;
use super::print::{self, Format};
use super::profile::{Breakdown, stage_of};
use super::row::ModelFacts;
use super::timed::Timed;
use super::words::{error_rate, hash, n_words};
use crate::exit::{Failure, Outcome};
use crate::report::{Verbosity, peak_rss_bytes};
use crate::samples::Samples;
use tympan::Model;

/// Names of the stages, in the order in which a clip goes through them.
const STAGES: [&str; 6] = ["decode_audio", "resample", "mel", "encode", "prefill", "decode"];

/// How clips are measured.
pub(super) struct Plan<'a> {
    /// The clips.
    pub clips: &'a [PathBuf],
    /// What is said in them, by file name; for the word error rate.
    pub reference: HashMap<String, String>,
    /// Exactly so many tokens, stop tokens or not.
    pub n_tokens: Option<usize>,
    /// Untimed runs.
    pub warmup: usize,
    /// Timed runs.
    pub repetitions: usize,
    /// Whether as many follow with a clock at every op.
    pub profile: bool,
    /// Format of keys and values.
    pub kv_dtype: DType,
    /// Whether compiled graphs are used again.
    pub reuse: Reuse,
    /// When the program began.
    pub started: Instant,
    /// What rows are compared with.
    pub baseline: Option<&'a Baseline>,
}

/// A clip's measurements: those of the run with the median total.
pub(super) struct AsrRow {
    model: ModelFacts,
    device: String,
    n_threads: usize,
    clip: String,
    audio_s: f64,
    stages_ms: [f64; STAGES.len()],
    total_ms: f64,
    totals_ms: Vec<f64>,
    n_audio_tokens: usize,
    n_prompt_tokens: usize,
    n_generated: usize,
    kv_dtype: DType,
    graph_reuse: bool,
    load_ms: f64,
    wall_ms: f64,
    peak_rss: Option<u64>,
    text: String,
    error_rate: Option<f64>,
    profile: Vec<Breakdown>,
}

/// Texts by file name from lines of `file<TAB>text`; further columns are passed over.
///
/// Errors: a file that cannot be read, a line without a tab.
pub(super) fn reference(path: &Path) -> Outcome<HashMap<String, String>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string()).map_err(Failure::input)?;
    let pair = |(i, line): (usize, &str)| {
        let (file, text) = line.split_once('\t').ok_or_else(|| {
            Failure::input(anyhow!("{}: line {}: want FILE<TAB>TEXT, got {line:?}", path.display(), i + 1))
        })?;
        let text = text.split('\t').next().unwrap_or_default();
        Ok((file_name(Path::new(file)), text.to_owned()))
    };
    text.lines().enumerate().filter(|(_, line)| !line.is_empty()).map(pair).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Measures every clip on one model.
///
/// Errors: a model that does not transcribe, a clip that cannot be read.
pub(super) fn measure(
    plan: &Plan<'_>,
    model: &Model,
    facts: &ModelFacts,
    backend: &Arc<dyn Backend>,
    n_threads: usize,
    load_ms: f64,
    say: Verbosity,
) -> Outcome<Vec<AsrRow>> {
    let transcriber = Transcriber::open(&model.loaded, std::slice::from_ref(backend), plan.kv_dtype);
    let mut transcriber = transcriber.with_context(|| format!("loading {}", facts.filename)).map_err(Failure::model)?;
    transcriber.set_reuse(plan.reuse);
    let fixed = Fixed { plan, facts, device: backend.name().to_uppercase(), n_threads, load_ms };
    let measure = |clip: &PathBuf| {
        let once = || fixed.measure(&mut transcriber, clip, say);
        super::compared(plan.baseline, AsrRow::timed, |row: &AsrRow| row.clip.clone(), once, say)
    };
    plan.clips.iter().map(measure).collect()
}

/// What all clips of a model have in common.
struct Fixed<'a> {
    plan: &'a Plan<'a>,
    facts: &'a ModelFacts,
    device: String,
    n_threads: usize,
    load_ms: f64,
}

impl Fixed<'_> {
    fn measure(&self, transcriber: &mut Transcriber, clip: &Path, say: Verbosity) -> Outcome<AsrRow> {
        let plan = self.plan;
        let mut runs = Vec::with_capacity(plan.repetitions);
        for i in 0..plan.warmup + plan.repetitions {
            let run = Run::of(plan, transcriber, clip, say)?;
            if i >= plan.warmup {
                runs.push(run);
            }
        }
        let peak_rss = peak_rss_bytes();
        let profile = if plan.profile { profile(plan, transcriber, clip, say)? } else { Vec::new() };
        let totals_ms: Vec<f64> = runs.iter().map(|r| r.total_ms).collect();
        runs.sort_by(|a, b| a.total_ms.total_cmp(&b.total_ms));
        let middle = runs.swap_remove((runs.len() - 1) / 2);
        let said = plan.reference.get(&file_name(clip));
        Ok(AsrRow {
            model: self.facts.clone(),
            device: self.device.clone(),
            n_threads: self.n_threads,
            clip: file_name(clip),
            audio_s: middle.audio_s,
            stages_ms: middle.stages_ms,
            total_ms: middle.total_ms,
            totals_ms,
            n_audio_tokens: middle.tokens[0],
            n_prompt_tokens: middle.tokens[1],
            n_generated: middle.tokens[2],
            kv_dtype: plan.kv_dtype,
            graph_reuse: plan.reuse != Reuse::Off,
            load_ms: self.load_ms,
            wall_ms: plan.started.elapsed().as_secs_f64() * 1000.0,
            peak_rss,
            profile,
            error_rate: said.map(|said| error_rate(said, &middle.text)),
            text: middle.text,
        })
    }
}

/// Where the time of the stages goes that run graphs.
fn profile(plan: &Plan<'_>, transcriber: &mut Transcriber, clip: &Path, say: Verbosity) -> Outcome<Vec<Breakdown>> {
    transcriber.set_profiling(true);
    Run::of(plan, transcriber, clip, say)?;
    // From here on: what came before made graphs known.
    transcriber.set_profiling(true);
    let mut sums_ms = [0.0; STAGES.len()];
    for _ in 0..plan.repetitions {
        let run = Run::of(plan, transcriber, clip, say)?;
        sums_ms.iter_mut().zip(run.stages_ms).for_each(|(sum, ms)| *sum += ms);
    }
    let profile = transcriber.profile().expect("it is on");
    let breakdown = |(stage, ms): (&'static str, f64)| {
        Breakdown::of(profile, stage, Duration::from_secs_f64(ms / 1000.0), |key| stage_of(key) == stage)
    };
    let all = STAGES.into_iter().zip(sums_ms).map(breakdown).filter(|b| b.steps() > 0).collect();
    transcriber.set_profiling(false);
    Ok(all)
}

/// One time from file to text.
struct Run {
    audio_s: f64,
    stages_ms: [f64; STAGES.len()],
    total_ms: f64,
    /// Audio tokens, tokens of the prompt, generated tokens.
    tokens: [usize; 3],
    text: String,
}

impl Run {
    fn of(plan: &Plan<'_>, transcriber: &mut Transcriber, clip: &Path, say: Verbosity) -> Outcome<Self> {
        let start = Instant::now();
        let samples = Samples::of_file(clip)?;
        samples.condition.say(&samples.name, say);
        let request = Request {
            // Exactly so many tokens are those of one segment.
            segment_s: plan.n_tokens.map(|_| 0.0),
            max_tokens: plan.n_tokens,
            ignore_stop: plan.n_tokens.is_some(),
            ..Request::default()
        };
        let transcript = transcriber.transcribe(&samples.values, &request, &mut ());
        let transcript = transcript.with_context(|| clip.display().to_string()).map_err(Failure::model)?;
        let t = &transcript.timings;
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        Ok(Self {
            audio_s: transcript.duration_s,
            stages_ms: [
                samples.decode_audio_ms,
                samples.resample_ms,
                ms(t.mel),
                ms(t.encode),
                ms(t.prefill),
                ms(t.decode),
            ],
            total_ms: ms(start.elapsed()),
            tokens: [t.audio_tokens, t.prompt_tokens, t.generated_tokens],
            text: transcript.text,
        })
    }
}

impl AsrRow {
    /// The first token comes out of the prompt.
    fn ms_per_token(&self) -> f64 {
        self.stages_ms[STAGES.len() - 1] / self.n_generated.saturating_sub(1).max(1) as f64
    }

    fn real_time_factor(&self) -> f64 {
        self.total_ms / 1000.0 / self.audio_s
    }

    /// The row as comparisons see it.
    pub(super) fn timed(&self) -> Outcome<Timed> {
        Timed::read(&self.fields()).map_err(|e| Failure::output(anyhow!("{}: {e}", self.clip)))
    }

    /// Everything, for json.
    pub(super) fn fields(&self) -> Map<String, Value> {
        let mut fields = object([
            ("test", Value::from("asr")),
            ("backends", self.device.clone().into()),
            ("model_filename", self.model.filename.clone().into()),
            ("model_type", self.model.kind.clone().into()),
            ("n_threads", self.n_threads.into()),
            ("type_k", self.kv_dtype.to_string().to_lowercase().into()),
            ("type_v", self.kv_dtype.to_string().to_lowercase().into()),
            ("audio_file", self.clip.clone().into()),
            ("audio_s", self.audio_s.into()),
            ("audio_tokens", self.n_audio_tokens.into()),
            ("prompt_tokens", self.n_prompt_tokens.into()),
            ("generated_tokens", self.n_generated.into()),
            ("load_ms", self.load_ms.into()),
        ]);
        for (name, ms) in STAGES.iter().zip(self.stages_ms) {
            fields.insert(format!("{name}_ms"), ms.into());
            fields.insert(format!("{name}_percent"), (100.0 * ms / self.total_ms).into());
        }
        fields.extend(object([
            ("ms_per_token", Value::from(self.ms_per_token())),
            ("total_ms", self.total_ms.into()),
            ("samples_ms", self.totals_ms.clone().into()),
            ("wall_ms", self.wall_ms.into()),
            ("rtf", self.real_time_factor().into()),
            ("words", n_words(&self.text).into()),
            ("wer", self.error_rate.into()),
            ("text_hash", hash(&self.text).into()),
            ("graph_reuse", if self.graph_reuse { "on" } else { "off" }.into()),
            ("peak_rss", self.peak_rss.into()),
        ]));
        if !self.profile.is_empty() {
            fields.insert("profile".into(), self.profile.iter().map(Breakdown::json).collect());
        }
        fields
    }
}

/// The rows in one format. Markdown has a table of stages for every clip.
pub(super) fn text(rows: &[AsrRow], format: Format) -> String {
    match format {
        Format::Md => rows.iter().map(stage_table).collect::<Vec<_>>().join("\n"),
        Format::Jsonl => rows.iter().map(|r| format!("{}\n", Value::Object(r.fields()))).collect(),
        Format::Json => {
            let all: Vec<Value> = rows.iter().map(|r| Value::Object(r.fields())).collect();
            format!("{:#}\n", Value::Array(all))
        }
        Format::Csv => {
            let quoted = |v: &Value| match v {
                Value::String(text) => format!("\"{}\"", text.replace('"', "\"\"")),
                other => format!("\"{other}\""),
            };
            let cells = |r: &AsrRow| r.fields().values().map(quoted).collect::<Vec<_>>().join(",");
            let head =
                rows.first().map(|r| r.fields().keys().cloned().collect::<Vec<_>>().join(",")).unwrap_or_default();
            std::iter::once(head).chain(rows.iter().map(cells)).map(|line| format!("{line}\n")).collect()
        }
        Format::Sql | Format::None => String::new(),
    }
}

fn stage_table(row: &AsrRow) -> String {
    const COLUMNS: [(&str, i32); 4] = [("stage", -12), ("ms", 10), ("%", 7), ("", -44)];
    let mut cells: Vec<[String; 4]> = Vec::new();
    for (name, ms) in STAGES.iter().zip(row.stages_ms) {
        let detail = match *name {
            "encode" => format!("{} audio tokens", row.n_audio_tokens),
            "prefill" => format!("{} prompt tokens", row.n_prompt_tokens),
            "decode" => format!("{} tokens, {:.2} ms each", row.n_generated, row.ms_per_token()),
            _ => String::new(),
        };
        cells.push([name.replace('_', " "), format!("{ms:.2}"), format!("{:.1}", 100.0 * ms / row.total_ms), detail]);
    }
    let peak = row.peak_rss.map_or(String::new(), |bytes| format!(", peak {}", print::size(bytes)));
    let wer = row.error_rate.map_or(String::new(), |rate| format!(", WER {:.1} %", 100.0 * rate));
    let end = format!("RTF {:.3}, {} words{wer}{peak}", row.real_time_factor(), n_words(&row.text));
    cells.push(["total".into(), format!("{:.2}", row.total_ms), "100.0".into(), end]);
    cells.push(["load".into(), format!("{:.2}", row.load_ms), String::new(), "before the first run".into()]);
    let mut text = format!(
        "{} on {}, {} threads: {}, {:.2} s of audio\n\n{}",
        row.model.kind,
        row.device,
        row.n_threads,
        row.clip,
        row.audio_s,
        markdown::table(&COLUMNS, &cells)
    );
    for breakdown in &row.profile {
        let unclocked_ms = STAGES.iter().position(|s| *s == breakdown.stage).map_or(0.0, |i| row.stages_ms[i]);
        let steps_per_run = breakdown.steps() as f64 / row.totals_ms.len() as f64;
        text += &format!("\n{}: {}", breakdown.stage, breakdown.table(unclocked_ms / steps_per_run));
    }
    text
}
