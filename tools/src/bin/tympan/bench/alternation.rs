//! `--baseline-program`: every test in turns by this program and by another one.
//!
//! A shared machine changes its speed by half for seconds and for minutes, so times of two programs say something of each
//! other only where they were taken side by side. A round runs both, one after the other and each in a process of its own,
//! and gives one ratio of their times; what slows the machine slows both. Rounds go on until the ratios agree well enough for
//! a verdict. Read [`Other`] first.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow};
use engine::session::Reuse;
use serde_json::Value;

use super::BenchArgs;
use super::baseline::{Baseline, Report, percent};
use super::lists::{Combination, Lists};
use super::markdown;
use super::statistics::{CONFIDENCE, median_interval, percentile};
use super::timed::Timed;
use crate::args::KvType;
use crate::exit::{Failure, Outcome};
use crate::streams;

/// Rounds of a test with a limit, at most; where they do not suffice for a sure verdict the median of the ratios decides.
const MAX_ROUNDS: usize = 100;
/// Rounds of a test without a limit, at most.
const MAX_ROUNDS_UNJUDGED: usize = 20;
/// Repetitions in a round, at most: long rounds meet more changes of the machine's speed.
const ROUND_REPETITIONS: u64 = 3;
/// Rounds without a limit also end when the ratio is known to so many percent.
const KNOWN_PERCENT: f64 = 2.0;
/// Heads and widths of the table.
const COLUMNS: [(&str, i32); 8] = [
    ("model", -30),
    ("threads", 7),
    ("test", -15),
    ("baseline", 16),
    ("now", 16),
    ("time", 9),
    ("99 % sure of", 18),
    ("rounds", 6),
];

/// The other program.
#[derive(Debug)]
pub(super) struct Other {
    program: PathBuf,
    /// How much longer a test may take here, in percent; without, nothing is judged.
    max_regress: Option<f64>,
}

/// All tests in both programs.
pub(super) struct Comparison {
    /// What this program took, over all rounds.
    pub ours: Vec<Timed>,
    /// What the other one took.
    pub theirs: Baseline,
    /// The ratios, and what follows from them.
    pub report: Report,
}

impl Other {
    /// Makes sure that the program can be started, so that nothing is measured in vain.
    ///
    /// Errors: a program that cannot be started, or that has no `bench`.
    pub(super) fn open(program: &Path, max_regress: Option<f64>) -> Outcome<Self> {
        output(program, &["bench".into(), "--help".into()])?;
        Ok(Self { program: program.to_owned(), max_regress })
    }

    /// Runs the tests, each given by its flags, in both programs.
    ///
    /// Errors: a program that fails, or that measures something else than this one.
    pub(super) fn compare(&self, tests: &[Vec<OsString>], progress: bool) -> Outcome<Comparison> {
        let this = std::env::current_exe().context("finding this program").map_err(Failure::input)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let (mut report, mut lines) = (Report { n_compared: tests.len(), ..Report::default() }, Vec::new());
        for (i, flags) in tests.iter().enumerate() {
            let rounds = Rounds::run(self.max_regress, |who, round| {
                if progress && who == Who::Ours {
                    let (test, n_tests, round) = (i + 1, tests.len(), round + 1);
                    streams::say(format_args!("tympan bench: beside the baseline: {test}/{n_tests}: round {round}"));
                }
                let program = if who == Who::Ours { &this } else { &self.program };
                row(program, flags)
            })?;
            if let Some(difference) = rounds.ours.difference(&rounds.theirs) {
                let program = self.program.display();
                return Err(Failure::input(anyhow!("{program}: measures something else: {difference}")));
            }
            lines.push(rounds.cells());
            self.judge(&rounds, &mut report);
            ours.push(rounds.ours);
            theirs.push(rounds.theirs);
        }
        report.table = format!("\n{}", markdown::table(&COLUMNS, &lines));
        Ok(Comparison { ours, theirs: Baseline::of_program(&self.program, theirs), report })
    }

