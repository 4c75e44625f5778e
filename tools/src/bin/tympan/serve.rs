//! `tympan serve`: the model behind HTTP.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Arg, Args, Command};
use engine::session::MAX_CONTEXT;
use models::LoadOptions;
use models::draft::Drafters;
use models::scheduler::CheckpointLimits;
use models::tokenizer::Tokenizer;
use serve::{Computing, Log, Memory, Options, Server, Stopped};
use tympan::Model;

use crate::args::{Device, DeviceArgs, KvType, ModelArgs, note_threads, parse_size};
use crate::exit::{Exit, Failure, Outcome};
use crate::interrupt::{self, Interrupt};
use crate::model::Loading;
use crate::report::{Verbosity, size};
use crate::speculation::{SpeculationArgs, probability};
use crate::streams;

/// Most slots.
const MAX_SLOTS: u64 = 256;
/// Flags of several letters, as users of llama.cpp know them.
const SHORT: [(&str, &str); 3] =
    [("-np", "--parallel"), ("-ctxcp", "--ctx-checkpoints"), ("-sps", "--slot-prompt-similarity")];
/// Flags that another part of the program looks for in the environment.
const OWN_VARIABLES: [&str; 1] = ["graph-reuse"];

/// Answer requests over HTTP: speech recognition in the shapes that clients of OpenAI and of whisper.cpp know.
#[derive(Args, Clone, Debug)]
#[command(args_override_self = true)]
#[command(after_long_help = "\
The address is said on standard error when the server listens. Every request is a line of JSON there: its id (also in the header \
x-request-id), endpoint, status, times and numbers of tokens, and nothing of what was said or asked.

TERM and INT end it: requests that come then get 503, those that are there are answered, or get an error after \
--shutdown-timeout. A second signal ends it at once.

Every flag can be set by a variable: TYMPAN_PORT=8080 is --port 8080, TYMPAN_NO_PAGE=1 is --no-page.

Examples:
  tympan serve -m Qwen3-ASR-0.6B-Q8_0.gguf
  curl -F file=@talk.mp3 http://127.0.0.1:8080/v1/audio/transcriptions
  tympan serve --port 9000 --no-page
  tympan serve -m MODEL.gguf --spec-type ngram-map-k --draft-max 48
  tympan serve -m MODEL.gguf --host 0.0.0.0 --allowed-host box.lan --api-key-file keys.txt

