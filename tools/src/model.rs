//! [`Model`]: a model that is open, and the ways to one.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use convert::{FileType, workers};
use engine::gguf::Gguf;
use models::{LoadOptions, Loaded};

use crate::demo;
use crate::error::Result;
use crate::find::{projector_beside, the_model_in};
use crate::foreign;
use crate::recognizer::{Device, Recognizer};

/// How a model is opened.
#[derive(Clone, Default, Debug)]
pub struct Opening {
    /// The projector file, where it is not the one beside the text model.
    pub projector: Option<PathBuf>,
    /// What of the files is loaded, and architectures of one's own.
    pub load: LoadOptions,
    /// Threads that convert a checkpoint; all available cores where nothing is said.
    pub threads: Option<NonZeroUsize>,
}

/// An open model. Its files are mapped: they must not be written to while it is used ([`Model::check_unchanged`]).
pub struct Model {
    /// Architecture, weights and files.
    pub loaded: Loaded,
    /// What it is called in messages: the name of its file or directory.
    pub name: String,
    /// The type that most of its tensors have, as the file says.
    pub dtype: String,
}

impl Model {
    /// Opens a GGUF file, a directory with one model in it, or a checkpoint directory (safetensors), which is converted in
    /// memory. A text model of speech finds its projector beside it.
    ///
    /// Errors: `NoModel` for a path that leads to none or to several; files that are malformed, do not fit each other or are
    /// of an architecture that is not known.
    pub fn open(path: impl AsRef<Path>, opening: &Opening) -> Result<Self> {
        Self::open_with(path.as_ref(), opening, &mut |path| Ok(Gguf::open(path)?))
    }

    /// As [`Model::open`], with a way of one's own to open a file: with [`Gguf::into_resident`] its weights are copied to memory.
    ///
    /// Errors: as [`Model::open`], and those of `open`.
    pub fn open_with(path: &Path, opening: &Opening, open: &mut dyn FnMut(&Path) -> Result<Gguf>) -> Result<Self> {
        let Opening { projector, load, threads } = opening;
        if path.is_dir() && path.join("config.json").is_file() {
            let file = workers::with(*threads, || convert::to_memory(path))?;
            foreign::refuse_in(path)?;
            return Self::of_files(vec![file?], short_name(path), *load);
        }
        let mut open = |path: &Path| foreign::refuse(path).and_then(|()| open(path));
        let text = if path.is_dir() { the_model_in(path)? } else { path.to_owned() };
        let mut files = vec![open(&text)?];
        let projector = match projector {
            Some(path) => Some(path.clone()),
            None if load.text_only => None,
            None => projector_beside(&text, &files[0], *load)?,
        };
        if let Some(projector) = projector {
            files.push(open(&projector)?);
        }
        Self::of_files(files, short_name(&text), *load)
    }

    /// The small model that is built into this library: English, 163 words, for trying things out.
    ///
    /// Errors: the system gives no threads or no memory.
    pub fn demonstration() -> Result<Self> {
        Self::demonstration_on(None, LoadOptions::default())
    }

    /// As [`Model::demonstration`], converted by so many threads and loaded as these options say.
    ///
    /// Errors: as there.
    pub fn demonstration_on(threads: Option<NonZeroUsize>, load: LoadOptions) -> Result<Self> {
        let file = workers::with(threads, demo::open)??;
        Self::of_files(vec![file], demo::NAME.into(), load)
    }

    /// A model of files that are open: a text model, with its projector where it has one, or a bundle.
    ///
    /// Errors: as those of [`models::load`].
    pub fn of_files(files: Vec<Gguf>, name: String, load: LoadOptions) -> Result<Self> {
        let loaded = models::load(files, load)?;
        let dtype = file_type(&loaded.files[0]);
        Ok(Self { loaded, name, dtype })
    }

    /// Makes it ready to transcribe on a device.
    ///
    /// Errors: a model that does not hear; a device that is not there; no memory.
    pub fn recognizer(&self, device: &Device) -> Result<Recognizer> {
        Recognizer::open(self, device)
    }

    /// Whether its files are still those that were opened.
    ///
    /// Errors: `Changed` where one of them was written to. Nothing that it computes means anything then.
    pub fn check_unchanged(&self) -> Result<()> {
        Ok(self.loaded.files.iter().try_for_each(Gguf::check_unchanged)?)
    }
}

/// The last part of a path, for messages.
fn short_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Name of `general.file_type`.
pub(crate) fn file_type(file: &Gguf) -> String {
    let number = file.get_u32("general.file_type").ok();
    number.and_then(FileType::from_general_file_type).map_or("unknown".into(), |mix| mix.to_string())
}
