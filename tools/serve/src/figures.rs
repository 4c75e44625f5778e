//! [`Figures`]: what the server has done so far, and what it does now, for `/metrics` and `/slots`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::session::Stats;
use engine::stats::BuildReason;
use models::draft::Statistics;
use models::scheduler::{CheckpointCounts, Shared};
use serde_json::{Value, json};

use crate::work::CacheFigures;

/// Bounds of the classes of [`Figures::host_seconds`], in seconds.
const HOST_BOUNDS_S: [f64; 5] = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1];

/// What a slot does and has.
#[derive(Clone, PartialEq, Default, Debug)]
pub(crate) struct SlotView {
    /// The request that is worked on.
    pub work: Option<WorkView>,
    /// How its prompt began, or that of the one before, where it was a text.
    pub begun: Option<Begun>,
    /// Tokens of the sequence that it keeps, while nothing is worked on.
    pub n_kept: usize,
    /// To where prompts that begin as that did can be taken up, beside its end.
    pub checkpoints: Vec<usize>,
}

/// A request that is worked on.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct WorkView {
    /// The request's number.
    pub job: u64,
    /// Whether audio is encoded, a prompt read, or an answer decoded.
    pub state: &'static str,
    /// Tokens of prompts.
    pub n_prompt: usize,
    /// Tokens of answers.
    pub n_generated: usize,
    /// When the request came.
    pub since: Duration,
}

/// How a prompt began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Begun {
    /// Its tokens.
    pub n_prompt: usize,
    /// What its slot had of it.
    pub shared: Shared,
    /// Whether that was to be used.
    pub reuses: bool,
}

impl Begun {
    /// Why as many tokens were used again as were.
    fn why(&self) -> String {
        let Shared { n_common, n_reused, by_checkpoint } = self.shared;
        match (self.reuses, n_common, n_reused) {
            (false, ..) => "cache_prompt is off".into(),
            (true, 0, _) => "the slot had nothing of it".into(),
            (true, _, 0) => {
                format!("the prompt parts from the slot's at token {n_common}, and no checkpoint lies before that")
            }
            _ if by_checkpoint && n_reused < n_common => {
                format!("the prompt parts from the slot's at token {n_common}; the checkpoint before that was used")
            }
            _ if by_checkpoint => "it goes on at a checkpoint".into(),
            _ => "it goes on where the slot's sequence is the same".into(),
        }
    }
}

/// Sums and states.
#[derive(Clone, Default, Debug)]
pub(crate) struct Numbers {
    pub prompt_tokens: u64,
    pub prompt_seconds: f64,
    pub predicted_tokens: u64,
    pub predicted_seconds: f64,
    /// Calls of the decoder, and sequences in them together.
    pub n_decode: u64,
    pub n_busy: u64,
    pub n_encode: u64,
    pub n_tokens_max: u64,
    /// What came of all drafts.
    pub drafts: Statistics,
    /// Tokens of drafts that were right, by their place in the draft.
    pub accepted_at: Vec<u64>,
    pub audio_seconds: f64,
    pub encode_seconds: f64,
    pub audio_cache: CacheFigures,
    pub processing: usize,
    pub deferred: usize,
    /// Calls of the decoder by the time besides the graph.
    pub host: [u64; HOST_BOUNDS_S.len() + 1],
    pub host_seconds: f64,
    pub stats: Stats,
    /// Tokens of prompts that were in memory already.
    pub reused_tokens: u64,
    pub checkpoints: CheckpointCounts,
    pub checkpoint_bytes: usize,
    /// One per slot.
    pub slots: Vec<SlotView>,
    /// Requests by endpoint and status.
    pub requests: BTreeMap<(&'static str, u16), u64>,
}

/// [`Numbers`] that threads share.
#[derive(Default)]
pub(crate) struct Figures(Mutex<Numbers>);

impl Figures {
    /// The numbers, to read or to change.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Numbers {
    /// Counts the time of a call besides its graph.
    pub(crate) fn count_host(&mut self, seconds: f64) {
        let class = HOST_BOUNDS_S.iter().position(|&bound| seconds <= bound).unwrap_or(HOST_BOUNDS_S.len());
        self.host[class] += 1;
        self.host_seconds += seconds;
    }

    /// Counts a draft of which the first `n_accepted` tokens were right.
    pub(crate) fn count_accepted(&mut self, n_accepted: usize) {
        if n_accepted > self.accepted_at.len() {
            self.accepted_at.resize(n_accepted, 0);
        }
        self.accepted_at[..n_accepted].iter_mut().for_each(|n| *n += 1);
    }

