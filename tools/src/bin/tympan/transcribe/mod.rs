//! `tympan transcribe`: audio files to text.

mod cues;
mod dump;
mod flags;
mod formats;
mod glob;
mod inputs;
mod journal;
mod outputs;
mod queue;
mod run;
mod watcher;

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use models::LoadOptions;
use models::qwen3_asr::AudioAttention;
use models::transcribe::Transcriber;
use tympan::Model;

use crate::args::note_threads;
use crate::exit::{Exit, Failure, Outcome};
use crate::report::Verbosity;
use flags::Timestamps;
pub(crate) use flags::TranscribeArgs;
use formats::Format;
use inputs::{Input, Inputs};
use outputs::Outputs;
use queue::Queue;
use run::Run;

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
    let n_parallel = NonZeroUsize::new(usize::try_from(args.parallel).unwrap_or(1)).unwrap_or(NonZeroUsize::MIN);
    let transcriber = Transcriber::open_parallel(&model.loaded, &backends, args.kv_type.into(), n_parallel);
    let transcriber = transcriber.with_context(|| format!("loading {}", model.name)).map_err(Failure::model);
    let mut transcriber = transcriber?;
    transcriber.set_reuse(reuse);
    let load_ms = load.elapsed().as_secs_f64() * 1000.0;
    let language = check_model(args, &model, &transcriber)?;
    say.detail(device.describe());

    let run = Run { args, say, language, device, model, load_ms, n_inputs: inputs.len() };
    Queue::new(&run, &mut transcriber).transcribe(&inputs, &mut tally)?;
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
