//! How much is said on standard error, and what the operating system says about this process.

use crate::streams;

/// How much is said on standard error.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(crate) enum Verbosity {
    /// Errors only.
    Quiet,
    /// Results of each stage, warnings and hints.
    #[default]
    Normal,
    /// More detail.
    Detail,
}

impl Verbosity {
    /// From the flags `-q` and `-v`.
    pub(crate) fn new(quiet: bool, verbose: bool) -> Self {
        if quiet {
            Self::Quiet
        } else if verbose {
            Self::Detail
        } else {
            Self::Normal
        }
    }

    /// Says a line unless quiet.
    pub(crate) fn note(self, line: impl std::fmt::Display) {
        if self >= Self::Normal {
            streams::say(line);
        }
    }

    /// Says a line when detail was asked for.
    pub(crate) fn detail(self, line: impl std::fmt::Display) {
        if self >= Self::Detail {
            streams::say(line);
        }
    }
}

/// The largest resident set that this process has had, in bytes, where the system tells.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// A number of bytes for people: whole MiB, or GiB with one decimal.
pub(crate) fn size(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes < GIB { format!("{} MiB", bytes >> 20) } else { format!("{:.1} GiB", bytes as f64 / GIB as f64) }
}

/// Seconds, or a ratio, with as many decimals as tell it from 0.
pub(crate) fn short(x: f64) -> String {
    if x < 0.0995 { format!("{x:.3}") } else { format!("{x:.2}") }
}

/// The processor's name, where the system tells.
pub(crate) fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name"));
    name.map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{short, size};

    #[test]
    fn small_times_are_not_0() {
        assert_eq!([0.004, 0.0994, 0.1, 1.234, 100.0].map(short), ["0.004", "0.099", "0.10", "1.23", "100.00"]);
    }

    #[test]
    fn sizes_have_the_unit_that_reads_well() {
        assert_eq!([57 << 20, 1 << 30, 0x9800_0000].map(size), ["57 MiB", "1.0 GiB", "2.4 GiB"]);
    }
}
