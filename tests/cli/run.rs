//! Running the program and reading what it says.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The repository's fixtures.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// A clip of the fixtures.
pub fn clip(name: &str) -> PathBuf {
    fixtures().join("audio").join(name)
}

/// A finished run.
pub struct Run {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("the program was not killed by a signal"),
            out: String::from_utf8(output.stdout).expect("output is UTF-8"),
            err: String::from_utf8(output.stderr).expect("messages are UTF-8"),
        }
    }
}

impl Run {
    /// One JSON document per line of standard output.
    pub fn json_lines(&self) -> Vec<Value> {
        self.out.lines().map(|l| serde_json::from_str(l).expect("a line is a document")).collect()
    }

    /// Asserts the exit code, showing what was said where it is another.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }
}

/// The program with these arguments, run outside the repository.
pub fn tympan<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    command(args).output().expect("the program starts").into()
}

/// The same, with bytes on standard input.
pub fn tympan_with_input<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>, input: &Path) -> Run {
    let file = std::fs::File::open(input).expect("the fixture exists");
    command(args).stdin(file).output().expect("the program starts").into()
}

/// The program with these arguments, not yet started.
pub fn command<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tympan"));
    command.args(args).current_dir(std::env::temp_dir()).stdin(Stdio::null());
    command.env_remove("TYMPAN_ISA").env_remove("TYMPAN_GRAPH_REUSE").env("TYMPAN_GRAPH_VERIFY", "1");
    command
}