    fn judge(&self, rounds: &Rounds, report: &mut Report) {
        let Some(max) = self.max_regress else { return };
        let line = format!(
            "{}: {} with {}, {} now: {:+.1} % time, {} in {} rounds, limit {max} %",
            rounds.ours.name(),
            rounds.theirs.rate(),
            self.program.display(),
            rounds.ours.rate(),
            percent(1.0, rounds.ratio()),
            rounds.interval_text(),
            rounds.ratios.len(),
        );
        if !is_decided(&rounds.ratios, max) {
            report.notes.push(format!("not sure: {line}"));
        }
        if percent(1.0, rounds.ratio()) > max {
            report.slower.push(line);
        }
    }
}

/// The flags of one test of a language model.
pub(super) fn text_flags(args: &BenchArgs, model: Option<&Path>, c: &Combination) -> Vec<OsString> {
    let mut flags = common_flags(args, model, c.cache_types, c.threads.get());
    let mut add = |flag: &str, value: String| flags.extend([flag.into(), value.into()]);
    let t = c.test;
    let [n_prompt, n_gen] = if t.n_prompt > 0 && t.n_gen > 0 { [0, 0] } else { [t.n_prompt, t.n_gen] };
    add("-p", n_prompt.to_string());
    add("-n", n_gen.to_string());
    if n_prompt + n_gen == 0 {
        add("-pg", format!("{},{}", t.n_prompt, t.n_gen));
    }
    add("-d", t.n_depth.to_string());
    add("-b", c.n_batch.to_string());
    add("-ub", c.n_ubatch.to_string());
    // llama-bench has no such flag.
    if t.n_parallel > 1 {
        add("-np", t.n_parallel.to_string());
    }
    if !args.graph_reuse.is_empty() {
        add("-gr", switch(c.reuse).to_owned());
    }
    flags
}

/// The flags of every clip, in the order of the rows.
pub(super) fn clip_tests(args: &BenchArgs, lists: &Lists) -> Vec<Vec<OsString>> {
    // Without the flag both programs decide as they would alone.
    let reuse: Vec<Option<Reuse>> =
        if args.graph_reuse.is_empty() { vec![None] } else { lists.reuse.iter().copied().map(Some).collect() };
    let mut tests = Vec::new();
    for model in args.models() {
        for &cache_types in &lists.cache_types {
            for &threads in &lists.threads {
                for &reuse in &reuse {
                    for clip in &args.audio {
                        let mut flags = common_flags(args, model.as_deref(), cache_types, threads.get());
                        let mut add = |flag: &str, value: OsString| flags.extend([flag.into(), value]);
                        add("--audio", clip.into());
                        if !args.no_warmup {
                            add("--warmup", args.warmup().to_string().into());
                        }
                        if let Some(n) = args.n_gen.first() {
                            add("-n", n.into());
                        }
                        if let Some(path) = &args.mmproj {
                            add("--mmproj", path.into());
                        }
                        if let Some(reuse) = reuse {
                            add("-gr", switch(reuse).into());
                        }
                        tests.push(flags);
                    }
                }
            }
        }
    }
    tests
}

/// As `-gr` calls it.
fn switch(reuse: Reuse) -> &'static str {
    if reuse == Reuse::Off { "off" } else { "on" }
}

/// Only flags that llama-bench knows too, unless the user gave others: a script may stand between.
fn common_flags(args: &BenchArgs, model: Option<&Path>, cache_types: [KvType; 2], n_threads: usize) -> Vec<OsString> {
    let mut flags: Vec<OsString> = vec!["bench".into(), "-o".into(), "jsonl".into()];
    let mut add = |flag: &str, value: OsString| flags.extend([flag.into(), value]);
    if let Some(model) = model {
        add("-m", model.into());
    }
    add("-t", n_threads.to_string().into());
    add("-ctk", cache_types[0].name().into());
    add("-ctv", cache_types[1].name().into());
    add("-r", args.repetitions.min(ROUND_REPETITIONS).to_string().into());
    if args.device != "auto" {
        add("--device", args.device.clone().into());
    }
    if args.no_warmup {
        flags.push("--no-warmup".into());
    }
    flags
}

