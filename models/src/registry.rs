//! The list of architectures, and the choice among them from metadata.

use std::sync::Arc;

use engine::gguf::Gguf;
use engine::model::Model;
use engine::weights::WeightStore;
use engine::{Error, Result};

use crate::lfm2::Lfm2;
use crate::lfm2_audio::Lfm2Audio;
use crate::qwen3;
use crate::qwen3_asr::{AudioAttention, Qwen3Asr};

/// Where a projector file or bundle names the kind of projector.
const PROJECTOR_KEYS: [&str; 2] = ["clip.projector_type", "clip.audio.projector_type"];
/// `general.architecture` of projector files.
const PROJECTOR_ARCHITECTURE: &str = "clip";

/// Choices that a user makes when a model is loaded.
#[derive(Clone, Copy, Default, Debug)]
pub struct LoadOptions {
    /// What audio tokens attend to, where the architecture leaves a choice.
    pub audio_attention: AudioAttention,
}

type Load = fn(&[Gguf], &WeightStore, LoadOptions) -> Result<Arc<dyn Model>>;

/// An architecture that files can name.
pub struct Arch {
    /// The name that users see.
    pub name: &'static str,
    /// `general.architecture` of the text file.
    text: &'static str,
    /// `clip.audio.projector_type` of the projector, for speech.
    projector: Option<&'static str>,
    load: Load,
}

/// Every architecture.
pub const ARCHITECTURES: [Arch; 5] = [
    Arch {
        name: "qwen3-asr",
        text: "qwen3vl",
        projector: Some("qwen3a"),
        load: |files, w, options| Ok(Arc::new(Qwen3Asr::load(files, w, options.audio_attention)?)),
    },
    Arch {
        name: "lfm2-audio",
        text: "lfm2",
        projector: Some("lfm2a"),
        load: |files, w, _| Ok(Arc::new(Lfm2Audio::load(files, w)?)),
    },
    Arch { name: "lfm2", text: "lfm2", projector: None, load: |files, w, _| Ok(Arc::new(Lfm2::load(files, w)?)) },
    Arch {
        name: "lfm2-moe",
        text: "lfm2moe",
        projector: None,
        load: |files, w, _| Ok(Arc::new(Lfm2::load_moe(files, w)?)),
    },
    Arch { name: "qwen3", text: "qwen3", projector: None, load: |files, w, _| qwen3::load(files, w) },
];

/// Names of all architectures, for messages.
pub fn known() -> String {
    ARCHITECTURES.map(|a| a.name).join(", ")
}

/// Names of the architectures that transcribe, for messages.
pub fn known_speech() -> String {
    let speech = ARCHITECTURES.iter().filter(|a| a.projector.is_some());
    speech.map(|a| a.name).collect::<Vec<_>>().join(", ")
}

/// The kind of projector in a file, where there is one.
fn projector_of(file: &Gguf) -> Result<Option<&str>> {
    PROJECTOR_KEYS.iter().find(|key| file.contains(key)).map(|key| file.get_str(key)).transpose()
}

/// Whether a text file holds only half of a model: its architecture needs a projector that this file does not have.
pub fn needs_projector(file: &Gguf) -> bool {
    let is_text_of = |a: &Arch| file.get_str("general.architecture").is_ok_and(|name| name == a.text);
    let mut candidates = ARCHITECTURES.iter().filter(|a| is_text_of(a)).peekable();
    candidates.peek().is_some() && candidates.all(|a| a.projector.is_some()) && matches!(projector_of(file), Ok(None))
}

/// The architecture that these files hold together.
///
/// Errors: `UnknownArchitecture`; `BadValue` for speech without its projector file, or a projector without its text file.
pub fn find(files: &[Gguf]) -> Result<&'static Arch> {
    const KEY: &str = "general.architecture";
    let projectors = files.iter().filter_map(|f| projector_of(f).transpose()).collect::<Result<Vec<_>>>()?;
    let projector = projectors.first().copied();
    let names = files.iter().map(|f| f.get_str(KEY)).collect::<Result<Vec<_>>>()?;
    let Some(text) = names.iter().copied().find(|&n| n != PROJECTOR_ARCHITECTURE) else {
        return Err(Error::BadValue { key: KEY.into(), what: "a projector (mmproj) without its text model".into() });
    };
    let candidates = ARCHITECTURES.iter().filter(|a| a.text == text);
    if let Some(arch) = candidates.clone().find(|a| a.projector == projector) {
        return Ok(arch);
    }
    match (candidates.clone().find_map(|a| a.projector), projector) {
        (Some(want), None) => {
            let what = format!("{text} needs its {want} projector (mmproj) file beside it, or --mmproj");
            Err(Error::BadValue { key: KEY.into(), what })
        }
        (_, found) => {
            let found = found.map_or(text.to_owned(), |p| format!("{text} with projector {p}"));
            Err(Error::UnknownArchitecture { found, known: known() })
        }
    }
}

impl Arch {
    /// Reads parameters and finds the weights.
    pub fn load(&self, files: &[Gguf], w: &WeightStore, options: LoadOptions) -> Result<Arc<dyn Model>> {
        (self.load)(files, w, options)
    }
}
