//! Which files are written for every input. [`Outputs`] is the type to read first.

use std::path::{Path, PathBuf};

use anyhow::anyhow;

use super::formats::Format;
use super::inputs::Input;
use super::journal::Journal;
use crate::exit::{Failure, Outcome};
use crate::output::{Destination, refuse_collisions};

/// What is done about outputs that are there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Existing {
    /// They are kept, and nothing is done.
    Refuse,
    /// They are replaced.
    Overwrite,
    /// They are kept; an input that has all of its outputs is left alone.
    Skip,
}

/// The files of one input, those left out that are kept.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Outputs {
    /// Transcripts.
    pub transcripts: Vec<(Format, Destination)>,
    /// Tensors, for `--dump`.
    pub dump: Option<Destination>,
}

impl Outputs {
    /// The files of inputs that are called `names`, in the same order; `None` for an input that is left alone.
    ///
    /// Errors: a place that takes no file; a file that is an input or another output; files that are there already.
    pub(super) fn plan(wanted: &Wanted<'_>, named: &[(Input, PathBuf)]) -> Outcome<Vec<Option<Self>>> {
        let all = named.iter().map(|(_, name)| wanted.outputs(name)).collect::<Outcome<Vec<Self>>>()?;
        let inputs = named.iter().filter_map(|(input, _)| match input {
            Input::File { path, .. } => Some(&**path),
            Input::Stdin => None,
        });
        refuse_collisions(
            all.iter().flat_map(Self::destinations),
            inputs.chain(wanted.model.iter().map(PathBuf::as_path)),
        )?;
        all.iter().filter_map(Self::journalled).try_for_each(Journal::check).map_err(Failure::output)?;
        let existing: Vec<&Destination> =
            all.iter().flat_map(Self::destinations).filter(|place| place.exists()).collect();
        match (wanted.existing, &existing[..]) {
            (Existing::Refuse, [first, ..]) => {
                let (n, first) = (existing.len(), first.path().display());
                Err(Failure::output(anyhow!(
                    "outputs that exist: {n}, the first is {first}; nothing was done (--overwrite replaces them, \
                     --skip-existing leaves inputs alone that have theirs)"
                )))
            }
            (Existing::Skip, _) => Ok(all.into_iter().map(Self::missing).collect()),
            (Existing::Refuse | Existing::Overwrite, _) => Ok(all.into_iter().map(Some).collect()),
        }
    }

    /// All files.
    pub(super) fn destinations(&self) -> impl Iterator<Item = &Destination> {
        self.transcripts.iter().map(|(_, place)| place).chain(&self.dump)
    }

    /// The transcript that has a journal beside it while it is not finished.
    pub(super) fn journalled(&self) -> Option<&Path> {
        self.transcripts.iter().map(|(_, place)| place).find(|place| place.is_file()).map(Destination::path)
    }

    /// Those that are not there yet; `None` where there were some and all are there.
    fn missing(self) -> Option<Self> {
        let had_some = self.destinations().next().is_some();
        let Self { mut transcripts, dump } = self;
        transcripts.retain(|(_, place)| !place.exists());
        let rest = Self { transcripts, dump: dump.filter(|place| !place.exists()) };
        (!had_some || rest.destinations().next().is_some()).then_some(rest)
    }
}

/// What the arguments ask for.
#[derive(Clone, Debug)]
pub(super) struct Wanted<'a> {
    /// Folder of the transcripts.
    pub folder: Option<&'a Path>,
    /// Formats of the transcripts.
    pub formats: &'a [Format],
    /// Folder of the tensors.
    pub dump: Option<&'a Path>,
    /// What is there already.
    pub existing: Existing,
    /// The files of the model.
    pub model: Vec<PathBuf>,
}

impl Wanted<'_> {
    fn outputs(&self, name: &Path) -> Outcome<Outputs> {
        let place = |folder: &Path, ending: &str| {
            let mut path = folder.join(name).into_os_string();
            path.push(format!(".{ending}"));
            Destination::check_with_folder(path.as_ref())
        };
        let mut transcripts = Vec::new();
        if let Some(folder) = self.folder {
            for &format in self.formats {
                transcripts.push((format, place(folder, format.extension())?));
            }
        }
        let dump = self.dump.map(|folder| place(folder, "safetensors")).transpose()?;
        Ok(Outputs { transcripts, dump })
    }
}
