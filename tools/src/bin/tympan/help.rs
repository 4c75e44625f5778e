//! What the program says of itself: help, manual pages and completions, all from one definition of the arguments.
//! [`complete`] finishes the definition; the others show it.

use std::io;

use clap::builder::Resettable;
use clap::{Arg, ArgAction, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::not_built;

/// Variables of the environment, and what they do.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("TYMPAN_ISA", "at most this instruction set: scalar, avx2 or avx512 [default: the best of this processor]"),
    ("TYMPAN_GRAPH_REUSE", "on or off: what --graph-reuse is where it is not given [default: on]"),
    ("TYMPAN_GRAPH_VERIFY", "1: build every graph again when it is reused, and compare [default: 0]"),
    ("TYMPAN_CACHE", "directory of synthetic models [default: $XDG_CACHE_HOME/tympan, or ~/.cache/tympan]"),
    ("NO_COLOR", "set to anything: no colours [default: colours on a terminal]"),
];
/// What is true of all of them.
const EMPTY: &str = "An empty variable counts as unset.";

/// Subcommands that compute.
const COMPUTING: [&str; 7] = ["transcribe", "convert", "bench", "quantize", "generate", "inspect", "serve"];

/// Beginnings of the parts of long help.
const EXAMPLES: &str = "Examples:\n";
const EXIT_CODES: &str = "Exit codes: ";

/// The definition with what holds for all subcommands: defaults of every flag, the environment, flags that are refused.
pub(crate) fn complete(mut command: Command) -> Command {
    for name in COMPUTING {
        command = command.mut_subcommand(name, |sub| not_built::with_flags(with_environment(with_defaults(sub))));
    }
    with_environment(command)
}

/// Says of flags what they are where they are not given, unless their text does.
fn with_defaults(command: Command) -> Command {
    command.mut_args(|arg| {
        let says = |text: Option<String>| text.is_some_and(|text| text.contains("[default"));
        let has_default = !arg.get_default_values().is_empty() && !arg.is_hide_default_value_set();
        let takes_value = !matches!(arg.get_action(), ArgAction::SetTrue);
        let help = arg.get_help().map(ToString::to_string);
        if arg.is_hide_set() || arg.is_positional() || (has_default && takes_value) || says(help.clone()) {
            return arg;
        }
        let default = if takes_value { "none" } else { "off" };
        match help {
            Some(help) => arg.help(format!("{help} [default: {default}]")),
            None => arg,
        }
    })
}

/// Adds the environment to long help.
fn with_environment(command: Command) -> Command {
    let text = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    let lines: Vec<String> = ENVIRONMENT.iter().map(|(name, what)| format!("  {name:<20} {what}\n")).collect();
    let environment = format!("Environment:\n{}  {EMPTY}", lines.concat());
    let text = match text.find(EXIT_CODES) {
        Some(at) => format!("{}{environment}\n\n{}", &text[..at], &text[at..]),
        None => format!("{text}\n\n{environment}"),
    };
    command.after_long_help(text)
}

/// The parts of long help behind the flags.
struct Parts {
    text: String,
    examples: String,
    exit_codes: String,
}

impl Parts {
    fn of(command: &Command) -> Self {
        let mut parts = Self { text: String::new(), examples: String::new(), exit_codes: String::new() };
        let text = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
        for paragraph in text.split("\n\n") {
            if let Some(examples) = paragraph.strip_prefix(EXAMPLES) {
                parts.examples = examples.into();
            } else if let Some(codes) = paragraph.strip_prefix(EXIT_CODES) {
                parts.exit_codes = codes.into();
            } else if !paragraph.starts_with("Environment:") {
                parts.text.push_str(&format!("{paragraph}\n\n"));
            }
        }
        parts
    }
}

/// Manual page of the program, or of a subcommand, in roff.
///
/// Errors: none that memory knows; the writer of the page could fail.
pub(crate) fn page(mut program: Command, subcommand: Option<&str>) -> io::Result<String> {
    program = program.disable_help_subcommand(true);
    program.build();
    let command = subcommand.and_then(|name| program.find_subcommand(name)).unwrap_or(&program);
    let parts = Parts::of(command);
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let man = Man::new(command.clone().display_name(name.clone()))
        .title(name.to_uppercase())
        .source(concat!("tympan ", env!("CARGO_PKG_VERSION")))
        .manual("Local speech recognition");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    paragraphs(&parts.text).to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    if subcommand.is_none() {
        man.render_subcommands_section(&mut page)?;
    }
    section("EXIT STATUS", &parts.exit_codes).to_writer(&mut page)?;
    environment().to_writer(&mut page)?;
    section("EXAMPLES", &parts.examples).to_writer(&mut page)?;
    see_also(&program, subcommand).to_writer(&mut page)?;
    Ok(once(&String::from_utf8_lossy(&page)))
}

/// A page whose pieces each began with the definition of the apostrophe, with one such beginning.
fn once(page: &str) -> String {
    let preamble: String =
        page.split_inclusive('\n').take_while(|line| line.starts_with(".ie") || line.starts_with(".el")).collect();
    format!("{preamble}{}", page.replace(&preamble, ""))
}

/// Lines that begin with two spaces as they are, others as paragraphs.
fn paragraphs(text: &str) -> Roff {
    let mut roff = Roff::new();
    for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
        roff.control("PP", []);
        let is_table = paragraph.lines().any(|line| line.starts_with("  "));
        if is_table {
            roff.control("nf", []);
        }
        for line in paragraph.lines() {
            roff.text([roman(line)]);
        }
        if is_table {
            roff.control("fi", []);
        }
    }
    roff
}

fn section(head: &str, text: &str) -> Roff {
    let mut roff = Roff::new();
    if text.is_empty() {
        return roff;
    }
    roff.control("SH", [head]);
    roff.extend([paragraphs(text)]);
    roff
}

fn environment() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["ENVIRONMENT"]);
    for (name, what) in ENVIRONMENT {
        roff.control("TP", []);
        roff.text([bold(name)]);
        roff.text([roman(what)]);
    }
    roff.control("PP", []);
    roff.text([roman(EMPTY)]);
    roff
}

fn see_also(program: &Command, subcommand: Option<&str>) -> Roff {
    let others = program.get_subcommands().map(Command::get_name).filter(|name| Some(*name) != subcommand);
    let others = others.filter(|name| subcommand.is_none() || COMPUTING.contains(name));
    let mut pages: Vec<String> = others.map(|name| format!("tympan-{name}(1)")).collect();
    if subcommand.is_some() {
        pages.insert(0, "tympan(1)".into());
    }
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(pages.join(", "))]);
    roff
}

/// Completions for a shell, without what is hidden: that is refused, or has no effect.
pub(crate) fn completions(program: &Command, shell: Shell) -> String {
    // They expect a writer that never fails.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(program), program.get_name(), &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The command without what is hidden.
fn visible(command: &Command) -> Command {
    // Names of commands live as long as the program; this runs once in it.
    let name: &'static str = command.get_name().to_owned().leak();
    let args = command.get_arguments().filter(|arg| !arg.is_hide_set()).map(alone);
    let mut shown = Command::new(name).disable_version_flag(true).args(args);
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    shown.subcommands(command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(visible))
}

/// The argument without its relations to others, which may not be there.
fn alone(arg: &Arg) -> Arg {
    let arg = arg.clone().required(false);
    arg.conflicts_with(Resettable::Reset)
        .requires(Resettable::Reset)
        .group(Resettable::Reset)
        .overrides_with(Resettable::Reset)
}
