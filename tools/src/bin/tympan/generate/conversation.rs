//! A conversation on a terminal: a line of the user, an answer of the model, and again.

use std::io::{self, BufRead, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use models::chat::{DateTime, Message, Rendering, Template};
use models::generate::Generator;

use crate::exit::{Failure, Outcome};
use crate::streams::StandardError;

/// What stands before a line of the user.
const PROMPT: &str = "> ";
/// Most bytes of a line that is typed or pasted.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// Messages, and the template that writes them.
pub(super) struct Conversation {
    template: Template,
    messages: Vec<Message>,
}

impl Conversation {
    /// A conversation that begins with `system`, where there is one.
    ///
    /// Errors: a model without a template, or with one that is none.
    pub(super) fn open(generator: &Generator, system: Option<&str>, model: &str) -> Outcome<Self> {
        let template = generator.writer().template().with_context(|| model.to_owned()).map_err(Failure::model)?;
        let Some(template) = template else {
            return Err(Failure::model(anyhow::anyhow!(
                "{model}: the model has no chat template (-p without --chat continues a text as it is)"
            )));
        };
        let messages = system.map(|text| template.message("system", text)).into_iter().collect();
        Ok(Self { template, messages })
    }

    /// The tokens of the conversation with one more turn of the user, up to where the answer begins.
    ///
    /// Errors: the template does not accept it.
    pub(super) fn prompt(&mut self, generator: &Generator, text: &str, model: &str) -> Outcome<Vec<u32>> {
        self.messages.push(self.template.message("user", text));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let now = DateTime::from_unix(i64::try_from(now).unwrap_or(0));
        let rendering = Rendering { add_generation_prompt: true, now, variables: &[] };
        let written = self.template.render(&self.messages, &rendering);
        let written = written.with_context(|| model.to_owned()).map_err(Failure::model)?;
        Ok(generator.writer().chat_prompt(&written))
    }

    /// Takes note of an answer.
    pub(super) fn answered(&mut self, text: &str) {
        self.messages.push(self.template.message("assistant", text));
    }
}

/// The next line of the user that says something; `None` where there is no more.
///
/// Errors: standard input cannot be read.
pub(super) fn next_line() -> Outcome<Option<String>> {
    loop {
        // Standard output is for answers.
        let _ = write!(StandardError, "{PROMPT}");
        let mut line = Vec::new();
        let mut input = io::Read::take(io::stdin().lock(), MAX_LINE_BYTES);
        let n = input.read_until(b'\n', &mut line).context("standard input cannot be read").map_err(Failure::input)?;
        if n == 0 {
            let _ = writeln!(StandardError);
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&line);
        if !line.trim().is_empty() {
            return Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned()));
        }
    }
}
