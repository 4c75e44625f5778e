//! `--baseline`: rows of an earlier run beside those of this one, and whether something has become slower.
//!
//! Other programs of the machine make runs slower and never faster, so the fastest repetition says most about the program
//! and the median most about what users see. A row counts as slower where both are, and a row that seems slower is measured
//! again before it counts.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use serde_json::{Map, Value};

use super::markdown;
use super::timed::Timed;
use crate::exit::{Failure, Outcome};

/// Largest file that is read.
const MAX_BYTES: u64 = 64 << 20;
/// Heads and widths of the table.
const COLUMNS: [(&str, i32); 6] =
    [("model", -30), ("threads", 7), ("test", -15), ("baseline", 16), ("now", 16), ("time", 9)];
/// How executable files of Linux begin.
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// An earlier run.
#[derive(Clone, Debug)]
pub(super) struct Baseline {
    path: PathBuf,
    rows: Vec<Timed>,
    /// How much longer a row may take, in percent; without, nothing is judged.
    max_regress: Option<f64>,
}

/// What was measured beside the baseline.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    /// The rows that both have, as a markdown table.
    pub table: String,
    /// Rows that have become slower.
    pub slower: Vec<String>,
    /// What else a reader should know: rows that only one of the two has, rows without a sure result.
    pub notes: Vec<String>,
    /// Number of rows that both have.
    pub n_compared: usize,
}

impl Baseline {
    /// Reads what `bench -o json` or `-o jsonl` has written, llama-bench's too.
    ///
    /// Errors: a file that cannot be read, or that is something else.
    pub(super) fn open(path: &Path, max_regress: Option<f64>) -> Outcome<Self> {
        let at = || path.display().to_string();
        let file = std::fs::File::open(path).with_context(at).map_err(Failure::input)?;
        let mut text = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut text).with_context(at).map_err(Failure::input)?;
        if text.starts_with(ELF_MAGIC) {
            let is = "is a program, not rows of a benchmark; --baseline-program compares with one";
            return Err(Failure::input(anyhow!("{} {is}", at())));
        }
        if text.len() as u64 > MAX_BYTES {
            return Err(Failure::input(anyhow!("{}: want at most {MAX_BYTES} bytes, got more", at())));
        }
        let text = String::from_utf8(text).with_context(at).map_err(Failure::input)?;
        let rows = rows(&text).map_err(|e| Failure::input(anyhow!("{}: {e}", at())))?;
        if rows.is_empty() {
            return Err(Failure::input(anyhow!("{}: no rows of a benchmark in it", at())));
        }
        Ok(Self { path: path.to_owned(), rows, max_regress })
    }

    /// Rows that `program` has measured beside this one.
    pub(super) fn of_program(program: &Path, rows: Vec<Timed>) -> Self {
        Self { path: program.to_owned(), rows, max_regress: None }
    }

    /// The row that measured the same thing.
    pub(super) fn partner(&self, row: &Timed) -> Option<&Timed> {
        self.rows.iter().find(|r| r.is_like(row))
    }

    /// Whether the row takes longer than it may.
    pub(super) fn is_slower(&self, row: &Timed) -> bool {
        let Some((partner, max)) = self.partner(row).zip(self.max_regress) else { return false };
        percent(partner.median(), row.median()) > max && percent(partner.fastest(), row.fastest()) > max
    }

    /// Compares all rows of this run.
    pub(super) fn report(&self, rows: &[Timed]) -> Report {
        let mut report = Report::default();
        let mut lines = Vec::new();
        for row in rows {
            let Some(before) = self.partner(row) else {
                report.notes.push(format!("not compared: {}: not in {}", row.name(), self.path.display()));
                continue;
            };
            let time = percent(before.median(), row.median());
            report.n_compared += 1;
            lines.push([
                row.model(),
                row.threads().into(),
                row.test(),
                before.rate(),
                row.rate(),
                format!("{time:+.1} %"),
            ]);
            if self.is_slower(row) {
                let max = self.max_regress.unwrap_or_default();
                let fastest = percent(before.fastest(), row.fastest());
                report.slower.push(format!(
                    "{}: {} before, {} now: {time:+.1} % time in the median, {fastest:+.1} % in the fastest run, limit {max} %",
                    row.name(),
                    before.rate(),
                    row.rate()
                ));
            }
        }
        for before in self.rows.iter().filter(|b| !rows.iter().any(|r| r.is_like(b))) {
            report.notes.push(format!("not compared: {}: only in {}", before.name(), self.path.display()));
        }
        if !lines.is_empty() {
            report.table = format!("\n{}", markdown::table(&COLUMNS, &lines));
        }
        report
    }

    /// The file or the program.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// How much longer `now` is than `before`, in percent.
pub(super) fn percent(before: f64, now: f64) -> f64 {
    (now / before - 1.0) * 100.0
}

