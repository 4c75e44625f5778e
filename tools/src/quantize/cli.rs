//! `tympan quantize`: arguments and messages.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;
use engine::gguf::Gguf;

use super::Quantization;
use super::imatrix::ImportanceMatrix;
use super::mix::FileType;
use crate::args::parse_threads;
use crate::exit::{Exit, Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::progress::Bar;

/// Writes a GGUF file in another type.
///
/// Types per tensor and bytes are those of llama-quantize. The name of the new file goes to standard output.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  tympan quantize model-bf16.gguf model-q4_k_m.gguf q4_k_m
  tympan quantize model-bf16.gguf model-q3_k_m.gguf q3_k_m --imatrix imatrix.gguf
  tympan quantize model-q8_0.gguf model-q4_0.gguf q4_0 --allow-requantize")]
pub struct QuantizeArgs {
    /// GGUF file, or the first part of a split one
    #[arg(value_name = "IN.gguf")]
    input: PathBuf,

    /// File to write
    #[arg(value_name = "OUT.gguf")]
    output: PathBuf,

    /// Type of the new file
    #[arg(value_name = "TYPE", ignore_case = true, value_parser = types())]
    file_type: String,

    /// Quantize what is quantized already: worse than from the original
    #[arg(long)]
    allow_requantize: bool,

    /// Importance matrix of the model (GGUF, as llama-imatrix writes it)
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,

    /// Threads [default: all available cores]
    #[arg(short, long, value_name = "N", value_parser = parse_threads)]
    threads: Option<NonZeroUsize>,

    /// No progress bar
    #[arg(short, long)]
    quiet: bool,
}

fn types() -> PossibleValuesParser {
    FileType::ALL.map(FileType::name).into()
}

/// Runs the subcommand.
pub fn run(args: &QuantizeArgs) -> Outcome<Exit> {
    let mix = FileType::from_name(&args.file_type).ok_or_else(|| Failure::usage("no such type"))?;
    let source = Gguf::open(&args.input).map_err(Failure::model)?;
    let importance = args.imatrix.as_deref().map(ImportanceMatrix::open).transpose().map_err(Failure::model)?;
    let plan = Quantization::plan(source, mix, importance, args.allow_requantize)?;
    let interrupt = Interrupt::install()?;
    let threads = args.threads.map_or(0, NonZeroUsize::get);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(Failure::output)?;
    let bar = Bar::new(plan.elements(), args.quiet, interrupt);
    let result = pool.install(|| plan.write(&args.output, &bar, &mut |line| bar.line(&line)));
    bar.finish();
    result?;
    println!("{}", args.output.display());
    Ok(Exit::Done)
}
