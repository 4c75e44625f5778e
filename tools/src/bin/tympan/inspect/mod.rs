//! `tympan inspect`: what is in a model file, and what a model computes.

mod devices;
mod graph;
mod listing;
mod plan;
mod source;
pub(crate) mod statistics;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use convert::workers;
use engine::session::{Session, SessionOptions};
use models::LoadOptions;

use self::graph::Call;
use self::source::Source;
use crate::args::{DeviceArgs, ModelArgs, note_threads, parse_threads};
use crate::exit::{Exit, Failure, Outcome};
use crate::report::Verbosity;

/// The call that `--plan` is of where `--graph` says nothing.
const DEFAULT_CALL: &str = "decode:1";

/// Show what is in a model file, and the graph and memory plan of a model
#[derive(Args, Clone, Debug)]
#[command(
    group = clap::ArgGroup::new("of_call").args(["graph", "plan"]).multiple(true),
    group = clap::ArgGroup::new("of_device").args(["graph", "plan", "devices"]).multiple(true),
    after_long_help = "\
Without further flags: metadata and tensors of a GGUF file (of a split one all parts), of a checkpoint directory or of a \
.safetensors file, as they are stored. --tensors reads all values and adds their statistics.

--graph and --plan are of a model that can run, with its projector where it has one. Calls are

  decode:S         one token for each of S sequences
  step:T[:S]       T tokens for each of S sequences
  prompt:T         T tokens or audio embeddings of one sequence
  encode:FRAMES    the audio encoder, for so many frames of features

Examples:
  tympan inspect Qwen3-ASR-0.6B-Q8_0.gguf
  tympan inspect Qwen3-ASR-0.6B --tensors
  tympan inspect Qwen3-ASR-0.6B-Q8_0.gguf --json | jq .types
  tympan inspect Qwen3-ASR-0.6B-Q8_0.gguf --graph decode:1
  tympan inspect --graph encode:1100 --plan
  tympan inspect --devices

Exit codes: 0 done, 2 usage, 4 model, 5 memory."
)]
pub(crate) struct InspectArgs {
    /// GGUF file, directory with one model in it, checkpoint directory, or .safetensors file [default: the built-in
    /// demonstration model]
    #[arg(value_name = "FILE|MODEL")]
    path: Option<PathBuf>,

    /// Projector file of the model, for --graph and --plan [default: the mmproj-*.gguf beside it]
    #[arg(long, value_name = "PATH", requires_all = ["path", "of_call"])]
    mmproj: Option<PathBuf>,

    /// Read every tensor: least, greatest and mean value, root of the mean square, values that are not finite
    #[arg(long, conflicts_with_all = ["graph", "plan", "devices"])]
    tensors: bool,

    /// The graph of a call after all passes, such as decode:1, step:8:2, prompt:150 or encode:1100
    #[arg(long, value_name = "CALL", value_parser = Call::parse, conflicts_with = "devices")]
    graph: Option<Call>,

    /// The memory plan of a call [default: of decode:1]
    #[arg(long, conflicts_with = "devices")]
    plan: bool,

    /// What computes here: backends, instruction sets, threads
    #[arg(long)]
    devices: bool,

    /// Write metadata and tensors as one JSON document
    #[arg(long, conflicts_with_all = ["graph", "plan", "devices"])]
    json: bool,

    /// Threads [default: all available cores]
    #[arg(short, long, value_name = "N", value_parser = parse_threads)]
    threads: Option<NonZeroUsize>,

    /// Device to compute on, for --graph, --plan and --devices: auto, cpu, reference
    #[arg(long, value_name = "DEVICE", default_value = "auto", requires = "of_device")]
    device: String,

    /// Say nothing but errors on standard error
    #[arg(short, long)]
    quiet: bool,

    /// Show arrays in full
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
}

impl InspectArgs {
    fn device(&self) -> DeviceArgs {
        DeviceArgs { threads: self.threads, device: self.device.clone(), ..DeviceArgs::default() }
    }
}

/// Runs the subcommand.
///
/// Errors: usage, a file that cannot be read, a model that cannot be loaded.
pub(crate) fn run(args: &InspectArgs) -> Outcome<Exit> {
    note_threads(args.threads, Verbosity::new(args.quiet, false));
    let text = if args.devices {
        devices::text(&args.device())?
    } else if args.graph.is_some() || args.plan {
        of_model(args)?
    } else {
        let say = Verbosity::new(args.quiet, false);
        let listing = workers::with(args.threads, || {
            let source = Source::open(args.path.as_deref(), say)?;
            source.listing(args.tensors).map_err(Failure::model)
        })??;
        if args.json { listing.json(args.verbose) } else { listing.text(args.verbose) }
    };
    crate::streams::print(&text)?;
    Ok(Exit::Done)
}

/// The graph and the plan of a call.
fn of_model(args: &InspectArgs) -> Outcome<String> {
    let call = match args.graph {
        Some(call) => call,
        None => Call::parse(DEFAULT_CALL).expect("the default is a call"),
    };
    let device = args.device().open()?;
    Verbosity::new(args.quiet, args.verbose).detail(device.describe());
    let model = ModelArgs { model: args.path.clone(), mmproj: args.mmproj.clone() };
    let options = LoadOptions { text_only: !call.needs_audio(), ..LoadOptions::default() };
    let loading = args.device().loading(args.threads, false);
    let model = model.load(options, loading, Verbosity::new(args.quiet, false))?;
    let options = SessionOptions { n_slots: call.n_slots(), n_ctx: call.n_ctx(), ..SessionOptions::default() };
    let backends = [device.backend];
    let session = Session::open(std::sync::Arc::clone(&model.loaded.model), &model.loaded.weights, &backends, options);
    let session = session.with_context(|| model.name.clone()).map_err(Failure::model)?;
    let key = call.key(&session).map_err(|what| Failure::usage(format!("--graph {call}: {what}")))?;
    let planned = session.describe(&key).with_context(|| format!("{}: {call}", model.name)).map_err(Failure::model)?;
    let shown =
        graph::Shown { planned: &planned, session: &session, weights: &model.loaded.weights, backends: &backends };
    let mut text = format!("{} ({}), {call}: {}\n\n", model.name, model.loaded.arch.name, call.words(&key));
    if args.graph.is_some() {
        text += &shown.text();
    }
    if args.plan {
        text += &plan::text(&shown);
    }
    Ok(text)
}
