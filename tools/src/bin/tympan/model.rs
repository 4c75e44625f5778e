//! Finding and loading the model that `-m` stands for.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use convert::synth::SyntheticModel;
use convert::workers;
use engine::gguf::Gguf;
use models::LoadOptions;
use tympan::{Model, Opening};

use crate::args::{ModelArgs, WeightsArg};
use crate::cache::{self, ModelFiles};
use crate::exit::{Failure, Outcome};
use crate::inspect::statistics::first_not_finite;
use crate::output::folder_of;
use crate::report::Verbosity;

/// Memory that has to be free before a file is copied unasked, in sizes of the file.
const SPARE_FACTOR: u64 = 2;

/// How a model is brought into memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loading {
    /// Threads that convert and copy.
    pub threads: Option<NonZeroUsize>,
    /// Whether weights are copied.
    pub weights: WeightsArg,
    /// Whether the run reads the weights often.
    pub is_long: bool,
}

impl Loading {
    /// Opens a file, in place or as a copy.
    fn open(self, path: &Path, say: Verbosity) -> tympan::Result<Gguf> {
        let file = Gguf::open(path)?;
        let is_resident = match self.weights {
            WeightsArg::Mapped => false,
            WeightsArg::Resident => true,
            WeightsArg::Auto => {
                self.is_long && available_bytes().is_some_and(|free| free / SPARE_FACTOR >= file.file_bytes() as u64)
            }
        };
        if !is_resident {
            return Ok(file);
        }
        let start = Instant::now();
        let file = workers::with(self.threads, || file.into_resident(&workers::Workers))??;
        let megabytes = file.file_bytes() >> 20;
        let ms = start.elapsed().as_millis();
        say.detail(format_args!("weights: {} copied to memory, {megabytes} MiB in {ms} ms", short_name(path)));
        Ok(file)
    }
}

/// Memory that programs can have without others being swapped out, where the system says.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// The files that `-m` may stand for: the file and what is read with it, parts and projectors, or what checkpoints and models
/// are made of in a directory.
pub(crate) fn files_of(model: &Path) -> Vec<PathBuf> {
    const OF_CHECKPOINTS: [&str; 8] = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
        "generation_config.json",
        "preprocessor_config.json",
        "model.safetensors.index.json",
    ];
    let is_directory = model.is_dir();
    let folder = if is_directory { model } else { folder_of(model) };
    let is_read = |path: &Path| {
        let name = short_name(path);
        let has_ending = |ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
        let is_checkpoint =
            || OF_CHECKPOINTS.contains(&&*name) || name.starts_with("model") && has_ending("safetensors");
        has_ending("gguf") || is_directory && is_checkpoint()
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(model.to_owned()).chain(entries.filter(|path| is_read(path))).collect()
}

/// Whether a model's files are still those that were loaded.
///
/// Errors: one of them was written to. Nothing that it computes means anything: the run ends.
pub(crate) fn check_unchanged(model: &Model) -> Outcome<()> {
    model.check_unchanged().map_err(|e| Failure::from(e).ending())
}

/// The failure of something that the model was to compute. Where the logits are not finite, the first tensor is named that is
/// to blame.
pub(crate) fn failure(model: &Model, error: models::Error) -> Failure {
    let is_not_finite = matches!(error, models::Error::NotFinite { .. });
    let mut files = model.loaded.files.iter().filter(|_| is_not_finite);
    let to_blame = files.find_map(|file| Some((short_name(file.path()), first_not_finite(file)?)));
    let mut error = anyhow::Error::new(error);
    if let Some((file, tensor)) = to_blame {
        let of_file = if file == model.name { String::new() } else { format!("{file}: ") };
        error = error.context(format!("{of_file}{tensor}"));
    }
    Failure::model(error.context(model.name.clone()))
}

impl ModelArgs {
    /// Loads the model, the built-in one without `-m`.
    ///
    /// Errors: missing, malformed or unsupported files.
    pub(crate) fn load(&self, options: LoadOptions, loading: Loading, say: Verbosity) -> Outcome<Model> {
        let threads = loading.threads;
        let Some(path) = &self.model else {
            say.note(
                "no model given: using the built-in demonstration model (163 English words); -m MODEL.gguf for a real one",
            );
            return Ok(Model::demonstration_on(threads, options)?);
        };
        if let Some(wanted) = SyntheticModel::parse(path)? {
            let made = workers::with(threads, || cache::open(&wanted, say))??;
            return self.load_synthetic(path, made, options, (loading, say));
        }
        let opening = Opening { projector: self.mmproj.clone(), load: options, threads };
        Ok(Model::open_with(path, &opening, &mut |path| loading.open(path, say))?)
    }

    /// Makes the files of a synthetic model that was not used before. [`ModelArgs::load`] does that too, but then it counts
    /// as loading.
    ///
    /// Errors: a shape, type or seed that does not exist, files that cannot be written.
    pub(crate) fn prepare(&self, threads: Option<NonZeroUsize>, say: Verbosity) -> Outcome<()> {
        if let Some(wanted) = self.model.as_deref().map_or(Ok(None), SyntheticModel::parse)? {
            workers::with(threads, || cache::open(&wanted, say))??;
        }
        Ok(())
    }

    fn load_synthetic(
        &self,
        argument: &Path,
        made: ModelFiles,
        options: LoadOptions,
        (loading, say): (Loading, Verbosity),
    ) -> Outcome<Model> {
        let own = made.projector.filter(|_| !options.text_only);
        let projector = self.mmproj.clone().or(own);
        let name = argument.display().to_string();
        let files = std::iter::once(made.text).chain(projector).map(|path| loading.open(&path, say));
        let files = files.collect::<tympan::Result<Vec<Gguf>>>();
        files.and_then(|files| Model::of_files(files, name.clone(), options)).map_err(|error| {
            let failure = Failure::from(error);
            let damaged = format!("{name}: its file is damaged; it is made again where it is deleted");
            Failure { error: failure.error.context(damaged), ..failure }
        })
    }
}

/// The last part of a path, for messages.
fn short_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
