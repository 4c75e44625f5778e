//! What replies say of drafts.

use models::draft::Statistics;
use serde_json::{Value, json};

/// Adds to `timings` how many tokens were guessed and verified, how many of them were right, and how many more would have been
/// accepted had they been proposed, where there were some. Names, but for the last: llama.cpp, `tools/server/README.md`.
pub(super) fn tell_drafts(timings: &mut Value, drafts: Option<&Statistics>) {
    if let Some(drafts) = drafts.filter(|drafts| drafts.verified + drafts.missed > 0) {
        timings["draft_n"] = json!(drafts.verified);
        timings["draft_n_accepted"] = json!(drafts.accepted);
        timings["draft_n_missed"] = json!(drafts.missed);
    }
}
