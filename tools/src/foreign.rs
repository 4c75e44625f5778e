//! Files that are often found in the place of a model: what a download or a `git clone` leaves that did not get the file itself.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Bytes of the beginning that tell what a file is.
const HEAD_BYTES: u64 = 512;

/// Refuses a model file that is no model but the note or the page that came instead. A file that cannot be read, or is
/// something else, is left to those who read it.
///
/// Errors: what the file is, and how to get the real one.
pub fn refuse(path: &Path) -> Result<()> {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
    match read.ok().and_then(|_| what_is(&head)) {
        Some(what) => Err(Error::NoModel { path: path.to_owned(), what: what.into() }),
        None => Ok(()),
    }
}

/// Refuses a checkpoint whose weights are not there but as notes.
///
/// Errors: as those of [`refuse`].
pub fn refuse_in(checkpoint: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(checkpoint) else { return Ok(()) };
    let mut weights: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors") && path.is_file())
        .collect();
    weights.sort();
    weights.iter().try_for_each(|path| refuse(path))
}

/// Source of the first: the specification of Git LFS, docs/spec.md.
fn what_is(head: &[u8]) -> Option<&'static str> {
    if head.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Some(
            "a Git LFS pointer, not the file itself; `git lfs install` and `git lfs pull` in its folder fetch it",
        );
    }
    let text = head.trim_ascii_start();
    let begins = |with: &[u8]| text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    if begins(b"<!doctype html") || begins(b"<html") {
        return Some("an HTML page, not a model; download the file itself (its address, not that of its page)");
    }
    let is_object = text.strip_prefix(b"{").is_some_and(|rest| rest.trim_ascii_start().starts_with(b"\""));
    is_object.then_some("JSON text, not a model; where it is an error of the server, it says why there was no download")
}

#[cfg(test)]
mod tests {
    use super::what_is;

    #[test]
    fn what_came_instead_is_named() {
        for (head, want) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"[..], Some("Git LFS")),
            (b"\n<!DOCTYPE HTML><html>", Some("HTML")),
            (b"<html lang=en>", Some("HTML")),
            (b"{\n \"error\": \"gone\"}", Some("JSON")),
            (b"GGUF\x03\0\0\0", None),
            // The length of a header of safetensors can be any byte.
            (b"{\0\0\0\0\0\0\0{\"a\":1}", None),
            (b"version 2", None),
            (b"", None),
        ] {
            let found = what_is(head);
            assert_eq!(found.is_some(), want.is_some(), "{}", head.escape_ascii());
            assert!(found.unwrap_or_default().contains(want.unwrap_or_default()), "{found:?}");
        }
    }
}
