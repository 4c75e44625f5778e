//! [`Text`]: texts of the model's own, with drafts and without, in turns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use models::Result;
use models::decoding::{Decoding, Prompt, Rules};
use models::draft::{self, Drafters, Speculation, Statistics, Undone};
use models::sample::Sampling;
use models::scheduler::{Rollback, Scheduler};
use serde_json::Value;

use super::super::json::object;
use super::super::markdown;
use super::super::statistics::percentile;
use super::{Facts, Oracle};

/// Where drafts come from.
pub(super) enum Guesses {
    /// The text itself.
    Oracle(Oracle),
    /// `--spec-type`.
    Drafters(Drafters),
}

impl Guesses {
    fn name(&self) -> String {
        match self {
            Self::Oracle(Oracle { k, mean }) => format!("oracle {k},{mean}"),
            Self::Drafters(drafters) => {
                drafters.parameters().kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(",")
            }
        }
    }
}

/// Texts that are written again and again, all at once.
pub(super) struct Text<'a> {
    pub prompts: &'a [Vec<u32>],
    /// Tokens behind each.
    pub n_gen: usize,
    pub sampling: Sampling,
    /// Whether lengths of drafts follow success and cost.
    pub adapts: bool,
}

/// What drafts of one kind made of them.
pub(super) struct Row {
    guesses: String,
    n_gen: usize,
    n_parallel: usize,
    /// With drafts and without, by repetition.
    with: Vec<Timing>,
    plain: Vec<Timing>,
    /// Of the last repetition, all texts together.
    statistics: Statistics,
    /// Whether all texts were those without drafts.
    is_same: bool,
}

/// From the step that gave the last text its first token to the last token of all.
#[derive(Clone, Copy, Default)]
struct Timing {
    seconds: f64,
    /// Tokens of all texts in this time.
    n_tokens: usize,
}

