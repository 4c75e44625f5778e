//! `tympan bench`: speed of prompts and of continuations, with the flags, rows and formats of llama-bench.

mod alternation;
mod asr;
mod baseline;
mod drafts;
mod flags;
mod foreign;
mod json;
mod lists;
mod markdown;
mod measure;
mod model;
mod plot;
mod print;
mod profile;
mod reuse_table;
mod row;
mod statistics;
mod timed;
mod words;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use engine::backend::Backend;
use engine::session::{MAX_CONTEXT, Reuse};
use models::LoadOptions;

use tympan::Model;

use self::alternation::{Comparison, Other};
use self::asr::AsrRow;
use self::baseline::Baseline;
use self::drafts::DraftArgs;
use self::foreign::ForeignArgs;
use self::lists::{Combination, Lists};
use self::measure::{Bench, Setup};
use self::print::{Format, Printer};
use self::row::{ModelFacts, Row, Settings};
use self::timed::Timed;
use crate::args::{DeviceArgs, KvType, ModelArgs, Switch, WeightsArg, note_threads};
use crate::exit::{Exit, Failure, Outcome};
use crate::model::{Loading, check_unchanged, files_of};
use crate::output::refuse_collisions;
use crate::report::{Verbosity, peak_rss_bytes};
use crate::streams::{self, StandardError};

pub(crate) use self::flags::spelt_out;

/// Most repetitions of a test.
const MAX_REPETITIONS: u64 = 10_000;
/// Untimed runs of a clip where nothing else is asked for: the second one reuses graphs.
const WARMUP: u64 = 2;
/// Longest pause between tests, in seconds.
const MAX_DELAY_S: u64 = 3600;
/// Largest regression that can be allowed, in percent.
const MAX_PERCENT: f64 = 1000.0;
/// Times that a row is measured again before it counts as slower than the baseline's.
const RETRIES: usize = 2;

/// Measure the speed of a model: prompts and continuations, or clips from file to text.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Flags, rows and formats are those of llama-bench, in its short spelling too (-pg, -ub, -ctk, -oe, ...). Parameters take lists, \
separated by commas or repeated, and ranges: first-last, first-last+step, first-last*factor. All combinations are run.

  pp512          a prompt of 512 tokens          tg128         128 tokens one by one
  pp512+tg128    both in one timing              @ d4096       behind a context of 4096 tokens

Every tg step computes the logits of the whole vocabulary. With -np 8 eight sequences at once have the test's prompt, context and \
continuation, and tokens per second are those of all of them. With -gr on,off every test is run with and without the reuse of \
compiled graphs, and a table of the gain follows.

With --audio the speech model is measured instead, from file to text, stage by stage: the figures are those of the run with \
the median total. -n then decodes exactly N tokens, whatever they are.

With --spec-type, --spec-oracle or --spec-rows drafts are measured instead: a text of -n tokens that the model writes behind -d \
random ones, without drafts and with them in turns, and steps of several rows. --spec-oracle 4,4 has drafts of 4 tokens of which \
as many are right that a step gives 4 tokens in the mean; with --spec-adapt off all of them are verified whole.

--profile adds where the time goes, op by op.

With --baseline-program every test is run by this program and by the other one in turns, each time in processes of their own, \
and what counts is the ratio of the two times of a round: a machine that changes its speed does so for both. --max-regress 5 \
makes this a test: a row fails that takes more than 5 % longer. Rounds go on until the ratio is surely on one side of the limit, \
100 at most; where it then still is not, that is said, and the median of the ratios decides. Without a limit there are 8 to 20. The \
program gets flags that llama-bench has too, after the word bench.

With --baseline the rows stand beside those of an earlier run that measured the same thing. That compares two times of the day \
as well as two programs, and no correction for the machine's speed was found to be good to 5 %: use it on a machine that keeps \
its speed, or for large changes. With --max-regress 5 a row fails whose time is more than 5 % longer both in the median and in \
the fastest repetition, which other programs on the machine disturb least, and still is when it is measured again, twice at \
most. Rows that only one of the two runs has are said and do not fail.

