//! Drives two sequences in one batch: prompts of different lengths, then one token of each per call.
//! `cargo run --release -p tests --example two_sequences`
//!
//! `models::scheduler` does this for any number of requests that come and go; this is what it is made of.

use std::path::Path;
use std::sync::Arc;

use engine::batch::{Batch, Rows, Sequence, Tokens};
use engine::session::{Session, SessionOptions};
use models::LoadOptions;
use models::sample::greedy;

/// Tokens that are generated for each.
const N_TOKENS: usize = 8;

/// Continues all prompts side by side.
fn continued(session: &mut Session, prompts: &[Vec<u32>]) -> anyhow::Result<Vec<Vec<u32>>> {
    let slots: Vec<_> = prompts.iter().map(|_| session.memory_mut().acquire()).collect::<Result<_, _>>()?;
    let mut next = prompts.to_vec();
    let mut texts = vec![Vec::new(); prompts.len()];
    for _ in 0..N_TOKENS {
        let sequence = |(&slot, ids)| Sequence { slot, tokens: Tokens::Ids(ids), rows: Rows::Last };
        let sequences: Vec<Sequence<'_>> = slots.iter().zip(next.iter().map(Vec::as_slice)).map(sequence).collect();
        // The graph that this runs was compiled if a call of this shape came before.
        let logits = session.step(&Batch { seqs: &sequences })?;
        let ids: Vec<u32> =
            (0..prompts.len()).map(|i| greedy(logits.last(i)).map(|id| id as u32)).collect::<Result<_, _>>()?;
        for (i, id) in ids.into_iter().enumerate() {
            texts[i].push(id);
            next[i] = vec![id];
        }
    }
    slots.into_iter().for_each(|slot| session.memory_mut().release(slot));
    Ok(texts)
}

fn main() -> anyhow::Result<()> {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/qwen3");
    let loaded = models::load(vec![convert::to_memory(&checkpoint)?], LoadOptions::default())?;
    let backend = backends::open("cpu", &backends::Options::default())?;
    let options = SessionOptions { n_slots: 2, n_ctx: 64, ..SessionOptions::default() };
    let mut session = Session::open(Arc::clone(&loaded.model), &loaded.weights, &[backend], options)?;

    let prompts = [vec![5, 17, 40], vec![9, 3, 3, 120, 7, 88, 21]];
    let together = continued(&mut session, &prompts)?;
    for (prompt, text) in prompts.iter().zip(&together) {
        println!("{prompt:?} -> {text:?}");
        let alone = continued(&mut session, std::slice::from_ref(prompt))?;
        assert_eq!(alone[0], *text, "the neighbour is seen");
    }
    let stats = session.stats();
    println!("graphs built: {}, used again: {}", stats.builds, stats.hits);
    Ok(())
}
