//! What endpoints take and answer: one module for each family, and [`error`] for all of them.

pub(crate) mod completion;
mod drafts;
pub(crate) mod error;
mod fields;
pub(crate) mod server;
pub(crate) mod tokens;
pub(crate) mod transcription;
