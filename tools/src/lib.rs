//! Speech recognition, and the engine below it, for programs of your own.
//!
//! [`Model`] finds and opens a model, [`Recognizer`] turns recordings into text with it:
//!
//! ```
//! # fn main() -> tympan::Result<()> {
//! # let clip = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/audio/digits_eight.wav");
//! // `Model::open("Qwen3-ASR-0.6B-Q8_0.gguf", &Opening::default())` for a real one.
//! let model = tympan::Model::demonstration()?;
//! let mut recognizer = model.recognizer(&tympan::Device::default())?;
//! let found = recognizer.file(clip, &tympan::Request::default(), &mut ())?;
//! assert_eq!(found.transcript.text, "three one four one five nine two six");
//! # Ok(())
//! # }
//! ```
//!
//! Whoever wants to see segments as they are finished, text as it is decoded, or to stop, hands over an [`Observer`] in the place
//! of `()`. What a file did not give is in [`Recognized`].
//!
//! **Below that** are the crates that this one is made of, all re-exported: [`models`] (architectures, audio, sequences),
//! [`engine`] (graphs, memory, model files), [`backends`] (what computes) and [`convert`] (checkpoints to GGUF). Two things are
//! often wanted of them: an architecture of one's own is an [`Arch`] in [`LoadOptions::architectures`], which
//! [`Opening::load`] takes; and a graph with named inputs of one's own is a [`Program`].
//!
//! The feature `cli`, on by default, adds what the command line needs, and nothing to this library: a program that only uses
//! the library switches it off with `default-features = false`.

#![warn(unreachable_pub)]

mod demo;
mod error;
pub mod find;
pub mod foreign;
mod model;
mod recognizer;

pub use backends;
pub use convert;
pub use engine;
pub use models;

pub use engine::program::{Program, Values};
pub use error::{Error, Result};
pub use model::{Model, Opening};
pub use models::audio::{Audio, Loss, TrackChoice};
pub use models::registry::{Arch, LoadOptions, Speech};
pub use models::transcribe::{Observer, Partial, Request, Segment, Transcript};
pub use recognizer::{Device, Recognized, Recognizer};
