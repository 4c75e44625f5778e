//! Published checkpoints to GGUF, GGUF in other types, and models with random weights. Read [`Conversion`] first, then
//! [`assembly::Assembly`], which every file goes through.
//!
//! ```no_run
//! use convert::{Conversion, FileType, Options};
//! use std::sync::atomic::AtomicBool;
//!
//! let conversion = Conversion::open("Qwen3-ASR-0.6B", |_| Options::new(FileType::Q8_0))?;
//! let paths: Vec<_> = conversion.file_names().into_iter().map(Into::into).collect();
//! conversion.write(&paths, &AtomicBool::new(false))?;
//! # Ok::<(), convert::Error>(())
//! ```
//!
//! [`to_memory`] converts without a file, [`quantize::Quantization`] goes from GGUF to GGUF, [`synth::Synthetic`] is a
//! checkpoint that is made instead of read. Work runs on the threads that [`workers::with`] gives it, and bytes do not depend on
//! their number. Nothing here prints, reads the environment or knows a command line.

#![warn(unreachable_pub)]

pub mod assembly;
mod conversion;
mod error;
mod files;
pub mod quantize;
pub mod safetensors;
pub mod synth;
mod tokenizer_json;
pub mod vocab;
mod watch;
mod weights;
pub mod workers;

pub use self::conversion::{Conversion, Options, projector_name, to_memory};
pub use self::error::{Error, ErrorKind, Result};
pub use self::files::Files;
pub use self::quantize::mix::FileType;
pub use self::watch::Watch;
