//! The list of architectures, and the choice among them from metadata. A program adds its own with
//! [`LoadOptions::architectures`].

use std::sync::Arc;

use engine::gguf::Gguf;
use engine::model::Model;
use engine::weights::WeightStore;

use crate::error::{Error, Result};
use crate::granite;
use crate::jamba;
use crate::lfm2;
use crate::lfm2_audio;
use crate::llama;
use crate::mamba;
use crate::qwen3;
use crate::qwen3_asr::{self, AudioAttention};
use crate::qwen3_next;
use crate::speech::SpeechFormat;
use crate::tokenizer::Tokenizer;

/// Name the kind of projector in a projector file or bundle; the first that is there counts.
const PROJECTOR_KEYS: [&str; 2] = ["clip.projector_type", "clip.audio.projector_type"];
/// `general.architecture` of projector files.
const PROJECTOR_ARCHITECTURE: &str = "clip";

/// Choices that a user makes when a model is loaded.
#[derive(Clone, Copy, Default, Debug)]
pub struct LoadOptions {
    /// What audio tokens attend to, where the architecture leaves a choice ([`Speech::audio_attention`]).
    pub audio_attention: AudioAttention,
    /// Only the language model, of a speech model's files too.
    pub text_only: bool,
    /// Architectures of the caller's own, which come before those of [`ARCHITECTURES`].
    pub architectures: &'static [Arch],
}

impl LoadOptions {
    /// Every architecture that files may name, the caller's first.
    fn all(self) -> impl Iterator<Item = &'static Arch> {
        self.architectures.iter().chain(ARCHITECTURES)
    }
}

/// Reads parameters from the metadata and finds the weights. The errors of a model that does not fit its files are those of
/// [`crate::load`].
pub type Load = fn(&[Gguf], &WeightStore, LoadOptions) -> Result<Arc<dyn Model>>;

/// An architecture that files can name.
#[derive(Debug)]
pub struct Arch {
    /// The name that users see.
    pub name: &'static str,
    /// `general.architecture` of the text file.
    pub text: &'static str,
    /// Loads the language model.
    pub load: Load,
    /// What makes a speech model of it, together with a projector.
    pub speech: Option<Speech>,
}

/// The speech side of an architecture.
#[derive(Debug)]
pub struct Speech {
    /// Kind of the projector: `clip.projector_type` of its file or of a bundle.
    pub projector: &'static str,
    /// Loads the whole model.
    pub load: Load,
    /// Prompt and answers in a vocabulary.
    pub format: fn(&Tokenizer) -> Result<Box<dyn SpeechFormat>>,
    /// Whether [`LoadOptions::audio_attention`] is obeyed.
    pub audio_attention: bool,
}

/// Every architecture.
pub const ARCHITECTURES: &[Arch] = &[
    Arch {
        name: "qwen3-asr",
        text: "qwen3vl",
        load: |files, w, _| Ok(Arc::new(qwen3::load(files, "qwen3vl", w)?)),
        speech: Some(Speech {
            projector: "qwen3a",
            load: |files, w, options| Ok(Arc::new(qwen3_asr::load(files, w, options.audio_attention)?)),
            format: |tokenizer| Ok(Box::new(qwen3_asr::prompt::PromptFormat::new(tokenizer)?)),
            audio_attention: true,
        }),
    },
    Arch {
        name: "lfm2-audio",
        text: "lfm2",
        load: |files, w, _| Ok(Arc::new(lfm2::load(files, w)?)),
        speech: Some(Speech {
            projector: "lfm2a",
            load: |files, w, _| Ok(Arc::new(lfm2_audio::load(files, w)?)),
            format: |tokenizer| Ok(Box::new(lfm2_audio::prompt::PromptFormat::new(tokenizer)?)),
            audio_attention: false,
        }),
    },
    Arch { name: "lfm2", text: "lfm2", load: |files, w, _| Ok(Arc::new(lfm2::load(files, w)?)), speech: None },
    Arch {
        name: "lfm2-moe",
        text: "lfm2moe",
        load: |files, w, _| Ok(Arc::new(lfm2::load_moe(files, w)?)),
        speech: None,
    },
    Arch {
        name: "qwen3",
        text: "qwen3",
        load: |files, w, _| Ok(Arc::new(qwen3::load(files, "qwen3", w)?)),
        speech: None,
    },
    Arch {
        name: "qwen3-next",
        text: "qwen3next",
        load: |files, w, _| Ok(Arc::new(qwen3_next::load(files, w)?)),
        speech: None,
    },
    Arch {
        name: "qwen3.5",
        text: "qwen35",
        load: |files, w, _| Ok(Arc::new(qwen3_next::load_dense(files, w)?)),
        speech: None,
    },
    Arch {
        name: "qwen3.5-moe",
        text: "qwen35moe",
        load: |files, w, _| Ok(Arc::new(qwen3_next::load_moe(files, w)?)),
        speech: None,
    },
    Arch { name: "mamba", text: "mamba", load: |files, w, _| Ok(Arc::new(mamba::load(files, w)?)), speech: None },
    Arch {
        name: "mamba2",
        text: "mamba2",
        load: |files, w, _| Ok(Arc::new(mamba::load_mamba2(files, w)?)),
        speech: None,
    },
    Arch {
        name: "granite-hybrid",
        text: "granitehybrid",
        load: |files, w, _| Ok(Arc::new(granite::load(files, w)?)),
        speech: None,
    },
    Arch { name: "jamba", text: "jamba", load: |files, w, _| Ok(Arc::new(jamba::load(files, w)?)), speech: None },
    Arch { name: "llama", text: "llama", load: |files, w, _| Ok(Arc::new(llama::load(files, w)?)), speech: None },
];

