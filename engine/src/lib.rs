//! Tensor graphs, static plans, slot memory and model files.
//!
//! The path of a call, and where each stage lives:
//!
//! ```text
//! Model::build(&GraphBuilder, &GraphKey)      model, builder, key    what to compute; pure
//!   -> check      shapes                      op::infer
//!   -> prune      unused nodes go             pass::prune
//!   -> fuse       rules the backend supports  pass::fuse
//!   -> assign     node -> backend; cuts       pass::assign
//!   -> plan       lifetimes, in-place, offsets plan
//!   -> lower      Backend::compile            backend
//!   => Executable, kept under its key         cache
//! per call: write the input block -> run -> read outputs             session, batch, memory
//! ```
//!
//! Model files are read by [`gguf`]; [`weights`] holds their tensors by name.

pub mod backend;
pub mod batch;
pub mod builder;
pub mod cache;
pub mod dtype;
pub mod error;
pub mod gguf;
pub mod graph;
pub mod key;
pub mod mapping;
pub mod memory;
pub mod model;
pub mod op;
pub mod pass;
pub mod plan;
pub mod session;
pub mod shape;
mod snapshot;
pub mod stats;
pub mod tensor;
pub mod weights;

pub use dtype::DType;
pub use error::{Error, Result};
pub use shape::Shape;
