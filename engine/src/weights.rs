//! Weights by name.
