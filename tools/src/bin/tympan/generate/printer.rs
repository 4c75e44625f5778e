//! [`Printer`]: answers on standard output, as text, ids or lines of JSON, while they come.

use std::ops::ControlFlow;

use clap::ValueEnum;
use models::generate::{End, Generated};
use serde_json::json;

use crate::exit::{Failure, Outcome};
use crate::streams;

/// What is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Format {
    /// The text alone.
    Text,
    /// A line of JSON for every piece of the text, and one at the end.
    Jsonl,
}

/// Prints an answer.
pub(super) struct Printer {
    format: Format,
    /// Whether ids are printed: in place of the text, or beside it in JSON.
    token_ids: bool,
    /// Bytes of the text that are out, and ids.
    n_bytes: usize,
    n_ids: usize,
    failure: Option<Failure>,
}

impl Printer {
    pub(super) fn new(format: Format, token_ids: bool) -> Self {
        Self { format, token_ids, n_bytes: 0, n_ids: 0, failure: None }
    }

    /// New tokens, and the text so far. Breaks when standard output takes no more.
    pub(super) fn tokens(&mut self, ids: &[u32], text: &str) -> ControlFlow<()> {
        let piece = self.piece(ids, text);
        self.failure = streams::print(&piece).err();
        if self.failure.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// What is to be printed of them.
    fn piece(&mut self, ids: &[u32], text: &str) -> String {
        let new = &text[self.n_bytes..];
        self.n_bytes = text.len();
        let is_first = self.n_ids == 0;
        self.n_ids += ids.len();
        match self.format {
            Format::Text if self.token_ids && ids.is_empty() => String::new(),
            Format::Text if self.token_ids => format!("{}{}", if is_first { "" } else { "," }, joined(ids)),
            Format::Text => new.to_owned(),
            Format::Jsonl if new.is_empty() && (ids.is_empty() || !self.token_ids) => String::new(),
            Format::Jsonl => {
                let ids = self.token_ids.then_some(ids);
                format!("{}\n", json!({ "type": "text", "text": new, "token_ids": ids }))
            }
        }
    }

    /// Ends the answer, after what its end made complete.
    ///
    /// Errors: standard output could not be written, now or before.
    pub(super) fn end(mut self, generated: &Generated, n_prompt: usize) -> Outcome<()> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let rest = self.piece(&generated.ids[self.n_ids..], &generated.text);
        let last = match self.format {
            Format::Text => "\n".to_owned(),
            Format::Jsonl => {
                let (finish, stop) = match &generated.end {
                    End::Limit => ("length", None),
                    End::Token(_) => ("stop_token", None),
                    End::Text(text) => ("stop_text", Some(text)),
                };
                let end = json!({
                    "type": "end", "text": generated.text, "finish": finish, "stop": stop, "prompt_tokens": n_prompt,
                    "generated_tokens": generated.ids.len(), "prefill_s": seconds(generated.prefill.as_secs_f64()),
                    "decode_s": seconds(generated.decode.as_secs_f64()),
                });
                format!("{end}\n")
            }
        };
        streams::print(&format!("{rest}{last}"))
    }
}

fn joined(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// Three decimals.
fn seconds(s: f64) -> f64 {
    (s * 1e3).round() / 1e3
}
