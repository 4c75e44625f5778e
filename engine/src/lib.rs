//! Tensor graphs, static plans, slot memory and model files.

pub mod dtype;
pub mod error;
pub mod gguf;
pub mod shape;
pub mod weights;

pub use dtype::DType;
pub use error::{Error, Result};
pub use shape::Shape;
