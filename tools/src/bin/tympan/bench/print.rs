//! Rows as markdown, csv, json, jsonl and sql, each as llama-bench writes it.

use std::io::{Result, Write};

use clap::ValueEnum;
use serde_json::{Map, Value};

use super::markdown::{head, line, padded};
use super::row::{BUILD_COMMIT, BUILD_NUMBER, Row};
use super::statistics::{mean, stddev};

/// How rows are written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    /// Comma-separated values, all quoted.
    Csv,
    /// One array.
    Json,
    /// One object per line.
    Jsonl,
    /// A table in markdown.
    Md,
    /// A table and insertions, for sqlite.
    Sql,
    /// Nothing.
    None,
}

/// A column of the markdown table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Column {
    /// Columns that are always there.
    Model,
    /// Bytes.
    Size,
    /// Elements.
    Params,
    /// The backend.
    Backend,
    /// Threads.
    Threads,
    /// Tokens of a batch.
    Batch,
    /// Tokens of a piece.
    Ubatch,
    /// Format of keys.
    TypeK,
    /// Format of values.
    TypeV,
    /// Sequences at once.
    Parallel,
    /// How layers lie on several GPUs.
    SplitMode,
    /// Fused attention.
    FlashAttn,
    /// Which devices.
    Devices,
    /// How files are read.
    LoadMode,
    /// When weights are prepared.
    LazyMode,
    /// Whether graphs are used again.
    GraphReuse,
    /// What is measured.
    Test,
    /// Tokens per second.
    Rate,
    /// Graphs built.
    Builds,
    /// Graphs used again.
    Hits,
    /// Time outside of compiled graphs.
    Host,
    /// Bytes of states that a step reads and writes.
    State,
    /// Median of a call.
    P50,
    /// 95th percentile of a call.
    P95,
    /// Largest resident set.
    PeakRss,
}

impl Column {
    /// Head and width; a negative width is that of a column to the left.
    const fn head(self) -> (&'static str, i32) {
        match self {
            Self::Model => ("model", -30),
            Self::Size => ("size", 10),
            Self::Params => ("params", 10),
            Self::Backend => ("backend", -10),
            Self::Threads => ("threads", 7),
            Self::Batch => ("n_batch", 7),
            Self::Ubatch => ("n_ubatch", 8),
            Self::TypeK => ("type_k", 6),
            Self::TypeV => ("type_v", 6),
            Self::Parallel => ("np", 3),
            Self::SplitMode => ("sm", 6),
            Self::FlashAttn => ("fa", 3),
            Self::Devices => ("dev", -12),
            Self::LoadMode => ("lm", 10),
            Self::LazyMode => ("lazy_mode", -10),
            Self::GraphReuse => ("gr", 3),
            Self::Test => ("test", 15),
            Self::Rate => ("t/s", 20),
            Self::Builds => ("builds", 6),
            Self::Hits => ("hits", 6),
            Self::Host => ("host us", 8),
            Self::State => ("state moved", 11),
            Self::P50 => ("p50 ms", 9),
            Self::P95 => ("p95 ms", 9),
            Self::PeakRss => ("peak rss", 10),
        }
    }

    fn cell(self, row: &Row) -> String {
        let s = &row.settings;
        let own = row.own();
        let ms = |key: &str| own[key].as_f64().map_or(String::new(), |ns| format!("{:.3}", ns / 1e6));
        match self {
            Self::Model => s.model.kind.clone(),
            Self::Size => size(s.model.bytes),
            Self::Params => params(s.model.n_params),
            Self::Backend => s.backends.clone(),
            Self::Threads => s.n_threads.to_string(),
            Self::Batch => s.n_batch.to_string(),
            Self::Ubatch => s.n_ubatch.to_string(),
            Self::TypeK => s.cache_types[0].into(),
            Self::TypeV => s.cache_types[1].into(),
            Self::Parallel => s.test.n_parallel.to_string(),
            Self::SplitMode => s.recorded.split_mode.clone(),
            Self::FlashAttn => s.flash_attn.to_string(),
            Self::Devices => s.recorded.devices.clone(),
            Self::LoadMode => s.recorded.load_mode.clone(),
            Self::LazyMode => s.recorded.lazy_mode.clone(),
            Self::GraphReuse => if s.graph_reuse { "on" } else { "off" }.into(),
            Self::Test => s.test.name(),
            Self::Rate => rate(row),
            Self::Builds => row.graphs[0].to_string(),
            Self::Hits => row.graphs[1].to_string(),
            Self::Host => format!("{:.2}", row.host_us_per_step),
            Self::State => size(row.state_bytes_per_step as u64),
            Self::P50 => ms("p50_ns"),
            Self::P95 => ms("p95_ns"),
            Self::PeakRss => row.peak_rss.map_or(String::new(), size),
        }
    }
}