/// Names of all architectures, for messages.
pub fn known(options: LoadOptions) -> String {
    options.all().map(|a| a.name).collect::<Vec<_>>().join(", ")
}

/// Names of the architectures that transcribe, for messages.
fn known_speech() -> String {
    let speech = ARCHITECTURES.iter().filter(|a| a.speech.is_some());
    speech.map(|a| a.name).collect::<Vec<_>>().join(", ")
}

/// Whether a text file holds only half of a speech model: with a projector, which this file does not have, its architecture
/// transcribes.
pub fn needs_projector(file: &Gguf, options: LoadOptions) -> bool {
    let is_text_of = |a: &Arch| file.get_str("general.architecture").is_ok_and(|name| name == a.text);
    options.all().any(|a| a.speech.is_some() && is_text_of(a)) && !has_projector(file)
}

/// Whether a file is a projector or a bundle.
fn has_projector(file: &Gguf) -> bool {
    PROJECTOR_KEYS.iter().any(|key| file.contains(key))
}

/// Kind of the projector that is in one of these files.
fn projector(files: &[Gguf]) -> Result<Option<&str>> {
    let keys = PROJECTOR_KEYS.iter().flat_map(|key| files.iter().map(move |f| (f, *key)));
    Ok(keys.filter(|(f, key)| f.contains(key)).map(|(f, key)| f.get_str(key)).next().transpose()?)
}

/// The architecture that these files hold together; with [`LoadOptions::text_only`] whatever projector is among them.
///
/// Errors: `UnknownArchitecture`; `NoProjector` for speech without its projector file, `NoTextModel` for a projector alone.
pub fn find(files: &[Gguf], options: LoadOptions) -> Result<&'static Arch> {
    const KEY: &str = "general.architecture";
    let names = files.iter().map(|f| Ok((f.path(), f.get_str(KEY)?))).collect::<Result<Vec<_>>>()?;
    let paths = || names.iter().map(|&(path, _)| path.to_owned()).collect();
    let Some(&(path, text)) = names.iter().find(|&&(_, name)| name != PROJECTOR_ARCHITECTURE) else {
        return Err(Error::NoTextModel { paths: paths() });
    };
    let projector = if options.text_only { None } else { projector(files)? };
    let candidates = || options.all().filter(|a| a.text == text);
    let kind = |a: &Arch| a.speech.as_ref().map(|s| s.projector);
    if let Some(arch) = candidates().find(|a| kind(a) == projector) {
        return Ok(arch);
    }
    match (candidates().find(|a| a.speech.is_some()), projector) {
        (Some(arch), None) if options.text_only => Ok(arch),
        (Some(arch), None) => {
            let want = kind(arch).unwrap_or_default();
            let what = format!("{text} needs its {want} projector (mmproj) file beside it, or --mmproj");
            Err(Error::NoProjector { path: path.to_owned(), what })
        }
        (_, found) => {
            let found = found.map_or(text.to_owned(), |p| format!("{text} with projector {p}"));
            Err(Error::UnknownArchitecture { paths: paths(), found, known: known(options) })
        }
    }
}

impl Arch {
    /// Reads parameters and finds the weights.
    pub fn load(&self, files: &[Gguf], w: &WeightStore, options: LoadOptions) -> Result<Arc<dyn Model>> {
        let load = self.speech.as_ref().filter(|_| !options.text_only).map_or(self.load, |s| s.load);
        load(files, w, options)
    }

    /// The prompt and answers of a speech model in this vocabulary.
    ///
    /// Errors: `NotSpeech` for a text model; a vocabulary that lacks a token of the prompt.
    pub fn speech_format(&self, tokenizer: &Tokenizer) -> Result<Box<dyn SpeechFormat>> {
        let no_speech = || Error::NotSpeech { arch: self.name, known: known_speech() };
        let speech = self.speech.as_ref().ok_or_else(no_speech)?;
        (speech.format)(tokenizer)
    }
}
