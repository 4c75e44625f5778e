//! The program as users run it: what it prints, where, and what it exits with.

mod bad_input;
mod bench;
#[cfg(unix)]
mod changed;
mod contract;
mod convert;
mod drafts;
mod exact_text;
mod folders;
mod from_files;
mod generate;
mod help;
mod inspect;
mod lost;
#[cfg(target_os = "linux")]
mod matrix;
mod messages;
mod not_built;
#[cfg(unix)]
mod outputs;
mod paragraphs;
mod quantize;
mod resume;
mod rules;
mod run;
#[cfg(unix)]
mod serve;
mod signals;
#[cfg(unix)]
mod streams;
mod subtitles;
mod synth;
mod talk;
#[cfg(target_os = "linux")]
mod terminal;
mod threads;
mod together;
