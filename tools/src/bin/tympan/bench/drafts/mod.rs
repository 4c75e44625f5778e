//! Rows of drafts: how fast a text of the model's own comes with them and without, and what a step of several rows costs.

mod steps;
mod texts;

use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use engine::backend::Backend;
use engine::session::{MAX_PENDING, Session, SessionOptions};
use models::LoadOptions;
use models::generate::Writer;
use models::sample::Sampling;
use models::scheduler::{Rollback, Scheduler};
use serde_json::{Map, Value};
use tympan::Model;

use self::steps::Steps;
use self::texts::{Guesses, Text};
use super::json::object;
use super::lists::{Lists, pairs};
use super::measure::RandomTokens;
use super::print::Format;
use super::row::ModelFacts;
use super::{BenchArgs, Devices, flags, model, most_threads, prepare};
use crate::args::{KvType, ModelArgs};
use crate::exit::{Exit, Failure, Outcome};
use crate::model::{Loading, check_unchanged};
use crate::report::Verbosity;
use crate::speculation::SpeculationArgs;
use crate::streams;

/// Highest temperature of a text.
const MAX_TEMPERATURE: f32 = 1000.0;
/// The seed of texts that are drawn: any will do, the same one every time.
const SEED: u64 = 7;

/// What is measured of drafts.
#[derive(Args, Clone, Debug)]
pub(super) struct DraftArgs {
    #[command(flatten)]
    speculation: SpeculationArgs,

    /// Measure drafts of K tokens that make every step give MEAN tokens in the mean, the model's own among them: 1 is always wrong,
    /// K + 1 always right; repeatable. They are taken from a text that the model wrote before, with faults in it
    #[arg(long, value_name = "K,MEAN", value_parser = parse_oracle)]
    spec_oracle: Vec<Oracle>,

    /// Measure steps of so many rows, all of which give logits, as those that verify drafts
    #[arg(long, value_name = "N")]
    spec_rows: Vec<String>,

    /// Temperature of the texts that drafts are measured on; 0 takes the most likely token every time
    #[arg(long, value_name = "T", default_value = "0", value_parser = parse_temperature, allow_negative_numbers = true)]
    temp: f32,
}

/// `--spec-oracle`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Oracle {
    /// Tokens of a draft.
    k: usize,
    /// Tokens that a step gives.
    mean: f64,
}

fn parse_oracle(text: &str) -> Result<Oracle, String> {
    let wrong = || format!("want K,MEAN with K from 1 to {MAX_PENDING} and MEAN from 1 to K + 1, got {text:?}");
    let (k, mean) = text.split_once(',').ok_or_else(wrong)?;
    let oracle = Oracle { k: k.parse().map_err(|_| wrong())?, mean: mean.parse().map_err(|_| wrong())? };
    let is_sound = (1..=MAX_PENDING).contains(&oracle.k) && (1.0..=(oracle.k + 1) as f64).contains(&oracle.mean);
    is_sound.then_some(oracle).ok_or_else(wrong)
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    let t = text.parse::<f32>().ok().filter(|t| (0.0..=MAX_TEMPERATURE).contains(t));
    t.ok_or_else(|| format!("want 0 to {MAX_TEMPERATURE}"))
}

impl DraftArgs {
    /// Whether drafts are to be measured, in place of prompts and continuations.
    ///
    /// Errors: flags that do not go together.
    pub(super) fn are_wanted(&self) -> Outcome<bool> {
        let has_types = self.speculation.parameters()?.is_some();
        let is_wanted = has_types || !self.spec_oracle.is_empty() || !self.spec_rows.is_empty();
        if !is_wanted && self.temp > 0.0 {
            return Err(Failure::usage("--temp goes with --spec-type or --spec-oracle"));
        }
        Ok(is_wanted)
    }

    /// The drafters of the flags, whose files are inputs.
    pub(super) fn speculation(&self) -> &SpeculationArgs {
        &self.speculation
    }

    fn rows(&self) -> Outcome<Vec<usize>> {
        let lists = self.spec_rows.iter().map(|text| flags::numbers(text)).collect::<Result<Vec<_>, _>>();
        let rows = lists.map_err(|e| Failure::usage(format!("--spec-rows: {e}")))?.concat();
        match rows.iter().find(|&&n| n == 0 || n > MAX_PENDING + 1) {
            Some(n) => Err(Failure::usage(format!("--spec-rows: want 1 to {}, got {n}", MAX_PENDING + 1))),
            None => Ok(rows),
        }
    }

