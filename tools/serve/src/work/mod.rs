//! The engine thread and what it works on. [`Core`] decides what is computed next, without sockets and by a clock that it is
//! given, and `admission` which job gets which slot; `thread` runs it; `speech`, `text` and `slot` are the kinds of work,
//! `cache` keeps what was heard.

mod admission;
mod cache;
mod core;
mod inbox;
mod slot;
mod speech;
mod task;
mod text;
mod thread;

use std::sync::Arc;
use std::time::Duration;

use crate::api::error::ApiError;
use crate::mailbox::{Mailbox, Merge};

pub(crate) use cache::{AudioCache, CacheFigures, ClipKey};
pub(crate) use core::{Core, CoreOptions};
pub(crate) use inbox::{Inbox, Refusal};
pub(crate) use slot::{SlotAnswer, SlotWork};
pub(crate) use speech::{Clip, SpeechAnswer, SpeechWork};
pub(crate) use text::{TextAnswer, TextWork, TokenView};
pub(crate) use thread::EngineThread;

/// Time since the server started.
pub(crate) type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Something to compute for a client.
pub(crate) struct Job {
    /// Its number; none is given twice.
    pub id: u64,
    /// What to compute.
    pub work: Work,
    /// Where the answer goes.
    pub reply: Mailbox<Reply>,
    /// When it came.
    pub arrived: Duration,
    /// When nobody wants it any more.
    pub deadline: Duration,
}

/// The kinds of work.
pub(crate) enum Work {
    /// Audio to text.
    Speech(Box<SpeechWork>),
    /// Text to text.
    Text(Box<TextWork>),
    /// What is done with a slot itself.
    Slot(SlotWork),
}

/// What a client is told. The last one is `Done` or `Failed`; where neither comes, the engine thread has died.
#[derive(Debug)]
pub(crate) enum Reply {
    /// More of the text.
    Piece(Piece),
    /// The whole answer.
    Done(Box<Answer>),
    /// There is none.
    Failed(ApiError),
}

/// More of a text.
#[derive(Clone, PartialEq, Default, Debug)]
pub(crate) struct Piece {
    /// The characters.
    pub text: String,
    /// The tokens, where they were asked for.
    pub tokens: Vec<TokenView>,
    /// Where the segment begins that it is said in, in seconds; 0 where there is no audio.
    pub at_s: f64,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Of audio.
    Speech(SpeechAnswer),
    /// Of a prompt.
    Text(TextAnswer),
    /// Of something that was done with a slot.
    Slot(SlotAnswer),
}

impl Merge for Reply {
    fn merge(&mut self, next: Self) -> Option<Self> {
        match (self, next) {
            (Self::Piece(piece), Self::Piece(next)) => {
                piece.text.push_str(&next.text);
                piece.tokens.extend(next.tokens);
                None
            }
            (_, next) => Some(next),
        }
    }
}
