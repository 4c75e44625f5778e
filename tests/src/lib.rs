//! Op cases, runner, comparison.
