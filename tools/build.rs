//! Names the build for rows of benchmarks, as llama-bench does: the commit, and the number of commits up to it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Characters of a commit. Scripts that compare rows of several builds cut all names to the shortest one, and what is built
/// without a repository calls itself by seven letters (`unknown`) in llama.cpp.
const COMMIT_CHARS: usize = 7;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let git = |args: &[&str]| git(&root, args);
    // Sources that lie in somebody else's repository have no commit.
    let is_ours = git(&["rev-parse", "--show-toplevel"])
        .is_some_and(|top| Path::new(&top).canonicalize().ok() == root.canonicalize().ok());
    let named = if is_ours { git(&["rev-parse", "HEAD"]).zip(git(&["rev-list", "--count", "HEAD"])) } else { None };
    let (commit, number) = named.unwrap_or_else(|| (format!("t-{}-----", env!("CARGO_PKG_VERSION")), "0".into()));
    println!("cargo::rustc-env=TYMPAN_BUILD_COMMIT={}", commit.chars().take(COMMIT_CHARS).collect::<String>());
    println!("cargo::rustc-env=TYMPAN_BUILD_NUMBER={number}");
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]).map(|path| root.join(path)).filter(|path| path.is_file());
    if let (true, Some(log)) = (is_ours, log) {
        println!("cargo::rerun-if-changed={}", log.display());
    }
}

/// What git answers, if there is one.
fn git(root: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git").current_dir(root).args(args).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}
