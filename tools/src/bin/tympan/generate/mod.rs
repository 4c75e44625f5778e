//! `tympan generate`: text in, text out, for language models and those inside speech models.

mod conversation;
mod printer;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use engine::session::MAX_CONTEXT;
use models::LoadOptions;
use models::generate::{Generated, Generator, Request};
use models::sample::Sampling;
use safetensors::tensor::{Dtype, TensorView};
use tympan::Model;

use self::conversation::{Conversation, next_line};
use self::printer::{Format, Printer};
use crate::args::{DeviceArgs, KvType, ModelArgs, note_threads};
use crate::exit::{Exit, Failure, Outcome};
use crate::model::{check_unchanged, failure, files_of};
use crate::output::{Destination, refuse_collisions};
use crate::report::{Verbosity, peak_rss_bytes, short, size};
use crate::speculation::SpeculationArgs;

/// Most tokens that `-n` accepts: those of the longest context. The model's own may be shorter.
const MAX_TOKENS: u64 = MAX_CONTEXT as u64;
/// Tokens from which on it pays to copy the weights first.
const LONG_TOKENS: u64 = 1024;
/// Highest temperature that is accepted: there all tokens are about equally likely.
const MAX_TEMPERATURE: f32 = 1000.0;
/// Tokens that a text is continued by where nobody says how many.
const DEFAULT_TOKENS: u64 = 128;
/// Largest penalties that are accepted, either way.
const MAX_PENALTY: f32 = 100.0;

/// Continue a text with a language model, or talk with it.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Tokens are chosen in this order: penalties change the logits, these are divided by the temperature, the largest K are kept (and \
those equal to the last of them), then the most likely that together have probability P, then those that --min-p leaves, and one \
of these is drawn with its share. The same seed gives the same text.

With neither --prompt nor --prompt-ids, and a terminal as standard input, every line is a turn of a conversation; the end of the \
input (Ctrl-D) ends it.

