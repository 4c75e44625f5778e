//! Token ids to text, one token at a time.

use super::Tokenizer;

/// Turns tokens into text as they come: a character whose bytes are spread over several tokens appears with the last one.
///
/// What is printed in all equals [`Tokenizer::decode`] of all tokens.
#[derive(Debug)]
pub struct Decoder<'a> {
    tokenizer: &'a Tokenizer,
    unfinished: Unfinished,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_control: bool) -> Self {
        Self { tokenizer, unfinished: Unfinished::new(skip_control) }
    }

    /// Takes token `id` and appends to `text` what is complete now.
    pub fn push(&mut self, id: u32, text: &mut String) {
        self.unfinished.push(self.tokenizer, id, text);
    }

    /// Ends the text: the beginning of a character that never was completed becomes U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        self.unfinished.finish(text);
    }
}

/// What a [`Decoder`] knows between two tokens, for those that hold no tokenizer.
#[derive(Clone, Debug)]
pub(crate) struct Unfinished {
    skip_control: bool,
    /// Bytes not printed yet.
    pending: Vec<u8>,
}

impl Unfinished {
    pub(crate) fn new(skip_control: bool) -> Self {
        Self { skip_control, pending: Vec::new() }
    }

    /// As [`Decoder::push`].
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, id: u32, text: &mut String) {
        if self.skip_control && tokenizer.is_control(id) {
            return;
        }
        self.pending.extend_from_slice(tokenizer.token_bytes(id));
        let mut rest = &self.pending[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, invalid) = rest.split_at(e.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).expect("checked by the error"));
                    rest = invalid;
                    let Some(n) = e.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[n..];
                }
            }
        }
        let n_printed = self.pending.len() - rest.len();
        self.pending.drain(..n_printed);
    }

    /// Bytes that wait for the rest of their character.
    pub(crate) fn n_pending(&self) -> usize {
        self.pending.len()
    }

    /// As [`Decoder::finish`].
    pub(crate) fn finish(&mut self, text: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
}
