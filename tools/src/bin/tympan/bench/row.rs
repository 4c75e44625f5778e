//! [`Row`]: one line of a benchmark, with the fields, order and types of llama-bench, and our own behind them.

use anyhow::anyhow;
use serde_json::{Map, Value};

use super::json::object;
use super::measure::Test;
use super::profile::Breakdown;
use super::statistics::{mean, percentile, stddev};
use super::timed::Timed;
use crate::exit::{Failure, Outcome};
use crate::report::cpu_name;

/// The commit that the program was built from.
pub(super) const BUILD_COMMIT: &str = env!("TYMPAN_BUILD_COMMIT");
/// The number of commits up to it.
pub(super) const BUILD_NUMBER: &str = env!("TYMPAN_BUILD_NUMBER");

/// A model as rows speak of it.
#[derive(Clone, Debug)]
pub(super) struct ModelFacts {
    /// What `-m` was given.
    pub filename: String,
    /// Architecture, size and format.
    pub kind: String,
    /// Bytes of all tensors of the language model.
    pub bytes: u64,
    /// Their elements.
    pub n_params: u64,
}

/// What rows record of flags that change nothing here, as llama-bench would.
#[derive(Clone, Debug)]
pub(super) struct Recorded {
    /// `-sm`.
    pub split_mode: String,
    /// `-dev`.
    pub devices: String,
    /// `-lm`.
    pub load_mode: String,
    /// `-lzm`.
    pub lazy_mode: String,
}

impl Default for Recorded {
    fn default() -> Self {
        Self { split_mode: "layer".into(), devices: "auto".into(), load_mode: "auto".into(), lazy_mode: "auto".into() }
    }
}

/// Settings of a row.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The model.
    pub model: ModelFacts,
    /// Backends, as users name them.
    pub backends: String,
    /// Most tokens of a batch.
    pub n_batch: usize,
    /// Most tokens of a piece of it.
    pub n_ubatch: usize,
    /// Threads.
    pub n_threads: usize,
    /// Format of keys, then of values.
    pub cache_types: [&'static str; 2],
    /// Layers on a GPU, as asked for.
    pub n_gpu_layers: i64,
    /// Whether fused attention was asked for: -1 as the program likes, 1 yes.
    pub flash_attn: i64,
    /// Whether compiled graphs are used again.
    pub graph_reuse: bool,
    /// Flags that change nothing.
    pub recorded: Recorded,
    /// What is measured.
    pub test: Test,
}

/// What was measured.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// How.
    pub settings: Settings,
    /// When the test began, UTC.
    pub test_time: String,
    /// Nanoseconds of every repetition.
    pub samples_ns: Vec<u64>,
    /// Nanoseconds of every call of all repetitions.
    pub steps_ns: Vec<u64>,
    /// Graphs built while the test ran, and used again.
    pub graphs: [u64; 2],
    /// Mean microseconds of a call outside of the compiled graph.
    pub host_us_per_step: f64,
    /// Bytes of states of fixed extent that a step read and wrote, in the mean.
    pub state_bytes_per_step: f64,
    /// Largest resident set so far, in bytes.
    pub peak_rss: Option<u64>,
    /// Where the time goes, where that was asked for.
    pub profile: Option<Breakdown>,
}

impl Row {
    /// Tokens per second of every repetition.
    pub(super) fn rates(&self) -> Vec<f64> {
        self.samples_ns.iter().map(|&ns| 1e9 * self.settings.test.n_tokens() as f64 / ns.max(1) as f64).collect()
    }

    /// Everything, for json.
    pub(super) fn fields(&self) -> Map<String, Value> {
        let mut fields = self.common();
        fields.extend(self.samples());
        fields.extend(self.own());
        fields.extend(self.profile());
        fields
    }

