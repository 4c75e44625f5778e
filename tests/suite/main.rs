//! The integration suite.

mod gguf;