--format jsonl prints a line for every piece of the text, {\"type\": \"text\", \"text\", \"token_ids\"}, and {\"type\": \"end\"} with \
the whole text and why it ended: stop_token, stop_text or length.

Examples:
  tympan generate -m LFM2-1.2B-Q8_0.gguf -p 'The capital of France is' -n 20
  tympan generate -m LFM2-1.2B-Q8_0.gguf -p 'Once upon a time' --temp 0.8 --top-p 0.95 --seed 7
  tympan generate -m Qwen3-0.6B-Q8_0.gguf --chat -p 'What is the capital of France?' --stop '\n\n'
  tympan generate -m Qwen3-0.6B-Q8_0.gguf --system 'You answer in one sentence.'
  tympan generate -m MODEL.gguf --prompt-ids 1,6,24131 --token-ids --logits-out logits.safetensors

Exit codes: 0 done (the text ended, or has -n tokens), 1 an output cannot be written, 2 usage, 4 model, 5 memory.")]
pub(crate) struct GenerateArgs {
    /// GGUF file, directory with one model in it, checkpoint directory (safetensors), or synth:SHAPE:TYPE:SEED, random
    /// weights of a published shape; of a speech model the language model is used [default: that of the built-in demonstration model]
    #[arg(short, long, value_name = "PATH")]
    model: Option<PathBuf>,

    /// Text to be continued, as it is; with --chat, a turn of the user. Control tokens written in it are control tokens; the
    /// begin-of-text token comes first where the model wants one [default: a conversation, on a terminal]
    #[arg(short, long, value_name = "TEXT", conflicts_with = "prompt_ids")]
    prompt: Option<String>,

    /// Token ids to be continued, separated by commas, in place of a text; nothing is added to them
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    prompt_ids: Option<Vec<u32>>,

    /// Write the prompt with the chat template of the model's file, and print the answer
    #[arg(long, conflicts_with = "prompt_ids")]
    chat: bool,

    /// Begin the conversation with this system message
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_ids")]
    system: Option<String>,

    /// Most tokens that are generated [default: 128; what the context holds, in a conversation]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_TOKENS))]
    max_tokens: Option<u64>,

    /// End the text before TEXT, which is not printed; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,

    /// Temperature; 0 takes the most likely token every time
    #[arg(long, value_name = "T", default_value = "0", value_parser = parse_temperature, allow_negative_numbers = true)]
    temp: f32,

    /// Draw from the K most likely tokens; 0 from all
    #[arg(long, value_name = "K", default_value = "0")]
    top_k: u32,

    /// Draw from the most likely tokens that together have probability P; 1 from all
    #[arg(long, value_name = "P", default_value = "1", value_parser = parse_probability, allow_negative_numbers = true)]
    top_p: f32,

    /// Draw from tokens that are at least P times as likely as the most likely one; 0 from all
    #[arg(long, value_name = "P", default_value = "0", value_parser = parse_share, allow_negative_numbers = true)]
    min_p: f32,

    /// Divide positive logits of tokens of the prompt and of the text by R, and multiply negative ones; 1 changes nothing
    #[arg(long, value_name = "R", default_value = "1", value_parser = parse_factor, allow_negative_numbers = true)]
    repeat_penalty: f32,

    /// Take R from the logits of tokens that were generated; 0 changes nothing
    #[arg(long, value_name = "R", default_value = "0", value_parser = parse_penalty, allow_negative_numbers = true)]
    presence_penalty: f32,

    /// Where the random numbers begin
    #[arg(long, value_name = "S", default_value = "0")]
    seed: u64,

    /// text or jsonl
    #[arg(short, long, value_name = "FORMAT", default_value = "text", hide_possible_values = true)]
    format: Format,

    /// Print the ids of the new tokens, separated by commas, in place of their text; in JSON, beside it
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
    speculation: SpeculationArgs,

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

fn parse_share(text: &str) -> Result<f32, String> {
    let p = text.parse::<f32>().ok().filter(|p| (0.0..=1.0).contains(p));
    p.ok_or_else(|| "want 0 to 1".into())
}

fn parse_factor(text: &str) -> Result<f32, String> {
    let factor = text.parse::<f32>().ok().filter(|&r| r > 0.0 && r <= MAX_PENALTY);
    factor.ok_or_else(|| format!("want a number above 0, at most {MAX_PENALTY}"))
}

fn parse_penalty(text: &str) -> Result<f32, String> {
    let penalty = text.parse::<f32>().ok().filter(|r| (-MAX_PENALTY..=MAX_PENALTY).contains(r));
    penalty.ok_or_else(|| format!("want -{MAX_PENALTY} to {MAX_PENALTY}"))
}

impl GenerateArgs {
    /// Whether lines of a terminal are turns of a conversation.
    fn is_conversation(&self) -> bool {
        self.prompt.is_none() && self.prompt_ids.is_none()
    }

    /// Errors: flags that do not go together.
    fn check(&self) -> Outcome<()> {
        if self.prompt.as_deref() == Some("") {
            return Err(Failure::usage("--prompt: want some text, got none"));
        }
        if !self.is_conversation() {
            let is_alone = self.system.is_some() && !self.chat;
            return if is_alone { Err(Failure::usage("--system goes with --chat")) } else { Ok(()) };
        }
        if !std::io::stdin().is_terminal() {
            let what = "want --prompt or --prompt-ids (without them, a terminal as standard input for a conversation)";
            return Err(Failure::usage(what));
        }
        let others = [("--logits-out", self.logits_out.is_some()), ("--token-ids", self.token_ids)];
        match others.into_iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) => Err(Failure::usage(format!("{flag} goes with --prompt or --prompt-ids"))),
            None => Ok(()),
        }
    }

    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temp,
            top_k: self.top_k as usize,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            seed: self.seed,
            ..Sampling::default()
        }
    }
}

/// Runs the subcommand.
///
/// Errors: usage, a model that cannot be loaded, logits that cannot be written.
pub(crate) fn run(args: &GenerateArgs) -> Outcome<Exit> {
    let say = Verbosity::new(args.quiet, args.verbose);
    args.check()?;
    let logits_out = args.logits_out.as_deref().map(Destination::check_with_folder).transpose()?;
    let parameters = args.speculation.parameters()?;
    let of_model = args.model.iter().flat_map(|model| files_of(model));
    let inputs: Vec<PathBuf> = of_model.chain(args.speculation.inputs()).collect();
    refuse_collisions(logits_out.as_slice(), inputs.iter().map(PathBuf::as_path))?;
    let device = args.device.open()?;
    note_threads(args.device.threads, say);
    let reuse = args.device.reuse()?;

    let model = ModelArgs { model: args.model.clone(), mmproj: None };
    model.prepare(args.device.threads, say)?;
    let load = Instant::now();
    let loading = args.device.loading(
        args.device.threads,
        args.max_tokens.unwrap_or(DEFAULT_TOKENS) >= LONG_TOKENS || args.is_conversation(),
    );
    let model = model.load(LoadOptions { text_only: true, ..LoadOptions::default() }, loading, say)?;
    let rollback = args.speculation.rollback();
    let n_drafts = parameters.map_or(0, |parameters| parameters.largest());
    let backends = std::slice::from_ref(&device.backend);
    let generator = Generator::open_with(&model.loaded, backends, args.kv_type.into(), n_drafts, rollback);
    let mut generator = generator.with_context(|| format!("loading {}", model.name)).map_err(Failure::model)?;
    generator.set_reuse(reuse);
    let drafters =
        args.speculation.open(generator.writer().tokenizer(), &device.backend, args.kv_type, 1, (loading, say))?;
    if let Some(drafters) = &drafters {
        generator.set_drafters(drafters.clone()).with_context(|| model.name.clone()).map_err(Failure::refused)?;
    }
    let load_s = load.elapsed().as_secs_f64();
    say.detail(device.describe());

    let mut talk = Talk { args, generator, model, device: device.backend.name(), load_s, say };
    if args.is_conversation() {
        talk.converse()?;
    } else {
        talk.once(logits_out.as_ref())?;
    }
    if let Some(drafters) = &drafters {
        args.speculation.close(drafters, say)?;
    }
    let stats = talk.generator.stats();
    say.detail(format_args!("{} graphs built, {} reused", stats.builds, stats.hits));
    Ok(Exit::Done)
}

