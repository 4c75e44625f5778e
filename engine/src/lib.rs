//! Tensor graphs, static plans, slot memory and model files.
//!
//! Read [`session::Session`] first, which others call, then [`model::Model`] and [`backend::Backend`], which others implement.
//!
//! The path of a call, and where each stage lives:
//!
//! ```text
//! Model::build(&GraphBuilder, &GraphKey)      model, builder, key    what to compute; pure
//!   -> check      shapes                      op::infer
//!   -> prune      unused nodes go             pass::prune
//!   -> assign     node -> backend             pass::assign
//!   -> fuse       rules the backend supports  pass::fuse
//!   -> cut        runs of one backend         pass::assign
//!   -> plan       lifetimes, in-place, offsets plan, one for each backend
//!   -> lower      Backend::compile            backend, devices
//!   => Executable, kept under its key         cache
//! per call: write the input block -> run -> read outputs             session, batch, memory
//! ```
//!
//! **Reuse.** A model sees the key of a call and nothing else of it, so every call with that key can run the same compiled
//! graph: token ids, positions, slots, lengths and output rows are inputs, a sequence's first token and the length of its
//! past follow from the positions, and no mask is stored. [`key`] rounds sizes so that there are few keys, `cache` keeps
//! the graphs used last, [`stats`] counts why others had to be built, and [`session::Reuse`] switches all of it off or
//! checks every use against a fresh build.
//!
//! **Memory.** [`memory`] has one slot per sequence, the same in every layer, for attention caches and recurrent states
//! alike. Sequences can be copied, rewound where that is exact, taken out as bytes and put back; a new one starts from
//! zeros without anything being cleared. Every slot has addresses for the largest context from the beginning and memory for
//! what it holds, so a sequence grows without a graph being built and without anything moving. A layer's states lie on the
//! backend of the layer.
//!
//! A graph that is no model's, with inputs and outputs of one's own names, is a [`program::Program`].
//!
//! Model files are read by [`gguf`]; [`weights`] holds their tensors by name.

#![warn(unreachable_pub)]

pub mod backend;
pub mod batch;
pub mod builder;
mod cache;
mod devices;
pub mod dtype;
pub mod error;
pub mod gguf;
pub mod graph;
pub mod key;
pub mod mapping;
pub mod memory;
pub mod model;
pub mod op;
pub mod parallel;
pub mod pass;
pub mod plan;
pub mod planned;
pub mod profile;
pub mod program;
pub mod session;
pub mod shape;
mod snapshot;
pub mod state;
pub mod stats;
pub mod tensor;
pub mod weights;

pub use dtype::DType;
pub use error::{Error, Result};
pub use shape::Shape;
pub use snapshot::crc32c;
