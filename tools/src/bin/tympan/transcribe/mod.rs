//! `tympan transcribe`: audio files to text.

mod cues;
mod dump;
mod flags;
mod formats;
mod glob;
mod inputs;
mod journal;
mod outputs;
mod watcher;

use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal;
use std::mem::take;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, anyhow};
use engine::stats::BuildReason;
use models::LoadOptions;
use models::qwen3_asr::AudioAttention;
use models::transcribe::{RATE_HZ, Request, Transcriber, Transcript};
use tympan::Model;

use crate::args::{Device, note_threads};
use crate::exit::{Exit, Failure, Outcome};
use crate::interrupt;
use crate::model::{check_unchanged, failure};
use crate::output::Destination;
use crate::progress::{self, Position};
use crate::report::{Verbosity, peak_rss_bytes, short, size};
use crate::samples::Samples;
use crate::streams::{escaped, print};
use flags::Timestamps;
pub(crate) use flags::TranscribeArgs;
use formats::{Facts, Format, render};
use inputs::{Input, Inputs};
use journal::{Header, Journal};
use outputs::Outputs;
use watcher::{TextStream, Watcher};

/// Bytes of inputs from which on it pays to copy the weights first: ten minutes of WAV, twenty of MP3.
const LONG_INPUT_BYTES: u64 = 20 << 20;

/// Runs the subcommand.
///
/// Errors: usage, a model that cannot be loaded, or the only input that failed.
pub(crate) fn run(args: &TranscribeArgs) -> Outcome<Exit> {
    let say = Verbosity::new(args.quiet, args.verbose);
    check(args)?;
    let device = args.device.open()?;
    note_threads(args.device.threads, say);
    let reuse = args.device.reuse()?;
    let Inputs { found, skipped, failed } = expand(args, say);
    check_several(args, found.len())?;
    let named = named(args, found)?;
    let outputs = Outputs::plan(&args.wanted(), &named)?;
    let mut tally = Tally::new(named.len() + failed.len(), skipped.len());
    failed.into_iter().for_each(|error| tally.fail(&Failure::input(error)));
    let inputs: Vec<(Input, Outputs)> =
        named.into_iter().zip(outputs).filter_map(|((input, _), outputs)| Some((input, outputs?))).collect();
    tally.n_skipped += tally.n_inputs - inputs.len() - tally.failed.len();
    if inputs.is_empty() {
        if tally.failed.is_empty() {
            say.note("nothing to do: all outputs exist");
            return Ok(Exit::Done);
        }
        return Ok(tally.finish(say));
    }

    args.model.prepare(args.device.threads, say)?;
    let load = Instant::now();
    let audio_attention = args.audio_attention.map(AudioAttention::from).unwrap_or_default();
    let options = LoadOptions { audio_attention, ..LoadOptions::default() };
    let loading = args.device.loading(args.device.threads, is_long(&inputs));
    let model = args.model.load(options, loading, say)?;
    let backends = [std::sync::Arc::clone(&device.backend)];
    let transcriber = Transcriber::open(&model.loaded, &backends, args.kv_type.into());
    let transcriber = transcriber.with_context(|| format!("loading {}", model.name)).map_err(Failure::model);
    let mut transcriber = transcriber?;
    transcriber.set_reuse(reuse);
    let load_ms = load.elapsed().as_secs_f64() * 1000.0;
    let language = check_model(args, &model, &transcriber)?;
    say.detail(device.describe());

    let mut run = Run { args, say, language, device, model, transcriber, load_ms, n_inputs: inputs.len() };
    for (i, (input, outputs)) in inputs.iter().enumerate() {
        if interrupt::exit().is_some() {
            return Err(Failure::interrupted(format_args!("interrupted before {}", input.name())));
        }
        match run.input(i, input, outputs) {
            Ok(exit) => tally.done(exit),
            Err(failure) if failure.ends_run => return Err(failure),
            Err(failure) => tally.fail(&failure),
        }
    }
    Ok(tally.finish(say))
}

/// What became of the inputs so far.
#[derive(Debug)]
struct Tally {
    /// All inputs, those left alone among them.
    n_inputs: usize,
    n_done: usize,
    /// Files of directories that are no recordings, and inputs that are left alone.
    n_skipped: usize,
    failed: Vec<Exit>,
    /// Of the inputs that are done.
    exit: Exit,
}

