//! Transcripts as people and players read them: text in paragraphs ([`Paragraphs`]), and [`Cue`]s as subtitles and tables.
//! Knows no command line, no files and no network.

#![warn(unreachable_pub)]

mod cues;
mod pace;
mod paragraphs;
mod pieces;
mod subtitles;
mod tables;

pub use cues::{Cue, Limits, cues};
pub use paragraphs::{Paragraphs, text};
pub use subtitles::{clock, srt, vtt};
pub use tables::{csv, lrc, tsv};
