//! Synthetic models as files, which are made once and kept. [`open`] is where to start.

use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use convert::synth::{SyntheticModel, VERSION};
use convert::{Conversion, Options};

use crate::exit::{Failure, Outcome};
use crate::progress::Bar;
use crate::report::Verbosity;

/// Directory of the files.
const VARIABLE: &str = "TYMPAN_CACHE";
/// Bytes in what messages call a GB.
const GB: f64 = 1e9;

/// The files of a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ModelFiles {
    /// The text model.
    pub text: PathBuf,
    /// The projector, where the model hears.
    pub projector: Option<PathBuf>,
}

impl ModelFiles {
    /// Where the files of `model` are, once they are there. The names tell everything that the bytes depend on.
    fn of(model: &SyntheticModel, directory: &Path) -> Self {
        let SyntheticModel { shape, file_type, seed } = model;
        let name = format!("synth{VERSION}-{}-{file_type}-seed{seed}.gguf", shape.name);
        let projector = shape.has_audio().then(|| directory.join(format!("mmproj-{name}")));
        Self { text: directory.join(name), projector }
    }

    fn paths(&self) -> Vec<PathBuf> {
        std::iter::once(&self.text).chain(&self.projector).cloned().collect()
    }

    /// Whether all are there: they get their names one after the other.
    fn exist(&self) -> bool {
        self.paths().iter().all(|path| path.is_file())
    }

    /// What tells files that were written to since from those that were found good: their lengths and times of change.
    fn stamp(&self) -> std::io::Result<String> {
        let of = |path: &PathBuf| {
            let found = std::fs::metadata(path)?;
            let changed = found.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Ok(format!("{} {}\n", found.len(), changed.as_nanos()))
        };
        self.paths().iter().map(of).collect()
    }

    /// Where the stamp of good files is kept.
    fn stamp_path(&self) -> PathBuf {
        self.text.with_extension("checked")
    }

    /// Whether they are as they were when they were found good.
    fn are_as_they_were(&self) -> bool {
        let kept = std::fs::read_to_string(self.stamp_path());
        kept.is_ok_and(|kept| self.stamp().is_ok_and(|stamp| stamp == kept))
    }

    /// Remembers that they are good. Where that cannot be, they are compared again the next time.
    fn remember(&self) {
        if let Ok(stamp) = self.stamp() {
            let _ = std::fs::write(self.stamp_path(), stamp);
        }
    }
}

/// The files of `model`, made now unless they are there. What has their names and is something else, of another version or
/// seed, cut short or damaged, is made anew.
///
/// Errors: a directory that cannot be written to, a full disk, an interruption.
pub(crate) fn open(model: &SyntheticModel, say: Verbosity) -> Outcome<ModelFiles> {
    let directory = directory(|name| std::env::var_os(name));
    let files = ModelFiles::of(model, &directory);
    if files.exist() && files.are_as_they_were() {
        return Ok(files);
    }
    let io = |source| Failure::output(engine::Error::Io { path: directory.clone(), source });
    std::fs::create_dir_all(&directory).map_err(io)?;
    // Another process may be making the same model: it is worth waiting for.
    let _turn = File::open(&directory).and_then(|turn| turn.lock().map(|()| turn)).ok();
    if files.exist() && files.are_as_they_were() {
        return Ok(files);
    }
    let conversion = Conversion::open(model.checkpoint(), |_| Options::new(model.file_type))?;
    if files.exist() {
        let Err(other) = conversion.assembly(&files.paths()).and_then(|assembly| assembly.matches()) else {
            files.remember();
            return Ok(files);
        };
        say.note(format_args!("{other}: not the model that belongs there"));
        files.paths().iter().try_for_each(std::fs::remove_file).map_err(io)?;
    }
    let size = format!("{:.2} GB", conversion.bytes() as f64 / GB);
    let at = files.text.display();
    say.note(format_args!("making a model with random weights ({model}; {size}): {at}"));
    let started = Instant::now();
    let bar = Bar::new(conversion.elements(), say == Verbosity::Quiet);
    let result = conversion.write(&files.paths(), &bar);
    bar.finish();
    result.map_err(|error| with_hint(error, &size, &directory))?;
    files.remember();
    say.detail(format_args!("made in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(files)
}

/// Tells what to do about a full disk.
fn with_hint(error: convert::Error, size: &str, directory: &Path) -> Failure {
    let is_full = |source: &std::io::Error| matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    let is_full = error.io().is_some_and(is_full);
    let failure = Failure::from(error);
    if !is_full {
        return failure;
    }
    let directory = directory.display();
    let hint = format!("the model takes {size} in {directory}; {VARIABLE}=DIRECTORY keeps models elsewhere");
    Failure { error: failure.error.context(hint), ..failure }
}

/// Where files are kept, by the variables of the environment. Source: XDG Base Directory Specification.
fn directory(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    const OWN: &str = "tympan";
    let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(chosen) = path(VARIABLE) {
        return chosen;
    }
    // Relative paths are to be ignored.
    let absolute = |name: &str| path(name).filter(|path| cfg!(unix) && path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    caches.unwrap_or_else(std::env::temp_dir).join(OWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(text: &str) -> SyntheticModel {
        SyntheticModel::parse(Path::new(text)).unwrap().unwrap()
    }

    #[test]
    fn a_name_tells_shape_type_seed_and_version() {
        let files = |text: &str| ModelFiles::of(&model(text), Path::new("c"));
        let text = files("synth:lfm2-350m:q4_k_m:7");
        assert_eq!(text.text, Path::new("c").join(format!("synth{VERSION}-lfm2-350m-Q4_K_M-seed7.gguf")));
        assert_eq!(text.projector, None);
        let pair = files("synth:qwen3-asr-0.6b:q8_0");
        assert_eq!(pair.projector.unwrap().file_name().unwrap().to_str().unwrap(), {
            format!("mmproj-synth{VERSION}-qwen3-asr-0.6b-Q8_0-seed1.gguf")
        });
    }

    #[cfg(unix)]
    #[test]
    fn the_directory_is_that_of_the_environment() {
        let directory = |variables: &[(&str, &str)]| {
            directory(|name| variables.iter().find(|(found, _)| *found == name).map(|(_, value)| value.into()))
        };
        let home = ("HOME", "/home/a");
        assert_eq!(directory(&[home, ("XDG_CACHE_HOME", "/x"), (VARIABLE, "own")]), Path::new("own"));
        assert_eq!(directory(&[home, ("XDG_CACHE_HOME", "/x"), (VARIABLE, "")]), Path::new("/x/tympan"));
        assert_eq!(directory(&[home, ("XDG_CACHE_HOME", "x")]), Path::new("/home/a/.cache/tympan"));
        assert_eq!(directory(&[]), std::env::temp_dir().join("tympan"));
    }
}