impl Timing {
    fn rate(&self) -> f64 {
        self.n_tokens as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// One time.
struct Run {
    ids: Vec<Vec<u32>>,
    timing: Timing,
    statistics: Statistics,
}

impl Text<'_> {
    /// Writes the texts without drafts and with each kind of them, in turns, once more than is timed.
    ///
    /// Errors: those of the scheduler, and of a draft model.
    pub(super) fn measure(
        &self,
        scheduler: &mut Scheduler,
        guesses: &[Guesses],
        repetitions: usize,
    ) -> Result<Vec<Row>> {
        let want = self.write(scheduler, None)?.ids;
        let row = |guesses: &Guesses| Row {
            guesses: guesses.name(),
            n_gen: self.n_gen,
            n_parallel: self.prompts.len(),
            with: Vec::new(),
            plain: Vec::new(),
            statistics: Statistics::default(),
            is_same: true,
        };
        let mut rows: Vec<Row> = guesses.iter().map(row).collect();
        for i in 0..=repetitions {
            for (guesses, row) in guesses.iter().zip(&mut rows) {
                let plain = self.write(scheduler, None)?;
                let run = self.write(scheduler, Some((guesses, &want)))?;
                row.is_same &= run.ids == want && plain.ids == want;
                row.statistics = run.statistics;
                if i > 0 {
                    row.with.push(run.timing);
                    row.plain.push(plain.timing);
                }
            }
        }
        Ok(rows)
    }

    /// The drafters of one text, which oracles know.
    fn speculation(&self, guesses: &Guesses, prompt: &[u32], text: &[u32], n_vocab: usize) -> Result<Speculation> {
        let ids: Vec<i32> = prompt.iter().map(|id| id.cast_signed()).collect();
        match guesses {
            Guesses::Drafters(drafters) => drafters.speculation(&ids),
            Guesses::Oracle(Oracle { k, mean }) => {
                let n_vocab = u32::try_from(n_vocab).unwrap_or(u32::MAX);
                let oracle = draft::Oracle::new([prompt, text].concat(), *k, *mean, n_vocab);
                Ok(Speculation::with(Box::new(oracle), *k, self.adapts, &ids))
            }
        }
    }

    /// Writes all texts, with drafts where there are some, of which oracles know the texts.
    fn write(&self, scheduler: &mut Scheduler, drafts: Option<(&Guesses, &[Vec<u32>])>) -> Result<Run> {
        let model = Arc::clone(scheduler.session().model());
        let mut places = BTreeMap::new();
        for (i, prompt) in self.prompts.iter().enumerate() {
            let rules = Rules {
                sampling: self.sampling,
                stop: Vec::new(),
                ignore_stop: true,
                max_tokens: self.n_gen,
                n_usable: model.n_vocab(),
                prompt_logits: false,
            };
            let decoding = Decoding::new(Prompt::of_ids(prompt), model.n_embd(), rules);
            let of_text = |(guesses, texts): (&Guesses, &[Vec<u32>])| {
                self.speculation(guesses, prompt, &texts[i], model.n_vocab())
            };
            places.insert(scheduler.submit_with(decoding, drafts.map(of_text).transpose()?)?, i);
        }
        let mut ids = vec![Vec::new(); self.prompts.len()];
        let mut statistics = vec![Statistics::default(); self.prompts.len()];
        let mut first = None;
        while scheduler.n_running() > 0 {
            let mut failed = None;
            scheduler.step(&mut |progress| {
                let i = places[&progress.id];
                statistics[i] = progress.statistics.copied().unwrap_or_default();
                match progress.result {
                    Ok(event) => ids[i].extend(&event.tokens),
                    Err(error) => failed = Some(error),
                }
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            if first.is_none() && ids.iter().all(|ids| !ids.is_empty()) {
                first = Some((Instant::now(), ids.iter().map(Vec::len).sum::<usize>()));
            }
        }
        let timing = first.map_or(Timing::default(), |(start, n_before)| Timing {
            seconds: start.elapsed().as_secs_f64(),
            n_tokens: ids.iter().map(Vec::len).sum::<usize>() - n_before,
        });
        let mut all = Statistics::default();
        statistics.iter().for_each(|one| all.add(one));
        Ok(Run { ids, timing, statistics: all })
    }
}

/// The median of tokens per second.
fn rate(timings: &[Timing]) -> f64 {
    percentile(&timings.iter().map(Timing::rate).collect::<Vec<_>>(), 0.5)
}

impl Row {
    /// How many times faster the text came than without drafts: the median of the rounds.
    fn factor(&self) -> f64 {
        let ratio = |(with, plain): (&Timing, &Timing)| with.rate() / plain.rate().max(f64::MIN_POSITIVE);
        percentile(&self.with.iter().zip(&self.plain).map(ratio).collect::<Vec<_>>(), 0.5)
    }

    /// Tokens that a step gives a text, the model's own among them. Its first token came with the prompt.
    fn per_step(&self) -> f64 {
        let Statistics { emitted, steps, .. } = self.statistics;
        emitted.saturating_sub(self.n_parallel as u64) as f64 / steps.max(1) as f64
    }

    /// Milliseconds of a draft to save states, to restore them, and to compute again what was right.
    fn undone_ms(&self) -> [f64; 3] {
        let Undone { save, restore, replay, .. } = self.statistics.undone;
        let n_drafts = self.statistics.drafts.max(1) as f64;
        [save, restore, replay].map(|time: Duration| time.as_secs_f64() * 1e3 / n_drafts)
    }

    /// Everything, for json.
    pub(super) fn object(&self, facts: &Facts, temperature: f32, rollback: Rollback) -> Value {
        let Statistics { proposed, verified, accepted, missed, emitted, drafts, steps, .. } = self.statistics;
        let [save, restore, replay] = self.undone_ms();
        let mut fields = facts.fields("drafts");
        fields.extend(object([
            ("n_gen", Value::from(self.n_gen)),
            ("temperature", f64::from(temperature).into()),
            ("drafts_of", self.guesses.clone().into()),
            ("avg_ts", rate(&self.with).into()),
            ("plain_ts", rate(&self.plain).into()),
            ("net_factor", self.factor().into()),
            ("emitted_per_step", self.per_step().into()),
            ("proposed", proposed.into()),
            ("verified", verified.into()),
            ("accepted", accepted.into()),
            ("missed", missed.into()),
            ("emitted", emitted.into()),
            ("drafts", drafts.into()),
            ("steps", steps.into()),
            ("rollback", name(rollback).into()),
            ("save_ms_per_draft", save.into()),
            ("restore_ms_per_draft", restore.into()),
            ("replay_ms_per_draft", replay.into()),
            ("same_text", self.is_same.into()),
            ("samples_ts", self.with.iter().map(Timing::rate).collect::<Vec<_>>().into()),
            ("plain_samples_ts", self.plain.iter().map(Timing::rate).collect::<Vec<_>>().into()),
        ]));
        Value::Object(fields)
    }
}

/// `--spec-rollback`.
pub(super) fn name(rollback: Rollback) -> &'static str {
    match rollback {
        Rollback::Ring => "ring",
        Rollback::Row { .. } => "row",
        Rollback::Checkpoint { .. } => "checkpoint",
    }
}

/// A markdown table. The last but one column has milliseconds of a draft, where states are copied for it.
pub(super) fn table(rows: &[Row]) -> String {
    const COLUMNS: [(&str, i32); 11] = [
        ("drafts", -14),
        ("t/s", 8),
        ("t/s without", 11),
        ("net factor", 10),
        ("emitted per step", 16),
        ("proposed", 8),
        ("verified", 8),
        ("accepted", 8),
        ("missed", 6),
        ("save, restore, replay ms", 24),
        ("text", -5),
    ];
    let cells = |row: &Row| {
        let Statistics { proposed, verified, accepted, missed, .. } = row.statistics;
        [
            row.guesses.clone(),
            format!("{:.2}", rate(&row.with)),
            format!("{:.2}", rate(&row.plain)),
            format!("{:.3}", row.factor()),
            format!("{:.2}", row.per_step()),
            proposed.to_string(),
            verified.to_string(),
            accepted.to_string(),
            missed.to_string(),
            row.undone_ms().map(|ms| format!("{ms:.2}")).join(", "),
            if row.is_same { "same" } else { "other" }.to_owned(),
        ]
    };
    markdown::table(&COLUMNS, &rows.iter().map(cells).collect::<Vec<_>>())
}