impl Tally {
    fn new(n_inputs: usize, n_skipped: usize) -> Self {
        Self { n_inputs, n_done: 0, n_skipped, failed: Vec::new(), exit: Exit::Done }
    }

    fn done(&mut self, exit: Exit) {
        self.n_done += 1;
        // Lost sound weighs more than a text that was cut.
        if exit != Exit::Done && self.exit != Exit::SomeFailed {
            self.exit = exit;
        }
    }

    /// Counts a failure and says it at once: the end of the run may be hours away.
    fn fail(&mut self, failure: &Failure) {
        failure.say();
        self.failed.push(failure.exit);
    }

    /// Says the numbers of several inputs. Returns the exit code of the whole run.
    fn finish(self, say: Verbosity) -> Exit {
        let Self { n_inputs, n_done, n_skipped, failed, exit } = self;
        if n_inputs > 1 {
            say.note(format_args!("{n_done} done, {n_skipped} skipped, {} failed", failed.len()));
        }
        if failed.is_empty() { exit } else { Exit::of_several(&failed, n_inputs) }
    }
}

/// Refuses what makes no sense together and what this version does not have.
fn check(args: &TranscribeArgs) -> Outcome<()> {
    if args.timestamps == Some(Timestamps::Word) {
        return Err(Failure::not_in_this_version("--timestamps word"));
    }
    let with_cues = args.format.iter().find(|format| format.has_cues());
    if let (Some(Timestamps::None), Some(format)) = (args.timestamps, with_cues) {
        return Err(Failure::usage(format!("--timestamps none: {} is nothing without times", format.extension())));
    }
    if let (Some(flag), None) = (args.cues.given(), with_cues) {
        return Err(Failure::usage(format!(
            "{flag}: text and json have no cues; srt, vtt, csv, lrc and tsv have (--format)"
        )));
    }
    if args.token_ids && !args.format.iter().any(|format| matches!(format, Format::Json | Format::Jsonl)) {
        return Err(Failure::usage("--token-ids: only json and jsonl have a place for them (--format)"));
    }
    let existing = [(args.overwrite, "--overwrite"), (args.skip_existing, "--skip-existing")];
    let has_files = args.output.is_some() || args.dump.is_some();
    if let Some((_, flag)) = existing.into_iter().find(|(is_given, _)| *is_given && !has_files) {
        return Err(Failure::usage(format!("{flag}: no files are written (--output DIR or --dump DIR)")));
    }
    if args.format.len() > 1 && args.output.is_none() {
        return Err(Failure::usage("several formats need --output DIR"));
    }
    let stdin = args.inputs.iter().filter(|i| i.as_os_str() == "-").count();
    if stdin > 1 {
        return Err(Failure::usage("- (standard input) can be read only once"));
    }
    Ok(())
}

/// Refuses what several inputs cannot have on standard output.
fn check_several(args: &TranscribeArgs, n_inputs: usize) -> Outcome<()> {
    let with_cues = args.format.iter().find(|format| format.has_cues());
    match with_cues.filter(|_| args.output.is_none() && n_inputs > 1) {
        Some(format) => Err(Failure::usage(format!(
            "{n_inputs} inputs on standard output as {}: they would be read as one (-o DIR writes a file for \
             each)",
            format.extension()
        ))),
        None => Ok(()),
    }
}

/// Refuses what this model cannot be asked for. Returns the language to ask for.
fn check_model(args: &TranscribeArgs, model: &Model, transcriber: &Transcriber) -> Outcome<Option<String>> {
    let (arch, format) = (model.loaded.arch, transcriber.format());
    let takes_attention = arch.speech.as_ref().is_some_and(|s| s.audio_attention);
    if args.audio_attention.is_some() && !takes_attention {
        let message = format!("--audio-attention: {} always attends to the whole clip (only for qwen3-asr)", arch.name);
        return Err(Failure::usage(message));
    }
    if !args.context.is_empty() && !format.takes_context() {
        let message = format!("--context: {} has no prompt for names and terms (accepted: --language)", arch.name);
        return Err(Failure::usage(message));
    }
    // Of one more token, the audio's least.
    let n_ctx = transcriber.n_ctx();
    if let Some(n) = args.max_tokens.filter(|&n| n >= n_ctx as u64) {
        let message =
            format!("--max-tokens {n}: the context of this model holds {n_ctx} tokens, audio and prompt among them");
        return Err(Failure::usage(message));
    }
    if args.language.eq_ignore_ascii_case("auto") {
        return Ok(None);
    }
    let language = format.find_language(&args.language);
    language.map(Some).map_err(|e| Failure::usage(format!("--language: {e} with {}", arch.name)))
}

