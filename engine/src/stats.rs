//! [`Stats`]: what a session has done so far, and why it had to build graphs.

use crate::key::GraphKey;

/// Keys that are remembered to say why a graph is built. A session has far fewer unless its buckets are useless.
const MAX_REMEMBERED: usize = 1024;

/// Why a graph was built.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum BuildReason {
    /// Reuse is switched off.
    ReuseOff,
    /// It is the session's first graph.
    First,
    /// It was compiled before and dropped: to make room, or with all others when states moved.
    Dropped,
    /// No graph of its stage was built before.
    Stage,
    /// The graph most like it gives logits for another number of rows.
    Rows,
    /// The graph most like it is for another number of clips.
    Sequences,
    /// The graph most like it is for another number of tokens.
    Tokens,
    /// The graph most like it is for another length of the attention cache.
    Context,
    /// The graph most like it folds another number of pending rows.
    Pending,
}

impl BuildReason {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::ReuseOff,
        Self::First,
        Self::Dropped,
        Self::Stage,
        Self::Rows,
        Self::Sequences,
        Self::Tokens,
        Self::Context,
        Self::Pending,
    ];

    /// One or two words for people.
    #[deny(clippy::wildcard_enum_match_arm)]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReuseOff => "reuse off",
            Self::First => "first",
            Self::Dropped => "dropped before",
            Self::Stage => "stage",
            Self::Rows => "rows",
            Self::Sequences => "sequences",
            Self::Tokens => "tokens",
            Self::Context => "context",
            Self::Pending => "pending rows",
        }
    }
}

/// Counters of a session.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stats {
    /// Graphs built, planned and lowered.
    pub builds: u64,
    /// Builds that made room by dropping another graph.
    pub evictions: u64,
    /// Calls that used a compiled graph again.
    pub hits: u64,
    /// Nanoseconds in which compiled graphs ran, where [`crate::session::SessionOptions::timed`] or a profile asks for it;
    /// the rest of a call is the engine's own.
    pub run_ns: u64,
    /// Bytes of the arenas in use, largest first call included.
    pub arena_bytes: usize,
    /// Bytes of memory that states have: what sequences need, not what they have addresses for.
    pub state_bytes: usize,
    /// How often states moved to larger buffers, because the system reserves no addresses without memory. Every move drops
    /// all graphs.
    pub state_moves: u64,
    /// Bytes of states of fixed extent that were read and written, by the backends' count.
    pub state_traffic: u64,
    /// Bytes that compiled graphs hold besides arenas, such as tables of rotary angles.
    pub graph_bytes: usize,
    /// Bytes that imported weights hold besides the mapped files.
    pub weight_bytes: usize,
    pub(crate) by_reason: [u64; BuildReason::ALL.len()],
}

impl Stats {
    /// Graphs built for this reason; all reasons together are [`Self::builds`].
    pub fn builds_for(&self, reason: BuildReason) -> u64 {
        self.by_reason[reason as usize]
    }

    /// Share of calls that used a compiled graph again; 0 before the first call.
    pub fn hit_rate(&self) -> f64 {
        self.hits as f64 / (self.hits + self.builds).max(1) as f64
    }

    pub(crate) fn count_build(&mut self, reason: BuildReason) {
        self.builds += 1;
        self.by_reason[reason as usize] += 1;
    }
}

/// Keys of the graphs that a session has built, latest last.
#[derive(Default)]
pub(crate) struct History(Vec<GraphKey>);

impl History {
    /// Why a graph with this key has to be built although graphs are kept; the key is remembered.
    pub(crate) fn reason(&mut self, key: &GraphKey) -> BuildReason {
        let reason = self.compare(key);
        self.0.retain(|k| k != key);
        if self.0.len() == MAX_REMEMBERED {
            self.0.remove(0);
        }
        self.0.push(*key);
        reason
    }

    fn compare(&self, key: &GraphKey) -> BuildReason {
        if self.0.is_empty() {
            return BuildReason::First;
        }
        let same_stage = self.0.iter().rev().filter(|k| k.stage == key.stage);
        let Some(nearest) = same_stage.min_by_key(|k| differences(k, key).count()) else { return BuildReason::Stage };
        differences(nearest, key).next().unwrap_or(BuildReason::Dropped)
    }
}

/// Components in which keys of one stage differ.
fn differences(a: &GraphKey, b: &GraphKey) -> impl Iterator<Item = BuildReason> {
    let differs = [
        // How many sequences and output rows there can be follows from the rows.
        (a.n_tokens != b.n_tokens, BuildReason::Tokens),
        (a.n_seqs != b.n_seqs, BuildReason::Sequences),
        (a.n_outputs != b.n_outputs, BuildReason::Rows),
        (a.n_kv != b.n_kv, BuildReason::Context),
        (a.n_pending != b.n_pending, BuildReason::Pending),
    ];
    differs.into_iter().filter(|(differs, _)| *differs).map(|(_, reason)| reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Stage;

    #[test]
    fn the_most_similar_graph_gives_the_reason() {
        let decode = GraphKey { stage: Stage::Tokens, n_seqs: 1, n_tokens: 1, n_kv: 64, n_outputs: 1, n_pending: 0 };
        let prompt = GraphKey { n_tokens: 24, n_outputs: 0, ..decode };
        let encode = GraphKey { stage: Stage::Encode, n_kv: 0, ..decode };
        let mut history = History::default();
        let mut reason = |key: GraphKey| history.reason(&key);
        assert_eq!(reason(decode), BuildReason::First);
        assert_eq!(reason(prompt), BuildReason::Tokens);
        assert_eq!(reason(GraphKey { n_outputs: 1, ..prompt }), BuildReason::Rows);
        assert_eq!(reason(GraphKey { n_tokens: 32, ..prompt }), BuildReason::Tokens);
        assert_eq!(reason(GraphKey { n_seqs: 4, ..decode }), BuildReason::Sequences);
        assert_eq!(reason(GraphKey { n_seqs: 4, n_outputs: 4, ..decode }), BuildReason::Rows);
        assert_eq!(reason(encode), BuildReason::Stage);
        assert_eq!(reason(decode), BuildReason::Dropped);
        assert_eq!(reason(GraphKey { n_kv: 128, ..decode }), BuildReason::Context);
    }

    #[test]
    fn reasons_count_by_their_place() {
        for (i, reason) in BuildReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
        }
    }
}
