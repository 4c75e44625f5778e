//! `synth:SHAPE:TYPE[:SEED]`, where the command line takes a model, and `synth:SHAPE[:SEED]`, where it takes a checkpoint.

use std::fmt;
use std::path::Path;

use anyhow::anyhow;
use models::languages::nearest;

use super::{DEFAULT_SEED, Shape, Synthetic};
use crate::FileType;
use crate::error::Error;

/// What synthetic models and checkpoints begin with. A file of such a name is reached through its directory.
const PREFIX: &str = "synth:";

/// A synthetic model of one type.
#[derive(Clone, Copy, Debug)]
pub struct SyntheticModel {
    /// Its shape.
    pub shape: Shape,
    /// Type of its text model.
    pub file_type: FileType,
    /// Seed of its weights.
    pub seed: u64,
}

impl SyntheticModel {
    /// What `-m argument` asks for; `None` where it is a path.
    ///
    /// Errors: a shape, type or seed that does not exist.
    pub fn parse(argument: &Path) -> crate::Result<Option<Self>> {
        let argument = argument.to_string_lossy();
        let Some(text) = argument.strip_prefix(PREFIX) else { return Ok(None) };
        let fail = |what: String| Err(Error::usage(anyhow!("{argument}: {what}")));
        let (name, file_type, given_seed) = match text.split(':').collect::<Vec<_>>()[..] {
            [name, file_type] => (name, file_type, None),
            [name, file_type, seed] => (name, file_type, Some(seed)),
            [name] => {
                // A misspelt shape is the first thing to know.
                shape(name).map_err(|what| Error::usage(anyhow!("{argument}: {what}")))?;
                return fail(format!("want {PREFIX}SHAPE:TYPE[:SEED], such as {PREFIX}{name}:q8_0"));
            }
            _ => return fail(format!("want {PREFIX}SHAPE:TYPE[:SEED]")),
        };
        match (shape(name), type_of(file_type), seed(given_seed)) {
            (Ok(shape), Ok(file_type), Ok(seed)) => Ok(Some(Self { shape, file_type, seed })),
            (Err(what), ..) | (_, Err(what), _) | (.., Err(what)) => fail(what),
        }
    }

    /// Its checkpoint.
    pub fn checkpoint(&self) -> Synthetic {
        Synthetic::new(&self.shape, self.seed)
    }
}

impl fmt::Display for SyntheticModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, seed {}", self.shape.name, self.file_type, self.seed)
    }
}

/// The checkpoint that `argument` asks for; `None` where it is a path.
///
/// Errors: a shape or seed that does not exist.
pub fn checkpoint(argument: &Path) -> crate::Result<Option<Synthetic>> {
    let argument = argument.to_string_lossy();
    let Some(text) = argument.strip_prefix(PREFIX) else { return Ok(None) };
    let (name, given_seed) = match text.split_once(':') {
        Some((name, seed)) => (name, Some(seed)),
        None => (text, None),
    };
    let fail = |what: String| Error::usage(anyhow!("{argument}: {what}"));
    let shape = shape(name).map_err(fail)?;
    if given_seed.is_some_and(|text| type_of(text).is_ok()) {
        return Err(fail(format!("want {PREFIX}SHAPE[:SEED]; the type is that of --type")));
    }
    Ok(Some(Synthetic::new(&shape, seed(given_seed).map_err(fail)?)))
}

fn shape(name: &str) -> Result<Shape, String> {
    let found = Shape::ALL.into_iter().find(|shape| shape.name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| unknown("shape", name, &Shape::ALL.map(|shape| shape.name)))
}

fn type_of(name: &str) -> Result<FileType, String> {
    FileType::from_name(name).ok_or_else(|| unknown("type", name, &FileType::ALL.map(FileType::name)))
}

fn seed(given: Option<&str>) -> Result<u64, String> {
    let Some(text) = given else { return Ok(DEFAULT_SEED) };
    text.parse().map_err(|_| format!("seed {text:?}: want a number from 0 to {}", u64::MAX))
}

/// Why `name` is not one of `accepted`.
fn unknown(what: &str, name: &str, accepted: &[&str]) -> String {
    let hint = nearest(&name.to_lowercase(), accepted).map_or(String::new(), |near| format!("; did you mean {near}?"));
    format!("no such {what} {name:?}{hint} (accepted: {})", accepted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(text: &str) -> Result<Option<String>, String> {
        let parsed = SyntheticModel::parse(Path::new(text));
        parsed.map(|model| model.map(|model| model.to_string())).map_err(|failure| failure.to_string())
    }

    #[test]
    fn models_are_named_by_shape_type_and_seed() {
        assert_eq!(model("synth:lfm2-1.2b:q8_0"), Ok(Some("lfm2-1.2b, Q8_0, seed 1".into())));
        assert_eq!(model("synth:Qwen3-ASR-0.6B:Q4_K_M:18446744073709551615"), {
            Ok(Some("qwen3-asr-0.6b, Q4_K_M, seed 18446744073709551615".into()))
        });
        for path in ["model.gguf", "./synth:lfm2-1.2b:q8_0", "", "synth"] {
            assert_eq!(model(path), Ok(None), "{path}");
        }
    }

    #[test]
    fn what_does_not_exist_is_refused_with_the_nearest_name() {
        for (text, parts) in [
            ("synth:", &["no such shape \"\"", "qwen3-asr-0.6b, qwen3-asr-1.7b"][..]),
            ("synth:lfm2-1.3b:q8_0", &["no such shape \"lfm2-1.3b\"; did you mean lfm2-1.2b?", "lfm2-8b-a1b"]),
            ("synth:whisper-large-v3:q8_0", &["no such shape \"whisper-large-v3\" (accepted"]),
            ("synth:lfm2-1.2b", &["want synth:SHAPE:TYPE[:SEED], such as synth:lfm2-1.2b:q8_0"]),
            ("synth:lfm2-1.2b:q8_1", &["no such type \"q8_1\"; did you mean q8_0?", "iq4_nl"]),
            ("synth:lfm2-1.2b:q8_0:-1", &["seed \"-1\": want a number"]),
            ("synth:lfm2-1.2b:q8_0:", &["seed \"\": want a number"]),
            ("synth:lfm2-1.2b:q8_0:1:2", &["want synth:SHAPE:TYPE[:SEED]"]),
        ] {
            let error = model(text).unwrap_err();
            assert!(error.starts_with(text), "{error}");
            for part in parts {
                assert!(error.contains(part), "{error}");
            }
        }
    }

    #[test]
    fn checkpoints_are_named_by_shape_and_seed() {
        let name = |text: &str| {
            let made = checkpoint(Path::new(text));
            made.map(|made| made.map(|made| made.path().display().to_string())).map_err(|failure| failure.to_string())
        };
        assert_eq!(name("synth:lfm2-350m"), Ok(Some("synth-lfm2-350m".into())));
        assert_eq!(name("synth:lfm2-350m:7"), Ok(Some("synth-lfm2-350m-seed7".into())));
        assert_eq!(name("lfm2-350m"), Ok(None));
        assert!(name("synth:lfm2-350m:q8_0").unwrap_err().contains("the type is that of --type"));
        assert!(name("synth:lfm2-350:7").unwrap_err().contains("did you mean lfm2-350m?"));
    }
}
