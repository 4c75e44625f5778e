//! The server as clients see it, most of it without a network.

mod ask;
mod browser;
mod completions;
mod drafts;
mod faults;
mod kept;
mod limits;
mod mutated;
mod network;
mod page;
mod page_script;
mod replay;
mod security;
mod slots;
mod soak;
mod spoken;
mod streams;
mod transcriptions;

/// What the README says of endpoints is what the router has.
#[test]
fn the_readme_lists_the_endpoints() {
    let readme = std::fs::read_to_string(ask::fixtures().join("../../README.md")).unwrap();
    let section = readme.split("\n## Serving\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let listed: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let row = |(method, path, what): (&str, &str, &str)| format!("| `{method} {path}` | {what} |");
    let want: Vec<String> = serve::endpoints().filter(|(_, _, what)| !what.is_empty()).map(row).collect();
    assert_eq!(listed, want);
}
