//! [`Run`]: what becomes of an input, from its bytes to its outputs.

use std::io::IsTerminal;
use std::mem::take;
use std::path::Path;
use std::time::Instant;

use anyhow::anyhow;
use engine::stats::BuildReason;
use models::transcribe::{RATE_HZ, Request, Transcriber, Transcript};
use tympan::Model;

use super::dump;
use super::flags::TranscribeArgs;
use super::formats::{Facts, Format, render};
use super::inputs::Input;
use super::journal::{Header, Journal};
use super::outputs::Outputs;
use super::watcher::{TextStream, Watcher};
use crate::args::Device;
use crate::exit::{Exit, Failure, Outcome};
use crate::interrupt;
use crate::model::{check_unchanged, failure};
use crate::output::Destination;
use crate::progress::{self, Position};
use crate::report::{Verbosity, peak_rss_bytes, short, size};
use crate::samples::Samples;
use crate::streams::{escaped, print};

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
pub(super) struct Run<'a> {
    pub(super) args: &'a TranscribeArgs,
    pub(super) say: Verbosity,
    pub(super) language: Option<String>,
    pub(super) device: Device,
    pub(super) model: Model,
    pub(super) transcriber: Transcriber,
    pub(super) load_ms: f64,
    pub(super) n_inputs: usize,
}

impl Run<'_> {
    /// Transcribes an input, number `i` from 0. The exit code says whether something of it is missing.
    pub(super) fn input(&mut self, i: usize, input: &Input, outputs: &Outputs) -> Outcome<Exit> {
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