Examples:
  tympan bench -m LFM2-1.2B-Q8_0.gguf
  tympan bench -m synth:lfm2-audio-1.5b:q8_0 --audio talk.wav -n 30 -t 2
  tympan bench -m A.gguf -m B.gguf -p 64,128 -n 0 -t 1,2 -o jsonl
  tympan bench -m MODEL.gguf -p 0 -n 32 -d 0,64,512
  tympan bench -m MODEL.gguf -p 0 -n 32 -gr on,off
  tympan bench -m MODEL.gguf -p 0 -n 32 -np 1,8
  tympan bench -m MODEL.gguf -p 64 -n 16 --profile
  tympan bench -m MODEL.gguf -n 128 --spec-oracle 4,4 --spec-adapt off --spec-rows 1,2,5,9,17
  tympan bench -m MODEL.gguf --baseline-program ./tympan-before --max-regress 5 --plot change.svg
  tympan bench -m MODEL.gguf -o jsonl > before.jsonl
  tympan bench -m MODEL.gguf --baseline before.jsonl

Exit codes: 0 done, 1 a row is slower than it may be or an output cannot be written, 2 usage, 3 a clip or the baseline cannot be \
read or run, 4 model, 5 memory.")]
pub(crate) struct BenchArgs {
    /// GGUF file, directory with one model in it, checkpoint directory, or synth:SHAPE:TYPE:SEED, random weights of a
    /// published shape; repeatable [default: the built-in demonstration model]
    #[arg(short, long, value_name = "PATH", value_delimiter = ',')]
    model: Vec<PathBuf>,

    /// Tokens of the prompt; 0: no such test [default: 512]
    #[arg(short = 'p', long, value_name = "N")]
    n_prompt: Vec<String>,

    /// Tokens generated one by one; 0: no such test [default: 128, with --audio until a stop token comes]
    #[arg(short = 'n', long, value_name = "N")]
    n_gen: Vec<String>,

    /// Measure speech recognition of this clip, in place of prompts and continuations; repeatable
    #[arg(long, value_name = "CLIP", conflicts_with_all = ["n_prompt", "pg", "n_depth", "batch_size", "ubatch_size", "parallel"])]
    audio: Vec<PathBuf>,

    /// What is said in the clips, for the word error rate: lines of a file name, a tab and a text
    #[arg(long, value_name = "TSV", requires = "audio")]
    reference: Option<PathBuf>,

    /// Projector file of the model [default: the mmproj-*.gguf beside it]
    #[arg(long, value_name = "PATH", requires = "audio")]
    mmproj: Option<PathBuf>,

    /// Untimed runs of every clip [default: 2]
    #[arg(long, value_name = "N", requires = "audio", conflicts_with = "no_warmup")]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=MAX_REPETITIONS))]
    warmup: Option<u64>,

    /// A prompt and tokens after it in one timing (-pg)
    #[arg(long, value_name = "PP,TG")]
    pg: Vec<String>,

    /// Tokens that the context holds before (-d)
    #[arg(short = 'd', long, value_name = "N", default_value = "0")]
    n_depth: Vec<String>,

    /// Most tokens of a batch
    #[arg(short = 'b', long, value_name = "N", default_value = "2048")]
    batch_size: Vec<String>,

    /// Most tokens of one call (-ub)
    #[arg(long, value_name = "N", default_value = "512")]
    ubatch_size: Vec<String>,

    /// Sequences at once, each with the prompt, the continuation and the context of the test; speeds are those of all together (-np)
    #[arg(long, value_name = "N", default_value = "1")]
    parallel: Vec<String>,

    /// Format of cached keys: f16 or f32 (-ctk)
    #[arg(long, visible_alias = "kv-type", value_name = "TYPE", value_delimiter = ',', default_value = "f16")]
    cache_type_k: Vec<String>,

    /// Format of cached values: that of the keys (-ctv)
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    cache_type_v: Vec<String>,

    /// Threads [default: all available cores]
    #[arg(short, long, value_name = "N")]
    threads: Vec<String>,

