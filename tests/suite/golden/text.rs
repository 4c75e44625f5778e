//! Language models: every value that a fixture has, the prompt in one piece and in several.

use engine::backend::Backend;
use engine::batch::Tokens;
use engine::memory::Slot;
use engine::session::Session;
use engine::state::Role;
use models::qwen3_asr::AudioAttention;

use super::{Golden, all_logits, backends, compare, decode, tap};

/// Our name of a fixture's tap. What Granite calls its shared block is the feed-forward block where there are no experts.
fn ours(theirs: &str, has_experts: bool) -> String {
    let name = theirs.strip_prefix("tap.").unwrap();
    match name.strip_prefix("layer.").map(|rest| rest.split_once('.').unwrap_or((rest, "out"))) {
        Some((layer, "shared")) => format!("blk.{layer}.{}", if has_experts { "shared_expert" } else { "ffn" }),
        Some((layer, part)) => format!("blk.{layer}.{part}"),
        None => name.to_owned(),
    }
}

/// A state of fixed extent in the order of the fixtures: `[channels, d_conv - 1]` of a convolution, and with the elements of a
/// channel side by side of a scan.
pub(super) fn fixed_state(s: &Session, slot: Slot, layer: u32, role: Role) -> Vec<f32> {
    let specs = s.memory().specs();
    let at = specs.iter().position(|spec| spec.layer == layer && spec.role == role).unwrap();
    // [.., rows, columns] as [.., columns, rows].
    let shape = specs[at].shape;
    let (columns, rows) = (shape.last(), shape.dim(shape.rank() - 2));
    let bytes = s.memory().read_state(slot, at).unwrap();
    let values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let matrices = values.chunks_exact(rows * columns);
    matrices.flat_map(|m| (0..columns * rows).map(|i| m[i % rows * columns + i / rows])).collect()
}

/// What a model computes inside and remembers, beside what its fixture has of it.
pub(super) trait Inside {
    /// The fixture.
    fn gold(&self) -> &Golden;

    /// Our taps.
    fn taps(&self) -> Vec<String>;

    /// Compares the taps of a session that was fed with the prompt, chosen experts among them.
    fn compare_taps(&self, backend: &dyn Backend, s: &Session);

    /// Compares the states that the fixture has under `prefix`; returns them.
    fn compare_states(&self, backend: &dyn Backend, s: &Session, slot: Slot, prefix: &str) -> Vec<f32>;
}

/// A model whose taps are those of the fixture, under other names.
struct Plain {
    gold: Golden,
    has_experts: bool,
}

impl Plain {
    fn open(name: &str) -> Self {
        let gold = Golden::open(name);
        let has_experts = gold.names().any(|name| name.starts_with("tap.") && name.ends_with(".moe"));
        Self { gold, has_experts }
    }

    fn theirs(&self) -> impl Iterator<Item = &str> {
        self.gold.names().filter(|name| name.starts_with("tap."))
    }
}

impl Inside for Plain {
    fn gold(&self) -> &Golden {
        &self.gold
    }

    fn taps(&self) -> Vec<String> {
        self.theirs().map(|name| ours(name, self.has_experts)).collect()
    }

    fn compare_taps(&self, backend: &dyn Backend, s: &Session) {
        for theirs in self.theirs() {
            let got = tap(s, &ours(theirs, self.has_experts));
            if theirs.ends_with(".router.experts") {
                let experts: Vec<i32> = got.iter().map(|&e| e as i32).collect();
                assert_eq!(experts, self.gold.ids(theirs), "{theirs} on {}", backend.name());
            } else {
                compare(theirs, backend, &got, &self.gold.expected(theirs));
            }
        }
    }

    fn compare_states(&self, backend: &dyn Backend, s: &Session, slot: Slot, prefix: &str) -> Vec<f32> {
        let mut all = Vec::new();
        for name in self.gold.names().filter(|name| name.starts_with(prefix)) {
            let [.., layer, kind] = name.split('.').collect::<Vec<_>>()[..] else { panic!("{name}") };
            let role = if kind == "conv" { Role::Conv } else { Role::Ssm };
            let state = fixed_state(s, slot, layer.parse().unwrap(), role);
            compare(name, backend, &state, &self.gold.expected(name));
            all.extend(state);
        }
        all
    }
}

/// Taps, logits, states, chosen experts and continuation. On `reference` it makes no difference to any bit where the prompt is
/// cut.
pub(super) fn check_inside(inside: &impl Inside) {
    let gold = inside.gold();
    let prompt: Vec<u32> = gold.ids("prompt.ids").iter().map(|id| id.cast_unsigned()).collect();
    let taps = inside.taps();
    let taps: Vec<&str> = taps.iter().map(String::as_str).collect();
    for backend in backends() {
        let mut whole = Vec::new();
        for ends in [&[prompt.len()][..], &[1, 8, prompt.len()], &[7, 14, 21, prompt.len()]] {
            let is_whole = ends.len() == 1;
            let mut s = gold.session(&backend, AudioAttention::Windowed, if is_whole { &taps } else { &[] });
            let slot = s.memory_mut().acquire().unwrap();
            let (mut logits, mut start) = (Vec::new(), 0);
            for &end in ends {
                logits.extend(all_logits(&mut s, slot, Tokens::Ids(&prompt[start..end])));
                start = end;
            }
            if is_whole {
                inside.compare_taps(&*backend, &s);
            }
            compare("prompt.logits", &*backend, &logits, &gold.expected("prompt.logits"));
            let states = inside.compare_states(&*backend, &s, slot, "state.prompt");
            if backend.name() == "reference" {
                let bits: Vec<u32> = logits.iter().chain(&states).map(|v| v.to_bits()).collect();
                if is_whole {
                    whole = bits;
                } else {
                    assert!(bits == whole, "{}: other bits for a prompt cut at {ends:?}", gold.dir.display());
                }
            }
            let n_vocab = s.model().n_vocab();
            let (ids, rows) = decode(&mut s, slot, &logits[logits.len() - n_vocab..], 16);
            assert_eq!(ids, gold.ids("decode.ids"), "{}", backend.name());
            compare("decode.logits", &*backend, &rows, &gold.expected("decode.logits"));
            inside.compare_states(&*backend, &s, slot, "state.decode");
        }
    }
}

fn check(name: &str) {
    check_inside(&Plain::open(name));
}

#[test]
fn lfm2_matches_transformers() {
    check("lfm2");
}

#[test]
fn lfm2_moe_matches_transformers() {
    check("lfm2_moe");
}

#[test]
fn llama_matches_transformers() {
    check("llama");
}

/// With scaled frequencies, and biases of attention.
#[test]
fn llama3_matches_transformers() {
    check("llama3");
}

#[test]
fn qwen3_matches_transformers() {
    check("qwen3");
}

#[test]
fn mamba_matches_transformers() {
    check("mamba");
}

#[test]
fn mamba2_matches_transformers() {
    check("mamba2");
}

#[test]
fn jamba_matches_transformers() {
    check("jamba");
}

#[test]
fn granite_hybrid_matches_transformers() {
    check("granitemoehybrid");
}

#[test]
fn granite_hybrid_with_experts_matches_transformers() {
    check("granitemoehybrid_moe");
}
