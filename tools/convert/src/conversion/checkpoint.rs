//! A checkpoint: configuration and weights. [`Model`] is the type to read first.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Component, Path};
use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use engine::DType;
use engine::gguf::shown;

use super::config::{Config, Section};
use super::plan::Row;
use crate::assembly::Xxh64;
use crate::files::Files;
use crate::safetensors::Checkpoint;
use crate::weights::{Weight, Weights};

/// Buffers that some exports store and every implementation computes.
const IGNORED_SUFFIX: &str = ".rotary_emb.inv_freq";

/// An open checkpoint.
pub struct Model {
    files: Files,
    config: Config,
    generation: Option<Config>,
    preprocessor: Option<Config>,
    weights: Box<dyn Weights>,
}

impl Model {
    /// Opens the checkpoint in `files`. Errors name the file that is missing or malformed.
    pub fn open(files: Files) -> Result<Self> {
        files.check()?;
        Ok(Self {
            config: Config::read(&files, "config.json")?,
            generation: Config::read_optional(&files, "generation_config.json")?,
            preprocessor: Config::read_optional(&files, "preprocessor_config.json")?,
            weights: weights(&files)?,
            files,
        })
    }

    /// Its files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The folder, or what stands for it in messages.
    pub fn folder(&self) -> &Path {
        self.files.path()
    }

    /// What files made from it are called: the folder's name, or the model's where the folder is a download in the cache
    /// of Hugging Face (`models--Qwen--Qwen3-ASR-0.6B/snapshots/REVISION`).
    pub fn name(&self) -> Result<String> {
        let folder = self.folder();
        let io = |source| engine::Error::Io { path: folder.to_owned(), source };
        let is_named = matches!(folder.components().next_back(), Some(Component::Normal(_)));
        // `.` and `..` have no name of their own.
        let path = if is_named { folder.to_owned() } else { folder.canonicalize().map_err(io)? };
        let text = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let cache = path.parent().filter(|parent| parent.ends_with("snapshots")).and_then(Path::parent).and_then(text);
        let cached = cache.as_deref().and_then(|name| name.strip_prefix("models--")?.rsplit("--").next());
        match cached {
            Some(name) => Ok(name.to_owned()),
            None => text(&path).ok_or_else(|| anyhow!("{}: a directory without a name", path.display())),
        }
    }

    /// `config.json`.
    pub fn config(&self) -> Section<'_> {
        self.config.root()
    }

    /// `generation_config.json`, where there is one.
    pub fn generation(&self) -> Option<Section<'_>> {
        self.generation.as_ref().map(Config::root)
    }

    /// `preprocessor_config.json`, where there is one.
    pub fn preprocessor(&self) -> Option<Section<'_>> {
        self.preprocessor.as_ref().map(Config::root)
    }

    /// Whether there is a tensor called `name`.
    pub fn has(&self, name: &str) -> bool {
        self.weights.names().any(|found| found == name)
    }

    /// Whether there are tensors whose names begin with `prefix`.
    pub fn has_prefix(&self, prefix: &str) -> bool {
        self.weights.names().any(|name| name.starts_with(prefix))
    }

    /// The tensor called `name`. Errors: it is missing, or not of a float type.
    pub fn weight(&self, name: &str) -> Result<Weight<'_>> {
        self.weights.weight(name)
    }

    /// Gives the memory behind bytes `range` of a tensor back to the system.
    pub fn release(&self, name: &str, range: Range<usize>) {
        self.weights.release(name, range);
    }

    /// Adds what tells whether the weights are still the same.
    pub fn stamp(&self, hash: &mut Xxh64) {
        self.weights.stamp(hash);
    }

    /// An error about the tensor `name`.
    pub fn error(&self, name: &str, what: impl std::fmt::Display) -> anyhow::Error {
        anyhow!("{}: {}: {what}", self.weights.path().display(), shown(name))
    }

    /// Format of the largest tensor of `rows`.
    pub fn main_dtype(&self, rows: &[Row]) -> Result<DType> {
        let mut largest = (0, DType::F32);
        for row in rows {
            for (name, _) in row.source.needs() {
                let weight = self.weight(&name)?;
                if weight.elements() > largest.0 {
                    largest = (weight.elements(), weight.dtype);
                }
            }
        }
        Ok(largest.1)
    }

    /// Checks that the checkpoint has the tensors of `rows`, in their shapes, and no other but those that `is_ignored`.
    pub fn check(&self, rows: &[&[Row]], is_ignored: fn(&str) -> bool) -> Result<()> {
        let mut wanted = HashSet::new();
        for (name, dims) in rows.iter().copied().flatten().flat_map(|row| row.source.needs()) {
            let found = self.weight(&name)?.dims;
            ensure!(
                found == dims,
                self.error(&name, format_args!("want {dims:?}, got {}", shown(&format!("{found:?}"))))
            );
            wanted.insert(name);
        }
        let is_extra = |name: &str| !wanted.contains(name) && !name.ends_with(IGNORED_SUFFIX) && !is_ignored(name);
        match self.weights.names().find(|name| is_extra(name)) {
            Some(extra) => Err(self.error(extra, "not a tensor of this architecture and configuration")),
            None => Ok(()),
        }
    }
}

/// The weights in `files`. Errors as for [`Checkpoint::of`].
fn weights(files: &Files) -> Result<Box<dyn Weights>> {
    match files {
        Files::Directory(_) | Files::Embedded { .. } => Ok(Box::new(Checkpoint::of(files)?)),
        Files::Synthetic(made) => Ok(Box::new(Arc::clone(made))),
    }
}
