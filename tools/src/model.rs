//! Finding and loading the model that `-m` stands for.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, anyhow};
use convert::synth::SyntheticModel;
use convert::{FileType, workers};
use engine::gguf::Gguf;
use models::{LoadOptions, Loaded};

use crate::args::{ModelArgs, WeightsArg};
use crate::cache::{self, ModelFiles};
use crate::exit::{Failure, Outcome};
use crate::foreign;
use crate::inspect::statistics::first_not_finite;
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
    fn open(self, path: &Path, say: Verbosity) -> anyhow::Result<Gguf> {
        foreign::refuse(path)?;
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

/// A loaded model and how to speak of it.
pub(crate) struct Model {
    /// Architecture, weights and files.
    pub loaded: Loaded,
    /// File name for messages and JSON.
    pub name: String,
    /// The type that most of its tensors have, as the file says.
    pub dtype: String,
}

impl Model {
    /// Whether its files are still those that were loaded.
    ///
    /// Errors: one of them was written to. Nothing that it computes means anything: the run ends.
    pub(crate) fn check_unchanged(&self) -> Outcome<()> {
        let changed = self.loaded.files.iter().try_for_each(Gguf::check_unchanged);
        changed.map_err(|e| Failure::model(e).ending())
    }
}

impl Model {
    /// The failure of something that the model was to compute. Where the logits are not finite, the first tensor is named that
    /// is to blame.
    pub(crate) fn failure(&self, error: models::Error) -> Failure {
        let is_not_finite = matches!(error, models::Error::NotFinite { .. });
        let mut files = self.loaded.files.iter().filter(|_| is_not_finite);
        let to_blame = files.find_map(|file| Some((short_name(file.path()), first_not_finite(file)?)));
        let mut error = anyhow::Error::new(error);
        if let Some((file, tensor)) = to_blame {
            let of_file = if file == self.name { String::new() } else { format!("{file}: ") };
            error = error.context(format!("{of_file}{tensor}"));
        }
        Failure::model(error.context(self.name.clone()))
    }
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
            let file = workers::with(threads, crate::demo::open)?.map_err(Failure::model)?;
            return finish(vec![file], "built-in".into(), options).map_err(Failure::model);
        };
        match SyntheticModel::parse(path)? {
            Some(wanted) => {
                let made = workers::with(threads, || cache::open(&wanted, say))??;
                self.load_synthetic(path, made, options, (loading, say))
            }
            None if path.is_dir() && path.join("config.json").is_file() => {
                let file = workers::with(threads, || convert::to_memory(path))?.map_err(anyhow::Error::from);
                let file = foreign::refuse_in(path).and(file);
                let loaded = file.and_then(|file| finish(vec![file], short_name(path), options));
                loaded.with_context(|| format!("loading {}", path.display()))
            }
            None => self.load_path(path, options, (loading, say)),
        }
        .map_err(Failure::model)
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
    ) -> anyhow::Result<Model> {
        let own = made.projector.filter(|_| !options.text_only);
        let projector = self.mmproj.clone().or(own);
        let name = argument.display().to_string();
        let damaged = || format!("{name}: its file is damaged; it is made again where it is deleted");
        let files = std::iter::once(made.text).chain(projector).map(|path| loading.open(&path, say));
        let files = files.collect::<anyhow::Result<Vec<Gguf>>>().with_context(damaged)?;
        finish(files, name.clone(), options).with_context(damaged)
    }

    fn load_path(
        &self,
        path: &Path,
        options: LoadOptions,
        (loading, say): (Loading, Verbosity),
    ) -> anyhow::Result<Model> {
        let text = if path.is_dir() { the_model_in(path)? } else { path.to_owned() };
        let mut files = vec![loading.open(&text, say)?];
        let projector = match &self.mmproj {
            Some(path) => Some(path.clone()),
            None if options.text_only => None,
            None => projector_beside(&text, &files[0])?,
        };
        if let Some(projector) = projector {
            files.push(loading.open(&projector, say)?);
        }
        finish(files, short_name(&text), options).with_context(|| format!("loading {}", text.display()))
    }
}

/// The last part of a path, for messages.
fn short_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn finish(files: Vec<Gguf>, name: String, options: LoadOptions) -> anyhow::Result<Model> {
    let loaded = models::load(files, options)?;
    let dtype = file_type(&loaded.files[0]);
    Ok(Model { loaded, name, dtype })
}

/// Name of `general.file_type`.
fn file_type(file: &Gguf) -> String {
    let number = file.get_u32("general.file_type").ok();
    number.and_then(FileType::from_general_file_type).map_or("unknown".into(), |mix| mix.to_string())
}

