//! Which crate knows which, and who may name an architecture.

use std::path::{Path, PathBuf};

/// Words that name an architecture; the engine and the backends do without them.
const ARCHITECTURES: [&str; 8] = ["qwen", "lfm2", "mamba", "jamba", "granite", "conformer", "whisper", "llama"];
/// Where a word stands for another project's file format or function, not for an architecture.
const OTHER_MEANINGS: [&str; 2] = ["llama.cpp", "llama_ftype"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Names under `[dependencies]` of a crate's manifest.
fn dependencies(name: &str) -> Vec<String> {
    let manifest = std::fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap();
    let names = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[test]
fn crates_know_only_those_below_them() {
    const OURS: [&str; 6] = ["engine", "kernels", "backends", "models", "tools", "tests"];
    for (name, may_know) in
        [("kernels", &[][..]), ("engine", &[]), ("backends", &["engine", "kernels"]), ("models", &["engine"])]
    {
        let known = dependencies(name);
        assert!(!known.is_empty(), "{name} has no dependencies at all");
        for other in OURS {
            assert!(may_know.contains(&other) || !known.iter().any(|k| k == other), "{name} knows {other}");
        }
    }
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn engine_and_backends_name_no_architecture() {
    let mut files = Vec::new();
    for name in ["engine", "backends", "kernels"] {
        sources(&root().join(name).join("src"), &mut files);
    }
    assert!(files.len() > 20);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap().to_lowercase();
        let text = OTHER_MEANINGS.iter().fold(text, |text, other| text.replace(other, ""));
        for name in ARCHITECTURES {
            let line = text.lines().position(|l| l.contains(name));
            assert!(line.is_none(), "{}:{}: {name}", file.display(), line.unwrap_or_default() + 1);
        }
    }
}
