//! [`ChatMarks`]: the turns of a chat as token ids, between the marks that Qwen and LFM2 share.

use crate::error::Result;
use crate::tokenizer::{Special, Tokenizer};

/// The marks of turns in one vocabulary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChatMarks {
    im_start: u32,
    im_end: u32,
}

impl ChatMarks {
    /// Looks the marks up.
    ///
    /// Errors: `Tokenizer` naming the first that the vocabulary lacks.
    pub(crate) fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let ids = tokenizer.ids_of(&["<|im_start|>", "<|im_end|>"])?;
        Ok(Self { im_start: ids[0], im_end: ids[1] })
    }

    /// A turn with this text, the next one's mark, and what that one begins with:
    /// `<|im_start|>{system}<|im_end|>\n<|im_start|>user\n`.
    pub(crate) fn system_and_user(&self, tokenizer: &Tokenizer, system: &[u32]) -> Vec<u32> {
        let user = tokenizer.encode("user\n", Special::AsText);
        [&[self.im_start][..], system, &self.next_turn(tokenizer), &user].concat()
    }

    /// The end of a turn and the begin of this answer: `<|im_end|>\n<|im_start|>{answer}`.
    pub(crate) fn answer(&self, tokenizer: &Tokenizer, answer: &[u32]) -> Vec<u32> {
        [&self.next_turn(tokenizer)[..], answer].concat()
    }

    fn next_turn(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        [&[self.im_end][..], &tokenizer.encode("\n", Special::AsText), &[self.im_start]].concat()
    }
}
