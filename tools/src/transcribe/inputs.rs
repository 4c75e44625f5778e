//! Which files the arguments stand for.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

/// Extensions by which files of a directory count as audio.
const EXTENSIONS: [&str; 17] = [
    "wav", "wave", "flac", "mp3", "ogg", "oga", "m4a", "m4b", "mp4", "aac", "aif", "aiff", "aifc", "caf", "mkv", "mka",
    "webm",
];

/// Most directories below an argument; a loop of links must end.
const MAX_DEPTH: usize = 32;

/// One input.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Input {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

impl Input {
    /// The input as the user names it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Stdin => "-".into(),
        }
    }

    /// What output files are called, without extension.
    pub(super) fn stem(&self) -> String {
        match self {
            Self::File(path) => path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            Self::Stdin => "stdin".into(),
        }
    }

    /// The file name with its extension.
    pub(super) fn file_name(&self) -> String {
        match self {
            Self::File(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            Self::Stdin => "stdin".into(),
        }
    }
}

/// The inputs of one argument: itself, or the audio files below a directory in order of their names. The number counts
/// files of the directory that are not audio by their extension.
pub(super) fn expand(argument: &Path) -> anyhow::Result<(Vec<Input>, usize)> {
    if argument == Path::new("-") {
        return Ok((vec![Input::Stdin], 0));
    }
    if !argument.is_dir() {
        return Ok((vec![Input::File(argument.to_owned())], 0));
    }
    let mut found = Vec::new();
    let mut skipped = 0;
    walk(argument, 0, &mut found, &mut skipped)?;
    if found.is_empty() {
        return Err(anyhow!("{}: no audio files in this directory", argument.display()));
    }
    found.sort();
    Ok((found, skipped))
}

fn walk(dir: &Path, depth: usize, found: &mut Vec<Input>, skipped: &mut usize) -> anyhow::Result<()> {
    if depth > MAX_DEPTH {
        return Err(anyhow!("{}: more than {MAX_DEPTH} directories deep", dir.display()));
    }
    let entries = std::fs::read_dir(dir).with_context(|| format!("{}: cannot be listed", dir.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("{}: cannot be listed", dir.display()))?.path();
        if path.is_dir() {
            walk(&path, depth + 1, found, skipped)?;
        } else if is_audio(&path) {
            found.push(Input::File(path));
        } else {
            *skipped += 1;
        }
    }
    Ok(())
}

fn is_audio(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    EXTENSIONS.contains(&extension.as_str())
}
