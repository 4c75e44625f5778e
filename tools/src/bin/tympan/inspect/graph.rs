//! [`Call`]: the shape of a call as users write it; and the graph of one as text.

use std::fmt;
use std::sync::Arc;

use engine::backend::Backend;
use engine::key::{GraphKey, Stage};
use engine::planned::Planned;
use engine::session::{MAX_CONTEXT, Session};
use engine::state::Role;
use engine::tensor::{Source, TensorId};
use engine::weights::WeightStore;

use super::listing::table;

/// Most sequences of a call: each has a slot of its own in the session that is opened to describe it.
const MAX_SEQS: u32 = 64;
/// Most frames of a call: an hour.
const MAX_FRAMES: u32 = 360_000;
/// Positions of a slot, unless the call has more tokens.
const CONTEXT: usize = 1024;

/// The shape of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Call {
    /// `step:T[:S]`; `decode:S` is one of one token.
    Step {
        /// Tokens per sequence.
        n_tokens: u32,
        /// Sequences.
        n_seqs: u32,
    },
    /// `prompt:T`.
    Prompt {
        /// Tokens and audio embeddings.
        n_tokens: u32,
    },
    /// `encode:FRAMES`.
    Encode {
        /// Frames of features.
        n_frames: u32,
    },
}

impl Call {
    /// Reads what users write.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let want = "want decode:SEQUENCES, step:TOKENS[:SEQUENCES], prompt:TOKENS or encode:FRAMES";
        let number = |text: &str, max: u32| {
            let n = text.parse::<u32>().ok().filter(|n| (1..=max).contains(n));
            n.ok_or_else(|| format!("{text:?}: want a number from 1 to {max}"))
        };
        let max_tokens = u32::try_from(MAX_CONTEXT).unwrap_or(u32::MAX);
        match text.split(':').collect::<Vec<_>>()[..] {
            ["decode"] => Ok(Self::Step { n_tokens: 1, n_seqs: 1 }),
            ["decode", seqs] => Ok(Self::Step { n_tokens: 1, n_seqs: number(seqs, MAX_SEQS)? }),
            ["step", tokens] => Ok(Self::Step { n_tokens: number(tokens, max_tokens)?, n_seqs: 1 }),
            ["step", tokens, seqs] => {
                Ok(Self::Step { n_tokens: number(tokens, max_tokens)?, n_seqs: number(seqs, MAX_SEQS)? })
            }
            ["prompt", tokens] => Ok(Self::Prompt { n_tokens: number(tokens, max_tokens)? }),
            ["encode", frames] => Ok(Self::Encode { n_frames: number(frames, MAX_FRAMES)? }),
            _ => Err(want.into()),
        }
    }

    /// Whether only a model with an audio encoder has it.
    pub(super) fn needs_audio(self) -> bool {
        matches!(self, Self::Encode { .. })
    }

    /// Slots that a session must have for it.
    pub(super) fn n_slots(self) -> usize {
        match self {
            Self::Step { n_seqs, .. } => n_seqs as usize,
            Self::Prompt { .. } | Self::Encode { .. } => 1,
        }
    }

    /// Positions that a slot must have for it.
    pub(super) fn n_ctx(self) -> usize {
        match self {
            Self::Step { n_tokens, .. } | Self::Prompt { n_tokens } => CONTEXT.max(n_tokens as usize),
            Self::Encode { .. } => CONTEXT,
        }
    }

    /// The key under which a session keeps its graph: sizes rounded up as the session does.
    ///
    /// Errors: the audio encoder of a model that has none.
    pub(super) fn key(self, session: &Session) -> Result<GraphKey, String> {
        let key = match self {
            Self::Step { n_tokens, n_seqs } => {
                let n_seqs = n_seqs as usize;
                session.key_of(Stage::Tokens, (n_tokens as usize).saturating_mul(n_seqs), n_seqs)
            }
            Self::Prompt { n_tokens } => session.key_of(Stage::Embeddings, n_tokens as usize, 1),
            Self::Encode { n_frames } => {
                let encoder = session.model().encoder().ok_or("the model has no audio encoder")?;
                session.key_of_clips(&encoder, 1, n_frames as usize)
            }
        };
        key.map_err(|e| e.to_string())
    }

    /// The call for people. `key` is its key.
    pub(super) fn words(self, key: &GraphKey) -> String {
        let n = |n: u32, what: &str| if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") };
        let step = |n_seqs, n_tokens, of| {
            let (seqs, tokens) = (n(n_seqs, "sequence"), n(n_tokens, of));
            let context = n(key.n_kv, "position");
            format!("{seqs} of {tokens} in {}, context of {context}, logits of the last one", n(key.n_tokens, "row"))
        };
        match self {
            Self::Step { n_tokens, n_seqs } => step(n_seqs, n_tokens, "token"),
            Self::Prompt { n_tokens } => step(1, n_tokens, "token or embedding"),
            Self::Encode { .. } => format!("audio encoder, {}", n(key.n_tokens, "frame")),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step { n_tokens: 1, n_seqs } => write!(f, "decode:{n_seqs}"),
            Self::Step { n_tokens, n_seqs: 1 } => write!(f, "step:{n_tokens}"),
            Self::Step { n_tokens, n_seqs } => write!(f, "step:{n_tokens}:{n_seqs}"),
            Self::Prompt { n_tokens } => write!(f, "prompt:{n_tokens}"),
            Self::Encode { n_frames } => write!(f, "encode:{n_frames}"),
        }
    }
}