    /// Whether compiled graphs are used again: on, off or both (-gr) [default: on, or what TYMPAN_GRAPH_REUSE says]
    #[arg(long, value_name = "on|off", value_delimiter = ',', hide_possible_values = true)]
    graph_reuse: Vec<Switch>,

    /// Times that every test is run; of a list the first number, as llama-bench has it
    #[arg(short, long, value_name = "N", default_value = "5", overrides_with = "repetitions")]
    #[arg(value_parser = parse_repetitions)]
    repetitions: u64,

    /// Format on standard output: md, csv, json, jsonl, sql or none
    #[arg(short, long, value_name = "FORMAT", default_value = "md", hide_possible_values = true)]
    output: Format,

    /// A second format, on standard error (-oe)
    #[arg(long, value_name = "FORMAT", hide_possible_values = true)]
    output_err: Option<Format>,

    /// Write n_parallel, graph_reuse, graph_builds, graph_hits, host_us_per_step, state_bytes_per_step, peak_rss, p50_ns and p95_ns
    /// to md, csv and sql too; json and jsonl always have them
    #[arg(long)]
    extra: bool,

    /// Compare with the rows of an earlier run, of this program or of llama-bench: what -o json or -o jsonl wrote
    #[arg(long, value_name = "FILE", group = "compared")]
    baseline: Option<PathBuf>,

    /// Compare with another program, such as an earlier build of this one: both run every test in turns
    #[arg(long, value_name = "PROGRAM", group = "compared")]
    baseline_program: Option<PathBuf>,

    /// Exit with 1 where a row takes more than PCT percent longer than the baseline's
    #[arg(long, value_name = "PCT", requires = "compared", value_parser = parse_percent)]
    max_regress: Option<f64>,

    /// Draw the rows as bars, the baseline's beside them
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,

    /// Say where the time goes: run every test as often again with a clock at every op; md, json and jsonl
    #[arg(long)]
    profile: bool,

    /// Time the first run too
    #[arg(long)]
    no_warmup: bool,

    /// Seconds between tests
    #[arg(long, value_name = "S", default_value = "0", value_parser = clap::value_parser!(u64).range(0..=MAX_DELAY_S))]
    delay: u64,

    /// Say which test is running
    #[arg(long)]
    progress: bool,

    /// Device to compute on: auto, cpu, reference
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,

    /// Where weights are: mapped (the file itself, also with auto) or resident (copied to memory)
    #[arg(long, value_name = "auto|mapped|resident", default_value = "auto", hide_possible_values = true)]
    weights: WeightsArg,

    /// List the devices and exit
    #[arg(long)]
    list_devices: bool,

    /// Say nothing but errors on standard error
    #[arg(short, long)]
    quiet: bool,

    /// Say more on standard error
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,

    #[command(flatten)]
    drafts: DraftArgs,

    #[command(flatten)]
    foreign: ForeignArgs,
}

impl BenchArgs {
    /// Refuses what only clips have.
    fn check_clips(&self) -> Outcome<()> {
        // Definitions of arguments do not, where what is wanted and something else that is given exclude each other.
        let given = [
            ("--warmup", self.warmup.is_some()),
            ("--reference", self.reference.is_some()),
            ("--mmproj", self.mmproj.is_some()),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given && self.audio.is_empty()) {
            Some((flag, _)) => Err(Failure::usage(format!("{flag}: only clips have it (--audio)"))),
            None => Ok(()),
        }
    }

    /// Untimed runs of every clip.
    fn warmup(&self) -> u64 {
        self.warmup.unwrap_or(WARMUP)
    }

    /// The models; one that is not named where none was given.
    fn models(&self) -> Vec<Option<PathBuf>> {
        if self.model.is_empty() { vec![None] } else { self.model.iter().cloned().map(Some).collect() }
    }
}