    /// The fields that llama-bench writes to every format.
    pub(super) fn common(&self) -> Map<String, Value> {
        let s = &self.settings;
        let ns: Vec<f64> = self.samples_ns.iter().map(|&ns| ns as f64).collect();
        let rates = self.rates();
        object([
            ("build_commit", Value::from(BUILD_COMMIT)),
            ("build_number", Value::from(BUILD_NUMBER.parse::<u64>().unwrap_or(0))),
            ("cpu_info", Value::from(cpu_name())),
            ("gpu_info", Value::from("")),
            ("backends", Value::from(s.backends.clone())),
            ("model_filename", Value::from(s.model.filename.clone())),
            ("model_type", Value::from(s.model.kind.clone())),
            ("model_size", Value::from(s.model.bytes)),
            ("model_n_params", Value::from(s.model.n_params)),
            ("n_batch", Value::from(s.n_batch)),
            ("n_ubatch", Value::from(s.n_ubatch)),
            ("n_threads", Value::from(s.n_threads)),
            ("cpu_mask", Value::from("0x0")),
            ("cpu_strict", Value::from(false)),
            ("poll", Value::from(50)),
            ("type_k", Value::from(s.cache_types[0])),
            ("type_v", Value::from(s.cache_types[1])),
            ("n_gpu_layers", Value::from(s.n_gpu_layers)),
            ("n_cpu_moe", Value::from(0)),
            ("split_mode", Value::from(s.recorded.split_mode.clone())),
            ("main_gpu", Value::from(0)),
            ("no_kv_offload", Value::from(false)),
            ("flash_attn", Value::from(s.flash_attn)),
            ("devices", Value::from(s.recorded.devices.clone())),
            ("tensor_split", Value::from("0.00")),
            ("tensor_buft_overrides", Value::from("none")),
            ("load_mode", Value::from(s.recorded.load_mode.clone())),
            ("lazy_mode", Value::from(s.recorded.lazy_mode.clone())),
            ("embeddings", Value::from(false)),
            ("no_op_offload", Value::from(0)),
            ("no_host", Value::from(false)),
            ("repack", Value::from(true)),
            ("fit_target", Value::from(0)),
            ("fit_min_ctx", Value::from(0)),
            ("n_prompt", Value::from(s.test.n_prompt)),
            ("n_gen", Value::from(s.test.n_gen)),
            ("n_depth", Value::from(s.test.n_depth)),
            ("test_time", Value::from(self.test_time.clone())),
            ("avg_ns", Value::from(mean(&ns).round() as u64)),
            ("stddev_ns", Value::from(stddev(&ns).round() as u64)),
            ("avg_ts", Value::from(mean(&rates))),
            ("stddev_ts", Value::from(stddev(&rates))),
        ])
    }

    /// The fields that only this program has.
    pub(super) fn own(&self) -> Map<String, Value> {
        let steps: Vec<f64> = self.steps_ns.iter().map(|&ns| ns as f64).collect();
        object([
            ("n_parallel", Value::from(self.settings.test.n_parallel)),
            ("graph_reuse", Value::from(if self.settings.graph_reuse { "on" } else { "off" })),
            ("graph_builds", Value::from(self.graphs[0])),
            ("graph_hits", Value::from(self.graphs[1])),
            ("host_us_per_step", Value::from(self.host_us_per_step)),
            ("state_bytes_per_step", Value::from(self.state_bytes_per_step)),
            ("peak_rss", Value::from(self.peak_rss)),
            ("p50_ns", Value::from(percentile(&steps, 0.5).round() as u64)),
            ("p95_ns", Value::from(percentile(&steps, 0.95).round() as u64)),
        ])
    }

    /// The row as comparisons see it.
    pub(super) fn timed(&self) -> Outcome<Timed> {
        Timed::read(&self.fields()).map_err(|e| Failure::output(anyhow!("{}: {e}", self.settings.test.full_name())))
    }

    /// Where the time goes, for json: nothing where it was not asked for.
    fn profile(&self) -> Map<String, Value> {
        self.profile.iter().map(|p| ("profile".to_owned(), p.json())).collect()
    }

    /// Where the time goes, as a table under a heading.
    pub(super) fn profile_table(&self) -> Option<String> {
        let profile = self.profile.as_ref()?;
        let s = &self.settings;
        let total: u64 = self.steps_ns.iter().sum();
        let unclocked_ms = total as f64 / 1e6 / self.steps_ns.len().max(1) as f64;
        let reuse = if s.graph_reuse { "" } else { ", without graph reuse" };
        let head =
            format!("{} on {}, {} threads{reuse}: {}", s.model.kind, s.backends, s.n_threads, s.test.full_name());
        Some(format!("\n{head}: {}", profile.table(unclocked_ms)))
    }

    /// The samples that llama-bench writes to json and jsonl.
    fn samples(&self) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("samples_ns".into(), self.samples_ns.clone().into());
        map.insert("samples_ts".into(), self.rates().into());
        map
    }
}
