//! The command line of tympan: one module per subcommand and what they share. Read `cli` first.
//!
//! `tympan` parses, calls the libraries (`models`, `convert`) and maps errors to exit codes; what it computes is theirs.

#![warn(unreachable_pub)]
#![deny(clippy::print_stdout, clippy::print_stderr, reason = "`streams` writes there, and never panics")]

mod args;
mod assembly;
mod bench;
mod cache;
mod cli;
mod convert;
mod exit;
mod generate;
mod help;
mod inspect;
mod interrupt;
mod model;
mod not_built;
mod output;
mod progress;
mod quantize;
mod report;
mod samples;
mod serve;
mod signal;
mod speculation;
mod streams;
mod transcribe;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
