//! What replies say of drafts.

use models::draft::Statistics;
use serde_json::{Value, json};

/// Adds to `timings` how many tokens were guessed and verified, and how many of them were right, where some were. Names: llama.cpp,
/// `tools/server/README.md`.
pub(super) fn tell_drafts(timings: &mut Value, drafts: Option<&Statistics>) {
    if let Some(drafts) = drafts.filter(|drafts| drafts.verified > 0) {
        timings["draft_n"] = json!(drafts.verified);
        timings["draft_n_accepted"] = json!(drafts.accepted);
    }
}