    /// Text for Prometheus. Source: Prometheus, "Exposition formats", text format 0.0.4; names as those of llama.cpp's server,
    /// under a prefix of ours.
    pub(crate) fn metrics(&self) -> String {
        let mut out = String::new();
        let mut one = |kind: &str, name: &str, help: &str, value: f64| {
            // Strings take everything.
            let _ = write!(out, "# HELP tympan:{name} {help}\n# TYPE tympan:{name} {kind}\ntympan:{name} {value}\n");
        };
        for (name, help, value) in [
            ("prompt_tokens_total", "Tokens of prompts that were read", self.prompt_tokens as f64),
            ("prompt_seconds_total", "Seconds in which prompts were read", self.prompt_seconds),
            ("tokens_predicted_total", "Tokens that were generated", self.predicted_tokens as f64),
            ("tokens_predicted_seconds_total", "Seconds in which tokens were generated", self.predicted_seconds),
            ("n_decode_total", "Calls of the decoder", self.n_decode as f64),
            ("n_busy_slots_total", "Sequences in all calls of the decoder together", self.n_busy as f64),
            ("prompt_tokens_reused_total", "Tokens of prompts that were in memory already", self.reused_tokens as f64),
            ("ckpt_created_total", "Checkpoints of prompts that were made", self.checkpoints.made as f64),
            ("ckpt_restored_total", "Checkpoints of prompts that were used", self.checkpoints.restored as f64),
            ("ckpt_evicted_total", "Checkpoints of prompts that made room for others", self.checkpoints.evicted as f64),
            ("spec_decode_num_drafts_total", "Drafts that were verified", self.drafts.drafts as f64),
            ("spec_decode_num_draft_tokens_total", "Tokens of drafts that were verified", self.drafts.verified as f64),
            ("spec_decode_num_accepted_tokens_total", "Tokens of drafts that were right", self.drafts.accepted as f64),
            (
                "spec_decode_num_missed_tokens_total",
                "Tokens that would have been accepted had drafts proposed them",
                self.drafts.missed as f64,
            ),
            ("n_encode_total", "Calls of the audio encoder", self.n_encode as f64),
            ("audio_seconds_total", "Seconds of audio that were transcribed", self.audio_seconds),
            ("encode_seconds_total", "Seconds in which audio was encoded", self.encode_seconds),
            ("audio_cache_hits_total", "Clips whose vectors were kept from before", self.audio_cache.hits as f64),
            ("audio_cache_misses_total", "Clips whose vectors were not", self.audio_cache.misses as f64),
            ("graph_plan_hits_total", "Calls that used a compiled graph again", self.stats.hits as f64),
        ] {
            one("counter", name, help, value);
        }
        for (name, help, value) in [
            ("n_tokens_max", "Longest sequence so far", self.n_tokens_max as f64),
            ("requests_processing", "Requests that have a slot", self.processing as f64),
            ("ckpt_bytes", "Bytes of checkpoints of prompts", self.checkpoint_bytes as f64),
            ("requests_deferred", "Requests that wait for a slot", self.deferred as f64),
            ("audio_cache_bytes", "Bytes of the vectors of clips that are kept", self.audio_cache.bytes as f64),
            ("state_bytes", "Bytes of memory that sequences have", self.stats.state_bytes as f64),
            ("arena_bytes", "Bytes of memory that calls compute in", self.stats.arena_bytes as f64),
        ] {
            one("gauge", name, help, value);
        }
        let mut family = |kind: &str, name: &str, help: &str, lines: &[(String, f64)]| {
            let _ = write!(out, "# HELP tympan:{name} {help}\n# TYPE tympan:{name} {kind}\n");
            for (labels, value) in lines {
                let _ = writeln!(out, "tympan:{name}{labels} {value}");
            }
        };
        let misses: Vec<_> = BuildReason::ALL
            .into_iter()
            .map(|reason| (format!("{{reason=\"{}\"}}", reason.name()), self.stats.builds_for(reason) as f64))
            .collect();
        family("counter", "graph_plan_misses_total", "Graphs that were built", &misses);
        let accepted_at = self.accepted_at.iter().enumerate();
        let accepted_at: Vec<_> = accepted_at.map(|(i, n)| (format!("{{position=\"{i}\"}}"), *n as f64)).collect();
        let name = "spec_decode_num_accepted_tokens_per_pos_total";
        family("counter", name, "Tokens of drafts that were right, by their place in the draft", &accepted_at);
        let requests: Vec<_> = self
            .requests
            .iter()
            .map(|((path, status), n)| (format!("{{path=\"{path}\",status=\"{status}\"}}"), *n as f64))
            .collect();
        family("counter", "requests_total", "Requests that were answered", &requests);
        let mut sum = 0;
        let bounds = HOST_BOUNDS_S.iter().map(ToString::to_string).chain(["+Inf".into()]);
        let mut host: Vec<_> = bounds
            .zip(self.host)
            .map(|(bound, n)| {
                sum += n;
                (format!("_bucket{{le=\"{bound}\"}}"), sum as f64)
            })
            .collect();
        host.extend([("_sum".into(), self.host_seconds), ("_count".into(), sum as f64)]);
        family("histogram", "host_overhead_seconds", "Seconds of a call besides its graph", &host);
        out
    }

    /// What the slots do and keep, without anything that was said.
    pub(crate) fn slots(&self, now: Duration, n_ctx: usize) -> Value {
        let slots = self.slots.iter().enumerate().map(|(id, slot)| {
            let SlotView { work, begun, n_kept, checkpoints } = slot;
            let mut shown = json!({
                "id": id, "n_ctx": n_ctx, "is_processing": work.is_some(), "n_kept": n_kept, "checkpoints": checkpoints,
            });
            if let Some(begun) = begun {
                let Shared { n_common, n_reused, .. } = begun.shared;
                shown["prompt"] = json!({
                    "n_tokens": begun.n_prompt, "n_common": n_common, "n_reused": n_reused, "why": begun.why(),
                });
            }
            if let Some(work) = work {
                shown["id_task"] = json!(work.job);
                shown["state"] = json!(work.state);
                shown["n_prompt_tokens"] = json!(work.n_prompt);
                shown["n_decoded"] = json!(work.n_generated);
                shown["t_ms"] = json!(now.saturating_sub(work.since).as_millis() as u64);
            }
            shown
        });
        slots.collect()
    }
}