Exit codes: 0 done (never: it is ended by a signal), 1 the address is taken, or the engine has stopped, 2 usage, 4 model, \
5 memory, 129, 130, 143 ended by HUP, INT, TERM.")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    device: DeviceArgs,

    /// Address to listen on; 0.0.0.0 is every one of this machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,

    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value = "8080")]
    port: u16,

    /// Requests that are answered at once
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u64).range(1..=MAX_SLOTS))]
    parallel: u64,

    /// Tokens of a request, prompt and answer together [default: the model's own]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_CONTEXT as u64))]
    ctx_size: Option<u64>,

    /// Most requests that wait for a slot; more get 429
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u64).range(0..=100_000))]
    max_queue: u64,

    /// Name of the model in replies [default: the name of its file]
    #[arg(short, long, value_name = "NAME")]
    alias: Option<String>,

    /// Key that requests need (Authorization: Bearer KEY); may be given several times [default: none needed]
    #[arg(long, value_name = "KEY", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    api_key: Vec<String>,

    /// File with a key on every line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,

    /// Name by which clients may call the server, besides those of this machine; may be given several times
    #[arg(long, value_name = "NAME")]
    allowed_host: Vec<String>,

    /// Origin of a site whose pages may use the server
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Option<String>,

    /// Do not serve the page
    #[arg(long)]
    no_page: bool,

    /// Do not show what slots do
    #[arg(long)]
    no_slots: bool,

    /// Largest body of a request, in MiB
    #[arg(long, value_name = "MIB", default_value = "200", value_parser = clap::value_parser!(u64).range(1..=4096))]
    max_upload_mb: u64,

    /// Bodies and decoded audio of all requests together, in MiB; more get 429
    #[arg(long, value_name = "MIB", default_value = "1024", value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    max_held_mb: u64,

    /// What the encoder made of recordings, kept for when one comes again, in MiB; 0 keeps nothing
    #[arg(long, value_name = "MIB", default_value = "64", value_parser = clap::value_parser!(u64).range(0..=1_048_576))]
    audio_cache_mb: u64,

    /// Longest recording, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "10800", value_parser = clap::value_parser!(u32).range(1..=33_554))]
    max_audio_seconds: u32,

    /// Most connections
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    max_connections: u64,

    /// Threads that speak HTTP and decode recordings
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u64).range(1..=64))]
    threads_http: u64,

    /// Longest time of an answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    timeout: u64,

    /// Time for what is being answered when a signal comes, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u64).range(0..=86_400))]
    shutdown_timeout: u64,

    /// Memory that the server may use: a number of bytes, or one followed by K, M or G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory_budget: Option<u64>,

    /// Feed every prompt whole: slots do not keep the sequence of their last request for prompts that begin as it did
    #[arg(long)]
    no_cache_prompt: bool,

    /// Most checkpoints of a slot's sequence, by which models with recurrent states go on where a prompt parts from the one
    /// before; 0 for none (-ctxcp)
    #[arg(long, value_name = "N", default_value = "32", value_parser = clap::value_parser!(u64).range(0..=1024))]
    ctx_checkpoints: u64,

    /// Bytes of all checkpoints together, in MiB
    #[arg(long, value_name = "MIB", default_value = "1024", value_parser = clap::value_parser!(u64).range(0..=1_048_576))]
    ctx_checkpoints_mem: u64,

    /// The part of a prompt that a slot must have for it to go there, and not where the slot was used least recently: 0 to 1 (-sps)
    #[arg(long, value_name = "PART", default_value = "0.1", value_parser = probability)]
    slot_prompt_similarity: f32,

    /// Directory where POST /slots/ID?action=save writes what a slot keeps, and restore reads it [default: none]
    #[arg(long, value_name = "DIR")]
    slot_save_path: Option<PathBuf>,

    /// Type of the attention cache: f16 or f32
    #[arg(long, value_name = "TYPE", default_value = "f16", hide_possible_values = true)]
    kv_type: KvType,

    #[command(flatten)]
    speculation: SpeculationArgs,

    /// Say errors only, and no line for a request
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,

    /// Say more
    #[arg(short, long)]
    verbose: bool,
}

/// The command line with short flags spelt out and variables of the environment as flags, if its subcommand is `serve`.
pub(crate) fn spelt_out(args: Vec<OsString>, definition: &Command) -> Vec<OsString> {
    if args.get(1).is_none_or(|name| name != "serve") {
        return args;
    }
    let long = |arg: OsString| match SHORT.iter().find(|(short, _)| arg == *short) {
        Some((_, long)) => long.into(),
        None => arg,
    };
    let mut args = args.into_iter();
    let words: Vec<OsString> = args.by_ref().take(2).collect();
    let args: Vec<OsString> = args.map(long).collect();
    let is_given = |arg: &Arg| {
        let mut names = arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default());
        names.any(|name| args.iter().filter_map(|word| flag_of(word)).any(|given| given == name))
    };
    let flags = definition.find_subcommand("serve").into_iter().flat_map(Command::get_arguments);
    // What is on the command line counts, also where a flag may be given several times.
    let flags = flags.filter(|arg| !is_given(arg));
    let flags = flags.filter_map(|arg| Some((arg.get_long()?, arg.get_action().takes_values())));
    let set = flags.filter(|(name, _)| !OWN_VARIABLES.contains(name)).filter_map(|(name, takes_value)| {
        let value = std::env::var_os(variable(name)).filter(|value| !value.is_empty())?;
        let mut flag = OsString::from(format!("--{name}"));
        if takes_value {
            flag.push("=");
            flag.push(value);
        } else if value == "0" {
            return None;
        }
        Some(flag)
    });
    let set: Vec<OsString> = set.collect();
    words.into_iter().chain(set).chain(args).collect()
}

/// The name of a flag on the command line: of `--name` and of `--name=value`.
fn flag_of(word: &OsString) -> Option<&str> {
    let name = word.to_str()?.strip_prefix("--")?;
    Some(name.split_once('=').map_or(name, |(name, _)| name))
}

