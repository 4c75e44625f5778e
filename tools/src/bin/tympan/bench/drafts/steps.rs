//! [`Steps`]: how long a step takes by the number of rows of every sequence, where every row gives logits.

use std::time::Instant;

use engine::Result;
use engine::batch::{Batch, Rows, Sequence, Tokens};
use engine::session::Session;
use serde_json::Value;

use super::super::json::object;
use super::super::markdown;
use super::super::statistics::percentile;
use super::Facts;

/// Rows, median milliseconds, the same in steps of one row, and how many times faster a text can come at most whose drafts are
/// all right. The last two are nothing where steps of one row were not measured.
type Figures = (usize, f64, Option<[f64; 2]>);

/// Milliseconds of every step, by number of rows of every sequence.
pub(super) struct Steps(Vec<(usize, Vec<f64>)>);

impl Steps {
    /// Positions that a measurement needs.
    pub(super) fn n_ctx(n_prompt: usize, rows: &[usize], repetitions: usize) -> usize {
        n_prompt + rows.iter().sum::<usize>().saturating_mul(repetitions.saturating_add(1))
    }

    /// Times steps of all sizes in turns, behind an untimed one of each. All drafts are taken as right: the next step folds them.
    ///
    /// Errors: those of the session.
    pub(super) fn measure(
        mut session: Session,
        prompts: &[Vec<u32>],
        rows: &[usize],
        repetitions: usize,
    ) -> Result<Self> {
        let mut slots = Vec::new();
        for prompt in prompts {
            let slot = session.memory_mut().acquire()?;
            session.feed(slot, Tokens::Ids(prompt))?;
            slots.push(slot);
        }
        let mut steps: Vec<(usize, Vec<f64>)> = rows.iter().map(|&n| (n, Vec::new())).collect();
        for i in 0..=repetitions {
            for (n, times) in &mut steps {
                let rows = Rows::Drafts(*n - 1);
                let ids = prompts.iter().map(|prompt| prompt.iter().copied().cycle().take(*n).collect());
                let ids: Vec<Vec<u32>> = ids.collect();
                let seqs = slots.iter().zip(&ids).map(|(&slot, ids)| Sequence { slot, tokens: Tokens::Ids(ids), rows });
                let seqs: Vec<_> = seqs.collect();
                let start = Instant::now();
                session.step(&Batch { seqs: &seqs })?;
                let ms = start.elapsed().as_secs_f64() * 1e3;
                if i > 0 {
                    times.push(ms);
                }
            }
        }
        Ok(Self(steps))
    }

    fn figures(&self) -> impl Iterator<Item = Figures> {
        let median = |times: &[f64]| percentile(times, 0.5);
        let one = self.0.iter().find(|(n, _)| *n == 1).map(|(_, times)| median(times));
        self.0.iter().map(move |(n, times)| {
            let ms = median(times);
            (*n, ms, one.map(|one| [ms / one, *n as f64 * one / ms]))
        })
    }

    /// A markdown table.
    pub(super) fn table(&self) -> String {
        const COLUMNS: [(&str, i32); 5] =
            [("rows", 5), ("ms", 9), ("of one row", 10), ("drafts", 6), ("factor at most", 14)];
        let figure = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.2}"));
        let cells = |(n, ms, ratios): Figures| {
            let [cost, gain] = [0, 1].map(|i| figure(ratios.map(|r| r[i])));
            [n.to_string(), format!("{ms:.2}"), cost, (n - 1).to_string(), gain]
        };
        markdown::table(&COLUMNS, &self.figures().map(cells).collect::<Vec<_>>())
    }

    /// Everything, for json.
    pub(super) fn objects(&self, facts: &Facts) -> Vec<Value> {
        let object = |((n, ms, ratios), (_, times)): (Figures, &(usize, Vec<f64>))| {
            let mut fields = facts.fields("rows");
            fields.extend(object([
                ("n_rows", Value::from(n)),
                ("ms", ms.into()),
                ("steps_of_one_row", ratios.map(|r| r[0]).into()),
                ("factor_at_most", ratios.map(|r| r[1]).into()),
                ("samples_ms", times.clone().into()),
            ]));
            Value::Object(fields)
        };
        self.figures().zip(&self.0).map(object).collect()
    }
}
