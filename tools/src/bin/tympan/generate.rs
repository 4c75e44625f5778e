//! `tympan generate`: text in, text out, for language models and those inside speech models.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use engine::session::MAX_CONTEXT;
use models::LoadOptions;
use models::generate::{Generated, Generator, Request};
use models::sample::Sampling;
use safetensors::tensor::{Dtype, TensorView};

use crate::args::{DeviceArgs, KvType, ModelArgs, note_threads};
use crate::exit::{Exit, Failure, Outcome};
use crate::model::{check_unchanged, failure, files_of};
use crate::output::{Destination, refuse_collisions};
use crate::report::{Verbosity, peak_rss_bytes, short, size};
use crate::streams;

/// Most tokens that `-n` accepts: those of the longest context. The model's own may be shorter.
const MAX_TOKENS: u64 = MAX_CONTEXT as u64;
/// Tokens from which on it pays to copy the weights first.
const LONG_TOKENS: u64 = 1024;
/// Highest temperature that is accepted: there all tokens are about equally likely.
const MAX_TEMPERATURE: f32 = 1000.0;

/// Continue a text with a language model.
#[derive(Args, Clone, Debug)]
#[command(
    group = clap::ArgGroup::new("input").required(true).args(["prompt", "prompt_ids"]),
    after_long_help = "\
Tokens are chosen in this order: the logits are divided by the temperature, the largest K are kept (and those equal to the \
last of them), then the most likely that together have probability P, and one of these is drawn with its share. The same \
seed gives the same text.

Examples:
  tympan generate -m LFM2-1.2B-Q8_0.gguf -p 'The capital of France is' -n 20
  tympan generate -m LFM2-1.2B-Q8_0.gguf -p 'Once upon a time' --temp 0.8 --top-p 0.95 --seed 7
  tympan generate -m MODEL.gguf --prompt-ids 1,6,24131 --token-ids --logits-out logits.safetensors

Exit codes: 0 done (the text ended, or has -n tokens), 1 an output cannot be written, 2 usage, 4 model, 5 memory."
)]
pub(crate) struct GenerateArgs {
    /// GGUF file, directory with one model in it, checkpoint directory (safetensors), or synth:SHAPE:TYPE:SEED, random
    /// weights of a published shape; of a speech model the language model is used [default: that of the built-in demonstration model]
    #[arg(short, long, value_name = "PATH")]
    model: Option<PathBuf>,

    /// Text to be continued, as it is: no chat template is applied. Control tokens written in it are control tokens; the
    /// begin-of-text token comes first where the model wants one
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,

    /// Token ids to be continued, separated by commas, in place of a text; nothing is added to them
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    prompt_ids: Option<Vec<u32>>,

    /// Most tokens that are generated
    #[arg(short = 'n', long, value_name = "N", default_value = "128",
          value_parser = clap::value_parser!(u64).range(1..=MAX_TOKENS))]
    max_tokens: u64,

    /// Temperature; 0 takes the most likely token every time
    #[arg(long, value_name = "T", default_value = "0", value_parser = parse_temperature, allow_negative_numbers = true)]
    temp: f32,

    /// Draw from the K most likely tokens; 0 from all
    #[arg(long, value_name = "K", default_value = "0")]
    top_k: u32,

    /// Draw from the most likely tokens that together have probability P; 1 from all
    #[arg(long, value_name = "P", default_value = "1", value_parser = parse_probability, allow_negative_numbers = true)]
    top_p: f32,

    /// Where the random numbers begin
    #[arg(long, value_name = "S", default_value = "0")]
    seed: u64,

    /// Print the ids of the new tokens, separated by commas, in place of their text
    #[arg(long)]
    token_ids: bool,

    /// Go on past tokens that end a text
    #[arg(long)]
    ignore_eos: bool,

    /// Write the logits of every token of the prompt, `logits` [n_tokens, n_vocab], as safetensors
    #[arg(long, value_name = "FILE")]
    logits_out: Option<PathBuf>,

    /// Type of the attention cache: f16 or f32
    #[arg(long, value_name = "TYPE", default_value = "f16", hide_possible_values = true)]
    kv_type: KvType,

    #[command(flatten)]
    device: DeviceArgs,

    /// Say nothing but errors on standard error
    #[arg(short, long)]
    quiet: bool,

    /// Say more on standard error
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    let t = text.parse::<f32>().ok().filter(|t| (0.0..=MAX_TEMPERATURE).contains(t));
    t.ok_or_else(|| format!("want 0 to {MAX_TEMPERATURE}"))
}

fn parse_probability(text: &str) -> Result<f32, String> {
    let p = text.parse::<f32>().ok().filter(|&p| p > 0.0 && p <= 1.0);
    p.ok_or_else(|| "want a number above 0, at most 1".into())
}

