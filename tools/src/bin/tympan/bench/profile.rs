//! `--profile`: where the time of a test goes, op by op.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::key::{GraphKey, Stage};
use engine::profile::Profile;
use serde_json::{Map, Value};

use super::json::object;
use super::markdown;

/// Heads and widths of the table; a negative width is that of a column to the left. The last column is as wide as it must be.
const COLUMNS: [(&str, i32); 6] =
    [("op", -20), ("count", 9), ("total ms", 11), ("ms/step", 9), ("%", 6), ("operands", -8)];
/// Operands with a smaller share of the time, in percent, have no line of their own in the table; json has them all.
const SHOWN_PERCENT: f64 = 0.1;

/// What a part of a test took, op by op.
#[derive(Clone, Debug)]
pub(super) struct Breakdown {
    /// The stage of a clip; empty where a test has only one.
    pub stage: &'static str,
    /// Calls of the session.
    steps: u64,
    /// Time of all calls, measured around them.
    step_ns: u64,
    /// The part of it in which graphs ran.
    run_ns: u64,
    /// Ops by falling time.
    ops: Vec<OpTime>,
}

/// All nodes of one op.
#[derive(Clone, Debug)]
struct OpTime {
    op: &'static str,
    total: Share,
    /// The same by operands, by falling time.
    operands: Vec<(String, Share)>,
}

/// Some nodes, in all steps.
#[derive(Clone, Copy, Default, Debug)]
struct Share {
    count: u64,
    ns: u64,
}

impl Share {
    fn add(&mut self, count: u64, ns: u64) {
        self.count += count;
        self.ns += ns;
    }
}

impl Breakdown {
    /// The times of the graphs whose key is `wanted`; `elapsed` is that of the calls, from the outside.
    pub(super) fn of(
        profile: &Profile,
        stage: &'static str,
        elapsed: Duration,
        wanted: impl Fn(&GraphKey) -> bool,
    ) -> Self {
        let (mut steps, mut run_ns) = (0, 0);
        let mut ops: BTreeMap<&str, (Share, BTreeMap<&str, Share>)> = BTreeMap::new();
        for (_, times) in profile.graphs().filter(|(key, _)| wanted(key)) {
            steps += times.runs();
            run_ns += times.run_ns();
            for node in times.nodes() {
                let (total, operands) = ops.entry(node.op).or_default();
                total.add(times.runs(), node.ns);
                operands.entry(node.operands).or_default().add(times.runs(), node.ns);
            }
        }
        let by_operands = |operands: BTreeMap<&str, Share>| {
            let mut all: Vec<(String, Share)> = operands.into_iter().map(|(text, s)| (text.to_owned(), s)).collect();
            all.sort_by_key(|(_, share)| std::cmp::Reverse(share.ns));
            all
        };
        let op = |(op, (total, operands))| OpTime { op, total, operands: by_operands(operands) };
        let mut ops: Vec<OpTime> = ops.into_iter().map(op).collect();
        ops.sort_by_key(|op| std::cmp::Reverse(op.total.ns));
        let step_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        Self { stage, steps, step_ns, run_ns, ops }
    }

    fn ops_ns(&self) -> u64 {
        self.ops.iter().map(|op| op.total.ns).sum()
    }

    fn percent(&self, ns: u64) -> f64 {
        100.0 * ns as f64 / self.step_ns.max(1) as f64
    }

    /// For json.
    pub(super) fn json(&self) -> Value {
        let share = |s: Share| {
            object([
                ("count", Value::from(s.count)),
                ("total_ns", Value::from(s.ns)),
                ("percent", Value::from(self.percent(s.ns))),
            ])
        };
        let operands = |(text, s): &(String, Share)| {
            let mut fields = object([("operands", Value::from(text.clone()))]);
            fields.extend(share(*s));
            Value::Object(fields)
        };
        let op = |op: &OpTime| {
            let mut fields = object([("op", Value::from(op.op))]);
            fields.extend(share(op.total));
            fields.insert("by_operands".into(), op.operands.iter().map(operands).collect());
            Value::Object(fields)
        };
        let mut fields = Map::new();
        if !self.stage.is_empty() {
            fields.insert("stage".into(), self.stage.into());
        }
        fields.extend(object([
            ("steps", Value::from(self.steps)),
            ("step_ns", Value::from(self.step_ns)),
            ("run_ns", Value::from(self.run_ns)),
            ("ops_ns", Value::from(self.ops_ns())),
            ("ops", self.ops.iter().map(op).collect()),
        ]));
        Value::Object(fields)
    }

    /// A markdown table. `unclocked_ms`: a step without clocks.
    pub(super) fn table(&self, unclocked_ms: f64) -> String {
        let per_step = self.step_ns as f64 / 1e6 / self.steps.max(1) as f64;
        let what = if self.steps == 1 { "step" } else { "steps" };
        let head =
            format!("{} {what} of {per_step:.3} ms with a clock at every op, {unclocked_ms:.3} ms without", self.steps);
        format!("{head}\n\n{}", markdown::table(&COLUMNS, &self.cells()))
    }

    fn cells(&self) -> Vec<[String; COLUMNS.len()]> {
        let ms = |ns: u64| ns as f64 / 1e6;
        let row = |name: &str, count: Option<u64>, ns: u64, operands: &str| {
            let count = count.map_or(String::new(), |n| n.to_string());
            let step = format!("{:.3}", ms(ns) / self.steps.max(1) as f64);
            [name.into(), count, format!("{:.3}", ms(ns)), step, format!("{:.1}", self.percent(ns)), operands.into()]
        };
        let mut rows = Vec::new();
        for op in &self.ops {
            let several = op.operands.len() > 1;
            let only = op.operands.first().filter(|_| !several).map_or("", |(text, _)| text);
            rows.push(row(op.op, Some(op.total.count), op.total.ns, only));
            let parts = op.operands.iter().filter(|(_, s)| several && self.percent(s.ns) >= SHOWN_PERCENT);
            rows.extend(parts.map(|(text, share)| row("", Some(share.count), share.ns, text)));
        }
        let ops_ns = self.ops_ns();
        rows.push(row("all ops", None, ops_ns, ""));
        rows.push(row("starting graphs", None, self.run_ns.saturating_sub(ops_ns), ""));
        rows.push(row("outside of graphs", None, self.step_ns.saturating_sub(self.run_ns), ""));
        rows.push(row("step", None, self.step_ns, ""));
        rows
    }

    /// Calls of the session.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }
}

/// The stage of a clip to which a graph belongs.
pub(super) fn stage_of(key: &GraphKey) -> &'static str {
    match key.stage {
        Stage::Encode => "encode",
        Stage::Embeddings => "prefill",
        Stage::Tokens => "decode",
    }
}