/// Runs the subcommand.
///
/// Errors: usage, a model that cannot be loaded, too little memory, an output that cannot be written.
pub(crate) fn run(args: &BenchArgs) -> Outcome<Exit> {
    if args.list_devices {
        let names: String = backends::list().iter().map(|backend| format!("{}\n", backend.name)).collect();
        streams::print(&names)?;
        return Ok(Exit::Done);
    }
    let say = Verbosity::new(args.quiet, args.verbose);
    args.foreign.check()?;
    args.check_clips()?;
    let wants_drafts = args.drafts.are_wanted()?;
    DeviceArgs { device: args.device.clone(), ..DeviceArgs::default() }.name()?;
    let formats = [Some(args.output), args.output_err];
    if args.profile
        && let Some(flat) = formats.into_iter().flatten().find(|f| matches!(f, Format::Csv | Format::Sql))
    {
        let name = flat.to_possible_value().map_or(String::new(), |v| v.get_name().to_owned());
        return Err(Failure::usage(format!("--profile: {name} has no place for it (accepted: md, json, jsonl)")));
    }
    let plot = args.plot.as_deref().map(plot::check).transpose()?;
    let of_models = args.model.iter().flat_map(|model| files_of(model));
    let others = args.audio.iter().chain(&args.reference).chain(&args.mmproj);
    let others = others.chain(&args.baseline).chain(&args.baseline_program).cloned();
    let inputs: Vec<PathBuf> = of_models.chain(others).chain(args.drafts.speculation().inputs()).collect();
    refuse_collisions(plot.as_slice(), inputs.iter().map(PathBuf::as_path))?;
    let lists = Lists::read(args)?;
    note_threads(most_threads(&lists), say);
    let baseline = args.baseline.as_deref().map(|path| Baseline::open(path, args.max_regress)).transpose()?;
    let other = args.baseline_program.as_deref().map(|p| Other::open(p, args.max_regress)).transpose()?;
    if wants_drafts {
        return drafts::run(args, &lists, say);
    }
    if !args.audio.is_empty() {
        return run_audio(args, &lists, baseline, other.as_ref(), say);
    }
    let combinations = lists.combinations();
    if combinations.is_empty() {
        return Err(Failure::usage("nothing to measure: -p, -n and -pg are all 0"));
    }
    if let Some(c) = combinations.iter().find(|c| c.test.n_ctx() > MAX_CONTEXT) {
        let (test, n_ctx) = (c.test.full_name(), c.test.n_ctx());
        let message = format!("{test}: want a context of at most {MAX_CONTEXT} tokens, got {n_ctx} (-p, -n, -pg, -d)");
        return Err(Failure::usage(message));
    }
    if let Some(c) = combinations.iter().find(|c| c.test.n_gen > 0 && c.test.n_parallel > c.n_ubatch.min(c.n_batch)) {
        let (n, most) = (c.test.n_parallel, c.n_ubatch.min(c.n_batch));
        return Err(Failure::usage(format!(
            "-np {n}: the tokens of all sequences do not fit a call of {most} (-b, -ub)"
        )));
    }
    if !args.foreign.n_gpu_layers.is_empty() {
        say.note("-ngl: there is no GPU backend in this version; the value is recorded, everything runs on the CPU");
    }
    let columns = lists.columns(args.extra, &args.foreign.recorded());
    let mut out = Printer::new(args.output, columns.clone(), args.extra, Box::new(std::io::stdout()));
    let mut err = args.output_err.map(|f| Printer::new(f, columns, args.extra, Box::new(StandardError)));
    let models = args.models();
    let mut rows = Vec::new();
    let n_tests = models.len() * combinations.len();
    prepare(&models, most_threads(&lists), say)?;
    let mut devices = Devices { device: &args.device, open: Vec::new(), say };
    let mut printed = Ok(());
    for path in &models {
        let model = ModelArgs { model: path.clone(), mmproj: None };
        let loading = Loading { threads: most_threads(&lists), weights: args.weights, is_long: false };
        let model = model.load(LoadOptions { text_only: true, ..LoadOptions::default() }, loading, say)?;
        let filename = path.as_ref().map_or_else(|| model.name.clone(), |p| p.display().to_string());
        let facts = model::facts(&model.loaded, &filename);
        for c in &combinations {
            if args.progress {
                let (i, test) = (rows.len() + 1, c.test.full_name());
                streams::say(format_args!("tympan bench: {i}/{n_tests}: {test} of {filename}"));
            }
            if !rows.is_empty() && args.delay > 0 {
                std::thread::sleep(Duration::from_secs(args.delay));
            }
            let backend = devices.get(c.threads)?;
            let measure = || measure_one(args, &model, &facts, c, &backend);
            let row = compared(baseline.as_ref(), Row::timed, |row: &Row| row.settings.test.full_name(), measure, say)?;
            check_unchanged(&model)?;
            printed = streams::printed(out.row(&row));
            if let Some(err) = &mut err {
                streams::printed(err.row(&row))?;
            }
            rows.push(row);
            if rows.len() < n_tests || other.is_some() {
                std::mem::replace(&mut printed, Ok(()))?;
            }
        }
    }
    drop(devices);
    let tests = models.iter().flat_map(|m| combinations.iter().map(|c| alternation::text_flags(args, m.as_deref(), c)));
    let timed = rows.iter().map(Row::timed).collect::<Outcome<Vec<_>>>()?;
    let comparison = compare(args, baseline, other.as_ref(), tests, &timed)?;
    let print_end = |printer: &mut Printer| {
        if printer.format() == Format::Md {
            let gain = if lists.reuse.len() > 1 { reuse_table::table(&rows) } else { String::new() };
            let profiles = rows.iter().filter_map(Row::profile_table);
            let tables = std::iter::once(gain).chain(profiles).chain(comparison.iter().map(|c| c.report.table.clone()));
            streams::printed(printer.write(&tables.collect::<String>()))?;
        }
        streams::printed(printer.end())
    };
    let printed = printed.and_then(|()| print_end(&mut out));
    err.as_mut().map_or(Ok(()), print_end)?;
    finish(args, comparison.as_ref(), &timed, printed, say)
}

