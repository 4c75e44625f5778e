//! Parts that architectures share, each readable beside the official module of the same name.

pub mod attention;
pub mod ffn;