/// Rows of an array, of objects one after the other, or of both; those that measure the same thing are joined.
fn rows(text: &str) -> Result<Vec<Timed>, String> {
    let mut rows: Vec<Timed> = Vec::new();
    let mut n_read = 0;
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        let values = match value.map_err(|e| format!("want json or jsonl of a benchmark: {e}"))? {
            Value::Array(values) => values,
            other => vec![other],
        };
        for value in values {
            n_read += 1;
            let object: &Map<String, Value> =
                value.as_object().ok_or_else(|| format!("row {n_read}: want an object"))?;
            let row = Timed::read(object).map_err(|e| format!("row {n_read}: {e}"))?;
            match rows.iter_mut().find(|r| r.is_like(&row)) {
                Some(known) => known.extend(&row),
                None => rows.push(row),
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(model: &str, n_prompt: u64, ns: &[u64]) -> Value {
        let mean = ns.iter().sum::<u64>() as f64 / ns.len() as f64;
        let rates: f64 = ns.iter().map(|&ns| 1e9 * n_prompt as f64 / ns as f64).sum();
        serde_json::json!({
            "model_filename": model, "model_type": "lfm2 1.2B Q8_0", "backends": "CPU", "n_threads": 2, "n_batch": 2048,
            "n_ubatch": 512, "type_k": "f16", "type_v": "f16", "graph_reuse": "on", "n_prompt": n_prompt, "n_gen": 0,
            "n_depth": 0, "avg_ns": mean, "avg_ts": rates / ns.len() as f64, "samples_ns": ns,
        })
    }

    fn timed(value: &Value) -> Timed {
        Timed::read(value.as_object().unwrap()).unwrap()
    }

    fn baseline(text: &str, max_regress: f64) -> Baseline {
        Baseline { path: "a.jsonl".into(), rows: rows(text).unwrap(), max_regress: Some(max_regress) }
    }

    const BEFORE: [u64; 5] = [1_000_000, 1_010_000, 1_020_000, 1_030_000, 1_500_000];

    #[test]
    fn slower_is_what_is_slower_in_the_median_and_at_its_best() {
        let known = baseline(&row("dir/a.gguf", 64, &BEFORE).to_string(), 5.0);
        let now = |ns: &[u64]| known.is_slower(&timed(&row("a.gguf", 64, ns)));
        assert!(!now(&BEFORE));
        assert!(now(&BEFORE.map(|ns| ns * 11 / 10)));
        assert!(!now(&BEFORE.map(|ns| ns * 104 / 100)));
        // A machine that was busy half of the time.
        assert!(!now(&[1_000_000, 1_020_000, 1_900_000, 2_000_000, 2_100_000]));
        // Rare outliers to the fast side.
        assert!(!now(&[1_050_000, 1_150_000, 1_150_000, 1_150_000, 1_150_000]));
    }

    #[test]
    fn rows_are_matched_by_what_they_measure() {
        let text = format!("[{}, {}]", row("a.gguf", 64, &BEFORE), row("a.gguf", 128, &BEFORE));
        let known = baseline(&text, 5.0);
        let report = known.report(&[timed(&row("/x/a.gguf", 64, &BEFORE)), timed(&row("b.gguf", 64, &BEFORE))]);
        assert_eq!((report.n_compared, report.slower.len()), (1, 0));
        let [unknown, unmeasured] = &report.notes[..] else { panic!("{:?}", report.notes) };
        assert!(
            unknown.contains("b.gguf") && unknown.contains("pp64") && unknown.ends_with("not in a.jsonl"),
            "{unknown}"
        );
        assert!(unmeasured.contains("pp128") && unmeasured.ends_with("only in a.jsonl"), "{unmeasured}");
        assert!(report.table.contains("+0.0 %"), "{}", report.table);
    }

    #[test]
    fn rows_of_the_same_thing_are_joined_whatever_the_format() {
        let (one, other) = (row("a.gguf", 64, &[5, 6]).to_string(), row("a.gguf", 64, &[7]).to_string());
        for text in [format!("{one}\n{other}\n"), format!("[{one},\n{other}]"), format!("[{one}]\n{other}")] {
            let all = rows(&text).unwrap();
            assert_eq!(all.len(), 1, "{text}");
            assert_eq!((all[0].median(), all[0].fastest(), all[0].slowest()), (6e-9, 5e-9, 7e-9));
        }
    }

    #[test]
    fn rows_of_llama_bench_have_partners() {
        let mut theirs = row("a.gguf", 64, &BEFORE);
        theirs.as_object_mut().unwrap().remove("graph_reuse");
        let known = baseline(&theirs.to_string(), 5.0);
        assert!(known.partner(&timed(&row("a.gguf", 64, &BEFORE))).is_some());
        let mut without = row("a.gguf", 64, &BEFORE);
        without["graph_reuse"] = "off".into();
        assert!(known.partner(&timed(&without)).is_none());
        let mut several = row("a.gguf", 64, &BEFORE);
        several["n_parallel"] = 2.into();
        several["avg_ts"] = (2.0 * several["avg_ts"].as_f64().unwrap()).into();
        assert!(known.partner(&timed(&several)).is_none());
    }

    #[test]
    fn damaged_rows_are_refused_by_name() {
        let with = |name: &str, value: Value| {
            let mut row = row("a.gguf", 64, &BEFORE);
            row[name] = value;
            rows(&row.to_string()).unwrap_err()
        };
        let cases = [
            ("samples_ns", Value::Null, "samples_ns: want a list, got null"),
            ("samples_ns", serde_json::json!([]), "samples_ns: no samples"),
            ("samples_ns", serde_json::json!([1, -1]), "samples_ns: want times above 0, got -1"),
            ("n_gen", serde_json::json!("x"), "n_gen: want a number, got a text"),
            ("model_type", serde_json::json!([1]), "model_type: want a text or a number, got a list"),
            ("avg_ts", serde_json::json!(1.0), "avg_ts is 1.000, but samples_ns give"),
            ("avg_ns", serde_json::json!(1), "avg_ns is 1.000, but samples_ns give"),
        ];
        for (name, value, want) in cases {
            let got = with(name, value);
            assert!(got.starts_with("row 1: ") && got.contains(want), "{got}");
        }
        assert!(rows("{\"a\": 1}").unwrap_err().contains("model_filename is missing"));
        assert!(rows("[1]").unwrap_err().contains("row 1: want an object"));
        assert!(rows("{").unwrap_err().contains("want json or jsonl"));
    }
}