/// What was measured beside the baseline, if there is one.
fn compare(
    args: &BenchArgs,
    baseline: Option<Baseline>,
    other: Option<&Other>,
    tests: impl Iterator<Item = Vec<OsString>>,
    timed: &[Timed],
) -> Outcome<Option<Comparison>> {
    if let Some(other) = other {
        return other.compare(&tests.collect::<Vec<_>>(), args.progress).map(Some);
    }
    let with_file = |theirs: Baseline| {
        let report = theirs.report(timed);
        Comparison { ours: timed.to_vec(), theirs, report }
    };
    Ok(baseline.map(with_file))
}

/// Measures a row, and again where it seems slower than the baseline's: the attempt with the lowest median counts.
fn compared<R>(
    baseline: Option<&Baseline>,
    timed: impl Fn(&R) -> Outcome<Timed>,
    name: impl Fn(&R) -> String,
    mut measure: impl FnMut() -> Outcome<R>,
    say: Verbosity,
) -> Outcome<R> {
    let mut row = measure()?;
    let Some(baseline) = baseline else { return Ok(row) };
    for _ in 0..RETRIES {
        let before = timed(&row)?;
        if !baseline.is_slower(&before) {
            break;
        }
        say.note(format!("{} seems slower than the baseline: measuring it again", name(&row)));
        let again = measure()?;
        if timed(&again)?.median() < before.median() {
            row = again;
        }
    }
    Ok(row)
}

/// The picture, and the judgement on what was measured. Rows that could not be printed take neither away.
fn finish(
    args: &BenchArgs,
    comparison: Option<&Comparison>,
    timed: &[Timed],
    printed: Outcome<()>,
    say: Verbosity,
) -> Outcome<Exit> {
    if let Some(path) = &args.plot {
        plot::write(&plot::check(path)?, comparison.map_or(timed, |c| &c.ours), comparison.map(|c| &c.theirs))?;
    }
    let exit = judge(args, comparison, say)?;
    match printed {
        Err(failure) if exit == Exit::Done => Err(failure),
        Err(failure) => {
            failure.say();
            Ok(exit)
        }
        Ok(()) => Ok(exit),
    }
}

