//! `tympan convert`: arguments, file names, progress.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use convert::{Conversion, FileType, Files, Options, projector_name};
use engine::DType;
use tympan::foreign;

use crate::args::{file_types, parse_size};
use crate::assembly::AssemblyArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::output::make_folder;
use crate::quantize::OverrideArgs;
use crate::streams;

/// Ending of the files that are written.
const GGUF: &str = "gguf";

/// Converts a checkpoint (safetensors) to GGUF.
///
/// Reads a published checkpoint (any number of shards) of Qwen3-ASR (original or -hf layout) or LFM2-Audio, or a Qwen3,
/// Llama, LFM2 or LFM2-MoE text model. Writes the pair of files that llama.cpp reads, or one bundle, which leaves out what
/// only llama.cpp wants. The names of the files go to standard output. When it is killed or interrupted, the same command
/// goes on where it stopped.
#[derive(Args, Debug)]
#[allow(rustdoc::broken_intra_doc_links, reason = "users see the brackets")]
#[command(after_long_help = "Examples:
  tympan convert Qwen3-ASR-0.6B --type q8_0
  tympan convert Qwen3-ASR-0.6B --type q8_0 --audio-type f16 -o models/
  tympan convert LFM2-Audio-1.5B --bundle -o asr.gguf
  tympan convert synth:lfm2-1.2b --type q4_k_m -o models/

Exit codes: 0 done, 1 an output cannot be written, 2 usage, 4 checkpoint, 5 memory, 129, 130, 143 ended by HUP, INT, TERM.")]
pub(crate) struct ConvertArgs {
    /// Directory with config.json, model.safetensors (or shards) and the tokenizer; or synth:SHAPE[:SEED], random weights
    /// of a published shape
    #[arg(value_name = "CHECKPOINT_DIR")]
    checkpoint: PathBuf,

    /// Directory, or file ending in .gguf (its projector is mmproj-FILE) [default: NAME-TYPE.gguf and
    /// mmproj-NAME-TYPE.gguf in the current directory]
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,

    /// Type of most matrices; which types the others have is llama-quantize's choice
    #[arg(long = "type", value_name = "TYPE", default_value = "bf16", ignore_case = true, value_parser = file_types())]
    file_type: String,

    /// Type of the audio tower's matrices [default: as --type, but q8_0 where that is below 8 bits]
    #[arg(long, value_name = "TYPE", ignore_case = true, value_parser = file_types())]
    audio_type: Option<String>,

    /// Write one file instead of the pair
    #[arg(long)]
    bundle: bool,

    #[command(flatten)]
    writing: AssemblyArgs,

    /// Split the text model into parts with tensors of at most SIZE bytes (K, M, G: thousands), as llama.cpp reads them;
    /// the audio tower stays in one file
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    split_max_size: Option<u64>,

    #[command(flatten)]
    overrides: OverrideArgs,
}

/// Runs the subcommand.
pub(crate) fn run(args: &ConvertArgs) -> Outcome<Exit> {
    let file_type =
        |name: &str| FileType::from_name(name).ok_or_else(|| Failure::usage(format!("{name}: no such type")));
    let text_type = file_type(&args.file_type)?;
    let audio_type = args.audio_type.as_deref().map(file_type).transpose()?;
    let defaults = Options::new(text_type);
    let importance = args.overrides.importance()?.map(Arc::new);
    let options = Options {
        audio_type: audio_type.unwrap_or(defaults.audio_type),
        bundle: args.bundle,
        overrides: args.overrides.overrides()?,
        importance,
        split_max_bytes: args.split_max_size,
        ..defaults
    };
    foreign::refuse_in(&args.checkpoint)?;
    let conversion = Conversion::open(Files::from_argument(&args.checkpoint)?, |_: DType| options)?;
    if let Some(name) = args.audio_type.as_deref().filter(|_| !conversion.has_audio()) {
        let checkpoint = args.checkpoint.display();
        return Err(Failure::usage(format!("--audio-type {name}: {checkpoint} has no audio tower")));
    }
    let paths = output_paths(&conversion.file_names(), args.output.as_deref());
    let checkpoint = files_of(&args.checkpoint);
    let inputs = checkpoint.iter().map(PathBuf::as_path).chain(args.overrides.imatrix.as_deref());
    if let Some(folder) = args.output.as_ref().filter(|output| !args.writing.dry_run && !paths.contains(output)) {
        make_folder(folder)?;
    }
    let paths = args.writing.outputs(&paths, inputs)?;
    conversion.notices().iter().for_each(streams::say);
    args.writing.run(&conversion.assembly(&paths)?)
}

/// The files of a checkpoint; GGUF files beside them are none of them.
fn files_of(checkpoint: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(checkpoint).into_iter().flatten().flatten();
    let is_gguf = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(GGUF));
    entries.map(|entry| entry.path()).filter(|path| !is_gguf(path) || path.is_symlink()).collect()
}

/// Where files called `names` go. `output`: a directory or a file.
fn output_paths(names: &[String], output: Option<&Path>) -> Vec<PathBuf> {
    let Some(output) = output else { return names.iter().map(PathBuf::from).collect() };
    let is_file = output.extension().is_some_and(|e| e.eq_ignore_ascii_case(GGUF)) && !output.is_dir();
    match output.file_name() {
        Some(name) if is_file => {
            let projector = output.with_file_name(projector_name(&name.to_string_lossy()));
            [output.to_owned(), projector].into_iter().take(names.len()).collect()
        }
        _ => names.iter().map(|name| output.join(name)).collect(),
    }
}
