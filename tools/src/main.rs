//! `tympan`: parses, calls, maps errors to exit codes; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::cli::main()
}
