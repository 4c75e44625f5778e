//! `tympan quantize`: arguments and messages.

use std::path::PathBuf;

use clap::Args;
use convert::FileType;
use convert::quantize::Quantization;
use convert::quantize::imatrix::ImportanceMatrix;
use convert::quantize::overrides::Overrides;
use engine::gguf::Gguf;

use crate::args::file_types;
use crate::assembly::AssemblyArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::streams;

/// Writes a GGUF file in another type.
///
/// Types per tensor and bytes are those of llama-quantize. The name of the new file goes to standard output. When it is
/// killed or interrupted, the same command goes on where it stopped.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  tympan quantize model-bf16.gguf model-q4_k_m.gguf q4_k_m
  tympan quantize model-bf16.gguf model-q3_k_m.gguf q3_k_m --imatrix imatrix.gguf
  tympan quantize model-q8_0.gguf model-q4_0.gguf q4_0 --allow-requantize

Exit codes: 0 done, 1 an output cannot be written, 2 usage, 4 model, 5 memory, 129, 130, 143 ended by HUP, INT, TERM.")]
pub(crate) struct QuantizeArgs {
    /// GGUF file, or the first part of a split one
    #[arg(value_name = "IN.gguf")]
    input: PathBuf,

    /// File to write
    #[arg(value_name = "OUT.gguf")]
    output: PathBuf,

    /// Type of the new file
    #[arg(value_name = "TYPE", ignore_case = true, value_parser = file_types())]
    file_type: String,

    /// Quantize what is quantized already: worse than from the original
    #[arg(long)]
    allow_requantize: bool,

    #[command(flatten)]
    overrides: OverrideArgs,

    #[command(flatten)]
    writing: AssemblyArgs,
}

/// What a file has otherwise than its type says.
#[derive(Args, Debug)]
pub(crate) struct OverrideArgs {
    /// Importance matrix of the model (GGUF, as llama-imatrix writes it)
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,

    /// Type of the matrices with such names (repeatable; the first that matches anywhere in a name wins)
    #[arg(long, value_name = "REGEX=TYPE")]
    pub tensor_type: Vec<String>,

    /// Value of a metadata key, TYPE being int, float, bool or str (repeatable)
    #[arg(long, value_name = "KEY=TYPE:VALUE")]
    pub override_kv: Vec<String>,
}

impl OverrideArgs {
    /// The importance matrix, where one is given.
    pub(crate) fn importance(&self) -> Outcome<Option<ImportanceMatrix>> {
        self.imatrix.as_deref().map(ImportanceMatrix::open).transpose().map_err(Failure::model)
    }

    /// Types and keys.
    pub(crate) fn overrides(&self) -> Outcome<Overrides> {
        Overrides::parse(&self.tensor_type, &self.override_kv).map_err(Failure::refused)
    }
}

/// Runs the subcommand.
pub(crate) fn run(args: &QuantizeArgs) -> Outcome<Exit> {
    let mix = FileType::from_name(&args.file_type).ok_or_else(|| Failure::usage("no such type"))?;
    let overrides = args.overrides.overrides()?;
    let source = Gguf::open(&args.input).map_err(Failure::model)?;
    let importance = args.overrides.importance()?;
    let plan = Quantization::plan(source, mix, importance, &overrides, args.allow_requantize)?;
    let inputs = plan.source().paths().chain([&*args.input]).chain(args.overrides.imatrix.as_deref());
    let outputs = args.writing.outputs(std::slice::from_ref(&args.output), inputs)?;
    plan.notices().iter().for_each(streams::say);
    args.writing.run(&plan.assembly(&outputs[0])?)
}