    /// Tokens of the longest draft.
    fn largest(&self) -> Outcome<usize> {
        let of_types = self.speculation.parameters()?.map_or(0, |parameters| parameters.largest());
        let of_oracles = self.spec_oracle.iter().map(|oracle| oracle.k).max().unwrap_or(0);
        Ok(of_types.max(of_oracles).min(MAX_PENDING))
    }
}

/// What all rows of a model say of it.
#[derive(Clone, Debug)]
struct Facts {
    model: ModelFacts,
    backends: String,
    n_threads: usize,
    kv_type: KvType,
    n_depth: usize,
    n_parallel: usize,
}

impl Facts {
    fn fields(&self, test: &str) -> Map<String, Value> {
        object([
            ("test", Value::from(test)),
            ("backends", self.backends.clone().into()),
            ("model_filename", self.model.filename.clone().into()),
            ("model_type", self.model.kind.clone().into()),
            ("n_threads", self.n_threads.into()),
            ("type_k", self.kv_type.name().into()),
            ("type_v", self.kv_type.name().into()),
            ("n_depth", self.n_depth.into()),
            ("n_parallel", self.n_parallel.into()),
        ])
    }

    fn head(&self, what: &str) -> String {
        let behind = if self.n_depth > 0 { format!(" @ d{}", self.n_depth) } else { String::new() };
        let at_once = if self.n_parallel > 1 { format!(", {} sequences", self.n_parallel) } else { String::new() };
        let Self { model, backends, n_threads, .. } = self;
        format!("{} on {backends}, {n_threads} threads: {what}{behind}{at_once}\n\n", model.kind)
    }
}

/// What was measured, as a table and as objects.
#[derive(Default)]
struct Report {
    tables: Vec<String>,
    objects: Vec<Value>,
}

impl Report {
    fn text(&self, format: Format) -> String {
        match format {
            Format::Md => self.tables.join("\n"),
            Format::Jsonl => self.objects.iter().map(|row| format!("{row}\n")).collect(),
            Format::Json => format!("{:#}\n", Value::Array(self.objects.clone())),
            Format::Csv | Format::Sql | Format::None => String::new(),
        }
    }
}

/// Refuses what goes with rows of llama-bench only.
fn check(args: &BenchArgs, lists: &Lists) -> Outcome<()> {
    let given = [
        ("--audio", !args.audio.is_empty()),
        ("-p", !args.n_prompt.is_empty() && lists.n_prompt != [0]),
        ("-pg", !args.pg.is_empty()),
        ("-gr on,off", lists.reuse.len() > 1),
        ("--baseline", args.baseline.is_some()),
        ("--baseline-program", args.baseline_program.is_some()),
        ("--plot", args.plot.is_some()),
        ("--profile", args.profile),
    ];
    if let Some((flag, _)) = given.into_iter().find(|(_, is_given)| *is_given) {
        return Err(Failure::usage(format!(
            "{flag} does not go with drafts (--spec-type, --spec-oracle, --spec-rows)"
        )));
    }
    let formats = [Some(args.output), args.output_err];
    if formats.into_iter().flatten().any(|format| matches!(format, Format::Csv | Format::Sql)) {
        return Err(Failure::usage(
            "-o: drafts have no columns in llama-bench's table (accepted: md, json, jsonl, none)",
        ));
    }
    Ok(())
}

/// Measures drafts on all models.
///
/// Errors: usage, a model that cannot be loaded, too little memory, an output that cannot be written.
pub(super) fn run(args: &BenchArgs, lists: &Lists, say: Verbosity) -> Outcome<Exit> {
    check(args, lists)?;
    let rows = args.drafts.rows()?;
    let most = SessionOptions::default().max_tokens;
    if let Some((n, np)) = pairs(&rows, &lists.n_parallel).find(|(n, np)| n * np > most) {
        return Err(Failure::usage(format!(
            "--spec-rows {n} of {np} sequences (-np): want at most {most} rows together"
        )));
    }
    let models = args.models();
    let threads = most_threads(lists);
    prepare(&models, threads, say)?;
    let mut devices = Devices { device: &args.device, open: Vec::new(), say };
    let mut report = Report::default();
    for path in &models {
        let arguments = ModelArgs { model: path.clone(), mmproj: None };
        let loading = Loading { threads, weights: args.weights, is_long: false };
        let model = arguments.load(LoadOptions { text_only: true, ..LoadOptions::default() }, loading, say)?;
        let filename = path.as_ref().map_or_else(|| model.name.clone(), |p| p.display().to_string());
        let facts = model::facts(&model.loaded, &filename);
        for &[kv_type, _] in &lists.cache_types {
            for &threads in &lists.threads {
                let backend = devices.get(threads)?;
                for (n_depth, n_parallel) in pairs(&lists.n_depth, &lists.n_parallel) {
                    let (backends, n_threads) = (backend.name().to_uppercase(), threads.get());
                    let facts = Facts { model: facts.clone(), backends, n_threads, kv_type, n_depth, n_parallel };
                    let measured = Measured { args, lists, rows: &rows, facts, model: &model, backend: &backend };
                    measured.run(&mut report, (loading, say))?;
                    check_unchanged(&model)?;
                }
            }
        }
    }
    let printed = streams::print(&report.text(args.output));
    if let Some(format) = args.output_err {
        streams::say(report.text(format));
    }
    printed.map(|()| Exit::Done)
}