/// GGUF files of a directory: projectors, and the others without the later parts of split files.
fn gguf_files(dir: &Path) -> anyhow::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("{}: cannot be listed", dir.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) && p.is_file() && !is_later_part(p))
        .collect();
    files.sort();
    Ok(files.into_iter().partition(|p| is_projector(&file_name(p))))
}

/// Whether a file is a projector by its name: `mmproj-*` and `*.mmproj-*`.
fn is_projector(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("mmproj") || name.contains(".mmproj-") || name.contains(".mmproj.")
}

/// What a file name says besides the word for projectors and the ending: of a model and its projector it is the same.
fn shared_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let parts = stem.split(['-', '.']).filter(|part| !part.is_empty() && *part != "mmproj");
    parts.collect::<Vec<&str>>().join("-")
}

/// What the name of a projector says of its type alone, such as `q8_0`.
fn named_type(path: &Path) -> String {
    shared_name(path).rsplit('-').next().unwrap_or_default().to_owned()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether the name ends in `-0000N-of-0000M` with N above 1.
fn is_later_part(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let Some((front, count)) = stem.rsplit_once("-of-") else { return false };
    let number = front.rsplit('-').next().unwrap_or_default();
    let numeric = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    numeric(count) && numeric(number) && number != "00001"
}

/// The only model in a directory.
///
/// Errors: none or several.
pub(crate) fn the_model_in(dir: &Path) -> anyhow::Result<PathBuf> {
    let (_, models) = gguf_files(dir)?;
    match &models[..] {
        [model] => Ok(model.clone()),
        [] => Err(anyhow!("{}: no model in this directory (neither *.gguf nor config.json)", dir.display())),
        several => {
            let names: Vec<String> = several.iter().map(|p| file_name(p)).collect();
            Err(anyhow!("{}: several models ({}): name one of them", dir.display(), names.join(", ")))
        }
    }
}

/// The projector for a text file that needs one: the only one beside it, or among several the only one of its name, else the
/// only one of its type.
fn projector_beside(text: &Path, file: &Gguf) -> anyhow::Result<Option<PathBuf>> {
    if !models::registry::needs_projector(file) {
        return Ok(None);
    }
    let dir = text.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (projectors, _) = gguf_files(dir)?;
    if projectors.is_empty() {
        let name = text.display();
        return Err(anyhow!(
            "{name}: no mmproj-*.gguf or *.mmproj-*.gguf beside it; --mmproj names the projector file"
        ));
    }
    let dtype = file_type(file).to_ascii_lowercase();
    let of_name = projectors.iter().filter(|path| shared_name(path) == shared_name(text)).collect();
    let of_type = projectors.iter().filter(|path| named_type(path) == dtype).collect();
    let candidates: [Vec<&PathBuf>; 3] = [projectors.iter().collect(), of_name, of_type];
    match candidates.iter().find(|found| found.len() == 1) {
        Some(found) => Ok(Some(found[0].clone())),
        None => {
            let names: Vec<String> = projectors.iter().map(|path| file_name(path)).collect();
            let (name, n) = (text.display(), names.len());
            Err(anyhow!("{name}: {n} projectors beside it ({}); --mmproj names one", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{is_projector, named_type, shared_name};

    #[test]
    fn projectors_are_told_by_their_names() {
        for name in ["mmproj-a-Q8_0.gguf", "mmproj.gguf", "A.mmproj-Q8_0.gguf", "MMPROJ-F16.GGUF", "a.mmproj.gguf"] {
            assert!(is_projector(name), "{name}");
        }
        for name in ["a-Q8_0.gguf", "a-mmprojless.gguf"] {
            assert!(!is_projector(name), "{name}");
        }
    }

    #[test]
    fn a_projector_shares_its_name_with_the_model() {
        for (model, projector) in
            [("a-Q8_0.gguf", "mmproj-a-Q8_0.gguf"), ("A.Q8_0.gguf", "A.mmproj-Q8_0.gguf"), ("b.GGUF", "b.mmproj.gguf")]
        {
            assert_eq!(shared_name(model.as_ref()), shared_name(projector.as_ref()), "{model} {projector}");
        }
        assert_ne!(shared_name("a-Q8_0.gguf".as_ref()), shared_name("mmproj-a-F16.gguf".as_ref()));
        assert_eq!(["mmproj-F16.gguf", "A.mmproj-Q8_0.gguf"].map(|name| named_type(name.as_ref())), ["f16", "q8_0"]);
    }
}