/// Runs a program, and gives its standard output.
///
/// Errors: a program that cannot be started or that fails.
fn output(program: &Path, flags: &[OsString]) -> Outcome<Vec<u8>> {
    let at = || program.display().to_string();
    let run = Command::new(program).args(flags).stdin(Stdio::null()).output();
    let run = run.with_context(at).map_err(Failure::input)?;
    if run.status.success() {
        return Ok(run.stdout);
    }
    let words = flags.iter().map(|f| f.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let said = String::from_utf8_lossy(&run.stderr);
    let said = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing on standard error");
    Err(Failure::input(anyhow!("{} {words}: {}: {said}", at(), run.status)))
}

/// The one row that a program measures with these flags.
fn row(program: &Path, flags: &[OsString]) -> Outcome<Timed> {
    let text = output(program, flags)?;
    let wrong = |what: String| Failure::input(anyhow!("{}: want one row of json, got {what}", program.display()));
    let value: Value = serde_json::from_slice(&text).map_err(|e| wrong(format!("{} bytes: {e}", text.len())))?;
    let object = value.as_object().ok_or_else(|| wrong("something else".to_owned()))?;
    Timed::read(object).map_err(|e| wrong(format!("a row in which {e}")))
}

/// Whose turn it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Ours,
    Theirs,
}

/// One test in both programs.
#[derive(Debug)]
struct Rounds {
    /// Samples of all rounds.
    ours: Timed,
    theirs: Timed,
    /// Our median by theirs, round by round.
    ratios: Vec<f64>,
}

impl Rounds {
    /// Alternates until the verdict is sure, or what there is to know is known, or the rounds are used up. Who begins changes
    /// from round to round, so that a machine that becomes slower all the time favours nobody.
    fn run(max_regress: Option<f64>, mut measure: impl FnMut(Who, usize) -> Outcome<Timed>) -> Outcome<Self> {
        let mut rounds: Option<Self> = None;
        for i in 0..if max_regress.is_some() { MAX_ROUNDS } else { MAX_ROUNDS_UNJUDGED } {
            let (ours, theirs) = if i % 2 == 0 {
                let ours = measure(Who::Ours, i)?;
                (ours, measure(Who::Theirs, i)?)
            } else {
                let theirs = measure(Who::Theirs, i)?;
                (measure(Who::Ours, i)?, theirs)
            };
            let ratio = ours.median() / theirs.median();
            let so_far = match &mut rounds {
                Some(rounds) => {
                    rounds.ours.extend(&ours);
                    rounds.theirs.extend(&theirs);
                    rounds
                }
                None => rounds.insert(Self { ours, theirs, ratios: Vec::new() }),
            };
            so_far.ratios.push(ratio);
            let enough = match max_regress {
                Some(max) => is_decided(&so_far.ratios, max),
                None => is_known(&so_far.ratios),
            };
            if enough {
                break;
            }
        }
        Ok(rounds.expect("there is at least one round"))
    }

    /// How many times longer this program takes.
    fn ratio(&self) -> f64 {
        percentile(&self.ratios, 0.5)
    }

    fn interval_text(&self) -> String {
        let [low, high] = median_interval(&self.ratios).map(|ratio| percent(1.0, ratio));
        format!("{:.0} % sure of {low:+.1} to {high:+.1} %", CONFIDENCE * 100.0)
    }

    fn cells(&self) -> [String; COLUMNS.len()] {
        let [low, high] = median_interval(&self.ratios).map(|ratio| percent(1.0, ratio));
        [
            self.ours.model(),
            self.ours.threads().into(),
            self.ours.test(),
            self.theirs.rate(),
            self.ours.rate(),
            format!("{:+.1} %", percent(1.0, self.ratio())),
            format!("{low:+.1} to {high:+.1} %"),
            self.ratios.len().to_string(),
        ]
    }
}