/// The variable of a flag.
fn variable(flag: &str) -> String {
    format!("TYMPAN_{}", flag.to_ascii_uppercase().replace('-', "_"))
}

/// Runs the subcommand.
///
/// Errors: usage, a model that cannot be loaded, memory that does not suffice, an address that is taken.
pub(crate) fn run(args: &ServeArgs) -> Outcome<Exit> {
    let say = Verbosity::new(args.quiet, args.verbose);
    let device = args.device.open()?;
    note_threads(args.device.threads, say);
    let reuse = args.device.reuse()?;
    let keys = keys(args)?;
    args.speculation.parameters()?;
    args.model.prepare(args.device.threads, say)?;
    serve::keep_large_blocks_apart();
    let load = Instant::now();
    let loading = args.device.loading(args.device.threads, true);
    let model = args.model.load(LoadOptions::default(), loading, say)?;
    let mut options = options(args, &model, keys)?;
    let drafters = drafters(args, &model, &device, (loading, say))?;
    let backends = vec![Arc::clone(&device.backend)];
    let rollback = args.speculation.rollback();
    let computing = Computing { backends, kv_dtype: args.kv_type.into(), reuse, drafters, rollback };
    report(args, &model, &computing, &mut options, say)?;
    let log: Log = if args.quiet { Arc::new(|_| ()) } else { Arc::new(|line| streams::say(line)) };
    // Before the address is taken: whoever can connect is answered.
    let server = Server::open(&model.loaded, &computing, options, log);
    let server = server.with_context(|| format!("loading {}", model.name)).map_err(Failure::model)?;
    let address = (args.host.as_str(), args.port);
    let taken = || format!("{}:{}: cannot listen there", args.host, args.port);
    let listener = TcpListener::bind(address).with_context(taken).map_err(Failure::output)?;
    let address = listener.local_addr().with_context(taken).map_err(Failure::output)?;
    say.detail(device.describe());
    if !address.ip().is_loopback() && args.api_key.is_empty() && args.api_key_file.is_none() {
        say.note("others can use this server: it listens beyond this machine, and no key is needed (--api-key)");
    }
    let load_s = load.elapsed().as_secs_f64();
    say.note(format_args!("{} loaded in {load_s:.2} s; listening on http://{address}", model.name));
    let interrupt = Interrupt::watch();
    let stopped = server.serve(listener, &|| interrupt.is_set() || model.check_unchanged().is_err());
    if let Some(drafters) = &computing.drafters {
        args.speculation.close(drafters, say)?;
    }
    match stopped.context("threads for HTTP").map_err(Failure::refused)? {
        Stopped::Died => Err(Failure::output(anyhow::anyhow!("the engine has stopped"))),
        Stopped::Asked | Stopped::Late => match interrupt::exit() {
            Some(exit) => Ok(exit),
            None => crate::model::check_unchanged(&model).map(|()| Exit::Done),
        },
    }
}

/// What guesses the next tokens, where there are to be drafts. Without a file that all texts are to teach, no client's text is
/// told by another's speed.
///
/// Errors: those of [`SpeculationArgs::open`].
fn drafters(
    args: &ServeArgs,
    model: &Model,
    device: &Device,
    (loading, say): (Loading, Verbosity),
) -> Outcome<Option<Drafters>> {
    if args.speculation.parameters()?.is_none() {
        return Ok(None);
    }
    let tokenizer = Tokenizer::from_gguf(&model.loaded.files[0]).map_err(Failure::model)?;
    let n_slots = usize::try_from(args.parallel).unwrap_or(usize::MAX);
    let drafters = args.speculation.open(&tokenizer, &device.backend, args.kv_type, n_slots, (loading, say))?;
    let is_shared = args.speculation.lookup_cache_dynamic.is_some();
    Ok(drafters.map(|drafters| if is_shared { drafters } else { drafters.apart() }))
}

