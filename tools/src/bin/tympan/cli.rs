//! The command line: one variant per subcommand, and the way from an error to an exit code.

use std::process::ExitCode;

use clap::{ColorChoice, Command as Definition, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use crate::bench::{self, BenchArgs};
use crate::convert::{self, ConvertArgs};
use crate::exit::{Exit, Failure, Outcome};
use crate::generate::{self, GenerateArgs};
use crate::inspect::{self, InspectArgs};
use crate::quantize::{self, QuantizeArgs};
use crate::serve::{self, ServeArgs};
use crate::streams;
use crate::transcribe::{self, TranscribeArgs};
use crate::{help, interrupt, not_built};

/// Subcommands that have a manual page.
const PAGES: [&str; 9] =
    ["transcribe", "convert", "bench", "quantize", "generate", "inspect", "serve", "completions", "man"];

/// What `--version -v` adds.
const LICENCES: &str = "\
code: MIT
built-in demonstration model: CC BY-SA 4.0, trained on synthetic speech and on the Free Spoken Digit Dataset
  (Zohar Jackson and contributors, https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0)";

/// Local speech recognition
///
/// Audio files to text, with models of this machine: nothing is sent anywhere. A small demonstration model is built in; real
/// ones are GGUF files, or checkpoints that `tympan convert` makes GGUF files of.
#[derive(Parser, Debug)]
#[command(name = "tympan", disable_version_flag = true, arg_required_else_help = true)]
#[command(after_long_help = "\
Each subcommand has its own help: tympan transcribe --help.

Examples:
  tympan transcribe talk.mp3
  tympan transcribe -m Qwen3-ASR-0.6B-Q8_0.gguf -f srt,json -o out interviews/
  tympan convert Qwen3-ASR-0.6B --type q8_0
  tympan inspect Qwen3-ASR-0.6B-Q8_0.gguf
  tympan serve -m Qwen3-ASR-0.6B-Q8_0.gguf
  tympan man transcribe | man -l -
  tympan completions bash > ~/.local/share/bash-completion/completions/tympan

Exit codes: 0 done, 1 some of several inputs failed, sound was lost or an output cannot be written, 2 usage, 3 an input cannot \
be read, 4 model, 5 memory, 6 a text was cut at the token limit, 129, 130, 143 ended by HUP, INT, TERM.")]
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
    Generate(Box<GenerateArgs>),
    Inspect(Box<InspectArgs>),
    Serve(Box<ServeArgs>),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a manual page in roff
    Man {
        /// A subcommand [default: the page of the program]
        #[arg(value_parser = PAGES)]
        subcommand: Option<String>,
    },
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

/// All arguments, and what help says of them.
fn definition() -> Definition {
    let color = if streams::may_colour() { ColorChoice::Auto } else { ColorChoice::Never };
    help::complete(Cli::command()).color(color)
}

fn run() -> Outcome<Exit> {
    let args = bench::spelt_out(std::env::args_os());
    not_built::refuse_words(&args)?;
    let all = definition();
    let args = serve::spelt_out(args, &all);
    let matches = match all.try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(e) if e.use_stderr() => {
            let _ = not_built::without_suggestion(e).print();
            return Ok(Exit::Usage);
        }
        // Help.
        Err(e) => return streams::printed(e.print()).map(|()| Exit::Done),
    };
    not_built::refuse(&matches)?;
    let cli = Cli::from_arg_matches(&matches).map_err(Failure::refused)?;
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
        Some(Command::Serve(args)) => serve::run(&args),
        Some(Command::Completions { shell }) => {
            streams::print(&help::completions(&definition(), shell)).map(|()| Exit::Done)
        }
        Some(Command::Man { subcommand }) => {
            let page = help::page(definition(), subcommand.as_deref()).map_err(Failure::output)?;
            streams::print(&page).map(|()| Exit::Done)
        }
        None => Err(Failure::usage("no subcommand given")),
    }
}
