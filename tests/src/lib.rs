//! Op cases, runner, comparison.

pub mod alloc;
pub mod clock;
pub mod mutate;
pub mod rng;