/// `mean +- deviation` of tokens per second.
fn rate(row: &Row) -> String {
    let rates = row.rates();
    format!("{:.2} \u{b1} {:.2}", mean(&rates), stddev(&rates))
}

/// Bytes in the unit that llama-bench takes.
pub(super) fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.2} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

/// Elements in the unit that llama-bench takes.
pub(super) fn params(n: u64) -> String {
    if n < 1_000_000_000 { format!("{:.2} M", n as f64 / 1e6) } else { format!("{:.2} B", n as f64 / 1e9) }
}

/// Writes rows in one format, as they come.
pub(super) struct Printer<'a> {
    format: Format,
    columns: Vec<Column>,
    extra: bool,
    out: Box<dyn Write + 'a>,
    n_rows: usize,
}

impl<'a> Printer<'a> {
    /// `extra`: whether the fields that llama-bench does not have are written where it would not expect them.
    pub(super) fn new(format: Format, columns: Vec<Column>, extra: bool, out: Box<dyn Write + 'a>) -> Self {
        Self { format, columns, extra, out, n_rows: 0 }
    }

    /// Adds a row.
    ///
    /// Errors: the output cannot be written.
    pub(super) fn row(&mut self, row: &Row) -> Result<()> {
        let text = match self.format {
            Format::Md => self.md(row),
            Format::Csv => self.csv(row),
            Format::Sql => self.sql(row),
            Format::None => String::new(),
            Format::Jsonl => format!("{}\n", Value::Object(row.fields())),
            Format::Json => {
                let object = format!("{:#}", Value::Object(row.fields()));
                let indented = object.replace('\n', "\n  ");
                format!("{}  {indented}", if self.n_rows == 0 { "[\n" } else { ",\n" })
            }
        };
        self.n_rows += 1;
        self.write(&text)
    }

    /// Ends the output.
    ///
    /// Errors: the output cannot be written.
    pub(super) fn end(&mut self) -> Result<()> {
        match self.format {
            Format::Json if self.n_rows == 0 => self.write("[]\n"),
            Format::Json => self.write("\n]\n"),
            Format::Md => self.write(&format!("\nbuild: {BUILD_COMMIT} ({BUILD_NUMBER})\n")),
            Format::Csv | Format::Jsonl | Format::Sql | Format::None => Ok(()),
        }
    }

    /// Text between tables of the markdown output.
    ///
    /// Errors: the output cannot be written. A reader that has gone away is no error, as with other tools.
    pub(super) fn write(&mut self, text: &str) -> Result<()> {
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush())
    }

    /// The format.
    pub(super) fn format(&self) -> Format {
        self.format
    }

    fn md(&self, row: &Row) -> String {
        let head = if self.n_rows == 0 { head(self.columns.iter().map(|c| c.head())) } else { String::new() };
        head + &line(self.columns.iter().map(|c| padded(&c.cell(row), c.head().1)))
    }

    fn flat(&self, row: &Row) -> Map<String, Value> {
        let mut fields = row.common();
        if self.extra {
            fields.extend(row.own());
        } else if self.columns.contains(&Column::Parallel) {
            fields.insert("n_parallel".into(), row.settings.test.n_parallel.into());
        }
        fields
    }

    fn csv(&self, row: &Row) -> String {
        let fields = self.flat(row);
        let head = if self.n_rows == 0 {
            format!("{}\n", fields.keys().cloned().collect::<Vec<_>>().join(","))
        } else {
            String::new()
        };
        let quoted = |v: &Value| format!("\"{}\"", plain(v).replace('"', "\"\""));
        format!("{head}{}\n", fields.values().map(quoted).collect::<Vec<_>>().join(","))
    }

    fn sql(&self, row: &Row) -> String {
        let fields = self.flat(row);
        let mut text = String::new();
        if self.n_rows == 0 {
            let column = |(name, value): (&String, &Value)| {
                let kind = match value {
                    Value::Number(n) if n.is_f64() => "REAL",
                    Value::Number(_) | Value::Bool(_) => "INTEGER",
                    _ => "TEXT",
                };
                format!("  {name} {kind}")
            };
            let columns: Vec<String> = fields.iter().map(column).collect();
            text += &format!("CREATE TABLE IF NOT EXISTS llama_bench (\n{}\n);\n\n", columns.join(",\n"));
        }
        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
        let values: Vec<String> = fields.values().map(|v| format!("'{}'", plain(v).replace('\'', "''"))).collect();
        text + &format!("INSERT INTO llama_bench ({}) VALUES ({});\n", names.join(", "), values.join(", "))
    }
}

/// A value without quotes, truth as a digit.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(truth) => u8::from(*truth).to_string(),
        Value::Number(n) if n.is_f64() => format!("{:.6}", n.as_f64().unwrap_or_default()),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
