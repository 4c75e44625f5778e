//! Which files make a model: the one of a directory, and the projector beside a text model.

use std::path::{Path, PathBuf};

use engine::gguf::Gguf;
use models::LoadOptions;

use crate::error::{Error, Result};
use crate::model::file_type;

fn no_model(path: &Path, what: String) -> Error {
    Error::NoModel { path: path.to_owned(), what }
}

/// GGUF files of a directory: projectors, and the others without the later parts of split files.
fn gguf_files(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let entries = std::fs::read_dir(dir).map_err(|source| Error::Io { path: dir.to_owned(), source })?;
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
pub fn the_model_in(dir: &Path) -> Result<PathBuf> {
    let (_, models) = gguf_files(dir)?;
    match &models[..] {
        [model] => Ok(model.clone()),
        [] => Err(no_model(dir, "no model in this directory (neither *.gguf nor config.json)".into())),
        several => {
            let names: Vec<String> = several.iter().map(|p| file_name(p)).collect();
            Err(no_model(dir, format!("several models ({}): name one of them", names.join(", "))))
        }
    }
}

/// The projector for a text file that needs one: the only one beside it, or among several the only one of its name, else the
/// only one of its type.
///
/// Errors: none, or several that fit.
pub(crate) fn projector_beside(text: &Path, file: &Gguf, options: LoadOptions) -> Result<Option<PathBuf>> {
    if !models::registry::needs_projector(file, options) {
        return Ok(None);
    }
    let dir = text.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (projectors, _) = gguf_files(dir)?;
    if projectors.is_empty() {
        let what = "no mmproj-*.gguf or *.mmproj-*.gguf beside it; --mmproj names the projector file";
        return Err(no_model(text, what.into()));
    }
    let dtype = file_type(file).to_ascii_lowercase();
    let of_name = projectors.iter().filter(|path| shared_name(path) == shared_name(text)).collect();
    let of_type = projectors.iter().filter(|path| named_type(path) == dtype).collect();
    let candidates: [Vec<&PathBuf>; 3] = [projectors.iter().collect(), of_name, of_type];
    match candidates.iter().find(|found| found.len() == 1) {
        Some(found) => Ok(Some(found[0].clone())),
        None => {
            let names: Vec<String> = projectors.iter().map(|path| file_name(path)).collect();
            let what = format!("{} projectors beside it ({}); --mmproj names one", names.len(), names.join(", "));
            Err(no_model(text, what))
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