/// A described call, and what its parts are called.
pub(super) struct Shown<'a> {
    /// Graph, plan, backends.
    pub planned: &'a Planned,
    /// The session that described it.
    pub session: &'a Session,
    /// Names of weights.
    pub weights: &'a WeightStore,
    /// The session's backends.
    pub backends: &'a [Arc<dyn Backend>],
}

impl Shown<'_> {
    /// The graph, one node a line.
    pub(super) fn text(&self) -> String {
        let graph = &self.planned.graph();
        let fused: Vec<String> = self.planned.fused().iter().map(|(rule, n)| format!("{rule} {n}")).collect();
        let fused = if fused.is_empty() { "nothing".to_owned() } else { fused.join(", ") };
        let inputs: Vec<String> = graph.inputs().iter().map(|&(_, id)| self.tensor(id)).collect();
        let outputs: Vec<String> = graph.outputs.iter().map(|&id| self.tensor(id)).collect();
        let mut text = format!("{} nodes; fused: {fused}\n", graph.nodes.len());
        text += &format!("inputs: {}\noutputs: {}\n\n", inputs.join(", "), outputs.join(", "));
        let row = |(id, node): (engine::tensor::NodeId, &engine::graph::Node)| {
            let list = |ids: &[TensorId]| ids.iter().map(|&id| self.tensor(id)).collect::<Vec<_>>().join(", ");
            let name = graph.names.iter().find(|(_, t)| node.outs.contains(t));
            let op = node.op.spec().name;
            let op = format!("{op}{}", parameters(op, &format!("{:?}", node.op)));
            let backend = self.backend(id.index());
            vec![
                id.index().to_string(),
                backend,
                list(&node.outs),
                op,
                list(&node.args),
                name.map_or(String::new(), |(name, _)| name.to_string()),
            ]
        };
        let rows: Vec<Vec<String>> = graph.walk().map(row).collect();
        text += &table(&["node", "backend", "results", "op", "operands", "name"], &rows, &[0]);
        text.push('\n');
        text
    }

    /// The backend of a node.
    pub(super) fn backend(&self, node: usize) -> String {
        let cut = self.planned.cuts().iter().find(|cut| cut.nodes.contains(&node));
        cut.and_then(|cut| self.backends.get(cut.backend)).map_or(String::new(), |b| b.name().to_owned())
    }

    /// Name, format and shape of a tensor.
    pub(super) fn tensor(&self, id: TensorId) -> String {
        let t = self.planned.graph().tensor(id);
        let name = match t.source {
            Source::View { of, offset } => format!("{} from {offset}", self.name(of)),
            Source::Weight(_) | Source::State(_) | Source::Input(_) | Source::Node(..) => self.name(id),
        };
        format!("{name} {}{}", t.dtype, t.shape)
    }

    fn name(&self, id: TensorId) -> String {
        match self.planned.graph().tensor(id).source {
            Source::Weight(w) => self.weights.desc(w).name.clone(),
            Source::State(s) => {
                let spec = self.session.memory().specs().get(s.index());
                spec.map_or_else(String::new, |spec| format!("{} of layer {}", role(spec.role), spec.layer))
            }
            Source::Input(input) => format!("{input:?}").to_lowercase(),
            Source::Node(..) | Source::View { .. } => format!("t{}", id.index()),
        }
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Key => "keys",
        Role::Value => "values",
        Role::Conv => "inputs",
        Role::Ssm => "state",
        Role::Pending => "pending",
    }
}

/// What an op's debug text says besides its name, without switches that are off.
fn parameters(op: &str, debug: &str) -> String {
    let inner = debug.find(['(', '{', ' ']).map_or("", |at| debug[at..].trim());
    let inner = inner.strip_prefix('(').and_then(|s| s.strip_suffix(')')).unwrap_or(inner);
    // Parameters that are a type of their own are named as the op is.
    let inner = inner.find(" {").map_or(inner, |at| &inner[at + 1..]);
    let inner = inner.strip_prefix('{').and_then(|s| s.strip_suffix('}')).unwrap_or(inner).trim();
    let is_off = |part: &str| [": false", ": None", ": Fast"].iter().any(|off| part.ends_with(off));
    let says = |part: &&str| !is_off(part) && !part.eq_ignore_ascii_case(op);
    let parts: Vec<&str> = inner.split(", ").filter(says).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_and_written_alike() {
        for text in ["decode:1", "decode:4", "step:8", "step:8:2", "prompt:150", "encode:1100"] {
            assert_eq!(Call::parse(text).unwrap().to_string(), text);
        }
        for bad in ["", "decode:0", "decode:65", "step", "step:x", "step:1:2:3", "encode:-1", "prompt:131073", "x:1"] {
            assert!(Call::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parameters_are_what_stands_in_brackets() {
        assert_eq!(parameters("get_rows", "GetRows"), "");
        assert_eq!(parameters("rope", "Rope(Rope { n_rot: 4, pairs: Halves })"), " (n_rot: 4, pairs: Halves)");
        assert_eq!(parameters("mul", "Binary(Mul)"), "");
        assert_eq!(parameters("unary", "Unary(Silu)"), " (Silu)");
        assert_eq!(parameters("linear", "Linear { bias: true, act: None }"), " (bias: true)");
        assert_eq!(parameters("linear", "Linear { act: None, precision: Fast }"), "");
        assert_eq!(parameters("linear", "Linear { act: None, precision: Kept }"), " (precision: Kept)");
    }
}