/// The keys of the flags and of the file.
fn keys(args: &ServeArgs) -> Outcome<Vec<String>> {
    let mut keys = args.api_key.clone();
    if let Some(path) = &args.api_key_file {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("--api-key-file {}", path.display())).map_err(Failure::refused)?;
        keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
        if keys.is_empty() {
            return Err(Failure::usage(format!("--api-key-file {}: no key in it", path.display())));
        }
    }
    Ok(keys)
}

fn options(args: &ServeArgs, model: &Model, keys: Vec<String>) -> Outcome<Options> {
    const MIB: u64 = 1 << 20;
    let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let own = model.loaded.context_length().map_err(Failure::model)?;
    let n_ctx = args.ctx_size.map_or(own.min(MAX_CONTEXT), number);
    if n_ctx > own {
        return Err(Failure::usage(format!("--ctx-size {n_ctx}: the context of this model holds {own} tokens")));
    }
    if let Some(folder) = args.slot_save_path.as_ref().filter(|folder| !folder.is_dir()) {
        return Err(Failure::usage(format!("--slot-save-path {}: no such directory", folder.display())));
    }
    Ok(Options {
        n_slots: number(args.parallel),
        n_ctx,
        max_queue: number(args.max_queue),
        alias: args.alias.clone().unwrap_or_else(|| model.name.clone()),
        keys,
        allowed_hosts: args.allowed_host.clone(),
        host: args.host.clone(),
        cors_origin: args.cors_origin.clone(),
        has_page: !args.no_page,
        has_slots: !args.no_slots,
        max_upload_bytes: number(args.max_upload_mb * MIB),
        max_held_bytes: number(args.max_held_mb * MIB),
        audio_cache_bytes: number(args.audio_cache_mb * MIB),
        keeps_prompts: !args.no_cache_prompt,
        checkpoints: CheckpointLimits {
            n: number(args.ctx_checkpoints),
            bytes: number(args.ctx_checkpoints_mem * MIB),
        },
        slot_similarity: args.slot_prompt_similarity,
        slot_save_path: args.slot_save_path.clone(),
        max_audio_s: args.max_audio_seconds,
        max_connections: number(args.max_connections),
        threads_http: number(args.threads_http),
        timeout: Duration::from_secs(args.timeout),
        shutdown_time: Duration::from_secs(args.shutdown_timeout),
        ..Options::default()
    })
}

/// Says what will be used of memory, and bounds what sequences may have of the budget.
///
/// Errors: the budget does not suffice for one sequence as long as the context.
fn report(
    args: &ServeArgs,
    model: &Model,
    computing: &Computing,
    options: &mut Options,
    say: Verbosity,
) -> Outcome<()> {
    let memory = Memory::of(&model.loaded, computing, options).map_err(Failure::model)?;
    let shown = |bytes: usize| size(bytes as u64);
    let Memory { weights, draft_weights, states, rings, spare, checkpoints, held, audio_cache } = memory;
    let draft_model = if draft_weights > 0 { format!(" and {}", shown(draft_weights)) } else { String::new() };
    let of_drafts = if rings > 0 { format!(", {} of it to take drafts back", shown(rings)) } else { String::new() };
    let of_prompts =
        if checkpoints > 0 { format!(", checkpoints of prompts up to {}", shown(checkpoints)) } else { String::new() };
    let text = format!(
        "memory: weights {}{draft_model}, states of a sequence of {} tokens {}{of_drafts} ({} slots, which keep {}), spare \
         states up to {}{of_prompts}, uploads and audio up to {}, vectors of recordings up to {}",
        shown(weights),
        options.n_ctx,
        shown(states),
        options.n_slots,
        if options.keeps_prompts { "their last one" } else { "nothing between requests" },
        shown(spare),
        shown(held),
        shown(audio_cache),
    );
    say.note(&text);
    let Some(budget) = args.memory_budget else { return Ok(()) };
    let budget = usize::try_from(budget).unwrap_or(usize::MAX);
    let left = budget.saturating_sub(memory.fixed());
    if left < states {
        let error = engine::Error::OutOfMemory {
            what: format!("{}; --memory-budget", text.trim_start_matches("memory: ")),
            wanted: memory.fixed().saturating_add(states),
            free: Some(budget),
        };
        return Err(Failure::model(error));
    }
    options.max_state_bytes = Some(left);
    Ok(())
}
