//! Conversations as prompts. [`Template`] writes a conversation as the model's file says; read it first. The prompts of speech
//! models are made of token ids, between marks that are known.

mod clock;
mod marks;
mod python;
mod template;
mod value;

pub use clock::DateTime;
pub(crate) use marks::ChatMarks;
pub use template::{Content, Message, Rendering, SpecialTokens, Template};
pub use value::Value;
