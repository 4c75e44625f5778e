//! The flags that say what cues look like.

use clap::Args;

use transcripts::Limits;

/// Longest accepted `--max-cue`, in seconds.
const MAX_CUE_S: f64 = 600.0;

/// The shape of cues.
#[derive(Args, Clone, Debug)]
pub(super) struct CueArgs {
    /// Longest line of a cue, in columns; Chinese and other wide characters are two (all formats but text and json) [default: 42]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(10..=500))]
    max_line: Option<u64>,

    /// Most lines of a cue (all formats but text and json) [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10))]
    max_lines: Option<u64>,

    /// Longest time of a cue, in seconds (all formats but text and json) [default: 7]
    #[arg(long, value_name = "SECONDS", value_parser = parse_max_cue, allow_negative_numbers = true)]
    max_cue: Option<f64>,
}

impl CueArgs {
    /// With the usual limits for those that are not given.
    pub(super) fn limits(&self) -> Limits {
        let number = |n: Option<u64>, usual: usize| n.map_or(usual, |n| usize::try_from(n).unwrap_or(usize::MAX));
        Limits {
            max_columns: number(self.max_line, Limits::USUAL.max_columns),
            max_lines: number(self.max_lines, Limits::USUAL.max_lines),
            max_s: self.max_cue.unwrap_or(Limits::USUAL.max_s),
        }
    }

    /// The first that is given.
    pub(super) fn given(&self) -> Option<&'static str> {
        let Self { max_line, max_lines, max_cue } = self;
        let line = max_line.map(|_| "--max-line");
        line.or(max_lines.map(|_| "--max-lines")).or(max_cue.map(|_| "--max-cue"))
    }
}

fn parse_max_cue(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (1.0..=MAX_CUE_S).contains(seconds));
    seconds.ok_or_else(|| format!("want seconds, 1 to {MAX_CUE_S}"))
}