/// Runs the subcommand.
///
/// Errors: usage, a model that cannot be loaded, logits that cannot be written.
pub(crate) fn run(args: &GenerateArgs) -> Outcome<Exit> {
    let say = Verbosity::new(args.quiet, args.verbose);
    if args.prompt.as_deref() == Some("") {
        return Err(Failure::usage("--prompt: want some text, got none"));
    }
    let logits_out = args.logits_out.as_deref().map(Destination::check_with_folder).transpose()?;
    let inputs: Vec<PathBuf> = args.model.iter().flat_map(|model| files_of(model)).collect();
    refuse_collisions(logits_out.as_slice(), inputs.iter().map(PathBuf::as_path))?;
    let device = args.device.open()?;
    note_threads(args.device.threads, say);
    let reuse = args.device.reuse()?;

    let model = ModelArgs { model: args.model.clone(), mmproj: None };
    model.prepare(args.device.threads, say)?;
    let load = Instant::now();
    let loading = args.device.loading(args.device.threads, args.max_tokens >= LONG_TOKENS);
    let model = model.load(LoadOptions { text_only: true, ..LoadOptions::default() }, loading, say)?;
    let generator = Generator::open(&model.loaded, std::slice::from_ref(&device.backend), args.kv_type.into());
    let mut generator = generator.with_context(|| format!("loading {}", model.name)).map_err(Failure::model)?;
    generator.set_reuse(reuse);
    let load_s = load.elapsed().as_secs_f64();
    say.detail(device.describe());

    let prompt = match (&args.prompt_ids, &args.prompt) {
        (Some(ids), _) => ids.clone(),
        (None, text) => generator.prompt(text.as_deref().unwrap_or_default()),
    };
    let request = Request {
        prompt: &prompt,
        max_tokens: usize::try_from(args.max_tokens).unwrap_or(usize::MAX),
        sampling: Sampling {
            temperature: args.temp,
            top_k: args.top_k as usize,
            top_p: args.top_p,
            seed: args.seed,
            ..Sampling::default()
        },
        ignore_stop: args.ignore_eos,
        prompt_logits: args.logits_out.is_some(),
    };
    let wanted = || format!("a prompt of {} tokens and -n {}", prompt.len(), args.max_tokens);
    generator.check(&request).with_context(wanted).map_err(Failure::refused)?;

    let mut printer = Printer { token_ids: args.token_ids, printed: 0, failure: None };
    let generated = generator.generate(&request, &mut |id, text| printer.token(id, text));
    let generated = generated.map_err(|e| failure(&model, e))?;
    let printed = printer.end(&generated.text);
    check_unchanged(&model)?;
    // They are whole, whoever reads the text.
    if let Some(destination) = &logits_out {
        write_logits(destination, prompt.len(), &generated.prompt_logits).map_err(Failure::output)?;
    }
    printed?;
    summary(say, &prompt, &generated, load_s, device.backend.name());
    let stats = generator.stats();
    say.detail(format_args!("{} graphs built, {} reused", stats.builds, stats.hits));
    Ok(Exit::Done)
}

/// Prints tokens as they come.
struct Printer {
    token_ids: bool,
    /// Bytes of the text, or ids, that are out.
    printed: usize,
    failure: Option<Failure>,
}

impl Printer {
    /// A new token, and the text so far. Breaks when standard output takes no more.
    fn token(&mut self, id: u32, text: &str) -> ControlFlow<()> {
        let new = if self.token_ids {
            self.printed += 1;
            format!("{}{id}", if self.printed > 1 { "," } else { "" })
        } else {
            let new = text[self.printed..].to_owned();
            self.printed = text.len();
            new
        };
        self.failure = streams::print(&new).err();
        if self.failure.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// Ends the line, after what the end of the text made complete.
    ///
    /// Errors: standard output could not be written, now or before.
    fn end(self, text: &str) -> Outcome<()> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let rest = if self.token_ids { "" } else { &text[self.printed..] };
        streams::print(&format!("{rest}\n"))
    }
}

/// Writes `logits` `[n_tokens, n_vocab]`.
fn write_logits(destination: &Destination, n_tokens: usize, logits: &[f32]) -> anyhow::Result<()> {
    let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![n_tokens, logits.len() / n_tokens], &bytes).context("logits")?;
    let file = safetensors::serialize([("logits", view)], None).context("logits")?;
    destination.write(&file)
}

fn summary(say: Verbosity, prompt: &[u32], generated: &Generated, load_s: f64, device: &str) {
    let (prefill, decode) = (generated.prefill.as_secs_f64(), generated.decode.as_secs_f64());
    // The first token comes out of the prompt.
    let n_decoded = generated.ids.len() + usize::from(generated.stopped) - 1;
    // One token that comes with the prompt has no speed of its own.
    let rate = |n: usize, s: f64| if n == 0 { String::new() } else { format!(", {:.0}/s", n as f64 / s.max(1e-9)) };
    let peak = peak_rss_bytes().map_or(String::new(), |bytes| format!(" | peak {}", size(bytes)));
    say.note(format_args!(
        "load {} s | prompt {} s ({} tok{}) | decode {} s ({} tok{}){peak} | {device}",
        short(load_s),
        short(prefill),
        prompt.len(),
        rate(prompt.len(), prefill),
        short(decode),
        generated.ids.len(),
        rate(n_decoded, decode),
    ));
}
