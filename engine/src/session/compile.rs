//! From the key of a call to a graph that is bound to memory: built, rewritten, cut, planned, lowered, and kept.

use super::{MAX_CONTEXT, Reuse, Session};
use crate::backend::Prepared;
use crate::builder::GraphBuilder;
use crate::devices::Compiled;
use crate::error::{Error, Result};
use crate::key::{GraphKey, Stage};
use crate::pass::assign::Homes;
use crate::planned::Planned;
use crate::stats::BuildReason;

/// Rows of a call, or frames of features: far above what memory holds, far below what makes a graph that takes long to
/// build.
const MAX_KEY_TOKENS: u32 = 1 << 22;
/// [`MAX_CONTEXT`] as keys have it.
const MAX_KEY_CONTEXT: u32 = MAX_CONTEXT as u32;

impl Session {
    /// Index in the cache of the compiled graph for this key.
    pub(super) fn compiled(&mut self, key: &GraphKey) -> Result<usize> {
        if self.options.reuse != Reuse::Off
            && let Some(index) = self.cache.find(key)
        {
            if self.options.reuse == Reuse::Verified {
                self.check_kept(key, index)?;
            }
            self.stats.hits += 1;
            return Ok(index);
        }
        self.compile_new(key)
    }

    /// As [`Self::compiled`], for a key whose graph is not kept. Apart from it, so that finding one is little code.
    #[cold]
    fn compile_new(&mut self, key: &GraphKey) -> Result<usize> {
        self.last_run = None;
        // Making room moves graphs.
        self.end_results();
        if self.options.reuse == Reuse::Off {
            self.drop_graphs();
        }
        let compiled = self.compile(key)?;
        let off = (self.options.reuse == Reuse::Off).then_some(BuildReason::ReuseOff);
        self.stats.count_build(off.unwrap_or_else(|| self.history.reason(key)));
        let (index, evicted) = self.cache.insert(*key, compiled);
        if let Some(evicted) = evicted {
            self.stats.evictions += 1;
            self.stats.state_traffic += state_traffic(&evicted);
        }
        Ok(index)
    }

    /// Builds a kept graph once more. Errors: `StaleGraph` where it comes out otherwise.
    fn check_kept(&self, key: &GraphKey, index: usize) -> Result<()> {
        let (kept, rebuilt) = (&self.cache.peek(index).planned, self.describe(key)?);
        if *kept == rebuilt {
            return Ok(());
        }
        let (kept_text, text) = (kept.graph().dump(), rebuilt.graph().dump());
        let lines = kept_text.lines().chain([""]).zip(text.lines().chain([""]));
        let line = lines.filter(|(a, b)| a != b).map(|(a, b)| format!("kept {a:?}, built {b:?}")).next();
        let what = line.unwrap_or_else(|| {
            let part = if kept.graph() != rebuilt.graph() { "layout of its tensors" } else { "plan or its backends" };
            format!("the {part} differs")
        });
        Err(Error::StaleGraph { what: format!("{key:?}: {what}") })
    }

    /// What a call of this shape computes, where, and where everything lies: a function of the key alone. Nothing is
    /// compiled, and no weight is touched.
    ///
    /// Errors: `Key` for a shape that no call has; one that the model or the backends cannot do.
    pub fn describe(&self, key: &GraphKey) -> Result<Planned> {
        self.plan(key).map(|(planned, _)| planned)
    }

    /// As [`Self::describe`], with what the backends decided about every node.
    fn plan(&self, key: &GraphKey) -> Result<(Planned, Vec<Prepared>)> {
        self.check_key(key)?;
        let builder = GraphBuilder::new(self.memory.layout());
        // Where every row gives logits, tokens are chosen from each: they are what they would be one by one, whether they belong
        // to many sequences or are drafts of one.
        if key.stage != Stage::Encode && key.n_outputs == key.n_tokens {
            builder.rows_alone();
        }
        self.model.build(&builder, key);
        let homes = Homes { layers: &self.options.placement, states: self.memory.homes() };
        let (planned, prepared) =
            Planned::new(builder.finish()?, &self.devices.backends, homes, &self.options.compile)?;
        if cfg!(debug_assertions) || self.options.reuse == Reuse::Verified {
            planned.verify().expect("the passes make plans that hold");
        }
        Ok((planned, prepared))
    }

    /// Whether a call of this shape exists: models count on it.
    fn check_key(&self, key: &GraphKey) -> Result<()> {
        let refused = |what: String| Err(Error::Key { key: *key, what });
        let GraphKey { n_seqs, n_tokens, n_outputs, n_pending, .. } = *key;
        if n_tokens == 0 || n_tokens > MAX_KEY_TOKENS || !(1..=n_tokens).contains(&n_seqs) || n_outputs > n_tokens {
            return refused(format!("want 1 to {MAX_KEY_TOKENS} rows, and no more sequences or outputs than rows"));
        }
        if n_pending > 0 && (key.stage == Stage::Encode || self.memory.layout().n_pending == 0) {
            return refused("no token of the call can be taken back".into());
        }
        if n_pending > MAX_KEY_TOKENS - n_tokens {
            return refused(format!("want at most {MAX_KEY_TOKENS} rows, pending ones included"));
        }
        match (key.stage, self.model.encoder()) {
            (Stage::Tokens | Stage::Embeddings, _) => match key.n_kv {
                1..=MAX_KEY_CONTEXT => Ok(()),
                n_kv => refused(format!("want a context of 1 to {MAX_KEY_CONTEXT} tokens, got {n_kv}")),
            },
            (Stage::Encode, None) => refused("the model has no audio encoder".into()),
            (Stage::Encode, Some(encoder)) => match n_tokens as usize % encoder.clip_frames {
                0 => Ok(()),
                _ => refused(format!("want a multiple of {} frames", encoder.clip_frames)),
            },
        }
    }

    fn compile(&mut self, key: &GraphKey) -> Result<Compiled> {
        let (planned, prepared) = self.plan(key)?;
        if let Some((input, _)) = planned.graph().inputs().into_iter().find(|(input, _)| input.is_own()) {
            let msg = format!("{input:?} is an input of programs: nobody gives it to a model");
            return Err(Error::Graph { at: self.model.arch().into(), op: "input", msg });
        }
        self.devices.bind(planned, prepared, self.memory.buffers(), self.options.compile.poison)
    }

    /// Drops every compiled graph, and arenas that only dropped ones are bound to.
    pub(super) fn drop_graphs(&mut self) {
        self.stats.state_traffic = self.state_traffic();
        self.cache.clear();
        self.last_run = None;
        self.lent = None;
        self.devices.drop_arenas();
    }

    /// Bytes of states that all graphs have read and written, dropped ones too.
    pub(super) fn state_traffic(&self) -> u64 {
        self.stats.state_traffic + self.cache.iter().map(state_traffic).sum::<u64>()
    }

    /// Bytes that compiled graphs hold outside of arenas.
    pub(super) fn graph_bytes(&self) -> usize {
        self.cache.iter().flat_map(|c| &c.stages).map(|stage| stage.executable.own_bytes()).sum()
    }
}

/// Bytes of states that a graph has read and written.
fn state_traffic(compiled: &Compiled) -> u64 {
    compiled.stages.iter().map(|stage| stage.executable.state_traffic()).sum()
}
