//! The subcommands of `tympan` as a library, for the binary and the tests.

pub mod args;
pub mod assembly;
pub mod bench;
pub mod cache;
pub mod cli;
pub mod convert;
pub mod demo;
pub mod exit;
pub mod generate;
pub mod inspect;
pub mod interrupt;
pub mod model;
pub mod output;
pub mod progress;
pub mod quantize;
pub mod report;
pub mod samples;
pub mod transcribe;
