//! Qwen3-Next and Qwen3.5: what the delta nets compute inside, states and experts included.

use convert::FileType;
use engine::backend::Backend;
use engine::memory::Slot;
use engine::session::Session;
use engine::state::Role;
use serde_json::Value;

use super::text::{Inside, check_inside};
use super::{Golden, compare, tap};
use crate::checkpoint::{converted, values};

/// A fixture, and what its numbers mean.
struct Fixture {
    gold: Golden,
    n_key: usize,
    n_value: usize,
    head_dim: usize,
    n_layer: usize,
    has_experts: bool,
    is_recurrent: Vec<bool>,
    /// Whether files have value heads in another order than the checkpoint.
    is_tiled: bool,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let gold = Golden::open(name);
        let config: Value = serde_json::from_slice(&std::fs::read(gold.dir.join("config.json")).unwrap()).unwrap();
        let text = config.get("text_config").unwrap_or(&config);
        let number = |key: &str| usize::try_from(text[key].as_u64().unwrap()).unwrap();
        let (n_layer, interval) = (number("num_hidden_layers"), number("full_attention_interval"));
        Self {
            n_key: number("linear_num_key_heads"),
            n_value: number("linear_num_value_heads"),
            head_dim: number("linear_key_head_dim"),
            n_layer,
            has_experts: text.get("num_experts").is_some(),
            is_recurrent: (1..=n_layer).map(|i| !i.is_multiple_of(interval)).collect(),
            is_tiled: name != "qwen3_next",
            gold,
        }
    }

    fn recurrent_layers(&self) -> impl Iterator<Item = usize> {
        (0..self.n_layer).filter(|&i| self.is_recurrent[i])
    }

    /// Rows of value heads with `n` elements each, in the order of the checkpoint.
    fn published(&self, x: &[f32], n: usize) -> Vec<f32> {
        let group = self.n_value / self.n_key;
        let stored = |j: usize| if self.is_tiled { j % group * self.n_key + j / group } else { j };
        let rows = x.chunks_exact(self.n_value * n);
        rows.flat_map(|row| (0..self.n_value).flat_map(move |j| &row[stored(j) * n..][..n])).copied().collect()
    }

    /// Taps and states. Rows of padding behind those of the prompt are passed over.
    fn compare(&self, theirs: &str, backend: &dyn Backend, got: &[f32]) {
        let want = self.gold.expected(theirs);
        compare(theirs, backend, &got[..want.values.len()], &want);
    }

    /// The inside of a delta net: queries and keys before they are normed, logarithms of the decay.
    fn compare_delta(&self, backend: &dyn Backend, i: usize, ours: &dyn Fn(&str) -> Vec<f32>) {
        let theirs = |part: &str| format!("tap.layer.{i}.delta.{part}");
        let keys = self.n_key * self.head_dim;
        let channels = 2 * keys + self.n_value * self.head_dim;
        let qkv = ours("delta.qkv");
        let part = |from: usize, to: usize| -> Vec<f32> {
            qkv.chunks_exact(channels).flat_map(|row| &row[from..to]).copied().collect()
        };
        self.compare(&theirs("q"), backend, &part(0, keys));
        self.compare(&theirs("k"), backend, &part(keys, 2 * keys));
        self.compare(&theirs("v"), backend, &self.published(&part(2 * keys, channels), self.head_dim));
        for name in ["core", "gated"] {
            self.compare(&theirs(name), backend, &self.published(&ours(&format!("delta.{name}")), self.head_dim));
        }
        let (a, b) = if self.is_tiled { (ours("delta.a"), ours("delta.b")) } else { self.unpacked(&ours("delta.ba")) };
        let file = converted(&self.gold.dir, FileType::F32);
        let weight = |name: &str| {
            let tensor = file.tensor(&format!("blk.{i}.{name}")).unwrap();
            values(tensor.dtype, tensor.bytes)
        };
        let (rate, bias) = (weight("ssm_a"), weight("ssm_dt.bias"));
        let beta: Vec<f32> = b.iter().map(|&b| (1.0 / (1.0 + (-f64::from(b)).exp())) as f32).collect();
        let decay = a.iter().enumerate().map(|(at, &a)| {
            let j = at % self.n_value;
            (f64::from(rate[j]) * (f64::from(a) + f64::from(bias[j])).exp().ln_1p()) as f32
        });
        self.compare(&theirs("beta"), backend, &self.published(&beta, 1));
        self.compare(&theirs("decay"), backend, &self.published(&decay.collect::<Vec<_>>(), 1));
    }

    /// Steps and strengths from rows that are packed by key head, strengths first.
    fn unpacked(&self, ba: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let group = self.n_value / self.n_key;
        let pairs = ba.chunks_exact(2 * group);
        (pairs.clone().flat_map(|p| &p[group..]).copied().collect(), pairs.flat_map(|p| &p[..group]).copied().collect())
    }
}