/// What the arguments stand for; what is skipped is counted by its reason.
fn expand(args: &TranscribeArgs, say: Verbosity) -> Inputs {
    let mut inputs = Inputs::default();
    args.inputs.iter().for_each(|argument| inputs.add(argument, &args.selection));
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for (path, why) in &inputs.skipped {
        say.detail(format_args!("{}: skipped ({why})", path.display()));
        *reasons.entry(why).or_default() += 1;
    }
    if !reasons.is_empty() {
        let reasons: Vec<String> = reasons.iter().map(|(why, n)| format!("{n} {why}")).collect();
        say.note(format_args!("{} skipped: {} (-v names them)", inputs.skipped.len(), reasons.join(", ")));
    }
    inputs
}

/// Inputs with the names of their output files: the input's stem, or its whole name where another has the same stem.
///
/// Errors: two inputs that would write the same file.
fn named(args: &TranscribeArgs, inputs: Vec<Input>) -> Outcome<Vec<(Input, PathBuf)>> {
    let mut stems: HashMap<PathBuf, usize> = HashMap::new();
    for input in &inputs {
        *stems.entry(input.stem()).or_default() += 1;
    }
    let name = |i: &Input| if stems[&i.stem()] > 1 { i.file_name() } else { i.stem() };
    let named: Vec<(Input, PathBuf)> = inputs.into_iter().map(|i| (i.clone(), name(&i))).collect();
    let mut writers: HashMap<&Path, &Input> = HashMap::new();
    for (input, name) in &named {
        let other = writers.insert(name, input);
        if let Some(other) = other.filter(|_| args.output.is_some() || args.dump.is_some()) {
            let message = format!("{} and {} would write the same file", other.name(), input.name());
            return Err(Failure::usage(message));
        }
    }
    Ok(named)
}

/// Whether the inputs together are long enough that it pays to copy the weights first.
fn is_long(inputs: &[(Input, Outputs)]) -> bool {
    let bytes = |(input, _): &(Input, Outputs)| match input {
        Input::File { path, .. } => std::fs::metadata(path).map_or(0, |file| file.len()),
        Input::Stdin => 0,
    };
    inputs.iter().map(bytes).sum::<u64>() >= LONG_INPUT_BYTES
}

/// A failure to write, and where the segments are that were finished before.
fn with_kept(failure: Failure, journal: Option<Journal>) -> Failure {
    let Some(path) = journal.and_then(Journal::keep) else { return failure };
    let error = anyhow!("{failure}; the finished segments are in {}", path.display());
    Failure { error, ..failure }
}

/// The failure of an input in whose middle a signal came.
fn interrupted(name: &str, journal: Option<Journal>) -> Failure {
    match journal.and_then(Journal::keep) {
        Some(kept) => {
            let kept = kept.display();
            Failure::interrupted(format_args!("{name}: interrupted; its finished segments are in {kept}"))
        }
        None => Failure::interrupted(format_args!("{name}: interrupted")),
    }
}

/// What stays the same from input to input.
struct Run<'a> {
    args: &'a TranscribeArgs,
    say: Verbosity,
    language: Option<String>,
    device: Device,
    model: Model,
    transcriber: Transcriber,
    load_ms: f64,
    n_inputs: usize,
}

