//! [`Text`]: a text of the model's own, with drafts and without, in turns.

use std::ops::ControlFlow;
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

/// A text that is written again and again.
pub(super) struct Text<'a> {
    pub prompt: &'a [u32],
    /// Tokens behind it.
    pub n_gen: usize,
    pub sampling: Sampling,
    /// Whether lengths of drafts follow success and cost.
    pub adapts: bool,
}

/// What drafts of one kind made of it.
pub(super) struct Row {
    guesses: String,
    n_gen: usize,
    /// Seconds behind the first token, with drafts and without, by repetition.
    seconds: Vec<f64>,
    plain: Vec<f64>,
    /// Of the last repetition.
    statistics: Statistics,
    /// Whether all texts were those without drafts.
    is_same: bool,
}

/// One time.
struct Run {
    ids: Vec<u32>,
    seconds: f64,
    statistics: Option<Statistics>,
}

impl Text<'_> {
    /// Writes the text without drafts and with each kind of them, in turns, once more than is timed.
    ///
    /// Errors: those of the scheduler, and of a draft model.
    pub(super) fn measure(
        &self,
        scheduler: &mut Scheduler,
        guesses: &[Guesses],
        repetitions: usize,
    ) -> Result<Vec<Row>> {
        let want = self.write(scheduler, None)?.ids;
        let whole: Vec<u32> = [self.prompt, &want].concat();
        let row = |guesses: &Guesses| Row {
            guesses: guesses.name(),
            n_gen: self.n_gen,
            seconds: Vec::new(),
            plain: Vec::new(),
            statistics: Statistics::default(),
            is_same: true,
        };
        let mut rows: Vec<Row> = guesses.iter().map(row).collect();
        for i in 0..=repetitions {
            for (guesses, row) in guesses.iter().zip(&mut rows) {
                let plain = self.write(scheduler, None)?;
                let speculation = self.speculation(guesses, &whole, scheduler)?;
                let run = self.write(scheduler, Some(speculation))?;
                row.is_same &= run.ids == want && plain.ids == want;
                row.statistics = run.statistics.unwrap_or_default();
                if i > 0 {
                    row.seconds.push(run.seconds);
                    row.plain.push(plain.seconds);
                }
            }
        }
        Ok(rows)
    }

    fn speculation(&self, guesses: &Guesses, whole: &[u32], scheduler: &Scheduler) -> Result<Speculation> {
        let prompt: Vec<i32> = self.prompt.iter().map(|id| id.cast_signed()).collect();
        match guesses {
            Guesses::Drafters(drafters) => drafters.speculation(&prompt),
            Guesses::Oracle(Oracle { k, mean }) => {
                let n_vocab = u32::try_from(scheduler.session().model().n_vocab()).unwrap_or(u32::MAX);
                let oracle = draft::Oracle::new(whole.to_vec(), *k, *mean, n_vocab);
                Ok(Speculation::with(Box::new(oracle), *k, self.adapts, &prompt))
            }
        }
    }

    fn write(&self, scheduler: &mut Scheduler, speculation: Option<Speculation>) -> Result<Run> {
        let model = scheduler.session().model();
        let rules = Rules {
            sampling: self.sampling,
            stop: Vec::new(),
            ignore_stop: true,
            max_tokens: self.n_gen,
            n_usable: model.n_vocab(),
            prompt_logits: false,
        };
        let decoding = Decoding::new(Prompt::of_ids(self.prompt), model.n_embd(), rules);
        let mut ids = Vec::new();
        let mut first = None;
        let statistics = scheduler.run_with(decoding, speculation, &mut |event, _| {
            ids.extend(&event.tokens);
            if !ids.is_empty() {
                first.get_or_insert_with(Instant::now);
            }
            ControlFlow::Continue(())
        })?;
        let seconds = first.map_or(0.0, |first| first.elapsed().as_secs_f64());
        Ok(Run { ids, seconds, statistics })
    }
}