/// A model that answers.
struct Talk<'a> {
    args: &'a GenerateArgs,
    generator: Generator,
    model: Model,
    device: &'a str,
    load_s: f64,
    say: Verbosity,
}

impl Talk<'_> {
    /// Answers the prompt of the command line.
    fn once(&mut self, logits_out: Option<&Destination>) -> Outcome<()> {
        let args = self.args;
        let prompt = match (&args.prompt_ids, &args.prompt) {
            (Some(ids), _) => ids.clone(),
            (None, text) if args.chat => {
                let mut conversation = self.conversation()?;
                conversation.prompt(&self.generator, text.as_deref().unwrap_or_default(), &self.model.name)?
            }
            (None, text) => self.generator.writer().prompt(text.as_deref().unwrap_or_default()),
        };
        let max_tokens = usize::try_from(args.max_tokens.unwrap_or(DEFAULT_TOKENS)).unwrap_or(usize::MAX);
        let generated = self.answer(&prompt, max_tokens, logits_out)?;
        summary(self.say, &prompt, &generated, self.load_s, self.device);
        drafts(self.say, &generated);
        Ok(())
    }

    /// Answers line after line.
    fn converse(&mut self) -> Outcome<()> {
        let mut conversation = self.conversation()?;
        while let Some(line) = next_line()? {
            let prompt = conversation.prompt(&self.generator, &line, &self.model.name)?;
            let room = self.generator.writer().n_ctx().saturating_sub(prompt.len()).max(1);
            let max_tokens = self.args.max_tokens.map_or(room, |n| usize::try_from(n).map_or(room, |n| n.min(room)));
            let generated = self.answer(&prompt, max_tokens, None)?;
            conversation.answered(&generated.text);
            let speed = format_args!("{} + {} tokens", prompt.len(), generated.ids.len());
            self.say.detail(speed);
            drafts(self.say, &generated);
        }
        Ok(())
    }

    fn conversation(&self) -> Outcome<Conversation> {
        Conversation::open(&self.generator, self.args.system.as_deref(), &self.model.name)
    }

    /// Prints what follows a prompt.
    fn answer(&mut self, prompt: &[u32], max_tokens: usize, logits_out: Option<&Destination>) -> Outcome<Generated> {
        let args = self.args;
        let request = Request {
            prompt,
            max_tokens,
            sampling: args.sampling(),
            ignore_stop: args.ignore_eos,
            stop: &args.stop,
            prompt_logits: logits_out.is_some(),
        };
        let wanted = || format!("a prompt of {} tokens and -n {max_tokens}", prompt.len());
        self.generator.writer().check(&request).with_context(wanted).map_err(Failure::refused)?;
        let mut printer = Printer::new(args.format, args.token_ids);
        let generated = self.generator.generate(&request, &mut |ids, text| printer.tokens(ids, text));
        let generated = generated.map_err(|e| failure(&self.model, e))?;
        let printed = printer.end(&generated, prompt.len());
        check_unchanged(&self.model)?;
        // They are whole, whoever reads the text.
        if let Some(destination) = logits_out {
            write_logits(destination, prompt.len(), &generated.prompt_logits).map_err(Failure::output)?;
        }
        printed?;
        Ok(generated)
    }
}

/// Writes `logits` `[n_tokens, n_vocab]`.
fn write_logits(destination: &Destination, n_tokens: usize, logits: &[f32]) -> anyhow::Result<()> {
    let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![n_tokens, logits.len() / n_tokens], &bytes).context("logits")?;
    let file = safetensors::serialize([("logits", view)], None).context("logits")?;
    destination.write(&file)
}

/// Says what came of drafts.
fn drafts(say: Verbosity, generated: &Generated) {
    if let Some(statistics) = &generated.speculation {
        say.note(format_args!("drafts: {statistics}"));
    }
}

fn summary(say: Verbosity, prompt: &[u32], generated: &Generated, load_s: f64, device: &str) {
    let (prefill, decode) = (generated.prefill.as_secs_f64(), generated.decode.as_secs_f64());
    // The first token comes out of the prompt.
    let n_decoded = generated.n_chosen.saturating_sub(1);
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
