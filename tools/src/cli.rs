//! The command line: one variant per subcommand, and the way from an error to an exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit::{Exit, Outcome};

/// Local speech recognition.
#[derive(Parser, Debug)]
#[command(name = "tympan", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {}

/// Parses the arguments of the process, runs the subcommand and gives its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let exit = if e.use_stderr() { Exit::Usage } else { Exit::Done };
            // A closed pipe is the reader's choice.
            let _ = e.print();
            return exit.into();
        }
    };
    match run(&cli.command) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit.into()
        }
    }
}

fn run(command: &Command) -> Outcome<Exit> {
    match *command {}
}