/// Whether the limit lies outside of what the ratio may be.
fn is_decided(ratios: &[f64], max_regress: f64) -> bool {
    let [low, high] = median_interval(ratios).map(|ratio| percent(1.0, ratio));
    low > max_regress || high <= max_regress
}

/// Whether more rounds would say little more.
fn is_known(ratios: &[f64]) -> bool {
    let [low, high] = median_interval(ratios).map(|ratio| percent(1.0, ratio));
    high - low <= KNOWN_PERCENT
}

#[cfg(test)]
mod tests {
    use ::tests::rng::Rng;

    use super::*;

    fn timed(seconds: f64) -> Timed {
        let row = serde_json::json!({
            "model_filename": "a.gguf", "model_type": "lfm2 1.2B Q8_0", "backends": "CPU", "n_threads": 2, "n_batch": 2048,
            "n_ubatch": 512, "type_k": "f16", "type_v": "f16", "graph_reuse": "on", "n_prompt": 64, "n_gen": 0,
            "n_depth": 0, "avg_ns": seconds * 1e9, "avg_ts": 64.0 / seconds, "samples_ns": [seconds * 1e9],
        });
        Timed::read(row.as_object().unwrap()).unwrap()
    }

    /// Rounds on a machine that is 1.9 times slower for a while now and then, and 5 % off at random, with a program that
    /// takes `factor` times as long as the other one.
    fn rounds(seed: u64, factor: f64, max_regress: Option<f64>) -> Rounds {
        let mut rng = Rng::new(seed);
        let mut clock = 0.0;
        let mut left = 0.0;
        let mut slow = false;
        let measure = |who, _| {
            if left <= 0.0 {
                (slow, left) = (!slow, 5.0 + 40.0 * f64::from(rng.uniform([0.0, 1.0])));
            }
            let speed = if slow { 1.9 } else { 1.0 } * (1.0 + 0.05 * f64::from(rng.uniform([0.0, 1.0])));
            let seconds = speed * if who == Who::Ours { factor } else { 1.0 };
            clock += seconds;
            left -= seconds;
            Ok(timed(seconds))
        };
        Rounds::run(max_regress, measure).unwrap()
    }

    #[test]
    fn verdicts_are_right_on_a_machine_that_changes_its_speed() {
        for seed in 0..100 {
            for (factor, slower) in [(1.0, false), (1.1, true), (0.9, false), (1.2, true)] {
                let rounds = rounds(seed, factor, Some(5.0));
                assert_eq!(percent(1.0, rounds.ratio()) > 5.0, slower, "{seed}: {factor}: {:?}", rounds.ratios);
            }
        }
    }

    #[test]
    fn rounds_go_on_while_the_ratio_is_within_the_noise() {
        let clear = rounds(1, 2.0, Some(5.0)).ratios.len();
        assert_eq!(clear, 8);
        assert_eq!(rounds(1, 1.05, Some(5.0)).ratios.len(), MAX_ROUNDS);
        assert_eq!(rounds(1, 1.0, None).ratios.len(), MAX_ROUNDS_UNJUDGED);
    }

    #[test]
    fn each_program_begins_every_other_round() {
        let mut order = Vec::new();
        let measure = |who, _| {
            order.push(who);
            Ok(timed(1.0))
        };
        assert_eq!(Rounds::run(Some(5.0), measure).unwrap().ratios, [1.0; 8]);
        assert!(order.chunks(4).all(|o| o == [Who::Ours, Who::Theirs, Who::Theirs, Who::Ours]), "{order:?}");
    }

    #[test]
    fn failures_of_a_program_end_the_comparison() {
        let measure = |who, i| if who == Who::Theirs && i == 3 { Err(Failure::usage("no")) } else { Ok(timed(1.0)) };
        assert!(Rounds::run(None, measure).is_err());
    }
}