/// Says what the comparison with a baseline gave. Returns the exit code.
fn judge(args: &BenchArgs, comparison: Option<&Comparison>, say: Verbosity) -> Outcome<Exit> {
    let Some(Comparison { report, theirs, .. }) = comparison else { return Ok(Exit::Done) };
    if args.output != Format::Md && args.output_err != Some(Format::Md) {
        say.note(&report.table);
    }
    for note in &report.notes {
        say.note(note);
    }
    for row in &report.slower {
        streams::say(format_args!("slower: {row}"));
    }
    if report.n_compared == 0 {
        let path = theirs.path().display();
        return Err(Failure::input(anyhow!("{path}: none of its rows measures what this run does")));
    }
    Ok(if report.slower.is_empty() { Exit::Done } else { Exit::SomeFailed })
}

/// The first of some numbers: llama-bench takes a list like those of its other flags and uses no more of it.
fn parse_repetitions(text: &str) -> Result<u64, String> {
    let parse = |n: &str| n.parse().ok().filter(|n| (1..=MAX_REPETITIONS).contains(n));
    let all: Option<Vec<u64>> = text.split(',').map(parse).collect();
    all.and_then(|all| all.first().copied()).ok_or_else(|| format!("want 1 to {MAX_REPETITIONS}"))
}

/// A number of percent from the command line.
fn parse_percent(text: &str) -> Result<f64, String> {
    let percent = text.parse::<f64>().ok().filter(|p| (0.0..=MAX_PERCENT).contains(p));
    percent.ok_or_else(|| format!("want 0 to {MAX_PERCENT} percent"))
}

/// Rows of speech recognition.
fn run_audio(
    args: &BenchArgs,
    lists: &Lists,
    baseline: Option<Baseline>,
    other: Option<&Other>,
    say: Verbosity,
) -> Outcome<Exit> {
    let n_tokens = if args.n_gen.is_empty() { None } else { lists.n_gen.first().copied() };
    if lists.n_gen.len() > 1 || n_tokens == Some(0) {
        return Err(Failure::usage("-n: with --audio want one number of tokens, at least 1"));
    }
    if args.output == Format::Sql || args.output_err == Some(Format::Sql) {
        return Err(Failure::usage(
            "-o sql: llama-bench's table has no columns for --audio (accepted: md, csv, json, jsonl)",
        ));
    }
    let reference = args.reference.as_deref().map(asr::reference).transpose()?.unwrap_or_default();
    let models = args.models();
    prepare(&models, most_threads(lists), say)?;
    let started = Instant::now();
    let mut devices = Devices { device: &args.device, open: Vec::new(), say };
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let mut rows = Vec::new();
    for path in &models {
        let model = ModelArgs { model: path.clone(), mmproj: args.mmproj.clone() };
        let load = Instant::now();
        let loading = Loading { threads: most_threads(lists), weights: args.weights, is_long: false };
        let model = model.load(LoadOptions::default(), loading, say)?;
        let load_ms = load.elapsed().as_secs_f64() * 1000.0;
        let filename = path.as_ref().map_or_else(|| model.name.clone(), |p| p.display().to_string());
        let facts = model::facts(&model.loaded, &filename);
        for cache_types in &lists.cache_types {
            for &threads in &lists.threads {
                for &reuse in &lists.reuse {
                    let plan = asr::Plan {
                        clips: &args.audio,
                        reference: reference.clone(),
                        n_tokens,
                        warmup: if args.no_warmup { 0 } else { count(args.warmup()) },
                        repetitions: count(args.repetitions),
                        profile: args.profile,
                        kv_dtype: cache_types[0].into(),
                        reuse,
                        started,
                        baseline: baseline.as_ref(),
                    };
                    let backend = devices.get(threads)?;
                    rows.extend(asr::measure(&plan, &model, &facts, &backend, threads.get(), load_ms, say)?);
                    check_unchanged(&model)?;
                }
            }
        }
    }
    drop(devices);
    let timed = rows.iter().map(AsrRow::timed).collect::<Outcome<Vec<_>>>()?;
    let tests = alternation::clip_tests(args, lists);
    let comparison = compare(args, baseline, other, tests.into_iter(), &timed)?;
    let streams: [(Option<Format>, Box<dyn std::io::Write>); 2] =
        [(Some(args.output), Box::new(std::io::stdout())), (args.output_err, Box::new(StandardError))];
    let mut printed = Ok(());
    for (format, stream) in streams {
        let Some(format) = format else { continue };
        let mut printer = Printer::new(format, Vec::new(), args.extra, stream);
        let table = comparison.as_ref().filter(|_| format == Format::Md).map(|c| c.report.table.clone());
        // Standard error never fails.
        let text = asr::text(&rows, format) + &table.unwrap_or_default();
        printed = printed.and(streams::printed(printer.write(&text)));
    }
    finish(args, comparison.as_ref(), &timed, printed, say)
}