impl Row {
    /// Tokens a second behind the first one.
    fn rate(&self, seconds: &[f64]) -> f64 {
        self.n_gen.saturating_sub(1) as f64 / percentile(seconds, 0.5).max(f64::MIN_POSITIVE)
    }

    /// How many times faster the text came than without drafts: the median of the rounds.
    fn factor(&self) -> f64 {
        let ratios: Vec<f64> =
            self.plain.iter().zip(&self.seconds).map(|(plain, with)| plain / with.max(f64::MIN_POSITIVE)).collect();
        percentile(&ratios, 0.5)
    }

    /// Tokens of a step, the model's own among them. The first token of all came with the prompt.
    fn per_step(&self) -> f64 {
        let Statistics { emitted, steps, .. } = self.statistics;
        emitted.saturating_sub(1) as f64 / steps.max(1) as f64
    }

    /// Milliseconds of a draft to save states, to restore them, and to compute again what was right.
    fn undone_ms(&self) -> [f64; 3] {
        let Undone { save, restore, replay, .. } = self.statistics.undone;
        let n_drafts = self.statistics.drafts.max(1) as f64;
        [save, restore, replay].map(|time: Duration| time.as_secs_f64() * 1e3 / n_drafts)
    }

    /// Everything, for json.
    pub(super) fn object(&self, facts: &Facts, temperature: f32, rollback: Rollback) -> Value {
        let Statistics { proposed, verified, accepted, emitted, drafts, steps, .. } = self.statistics;
        let [save, restore, replay] = self.undone_ms();
        let mut fields = facts.fields("drafts");
        fields.extend(object([
            ("n_gen", Value::from(self.n_gen)),
            ("temperature", f64::from(temperature).into()),
            ("drafts_of", self.guesses.clone().into()),
            ("avg_ts", self.rate(&self.seconds).into()),
            ("plain_ts", self.rate(&self.plain).into()),
            ("net_factor", self.factor().into()),
            ("emitted_per_step", self.per_step().into()),
            ("proposed", proposed.into()),
            ("verified", verified.into()),
            ("accepted", accepted.into()),
            ("emitted", emitted.into()),
            ("drafts", drafts.into()),
            ("steps", steps.into()),
            ("rollback", name(rollback).into()),
            ("save_ms_per_draft", save.into()),
            ("restore_ms_per_draft", restore.into()),
            ("replay_ms_per_draft", replay.into()),
            ("same_text", self.is_same.into()),
            ("samples_s", self.seconds.clone().into()),
            ("plain_samples_s", self.plain.clone().into()),
        ]));
        Value::Object(fields)
    }
}

/// `--spec-rollback`.
pub(super) fn name(rollback: Rollback) -> &'static str {
    match rollback {
        Rollback::Ring => "ring",
        Rollback::Checkpoint { .. } => "checkpoint",
    }
}

/// A markdown table. The last but one column has milliseconds of a draft, where states are copied for it.
pub(super) fn table(rows: &[Row]) -> String {
    const COLUMNS: [(&str, i32); 10] = [
        ("drafts", -14),
        ("t/s", 8),
        ("t/s without", 11),
        ("net factor", 10),
        ("emitted per step", 16),
        ("proposed", 8),
        ("verified", 8),
        ("accepted", 8),
        ("save, restore, replay ms", 24),
        ("text", -5),
    ];
    let cells = |row: &Row| {
        let Statistics { proposed, verified, accepted, .. } = row.statistics;
        [
            row.guesses.clone(),
            format!("{:.2}", row.rate(&row.seconds)),
            format!("{:.2}", row.rate(&row.plain)),
            format!("{:.3}", row.factor()),
            format!("{:.2}", row.per_step()),
            proposed.to_string(),
            verified.to_string(),
            accepted.to_string(),
            row.undone_ms().map(|ms| format!("{ms:.2}")).join(", "),
            if row.is_same { "same" } else { "other" }.to_owned(),
        ]
    };
    markdown::table(&COLUMNS, &rows.iter().map(cells).collect::<Vec<_>>())
}