impl Run<'_> {
    /// Transcribes an input, number `i` from 0. The exit code says whether something of it is missing.
    fn input(&mut self, i: usize, input: &Input, outputs: &Outputs) -> Outcome<Exit> {
        let args = self.args;
        let start = Instant::now();
        let samples = match input {
            Input::File { path, .. } => Samples::of_file(path, self.say),
            Input::Stdin => Samples::of_stdin(self.say),
        }?;
        check_unchanged(&self.model)?;
        self.header(input)?;
        let request = Request {
            language: self.language.as_deref(),
            context: &args.context,
            segment_s: args.segment,
            max_tokens: args.max_tokens.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            max_answer: None,
            ignore_stop: false,
            start_s: samples.condition.start_s,
        };
        let stream = (args.output.is_none() && args.format == [Format::Text])
            .then(|| TextStream::new(args.has_timestamps(Format::Text)));
        let journal = outputs.journalled().map(|output| self.journal(input, output)).transpose()?;
        let mut watcher = Watcher::new(stream, journal, outputs.dump.is_some());
        let seconds = samples.values.len() as f64 / f64::from(RATE_HZ);
        let file = progress::File { number: i + 1, of: self.n_inputs, name: input.name(), seconds };
        watcher.show(|| Position::new(file, args.quiet));
        let transcript = match self.transcriber.transcribe(&samples.values, &request, &mut watcher) {
            Ok(transcript) => transcript,
            Err(error) => return Err(self.broken_off(input, watcher, error)),
        };
        let printed = match watcher.finish() {
            Err(failure) if outputs.dump.is_none() || watcher.journal.is_some() => {
                return Err(with_kept(failure, watcher.journal.take()));
            }
            // The tensors of all segments are there, whoever reads the text.
            printed => printed,
        };
        if let Err(failure) = check_unchanged(&self.model) {
            watcher.journal.take().into_iter().for_each(Journal::remove);
            return Err(failure);
        }
        let facts = Facts {
            file: input.name(),
            architecture: self.model.loaded.arch.name.into(),
            model_file: self.model.name.clone(),
            dtype: self.model.dtype.clone(),
            device: self.device.backend.name().into(),
            threads: self.device.threads,
            condition: samples.condition,
            token_ids: args.token_ids,
            timestamps: false,
            load_ms: self.load_ms,
            decode_audio_ms: samples.decode_audio_ms,
            resample_ms: samples.resample_ms,
            total_ms: start.elapsed().as_secs_f64() * 1000.0,
            peak_rss_bytes: peak_rss_bytes(),
        };
        match (self.write(outputs, &transcript, &facts, watcher), printed) {
            (Err(failure), Err(_)) => return Err(failure.ending()),
            (written, printed) => written.and(printed)?,
        }
        self.summary(&transcript, &facts);
        if transcript.truncated() {
            self.say.note(format_args!("{}: text cut at the token limit (--max-tokens)", input.name()));
        }
        Ok(match transcript.truncated() {
            _ if facts.condition.is_incomplete() => Exit::SomeFailed,
            true => Exit::Truncated,
            false => Exit::Done,
        })
    }

    /// Says whose text follows, where several are read on a terminal.
    fn header(&self, input: &Input) -> Outcome<()> {
        if self.n_inputs < 2 || self.args.output.is_some() || self.args.format != [Format::Text] {
            return Ok(());
        }
        if std::io::stdout().is_terminal() { print(&format!("==> {} <==\n", escaped(&input.name()))) } else { Ok(()) }
    }

    /// A format as standard output has it: documents of several inputs stand on lines of their own.
    fn printed(&self, format: Format) -> Format {
        if format == Format::Json && self.n_inputs > 1 { Format::Jsonl } else { format }
    }

    /// Begins the journal of an input whose transcript will be `output`.
    fn journal(&self, input: &Input, output: &Path) -> Outcome<Journal> {
        let files = &self.model.loaded.files;
        let model: Vec<_> = files.iter().map(|file| (file.path().display().to_string(), file.file_bytes())).collect();
        let input = match input {
            Input::File { path, .. } => Some(&**path),
            Input::Stdin => None,
        };
        let header = Header { input, model: &model, options: self.args.text_options() };
        Journal::begin(output, &header).map_err(Failure::output)
    }

    /// Why an input has no whole transcript, and what is left of it.
    fn broken_off(&self, input: &Input, mut watcher: Watcher, error: models::Error) -> Failure {
        let journal = watcher.journal.take();
        if let Err(failure) = watcher.break_off() {
            return with_kept(failure, journal);
        }
        let name = input.name();
        if !matches!(error, models::Error::Cancelled) {
            journal.into_iter().for_each(Journal::remove);
            let failure = failure(&self.model, error);
            return Failure { error: failure.error.context(name), ..failure };
        }
        interrupted(&name, journal)
    }

    /// Writes the transcript in every format, and the dump: whatever can be, where something cannot. The journal is there
    /// until all are.
    fn write(&self, outputs: &Outputs, transcript: &Transcript, facts: &Facts, mut watcher: Watcher) -> Outcome<()> {
        let (journal, dumped, is_printed) = (watcher.journal.take(), take(&mut watcher.dumped), watcher.prints());
        // A pipe may wait for its reader for ever.
        let undisturbed = outputs.destinations().all(Destination::is_file).then_some(watcher);
        if undisturbed.is_none() && interrupt::exit().is_some() {
            return Err(interrupted(&facts.file, journal));
        }
        let body = |format| {
            let facts = Facts { timestamps: self.args.has_timestamps(format), ..facts.clone() };
            render(format, transcript, &facts, &self.args.cues.limits())
        };
        let is_printed = is_printed || self.args.output.is_some();
        let mut formats = self.args.format.iter().filter(|_| !is_printed);
        let printed = formats.try_for_each(|&format| print(&body(self.printed(format))));
        let transcripts = outputs.transcripts.iter().map(|(format, place)| place.write(body(*format).as_bytes()));
        let dump = outputs.dump.iter().map(|place| dump::write(place, &dumped));
        let written: Vec<anyhow::Result<()>> = transcripts.chain(dump).collect();
        let Err(error) = written.into_iter().collect::<anyhow::Result<()>>() else {
            journal.into_iter().for_each(Journal::remove);
            return printed;
        };
        let failure = with_kept(Failure::output(error), journal);
        Err(if printed.is_err() { failure.ending() } else { failure })
    }

    fn summary(&self, transcript: &Transcript, facts: &Facts) {
        let t = &transcript.timings;
        let s = |d: std::time::Duration| d.as_secs_f64();
        let shown = |d: std::time::Duration| short(s(d));
        let (load, total) = (short(facts.load_ms / 1000.0), facts.total_ms / 1000.0);
        let rate = t.generated_tokens as f64 / s(t.decode).max(1e-9);
        let peak = facts.peak_rss_bytes.map_or(String::new(), |bytes| format!(" | peak {}", size(bytes)));
        let name = if self.n_inputs > 1 { format!("{}: ", facts.file) } else { String::new() };
        self.say.note(format_args!(
            "{name}audio {:.1} s | load {load} mel {} encode {} prefill {} decode {} ({} tok, {rate:.0}/s) | RTF {}{peak} | {}",
            transcript.duration_s, shown(t.mel), shown(t.encode), shown(t.prefill), shown(t.decode), t.generated_tokens,
            short(total / transcript.duration_s), facts.device,
        ));
        if !self.args.timings {
            return;
        }
        let per_token = s(t.decode) * 1000.0 / t.generated_tokens.saturating_sub(1).max(1) as f64;
        let stats = self.transcriber.stats();
        let reasons = BuildReason::ALL.into_iter().map(|r| (r.name(), stats.builds_for(r))).filter(|(_, n)| *n > 0);
        let reasons: Vec<String> = reasons.map(|(name, n)| format!("{name} {n}")).collect();
        let graphs = format!("{} graphs built ({}), {} reused", stats.builds, reasons.join(", "), stats.hits);
        for (stage, ms, detail) in [
            ("load", facts.load_ms, String::new()),
            ("decode audio", facts.decode_audio_ms, String::new()),
            ("resample", facts.resample_ms, String::new()),
            ("mel", s(t.mel) * 1000.0, String::new()),
            ("encode", s(t.encode) * 1000.0, format!("{} audio tokens", t.audio_tokens)),
            ("prefill", s(t.prefill) * 1000.0, format!("{} prompt tokens", t.prompt_tokens)),
            ("decode", s(t.decode) * 1000.0, format!("{} tokens, {per_token:.2} ms each", t.generated_tokens)),
            ("total", facts.total_ms, graphs),
        ] {
            self.say.note(format_args!("{stage:>12} {ms:>10.2} ms  {detail}"));
        }
    }
}