/// One model with one setting.
struct Measured<'a> {
    args: &'a BenchArgs,
    lists: &'a Lists,
    rows: &'a [usize],
    facts: Facts,
    model: &'a Model,
    backend: &'a Arc<dyn Backend>,
}

impl Measured<'_> {
    fn run(&self, report: &mut Report, (loading, say): (Loading, Verbosity)) -> Outcome<()> {
        let Self { args, lists, rows, facts, .. } = self;
        let of_model = || facts.model.filename.clone();
        let repetitions = usize::try_from(args.repetitions).unwrap_or(usize::MAX);
        let mut tokens = RandomTokens::new(&self.model.loaded.files[0], self.model.loaded.model.n_vocab());
        let n_prompt = facts.n_depth.max(1);
        let prompts: Vec<_> = (0..facts.n_parallel).map(|_| tokens.prompt(n_prompt)).collect();
        if !rows.is_empty() {
            let n_drafts = rows.iter().max().map_or(0, |n| n - 1);
            let session = self.open(Steps::n_ctx(n_prompt, rows, repetitions), n_drafts, Rollback::Ring)?;
            let steps = Steps::measure(session, &prompts, rows, repetitions);
            let steps = steps.with_context(of_model).map_err(Failure::model)?;
            report.tables.push(facts.head("steps of several rows") + &steps.table());
            report.objects.extend(steps.objects(facts));
        }
        let writer = Writer::open(&self.model.loaded).map_err(Failure::model)?;
        let speculation = args.drafts.speculation();
        let drafters =
            speculation.open(writer.tokenizer(), self.backend, facts.kv_type, facts.n_parallel, (loading, say))?;
        let oracles = args.drafts.spec_oracle.iter().copied().map(Guesses::Oracle);
        let guesses: Vec<Guesses> = oracles.chain(drafters.clone().map(Guesses::Drafters)).collect();
        if guesses.is_empty() {
            return Ok(());
        }
        for &n_gen in lists.n_gen.iter().filter(|&&n| n > 0) {
            let rollback = speculation.rollback();
            let mut scheduler = Scheduler::new(self.open(n_prompt + n_gen, args.drafts.largest()?, rollback)?);
            scheduler.set_rollback(rollback);
            let text = Text {
                prompts: &prompts,
                n_gen,
                sampling: Sampling { temperature: args.drafts.temp, seed: SEED, ..Sampling::default() },
                adapts: speculation.adapts(),
            };
            let rows = text.measure(&mut scheduler, &guesses, repetitions);
            let rows = rows.with_context(of_model).map_err(Failure::model)?;
            let head = facts.head(&format!("tg{n_gen} with drafts, {}", texts::name(rollback)));
            report.tables.push(head + &texts::table(&rows));
            report.objects.extend(rows.iter().map(|row| row.object(facts, args.drafts.temp, rollback)));
        }
        if let Some(drafters) = &drafters {
            speculation.close(drafters, say)?;
        }
        Ok(())
    }

    fn open(&self, n_ctx: usize, n_drafts: usize, rollback: Rollback) -> Outcome<Session> {
        let loaded = &self.model.loaded;
        let options = SessionOptions {
            n_slots: self.facts.n_parallel,
            n_ctx,
            kv_dtype: self.facts.kv_type.into(),
            n_pending: rollback.n_pending(n_drafts),
            two_rows: rollback.two_rows(),
            reuse: self.lists.reuse[0],
            spare_bytes: usize::MAX,
            ..SessionOptions::default()
        };
        let session =
            Session::open(Arc::clone(&loaded.model), &loaded.weights, std::slice::from_ref(self.backend), options);
        session.with_context(|| self.facts.model.filename.clone()).map_err(Failure::model)
    }
}
