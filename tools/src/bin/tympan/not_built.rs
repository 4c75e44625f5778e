//! What the contract of the command line names and this version does not have: it is refused by name, and no help, manual page
//! or completion has it. [`refuse`] is where to start.

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::exit::{Failure, Outcome};

/// Subcommands.
const COMMANDS: [&str; 1] = ["live"];

/// Variables of the environment.
const VARIABLES: [&str; 1] = ["TYMPAN_KERNELS"];

/// Flags of a subcommand that stand alone.
const SWITCHES: [(&str, &[&str]); 1] = [("transcribe", &["raw-words", "drop-suspect", "resume", "no-resume"])];

/// Flags of a subcommand that have a value.
const VALUED: [(&str, &[&str]); 8] = [
    ("transcribe", &["vad", "loop-retry", "track", "from", "to", "aligner", "gpu-layers", "memory-budget"]),
    ("generate", &["gpu-layers", "memory-budget", "ctx-checkpoints"]),
    ("generate", OF_DRAFTS),
    ("bench", &["gpu-layers", "memory-budget", "ctx-checkpoints"]),
    ("bench", OF_DRAFTS),
    ("inspect", &["gpu-layers", "memory-budget"]),
    ("serve", &["gpu-layers", "cache-ram", "cache-reuse"]),
    ("serve", OF_DRAFTS),
];

/// Of drafts, what is not built yet, and where a draft model would lie.
const OF_DRAFTS: &[&str] = &[
    "spec-draft-hf",
    "spec-draft-ngl",
    "spec-draft-device",
    "spec-draft-type-k",
    "spec-draft-type-v",
    "spec-draft-threads",
    "spec-draft-p-split",
    "spec-synth-len",
    "spec-synth-rates",
];

/// Subcommands that would have the flags of [`SHORT`].
const HAVE_SHORT: [&str; 3] = ["generate", "bench", "serve"];
const SHORT: [&str; 6] = ["-hfd", "-ngld", "-devd", "-ctkd", "-ctvd", "-td"];

fn flags_of<'l>(lists: &'l [(&str, &'static [&'static str])], command: &'l str) -> impl Iterator<Item = &'static str> {
    lists.iter().filter(move |(name, _)| *name == command).flat_map(|(_, flags)| flags.iter().copied())
}

/// The command with flags that are only there to be refused.
pub(crate) fn with_flags(mut command: Command) -> Command {
    let name = command.get_name().to_owned();
    for flag in flags_of(&SWITCHES, &name) {
        command = command.arg(Arg::new(flag).long(flag).hide(true).action(ArgAction::SetTrue).overrides_with(flag));
    }
    for flag in flags_of(&VALUED, &name) {
        let arg = Arg::new(flag).long(flag).hide(true).action(ArgAction::Append).num_args(0..=1);
        command = command.arg(arg.allow_hyphen_values(true));
    }
    command
}

/// Refuses a subcommand, before anything else is made of the arguments, and flags of which there are many.
///
/// Errors: the first one that is not in this version.
pub(crate) fn refuse_words(args: &[OsString]) -> Outcome<()> {
    let Some(command) = args.get(1).and_then(|word| word.to_str()) else { return Ok(()) };
    if COMMANDS.contains(&command) {
        return Err(Failure::not_in_this_version(format!("tympan {command}")));
    }
    let mut words = args[2..].iter().filter_map(|word| word.to_str()).take_while(|word| *word != "--");
    let is_refused = |word: &&str| SHORT.contains(word) && HAVE_SHORT.contains(&command);
    match words.find(is_refused) {
        Some(flag) => Err(Failure::not_in_this_version(flag)),
        None => Ok(()),
    }
}

/// The error without a hint to a flag that would only be refused.
pub(crate) fn without_suggestion(mut error: clap::Error) -> clap::Error {
    let lists = || SWITCHES.iter().chain(&VALUED).flat_map(|(_, flags)| *flags);
    let is_refused = |flag: &str| lists().any(|name| flag.strip_prefix("--") == Some(name));
    if let Some(ContextValue::String(flag)) = error.get(ContextKind::SuggestedArg)
        && is_refused(flag)
    {
        error.remove(ContextKind::SuggestedArg);
    }
    error
}

/// Refuses what was given of flags and variables.
///
/// Errors: the first one that is not in this version.
pub(crate) fn refuse(matches: &ArgMatches) -> Outcome<()> {
    let Some((command, given)) = matches.subcommand() else { return Ok(()) };
    let is_given = |flag: &str| given.value_source(flag) == Some(ValueSource::CommandLine);
    if let Some(flag) = flags_of(&SWITCHES, command).find(|flag| is_given(flag)) {
        return Err(Failure::not_in_this_version(format!("--{flag}")));
    }
    if let Some(flag) = flags_of(&VALUED, command).find(|flag| is_given(flag)) {
        let value = given.get_many::<String>(flag).and_then(|mut values| values.next());
        let value = value.map_or(String::new(), |value| format!(" {value}"));
        return Err(Failure::not_in_this_version(format!("--{flag}{value}")));
    }
    let set = VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    match set.into_iter().find(|(_, value)| value != OsStr::new("")) {
        Some((name, value)) => Err(Failure::not_in_this_version(format!("{name}={}", value.display()))),
        None => Ok(()),
    }
}
