//! The command line: one variant per subcommand, and the way from an error to an exit code.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::bench::{self, BenchArgs};
use crate::convert::{self, ConvertArgs};
use crate::exit::{Exit, Failure, Outcome};
use crate::generate::{self, GenerateArgs};
use crate::inspect::{self, InspectArgs};
use crate::quantize::{self, QuantizeArgs};
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
    let cli = match Cli::try_parse_from(bench::spelt_out(std::env::args_os())) {
        Ok(cli) => cli,
        Err(e) => {
            let exit = if e.use_stderr() { Exit::Usage } else { Exit::Done };
            // A closed pipe is the reader's choice.
            let _ = e.print();
            return exit.into();
        }
    };
    match run(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit.into()
        }
    }
}

fn run(cli: Cli) -> Outcome<Exit> {
    if cli.version {
        println!("tympan {}", env!("CARGO_PKG_VERSION"));
        if cli.verbose {
            println!("{LICENCES}");
        }
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
            clap_complete::generate(shell, &mut Cli::command(), "tympan", &mut std::io::stdout());
            Ok(Exit::Done)
        }
        Some(Command::Man) => {
            let page = clap_mangen::Man::new(Cli::command());
            page.render(&mut std::io::stdout()).map_err(Failure::input)?;
            Ok(Exit::Done)
        }
        None => Err(Failure::usage("no subcommand given")),
    }
}
