//! Llama.

use super::lfm2::check_text;

#[test]
fn llama_matches_transformers() {
    check_text("llama", 3, &[], &[]);
}
