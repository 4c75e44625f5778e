//! The command line: one variant per subcommand, and the way from an error to an exit code.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::bench::{self, BenchArgs};
use crate::convert::{self, ConvertArgs};
use crate::exit::{Exit, Failure, Outcome};
use crate::generate::{self, GenerateArgs};
use crate::inspect::{self, InspectArgs};
use crate::interrupt;
use crate::quantize::{self, QuantizeArgs};
use crate::streams;
use crate::transcribe::{self, TranscribeArgs};

/// What `--version -v` adds.
const LICENCES: &str = "\
code: MIT
built-in demonstration model: CC BY-SA 4.0, trained on synthetic speech and on the Free Spoken Digit Dataset
  (Zohar Jackson and contributors, https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0)";

/// Local speech recognition.
#[derive(Parser, Debug)]
#[command(name = "tympan", disable_version_flag = true, arg_required_else_help = true)]
struct Cli {
    /// Print the version; with -v also licences
    #[arg(short = 'V', long)]
    version: bool,

    #[arg(short, long, hide = true, requires = "version")]
    verbose: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    Transcribe(Box<TranscribeArgs>),
    Convert(ConvertArgs),
    Bench(Box<BenchArgs>),
    Quantize(QuantizeArgs),
    Generate(GenerateArgs),
    Inspect(Box<InspectArgs>),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page in roff
    Man,
}

/// Parses the arguments of the process, runs the subcommand and gives its exit code.
pub(crate) fn main() -> ExitCode {
    match interrupt::install().and_then(|()| run()) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            failure.say();
            failure.exit.into()
        }
    }
}

fn run() -> Outcome<Exit> {
    let cli = match Cli::try_parse_from(bench::spelt_out(std::env::args_os())) {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() => {
            let _ = e.print();
            return Ok(Exit::Usage);
        }
        // Help.
        Err(e) => return streams::printed(e.print()).map(|()| Exit::Done),
    };
    if cli.version {
        let licences = if cli.verbose { format!("{LICENCES}\n") } else { String::new() };
        streams::print(&format!("tympan {}\n{licences}", env!("CARGO_PKG_VERSION")))?;
        return Ok(Exit::Done);
    }
    match cli.command {
        Some(Command::Transcribe(args)) => transcribe::run(&args),
        Some(Command::Convert(args)) => convert::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Quantize(args)) => quantize::run(&args),
        Some(Command::Generate(args)) => generate::run(&args),
        Some(Command::Inspect(args)) => inspect::run(&args),
        Some(Command::Completions { shell }) => {
            // They expect a writer that never fails.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tympan", &mut script);
            streams::print(&String::from_utf8_lossy(&script)).map(|()| Exit::Done)
        }
        Some(Command::Man) => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(Failure::output)?;
            streams::print(&String::from_utf8_lossy(&page)).map(|()| Exit::Done)
        }
        None => Err(Failure::usage("no subcommand given")),
    }
}
