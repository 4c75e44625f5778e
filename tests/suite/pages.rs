//! The pages for those who change the code: what they name is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const PAGES: [&str; 4] = ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md"];
/// What a path begins with.
const FOLDERS: [&str; 7] = ["engine/", "backends/", "models/", "tools/", "kernels/", "tests/", ".ci/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Texts between single backquotes. Blocks of code are left out.
fn quoted(page: &str) -> Vec<&str> {
    let prose = page.split("```").step_by(2);
    prose.flat_map(|text| text.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn pages_name_what_is_there() {
    let mut n_paths = 0;
    for name in PAGES {
        let page = std::fs::read_to_string(root().join(name)).unwrap();
        for text in quoted(&page) {
            let (path, item) = text.split_once("::").unwrap_or((text, ""));
            let is_path = FOLDERS.iter().any(|folder| path.starts_with(folder)) && !path.contains([' ', '*']);
            if !is_path {
                continue;
            }
            let full = root().join(path);
            assert!(full.exists(), "{name}: no {path}");
            if !item.is_empty() {
                let source = std::fs::read_to_string(&full).unwrap();
                assert!(source.contains(&format!("fn {item}(")), "{name}: no {item} in {path}");
            }
            n_paths += 1;
        }
    }
    assert!(n_paths > 30, "only {n_paths} paths were found: the pages are written otherwise");
}

/// A backend is a folder, under the name by which users choose it.
#[test]
fn every_backend_is_listed() {
    let entries = std::fs::read_dir(root().join("backends/src")).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name().into_string().unwrap());
    assert_eq!(folders.collect::<BTreeSet<_>>(), backends::list().iter().map(|b| b.name.to_owned()).collect());
}

/// Every recipe names the place whose list an addition joins; the lists are there under these names.
#[test]
fn recipes_name_the_lists() {
    let page = std::fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    for (path, list) in [
        ("engine/src/op/mod.rs", "pub enum Op {"),
        ("backends/src/cpu/ops/mod.rs", "fn prepare("),
        ("tests/src/cases/mod.rs", "macro_rules! families"),
        ("engine/src/pass/fuse.rs", "const RULES"),
        ("kernels/formats/src/lib.rs", "macro_rules! formats"),
        ("models/src/registry.rs", "const ARCHITECTURES"),
        ("tools/convert/src/conversion/architectures.rs", "const MODEL_TYPES"),
        ("backends/src/lib.rs", "const BACKENDS"),
    ] {
        let source = std::fs::read_to_string(root().join(path)).unwrap();
        assert!(source.contains(list), "{path}: no {list}");
        assert!(page.contains(&format!("`{path}`")), "CONTRIBUTING.md does not name {path}");
    }
}
