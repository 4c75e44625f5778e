//! What endpoints take and answer: one module for each family, and [`error`] for all of them.

pub(crate) mod completion;
mod drafts;
pub(crate) mod error;
mod fields;
mod recording;
pub(crate) mod server;
pub(crate) mod slots;
pub(crate) mod tokens;
pub(crate) mod transcription;
