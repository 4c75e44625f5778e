//! [`Run`]: what becomes of an input, from its bytes to its outputs.

use std::io::IsTerminal;
use std::mem::take;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use engine::stats::{BuildReason, Stats};
use models::together::{Ended, Together};
use models::transcribe::{Partial, RATE_HZ, Request, Transcript};
use models::transcription::Transcription;
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
use crate::samples::{Condition, Samples};
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
    pub(super) load_ms: f64,
    pub(super) n_inputs: usize,
}

/// An input whose samples are there.
pub(super) struct Opened<'a> {
    input: &'a Input,
    outputs: &'a Outputs,
    /// What messages about its condition call it.
    name: String,
    condition: Condition,
    /// Length in seconds.
    seconds: f64,
    decode_audio_ms: f64,
    resample_ms: f64,
    start: Instant,
    /// Time to read it.
    pub(super) reading: Duration,
    /// Time that the run had taken by then.
    before: Duration,
}

impl<'a> Run<'a> {
    /// Whether text is shown as it is decoded, so that messages about other inputs would come into the middle of it.
    pub(super) fn is_on_screen(&self) -> bool {
        self.prints_text() && std::io::stdout().is_terminal()
    }

    /// Whether texts go to standard output piece by piece.
    fn prints_text(&self) -> bool {
        self.args.output.is_none() && self.args.format == [Format::Text]
    }

    /// Reads an input, number `number` from 0, and begins its transcription. `before`: time that the run took so far.
    pub(super) fn open<'t>(
        &self,
        number: usize,
        (input, outputs): (&'a Input, &'a Outputs),
        together: &Together<'t, Watcher>,
        before: Duration,
    ) -> Outcome<(Opened<'a>, Transcription<'t>, Watcher)> {
        let args = self.args;
        let start = Instant::now();
        let samples = match input {
            Input::File { path, .. } => Samples::of_file(path),
            Input::Stdin => Samples::of_stdin(),
        }?;
        let reading = start.elapsed();
        check_unchanged(&self.model)?;
        let Samples { name, values, condition, decode_audio_ms, resample_ms } = samples;
        let seconds = values.len() as f64 / f64::from(RATE_HZ);
        let request = Request {
            language: self.language.as_deref(),
            context: &args.context,
            segment_s: args.segment,
            max_tokens: args.max_tokens.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            max_answer: None,
            ignore_stop: false,
            start_s: condition.start_s,
        };
        let transcription = together.begin(values, &request).map_err(|error| self.failed(input, error))?;
        let stream = self.prints_text().then(|| TextStream::new(args.has_timestamps(Format::Text)));
        let journal = outputs.journalled().map(|output| self.journal(input, output)).transpose()?;
        let watcher = Watcher::new(number, stream, journal, outputs.dump.is_some());
        let opened =
            Opened { input, outputs, name, condition, seconds, decode_audio_ms, resample_ms, start, reading, before };
        Ok((opened, transcription, watcher))
    }

    /// Says what an input lacks.
    pub(super) fn say_condition(&self, opened: &Opened<'_>) {
        opened.condition.say(&opened.name, self.say);
    }

    /// All inputs before this one are done: shows what there is of it, and from now on what comes.
    pub(super) fn give_turn(
        &self,
        opened: &Opened<'_>,
        watcher: &mut Watcher,
        so_far: &Transcript,
        answer: Option<&Partial<'_>>,
    ) -> Outcome<()> {
        self.header(opened.input)?;
        let (name, seconds) = (opened.input.name(), opened.seconds);
        let file = progress::File { number: watcher.number + 1, of: self.n_inputs, name, seconds };
        watcher.take_turn(|| Position::new(file, self.args.quiet), so_far, answer);
        Ok(())
    }

    /// Writes the outputs of an input that has been transcribed. `spent`: time that the run took so far. The exit code says
    /// whether something of the input is missing.
    pub(super) fn close(
        &self,
        opened: Opened<'_>,
        ended: Ended<Watcher>,
        spent: Duration,
        stats: &Stats,
    ) -> Outcome<Exit> {
        let Opened { input, outputs, .. } = opened;
        let Ended { observer: mut watcher, transcript, result } = ended;
        if let Err(error) = result {
            return Err(self.broken_off(input, watcher, error));
        }
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
        let total = opened.total(&transcript, spent);
        let facts = Facts {
            file: input.name(),
            architecture: self.model.loaded.arch.name.into(),
            model_file: self.model.name.clone(),
            dtype: self.model.dtype.clone(),
            device: self.device.backend.name().into(),
            threads: self.device.threads,
            condition: opened.condition,
            token_ids: self.args.token_ids,
            timestamps: false,
            load_ms: self.load_ms,
            decode_audio_ms: opened.decode_audio_ms,
            resample_ms: opened.resample_ms,
            total_ms: total.as_secs_f64() * 1000.0,
            peak_rss_bytes: peak_rss_bytes(),
        };
        match (self.write(outputs, &transcript, &facts, watcher), printed) {
            (Err(failure), Err(_)) => return Err(failure.ending()),
            (written, printed) => written.and(printed)?,
        }
        self.summary(&transcript, &facts, stats);
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
        if !matches!(error, models::Error::Cancelled) {
            journal.into_iter().for_each(Journal::remove);
            return self.failed(input, error);
        }
        interrupted(&input.name(), journal)
    }

    /// The failure of an input that the model cannot transcribe.
    fn failed(&self, input: &Input, error: models::Error) -> Failure {
        let failure = failure(&self.model, error);
        Failure { error: failure.error.context(input.name()), ..failure }
    }

    /// Leaves an input alone whose transcription the end of the run cuts off: what is finished of it stays where a signal came.
    pub(super) fn abandon(opened: &Opened<'_>, mut watcher: Watcher) {
        let Some(journal) = watcher.journal.take() else { return };
        if interrupt::exit().is_some() && journal.has_segments() {
            interrupted(&opened.input.name(), Some(journal)).say();
        } else {
            journal.remove();
        }
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

    fn summary(&self, transcript: &Transcript, facts: &Facts, stats: &Stats) {
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

impl Opened<'_> {
    /// Time from opening the input to its text, without what others took meanwhile.
    fn total(&self, transcript: &Transcript, spent: Duration) -> Duration {
        let own = self.reading + transcript.timings.sum();
        let others = spent.saturating_sub(self.before).saturating_sub(own);
        self.start.elapsed().saturating_sub(others)
    }
}