/// Makes synthetic models that were not used before, so that no measurement waits for one.
fn prepare(models: &[Option<PathBuf>], threads: Option<NonZeroUsize>, say: Verbosity) -> Outcome<()> {
    models.iter().try_for_each(|path| ModelArgs { model: path.clone(), mmproj: None }.prepare(threads, say))
}

/// The largest number of threads that is measured with.
fn most_threads(lists: &Lists) -> Option<NonZeroUsize> {
    lists.threads.iter().copied().max()
}

/// Devices that were opened, by number of threads.
struct Devices<'a> {
    device: &'a str,
    open: Vec<(NonZeroUsize, Arc<dyn Backend>)>,
    say: Verbosity,
}

impl Devices<'_> {
    fn get(&mut self, threads: NonZeroUsize) -> Outcome<Arc<dyn Backend>> {
        if let Some((_, backend)) = self.open.iter().find(|(n, _)| *n == threads) {
            return Ok(Arc::clone(backend));
        }
        let args = DeviceArgs { threads: Some(threads), device: self.device.to_owned(), ..DeviceArgs::default() };
        let device = args.open()?;
        self.say.detail(device.describe());
        self.open.push((threads, Arc::clone(&device.backend)));
        Ok(device.backend)
    }
}

fn measure_one(
    args: &BenchArgs,
    model: &Model,
    facts: &ModelFacts,
    c: &Combination,
    backend: &Arc<dyn Backend>,
) -> Outcome<Row> {
    let setup = Setup { n_batch: c.n_batch, n_ubatch: c.n_ubatch, kv_dtype: c.cache_types[0].into(), reuse: c.reuse };
    let test_time = statistics::utc_now();
    let repetitions = usize::try_from(args.repetitions).unwrap_or(usize::MAX);
    let measured = (|| {
        let mut bench = Bench::open(&model.loaded, backend, setup, c.test)?;
        if !args.no_warmup {
            bench.warm_up()?;
        }
        let measured = bench.measure(repetitions)?;
        let profile = if args.profile { Some(bench.profile(repetitions)?) } else { None };
        Ok::<_, engine::Error>((measured, profile))
    })();
    let (measured, profile) =
        measured.with_context(|| format!("{} of {}", c.test.full_name(), facts.filename)).map_err(Failure::model)?;
    Ok(Row {
        settings: Settings {
            model: facts.clone(),
            backends: backend.name().to_uppercase(),
            n_batch: c.n_batch,
            n_ubatch: c.n_ubatch,
            n_threads: c.threads.get(),
            cache_types: c.cache_types.map(KvType::name),
            n_gpu_layers: c.n_gpu_layers,
            flash_attn: c.flash_attn,
            graph_reuse: c.reuse != Reuse::Off,
            recorded: args.foreign.recorded(),
            test: c.test,
        },
        test_time,
        samples_ns: measured.samples_ns,
        steps_ns: measured.steps_ns,
        graphs: measured.graphs,
        host_us_per_step: measured.host_us_per_step,
        state_bytes_per_step: measured.state_bytes_per_step,
        peak_rss: peak_rss_bytes(),
        profile,
    })
}