impl Inside for Fixture {
    fn gold(&self) -> &Golden {
        &self.gold
    }

    fn taps(&self) -> Vec<String> {
        let mut taps = vec!["embed".to_owned(), "norm".to_owned()];
        for i in 0..self.n_layer {
            let mut parts = vec!["out", "mixer", "ffn"];
            if self.has_experts {
                let of_experts = ["router.logits", "router.weights", "router.experts", "moe", "shared_expert"];
                parts.extend(of_experts);
                parts.push("shared_gate");
            }
            if self.is_recurrent[i] {
                parts.extend(["delta.qkv", "delta.core", "delta.gated"]);
                parts.extend(if self.is_tiled { &["delta.a", "delta.b"][..] } else { &["delta.ba"] });
            }
            taps.extend(parts.iter().map(|part| format!("blk.{i}.{part}")));
        }
        taps
    }

    fn compare_taps(&self, backend: &dyn Backend, s: &Session) {
        self.compare("tap.embed", backend, &tap(s, "embed"));
        self.compare("tap.norm", backend, &tap(s, "norm"));
        for i in 0..self.n_layer {
            let ours = |part: &str| tap(s, &format!("blk.{i}.{part}"));
            let theirs = |part: &str| format!("tap.layer.{i}.{part}");
            self.compare(&format!("tap.layer.{i}"), backend, &ours("out"));
            let mut plain = vec!["mixer", "ffn"];
            if self.has_experts {
                plain.extend(["router.logits", "router.weights", "moe", "shared_expert", "shared_gate"]);
                let experts: Vec<i32> = ours("router.experts").iter().map(|&e| e as i32).collect();
                let want = self.gold.ids(&theirs("router.experts"));
                assert_eq!(experts[..want.len()], want, "{}", backend.name());
            }
            for part in plain {
                self.compare(&theirs(part), backend, &ours(part));
            }
            if self.is_recurrent[i] {
                self.compare_delta(backend, i, &ours);
            }
        }
    }

    fn compare_states(&self, backend: &dyn Backend, s: &Session, slot: Slot, prefix: &str) -> Vec<f32> {
        let state = |layer: usize, role: Role| -> Vec<f32> {
            let specs = s.memory().specs();
            let at = specs.iter().position(|spec| spec.layer as usize == layer && spec.role == role).unwrap();
            let bytes = s.memory().read_state(slot, at).unwrap();
            bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let mut all = Vec::new();
        for i in self.recurrent_layers() {
            let (conv, ssm) = (state(i, Role::Conv), state(i, Role::Ssm));
            self.compare(
                &format!("{prefix}.layer.{i}.ssm"),
                backend,
                &self.published(&ssm, self.head_dim * self.head_dim),
            );
            // [d_conv - 1, channels], of which those of values are in heads.
            let keys = 2 * self.n_key * self.head_dim;
            let channels = keys + self.n_value * self.head_dim;
            let rows: Vec<Vec<f32>> = conv
                .chunks_exact(channels)
                .map(|row| [&row[..keys], &self.published(&row[keys..], self.head_dim)].concat())
                .collect();
            let by_channel: Vec<f32> = (0..channels).flat_map(|c| rows.iter().map(move |row| row[c])).collect();
            self.compare(&format!("{prefix}.layer.{i}.conv"), backend, &by_channel);
            all.extend(conv);
            all.extend(ssm);
        }
        all
    }
}

#[test]
fn qwen3_next_matches_transformers() {
    check_inside(&Fixture::open("qwen3_next"));
}

#[test]
fn qwen3_5_matches_transformers() {
    check_inside(&Fixture::open("qwen3_5"));
}

#[test]
fn qwen3_5_moe_matches_transformers() {
    check_inside(&Fixture::open("qwen3_5_moe"));
}
